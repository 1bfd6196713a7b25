//! What the tests share: a launcher, an image with busybox, and plans of containers.

use std::fs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use runtara_domain::{NetworkMode, ResourceLimits};
use runtara_runner::shim::{
    ExitRecord, Found, Launcher, LogReader, LogStream, ProcessLimits, Program, Recipe, Shim,
    ShimProgram, look, write_run_file,
};
use runtara_runner::{RunDirectory, Spares};
use runtara_runner_oci::limits::{LimitSources, Limits, merge};
use runtara_runner_oci::machine::{EgressProgram, Machine};
use runtara_runner_oci::plan::{ContainerPlan, CoreRelay, paths_in};
use runtara_runner_oci::rootfs::RootKind;
use runtara_runner_oci::spec::{Container, ImageConfig, configuration};
use runtara_runner_oci::{IdRange, IdRanges, USUAL_BASE};

use crate::image;

/// Longer than anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Plays one test to its end.
pub(crate) fn play(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        tokio::time::timeout(2 * PATIENCE, test)
            .await
            .expect("the test ends");
    });
}

/// A server's launcher and its directories.
pub(crate) struct Stage {
    root: tempfile::TempDir,
    machine: Machine,
    launcher: Launcher,
    spares: Spares,
    pub(crate) limits: ResourceLimits,
    pub(crate) stop_signal: i32,
    pub(crate) timeout: Duration,
    pub(crate) made_within: Duration,
    pub(crate) core: Option<CoreRelay>,
    pub(crate) egress: Option<EgressProgram>,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "containers are made by root; run the tests as root"
        );
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let closed = root.path().join("data");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        image::make_layer(&closed.join("layer"));
        Self {
            machine: image::look(&closed),
            launcher: Launcher::start(ShimProgram::ThisProgram).await.unwrap(),
            spares: Spares::open(closed.join("spares")).unwrap(),
            limits: ResourceLimits::default(),
            stop_signal: 15,
            timeout: PATIENCE,
            made_within: 2 * PATIENCE,
            core: None,
            egress: None,
            root,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn limits(&self) -> Limits {
        let ceiling = ResourceLimits {
            open_files: Some(self.machine.open_files),
            ..ResourceLimits::default()
        };
        merge(&LimitSources {
            start: self.limits,
            ceiling,
            ..LimitSources::default()
        })
        .unwrap()
    }

    /// A container in which a shell runs this script.
    pub(crate) fn plan(&self, script: &str) -> ContainerPlan {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let range = (std::process::id() * 16 + number) % IdRanges::USUAL_COUNT;
        let ids = IdRange::starting_at(USUAL_BASE + range * 65_536).unwrap();
        let id = format!("runtara-shim-test-{}-{number}", std::process::id());
        let staging = self.path(&format!("staging-{number}"));
        fs::create_dir(&staging).unwrap();
        let image = ImageConfig {
            entrypoint: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            ..ImageConfig::default()
        };
        if !self.machine.shifts_owners {
            image::give_to(ids, &self.path("data/layer"));
        }
        let limits = self.limits();
        let (root, run_directory) = paths_in(&staging);
        let container = Container {
            image: &image,
            args: &[],
            env: &[("PATH".to_owned(), "/bin".to_owned())].into(),
            limits: &limits,
            network: NetworkMode::Isolated,
            hostname: "order-7".to_owned(),
            rootfs: &root,
            read_only: false,
            run_directory: &run_directory,
            ids,
            cgroup: &Path::new("/").join(&id),
            cgroups: self.machine.cgroups,
            oom_score_adj: None,
            hooks: None,
        };
        ContainerPlan {
            configuration: configuration(&container).unwrap(),
            runtime: image::runtime(),
            cgroups: cgroups(&id),
            id,
            layers: vec![self.path("data/layer")],
            root: RootKind::Overlay,
            shift_owners: self.machine.shifts_owners,
            late_configuration: true,
            ids,
            writable_bytes: limits.writable_bytes,
            user: (0, 0),
            files: Vec::new(),
            stop_signal: self.stop_signal,
            core: self.core.clone(),
            egress: self.egress.clone(),
            staging,
        }
    }

    /// Has a shim make a container.
    pub(crate) async fn launch(&self, plan: ContainerPlan) -> Run<'_> {
        let directory = RunDirectory::at(self.path(&format!("data/{}", plan.id)));
        fs::create_dir(directory.path()).unwrap();
        let input = directory.path().join("input.json");
        fs::write(&input, "{\"n\":1}").unwrap();
        let program = Program {
            executable: plan.runtime.clone(),
            args: Vec::new(),
            env: Vec::new(),
            work: directory.path().to_owned(),
            stdin: Some(input),
            user: None,
            limits: ProcessLimits::default(),
            cgroup: Some(memory_cgroup(&plan.id)),
            container: Some(Recipe::write(&plan).unwrap()),
            oom_score_adj: None,
            nice: None,
            timeout_ms: u64::try_from(self.timeout.as_millis()).unwrap(),
            expires_in_ms: None,
            made_within_ms: Some(u64::try_from(self.made_within.as_millis()).unwrap()),
            log_cap_bytes: 1 << 20,
        };
        write_run_file(&self.spares, &directory.run_file(), program).unwrap();
        let shim = self.launcher.launch(&directory).await.unwrap();
        Run {
            shim,
            directory,
            plan,
            _stage: self,
        }
    }

    /// Runs a script in a container to its end.
    pub(crate) async fn run(&self, script: &str) -> Ended {
        self.launch(self.plan(script)).await.end().await
    }
}

