//! What is in the network of a container beside its loopback: the device of the helper, and where it leads.
//!
//! Three things keep a program from asking its helper for what is the host's:
//!
//! - Routes that refuse the host's own addresses, and those by which machines are configured (link-local, RFC 3927: there are the metadata
//!   services of clouds), those of many (multicast, RFC 1112), and the helper's.
//! - A rule that lets only port 53 of the resolver's address through. The host's resolver may be the host, so what a helper would make of
//!   other ports does not matter.
//! - Neighbours are not looked for. A program may bind a socket to a device, and where no route leads the kernel then takes all for
//!   neighbours; pasta says of each that it is there. The one that is needed is known beforehand, by the address of all
//!   stations: there is just one.
//!
//! A program has no right in its network (`CAP_NET_ADMIN`), so that it can change none of them, nor write packets of its own.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::mount::mount_bind;

use super::EgressError;
use super::address::{CONTAINER, MTU, NEXT_HOP, RESOLVER, SUBNET};
use crate::netlink::{Netlink, Request};

/// Addresses that are refused whatever the host has.
const REFUSED: [(Ipv4Addr, u8); 5] = [
    // A program that binds its socket to the device would else reach the host's loopback.
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::BROADCAST, 32),
    SUBNET,
];
/// The table in which the way to the resolver is. Those from 253 on are the system's.
const RESOLVER_TABLE: u8 = 53;
/// Before the rule for the main table (32766), behind that for local addresses (0).
const RESOLVER_PRIORITY: u32 = 100;
const RESOLVER_PORT: u16 = 53;
/// The hardware address of all stations.
const ALL_STATIONS: [u8; 6] = [0xff; 6];

// From linux/neighbour.h and linux/fib_rules.h.
const NDTA_NAME: u16 = 1;
const NDTA_PARMS: u16 = 6;
const NDTPA_IFINDEX: u16 = 1;
/// Ways to look for a neighbour: by the program that resolves for the kernel, and by ARP to one and to all.
const NDTPA_PROBES: [u16; 3] = [9, 10, 11];
const FRA_DST: u16 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_DPORT_RANGE: u16 = 24;
const FR_ACT_TO_TBL: u8 = 1;
// From linux/rtnetlink.h: the next hop is a neighbour although no route says so.
const RTNH_F_ONLINK: u32 = 4;

/// Gives a network namespace a path, in mounts of this process's own.
pub(super) fn give_path(network: BorrowedFd<'_>, staging: &Path) -> io::Result<PathBuf> {
    let path = staging.join("network");
    File::create_new(&path)?;
    mount_bind(format!("/proc/self/fd/{}", network.as_raw_fd()), &path)?;
    Ok(path)
}

/// Sets up the helper's device, in the network namespace that this process is in.
pub(super) fn connect(tap: u32, of_host: &BTreeSet<Ipv4Addr>) -> Result<(), EgressError> {
    let opened = Netlink::open().map_err(EgressError::at("asking the kernel about its network"));
    let mut network = Wire {
        netlink: opened?,
        tap,
    };
    for refused in REFUSED {
        network.refuse(refused)?;
    }
    for address in of_host {
        network.refuse((*address, 32))?;
    }
    network.find_no_neighbours()?;
    network.know_next_hop()?;
    network.set_up()?;
    network.lead_out(libc::RT_TABLE_MAIN)?;
    network.lead_out(RESOLVER_TABLE)?;
    network.let_questions_through()
}

struct Wire {
    netlink: Netlink,
    tap: u32,
}

impl Wire {
    fn ask(&mut self, step: impl Into<String>, request: &Request) -> Result<(), EgressError> {
        self.netlink.ask(request).map_err(EgressError::at(step))
    }

