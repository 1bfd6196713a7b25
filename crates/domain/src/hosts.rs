//! Which hosts a program may call.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name of a host (RFC 1035, section 2.3.4).
const NAME_BYTES: usize = 253;
/// Longest part of one between two dots.
const LABEL_BYTES: usize = 63;

/// A host that may be called, or several of a kind.
///
/// | written | means |
/// |---|---|
/// | `api.example.com` | this name |
/// | `*.example.com` | each name below this one, however deep, and not this one |
/// | `*` | each name, and each public address |
/// | `10.0.0.7`, `fd00::7` | this address |
/// | `10.0.0.0/8`, `fd00::/8` | the addresses of this network |
///
/// Behind each may stand a port: `api.example.com:8443`, `10.0.0.0/8:5432`, `[fd00::/8]:5432`; without one all ports are meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct HostRule {
    place: Place,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    Any,
    Name(String),
    Below(String),
    Network { address: IpAddr, prefix: u8 },
}

/// Says that a text names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} names no host; a name, *.name, * or an IP address with or without /bits is wanted, and a port may follow: api.example.com:443"
)]
pub struct NoHost {
    /// The beginning of the text.
    pub found: String,
}

impl HostRule {
    /// Whether a name at this port is meant. Names are compared without case, and without the dot at their end.
    #[must_use]
    pub fn takes_name(&self, name: &str, port: u16) -> bool {
        if !self.takes_port(port) {
            return false;
        }
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        match &self.place {
            Place::Any => true,
            Place::Name(this) => name == *this,
            Place::Below(this) => is_below(&name, this),
            Place::Network { .. } => false,
        }
    }

    /// Whether an address at this port is named, by itself or by its network.
    #[must_use]
    pub fn names_address(&self, address: IpAddr, port: u16) -> bool {
        self.takes_port(port)
            && match self.place {
                Place::Network {
                    address: of,
                    prefix,
                } => is_within(address, of, prefix),
                _ => false,
            }
    }

    /// Whether this is `*`, for this port.
    #[must_use]
    pub fn takes_all(&self, port: u16) -> bool {
        self.place == Place::Any && self.takes_port(port)
    }

    fn takes_port(&self, port: u16) -> bool {
        self.port.is_none_or(|this| this == port)
    }

    /// Whether this means whatever the other means.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if self.port.is_some() && self.port != other.port {
            return false;
        }
        match (&self.place, &other.place) {
            (Place::Any, Place::Any | Place::Name(_) | Place::Below(_)) => true,
            (Place::Name(this), Place::Name(that)) => this == that,
            (Place::Below(this), Place::Name(that)) => is_below(that, this),
            (Place::Below(this), Place::Below(that)) => this == that || is_below(that, this),
            (
                Place::Network { address, prefix },
                Place::Network {
                    address: that,
                    prefix: narrower,
                },
            ) => narrower >= prefix && is_within(*that, *address, *prefix),
            _ => false,
        }
    }
}

fn is_below(name: &str, this: &str) -> bool {
    name.strip_suffix(this)
        .and_then(|rest| rest.strip_suffix('.'))
        .is_some_and(|rest| !rest.is_empty())
}

fn is_within(address: IpAddr, of: IpAddr, prefix: u8) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let ((address, length), (of, of_length)) = (bits(address.to_canonical()), bits(of));
    let shift = 128 - u32::from(prefix);
    // All bits are shifted out of a prefix of none.
    length == of_length && (address ^ of).checked_shr(shift).unwrap_or(0) == 0
}

impl FromStr for HostRule {
    type Err = NoHost;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text.trim()).ok_or_else(|| NoHost {
            found: text.chars().take(100).collect(),
        })
    }
}

fn parse(text: &str) -> Option<HostRule> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if let Some(place) = parse_network(bare.unwrap_or(text)) {
        return Some(HostRule { place, port: None });
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(parse_port(port)?)),
        None => (text, None),
    };
    let place = match host.strip_prefix('[') {
        Some(rest) => parse_network(rest.strip_suffix(']')?)?,
        None => match parse_network(host) {
            // Which colon would be before the port?
            Some(Place::Network {
                address: IpAddr::V6(_),
                ..
            }) => return None,
            Some(network) => network,
            None => parse_name(host)?,
        },
    };
    Some(HostRule { place, port })
}

fn parse_port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port > 0)
}

fn parse_network(text: &str) -> Option<Place> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let prefix: u8 = match prefix {
        Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok()?,
        Some(_) => return None,
        None => whole,
    };
    if prefix > whole {
        return None;
    }
    // As connections have it.
    Some(match (address.to_canonical(), prefix.checked_sub(96)) {
        (address @ IpAddr::V4(_), Some(prefix)) if whole == 128 => {
            Place::Network { address, prefix }
        }
        _ => Place::Network { address, prefix },
    })
}

fn parse_name(text: &str) -> Option<Place> {
    if text == "*" {
        return Some(Place::Any);
    }
    let (name, is_below) = match text.strip_prefix("*.") {
        Some(name) => (name, true),
        None => (text, false),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=LABEL_BYTES).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if name.len() > NAME_BYTES || !name.split('.').all(is_label) {
        return None;
    }
    let name = name.to_ascii_lowercase();
    Some(if is_below {
        Place::Below(name)
    } else {
        Place::Name(name)
    })
}

