//! A disk that several servers share.

use std::fs;
use std::path::PathBuf;

use crate::place::{Place, mount_disk};

/// A disk of its own, in memory, that belongs to none of the servers which use it: what there is because of one of them is told by its own
/// place. It is gone with this value; of a test that is killed the next one removes it.
pub struct SharedDisk(Place);

impl SharedDisk {
    /// Makes one of so many MiB. Only root can.
    ///
    /// # Panics
    /// If it cannot be mounted.
    #[must_use]
    pub fn of(mebibytes: u32) -> Self {
        let disk = Self(Place::make());
        fs::create_dir(disk.directory()).expect("the directory is ours");
        mount_disk(&disk.directory(), mebibytes);
        disk
    }

    /// Where it is mounted.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.0.path().join("data")
    }
}
