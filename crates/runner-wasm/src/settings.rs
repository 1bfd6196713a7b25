//! What may be asked of the box of a guest.

use std::sync::Arc;

use runtara_domain::{HostRule, NetworkMode, RunSettings};
use runtara_runner::AskedSettings;

use crate::WasmConfig;
use crate::network::{Allowed, Reach};
use crate::scratch;

/// The least memory that is worth asking for: a page of WebAssembly.
const PAGE_BYTES: u64 = 64 * 1024;

/// What a guest gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) memory_bytes: u64,
    /// What the directory may hold that it asks for.
    pub(crate) writable_bytes: Option<u64>,
    pub(crate) reach: Reach,
}

/// Says what a guest gets: the start wins over the image, both within what the operator allows.
///
/// # Errors
/// What is asked for, and what can be had.
pub(crate) fn settle(config: &WasmConfig, asked: &AskedSettings) -> Result<Settled, String> {
    for (who, settings) in [("image", &asked.image), ("start", &asked.start)] {
        if let Some(what) = of_others(settings) {
            return Err(format!(
                "the {who} asks for {what}, which WebAssembly guests cannot be given: they have no processes, and share the processors; ask \
                 for memory_bytes, writable_bytes, network and allowed_hosts alone, or register the image as 'oci'"
            ));
        }
        if let Some(hosts) = &settings.allowed_hosts {
            check_hosts(config, who, hosts)?;
        }
    }
    Ok(Settled {
        memory_bytes: memory(config, asked)?,
        writable_bytes: writable(config, asked)?,
        reach: reach(config, asked)?,
    })
}

