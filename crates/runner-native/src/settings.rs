//! What may be asked of the box of a native program: it has none.

use runtara_domain::{NetworkMode, RunSettings};
use runtara_runner::AskedSettings;

/// Says why these settings cannot be given: a native program has the network and the files of its user, and the operator's limits.
pub(crate) fn check(settings: &AskedSettings) -> Result<(), String> {
    for (who, asked) in [("image", &settings.image), ("start", &settings.start)] {
        if let Some(what) = of_a_container(asked) {
            return Err(format!(
                "the {who} asks for {what}, which native programs cannot be given: they run on the host, with the limits of the operator; \
                 ask for nothing of it, or register the image as 'oci'"
            ));
        }
    }
    Ok(())
}

/// What only a container can be given.
fn of_a_container(asked: &RunSettings) -> Option<String> {
    if !asked.limits.is_empty() {
        return Some("limits of its own".to_owned());
    }
    if asked.read_only == Some(true) {
        return Some("a read-only file system".to_owned());
    }
    if asked.allowed_hosts.is_some() {
        return Some("allowed_hosts".to_owned());
    }
    match asked.network {
        None | Some(NetworkMode::Host) => None,
        Some(mode) => Some(format!("the network mode '{mode}'")),
    }
}

#[cfg(test)]
mod tests {
    use runtara_domain::ResourceLimits;

    use super::*;

    fn start(settings: RunSettings) -> Result<(), String> {
        check(&AskedSettings {
            start: settings,
            ..AskedSettings::default()
        })
    }

    #[test]
    fn what_a_process_of_the_host_has_may_be_asked_for() {
        for network in [None, Some(NetworkMode::Host)] {
            let settings = RunSettings {
                network,
                read_only: Some(false),
                ..RunSettings::default()
            };
            assert_eq!(start(settings), Ok(()));
        }
    }

    #[test]
    fn isolation_that_it_cannot_give_is_refused() {
        let limits = ResourceLimits {
            pids: Some(1),
            ..ResourceLimits::default()
        };
        for (settings, expected) in [
            (
                RunSettings {
                    network: Some(NetworkMode::Isolated),
                    ..RunSettings::default()
                },
                "the network mode 'isolated'",
            ),
            (
                RunSettings {
                    read_only: Some(true),
                    ..RunSettings::default()
                },
                "a read-only file system",
            ),
            (
                RunSettings {
                    allowed_hosts: Some(Vec::new()),
                    ..RunSettings::default()
                },
                "allowed_hosts",
            ),
            (
                RunSettings {
                    limits,
                    ..RunSettings::default()
                },
                "limits of its own",
            ),
        ] {
            let reason = start(settings).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        }
    }
}
