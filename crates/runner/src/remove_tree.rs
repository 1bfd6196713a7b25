//! Removes what programs have left, whatever shape they gave it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::spares::rename_new;

/// Removes a file, or a directory with everything in it, also if its owner has closed parts of it to itself; follows no link. Nothing to do
/// if there is none. Blocking.
///
/// However deep directories are nested, this takes two open directories and no more stack than for one: each that is found is
/// moved up to the top and emptied there. (`std::fs::remove_dir_all` goes down by recursion: some thousand levels, which any
/// program can make, end the process.)
///
/// # Errors
/// What the system reported; what was removed by then is gone.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(metadata) if !metadata.is_dir() => return gone(fs::remove_file(path)),
        found => found.map(drop)?,
    }
    let mut moved = 0_u64;
    let mut is_empty = false;
    while !is_empty {
        is_empty = true;
        open_up(path)?;
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            is_empty = false;
            if entry.file_type()?.is_dir() {
                empty(&entry.path(), path, &mut moved)?;
                gone(fs::remove_dir(entry.path()))?;
            } else {
                gone(fs::remove_file(entry.path()))?;
            }
        }
    }
    gone(fs::remove_dir(path))
}

/// Empties a directory: its directories go to the top.
fn empty(directory: &Path, top: &Path, moved: &mut u64) -> io::Result<()> {
    open_up(directory)?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            gone(fs::remove_file(entry.path()))?;
            continue;
        }
        // Moving a directory changes it.
        open_up(&entry.path())?;
        while let Err(error) = rename_new(&entry.path(), &top.join(format!("removed-{moved}"))) {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
            *moved += 1;
        }
        *moved += 1;
    }
    Ok(())
}

/// Gives a directory back to its owner.
fn open_up(directory: &Path) -> io::Result<()> {
    if fs::symlink_metadata(directory)?.mode() & 0o700 != 0o700 {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Takes what is not there for removed.
pub(crate) fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::{Mode, mkdirat};

    use super::*;

    #[test]
    fn a_tree_of_all_sorts_is_removed_and_nothing_beside_it() {
        let place = tempfile::tempdir().unwrap();
        let (tree, beside) = (place.path().join("tree"), place.path().join("beside"));
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir_all(tree.join("removed-0/removed-1")).unwrap();
        fs::write(tree.join("a/b/c/file"), "").unwrap();
        fs::write(&beside, "stays").unwrap();
        std::os::unix::fs::symlink(&beside, tree.join("a/link")).unwrap();
        std::os::unix::fs::symlink(place.path(), tree.join("a/up")).unwrap();
        fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(&beside).unwrap(), "stays");
        remove_tree(&tree).unwrap();
        remove_tree(&beside).unwrap();
        assert!(!beside.exists());
    }

    #[test]
    fn directories_nested_by_thousands_are_removed() {
        let place = tempfile::tempdir().unwrap();
        let tree = place.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let mut deepest = nix::fcntl::open(&tree, flags, Mode::empty()).unwrap();
        for _ in 0..5_000 {
            mkdirat(&deepest, "d", Mode::S_IRWXU).unwrap();
            deepest = openat(&deepest, "d", flags, Mode::empty()).unwrap();
        }
        drop(deepest);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
