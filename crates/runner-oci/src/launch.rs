//! Makes the files of a run: what its shim is to make a container of.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use runtara_domain::NetworkMode;
use runtara_runner::shim::{ProcessLimits, Program, Recipe};
use runtara_runner::{
    LaunchSpec, ProgramPaths, RunDirectories, RunDirectory, RunKey, ShimRunPlaces, naming,
};

use crate::IdRange;
use crate::config::OciConfig;
use crate::host::Host;
use crate::images::Ready;
use crate::plan::{ContainerPlan, CoreRelay, PlannedFile, paths_in};
use crate::rootfs::RootKind;
use crate::settings::Given;
use crate::shim::{INPUT_FILE, OUTPUT_FILE};
use crate::spec::{Container, RUN_DIRECTORY, SpecError, configuration, container_env, hostname};

/// The port of its own loopback at which a program finds the core.
const CORE_PORT: u16 = 8001;

/// One launch: what is to be made, of what, and with what.
pub(crate) struct Launch<'a> {
    pub(crate) config: &'a OciConfig,
    pub(crate) host: &'a Host,
    pub(crate) runtime: &'a Path,
    pub(crate) image: &'a Ready,
    pub(crate) given: Given,
    pub(crate) ids: IdRange,
    pub(crate) spec: &'a LaunchSpec,
}

/// Says why a run has no files.
pub(crate) enum NotMade {
    /// The image, or what its start asks for.
    Image(SpecError),
    /// There is something of that run already, which is left alone.
    Taken(io::Error),
    /// This machine.
    Host(io::Error),
}

/// The id of the container of a run, which no other run has: from the whole id of the instance, and its run number.
pub(crate) fn container_id(key: &RunKey) -> String {
    format!("rt-{}-{}", key.instance_id.letters(), key.run_number)
}

/// What is told of a run that its shim parents.
pub(crate) fn places_of_run(
    key: &RunKey,
    directory: RunDirectory,
    core_addr: Option<String>,
) -> ShimRunPlaces {
    ShimRunPlaces {
        key: key.clone(),
        output: directory.path().join(OUTPUT_FILE),
        // The shim put it there.
        output_owner: None,
        directory,
        core_addr,
    }
}

