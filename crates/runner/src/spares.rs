//! Files and directories that ended runs have left, emptied, for the runs that follow.
//!
//! A run needs half a dozen of them for its short life, and naming one that is there costs a hundredth of making one where many have
//! just been removed: ext4 without a journal passes over every inode that was freed within the last half minute (`recently_deleted` of
//! `fs/ext4/ialloc.c`; 0.3 to 0.7 ms a file were measured at 300 runs a second).

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, renameat2};
use nix::unistd::geteuid;

use crate::remove_tree::{gone, remove_tree};

/// Most of each that are kept; those of a few hundred runs that end at one time.
const KEPT: usize = 1024;
/// A directory beyond this held so many names that looking through it costs more than a new one; it does not shrink.
const DIRECTORY_BYTES: u64 = 64 * 1024;
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// Empty files and directories of this server's user, in a directory of their own. Each has been the server's alone, or a program's that
/// ran as the server's user: what another user has owned never comes here, because it may still hold it open. All calls block.
#[derive(Debug)]
pub struct Spares {
    place: PathBuf,
    number: AtomicU64,
    files: Mutex<Vec<PathBuf>>,
    directories: Mutex<Vec<PathBuf>>,
}

impl Spares {
    /// Keeps spares in a directory, which must be on the file system on which they are used. What an earlier server has left there is
    /// removed.
    ///
    /// # Errors
    /// What removing it or making it reported.
    pub fn open(place: PathBuf) -> io::Result<Self> {
        remove_tree(&place)?;
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(&place)?;
        Ok(Self {
            place,
            number: AtomicU64::new(0),
            files: Mutex::default(),
            directories: Mutex::default(),
        })
    }

    /// Makes a file with this content, readable by the server's user alone. If a spare becomes it, whoever reads finds all of it or no file.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if there is something of that name, which stays as it is; or what the system reported.
    pub fn file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        if let Some(spare) = take(&self.files) {
            let put = OpenOptions::new()
                .write(true)
                .open(&spare)
                .and_then(|mut file| file.write_all(content))
                .and_then(|()| rename_new(&spare, path));
            match put {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.keep_file(spare);
                    return Err(error);
                }
                // As if there had been none: making a file tells what is wrong, or nothing is.
                Err(_) => self.drop_file(&spare),
            }
        }
        new_file(path)?.write_all(content)
    }

    /// Makes an empty directory that only the server's user can use.
    ///
    /// # Errors
    /// As of [`Spares::file`].
    pub fn directory(&self, path: &Path) -> io::Result<()> {
        if let Some(spare) = take(&self.directories) {
            match rename_new(&spare, path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    keep(&self.directories, spare);
                    return Err(error);
                }
                Err(_) => {
                    let _stays = fs::remove_dir(&spare);
                }
            }
        }
        DirBuilder::new().mode(DIRECTORY_MODE).create(path)
    }

    /// Removes a file, or keeps it empty. Nothing to do if there is none.
    ///
    /// # Errors
    /// What the system reported; then the file may be there still.
    pub fn take_back_file(&self, path: &Path) -> io::Result<()> {
        if is_full(&self.files) {
            return gone(fs::remove_file(path));
        }
        let spare = self.next_place();
        if fs::rename(path, &spare).is_err() {
            return gone(fs::remove_file(path));
        }
        self.keep_file(spare);
        Ok(())
    }

    /// Removes a directory in which nothing is, or keeps it. Nothing to do if there is none.
    ///
    /// # Errors
    /// [`io::ErrorKind::DirectoryNotEmpty`], or what the system reported.
    pub fn take_back_directory(&self, path: &Path) -> io::Result<()> {
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata?,
        };
        let is_fit = !is_full(&self.directories)
            && is_ours(&metadata, DIRECTORY_MODE)
            && metadata.is_dir()
            && metadata.len() <= DIRECTORY_BYTES
            && !crate::shim::has_default_acl(path);
        if !is_fit {
            return gone(fs::remove_dir(path));
        }
        if fs::read_dir(path)?.next().is_some() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let spare = self.next_place();
        if fs::rename(path, &spare).is_err() {
            return gone(fs::remove_dir(path));
        }
        // Somebody who still looks at it may have been faster; then it goes when the next server opens its spares.
        if fs::read_dir(&spare)?.next().is_none() {
            keep(&self.directories, spare);
        }
        Ok(())
    }

    /// Empties what has been renamed to the place of a spare, and keeps it unless it is not what it should be.
    fn keep_file(&self, spare: PathBuf) {
        match emptied(&spare) {
            Ok(true) => keep(&self.files, spare),
            Ok(false) | Err(_) => self.drop_file(&spare),
        }
    }

    /// What stays although it should go is removed when the next server opens its spares.
    fn drop_file(&self, spare: &Path) {
        let _stays = fs::remove_file(spare);
    }

    /// A name that no spare has.
    fn next_place(&self) -> PathBuf {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        self.place.join(number.to_string())
    }
}

