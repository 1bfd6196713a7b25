//! What this machine gives to containers, and the places that they have on it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::config::OciConfig;
use crate::finding::{Finding, Level};
use crate::machine::{self, Machine};
use crate::runtime::{self, RuntimeVersion};
use crate::spec::CgroupFeatures;

/// Where hierarchies of cgroups are mounted, everywhere.
const CGROUPS: &str = "/sys/fs/cgroup";

/// What was found of this machine.
pub(crate) struct Host {
    /// The program of the runtime, if there is one.
    pub(crate) runtime: Option<PathBuf>,
    /// What it says of itself.
    pub(crate) version: Option<RuntimeVersion>,
    pub(crate) machine: Machine,
    /// All that was found out, that about the runtime first.
    pub(crate) findings: Vec<Finding>,
    /// The directory of all containers' cgroups, below each hierarchy.
    pub(crate) cgroups: PathBuf,
    /// Where hierarchies of cgroups are mounted.
    hierarchies: Vec<PathBuf>,
}

impl Host {
    /// Looks at the machine, and makes the places that containers have on it. Blocking.
    pub(crate) fn look(config: &OciConfig) -> Self {
        let (runtime, version, finding) = find_runtime(config);
        let mut machine = machine::look(&config.data_dir, config.search_path.clone());
        machine.shifts_owners = config.shifts_owners.unwrap_or(machine.shifts_owners);
        machine.overlay = config.overlay.unwrap_or(machine.overlay);
        let mut findings = vec![finding];
        findings.extend(machine.findings.iter().cloned());
        findings.push(machine::look_at_ids(&config.ids));
        let mut host = Self {
            runtime,
            version,
            cgroups: Path::new("/").join(format!("runtara-{}", config.node)),
            hierarchies: match machine.cgroups.unified {
                true => vec![CGROUPS.into()],
                false => hierarchies(),
            },
            machine,
            findings,
        };
        if host.unfit().is_none()
            && let Err((path, error)) = host.make_places(config)
        {
            let text = format!(
                "'{}' cannot be used ({error}), where containers have their places",
                path.display()
            );
            host.findings
                .push(Finding::new("places of containers", Level::Unfit, text));
        }
        host
    }

    /// Why no container can be made here, with what to do.
    pub(crate) fn unfit(&self) -> Option<String> {
        let unfit = self
            .findings
            .iter()
            .filter(|finding| finding.level == Level::Unfit);
        let texts: Vec<_> = unfit.map(|finding| finding.text.as_str()).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }

    /// The cgroup of a container, as the runtime is told it: below each hierarchy.
    pub(crate) fn cgroup(&self, container: &str) -> PathBuf {
        self.cgroups.join(container)
    }

    /// Where the memory of a container is counted.
    pub(crate) fn memory_cgroup(&self, container: &str) -> PathBuf {
        let hierarchy = memory_hierarchy(self.machine.cgroups);
        below(&hierarchy, &self.cgroup(container))
    }

    /// The cgroup of a container in each hierarchy.
    pub(crate) fn cgroups_of(&self, container: &str) -> Vec<PathBuf> {
        let directories = self.cgroup_directories().into_iter();
        directories
            .map(|directory| directory.join(container))
            .collect()
    }

    /// The directory of all containers' cgroups in each hierarchy.
    pub(crate) fn cgroup_directories(&self) -> Vec<PathBuf> {
        let hierarchies = self.hierarchies.iter();
        hierarchies
            .map(|hierarchy| below(hierarchy, &self.cgroups))
            .collect()
    }

    /// Removes the places of containers if there are none.
    pub(crate) fn leave_places(&self, config: &OciConfig) {
        let mut places = self.cgroup_directories();
        places.extend([config.staging(), config.run_root.clone()]);
        for place in places {
            // Refused as long as there is a container in it.
            let _stays = fs::remove_dir(place);
        }
    }

    fn make_places(&self, config: &OciConfig) -> Result<(), (PathBuf, io::Error)> {
        // Anybody may pass, because the runtime looks up the root of a container as the container's root; nobody else may look around.
        for (path, mode) in [(config.run_root.clone(), 0o711), (config.staging(), 0o711)] {
            make_directory(&path, mode).map_err(|error| (path.clone(), error))?;
        }
        if let Some(closed) = config.run_root.ancestors().find(|path| is_closed(path)) {
            let error = io::Error::other("not everybody may pass through it; choose another place");
            return Err((closed.to_owned(), error));
        }
        let place = below(&memory_hierarchy(self.machine.cgroups), &self.cgroups);
        make_cgroup(&place, self.machine.cgroups).map_err(|error| (place, error))
    }
}

fn find_runtime(config: &OciConfig) -> (Option<PathBuf>, Option<RuntimeVersion>, Finding) {
    let unfit = |error: &runtime::RuntimeError| {
        Finding::new("OCI runtime", Level::Unfit, runtara_runner::describe(error))
    };
    let program = match runtime::find(&config.runtime, config.search_path.clone()) {
        Ok(program) => program,
        Err(error) => return (None, None, unfit(&error)),
    };
    match runtime::probe(&program) {
        Ok(version) => {
            let finding = runtime::assess(&version);
            (Some(program), Some(version), finding)
        }
        Err(error) => (Some(program), None, unfit(&error)),
    }
}

fn memory_hierarchy(features: CgroupFeatures) -> PathBuf {
    match features.unified {
        true => CGROUPS.into(),
        false => Path::new(CGROUPS).join("memory"),
    }
}

/// The hierarchies of the old version that are mounted.
fn hierarchies() -> Vec<PathBuf> {
    let entries = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

/// A cgroup in a hierarchy.
fn below(hierarchy: &Path, cgroup: &Path) -> PathBuf {
    hierarchy.join(cgroup.strip_prefix("/").unwrap_or(cgroup))
}

/// Makes the directory of all containers' cgroups. In the new version the controllers are handed down to it.
fn make_cgroup(place: &Path, features: CgroupFeatures) -> io::Result<()> {
    match fs::create_dir(place) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    if features.unified {
        for directory in place.parent().into_iter().chain([place]) {
            let control = directory.join("cgroup.subtree_control");
            fs::write(control, "+memory +pids +cpu")?;
        }
    }
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    // Set rather than made so: the server's umask may be anything.
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Whether there are users who may not pass through a directory.
fn is_closed(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.permissions().mode() & 0o001 == 0)
}
