//! Memory that is counted as a container's although the shim writes it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::machine::{CGROUPS, PROCS};

/// Has this process in the cgroup of a container, as long as this value lives. Memory is counted where the process is that touches it
/// first. The cgroup must have no limit yet: else this process would be killed, and not the container.
pub(crate) struct CountedTo {
    own: PathBuf,
}

impl CountedTo {
    /// Moves this process there. The container's path is the one of its configuration.
    pub(crate) fn container(path: &Path) -> io::Result<Self> {
        // Of memory in version 1, and of all in version 2.
        let of_memory = Path::new(CGROUPS).join("memory");
        let (root, file, marks): (_, _, &[&str]) = if of_memory.join("tasks").exists() {
            (of_memory, "tasks", &["memory"])
        } else {
            (PathBuf::from(CGROUPS), PROCS, &[""])
        };
        let within = |path: &Path| {
            let path = path.strip_prefix("/").unwrap_or(path);
            root.join(path).join(file)
        };
        let listed = fs::read_to_string("/proc/self/cgroup")?;
        let own = listed.lines().find_map(|line| path_in(line, marks));
        let own = own.map(|own| within(Path::new(own))).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                "this process is in no cgroup of memory",
            )
        })?;
        fs::write(within(path), std::process::id().to_string())?;
        Ok(Self { own })
    }

    /// Moves it back.
    pub(crate) fn leave(self) -> io::Result<()> {
        fs::write(&self.own, std::process::id().to_string())
    }
}

/// The path of a line of proc_pid_cgroup(5), if its hierarchy has one of these controllers.
fn path_in<'a>(line: &'a str, marks: &[&str]) -> Option<&'a str> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    let has_it = controllers.split(',').any(|found| marks.contains(&found));
    has_it.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_that_of_the_hierarchy() {
        assert_eq!(path_in("8:memory:/a/b:c", &["memory"]), Some("/a/b:c"));
        assert_eq!(path_in("8:cpu,memory:/a", &["memory"]), Some("/a"));
        assert_eq!(path_in("8:memory:/a", &[""]), None);
        assert_eq!(path_in("0::/a", &[""]), Some("/a"));
        assert_eq!(path_in("broken", &[""]), None);
    }
}
