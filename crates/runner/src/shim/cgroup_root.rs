//! Where a server makes the cgroups of its runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{cgroup, sys};
use crate::RunKey;

/// What systemd writes onto a cgroup whose inside it leaves to others.
const DELEGATED: [&std::ffi::CStr; 2] = [c"trusted.delegate", c"user.delegate"];

/// The place for the cgroups of one server's runs: beside or below the server's own, each with the server's name in its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupRoot {
    directory: PathBuf,
    prefix: String,
}

impl CgroupRoot {
    /// A place for the runs of the server of this name in a directory of cgroups.
    #[must_use]
    pub fn at(directory: PathBuf, server: &str) -> Self {
        Self {
            directory,
            prefix: format!("runtara-{server}-"),
        }
    }

    /// Finds the place below the cgroup of this process. Blocking.
    ///
    /// # Errors
    /// Why there is none, and what to do.
    pub fn find(server: &str) -> Result<Self, String> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|error| format!("'{path}' cannot be read: {error}"))
        };
        let own = read("/proc/self/cgroup")?;
        let mounts = read("/proc/self/mountinfo")?;
        let own = own_directory(&own, &mounts).ok_or(
            "no cgroups with memory are mounted; mount them, or cgroup2, at /sys/fs/cgroup",
        )?;
        if own.needs_delegation && !is_delegated(&own.path) {
            return Err(format!(
                "the cgroup '{}' is not the server's to divide; set `Delegate=yes` in its unit",
                own.path.display()
            ));
        }
        let root = Self::at(own.path, server);
        root.try_out().map_err(|error| {
            format!(
                "no cgroup can be made in '{}': {error}; run the server as root, with cgroups that it may write",
                root.directory.display()
            )
        })?;
        Ok(root)
    }

    /// The cgroup of a run.
    #[must_use]
    pub fn of(&self, key: &RunKey) -> PathBuf {
        let (letters, run) = (key.instance_id.letters(), key.run_number);
        self.directory
            .join(format!("{}{letters}-{run}", self.prefix))
    }

    fn try_out(&self) -> io::Result<()> {
        let path = self.directory.join(format!("{}try", self.prefix));
        // Refused where other processes are beside ours (cgroups(7)); then memory is told by the processes.
        let _counted = fs::write(self.directory.join("cgroup.subtree_control"), "+memory");
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        cgroup::remove(&path)
    }

    /// Removes the empty cgroups that killed shims have left. Those in which something lives stay, for whoever recovers their runs.
    /// Blocking.
    ///
    /// # Errors
    /// What listing them reported.
    pub fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name
                .to_str()
                .is_some_and(|name| name.starts_with(&self.prefix))
            {
                let _stays = fs::remove_dir(entry.path());
            }
        }
        Ok(())
    }
}

struct Own {
    path: PathBuf,
    /// Of version 2, and not the root of all that can be seen: somebody else divides what is above.
    needs_delegation: bool,
}

/// The directory of this process's cgroup: in the hierarchy of version 1 that has memory, else in that of version 2. Takes the texts of
/// `/proc/self/cgroup` (cgroups(7)) and `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn own_directory(own: &str, mounts: &str) -> Option<Own> {
    let paths = |of_memory: bool| {
        own.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let fits = match of_memory {
                true => controllers.split(',').any(|name| name == "memory"),
                false => controllers.is_empty(),
            };
            fits.then_some(path)
        })
    };
    let mounted = |of_memory: bool| {
        let path = paths(of_memory)?;
        mounts.lines().find_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            let mut place = place.split(' ').skip(3);
            let (root, point) = (place.next()?, place.next()?);
            let mut kind = kind.split(' ');
            let (system, options) = (kind.next()?, kind.nth(1)?);
            let fits = match of_memory {
                true => system == "cgroup" && options.split(',').any(|name| name == "memory"),
                false => system == "cgroup2",
            };
            let below = Path::new(path).strip_prefix(root).ok()?;
            fits.then(|| (Path::new(point).join(below), path))
        })
    };
    if let Some((path, _)) = mounted(true) {
        return Some(Own {
            path,
            needs_delegation: false,
        });
    }
    let (path, own) = mounted(false)?;
    Some(Own {
        path,
        needs_delegation: own != "/",
    })
}

fn is_delegated(path: &Path) -> bool {
    DELEGATED
        .iter()
        .any(|name| sys::attribute(path, name).is_some_and(|value| value == b"1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "36 25 0:31 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                       40 25 0:35 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";
    const NEW: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    fn found(own: &str, mounts: &str) -> Option<(PathBuf, bool)> {
        own_directory(own, mounts).map(|own| (own.path, own.needs_delegation))
    }

    #[test]
    fn the_hierarchy_with_memory_is_found() {
        let own = "8:pids:/a\n4:memory:/a/b\n0::/c\n";
        let path = PathBuf::from("/sys/fs/cgroup/memory/a/b");
        assert_eq!(found(own, OLD), Some((path, false)));
    }

    #[test]
    fn of_version_2_a_part_must_be_delegated_and_the_root_of_a_container_not() {
        let path = PathBuf::from("/sys/fs/cgroup/system.slice/runtara.service");
        let own = "0::/system.slice/runtara.service\n";
        assert_eq!(found(own, NEW), Some((path, true)));
        let root = PathBuf::from("/sys/fs/cgroup");
        assert_eq!(found("0::/\n", NEW), Some((root, false)));
        assert_eq!(found("0::/\n", ""), None);
    }

    #[test]
    fn a_mount_of_a_part_shows_what_is_below_it() {
        let mounts = "36 25 0:31 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let path = PathBuf::from("/sys/fs/cgroup/memory/y");
        assert_eq!(found("4:memory:/docker/x/y\n", mounts), Some((path, false)));
        assert_eq!(found("4:memory:/elsewhere\n", mounts), None);
    }
}
