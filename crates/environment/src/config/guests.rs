//! Settings of WebAssembly guests.

use runtara_domain::HostRule;

use super::reader::Reader;

/// What WebAssembly guests are told by the operator.
#[derive(Debug, Clone)]
pub struct GuestSettings {
    /// How many there may be at once.
    pub max_instances: u32,
    /// Memory of one if neither image nor start says, in bytes.
    pub memory_bytes: u64,
    /// Memory of one at most, in bytes.
    pub max_memory_bytes: u64,
    /// What the directory of its own may hold at most that one asks for, in bytes.
    pub max_writable_bytes: u64,
    /// The hosts that they may call at all, if they ask for it.
    pub allowed_hosts: Vec<HostRule>,
}

const MIB: u64 = 1024 * 1024;
/// A page of WebAssembly.
const LEAST_MEMORY_BYTES: u64 = 64 * 1024;
/// A page of memory, which the smallest file takes that is not empty.
const LEAST_WRITABLE_BYTES: u64 = 4096;
/// What 32 bits address.
const MOST_MEMORY_BYTES: u64 = 4096 * MIB;

impl GuestSettings {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        const MEMORY: &str = "RUNTARA_WASM_MEMORY_BYTES";
        let mut memory =
            |name, default| reader.number(name, default, LEAST_MEMORY_BYTES, MOST_MEMORY_BYTES);
        let memory_bytes = memory(MEMORY, 64 * MIB);
        let max_memory_bytes = memory("RUNTARA_WASM_MAX_MEMORY_BYTES", 1024 * MIB);
        if memory_bytes > max_memory_bytes {
            let text = format!(
                "found {memory_bytes}; RUNTARA_WASM_MAX_MEMORY_BYTES allows at most {max_memory_bytes}"
            );
            reader.problem(MEMORY, text);
        }
        let max_instances = reader.number("RUNTARA_WASM_MAX_INSTANCES", 1_000, 1, 100_000);
        Self {
            max_instances: u32::try_from(max_instances).unwrap_or(u32::MAX),
            memory_bytes,
            max_memory_bytes,
            max_writable_bytes: reader.number(
                "RUNTARA_WASM_MAX_WRITABLE_BYTES",
                64 * MIB,
                LEAST_WRITABLE_BYTES,
                MOST_MEMORY_BYTES,
            ),
            allowed_hosts: allowed_hosts(reader),
        }
    }
}

fn allowed_hosts(reader: &mut Reader<'_>) -> Vec<HostRule> {
    const NAME: &str = "RUNTARA_WASM_ALLOWED_HOSTS";
    let text = reader.text(NAME).unwrap_or_default();
    let mut rules = Vec::new();
    let words = text.split(',').map(str::trim);
    for word in words.filter(|word| !word.is_empty()) {
        match word.parse() {
            Ok(rule) => rules.push(rule),
            Err(error) => reader.problem(NAME, format!("{error}")),
        }
    }
    rules
}