fn take(spares: &Mutex<Vec<PathBuf>>) -> Option<PathBuf> {
    spares.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

fn keep(spares: &Mutex<Vec<PathBuf>>, spare: PathBuf) {
    let mut spares = spares.lock().unwrap_or_else(PoisonError::into_inner);
    spares.push(spare);
}

fn is_full(spares: &Mutex<Vec<PathBuf>>) -> bool {
    spares.lock().unwrap_or_else(PoisonError::into_inner).len() >= KEPT
}

/// Empties a file; false, and it stays as it is, if it is not a file of ours that has no other name.
fn emptied(path: &Path) -> io::Result<bool> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)?;
    let metadata = file.metadata()?;
    let is_fit = metadata.is_file() && metadata.nlink() == 1 && is_ours(&metadata, FILE_MODE);
    if is_fit {
        file.set_len(0)?;
    }
    Ok(is_fit)
}

fn is_ours(metadata: &Metadata, mode: u32) -> bool {
    metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o7777 == mode
}

/// Renames to a name that must not be taken (rename(2)).
pub(crate) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::EEXIST) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(errno) => Err(errno.into()),
    }
}

pub(crate) fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    struct Place {
        directory: tempfile::TempDir,
        spares: Spares,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let spares = Spares::open(directory.path().join("spares")).unwrap();
            Self { directory, spares }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn count(&self) -> usize {
            fs::read_dir(self.at("spares")).unwrap().count()
        }
    }

    fn inode(path: &Path) -> u64 {
        fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn what_comes_back_goes_out_again_and_empty() {
        let place = Place::new();
        let (first, second) = (place.at("first"), place.at("second"));
        place
            .spares
            .file(&first, b"a secret of some length")
            .unwrap();
        let was = inode(&first);
        place.spares.take_back_file(&first).unwrap();
        assert!(!first.exists());
        place.spares.file(&second, b"short").unwrap();
        assert_eq!(
            (inode(&second), fs::read(&second).unwrap()),
            (was, b"short".to_vec())
        );
        place.spares.directory(&first).unwrap();
        let was = inode(&first);
        place.spares.take_back_directory(&first).unwrap();
        let third = place.at("third");
        place.spares.directory(&third).unwrap();
        assert_eq!(inode(&third), was);
        assert_eq!(place.count(), 0, "nothing is there twice");
    }

    #[test]
    fn nothing_that_is_there_is_replaced() {
        let place = Place::new();
        let taken = place.at("taken");
        fs::write(&taken, "mine").unwrap();
        // Without a spare, and with one.
        for _ in 0..2 {
            let refused = [
                place.spares.file(&taken, b"yours").unwrap_err(),
                place.spares.directory(&taken).unwrap_err(),
            ];
            assert!(
                refused
                    .iter()
                    .all(|it| it.kind() == io::ErrorKind::AlreadyExists)
            );
            assert_eq!(fs::read(&taken).unwrap(), b"mine");
            let (file, directory) = (place.at("file"), place.at("directory"));
            place.spares.file(&file, b"").unwrap();
            place.spares.directory(&directory).unwrap();
            place.spares.take_back_file(&file).unwrap();
            place.spares.take_back_directory(&directory).unwrap();
        }
        assert_eq!(place.count(), 2, "a spare that was not used is kept");
    }

    #[test]
    fn a_file_that_has_another_name_or_another_mode_is_left_alone() {
        let place = Place::new();
        let (file, other) = (place.at("file"), place.at("other"));
        place.spares.file(&file, b"read by both").unwrap();
        fs::hard_link(&file, &other).unwrap();
        place.spares.take_back_file(&file).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"read by both");
        place.spares.file(&file, b"").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        place.spares.take_back_file(&file).unwrap();
        std::os::unix::fs::symlink(&other, &file).unwrap();
        place.spares.take_back_file(&file).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"read by both");
        assert!(!file.exists());
        assert_eq!(place.count(), 0, "none of them is kept");
    }

    #[test]
    fn a_directory_with_something_in_it_stays_where_it_is() {
        let place = Place::new();
        let directory = place.at("directory");
        place.spares.directory(&directory).unwrap();
        fs::write(directory.join("inside"), "").unwrap();
        let refused = place.spares.take_back_directory(&directory).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::DirectoryNotEmpty);
        assert!(directory.join("inside").exists());
        fs::remove_file(directory.join("inside")).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        place.spares.take_back_directory(&directory).unwrap();
        assert_eq!((directory.exists(), place.count()), (false, 0));
    }

    #[test]
    fn spares_of_an_earlier_server_are_removed_and_missed_by_nobody() {
        let place = Place::new();
        let path = place.at("file");
        place.spares.file(&path, b"").unwrap();
        place.spares.take_back_file(&path).unwrap();
        place.spares.directory(&path).unwrap();
        place.spares.take_back_directory(&path).unwrap();
        let later = Spares::open(place.at("spares")).unwrap();
        assert_eq!(place.count(), 0);
        later.take_back_file(&path).unwrap();
        later.take_back_directory(&path).unwrap();
        for spares in [&place.spares, &later] {
            spares.file(&path, b"content").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"content");
            fs::remove_file(&path).unwrap();
            spares.directory(&path).unwrap();
            fs::remove_dir(&path).unwrap();
        }
    }
}
