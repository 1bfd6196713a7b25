//! Descriptors that the server's reactor watches.

#![expect(
    unsafe_code,
    reason = "the reactor relies on descriptors that stay what they are"
)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has a descriptor watched, until it is dropped. Within a tokio runtime only.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open until it is dropped, and `AsyncFd` gives it away by shared reference only, or as a whole.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
