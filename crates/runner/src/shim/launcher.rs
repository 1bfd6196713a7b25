//! The launcher: a small process of one thread that forks shims.
//!
//! The server cannot fork (it has many threads), and to execute its own large program for each run would cost more than all the
//! rest. So it does that once, early, and the copy stays small: it reads the path of a run directory, forks, and answers with
//! a pidfd. It keeps no state; a server whose launcher died starts another.
//!
//! Asked for a run without a path, it forks a **spare**: a shim that makes itself ready, and then waits to be told its run by a socket
//! of its own, which the server gets along with the pidfd.

use std::ffi::{CStr, OsStr};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, getsockopt, recvmsg, sendmsg,
    socketpair, sockopt,
};

use super::parent::{self, Ready};
use super::process::{ProcessId, boot_id};
use super::sys::{self, Child, Waited};
use super::{open_files, spare};

/// By this name of its own, and by a socket in [`SOCKET_VARIABLE`], a process knows that it is meant to be the launcher.
pub(crate) const NAME: &str = "runtara-launcher";
/// Names the descriptor of the launcher's end of the socket.
pub(crate) const SOCKET_VARIABLE: &str = "RUNTARA_LAUNCHER_SOCKET";

/// The first number behind the standard descriptors.
const FIRST_FREE: RawFd = 3;
/// Longest path of a run directory (PATH_MAX).
pub(crate) const PATH_BYTES: usize = 4096;
/// Longest request: its number, and a path. Without a path a spare is wanted.
pub(crate) const REQUEST_BYTES: usize = 8 + PATH_BYTES;
/// An answer: the number of the request and an error number, 0 for none. With 0 comes a pidfd, and with that of a spare its socket.
pub(crate) const ANSWER_BYTES: usize = 12;
/// Most descriptors that come with an answer.
pub(crate) const ANSWER_DESCRIPTORS: usize = 2;

/// Gives the socket if this process was executed to be the launcher.
pub(crate) fn socket_of_launcher() -> Option<RawFd> {
    let name = std::env::args_os().next()?;
    if name != OsStr::new(NAME) {
        return None;
    }
    let fd: RawFd = std::env::var(SOCKET_VARIABLE).ok()?.parse().ok()?;
    let socket = sys::duplicate(fd).ok()?;
    let is_ours = getsockopt(&socket, sockopt::SockType) == Ok(SockType::SeqPacket);
    // Handed over as one of the standard descriptors: all others are closed.
    (is_ours && (0..FIRST_FREE).contains(&fd)).then_some(fd)
}

/// Serves requests until the socket closes. Does not return to the program's own `main`.
pub(crate) fn serve(fd: RawFd) -> ! {
    let settled = settle(fd, c"runtara-launch", None);
    let left = settled.and_then(|(socket, _, boot)| answer_all(&socket, &boot));
    sys::exit_now(i32::from(left.is_err()))
}

/// Becomes a process that nothing of the server's surroundings reaches: keeps the socket at this standard descriptor, and one other
/// descriptor. Gives them and the id of this boot.
pub(super) fn settle(
    fd: RawFd,
    name: &CStr,
    kept: Option<OwnedFd>,
) -> io::Result<(OwnedFd, Option<OwnedFd>, String)> {
    sys::quiet_signals()?;
    open_files::lower();
    match &kept {
        Some(kept) => sys::close_from_but(FIRST_FREE.cast_unsigned(), kept.as_fd())?,
        None => sys::close_from(FIRST_FREE.cast_unsigned())?,
    }
    let socket = sys::duplicate(fd)?;
    // Numbers 0 to 2 are taken for good, so that no later descriptor gets one of them.
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    // A terminal's Ctrl-C is for the server, and the root directory keeps no file system busy. Whoever leads a session has one.
    let _leads = nix::unistd::setsid();
    nix::unistd::chdir("/")?;
    let _named = nix::sys::prctl::set_name(name);
    Ok((socket, kept, boot_id()?))
}

fn answer_all(socket: &OwnedFd, boot: &str) -> io::Result<()> {
    let signals = sys::signal_descriptor(&[libc::SIGCHLD, libc::SIGTERM])?;
    let mut request = [0; REQUEST_BYTES];
    loop {
        let mut polled = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut polled, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            answer => answer?,
        };
        let [asked, signalled] = polled.map(|polled| polled.any().unwrap_or(true));
        if signalled && is_told_to_leave(signals.as_fd()) {
            return Ok(());
        }
        if asked && !answer_one(socket, &mut request, boot)? {
            return Ok(());
        }
    }
}

/// Reaps shims that ended. The server holds their pidfds, and needs nothing from here.
fn is_told_to_leave(signals: BorrowedFd<'_>) -> bool {
    let mut leave = false;
    while let Some(signal) = sys::read_signal(signals) {
        leave |= signal.number == libc::SIGTERM;
    }
    while let Waited::Ended(..) = sys::wait(Child::Any, true) {}
    leave
}

/// Answers one request; false if the server is gone.
fn answer_one(socket: &OwnedFd, buffer: &mut [u8], boot: &str) -> io::Result<bool> {
    let length = {
        let mut slices = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::empty();
        recvmsg::<()>(socket.as_raw_fd(), &mut slices, None, flags)?.bytes
    };
    let Some((number, path)) = buffer[..length].split_first_chunk::<8>() else {
        return Ok(false);
    };
    let shim = if path.is_empty() {
        fork_spare(boot)
    } else {
        fork_shim(Path::new(OsStr::from_bytes(path)), boot)
    };
    let errno = match &shim {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    let mut answer = [0; ANSWER_BYTES];
    answer[..8].copy_from_slice(number);
    answer[8..].copy_from_slice(&errno.to_ne_bytes());
    let descriptors = shim.as_ref().map(|shim| {
        let descriptors = shim.iter().map(OwnedFd::as_raw_fd);
        descriptors.collect::<Vec<_>>()
    });
    let rights = descriptors
        .as_ref()
        .map(|fds| ControlMessage::ScmRights(fds));
    let controls = rights.as_ref().map_or(&[][..], std::slice::from_ref);
    let slices = [IoSlice::new(&answer)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &slices,
        controls,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(true)
}

fn fork_shim(directory: &Path, boot: &str) -> io::Result<Vec<OwnedFd>> {
    let shim: ProcessId = match sys::fork()? {
        Some(shim) => shim,
        None => become_shim(directory, boot),
    };
    // Only this process reaps the shim, so its number is still its own.
    Ok(vec![sys::pidfd_open(shim)?])
}

fn fork_spare(boot: &str) -> io::Result<Vec<OwnedFd>> {
    // Of packets, as that of the launcher.
    let flags = SockFlag::SOCK_CLOEXEC;
    let (servers, spares) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let spare: ProcessId = match sys::fork()? {
        Some(spare) => spare,
        None => become_spare(spares, boot),
    };
    Ok(vec![sys::pidfd_open(spare)?, servers])
}

fn become_shim(directory: &Path, boot: &str) -> ! {
    // The shim must not keep the server's socket open: by its end the server learns that the launcher died.
    let _closed = sys::close_from(FIRST_FREE.cast_unsigned());
    let left = std::panic::catch_unwind(|| parent::run(directory, Ready::new(boot), None));
    sys::exit_now(left.unwrap_or(parent::PANICKED))
}

fn become_spare(socket: OwnedFd, boot: &str) -> ! {
    let _closed = sys::close_from_but(FIRST_FREE.cast_unsigned(), socket.as_fd());
    let left = std::panic::catch_unwind(move || spare::run(socket, boot));
    sys::exit_now(left.unwrap_or(parent::PANICKED))
}
