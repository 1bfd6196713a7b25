//! What a container reaches over the network.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a container reaches over the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum NetworkMode {
    /// Nothing but the instance protocol, over its own loopback.
    #[default]
    Isolated,
    /// The internet, through a network in user space, and the instance protocol. Not the host's loopback.
    Egress,
    /// All that the host reaches, its loopback and its abstract Unix sockets (unix(7)) included: no isolation of the network at all.
    Host,
}

impl NetworkMode {
    /// Whether the container has a network namespace of its own.
    #[must_use]
    pub fn is_own(self) -> bool {
        self != Self::Host
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Isolated => "isolated",
            Self::Egress => "egress",
            Self::Host => "host",
        })
    }
}

/// Says that a word is no network mode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{found}' is no network mode; use isolated, egress or host")]
pub struct UnknownNetworkMode {
    /// The word.
    pub found: String,
}

impl From<NetworkMode> for String {
    fn from(mode: NetworkMode) -> Self {
        mode.to_string()
    }
}

impl TryFrom<String> for NetworkMode {
    type Error = UnknownNetworkMode;

    fn try_from(word: String) -> Result<Self, Self::Error> {
        word.parse()
    }
}

impl FromStr for NetworkMode {
    type Err = UnknownNetworkMode;

    /// Reads a mode, or one of the names that the original used: `none` for isolated, `pasta` for egress.
    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "isolated" | "none" => Ok(Self::Isolated),
            "egress" | "pasta" => Ok(Self::Egress),
            "host" => Ok(Self::Host),
            _ => Err(UnknownNetworkMode {
                found: word.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_read_as_it_is_written() {
        for mode in [
            NetworkMode::Isolated,
            NetworkMode::Egress,
            NetworkMode::Host,
        ] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!("none".parse(), Ok(NetworkMode::Isolated));
        assert_eq!("pasta".parse(), Ok(NetworkMode::Egress));
        let error = "bridge".parse::<NetworkMode>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "'bridge' is no network mode; use isolated, egress or host"
        );
    }
}
