//! The file system in memory that holds all that belongs to one run.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat};

use super::{CONFINED, MemoryOptions, MountError, RootfsPlan, TreeSize, mount_in_memory};
use crate::id_range::IdRange;

/// The root of the container, below the staging directory.
pub const ROOT: &str = "root";
/// Its run directory, below the staging directory.
pub const RUN_DIRECTORY: &str = "data";
const LAYERS: &str = "layers";
const UPPER: &str = "upper";
const WORK: &str = "work";

/// The mounted file system.
pub(crate) struct Staging {
    /// Its root.
    directory: OwnedFd,
}

impl Staging {
    /// Mounts it on the staging directory, with the directories that it begins with, and room for a tree beside what is written.
    pub(super) fn mount(plan: &RootfsPlan<'_>, tree: TreeSize) -> Result<Self, MountError> {
        let place = plan.staging.display();
        let step = format!("mounting a file system in memory on '{place}'");
        let options = MemoryOptions {
            bytes: plan.writable_bytes + tree.bytes,
            files: tree.entries,
            ..MemoryOptions::default()
        };
        let mount = mount_in_memory(plan.staging, &options, CONFINED);
        let staging = Self {
            directory: mount.map_err(MountError::at(step))?,
        };
        staging
            .make_directories(plan)
            .map_err(MountError::at(format!("making directories in '{place}'")))?;
        Ok(staging)
    }

    fn make_directories(&self, plan: &RootfsPlan<'_>) -> rustix::io::Result<()> {
        for name in [LAYERS, UPPER, WORK, ROOT, RUN_DIRECTORY] {
            mkdirat(&self.directory, name, Mode::from_raw_mode(0o755))?;
        }
        // The root of the container is what its upper directory is: root's, in the container.
        own(&self.directory, UPPER, plan.ids, (0, 0))?;
        own(&self.directory, RUN_DIRECTORY, plan.ids, plan.user)
    }

    /// Makes the directory of a layer.
    pub(super) fn layer(&self, index: usize) -> rustix::io::Result<OwnedFd> {
        let layers = self.open(LAYERS)?;
        let name = index.to_string();
        mkdirat(&layers, &name, Mode::from_raw_mode(0o755))?;
        open(&layers, name.as_str())
    }

    pub(super) fn upper(&self) -> rustix::io::Result<OwnedFd> {
        self.open(UPPER)
    }

    pub(super) fn work(&self) -> rustix::io::Result<OwnedFd> {
        self.open(WORK)
    }

    pub(super) fn root(&self) -> rustix::io::Result<OwnedFd> {
        self.open(ROOT)
    }

    fn open(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        open(&self.directory, name)
    }
}

pub(super) fn open(
    at: &impl std::os::fd::AsFd,
    path: impl rustix::path::Arg,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty())
}

/// Gives a file to a user and group of the container.
pub(super) fn own(
    directory: &impl std::os::fd::AsFd,
    name: &str,
    ids: IdRange,
    (uid, gid): (u32, u32),
) -> rustix::io::Result<()> {
    let (Some(uid), Some(gid)) = (ids.on_host(uid), ids.on_host(gid)) else {
        return Err(rustix::io::Errno::INVAL);
    };
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}
