//! Requests to the kernel about a network (rtnetlink(7)): just those that are needed, each with its answer.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

/// The kernel answers at once; this is for one that does not.
const PATIENCE_SECONDS: i64 = 10;
/// `struct nlmsghdr`: length, kind, flags, sequence number, sender (netlink(7)).
const HEADER_BYTES: usize = 16;
/// Lengths of attributes, and where they begin, are multiples of this (rtnetlink(3)).
const ALIGNMENT: usize = 4;

/// Speaks with the kernel about the network namespace in which it was opened.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// What is asked of the kernel.
pub(crate) struct Request {
    kind: u16,
    flags: libc::c_int,
    body: Vec<u8>,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        let patience = TimeVal::new(PATIENCE_SECONDS, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Has the kernel do something.
    pub(crate) fn ask(&mut self, request: &Request) -> io::Result<()> {
        self.sequence += 1;
        let message = request.message(self.sequence);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        // An error repeats the request.
        let mut answer = vec![0; HEADER_BYTES + size_of::<i32>() + message.len()];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let error = answer
            .get(..length)
            .and_then(|answer| answer.get(HEADER_BYTES..)?.first_chunk::<4>());
        match error.map(|error| i32::from_ne_bytes(*error)) {
            Some(0) => Ok(()),
            Some(error) => Err(io::Error::from_raw_os_error(-error)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Request {
    /// A request with the structure that goes with its kind.
    pub(crate) fn new(kind: u16, flags: libc::c_int, structure: &[&[u8]]) -> Self {
        Self {
            kind,
            flags: libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags,
            body: structure.concat(),
        }
    }

    /// Sets a device up.
    pub(crate) fn set_up(device: u32) -> Self {
        let up = (libc::IFF_UP as u32).to_ne_bytes();
        // `struct ifinfomsg`: family and type, which are left open, the device, and its flags with those that change.
        let link: [&[u8]; 4] = [&[0; 4], &device.to_ne_bytes(), &up, &up];
        Self::new(libc::RTM_NEWLINK, 0, &link)
    }

    /// With an attribute.
    pub(crate) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(ALIGNMENT + value.len()).expect("attributes are short");
        self.body.extend(length.to_ne_bytes());
        self.body.extend(kind.to_ne_bytes());
        self.body.extend(value);
        let padded = self.body.len().next_multiple_of(ALIGNMENT);
        self.body.resize(padded, 0);
        self
    }

    /// With attributes in an attribute.
    pub(crate) fn with_nested(self, kind: u16, inner: Self) -> Self {
        let body = inner.body;
        self.with(kind, &body)
    }

    /// Nothing but attributes, for [`Self::with_nested`].
    pub(crate) fn attributes() -> Self {
        Self::new(0, 0, &[])
    }

    fn message(&self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + self.body.len()).expect("requests are short");
        let flags = u16::try_from(self.flags).expect("flags have 16 bits");
        let header: [&[u8]; 6] = [
            &length.to_ne_bytes(),
            &self.kind.to_ne_bytes(),
            &flags.to_ne_bytes(),
            &sequence.to_ne_bytes(),
            // The kernel knows who asks.
            &0_u32.to_ne_bytes(),
            &self.body,
        ];
        header.concat()
    }
}