impl fmt::Display for HostRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_bracketed = self.port.is_some()
            && matches!(
                self.place,
                Place::Network {
                    address: IpAddr::V6(_),
                    ..
                }
            );
        let (open, close) = if is_bracketed { ("[", "]") } else { ("", "") };
        match &self.place {
            Place::Any => f.write_str("*")?,
            Place::Name(name) => f.write_str(name)?,
            Place::Below(name) => write!(f, "*.{name}")?,
            Place::Network { address, prefix } => {
                let whole = if address.is_ipv4() { 32 } else { 128 };
                match *prefix == whole {
                    true => write!(f, "{open}{address}{close}")?,
                    false => write!(f, "{open}{address}/{prefix}{close}")?,
                }
            }
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl From<HostRule> for String {
    fn from(rule: HostRule) -> Self {
        rule.to_string()
    }
}

impl TryFrom<String> for HostRule {
    type Error = NoHost;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> HostRule {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_rule_is_shown_as_it_is_written() {
        for text in [
            "api.example.com",
            "api.example.com:8443",
            "*.example.com",
            "*",
            "*:443",
            "10.0.0.7",
            "10.0.0.0/8",
            "10.0.0.0/8:5432",
            "::1",
            "[::1]:80",
            "[fd00::/8]:5432",
            "fd00::/8",
        ] {
            assert_eq!(rule(text).to_string(), text);
        }
        assert_eq!(rule(" API.Example.com. ").to_string(), "api.example.com");
        assert_eq!(rule("[::1]").to_string(), "::1");
    }

    #[test]
    fn what_names_no_host_is_refused() {
        for text in [
            "",
            ".",
            "*.",
            "a..b",
            "*.*.com",
            "a.*",
            "http://a",
            "a/b",
            "a b",
            "a:0",
            "a:65536",
            "a:+1",
            "a:",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "fd00::/129",
            "[a]:80",
            "[::1",
            "user@a",
            "bücher.example",
        ] {
            let refused = text.parse::<HostRule>();
            assert!(refused.is_err(), "{text:?} is {refused:?}");
        }
        let long = format!("{}.com", "a".repeat(64));
        assert!(long.parse::<HostRule>().is_err());
    }

    #[test]
    fn names_are_taken_whole_and_only_from_a_dot_on() {
        assert!(rule("example.com").takes_name("EXAMPLE.com.", 443));
        assert!(!rule("example.com").takes_name("www.example.com", 443));
        let below = rule("*.example.com");
        assert!(below.takes_name("a.b.example.com", 80));
        for name in [
            "example.com",
            ".example.com",
            "evilexample.com",
            "example.com.evil.org",
        ] {
            assert!(!below.takes_name(name, 80), "{name}");
        }
        assert!(rule("a:8443").takes_name("a", 8443));
        assert!(!rule("a:8443").takes_name("a", 443));
    }

    #[test]
    fn addresses_are_named_by_their_networks() {
        let network = rule("10.0.0.0/8:5432");
        assert!(network.names_address("10.9.8.7".parse().unwrap(), 5432));
        assert!(network.names_address("::ffff:10.9.8.7".parse().unwrap(), 5432));
        assert!(!network.names_address("10.9.8.7".parse().unwrap(), 80));
        assert!(!network.names_address("11.0.0.1".parse().unwrap(), 5432));
        assert!(!network.takes_name("10.9.8.7", 5432));
        assert!(rule("0.0.0.0/0").names_address("192.0.2.1".parse().unwrap(), 1));
        assert!(!rule("0.0.0.0/0").names_address("2001:db8::1".parse().unwrap(), 1));
        assert!(rule("::/0").names_address("2001:db8::1".parse().unwrap(), 1));
        assert!(rule("::1").names_address("::1".parse().unwrap(), 1));
        assert!(!rule("*").names_address("::1".parse().unwrap(), 1));
    }

    #[test]
    fn a_rule_covers_what_is_narrower() {
        for (wide, narrow) in [
            ("*", "*.example.com"),
            ("*", "a:80"),
            ("*", "*"),
            ("*.example.com", "*.b.example.com:80"),
            ("*.example.com", "a.example.com"),
            ("10.0.0.0/8", "10.1.0.0/16:80"),
            ("10.0.0.0/8", "::ffff:10.0.0.1"),
            ("a:80", "a:80"),
        ] {
            assert!(rule(wide).covers(&rule(narrow)), "{wide} {narrow}");
        }
        for (narrow, wide) in [
            ("a:80", "a"),
            ("a:80", "a:81"),
            ("*.example.com", "example.com"),
            ("*.b.example.com", "*.example.com"),
            ("10.1.0.0/16", "10.0.0.0/8"),
            ("a", "*"),
            // Public addresses are taken, and private ones are not: those are to be named.
            ("*", "10.0.0.1"),
        ] {
            assert!(!rule(narrow).covers(&rule(wide)), "{narrow} {wide}");
        }
    }
}
