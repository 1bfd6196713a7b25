//! A root that is a copy: for kernels without overlayfs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use runtara_runner::shim::Wishes;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chmodat,
    chownat, linkat, mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
};

use super::RootfsPlan;
use crate::id_range::IdRange;

/// What tmpfs has for whom it knows no other: the nobody of most systems.
const NOBODY: u32 = 65_534;
/// Bits of a mode that are permissions.
const PERMISSIONS: u32 = 0o7777;
/// What files are kept in, in tmpfs: pages.
const PAGE_BYTES: u64 = 4096;
/// A symbolic link shorter than this is kept with its name (`SHORT_SYMLINK_LEN` of tmpfs).
const SHORT_LINK_BYTES: u64 = 128;

/// What a copy of a tree takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TreeSize {
    /// Bytes of its files, in whole pages.
    pub bytes: u64,
    /// Files, directories and whatever else has a name.
    pub entries: u64,
}

/// Tells what a copy of a tree takes.
///
/// # Errors
/// What reading a directory reported.
pub fn measure(tree: &Path) -> io::Result<TreeSize> {
    let root = open_directory(&CWD, tree)?;
    let mut size = TreeSize {
        // For the root itself.
        entries: 1,
        ..TreeSize::default()
    };
    let mut seen = BTreeSet::new();
    let mut waiting = vec![PathBuf::from(".")];
    while let Some(path) = waiting.pop() {
        for (path, stat) in entries(&root, &path)? {
            size.entries += 1;
            match kind(&stat) {
                FileType::Directory => waiting.push(path),
                // A hard link takes nothing.
                _ if is_linked(&stat) && !seen.insert(stat.st_ino) => {}
                _ => size.bytes += byte_count(&stat),
            }
        }
    }
    Ok(size)
}

/// Copies the only layer of a plan, with the owners that the container sees, modes, times and hard links. Devices and sockets are left out,
/// as images have none; so are extended attributes, which tmpfs keeps since Linux 6.6 only. Holes of files become zeros.
pub(super) fn copy(plan: &RootfsPlan<'_>, layer: &Path, target: &OwnedFd) -> io::Result<()> {
    let copy = Copy {
        source: open_directory(&CWD, layer)?,
        target,
        ids: plan.ids,
        shifts: plan.shift_owners.is_some(),
    };
    let top = PathBuf::from(".");
    let stat = statat(&copy.source, &top, AtFlags::SYMLINK_NOFOLLOW)?;
    let mut links = BTreeMap::new();
    let mut directories = vec![(top.clone(), stat)];
    let mut waiting = vec![top];
    while let Some(path) = waiting.pop() {
        for (path, stat) in entries(&copy.source, &path)? {
            if plan.wishes.is_some_and(Wishes::is_over) {
                return Err(io::Error::new(
                    io::ErrorKind::Interrupted,
                    "the container was given up",
                ));
            }
            copy.one(&path, &stat, &mut links)?;
            if kind(&stat) == FileType::Directory {
                directories.push((path.clone(), stat));
                waiting.push(path);
            }
        }
    }
    // Last: to put something into a directory changes its time.
    for (path, stat) in directories.iter().rev() {
        copy.dress(path, stat)?;
    }
    Ok(())
}

struct Copy<'a> {
    source: OwnedFd,
    target: &'a OwnedFd,
    ids: IdRange,
    /// Whether the owners of the layer are those of the image.
    shifts: bool,
}

impl Copy<'_> {
    fn one(&self, path: &Path, stat: &Stat, links: &mut BTreeMap<u64, PathBuf>) -> io::Result<()> {
        if kind(stat) != FileType::Directory && is_linked(stat) {
            if let Some(first) = links.get(&stat.st_ino) {
                linkat(self.target, first, self.target, path, AtFlags::empty())?;
                return Ok(());
            }
            links.insert(stat.st_ino, path.to_owned());
        }
        let private = Mode::from_raw_mode(0o600);
        match kind(stat) {
            // Dressed when it is full.
            FileType::Directory => {
                return Ok(mkdirat(self.target, path, Mode::from_raw_mode(0o700))?);
            }
            FileType::RegularFile => self.content(path)?,
            FileType::Symlink => {
                let leads = readlinkat(&self.source, path, Vec::new())?;
                symlinkat(&*leads, self.target, path)?;
            }
            FileType::Fifo => mknodat(self.target, path, FileType::Fifo, private, 0)?,
            _ => return Ok(()),
        }
        self.dress(path, stat)
    }

    fn content(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let none = Mode::empty();
        let source = openat(&self.source, path, flags | OFlags::RDONLY, none)?;
        let flags = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let target = openat(self.target, path, flags, Mode::from_raw_mode(0o600))?;
        io::copy(&mut File::from(source), &mut File::from(target))?;
        Ok(())
    }

    /// Gives something the owner, the mode and the time of what it is copied from.
    fn dress(&self, path: &Path, stat: &Stat) -> io::Result<()> {
        let (uid, gid) = (self.owner(stat.st_uid), self.owner(stat.st_gid));
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        chownat(self.target, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        if kind(stat) != FileType::Symlink {
            let mode = Mode::from_raw_mode(stat.st_mode & PERMISSIONS);
            chmodat(self.target, path, mode, AtFlags::empty())?;
        }
        let modified = Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec.try_into().unwrap_or(0),
        };
        let times = Timestamps {
            last_access: modified,
            last_modification: modified,
        };
        utimensat(self.target, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    /// Who owns it on the host.
    fn owner(&self, id: u32) -> u32 {
        if !self.shifts {
            return id;
        }
        let nobody = self.ids.first() + NOBODY;
        self.ids.on_host(id).unwrap_or(nobody)
    }
}

/// What a directory holds, by paths from the root.
fn entries(root: &OwnedFd, path: &Path) -> io::Result<Vec<(PathBuf, Stat)>> {
    let directory = open_directory(root, path)?;
    let mut found = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name.to_bytes());
        found.push((path.join(name), stat));
    }
    Ok(found)
}

fn open_directory(at: &impl std::os::fd::AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(at, path, flags, Mode::empty())?)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn is_linked(stat: &Stat) -> bool {
    stat.st_nlink > 1
}

/// What it takes in tmpfs, in bytes.
fn byte_count(stat: &Stat) -> u64 {
    let bytes = u64::try_from(stat.st_size).unwrap_or(0);
    match kind(stat) {
        FileType::Symlink if bytes < SHORT_LINK_BYTES => 0,
        _ => bytes.next_multiple_of(PAGE_BYTES),
    }
}
