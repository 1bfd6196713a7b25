//! One container, from its layers to its end.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitStatus, waitpid};
use runtara_domain::{NetworkMode, ResourceLimits};
use runtara_runner_oci::limits::{LimitSources, Limits, merge};
use runtara_runner_oci::machine::Machine;
use runtara_runner_oci::rootfs::{
    RootFile, RootKind, RootfsPlan, UserNamespace, enter_private_mounts, mount_rootfs,
};
use runtara_runner_oci::runtime::{NewContainer, Runtime, Streams};
use runtara_runner_oci::spec::{Container, ImageConfig, configuration, write_configuration};
use runtara_runner_oci::{IdRange, IdRanges, USUAL_BASE};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, set_child_subreaper};
use tempfile::TempDir;

use crate::image;

/// Longest life of a container of a test.
const DEADLINE: Duration = Duration::from_secs(60);

/// A container that is to run once.
pub(crate) struct Trial {
    directory: TempDir,
    pub(crate) machine: Machine,
    pub(crate) runtime: Runtime,
    pub(crate) id: String,
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) image: ImageConfig,
    pub(crate) env: Vec<(&'static str, &'static str)>,
    pub(crate) limits: ResourceLimits,
    pub(crate) network: NetworkMode,
    pub(crate) ids: IdRange,
    pub(crate) read_only: bool,
    pub(crate) shift_owners: bool,
    pub(crate) files: Vec<RootFile<'static>>,
}

/// How a container ended, and what it wrote.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: WaitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Trial {
    /// A container whose program is a shell script. The calling thread gets mounts of its own.
    pub(crate) fn new(script: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "containers are made by root; run the tests as root"
        );
        enter_private_mounts().unwrap();
        set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for made in ["closed", "staging", "bundle"] {
            fs::create_dir(directory.path().join(made)).unwrap();
        }
        // As a data directory is, in which layers lie.
        let closed = directory.path().join("closed");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let layer = closed.join("layer");
        image::make_layer(&layer);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let range = (std::process::id() * 16 + number) % IdRanges::USUAL_COUNT;
        let program = image::runtime();
        let machine = image::look(&closed);
        Self {
            shift_owners: machine.shifts_owners,
            machine,
            runtime: Runtime::new(program, directory.path().join("state")),
            id: format!("runtara-test-{}-{number}", std::process::id()),
            layers: vec![layer],
            image: ImageConfig {
                entrypoint: ["/bin/sh", "-c", script].map(str::to_owned).into(),
                ..ImageConfig::default()
            },
            env: vec![("PATH", "/bin")],
            limits: ResourceLimits::default(),
            network: NetworkMode::Isolated,
            ids: IdRange::starting_at(USUAL_BASE + range * 65_536).unwrap(),
            read_only: false,
            files: Vec::new(),
            directory,
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn cgroup(&self) -> PathBuf {
        Path::new("/").join(&self.id)
    }

    fn limits(&self) -> Limits {
        let sources = LimitSources {
            start: self.limits,
            ceiling: ResourceLimits {
                open_files: Some(self.machine.open_files),
                ..ResourceLimits::default()
            },
            ..LimitSources::default()
        };
        merge(&sources).unwrap()
    }

    /// Runs it to its end.
    pub(crate) fn run(&self) -> Outcome {
        self.start().unwrap().end()
    }

    /// Makes it, or says why not.
    pub(crate) fn start(&self) -> Result<Running<'_>, String> {
        let limits = self.limits();
        let owners = self
            .shift_owners
            .then(|| UserNamespace::new(self.ids).unwrap());
        if !self.machine.shifts_owners {
            for layer in self.layers.iter().filter(|layer| layer.exists()) {
                image::give_to(self.ids, layer);
            }
        }
        let plan = RootfsPlan {
            staging: &self.directory().join("staging"),
            layers: &self.layers,
            root: RootKind::Overlay,
            shift_owners: owners.as_ref().map(UserNamespace::descriptor),
            ids: self.ids,
            writable_bytes: limits.writable_bytes,
            user: (self.image.user.uid, self.image.user.gid),
            wishes: None,
            files: &self.files,
        };
        let rootfs = mount_rootfs(&plan).map_err(|error| told(&error))?;
        let env = self
            .env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let container = Container {
            image: &self.image,
            args: &[],
            env: &env.collect(),
            limits: &limits,
            network: self.network,
            hostname: "order-7".to_owned(),
            rootfs: &rootfs.root,
            read_only: self.read_only,
            run_directory: &rootfs.run_directory,
            ids: self.ids,
            cgroup: &self.cgroup(),
            cgroups: self.machine.cgroups,
            oom_score_adj: None,
            hooks: None,
        };
        let spec = configuration(&container).map_err(|error| told(&error))?;
        let bundle = self.directory().join("bundle");
        write_configuration(&spec, &bundle).unwrap();
        let output = |name: &str| File::create(self.directory().join(name)).unwrap().into();
        let streams = Streams {
            stdin: File::open("/dev/null").unwrap().into(),
            stdout: output("stdout"),
            stderr: output("stderr"),
        };
        let new = NewContainer {
            id: &self.id,
            bundle: &bundle,
            pid_file: &bundle.join("pid"),
            log_file: &bundle.join("log"),
        };
        let made = self.runtime.run_detached(&new, streams, DEADLINE, None);
        let mut running = Running {
            trial: self,
            pid: 0,
            ended: false,
        };
        made.map_err(|error| told(&error))?;
        running.pid = fs::read_to_string(new.pid_file).unwrap().parse().unwrap();
        Ok(running)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // The mounts go with this thread, which is too late to remove what is under them.
        let staging = self.directory().join("staging");
        while rustix::mount::unmount(&staging, UnmountFlags::DETACH).is_ok() {}
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let removed = self.trial.runtime.delete(&self.trial.id, DEADLINE);
        if !self.ended && self.pid != 0 {
            let _reaped = waitpid(nix::unistd::Pid::from_raw(self.pid), None);
        }
        if !std::thread::panicking() {
            removed.unwrap();
            assert_eq!(
                self.trial.runtime.state(&self.trial.id, DEADLINE).unwrap(),
                None
            );
        }
    }
}

