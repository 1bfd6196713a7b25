//! What may be asked of the box of a guest.

use runtara_domain::{NetworkMode, RunSettings};
use runtara_runner::AskedSettings;

use crate::WasmConfig;

/// The least memory that is worth asking for: a page of WebAssembly.
const PAGE_BYTES: u64 = 64 * 1024;

/// The memory that a guest gets, in bytes.
///
/// # Errors
/// What is asked for, and what can be had.
pub(crate) fn memory(config: &WasmConfig, asked: &AskedSettings) -> Result<u64, String> {
    for (who, settings) in [("image", &asked.image), ("start", &asked.start)] {
        if let Some(what) = of_others(settings) {
            return Err(format!(
                "the {who} asks for {what}, which WebAssembly guests cannot be given: they have no files, no network and no processes, and \
                 share the processors; ask for memory_bytes alone, or register the image as 'oci'"
            ));
        }
    }
    let wanted = asked.start.limits.memory_bytes;
    let wanted = wanted.or(asked.image.limits.memory_bytes);
    match wanted {
        None => Ok(config.default_memory_bytes.min(config.max_memory_bytes)),
        Some(bytes) if bytes > config.max_memory_bytes => Err(format!(
            "memory_bytes is {bytes}, and the operator allows WebAssembly guests at most {}",
            config.max_memory_bytes
        )),
        Some(bytes) if bytes < PAGE_BYTES => Err(format!(
            "memory_bytes is {bytes}, and a WebAssembly guest needs at least {PAGE_BYTES}"
        )),
        Some(bytes) => Ok(bytes),
    }
}

/// What only containers can be given.
fn of_others(asked: &RunSettings) -> Option<String> {
    let limits = &asked.limits;
    let others = [
        ("cpu_millicores", limits.cpu_millicores),
        ("pids", limits.pids),
        ("open_files", limits.open_files),
        ("writable_bytes", limits.writable_bytes),
    ];
    if let Some((name, _)) = others.iter().find(|(_, limit)| limit.is_some()) {
        return Some(format!("the limit {name}"));
    }
    match asked.network {
        None | Some(NetworkMode::Isolated) => None,
        Some(mode) => Some(format!("the network mode '{mode}'")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn asked(start: RunSettings) -> Result<u64, String> {
        let settings = AskedSettings {
            start,
            ..AskedSettings::default()
        };
        memory(&WasmConfig::new(Path::new("/data")), &settings)
    }

    fn limited(bytes: u64) -> RunSettings {
        let mut settings = RunSettings::default();
        settings.limits.memory_bytes = Some(bytes);
        settings
    }

    #[test]
    fn memory_is_what_was_asked_for_within_what_is_allowed() {
        let config = WasmConfig::new(Path::new("/data"));
        assert_eq!(
            asked(RunSettings::default()),
            Ok(config.default_memory_bytes)
        );
        assert_eq!(asked(limited(1 << 20)), Ok(1 << 20));
        let error = asked(limited(config.max_memory_bytes + 1)).unwrap_err();
        assert!(error.contains("at most 1073741824"), "{error}");
        assert!(asked(limited(1)).unwrap_err().contains("at least 65536"));
    }

    #[test]
    fn what_a_guest_does_not_have_is_refused_by_name() {
        let mut settings = RunSettings::default();
        settings.limits.pids = Some(3);
        let error = asked(settings).unwrap_err();
        assert!(
            error.contains("the start asks for the limit pids"),
            "{error}"
        );
        let settings = RunSettings {
            network: Some(NetworkMode::Egress),
            ..RunSettings::default()
        };
        assert!(asked(settings).unwrap_err().contains("'egress'"));
    }
}
