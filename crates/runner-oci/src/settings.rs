//! What a container is given of what image and start ask for.

use runtara_domain::{NetworkMode, ResourceLimits};
use runtara_runner::AskedSettings;

use crate::config::OciConfig;
use crate::limits::{LimitSources, Limits, merge};
use crate::machine::{self, Machine};

/// What a container is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) limits: Limits,
    pub(crate) network: NetworkMode,
    pub(crate) read_only: bool,
}

/// Says what a container is given: the start wins over the image, both over what the operator gives where neither says anything.
///
/// # Errors
/// What cannot be given on this machine as it is, or is not allowed by the operator, with what is. Nothing else is given in its place.
pub(crate) fn settle(
    config: &OciConfig,
    machine: &Machine,
    asked: &AskedSettings,
) -> Result<Given, String> {
    for (who, settings) in [("image", &asked.image), ("start", &asked.start)] {
        if settings.allowed_hosts.is_some() {
            return Err(format!(
                "the {who} asks for allowed_hosts, which containers cannot be given: what they reach over the network is not looked at by \
                 name; ask for a network mode alone, or register a WebAssembly program"
            ));
        }
    }
    let sources = LimitSources {
        image: asked.image.limits,
        start: asked.start.limits,
        operator_default: config.default_limits,
        ceiling: ResourceLimits {
            open_files: Some(
                config
                    .ceiling
                    .open_files
                    .unwrap_or(u64::MAX)
                    .min(machine.open_files),
            ),
            ..config.ceiling
        },
    };
    let limits = merge(&sources).map_err(|error| error.to_string())?;
    let read_only = asked.start.read_only.or(asked.image.read_only);
    Ok(Given {
        limits,
        network: network(config, machine, asked)?,
        read_only: read_only.unwrap_or(false),
    })
}

fn network(
    config: &OciConfig,
    machine: &Machine,
    asked: &AskedSettings,
) -> Result<NetworkMode, String> {
    let mode = asked.start.network.or(asked.image.network);
    let mode = mode.unwrap_or(config.network);
    if !config.allowed_networks.contains(&mode) {
        let allowed: Vec<_> = config
            .allowed_networks
            .iter()
            .map(|mode| format!("'{mode}'"))
            .collect();
        return Err(format!(
            "the network mode '{mode}' is not allowed here; the operator allows {}",
            allowed.join(", ")
        ));
    }
    if mode == NetworkMode::Egress && machine.egress.is_none() {
        return Err(format!(
            "the network mode 'egress' cannot be had on this machine: {}",
            about_egress(machine)
        ));
    }
    Ok(mode)
}

/// What was found about it, with what to do.
fn about_egress(machine: &Machine) -> &str {
    let mut findings = machine.findings.iter();
    let found = findings.find(|finding| finding.about == machine::EGRESS);
    found.map_or("it was not looked for", |finding| &finding.text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use runtara_domain::RunSettings;

    use super::*;
    use crate::spec::CgroupFeatures;

    fn machine() -> Machine {
        Machine {
            cgroups: CgroupFeatures {
                unified: false,
                swap: true,
            },
            open_files: 4096,
            shifts_owners: true,
            overlay: true,
            egress: None,
            findings: Vec::new(),
        }
    }

    fn network_of(
        image: Option<NetworkMode>,
        start: Option<NetworkMode>,
    ) -> Result<NetworkMode, String> {
        let with = |network| RunSettings {
            network,
            ..RunSettings::default()
        };
        let asked = AskedSettings {
            image: with(image),
            start: with(start),
        };
        let mut config = OciConfig::new(Path::new("/data"), "node");
        config.allowed_networks.push(NetworkMode::Host);
        settle(&config, &machine(), &asked).map(|given| given.network)
    }

    #[test]
    fn the_start_wins_over_the_image_and_the_image_over_the_operator() {
        assert_eq!(network_of(None, None), Ok(NetworkMode::Isolated));
        assert_eq!(
            network_of(Some(NetworkMode::Host), None),
            Ok(NetworkMode::Host)
        );
        assert_eq!(
            network_of(Some(NetworkMode::Host), Some(NetworkMode::Isolated)),
            Ok(NetworkMode::Isolated)
        );
    }

    #[test]
    fn a_network_that_cannot_be_had_is_refused_and_nothing_falls_back() {
        let error = network_of(None, Some(NetworkMode::Egress)).unwrap_err();
        assert!(error.contains("'egress' cannot be had"), "{error}");
    }

    #[test]
    fn a_network_that_is_not_allowed_is_refused_naming_those_that_are() {
        let config = OciConfig::new(Path::new("/data"), "node");
        let asked = AskedSettings {
            start: RunSettings {
                network: Some(NetworkMode::Host),
                ..RunSettings::default()
            },
            ..AskedSettings::default()
        };
        let error = settle(&config, &machine(), &asked).unwrap_err();
        assert!(
            error.ends_with("the operator allows 'isolated', 'egress'"),
            "{error}"
        );
    }

    #[test]
    fn hosts_cannot_be_told_apart_in_containers() {
        let config = OciConfig::new(Path::new("/data"), "node");
        let asked = AskedSettings {
            image: RunSettings {
                allowed_hosts: Some(Vec::new()),
                ..RunSettings::default()
            },
            ..AskedSettings::default()
        };
        let error = settle(&config, &machine(), &asked).unwrap_err();
        assert!(
            error.contains("the image asks for allowed_hosts"),
            "{error}"
        );
    }

    #[test]
    fn no_process_is_allowed_more_open_files_than_the_server() {
        let config = OciConfig::new(Path::new("/data"), "node");
        let given = settle(&config, &machine(), &AskedSettings::default()).unwrap();
        assert_eq!(given.limits.open_files.hard, 4096);
    }
}
