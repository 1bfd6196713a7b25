//! The addresses of the host itself.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

/// All IPv4 addresses of the host, and those that mean all machines of one of its networks, itself among them: as they are now.
pub(super) fn addresses() -> io::Result<BTreeSet<Ipv4Addr>> {
    let mut addresses = BTreeSet::new();
    for interface in getifaddrs()? {
        let ip = |address: Option<SockaddrStorage>| Some(address?.as_sockaddr_in()?.ip());
        let own = ip(interface.address);
        addresses.extend(own);
        addresses.extend(ip(interface.broadcast));
        // An interface may have been given none, and the kernel hears on it all the same.
        if let (Some(own), Some(mask)) = (own, ip(interface.netmask)) {
            addresses.extend(of_all(own, mask).into_iter().flatten());
        }
    }
    Ok(addresses)
}

/// The last address of a network, and the first, which once meant the same; there are none in a network of up to two.
fn of_all(own: Ipv4Addr, mask: Ipv4Addr) -> Option<[Ipv4Addr; 2]> {
    const FEWEST_BITS_OF_HOST: u32 = 2;
    let has_some = mask.to_bits().count_zeros() >= FEWEST_BITS_OF_HOST;
    has_some.then_some([own | !mask, own & mask])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_among_them() {
        assert!(addresses().unwrap().contains(&Ipv4Addr::LOCALHOST));
    }

    #[test]
    fn a_network_has_addresses_that_mean_all_of_it() {
        let own = Ipv4Addr::new(10, 1, 2, 130);
        let all = of_all(own, Ipv4Addr::new(255, 255, 255, 128)).unwrap();
        let expected = [Ipv4Addr::new(10, 1, 2, 255), Ipv4Addr::new(10, 1, 2, 128)];
        assert_eq!(all, expected);
        assert_eq!(of_all(own, Ipv4Addr::new(255, 255, 255, 254)), None);
        assert_eq!(of_all(own, Ipv4Addr::BROADCAST), None);
    }
}
