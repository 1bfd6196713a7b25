//! A directory of a guest's own: in memory, bounded, and mounted nowhere.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

/// Where a guest finds it.
pub(crate) const PLACE: &str = "/tmp";
/// The least that is worth asking for: a page, which the smallest file takes that is not empty.
pub(crate) const LEAST_BYTES: u64 = 4096;
/// So many bytes for each file. The kernel's own default would be half of the machine's memory.
const BYTES_PER_FILE: u64 = 2048;
/// Files that there may be in the smallest.
const FEWEST_FILES: u64 = 1024;

/// A file system that nobody finds who has not this descriptor, and that is gone with the last descriptor within it: also when the process
/// is killed.
pub(crate) struct Scratch(OwnedFd);

impl Scratch {
    /// Makes one of this size, in bytes.
    ///
    /// # Errors
    /// What the kernel reported: without the privilege to mount (CAP_SYS_ADMIN), that it is not permitted.
    pub(crate) fn make(bytes: u64) -> rustix::io::Result<Self> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let files = (bytes / BYTES_PER_FILE).max(FEWEST_FILES);
        for (name, value) in [
            ("source", "runtara"),
            ("size", &bytes.to_string()),
            ("nr_inodes", &files.to_string()),
            ("mode", "0700"),
        ] {
            fsconfig_set_string(context.as_fd(), name, value)?;
        }
        fsconfig_create(context.as_fd())?;
        let confined = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, confined).map(Self)
    }

    /// By this path it is opened, in this process and as long as this lives.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Why no guest can have one on this machine, if none can.
pub(crate) fn obstacle() -> Option<String> {
    let error = Scratch::make(LEAST_BYTES).err()?;
    Some(format!(
        "a directory in memory cannot be made here ({error}); the server needs the privilege to mount (CAP_SYS_ADMIN), as root has it, and \
         Linux 5.2"
    ))
}
