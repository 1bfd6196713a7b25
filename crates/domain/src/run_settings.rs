//! What an image or a start asks of the box in which a program runs.

use serde::{Deserialize, Serialize};

use crate::{HostRule, NetworkMode};

/// What an image or a start asks of the box in which its program runs. What neither says is the operator's to say, and nobody gets more
/// than he allows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunSettings {
    /// What the program may take.
    #[serde(default, skip_serializing_if = "ResourceLimits::is_empty")]
    pub limits: ResourceLimits,
    /// What it reaches over the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// Which hosts it reaches, of those that it could with this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_hosts: Option<Vec<HostRule>>,
    /// Whether the root of its file system is read-only. Its run directory and its places for temporary files are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

impl RunSettings {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Limits of which each may be left to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceLimits {
    /// Memory of all processes and of all that they write to places in memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processor time: 1000 is one processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millicores: Option<u64>,
    /// Processes and threads at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Open files of each process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// Size of the writable layer in bytes; the run directory is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writable_bytes: Option<u64>,
}

impl ResourceLimits {
    /// Whether nothing is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_is_not_written() {
        let mut settings = RunSettings::default();
        assert!(settings.is_empty());
        assert_eq!(serde_json::to_string(&settings).unwrap(), "{}");
        settings.limits.pids = Some(5);
        settings.network = Some(NetworkMode::Egress);
        settings.allowed_hosts = Some(vec!["*.example.com:443".parse().unwrap()]);
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(
            text,
            r#"{"limits":{"pids":5},"network":"egress","allowed_hosts":["*.example.com:443"]}"#
        );
        assert_eq!(
            serde_json::from_str::<RunSettings>(&text).unwrap(),
            settings
        );
    }

    #[test]
    fn a_limit_that_nobody_knows_is_refused() {
        let error = serde_json::from_str::<ResourceLimits>(r#"{"memory": 5}"#).unwrap_err();
        assert!(
            error.to_string().contains("unknown field `memory`"),
            "{error}"
        );
    }
}
