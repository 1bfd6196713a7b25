//! Sets up the runner of native programs.

use std::sync::Arc;

use nix::unistd::geteuid;
use runtara_domain::RunnerKind;
use runtara_runner::shim::{CgroupRoot, Launcher, ProcessLimits, ShimProgram};
use runtara_runner::{Readiness, Runner};
use runtara_runner_native::{NativeConfig, NativeRunner};
use tracing::{info, warn};

use crate::config::{Config, Mode, Problem};
use crate::data_dir::DataDir;
use crate::{Error, native_user};

/// The runners of this server, and what each kind says of itself.
pub(crate) struct Runners {
    /// All of them: also one that launches nothing here minds what a server before this one has launched.
    pub(crate) all: Vec<Arc<dyn Runner>>,
    /// The kinds that can be launched.
    pub(crate) kinds: Vec<RunnerKind>,
    pub(crate) report: Vec<(String, bool, String)>,
}

/// Sets up the runners of this build.
pub(crate) async fn runners(config: &Config, data_dir: &DataDir) -> Result<Runners, Error> {
    let mut runners = Runners {
        all: Vec::new(),
        kinds: Vec::new(),
        report: Vec::new(),
    };
    for kind in [RunnerKind::Oci, RunnerKind::Wasm] {
        let text = "this build has no runner of this kind".to_owned();
        runners.report.push((kind.to_string(), false, text));
    }
    let runner = native_runner(config, data_dir, user(config)?).await?;
    let (ready, text) = match runner.readiness().await {
        Readiness::Ready(text) => (true, text),
        Readiness::Unfit(text) => {
            warn!(reason = text, "native images are refused");
            (false, text)
        }
    };
    if ready {
        runners.kinds.push(runner.kind());
    }
    let kind = runner.kind().to_string();
    runners.report.push((kind, ready, text));
    runners.all.push(Arc::new(runner));
    Ok(runners)
}

async fn native_runner(
    config: &Config,
    data_dir: &DataDir,
    programs: Programs,
) -> Result<NativeRunner, Error> {
    let launcher = Launcher::start(ShimProgram::ThisProgram)
        .await
        .map_err(|error| Error::Part {
            what: "the launcher of native programs",
            source: error.into(),
        })?;
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
    native.oom_score_adj = config.native_oom_score_adj;
    native.log_cap_bytes = config.log_bytes;
    NativeRunner::new(native, Arc::new(launcher)).map_err(|error| Error::Part {
        what: "the runner of native programs",
        source: error.into(),
    })
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
enum Programs {
    Run { user: Option<(u32, u32)> },
    Refused(String),
}

/// A server that is root runs nobody's programs as root unless it is told to.
fn user(config: &Config) -> Result<Programs, Error> {
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
