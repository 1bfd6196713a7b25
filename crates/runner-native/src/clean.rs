//! Removes what a run has left.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use runtara_runner::{RunDirectories, Spares, shim};

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
        remove(&places.program)?;
        prune(&places.program);
    }
    let directory = places.directory.path();
    remove_but_logs(directory, directories.spares())?;
    if !keep_logs {
        remove(directory)?;
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
                remove(&path)?;
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

/// Removes a file or a whole tree, also if its owner has closed parts of it to itself.
fn remove(path: &Path) -> io::Result<()> {
    match remove_once(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            reopen(path)?;
            remove_once(path)
        }
        removed => removed,
    }
}

fn remove_once(path: &Path) -> io::Result<()> {
    let is_directory = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.is_dir(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let removed = if is_directory {
        // Follows no link.
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Gives the directories of a tree back to their owner.
fn reopen(root: &Path) -> io::Result<()> {
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(())
}
