//! The layers of an image as mounts, with their owners shifted.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{
    MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags, mount_change, mount_remount,
    open_tree,
};

use super::staging::Staging;
use super::{CONFINED, MountError, RootfsPlan};
use crate::sys;

/// Mounts the layers, read-only, each on a directory of its own. Gives the roots of the mounts, the lowest first.
///
/// The overlay over them cannot be shifted as a whole: the kernel refuses that, and shifts what the overlay is made of.
pub(super) fn attach(plan: &RootfsPlan<'_>, staging: &Staging) -> Result<Vec<OwnedFd>, MountError> {
    let mut mounts = Vec::with_capacity(plan.layers.len());
    for (index, layer) in plan.layers.iter().enumerate() {
        let step = |what: &str| format!("{what} layer '{}'", layer.display());
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(CWD, layer, flags).map_err(MountError::at(step("mounting")))?;
        let attributes = CONFINED | MountAttrFlags::MOUNT_ATTR_RDONLY;
        let set =
            sys::set_mount_attributes(mount.as_fd(), attributes.bits().into(), plan.shift_owners);
        // A kernel before 5.12 cannot shift owners either, and sets the rest where the mount is attached.
        let is_later = plan.shift_owners.is_none()
            && set
                .as_ref()
                .is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS));
        if !is_later {
            set.map_err(MountError::at_io(step("shifting the owners of")))?;
        }
        // Only what is attached can be a part of an overlay, on kernels before 6.15.
        let place = staging
            .layer(index)
            .map_err(MountError::at(step("making a place for")))?;
        super::attach(&mount, &place).map_err(MountError::at(step("attaching")))?;
        if is_later {
            confine_attached(&mount).map_err(MountError::at(step("confining")))?;
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

/// Makes an attached mount read-only and confined by mount(2), and keeps it to itself.
fn confine_attached(mount: &OwnedFd) -> rustix::io::Result<()> {
    // What is attached is found by its descriptor.
    let place = format!("/proc/self/fd/{}", mount.as_raw_fd());
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(&place, flags, "")?;
    mount_change(&place, MountPropagationFlags::PRIVATE)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::mount::{UnmountFlags, mount_bind, unmount};

    use super::*;
    use crate::rootfs::enter_private_mounts;

    #[test]
    fn an_older_kernel_confines_what_is_attached() {
        enter_private_mounts().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().canonicalize().unwrap();
        mount_bind(&place, &place).unwrap();
        let mount = rustix::fs::open(&place, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
        confine_attached(&mount.unwrap()).unwrap();
        let refused = fs::write(place.join("new"), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let line = mounts
            .lines()
            .find(|line| line.contains(place.to_str().unwrap()))
            .unwrap();
        assert!(line.contains(" ro,nosuid,nodev"), "{line}");
        let optional = line.split(" - ").next().unwrap();
        assert!(
            !optional.contains("master:") && !optional.contains("shared:"),
            "{line}"
        );
        unmount(&place, UnmountFlags::DETACH).unwrap();
    }
}
