//! What this machine gives to containers, and the places that they have on it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use runtara_domain::NetworkMode;
use rustix::fs::{Access, access};

use crate::config::OciConfig;
use crate::finding::{Finding, Level};
use crate::machine::{self, CGROUPS, Machine, PROCS};
use crate::runtime::{self, RuntimeVersion};
use crate::spec::CgroupFeatures;

/// The file of a cgroup of version 2 that says what is divided among those below it.
const DIVIDED: &str = "cgroup.subtree_control";

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
        let mut host = Self::find_out(config);
        if host.unfit().is_none() {
            match host.make_places(config) {
                Ok(place) => host.look_at_swap(&place),
                Err((path, error)) => host.findings.push(no_place(&path, &error)),
            }
        }
        host
    }

    /// Looks at the machine as [`Host::look`] does, and leaves it as it is: where places are to be made it is only asked whether they could
    /// be. Blocking.
    pub(crate) fn only_look(config: &OciConfig) -> Self {
        let mut host = Self::find_out(config);
        if host.unfit().is_none()
            && let Err((path, error)) = host.ask_for_places(config)
        {
            host.findings.push(no_place(&path, &error));
        }
        host
    }

    fn find_out(config: &OciConfig) -> Self {
        let (runtime, version, finding) = find_runtime(config);
        let data_dir = nearest(&config.data_dir);
        let mut machine = machine::look(data_dir, config.search_path.clone());
        machine.shifts_owners = config.shifts_owners.unwrap_or(machine.shifts_owners);
        machine.overlay = config.overlay.unwrap_or(machine.overlay);
        let mut findings = vec![finding];
        findings.extend(machine.findings.iter().cloned());
        tell_what_is_allowed(&config.allowed_networks, &mut findings);
        findings.push(machine::look_at_ids(&config.ids));
        Self {
            runtime,
            version,
            cgroups: Path::new("/").join(format!("runtara-{}", config.node)),
            hierarchies: match machine.cgroups.unified {
                true => vec![CGROUPS.into()],
                false => hierarchies(),
            },
            machine,
            findings,
        }
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
        // Refused as long as there is a container in it, also one that is just being made: it needs the other places, too.
        if fs::remove_dir(config.staging()).is_err() {
            return;
        }
        let places = self.cgroup_directories().into_iter();
        for place in places.chain([config.run_root.clone()]) {
            let _stays = fs::remove_dir(place);
        }
    }

    /// In version 2 it is only told by cgroups that count memory: here is one.
    fn look_at_swap(&mut self, place: &Path) {
        if !self.machine.cgroups.unified {
            return;
        }
        let counted = machine::is_swap_counted_in(place);
        self.machine.cgroups.swap = counted;
        self.findings
            .retain(|finding| finding.about != machine::SWAP);
        self.findings.extend(machine::told_of_swap(Some(counted)));
    }

    /// Gives the cgroup that is the place of all containers'.
    fn make_places(&self, config: &OciConfig) -> Result<PathBuf, (PathBuf, io::Error)> {
        // Anybody may pass, because the runtime looks up the root of a container as the container's root; nobody else may look around.
        for (path, mode) in [(config.run_root.clone(), 0o711), (config.staging(), 0o711)] {
            make_directory(&path, mode).map_err(|error| (path.clone(), error))?;
        }
        open_to_all(&config.run_root)?;
        let place = below(&memory_hierarchy(self.machine.cgroups), &self.cgroups);
        match make_cgroup(&place, self.machine.cgroups) {
            Ok(()) => Ok(place),
            Err(error) => Err((place, error)),
        }
    }

    fn ask_for_places(&self, config: &OciConfig) -> Result<(), (PathBuf, io::Error)> {
        // Its own mode is set when it is made.
        if let Some(parent) = config.run_root.parent() {
            open_to_all(parent)?;
        }
        let hierarchy = memory_hierarchy(self.machine.cgroups);
        for place in [nearest(&config.run_root), &hierarchy] {
            access(place, Access::WRITE_OK).map_err(|errno| (place.to_owned(), errno.into()))?;
        }
        if self.machine.cgroups.unified {
            ask_to_divide(&hierarchy).map_err(|error| (hierarchy, error))?;
        }
        Ok(())
    }
}

/// What a finding about a network mode says is as it should be where the operator does not allow the mode: nothing is to be installed.
fn tell_what_is_allowed(allowed: &[NetworkMode], findings: &mut [Finding]) {
    for finding in findings {
        let mode = finding.about.strip_prefix(machine::NETWORK_MODE);
        let mode = mode.and_then(|mode| mode.parse::<NetworkMode>().ok());
        if mode.is_some_and(|mode| !allowed.contains(&mode)) {
            finding.level = Level::Fine;
            finding.text =
                "the operator does not allow it (RUNTARA_ALLOWED_NETWORK_MODES)".to_owned();
        }
    }
}