impl Launch<'_> {
    /// Where the program is told that the core listens, if it reaches it by an address of the host.
    pub(crate) fn core_addr(&self) -> Option<String> {
        (self.given.network == NetworkMode::Host).then(|| self.spec.core_addr.clone())
    }

    /// Makes all files of the run, `run.json` last. Blocking.
    pub(crate) fn make(&self, directories: &RunDirectories) -> Result<(), NotMade> {
        let id = container_id(&self.spec.key);
        let staging = self.config.staging().join(&id);
        let plan = self.plan(id, staging.clone()).map_err(NotMade::Image)?;
        let directory = directories.create(&self.spec.key).map_err(not_made)?;
        let made = self.fill(directories, &directory, &staging, &plan);
        let made = made.map_err(not_made);
        // Nothing has been started. What cannot be removed either is found and cleaned like that of any other run.
        if made.is_err() {
            let _stays = fs::remove_dir(&staging);
        }
        if let Err(NotMade::Host(_)) = &made {
            let _stays = directories.remove(&self.spec.key, false);
        }
        made
    }

    fn fill(
        &self,
        directories: &RunDirectories,
        directory: &RunDirectory,
        staging: &Path,
        plan: &ContainerPlan,
    ) -> io::Result<()> {
        make_staging(staging).map_err(|error| naming("make the directory", staging, error))?;
        directories.put_input(&directory.path().join(INPUT_FILE), &self.spec.input)?;
        directories.put_program(directory, self.program(directory, plan)?)
    }

    fn program(&self, directory: &RunDirectory, plan: &ContainerPlan) -> io::Result<Program> {
        let timeout_ms = u64::try_from(self.spec.timeout.as_millis()).unwrap_or(u64::MAX);
        Ok(Program {
            executable: plan.runtime.clone(),
            args: Vec::new(),
            env: Vec::new(),
            work: directory.path().to_owned(),
            stdin: Some(directory.path().join(INPUT_FILE)),
            user: None,
            limits: ProcessLimits::default(),
            cgroup: Some(self.host.memory_cgroup(&plan.id)),
            container: Some(Recipe::write(plan)?),
            oom_score_adj: None,
            nice: None,
            timeout_ms,
            expires_in_ms: self
                .spec
                .expires_in
                .map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
            made_within_ms: None,
            log_cap_bytes: self.config.log_cap_bytes,
        })
    }

    fn plan(&self, id: String, staging: PathBuf) -> Result<ContainerPlan, SpecError> {
        let (root, run_directory) = paths_in(&staging);
        let hostname = hostname(&self.spec.key.instance_id);
        let env = self.env();
        let container = Container {
            image: &self.image.config,
            args: &self.spec.args,
            env: &env,
            limits: &self.given.limits,
            network: self.given.network,
            hostname: hostname.clone(),
            rootfs: &root,
            read_only: self.given.read_only,
            run_directory: &run_directory,
            ids: self.ids,
            cgroup: &self.host.cgroup(&id),
            cgroups: self.host.machine.cgroups,
            oom_score_adj: self.config.oom_score_adj,
            hooks: None,
        };
        let user = &self.image.config.user;
        // Known of this one only.
        let version = self.host.version.as_ref();
        let late_configuration = version.is_some_and(|version| version.name == "runc");
        Ok(ContainerPlan {
            late_configuration,
            configuration: configuration(&container)?,
            runtime: self.runtime.to_owned(),
            layers: self.image.layers.clone(),
            root: match self.host.machine.overlay {
                true => RootKind::Overlay,
                false => RootKind::Copy,
            },
            shift_owners: self.host.machine.shifts_owners,
            cgroups: self.host.cgroups_of(&id),
            ids: self.ids,
            writable_bytes: self.given.limits.writable_bytes,
            user: (user.uid, user.gid),
            files: files(&hostname),
            stop_signal: self.image.config.stop_signal.unwrap_or(libc::SIGTERM),
            core: self.given.network.is_own().then(|| CoreRelay {
                port: CORE_PORT,
                socket: self.config.core_socket(),
            }),
            egress: match self.given.network {
                NetworkMode::Egress => self.host.machine.egress.clone(),
                NetworkMode::Isolated | NetworkMode::Host => None,
            },
            id,
            staging,
        })
    }

    fn env(&self) -> std::collections::BTreeMap<String, String> {
        let run_dir = Path::new(RUN_DIRECTORY);
        let (input_file, output_file) = (run_dir.join(INPUT_FILE), run_dir.join(OUTPUT_FILE));
        let paths = ProgramPaths {
            run_dir,
            input_file: &input_file,
            output_file: &output_file,
        };
        match self.given.network.is_own() {
            false => container_env(&self.image.config, self.spec, paths),
            true => {
                let spec = LaunchSpec {
                    core_addr: format!("127.0.0.1:{CORE_PORT}"),
                    ..self.spec.clone()
                };
                container_env(&self.image.config, &spec, paths)
            }
        }
    }
}

/// What every container finds in `/etc`, as the field has it: its own name, and that of its loopback.
fn files(hostname: &str) -> Vec<PlannedFile> {
    let file = |name: &str, content: String| PlannedFile {
        directory: "etc".to_owned(),
        name: name.to_owned(),
        content,
    };
    let hosts = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost\n");
    vec![
        file("hosts", hosts),
        file("hostname", format!("{hostname}\n")),
    ]
}

/// Makes the directory on which the container is mounted. Nothing of the host is ever in it, so one that is there is as good as new.
fn make_staging(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o711).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// What exists already is somebody else's; everything else is this machine's fault.
fn not_made(error: io::Error) -> NotMade {
    match error.kind() {
        io::ErrorKind::AlreadyExists => NotMade::Taken(error),
        _ => NotMade::Host(error),
    }
}
