//! Sets up the runners.

use std::path::Path;
use std::sync::Arc;

use nix::unistd::geteuid;
use runtara_domain::RunnerKind;
use runtara_http::environment::MachineCheck;
use runtara_runner::shim::{CgroupRoot, Launcher, ProcessLimits, ShimProgram};
use runtara_runner::{
    CallTracker, InstanceCalls, InstanceRoutes, Readiness, RunDirectories, Runner, blocking,
};
use runtara_runner_native::{NativeConfig, NativeRunner};
use runtara_runner_oci::{OciConfig, OciRunner};
use tracing::{info, warn};

use crate::config::{Config, Mode, Problem};
use crate::data_dir::DataDir;
use crate::report::checks;
use crate::{Error, native_user};

/// The runners of this server, and what each kind says of itself.
pub(crate) struct Runners {
    /// All of them: also one that launches nothing here minds what a server before this one has launched.
    pub(crate) all: Vec<Arc<dyn Runner>>,
    /// The kinds that can be launched.
    pub(crate) kinds: Vec<RunnerKind>,
    pub(crate) report: Vec<(String, bool, String)>,
    /// What was found out about this machine.
    pub(crate) machine: Vec<MachineCheck>,
}

/// What is said of a kind whose runner is not in this build.
#[cfg(not(feature = "wasm"))]
pub(crate) const NOT_BUILT: &str =
    "this build has no runner of this kind; build it with the feature 'wasm'";

/// By what guests in this process speak.
#[cfg_attr(not(feature = "wasm"), expect(dead_code, reason = "there are none"))]
pub(crate) struct Speaking {
    pub(crate) calls: Arc<dyn InstanceCalls>,
    pub(crate) routes: Arc<dyn InstanceRoutes>,
    pub(crate) tracker: CallTracker,
}

/// Sets up the runners of this build.
pub(crate) async fn set_up(
    config: &Config,
    data_dir: &DataDir,
    speaking: Speaking,
) -> Result<Runners, Error> {
    let launcher = Launcher::start(ShimProgram::ThisProgram)
        .await
        .map_err(|error| Error::Part {
            what: "the launcher of programs",
            source: error.into(),
        })?;
    let parts = Parts {
        launcher: Arc::new(launcher),
        directories: directories(data_dir).await?,
    };
    let native = native_runner(config, data_dir, user(config)?, &parts).await?;
    let directories = Arc::clone(&parts.directories);
    let containers = oci_runner(config, data_dir, parts).await?;
    let mut runners = Runners {
        all: Vec::new(),
        kinds: Vec::new(),
        report: Vec::new(),
        machine: checks(containers.findings()),
    };
    runners.add(Arc::new(containers)).await;
    runners.add(Arc::new(native)).await;
    add_guests(&mut runners, config, data_dir, directories, speaking).await?;
    Ok(runners)
}

/// How guests are run by a server with this configuration.
#[cfg(feature = "wasm")]
fn wasm_config(config: &Config, data_dir: &Path) -> runtara_runner_wasm::WasmConfig {
    let mut wasm = runtara_runner_wasm::WasmConfig::new(data_dir);
    wasm.max_instances = config.guests.max_instances;
    wasm.default_memory_bytes = config.guests.memory_bytes;
    wasm.max_memory_bytes = config.guests.max_memory_bytes;
    wasm.max_writable_bytes = config.guests.max_writable_bytes;
    wasm.allowed_hosts = config.guests.allowed_hosts.clone().into();
    wasm.log_cap_bytes = config.log_bytes;
    wasm
}

/// Whether this machine runs guests, and how, or why not.
#[cfg(feature = "wasm")]
pub(crate) fn guests(config: &Config) -> Result<String, String> {
    runtara_runner_wasm::look(&wasm_config(config, &config.data_dir))
}

#[cfg(feature = "wasm")]
async fn add_guests(
    runners: &mut Runners,
    config: &Config,
    data_dir: &DataDir,
    directories: Arc<RunDirectories>,
    speaking: Speaking,
) -> Result<(), Error> {
    use runtara_runner_wasm::WasmRunner;
    let wasm = wasm_config(config, data_dir.path());
    let Speaking {
        calls,
        routes,
        tracker,
    } = speaking;
    let made = move || Ok(WasmRunner::new(wasm, directories, calls, routes, tracker));
    let made = blocking(made);
    let guests = made.await.map_err(|error| Error::Part {
        what: "the runner of WebAssembly",
        source: error.into(),
    })?;
    runners.add(Arc::new(guests)).await;
    Ok(())
}

#[cfg(not(feature = "wasm"))]
async fn add_guests(
    runners: &mut Runners,
    _config: &Config,
    _data_dir: &DataDir,
    _directories: Arc<RunDirectories>,
    Speaking {
        calls: _,
        routes: _,
        tracker: _,
    }: Speaking,
) -> Result<(), Error> {
    let missing = (RunnerKind::Wasm.to_string(), false, NOT_BUILT.to_owned());
    runners.report.push(missing);
    Ok(())
}