fn no_place(path: &Path, error: &io::Error) -> Finding {
    let text = format!(
        "'{}' cannot be used ({error}), where containers have their places",
        path.display()
    );
    Finding::new("places of containers", Level::Unfit, text)
}

/// The path, or what of it there is already.
fn nearest(path: &Path) -> &Path {
    let mut ancestors = path.ancestors();
    ancestors.find(|path| path.exists()).unwrap_or(path)
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
            ask_to_divide(directory)?;
            let controllers = machine::CONTROLLERS.map(|name| format!("+{name}"));
            fs::write(directory.join(DIVIDED), controllers.join(" "))?;
        }
    }
    Ok(())
}

/// Says what to do if the kernel would not let a cgroup of version 2 be divided: any but the root of all, in which there are processes
/// (cgroups(7)). So it is in a container, whose processes are in what it sees as the root.
fn ask_to_divide(directory: &Path) -> io::Result<()> {
    let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
    let divided = read(DIVIDED);
    let is_divided = |name: &&str| divided.split_whitespace().any(|divided| divided == *name);
    let is_root = !directory.join("cgroup.type").exists();
    let has_processes = !read(PROCS).trim().is_empty();
    if is_root || !has_processes || machine::CONTROLLERS.iter().all(is_divided) {
        return Ok(());
    }
    let place = directory.display();
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!(
            "there are processes in the cgroup '{place}', so the kernel does not let it be divided; move them into one below before the \
             server starts: mkdir {place}/init && for process in $(cat {place}/cgroup.procs); do echo $process > {place}/init/cgroup.procs; \
             done"
        ),
    ))
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

/// Says which directory of a path not everybody may pass through, if there is one.
fn open_to_all(path: &Path) -> Result<(), (PathBuf, io::Error)> {
    match path.ancestors().find(|path| is_closed(path)) {
        None => Ok(()),
        Some(closed) => {
            let error = io::Error::other("not everybody may pass through it; choose another place");
            Err((closed.to_owned(), error))
        }
    }
}

/// Whether there are users who may not pass through a directory.
fn is_closed(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.permissions().mode() & 0o001 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(place: &Path) -> OciConfig {
        let mut config = OciConfig::new(&place.join("not/yet/there"), "looked-at");
        config.run_root = place.join("run/looked-at");
        config
    }

    #[test]
    fn a_look_makes_nothing() {
        let place = tempfile::tempdir().unwrap();
        let host = Host::only_look(&config(place.path()));
        assert!(host.findings.len() > 8, "{:#?}", host.findings);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        for made in host.cgroup_directories() {
            assert!(!made.exists(), "{}", made.display());
        }
    }

    #[test]
    fn a_runtime_that_is_not_there_is_told_with_what_to_install() {
        let place = tempfile::tempdir().unwrap();
        let mut config = config(place.path());
        config.runtime = "/no/such/runc".to_owned();
        let host = Host::only_look(&config);
        assert_eq!(host.findings[0].level, Level::Unfit);
        let unfit = host.unfit().unwrap();
        assert!(unfit.contains("apt install runc"), "{unfit}");
    }

    #[test]
    fn a_place_that_not_everybody_may_pass_to_is_told_before_it_is_made() {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let host = Host::only_look(&config(place.path()));
        let (path, error) = host.ask_for_places(&config(place.path())).unwrap_err();
        assert_eq!(path, place.path());
        assert!(error.to_string().contains("not everybody"), "{error}");
    }

    #[test]
    fn a_cgroup_with_processes_that_is_not_the_root_is_told_with_what_to_do() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(place.path().join(name), text).unwrap();
        write("cgroup.procs", "1\n12\n");
        write(DIVIDED, "memory\n");
        ask_to_divide(place.path()).expect("the root of all can be divided");
        write("cgroup.type", "domain\n");
        let error = ask_to_divide(place.path()).unwrap_err().to_string();
        let place_named = place.path().display().to_string();
        assert!(
            error.contains(&format!("mkdir {place_named}/init")),
            "{error}"
        );
        write(DIVIDED, "cpu memory pids\n");
        ask_to_divide(place.path()).expect("it is divided already");
        write(DIVIDED, "");
        write("cgroup.procs", "");
        ask_to_divide(place.path()).expect("nothing is in it");
    }

    #[test]
    fn nothing_is_to_be_installed_for_a_network_mode_that_is_not_allowed() {
        let missing = |about| Finding::new(about, Level::Warning, "slirp4netns is missing");
        let mut findings = [missing(machine::EGRESS), missing("swap")];
        tell_what_is_allowed(&[NetworkMode::Egress], &mut findings);
        assert_eq!(findings[0].level, Level::Warning);
        tell_what_is_allowed(&[NetworkMode::Isolated], &mut findings);
        assert_eq!(findings[0].level, Level::Fine);
        assert!(
            findings[0].text.contains("does not allow"),
            "{}",
            findings[0].text
        );
        assert_eq!(findings[1].level, Level::Warning);
    }
}
