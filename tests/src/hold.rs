//! Holds a server in the middle of its work, where it opens something.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{EventFFlags, Fanotify, FanotifyEvent, InitFlags, MarkFlags, MaskFlags};

use crate::wait::DEADLINE;

/// Holds everybody who opens something until it is dropped; an open is asked for and not answered (fanotify(7), permission events).
///
/// This process is held, too: it must not open what it holds. Needs root.
pub struct Hold {
    group: Fanotify,
    /// Kept, as they stand for opens that are not answered.
    held: Vec<FanotifyEvent>,
}

impl Hold {
    /// Holds who opens what lies directly in a directory. One that is made later is held, too.
    ///
    /// # Panics
    /// If the directory is not there, or this process is not root.
    #[must_use]
    pub fn opens_in(directory: &Path) -> Self {
        Self::new(directory, MaskFlags::FAN_EVENT_ON_CHILD)
    }

    /// Holds who opens a directory itself, wherever it is moved to.
    ///
    /// # Panics
    /// As [`Self::opens_in`].
    #[must_use]
    pub fn opens_of(directory: &Path) -> Self {
        Self::new(directory, MaskFlags::empty())
    }

    fn new(directory: &Path, more: MaskFlags) -> Self {
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC;
        let group = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC)
            .unwrap_or_else(|error| panic!("opens can be held by root alone: {error}"));
        let mask = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_ONDIR | more;
        group
            .mark(MarkFlags::FAN_MARK_ADD, mask, AT_FDCWD, Some(directory))
            .unwrap_or_else(|error| panic!("cannot hold {}: {error}", directory.display()));
        Self {
            group,
            held: Vec::new(),
        }
    }

    /// Waits until somebody is held, and says what is being opened.
    ///
    /// # Panics
    /// If nobody is before [`DEADLINE`].
    #[track_caller]
    pub fn wait(&mut self) -> PathBuf {
        let patience = PollTimeout::try_from(DEADLINE).expect("it is some seconds");
        let mut asked = [PollFd::new(self.group.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut asked, patience).expect("it can be waited for");
        assert!(ready > 0, "nobody opened it within {DEADLINE:?}");
        let events = self.group.read_events().expect("somebody is held");
        self.held.extend(events);
        let first = self.held.first().and_then(FanotifyEvent::fd);
        let opened = first.expect("nothing is lost").as_raw_fd();
        fs::read_link(format!("/proc/self/fd/{opened}")).expect("it is open here")
    }
}
