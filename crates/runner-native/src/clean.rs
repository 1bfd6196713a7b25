//! Removes what a run has left.

use std::fs;
use std::io;
use std::path::Path;

use runtara_runner::{RunDirectories, remove_tree, shim};

use crate::files::Places;

/// Removes the files of a run; all but its logs if those are to be kept. Refused while a process of it lives. Blocking.
pub(crate) fn clean(
    places: &Places,
    directories: &RunDirectories,
    keep_logs: bool,
) -> io::Result<()> {
    if shim::is_locked(&places.directory)? {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "its shim still lives",
        ));
    }
    if places.are_apart() {
        remove_tree(&places.program)?;
        prune(&places.program);
    }
    directories.remove(&places.key, keep_logs)
}

/// Removes the directory of an instance's programs when its last run is removed, unless somebody keeps something of his own beside it.
fn prune(run: &Path) {
    if let Some(instance) = run.parent() {
        // Refused as long as another run is in it, and needs no help if it is gone.
        let _stays = fs::remove_dir(instance);
    }
}