    /// Whatever is sent there fails with "permission denied".
    fn refuse(&mut self, (address, bits): (Ipv4Addr, u8)) -> Result<(), EgressError> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let route = route(bits, libc::RT_TABLE_MAIN, libc::RTN_PROHIBIT);
        let request = Request::new(libc::RTM_NEWROUTE, flags, &[&route, &[0; 4]])
            .with(libc::RTA_DST, &address.octets());
        self.ask(format!("refusing {address}/{bits}"), &request)
    }

    fn find_no_neighbours(&mut self) -> Result<(), EgressError> {
        let mut parameters = Request::attributes().with(NDTPA_IFINDEX, &self.tap.to_ne_bytes());
        for probes in NDTPA_PROBES {
            parameters = parameters.with(probes, &0_u32.to_ne_bytes());
        }
        let table = [libc::AF_INET as u8, 0, 0, 0];
        let request = Request::new(libc::RTM_SETNEIGHTBL, libc::NLM_F_REPLACE, &[&table])
            .with(NDTA_NAME, b"arp_cache\0")
            .with_nested(NDTA_PARMS, parameters);
        self.ask("keeping it from looking for neighbours", &request)
    }

    fn know_next_hop(&mut self) -> Result<(), EgressError> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let neighbour: [&[u8]; 4] = [
            &[libc::AF_INET as u8, 0, 0, 0],
            &self.tap.to_ne_bytes(),
            &libc::NUD_PERMANENT.to_ne_bytes(),
            // Neither flags nor a type.
            &[0, 0],
        ];
        let request = Request::new(libc::RTM_NEWNEIGH, flags, &neighbour)
            .with(libc::NDA_DST, &NEXT_HOP.octets())
            .with(libc::NDA_LLADDR, &ALL_STATIONS);
        self.ask("introducing its helper", &request)
    }

    fn set_up(&mut self) -> Result<(), EgressError> {
        let index = self.tap.to_ne_bytes();
        let link = Request::set_up(self.tap).with(libc::IFLA_MTU, &MTU.to_ne_bytes());
        self.ask("setting its device up", &link)?;
        // Alone in its subnet, so that no route leads to others of it.
        let family = [libc::AF_INET as u8, 32, 0, libc::RT_SCOPE_UNIVERSE];
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let address = Request::new(libc::RTM_NEWADDR, flags, &[&family, &index])
            .with(libc::IFA_LOCAL, &CONTAINER.octets())
            .with(libc::IFA_ADDRESS, &CONTAINER.octets());
        self.ask("giving its device an address", &address)
    }

    /// Makes the helper's device the way to all.
    fn lead_out(&mut self, table: u8) -> Result<(), EgressError> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let route = route(0, table, libc::RTN_UNICAST);
        let request = Request::new(
            libc::RTM_NEWROUTE,
            flags,
            &[&route, &RTNH_F_ONLINK.to_ne_bytes()],
        )
        .with(libc::RTA_GATEWAY, &NEXT_HOP.octets())
        .with(libc::RTA_OIF, &self.tap.to_ne_bytes());
        self.ask("leading its traffic to its helper", &request)
    }

    fn let_questions_through(&mut self) -> Result<(), EgressError> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let rule = [
            libc::AF_INET as u8,
            32,
            0,
            0,
            RESOLVER_TABLE,
            0,
            0,
            FR_ACT_TO_TBL,
        ];
        let port = RESOLVER_PORT.to_ne_bytes();
        let request = Request::new(libc::RTM_NEWRULE, flags, &[&rule, &[0; 4]])
            .with(FRA_DST, &RESOLVER.octets())
            .with(FRA_PRIORITY, &RESOLVER_PRIORITY.to_ne_bytes())
            .with(FRA_DPORT_RANGE, &[port, port].concat());
        let step = "letting questions to the resolver through, for which the kernel needs CONFIG_IP_MULTIPLE_TABLES";
        self.ask(step, &request)
    }
}

/// The beginning of `struct rtmsg`, up to its flags.
fn route(bits: u8, table: u8, kind: u8) -> [u8; 8] {
    let family = libc::AF_INET as u8;
    let scope = libc::RT_SCOPE_UNIVERSE;
    [family, bits, 0, 0, table, libc::RTPROT_STATIC, scope, kind]
}
