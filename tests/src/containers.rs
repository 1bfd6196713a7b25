//! What containers have on the machine beside their processes, and how it is removed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::processes::Process;
use crate::server::Server;
use crate::wait::eventually;

/// Where servers have the mounts of their containers and the notes of the runtime, unless they are told otherwise.
const RUN_ROOT: &str = "/run/runtara";
const CGROUPS: &str = "/sys/fs/cgroup";

/// What is there because of containers.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Places of containers: what they were mounted on, and notes of the runtime.
    pub places: Vec<PathBuf>,
    /// Cgroups of containers.
    pub cgroups: Vec<PathBuf>,
    /// Mounts that the server sees.
    pub mounts: Vec<String>,
    /// Processes of containers.
    pub processes: Vec<Process>,
}

impl Remains {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl Server {
    /// Waits until nothing of its containers is left on the machine.
    #[track_caller]
    pub fn wait_until_nothing_remains(&self) {
        eventually("that containers leave nothing", || {
            let remains = self.remains();
            if remains.is_nothing() {
                Ok(())
            } else {
                Err(remains)
            }
        });
    }

    /// What is there because of its containers.
    ///
    /// # Panics
    /// If the server has never run.
    #[must_use]
    pub fn remains(&self) -> Remains {
        let node = node(self.place()).expect("the server has a data directory");
        let root = Path::new(RUN_ROOT).join(&node);
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("every process has one");
        let mounts = mounts.lines().filter(|line| line.contains(&node));
        let mut processes = self.processes();
        processes.retain(|process| process.variable("RUNTARA_INSTANCE_ID").is_some());
        Remains {
            places: entries(&root)
                .iter()
                .flat_map(|kind| entries(kind))
                .collect(),
            cgroups: directories_of_cgroups(&node)
                .iter()
                .flat_map(|directory| entries(directory))
                .filter(|path| path.is_dir())
                .collect(),
            mounts: mounts.map(str::to_owned).collect(),
            processes,
        }
    }
}

/// The id of the server that has, or had, a place.
pub(crate) fn node(place: &Path) -> Option<String> {
    let node = fs::read_to_string(place.join("data/node")).ok()?;
    let node = node.trim().to_owned();
    (!node.is_empty()).then_some(node)
}

/// Removes what containers have left. Their processes, and those that made them, must have ended.
pub(crate) fn remove(place: &Path) {
    let Some(node) = node(place) else {
        return;
    };
    let root = Path::new(RUN_ROOT).join(&node);
    // What was mounted went with the shims, and under it is nothing.
    let kinds = entries(&root);
    let places = kinds.iter().flat_map(|kind| entries(kind));
    for directory in places.chain(kinds.clone()).chain([root]) {
        let _absent_or_stays = fs::remove_dir(directory);
    }
    for directory in directories_of_cgroups(&node) {
        for cgroup in entries(&directory).into_iter().chain([directory]) {
            let _no_directory_or_stays = fs::remove_dir(cgroup);
        }
    }
}

/// The cgroup of all containers of a server, in each hierarchy that there is.
fn directories_of_cgroups(node: &str) -> Vec<PathBuf> {
    let name = format!("runtara-{node}");
    let hierarchies = entries(Path::new(CGROUPS)).into_iter();
    hierarchies
        .chain([CGROUPS.into()])
        .map(|hierarchy| hierarchy.join(&name))
        .filter(|directory| directory.is_dir())
        .collect()
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}