fn memory(config: &WasmConfig, asked: &AskedSettings) -> Result<u64, String> {
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

fn writable(config: &WasmConfig, asked: &AskedSettings) -> Result<Option<u64>, String> {
    let wanted = asked.start.limits.writable_bytes;
    let wanted = wanted.or(asked.image.limits.writable_bytes);
    match wanted {
        Some(bytes) if bytes > config.max_writable_bytes => Err(format!(
            "writable_bytes is {bytes}, and the operator allows WebAssembly guests at most {}",
            config.max_writable_bytes
        )),
        Some(bytes) if bytes < scratch::LEAST_BYTES => Err(format!(
            "writable_bytes is {bytes}, and a directory needs at least {}",
            scratch::LEAST_BYTES
        )),
        wanted => Ok(wanted),
    }
}

fn check_hosts(config: &WasmConfig, who: &str, hosts: &[HostRule]) -> Result<(), String> {
    let allowed = &config.allowed_hosts;
    let is_beyond = |host: &&HostRule| !allowed.iter().any(|rule| rule.covers(host));
    match hosts.iter().find(is_beyond) {
        None => Ok(()),
        Some(host) if allowed.is_empty() => Err(format!(
            "the {who} asks for '{host}' in allowed_hosts, and the operator allows WebAssembly guests none (RUNTARA_WASM_ALLOWED_HOSTS)"
        )),
        Some(host) => Err(format!(
            "the {who} asks for '{host}' in allowed_hosts, and the operator allows WebAssembly guests {}",
            listed(allowed)
        )),
    }
}

fn listed(hosts: &[HostRule]) -> String {
    let hosts: Vec<_> = hosts.iter().map(|host| format!("'{host}'")).collect();
    hosts.join(", ")
}

fn reach(config: &WasmConfig, asked: &AskedSettings) -> Result<Reach, String> {
    let mode = asked.start.network.or(asked.image.network);
    match mode.unwrap_or_default() {
        NetworkMode::Host => Err(
            "the network mode 'host' cannot be given to WebAssembly guests: they have no sockets; ask for 'isolated', or for 'egress' and \
             allowed_hosts"
                .to_owned(),
        ),
        NetworkMode::Egress if config.allowed_hosts.is_empty() => Err(
            "the network mode 'egress' is not allowed for WebAssembly guests: the operator allows them no host (RUNTARA_WASM_ALLOWED_HOSTS)"
                .to_owned(),
        ),
        NetworkMode::Egress => {
            let hosts = asked.start.allowed_hosts.as_ref();
            let hosts = hosts.or(asked.image.allowed_hosts.as_ref());
            Ok(Reach::Hosts(Arc::new(Allowed {
                by_operator: Arc::clone(&config.allowed_hosts),
                asked: hosts.cloned(),
            })))
        }
        NetworkMode::Isolated if asked.start.allowed_hosts.is_some() => Err(
            "the start asks for allowed_hosts, which nobody reaches with the network mode 'isolated'; ask for 'egress' as well".to_owned(),
        ),
        NetworkMode::Isolated => Ok(Reach::Core),
    }
}

/// What only containers can be given.
fn of_others(asked: &RunSettings) -> Option<String> {
    let limits = &asked.limits;
    let others = [
        ("cpu_millicores", limits.cpu_millicores),
        ("pids", limits.pids),
        ("open_files", limits.open_files),
    ];
    let other = others.iter().find(|(_, limit)| limit.is_some());
    other.map(|(name, _)| format!("the limit {name}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(hosts: &[&str]) -> WasmConfig {
        WasmConfig {
            allowed_hosts: rules(hosts).into(),
            ..WasmConfig::new(Path::new("/data"))
        }
    }

    fn rules(hosts: &[&str]) -> Vec<HostRule> {
        hosts.iter().map(|host| host.parse().unwrap()).collect()
    }

    fn asked(start: RunSettings) -> Result<Settled, String> {
        let settings = AskedSettings {
            start,
            ..AskedSettings::default()
        };
        settle(&config(&[]), &settings)
    }

    fn limited(bytes: u64) -> RunSettings {
        let mut settings = RunSettings::default();
        settings.limits.memory_bytes = Some(bytes);
        settings
    }

    fn network(mode: NetworkMode, hosts: Option<&[&str]>) -> RunSettings {
        RunSettings {
            network: Some(mode),
            allowed_hosts: hosts.map(rules),
            ..RunSettings::default()
        }
    }

    #[test]
    fn memory_is_what_was_asked_for_within_what_is_allowed() {
        let config = config(&[]);
        let memory = |settings| asked(settings).map(|settled| settled.memory_bytes);
        assert_eq!(
            memory(RunSettings::default()),
            Ok(config.default_memory_bytes)
        );
        assert_eq!(memory(limited(1 << 20)), Ok(1 << 20));
        let error = memory(limited(config.max_memory_bytes + 1)).unwrap_err();
        assert!(error.contains("at most 1073741824"), "{error}");
        assert!(memory(limited(1)).unwrap_err().contains("at least 65536"));
    }

    #[test]
    fn a_directory_is_given_to_whom_asks_for_one() {
        let writable = |bytes| {
            let mut settings = RunSettings::default();
            settings.limits.writable_bytes = bytes;
            asked(settings).map(|settled| settled.writable_bytes)
        };
        assert_eq!(writable(None), Ok(None));
        assert_eq!(writable(Some(1 << 20)), Ok(Some(1 << 20)));
        let most = config(&[]).max_writable_bytes;
        let error = writable(Some(most + 1)).unwrap_err();
        assert!(error.contains(&format!("at most {most}")), "{error}");
        assert!(writable(Some(1)).unwrap_err().contains("at least 4096"));
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
        let error = asked(network(NetworkMode::Host, None)).unwrap_err();
        assert!(error.contains("'host' cannot be given"), "{error}");
    }

    #[test]
    fn the_core_alone_is_reached_unless_more_is_asked_for() {
        for settings in [RunSettings::default(), network(NetworkMode::Isolated, None)] {
            assert_eq!(asked(settings).unwrap().reach, Reach::Core);
        }
        let error = asked(network(NetworkMode::Isolated, Some(&[]))).unwrap_err();
        assert!(error.contains("ask for 'egress' as well"), "{error}");
    }

    #[test]
    fn nobody_reaches_more_than_the_operator_allows() {
        let egress = |hosts| network(NetworkMode::Egress, hosts);
        let error = asked(egress(None)).unwrap_err();
        assert!(error.contains("RUNTARA_WASM_ALLOWED_HOSTS"), "{error}");
        let error = asked(egress(Some(&["a"]))).unwrap_err();
        assert!(error.contains("'a' in allowed_hosts"), "{error}");
        let config = config(&["*.example.com", "b:80"]);
        let settle = |image, start| settle(&config, &AskedSettings { image, start });
        let error = settle(egress(Some(&["b"])), RunSettings::default()).unwrap_err();
        assert!(
            error.ends_with("the image asks for 'b' in allowed_hosts, and the operator allows WebAssembly guests '*.example.com', 'b:80'"),
            "{error}"
        );
        let hosts = |image, start| match settle(image, start).unwrap().reach {
            Reach::Hosts(allowed) => allowed.asked.clone(),
            Reach::Core => panic!("it reaches the core alone"),
        };
        assert_eq!(hosts(egress(None), RunSettings::default()), None);
        let image = egress(Some(&["a.example.com", "b:80"]));
        assert_eq!(
            hosts(image.clone(), RunSettings::default()),
            Some(rules(&["a.example.com", "b:80"]))
        );
        // Which hosts may be left to the one, and the mode to the other.
        let start = RunSettings {
            allowed_hosts: Some(rules(&["b:80"])),
            ..RunSettings::default()
        };
        assert_eq!(hosts(image.clone(), start), Some(rules(&["b:80"])));
        let settled = settle(image, network(NetworkMode::Isolated, None)).unwrap();
        assert_eq!(settled.reach, Reach::Core);
    }
}
