//! Mounts the root file system of a container: the layers of its image, shared and read-only, under a private writable layer in memory.
//!
//! ```text
//!  <staging>                tmpfs of the run: its size is the limit on writable bytes
//!  ├── layers/0, 1, …       the unpacked layers, read-only, their owners shifted into the container's range of ids
//!  ├── upper/, work/        what the container changes
//!  ├── data/                its run directory
//!  └── root/                overlay of layers and upper: the root of the container
//! ```
//!
//! Where the kernel has no overlayfs, there is one layer, and `root/` is a copy of it: see [`RootKind::Copy`].
//!
//! All of it is mounted in a mount namespace of the caller's own, so that it goes when the last process in there does, whatever kills
//! it. Everything is `nosuid` and `nodev`. The overlay knows its parts as `/proc/self/fd/<n>`, so that the list of mounts that a container
//! reads (`/proc/self/mountinfo`) shows no path of the host.

mod copy;
mod files;
mod layers;
mod memory;
mod overlay;
mod staging;

use std::io;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use runtara_runner::shim::Wishes;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, MoveMountFlags, move_mount};

use crate::id_range::IdRange;
use crate::limits::LEAST_WRITABLE_BYTES;

pub use crate::namespaces::UserNamespace;
pub use copy::{TreeSize, measure};
pub use files::RootFile;
pub(crate) use memory::{MemoryOptions, mount_in_memory};
pub(crate) use staging::Staging;
pub use staging::{ROOT, RUN_DIRECTORY};

/// How layers become a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootKind {
    /// All containers share them, under what each changes.
    #[default]
    Overlay,
    /// The only layer, in which all of the image must be, is copied into memory for each container. Its size is added to what the
    /// container may write, and it counts as memory of whose cgroup this process is in.
    Copy,
}

/// What is mounted for one container.
#[derive(Debug, Clone)]
pub struct RootfsPlan<'a> {
    /// An existing directory of the host; what it holds is hidden. Anybody must be able to pass through the directories above it, because
    /// the runtime looks up the root as the container's root, who is nobody on the host: so it cannot lie in the data directory.
    pub staging: &'a Path,
    /// The unpacked layers of the image as absolute paths, the lowest first; at least one.
    pub layers: &'a [PathBuf],
    /// What is made of them.
    pub root: RootKind,
    /// A user namespace of the container's ids, if owners of files in the layers are those of the image (root is 0), and are shifted by
    /// the mounts; without one they are stored in the container's range.
    pub shift_owners: Option<std::os::fd::BorrowedFd<'a>>,
    /// The container's ids on the host.
    pub ids: IdRange,
    /// Size of all that the container writes to its root and its run directory, in bytes.
    pub writable_bytes: u64,
    /// User and group of the program in the container, to whom its run directory belongs.
    pub user: (u32, u32),
    /// Who says that the run is over, so that a copy is given up.
    pub wishes: Option<&'a Wishes<'a>>,
    /// Files that are put into the root, whatever the image has in their place.
    pub files: &'a [RootFile<'a>],
}

/// What was mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// The root of the container's file system.
    pub root: PathBuf,
    /// Its run directory.
    pub run_directory: PathBuf,
}

/// Says which step of mounting failed.
#[derive(Debug, thiserror::Error)]
#[error("the root file system of a container could not be mounted: {step}")]
pub struct MountError {
    /// What was being done, and with what.
    pub step: String,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl MountError {
    /// Makes the error of a step of what the system said.
    fn at(step: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let from_io = Self::at_io(step);
        move |errno| from_io(errno.into())
    }

    fn at_io(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self { step, source }
    }
}

/// What every mount for a container gets.
pub(crate) const CONFINED: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// Gives the calling thread, and what it starts from now on, a mount namespace of its own, from which nothing spreads to the host.
///
/// # Errors
/// [`MountError`] if this process is not root, or the kernel refuses more mount namespaces (`user.max_mnt_namespaces`).
pub fn enter_private_mounts() -> Result<(), MountError> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)
        .map_err(io::Error::from)
        .map_err(MountError::at_io("making a mount namespace"))?;
    // Not private: what the host unmounts would stay in use here.
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags)
        .map_err(MountError::at("keeping mounts from spreading to the host"))
}

/// Mounts the root file system of a container. The calling thread must be in a mount namespace of its own
/// ([`enter_private_mounts`]), in which `/proc` is mounted. What a failure leaves mounted goes with that namespace.
///
/// # Errors
/// [`MountError`] with the step that failed: the staging directory is not there; a layer is missing, or lies on a file system that cannot
/// shift owners (before Linux 5.19, or [`UserNamespace`] cannot be made); the kernel has no overlayfs, or too many layers are given for
/// its old interface (about 200, before Linux 6.7).
pub fn mount_rootfs(plan: &RootfsPlan<'_>) -> Result<Rootfs, MountError> {
    match plan.root {
        RootKind::Overlay => mount_overlay(plan, &mount_staging(plan)?)?,
        RootKind::Copy => {
            check(plan)?;
            copy_root(plan)?;
        }
    }
    Ok(Rootfs {
        root: plan.staging.join(ROOT),
        run_directory: plan.staging.join(RUN_DIRECTORY),
    })
}

/// The first half of [`mount_rootfs`] for an overlay: from here on the run directory is there. Needs no namespace whose owners layers are
/// shifted to.
pub(crate) fn mount_staging(plan: &RootfsPlan<'_>) -> Result<Staging, MountError> {
    check(plan)?;
    Staging::mount(plan, TreeSize::default())
}

/// The second half.
pub(crate) fn mount_overlay(plan: &RootfsPlan<'_>, staging: &Staging) -> Result<(), MountError> {
    let layers = layers::attach(plan, staging)?;
    let root = overlay::mount(&layers, staging)?;
    files::put(&root.directory, plan.files, plan.ids)?;
    root.attach(staging)
}

fn check(plan: &RootfsPlan<'_>) -> Result<(), MountError> {
    if plan.layers.is_empty() || plan.writable_bytes < LEAST_WRITABLE_BYTES {
        let wanted = "at least one layer and a writable byte count that is not below the least";
        return Err(MountError {
            step: format!("reading the plan, which needs {wanted}"),
            source: io::ErrorKind::InvalidInput.into(),
        });
    }
    Ok(())
}

fn copy_root(plan: &RootfsPlan<'_>) -> Result<(), MountError> {
    let [layer] = plan.layers else {
        return Err(MountError {
            step: "reading the plan, in which a root that is copied has one layer".to_owned(),
            source: io::ErrorKind::InvalidInput.into(),
        });
    };
    let name = layer.display();
    let size = measure(layer).map_err(MountError::at_io(format!("measuring '{name}'")))?;
    let staging = Staging::mount(plan, size)?;
    let root = staging
        .root()
        .map_err(MountError::at("opening the place of the root"))?;
    copy::copy(plan, layer, &root).map_err(MountError::at_io(format!("copying '{name}'")))?;
    files::put(&root, plan.files, plan.ids)
}

/// Attaches a mount to a directory.
fn attach(
    mount: &impl std::os::fd::AsFd,
    directory: &impl std::os::fd::AsFd,
) -> Result<(), rustix::io::Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", directory, "", flags)
}