/// Where the memory of the container is counted.
pub(crate) fn memory_cgroup(id: &str) -> PathBuf {
    let old = Path::new("/sys/fs/cgroup/memory");
    let root = if old.exists() {
        old
    } else {
        Path::new("/sys/fs/cgroup")
    };
    root.join(id)
}

/// The cgroup of the container in each hierarchy.
pub(crate) fn cgroups(id: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if !root.join("memory").exists() {
        return vec![root.join(id)];
    }
    let entries = fs::read_dir(root).unwrap().flatten();
    let directories = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    directories.map(|entry| entry.path().join(id)).collect()
}

/// A run of a container.
pub(crate) struct Run<'a> {
    pub(crate) shim: Shim,
    pub(crate) directory: RunDirectory,
    pub(crate) plan: ContainerPlan,
    _stage: &'a Stage,
}

/// How a run ended, and what it wrote.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) record: ExitRecord,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) directory: RunDirectory,
}

impl Run<'_> {
    pub(crate) async fn end(self) -> Ended {
        self.shim.ended().await.unwrap();
        let record = match found(&self.directory).await {
            Found::Exited(record) => record,
            other => panic!("{other:?}"),
        };
        // The exit is told before the container is removed.
        until("the container is removed", || !self.is_there()).await;
        Ended {
            record,
            stdout: self.log(LogStream::Stdout),
            stderr: self.log(LogStream::Stderr),
            directory: self.directory,
        }
    }

    pub(crate) fn log(&self, stream: LogStream) -> String {
        let chunk = LogReader::new(&self.directory, stream).read(0, 1 << 20);
        String::from_utf8(chunk.unwrap().bytes).unwrap()
    }

    /// Waits until the program has written something.
    pub(crate) async fn wrote(&self, text: &str) {
        until(text, || self.log(LogStream::Stdout).contains(text)).await;
    }

    /// Does what the server does for a killed shim: what is left are empty directories.
    pub(crate) fn remove_places(&self) {
        for place in self.plan.cgroups.iter().chain([&self.plan.staging]) {
            match fs::remove_dir(place) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.unwrap(),
            }
        }
    }

    /// Whether anything of the container is there.
    pub(crate) fn is_there(&self) -> bool {
        let cgroup = memory_cgroup(&self.plan.id);
        self.plan.staging.exists()
            || cgroup.exists()
            || cgroups(&self.plan.id).iter().any(|place| place.exists())
    }
}

pub(crate) async fn found(directory: &RunDirectory) -> Found {
    let directory = directory.clone();
    tokio::task::spawn_blocking(move || look(&directory))
        .await
        .unwrap()
        .unwrap()
}

pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let late = tokio::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(tokio::time::Instant::now() < late, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether the kernel tells how much memory a cgroup had at most. Of version 2 it does so since Linux 5.19.
pub(crate) fn tells_peaks() -> bool {
    let root = Path::new("/sys/fs/cgroup");
    if !root.join("cgroup.subtree_control").exists() {
        return true;
    }
    let place = root.join(format!("runtara-peak-{}", std::process::id()));
    fs::create_dir(&place).unwrap();
    let is_told = place.join("memory.peak").exists();
    fs::remove_dir(place).unwrap();
    is_told
}
