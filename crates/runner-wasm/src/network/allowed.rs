//! Which hosts a guest may call.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use runtara_domain::HostRule;

use super::address::is_public;

/// What a guest reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The core.
    Core,
    /// Such hosts as well.
    Hosts(Arc<Allowed>),
}

/// The hosts that a guest may call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// Those of the operator.
    pub(crate) by_operator: Arc<[HostRule]>,
    /// Those among them that image or start ask for; all, if neither says.
    pub(crate) asked: Option<Vec<HostRule>>,
}

/// A host as it stands in a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    Name(String),
    Address(IpAddr),
}

impl Host {
    /// Reads the host of a URL, where IPv6 addresses stand in brackets.
    pub(super) fn new(text: &str) -> Self {
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        match bare.unwrap_or(text).parse() {
            Ok(address) => Self::Address(address),
            // Also what only the system's resolver takes for an address, such as 0x7f.1: what it makes of it is looked at afterwards.
            Err(_) => Self::Name(text.to_owned()),
        }
    }
}

impl Allowed {
    /// Whether a host may be called at this port, as far as its name tells.
    pub(super) fn takes(&self, host: &Host, port: u16) -> bool {
        let is_taken = |rules: &[HostRule]| {
            rules.iter().any(|rule| match host {
                Host::Name(name) => rule.takes_name(name, port),
                Host::Address(address) => {
                    rule.names_address(*address, port) || rule.takes_all(port)
                }
            })
        };
        is_taken(&self.by_operator) && self.asked.as_deref().is_none_or(is_taken)
    }

    /// Whether an address may be connected to, which is the host's own or that of its name. Those that are not of the internet are to be
    /// named by the operator: a name may stand for any address.
    pub(super) fn takes_address(
        &self,
        address: IpAddr,
        port: u16,
        of_this_machine: &HashSet<IpAddr>,
    ) -> bool {
        let address = address.to_canonical();
        let is_outside = is_public(address) && !of_this_machine.contains(&address);
        let mut rules = self.by_operator.iter();
        is_outside || rules.any(|rule| rule.names_address(address, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(by_operator: &[&str], asked: Option<&[&str]>) -> Allowed {
        let rules = |texts: &[&str]| -> Vec<HostRule> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        Allowed {
            by_operator: rules(by_operator).into(),
            asked: asked.map(rules),
        }
    }

    fn takes(allowed: &Allowed, host: &str, port: u16) -> bool {
        allowed.takes(&Host::new(host), port)
    }

    #[test]
    fn both_must_take_a_host() {
        let all = allowed(&["*.example.com", "10.0.0.0/8"], None);
        assert!(takes(&all, "a.example.com", 443) && takes(&all, "10.1.2.3", 80));
        assert!(!takes(&all, "example.org", 443) && !takes(&all, "11.1.2.3", 80));
        let fewer = allowed(
            &["*.example.com", "10.0.0.0/8"],
            Some(&["a.example.com:443"]),
        );
        assert!(takes(&fewer, "A.example.com.", 443));
        assert!(!takes(&fewer, "a.example.com", 80) && !takes(&fewer, "b.example.com", 443));
        assert!(!takes(&fewer, "10.1.2.3", 80));
        assert!(!takes(&allowed(&["*"], Some(&[])), "a", 80));
        assert!(!takes(&allowed(&[], None), "a", 80));
    }

    #[test]
    fn addresses_that_are_not_of_the_internet_are_to_be_named() {
        let own: HashSet<IpAddr> = ["198.51.7.9".parse().unwrap()].into();
        let takes = |allowed: &Allowed, address: &str| {
            allowed.takes_address(address.parse().unwrap(), 80, &own)
        };
        let all = allowed(&["*"], None);
        assert!(takes(&all, "1.1.1.1") && takes(&all, "::ffff:1.1.1.1"));
        for address in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "198.51.7.9",
        ] {
            assert!(!takes(&all, address), "{address}");
        }
        let named = allowed(&["*", "127.0.0.1:80", "198.51.7.9"], None);
        assert!(takes(&named, "127.0.0.1") && takes(&named, "198.51.7.9"));
        assert!(!takes(&named, "127.0.0.2"));
    }

    #[test]
    fn an_address_in_a_url_is_one_however_it_is_written() {
        assert_eq!(Host::new("[::1]"), Host::Address("::1".parse().unwrap()));
        assert_eq!(
            Host::new("127.0.0.1"),
            Host::Address("127.0.0.1".parse().unwrap())
        );
        // No addresses as URLs have them: the resolver may think otherwise.
        assert_eq!(Host::new("0x7f.1"), Host::Name("0x7f.1".to_owned()));
        assert!(!takes(&allowed(&["a", "127.0.0.0/8"], None), "0x7f.1", 80));
    }
}
