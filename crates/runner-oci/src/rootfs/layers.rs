//! The layers of an image as mounts, with their owners shifted.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

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
        sys::set_mount_attributes(mount.as_fd(), attributes.bits().into(), plan.shift_owners)
            .map_err(MountError::at_io(step("shifting the owners of")))?;
        // Only what is attached can be a part of an overlay, on kernels before 6.15.
        let place = staging
            .layer(index)
            .map_err(MountError::at(step("making a place for")))?;
        super::attach(&mount, &place).map_err(MountError::at(step("attaching")))?;
        mounts.push(mount);
    }
    Ok(mounts)
}
