//! What a runner writes into `run.json` for the half of it that works in the shim.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::id_range::IdRange;
use crate::machine::EgressProgram;
use crate::rootfs::{RootFile, RootKind};

/// A container that a shim is to make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// Its id, which no other container has: letters, digits, `_`, `+`, `-` and `.`.
    pub id: String,
    /// The program of the runtime.
    pub runtime: PathBuf,
    /// An empty directory that is the container's alone, on which its file systems are mounted: see
    /// [`RootfsPlan::staging`](crate::rootfs::RootfsPlan::staging). It goes with the container.
    pub staging: PathBuf,
    /// The unpacked layers of the image, the lowest first.
    pub layers: Vec<PathBuf>,
    /// What is made of them.
    #[serde(default)]
    pub root: RootKind,
    /// Whether the owners of files in the layers are those of the image.
    pub shift_owners: bool,
    /// Its cgroup in each hierarchy, as absolute paths: the runtime makes them, and they go with the container.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
    /// The container's ids on the host.
    pub ids: IdRange,
    /// Size of all that the container writes, in bytes.
    pub writable_bytes: u64,
    /// User and group of the program, as numbers of the container.
    pub user: (u32, u32),
    /// Files for the root of its file system.
    pub files: Vec<PlannedFile>,
    /// What the runtime is told, with the root and the run directory of [`paths_in`], and without paths of namespaces.
    pub configuration: Spec,
    /// Whether the runtime waits for a configuration that comes through a [`ConfigurationPipe`](crate::runtime::ConfigurationPipe): it must read
    /// it once, from its beginning to its end.
    #[serde(default)]
    pub late_configuration: bool,
    /// The signal that asks the program to leave.
    pub stop_signal: i32,
    /// The core's socket, if the program reaches it through a network of its own.
    pub core: Option<CoreRelay>,
    /// What connects that network to the internet, if something is to. It needs `core`. The container's `/etc/resolv.conf` is written for it,
    /// whatever image and `files` have there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressProgram>,
}

/// How a program with a network of its own reaches the core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreRelay {
    /// The port of the loopback at which the program finds it.
    pub port: u16,
    /// Where it is.
    pub socket: PathBuf,
}

/// A file for the root of a container: see [`RootFile`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFile {
    /// The directory it is in, a single name.
    pub directory: String,
    /// Its name.
    pub name: String,
    /// Its content.
    pub content: String,
}

impl PlannedFile {
    pub(crate) fn for_root(&self) -> RootFile<'_> {
        RootFile {
            directory: &self.directory,
            name: &self.name,
            content: self.content.as_bytes(),
        }
    }
}

/// Where a container's root and run directory will be on the host, in the shim's own mounts.
#[must_use]
pub fn paths_in(staging: &Path) -> (PathBuf, PathBuf) {
    (
        staging.join(crate::rootfs::ROOT),
        staging.join(crate::rootfs::RUN_DIRECTORY),
    )
}