/// A container that lives.
pub(crate) struct Running<'a> {
    trial: &'a Trial,
    pub(crate) pid: i32,
    ended: bool,
}

impl Running<'_> {
    /// Waits until its program has written a line.
    pub(crate) fn has_written(&self, line: &str) {
        let stdout = self.trial.directory().join("stdout");
        let begun = Instant::now();
        loop {
            let written = fs::read_to_string(&stdout).unwrap();
            if written.lines().any(|found| found == line) {
                return;
            }
            assert!(begun.elapsed() < DEADLINE, "no {line:?} in {written:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end.
    pub(crate) fn end(self) -> Outcome {
        self.end_and(|| ())
    }

    /// Waits for its end, and looks at something before it is removed.
    pub(crate) fn end_and(mut self, look: impl FnOnce()) -> Outcome {
        let pid = Pid::from_raw(self.pid).unwrap();
        let exit = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let mut polled = [PollFd::new(exit.as_fd(), PollFlags::POLLIN)];
        let begun = Instant::now();
        poll(&mut polled, PollTimeout::try_from(DEADLINE).unwrap()).unwrap();
        if begun.elapsed() >= DEADLINE {
            kill_process(pid, Signal::KILL).unwrap();
        }
        let status = waitpid(nix::unistd::Pid::from_raw(self.pid), None).unwrap();
        self.ended = true;
        look();
        let read = |name: &str| fs::read(self.trial.directory().join(name)).unwrap();
        Outcome {
            status,
            stdout: String::from_utf8_lossy(&read("stdout")).into_owned(),
            stderr: String::from_utf8_lossy(&read("stderr")).into_owned(),
        }
    }
}

impl Outcome {
    /// What it wrote, if it left with 0.
    pub(crate) fn succeeded(&self) -> &str {
        assert!(matches!(self.status, WaitStatus::Exited(_, 0)), "{self:#?}");
        &self.stdout
    }
}

/// Runs a script in an ordinary container, and gives what it wrote.
pub(crate) fn output_of(script: &str) -> String {
    Trial::new(script).run().succeeded().to_owned()
}

fn told(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}