/// What all runners that start processes share.
struct Parts {
    launcher: Arc<Launcher>,
    directories: Arc<RunDirectories>,
}

impl Runners {
    async fn add(&mut self, runner: Arc<dyn Runner>) {
        let kind = runner.kind();
        let (ready, text) = match runner.readiness().await {
            Readiness::Ready(text) => (true, text),
            Readiness::Unfit(text) => {
                warn!(%kind, reason = text, "images of this kind are refused");
                (false, text)
            }
        };
        if ready {
            self.kinds.push(kind);
        }
        self.report.push((kind.to_string(), ready, text));
        self.all.push(runner);
    }
}

async fn directories(data_dir: &DataDir) -> Result<Arc<RunDirectories>, Error> {
    let path = data_dir.path().to_owned();
    let opened = blocking(move || RunDirectories::open(&path)).await;
    opened.map(Arc::new).map_err(|error| Error::Part {
        what: "the directories of runs",
        source: error.into(),
    })
}

async fn native_runner(
    config: &Config,
    data_dir: &DataDir,
    programs: Programs,
    parts: &Parts,
) -> Result<NativeRunner, Error> {
    let mut native = NativeConfig::new(data_dir.path());
    native.cgroups = cgroups(data_dir).await?;
    match programs {
        Programs::Run { user } => native.user = user,
        Programs::Refused(reason) => native.refusal = Some(reason),
    }
    native.limits = ProcessLimits {
        open_files: config.native_open_files,
        processes: config.native_processes,
        file_bytes: config.native_file_bytes,
    };
    native.oom_score_adj = Some(config.native_oom_score_adj);
    native.log_cap_bytes = config.log_bytes;
    let (launcher, directories) = (Arc::clone(&parts.launcher), Arc::clone(&parts.directories));
    Ok(NativeRunner::new(native, launcher, directories))
}

async fn oci_runner(config: &Config, data_dir: &DataDir, parts: Parts) -> Result<OciRunner, Error> {
    let oci = oci_config(config, data_dir.path(), &data_dir.node()?.to_string());
    let made = blocking(move || Ok(OciRunner::new(oci, parts.launcher, parts.directories)));
    made.await.map_err(|error| Error::Part {
        what: "the runner of containers",
        source: error.into(),
    })
}

/// How containers are made by a server with this configuration.
pub(crate) fn oci_config(config: &Config, data_dir: &Path, node: &str) -> OciConfig {
    let settings = config.containers.clone();
    let mut oci = OciConfig::new(data_dir, node);
    oci.runtime = settings.runtime;
    oci.network = settings.network;
    oci.allowed_networks = settings.allowed_networks;
    oci.default_limits = settings.default_limits;
    oci.ceiling = settings.ceiling;
    oci.ids = settings.ids;
    oci.keep_setuid = settings.keep_setuid;
    oci.oom_score_adj = Some(settings.oom_score_adj);
    oci.log_cap_bytes = config.log_bytes;
    oci.image_limits.image_bytes = config.max_unpacked_image_bytes;
    if let Some(run_root) = settings.run_root {
        oci.run_root = run_root;
    }
    oci
}

/// Where runs have cgroups of their own, if they can have any. Those that killed shims have left are swept.
async fn cgroups(data_dir: &DataDir) -> Result<Option<CgroupRoot>, Error> {
    let node = data_dir.node()?.to_string();
    let found = tokio::task::spawn_blocking(move || {
        let root = CgroupRoot::find(&node)?;
        root.sweep().map_err(|error| error.to_string())?;
        Ok(root)
    });
    Ok(
        match found.await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(root) => Some(root),
            Err(reason) => {
                info!(reason, "native runs have no cgroup of their own");
                None
            }
        },
    )
}

/// Whether native programs are run, and as whom.
pub(crate) enum Programs {
    Run { user: Option<(u32, u32)> },
    Refused(String),
}

/// A server that is root runs nobody's programs as root unless it is told to.
pub(crate) fn user(config: &Config) -> Result<Programs, Error> {
    let me = geteuid();
    let Some(name) = &config.native_user else {
        if !me.is_root() {
            return Ok(Programs::Run { user: None });
        }
        if config.mode == Mode::Dev {
            warn!(
                "this server is root, and so are the native programs it runs; use it for trying out only"
            );
            return Ok(Programs::Run { user: None });
        }
        return Ok(Programs::Refused(
            "the server runs as root: set RUNTARA_NATIVE_USER to the user that native programs are to run as".to_owned(),
        ));
    };
    let user = native_user::find(name).map_err(|text| Error::Configuration {
        problems: vec![Problem {
            variable: "RUNTARA_NATIVE_USER",
            text,
        }],
    })?;
    if user.is_none() && me.is_root() {
        warn!("native programs run as root, as RUNTARA_NATIVE_USER says");
    }
    Ok(Programs::Run { user })
}
