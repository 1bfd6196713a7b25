//! Tells when a run has written something.

use std::io;
use std::os::fd::OwnedFd;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::RunDirectory;
use crate::shim::watch;

/// Tells that the files of a run changed.
#[derive(Debug)]
pub struct LogWatch(AsyncFd<OwnedFd>);

impl LogWatch {
    /// Watches the files of a run from now on (inotify(7)).
    ///
    /// # Errors
    /// `NotFound` if the run has no directory here, otherwise what the system reported: usually that too many are watched.
    pub fn new(directory: &RunDirectory) -> io::Result<Self> {
        let files = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let flags =
            AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        files.add_watch(directory.path(), flags)?;
        watch::watch(OwnedFd::from(files), Interest::READABLE).map(Self)
    }

    /// Waits until a file changes; at once if one has since the last time.
    pub async fn changed(&mut self) {
        if let Ok(mut ready) = self.0.readable().await {
            // Only that there were events matters, not which; reading takes them off the queue.
            let mut events = [0; 4_096];
            let _taken = nix::unistd::read(ready.get_inner(), &mut events);
            ready.clear_ready();
        }
    }
}
