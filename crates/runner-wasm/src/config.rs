//! How guests are run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtara_domain::HostRule;

/// The settings of a [`WasmRunner`](crate::WasmRunner).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WasmConfig {
    /// The server's data directory, of which `cache/wasm` and `runs` are used.
    pub data_dir: PathBuf,
    /// How many guests there may be at once. For each of them address space is set aside at the start, not memory.
    pub max_instances: u32,
    /// Memory of a guest that asks for no limit, in bytes.
    pub default_memory_bytes: u64,
    /// What a guest may ask for at most, in bytes. Address space for it is set aside for each guest.
    pub max_memory_bytes: u64,
    /// What the directory of its own may hold at most that a guest asks for, in bytes.
    pub max_writable_bytes: u64,
    /// Stack of a guest, in bytes.
    pub stack_bytes: usize,
    /// Threads that guests run on.
    pub threads: usize,
    /// Images that are compiled at once.
    pub compiled_at_once: usize,
    /// The hosts that guests may call at all, if they ask for the network mode `egress`. With none of them, they may not ask for it.
    pub allowed_hosts: Arc<[HostRule]>,
    /// Connections to such hosts at once, of all guests.
    pub connections: usize,
    /// How much of each output of a run is kept, in bytes.
    pub log_cap_bytes: u64,
}

impl WasmConfig {
    /// The usual settings, with this data directory.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            data_dir: data_dir.to_owned(),
            max_instances: 1_000,
            default_memory_bytes: 64 * MIB,
            max_memory_bytes: 1024 * MIB,
            max_writable_bytes: 64 * MIB,
            stack_bytes: 512 * 1024,
            threads: processors,
            compiled_at_once: processors.div_ceil(2),
            allowed_hosts: Arc::default(),
            connections: 256,
            log_cap_bytes: 16 * MIB,
        }
    }

    /// Where compiled images are kept.
    pub(crate) fn cache(&self) -> PathBuf {
        self.data_dir.join("cache/wasm")
    }
}

const MIB: u64 = 1024 * 1024;
