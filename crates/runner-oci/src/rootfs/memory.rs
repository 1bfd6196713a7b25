//! File systems in memory: bounded in size and in files.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

use super::staging::open;

/// So many bytes for each file: half a page, as the smallest file that is not empty takes a page. The kernel's own default would be half of
/// the machine's memory.
const BYTES_PER_FILE: u64 = 2048;
/// Files that there may be in the smallest.
const FEWEST_FILES: u64 = 4096;

/// What a file system in memory is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryOptions<'a> {
    /// Its size.
    pub(crate) bytes: u64,
    /// Files that it has room for beside those that its size is good for.
    pub(crate) files: u64,
    /// Permissions of its root, in octal digits.
    pub(crate) mode: &'a str,
    /// User and group that its root belongs to, on the host.
    pub(crate) owner: u32,
}

impl Default for MemoryOptions<'_> {
    fn default() -> Self {
        Self {
            bytes: 0,
            files: 0,
            mode: "0755",
            owner: 0,
        }
    }
}

/// Mounts one on a directory, and gives its root.
pub(crate) fn mount_in_memory(
    place: &Path,
    options: &MemoryOptions<'_>,
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let directory = open(&CWD, place)?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let files = (options.bytes / BYTES_PER_FILE).max(FEWEST_FILES) + options.files;
    for (name, value) in [
        ("source", "runtara"),
        ("size", &options.bytes.to_string()),
        ("nr_inodes", &files.to_string()),
        ("mode", options.mode),
        ("uid", &options.owner.to_string()),
        ("gid", &options.owner.to_string()),
    ] {
        fsconfig_set_string(context.as_fd(), name, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    super::attach(&mount, &directory)?;
    Ok(mount)
}
