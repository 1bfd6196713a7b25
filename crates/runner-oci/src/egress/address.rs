//! Addresses between a container and its helper: of a block for benchmarks (198.18.0.0/15, RFC 2544), which nobody's network has.

use std::net::Ipv4Addr;

/// The device that the helper makes.
pub(super) const TAP: &str = "tap0";
/// All of these addresses.
pub(super) const SUBNET: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 83, 0), 24);
/// Whom frames are sent to. Only its hardware address is ever used, so it is none that the helper knows.
pub(super) const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(198, 18, 83, 1);
/// What the helper takes for itself: slirp4netns the second address of its subnet.
pub(super) const HELPER: Ipv4Addr = Ipv4Addr::new(198, 18, 83, 2);
/// Where the helper takes questions for the host's resolver: with slirp4netns the third address of its subnet.
pub(super) const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 18, 83, 3);
/// The container's: with slirp4netns the hundredth address of its subnet.
pub(super) const CONTAINER: Ipv4Addr = Ipv4Addr::new(198, 18, 83, 100);
/// Bytes of a packet; the most that slirp4netns and pasta take, so that little is done often.
pub(super) const MTU: u32 = 65_520;
