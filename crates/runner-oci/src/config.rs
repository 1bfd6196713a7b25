//! How containers are made.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use runtara_domain::{NetworkMode, ResourceLimits};

use crate::IdRanges;
use crate::runtime::DEFAULT_PROGRAM;

/// How containers are made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OciConfig {
    /// The server's data directory, as an absolute path: layers of images, run directories, the core's socket.
    pub data_dir: PathBuf,
    /// Where containers are mounted: a directory of this server's alone, which anybody may pass through,
    /// and which is gone when the machine starts anew. `/run/runtara/<node>` unless set.
    pub run_root: PathBuf,
    /// The name of this server in the names of cgroups.
    pub node: String,
    /// The runtime: a name that is looked for in `search_path`, or an absolute path.
    pub runtime: String,
    /// Where programs are looked for, as in `PATH`.
    pub search_path: Option<OsString>,
    /// What containers reach over the network if neither image nor start says.
    pub network: NetworkMode,
    /// What they may reach at all.
    pub allowed_networks: Vec<NetworkMode>,
    /// What they may take if neither image nor start says.
    pub default_limits: ResourceLimits,
    /// What they may take at most.
    pub ceiling: ResourceLimits,
    /// The user and group ids that containers have on the host.
    pub ids: IdRanges,
    /// Whether owners of files are shifted by mounts into the ids of each container; found out unless set. Where they are not, all
    /// containers have the first range of ids.
    pub shifts_owners: Option<bool>,
    /// Whether containers share the layers of their image through overlayfs; found out unless set. Where they do not, each has a copy of
    /// the image in memory.
    pub overlay: Option<bool>,
    /// Whether layers keep their setuid and setgid bits. No program in a container gains anything by them; some refuse to start without.
    pub keep_setuid: bool,
    /// How willingly the kernel ends containers when memory of the machine runs out (proc_pid_oom_score_adj(5)).
    pub oom_score_adj: Option<i32>,
    /// How much of each of the two outputs of a run is kept, in bytes.
    pub log_cap_bytes: u64,
    /// What an image may hold.
    pub image_limits: runtara_oci_image::Limits,
}

impl OciConfig {
    /// Containers by runc, isolated, with the usual limits and no ceilings.
    #[must_use]
    pub fn new(data_dir: &Path, node: &str) -> Self {
        // Fails only for an empty path, or without a current directory.
        let data_dir = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
        Self {
            data_dir,
            run_root: Path::new("/run/runtara").join(node),
            node: node.to_owned(),
            runtime: DEFAULT_PROGRAM.to_owned(),
            search_path: std::env::var_os("PATH"),
            network: NetworkMode::Isolated,
            allowed_networks: vec![NetworkMode::Isolated, NetworkMode::Egress],
            default_limits: ResourceLimits::default(),
            ceiling: ResourceLimits::default(),
            ids: IdRanges::default(),
            shifts_owners: None,
            overlay: None,
            keep_setuid: false,
            oom_score_adj: None,
            log_cap_bytes: 8 * 1024 * 1024,
            image_limits: runtara_oci_image::Limits::default(),
        }
    }

    /// Where containers are mounted.
    pub(crate) fn staging(&self) -> PathBuf {
        self.run_root.join("containers")
    }

    /// Where what was made of images is kept.
    pub(crate) fn images(&self) -> PathBuf {
        self.data_dir.join("cache/oci")
    }

    /// Where the core is reached without a network.
    pub(crate) fn core_socket(&self) -> PathBuf {
        self.data_dir.join("core.sock")
    }
}
