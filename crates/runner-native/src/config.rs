//! How native processes are run.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use runtara_runner::shim::{CgroupRoot, ProcessLimits};

/// How native processes are run.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NativeConfig {
    /// The server's data directory, as an absolute path.
    pub data_dir: PathBuf,
    /// User and group that programs run as; the server's own if there is none. Only a server that is root can change to another.
    pub user: Option<(u32, u32)>,
    /// Why this server launches no programs, if it does not. It still minds those that a server before it has launched.
    pub refusal: Option<String>,
    /// Where programs of another user have their images, work directories and input: outside of the data directory, which is closed
    /// to them. `<data directory>-work` unless set.
    pub work_root: PathBuf,
    /// Where each run has a cgroup of its own, if it has.
    pub cgroups: Option<CgroupRoot>,
    /// What each process may take.
    pub limits: ProcessLimits,
    /// How willingly the kernel ends them when memory runs out.
    pub oom_score_adj: Option<i32>,
    /// Their niceness.
    pub nice: Option<i32>,
    /// How much of each of the two outputs of a run is kept, in bytes; at least the newest half of it. A program's standard output is
    /// its result if it has no other: it is whole up to a megabyte, or half of this if that is less.
    pub log_cap_bytes: u64,
}

impl NativeConfig {
    /// Processes of the server's user, without limits of their own.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        // Fails only for an empty path, or without a current directory.
        let data_dir = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
        let mut work_root = data_dir.clone().into_os_string();
        work_root.push("-work");
        Self {
            data_dir,
            user: None,
            refusal: None,
            work_root: work_root.into(),
            cgroups: None,
            limits: ProcessLimits::default(),
            oom_score_adj: None,
            nice: None,
            log_cap_bytes: 8 * 1024 * 1024,
        }
    }

    /// What stands in the way of launching anything with these settings.
    pub(crate) fn obstacle(&self) -> Option<String> {
        if let Some(refusal) = &self.refusal {
            return Some(refusal.clone());
        }
        if self.data_dir.to_str().is_none() || self.work_root.to_str().is_none() {
            return Some(format!(
                "the data directory '{}' is not UTF-8, and programs are told their paths as text; use another",
                self.data_dir.display()
            ));
        }
        let (uid, gid) = self.user?;
        if !nix::unistd::geteuid().is_root() {
            return Some(format!(
                "only a server that runs as root can run programs as user {uid}; run it as root, or without a user for programs"
            ));
        }
        let closed = self.work_root.ancestors().skip(1).find(|path| {
            path.metadata()
                .is_ok_and(|metadata| !may_pass(&metadata, uid, gid))
        })?;
        Some(format!(
            "user {uid} cannot reach the work directories under '{}', because '{}' is closed to it; choose another place for them",
            self.work_root.display(),
            closed.display()
        ))
    }
}

/// Whether a user without supplementary groups may pass through a directory (path_resolution(7)).
fn may_pass(directory: &std::fs::Metadata, uid: u32, gid: u32) -> bool {
    let bit = if directory.uid() == uid {
        0o100
    } else if directory.gid() == gid {
        0o010
    } else {
        0o001
    };
    uid == 0 || directory.permissions().mode() & bit != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_directories_of_another_user_lie_beside_the_data_directory() {
        let config = NativeConfig::new(Path::new("/var/lib/runtara"));
        assert_eq!(config.work_root, Path::new("/var/lib/runtara-work"));
    }

    #[test]
    fn a_place_that_a_user_cannot_reach_is_named() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let mode = |mode| std::fs::Permissions::from_mode(mode);
        let mut config = NativeConfig::new(&directory.path().join("data"));
        config.user = Some((65_534, 65_534));
        std::fs::set_permissions(directory.path(), mode(0o700)).unwrap();
        let obstacle = config.obstacle().unwrap();
        assert!(
            obstacle.contains(directory.path().to_str().unwrap()),
            "{obstacle}"
        );
        std::fs::set_permissions(directory.path(), mode(0o711)).unwrap();
        assert_eq!(config.obstacle(), None);
    }
}
