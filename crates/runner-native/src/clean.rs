//! Removes what a run has left.

use std::fs;
use std::io;
use std::path::Path;

use runtara_runner::{RunDirectories, Spares, remove_tree, shim};

use crate::files::Places;

const RUN_FILE: &str = "run.json";

/// Removes the files of a run; all but its logs if those are to be kept. Refused while a process of it lives.
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
    let directory = places.directory.path();
    remove_but_logs(directory, directories.spares())?;
    if !keep_logs {
        remove_tree(directory)?;
    }
    directories.remove_empty(&places.key)
}

fn remove_but_logs(directory: &Path, spares: &Spares) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("stdout.") && !name.starts_with("stderr.") && name != RUN_FILE {
            let path = entry.path();
            if entry.file_type()?.is_file() {
                spares.take_back_file(&path)?;
            } else if !is_emptied(&path) || spares.take_back_directory(&path).is_err() {
                remove_tree(&path)?;
            }
        }
    }
    // Last: as long as it is there, something may be left, and it says where.
    spares.take_back_file(&directory.join(RUN_FILE))
}

/// Removes the files in a directory. False if something stays: a directory in it, or what may not be removed so simply.
fn is_emptied(directory: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(directory) else {
        return false;
    };
    entries.all(|entry| entry.is_ok_and(|entry| fs::remove_file(entry.path()).is_ok()))
}

/// Removes the directory of an instance's programs when its last run is removed, unless somebody keeps something of his own beside it.
fn prune(run: &Path) {
    if let Some(instance) = run.parent() {
        // Refused as long as another run is in it, and needs no help if it is gone.
        let _stays = fs::remove_dir(instance);
    }
}
