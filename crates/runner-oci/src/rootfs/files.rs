//! Files that are put into the root of a container before it starts, such as `/etc/resolv.conf`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, unlinkat};
use rustix::io::Errno;

use super::MountError;
use super::staging::own;
use crate::id_range::IdRange;

/// A file for the root of a container. It belongs to the container's root, and all may read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootFile<'a> {
    /// The directory it is in, a single name, which is made if the image has none: `etc`. Links are followed inside the root.
    pub directory: &'a str,
    /// Its name; what the image has of this name is replaced, unless it is a directory.
    pub name: &'a str,
    /// Its content.
    pub content: &'a [u8],
}

pub(super) fn put(root: &OwnedFd, files: &[RootFile<'_>], ids: IdRange) -> Result<(), MountError> {
    for file in files {
        let step = format!("writing '/{}/{}'", file.directory, file.name);
        put_one(root, file, ids).map_err(MountError::at(step))?;
    }
    Ok(())
}

fn put_one(root: &OwnedFd, file: &RootFile<'_>, ids: IdRange) -> rustix::io::Result<()> {
    match mkdirat(root, file.directory, Mode::from_raw_mode(0o755)) {
        Ok(()) => own(root, file.directory, ids, (0, 0))?,
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    // What the image says is a directory may be a link to anywhere.
    let directory = openat2(
        root,
        file.directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?;
    match unlinkat(&directory, file.name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let written = openat(&directory, file.name, flags, Mode::from_raw_mode(0o644))?;
    write_all(&written, file.content)?;
    own(&directory, file.name, ids, (0, 0))
}

fn write_all(file: &impl AsFd, mut content: &[u8]) -> rustix::io::Result<()> {
    while !content.is_empty() {
        let written = rustix::io::write(file, content)?;
        content = content.get(written..).unwrap_or_default();
    }
    Ok(())
}
