//! Has what is not needed any more removed by hand: by the server that holds the data directory if one does, else here.

mod call;
mod service;

use std::path::PathBuf;
use std::sync::Arc;

use runtara_core::{Core, CoreConfig};
use runtara_http::core::RoutesWithin;
use runtara_runner::CallTracker;
use runtara_scheduler::{Scheduler, SchedulerConfig, SchedulerParts};
use runtara_store::Nudges;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use crate::config::{Config, Mode};
use crate::data_dir::DataDir;
use crate::runners::Speaking;
use crate::runtime::open_blobs;
use crate::{Error, runners, store};

pub use runtara_scheduler::UPKEEP_NAMES as NAMES;

pub(crate) use self::service::service;

/// The name of the socket in the data directory on which a server is asked.
pub(crate) const SOCKET: &str = "maintain.sock";

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Whether nothing is removed, and only said what would be.
    pub dry_run: bool,
    /// The names of the reconcilers that are done, of [`NAMES`]; all if none is named.
    pub only: Vec<String>,
    /// How many things are named of what each removes.
    pub names: usize,
}

/// What one reconciler did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its name.
    pub name: String,
    /// What it removes.
    pub about: String,
    /// How many things.
    pub items: u64,
    /// How many bytes these have, as far as that is known.
    pub bytes: u64,
    /// Some of them.
    pub names: Vec<String>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Whether it was stopped before its end.
    pub stopped: bool,
    /// What stood in its way, if something did.
    pub error: Option<String>,
}

/// What is said while it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// One goes on.
    Progress {
        /// Its name.
        name: String,
        /// How many things by now.
        items: u64,
        /// How many bytes by now.
        bytes: u64,
    },
    /// One is done.
    Done(Report),
}

impl From<&Request> for runtara_scheduler::UpkeepRequest {
    fn from(request: &Request) -> Self {
        Self {
            dry_run: request.dry_run,
            only: request.only.clone(),
            names: request.names,
        }
    }
}

impl From<runtara_scheduler::UpkeepEvent> for Event {
    fn from(event: runtara_scheduler::UpkeepEvent) -> Self {
        match event {
            runtara_scheduler::UpkeepEvent::Progress { name, items, bytes } => Self::Progress {
                name: name.to_owned(),
                items,
                bytes,
            },
            runtara_scheduler::UpkeepEvent::Done(report) => Self::Done(Report {
                name: report.name.to_owned(),
                about: report.about.to_owned(),
                items: report.items,
                bytes: report.bytes,
                names: report.names,
                took_ms: u64::try_from(report.took.as_millis()).unwrap_or(u64::MAX),
                stopped: report.stopped,
                error: report.error,
            }),
        }
    }
}

/// Removes once, now, what is not needed any more, or says what would be removed, and sends what each reconciler did. When nobody listens
/// any more, it ends between two batches.
///
/// The server that holds the data directory does it, with the configuration that it was started with; where none does, it is done
/// here, under the lock of the directory and with the configuration that this process has for `serve`.
///
/// # Errors
/// [`Error::Maintain`] if a name is unknown, or the server cannot be asked or does not answer to the end; where it is done here, as of
/// [`EnvironmentRuntime::start`](crate::EnvironmentRuntime::start).
pub async fn maintain(request: &Request, events: mpsc::Sender<Event>) -> Result<(), Error> {
    Scheduler::knows(&request.into()).map_err(|error| Error::Maintain {
        reason: error.to_string(),
    })?;
    let place = Config::data_dir_of(&|name| std::env::var_os(name));
    if !place.is_dir() {
        // It would be made otherwise, and there is nothing in a new one.
        return Err(Error::Maintain {
            reason: format!(
                "there is no data directory {}; set DATA_DIR",
                place.display()
            ),
        });
    }
    match DataDir::open(&place) {
        Err(Error::DataDirectoryInUse { path, holder }) => {
            call::ask(&path, &holder, request, &events).await
        }
        Err(error) => Err(error),
        Ok(data_dir) => here(data_dir, request, events).await,
    }
}

/// Does it in this process.
async fn here(
    data_dir: DataDir,
    request: &Request,
    events: mpsc::Sender<Event>,
) -> Result<(), Error> {
    // Never with a database that nobody named: in an empty one nothing is needed that the directory holds.
    let config = Config::from_env(Mode::Serve)?;
    let store = store::open(&config, data_dir.path(), Nudges::new()).await?;
    let scheduler = scheduler(&config, &data_dir, &store).await;
    let done = match scheduler {
        Ok(scheduler) => passed_on(&scheduler, request, events).await,
        Err(error) => Err(error),
    };
    store.close().await;
    done
}

async fn passed_on(
    scheduler: &Scheduler,
    request: &Request,
    events: mpsc::Sender<Event>,
) -> Result<(), Error> {
    let (inner, mut reports) = mpsc::channel(16);
    let request = request.into();
    let doing = async move { scheduler.maintain(&request, &inner).await };
    let passing = async {
        loop {
            tokio::select! {
                event = reports.recv() => match event {
                    Some(event) => drop(events.send(event.into()).await),
                    None => return,
                },
                // Nobody listens any more: whoever is at work is told so, and ends.
                () = events.closed() => {
                    reports.close();
                    return;
                }
            }
        }
    };
    let (done, ()) = tokio::join!(doing, passing);
    done.map_err(|error| Error::Maintain {
        reason: error.to_string(),
    })
}

/// A scheduler that is never started: it claims nothing and adopts nothing.
async fn scheduler(
    config: &Config,
    data_dir: &DataDir,
    store: &Arc<dyn runtara_store::Store>,
) -> Result<Scheduler, Error> {
    let tracker = CallTracker::new();
    let core = Core::new(Arc::clone(store), tracker.clone(), CoreConfig::default());
    let core = Arc::new(core);
    let database_id = store.database_id().await?;
    let routes = RoutesWithin::new(
        Arc::clone(&core) as _,
        tracker.clone(),
        Arc::clone(store),
        database_id,
    );
    let speaking = Speaking {
        calls: core,
        routes: Arc::new(routes),
        tracker: tracker.clone(),
    };
    let runners = runners::set_up(config, data_dir, speaking).await?;
    Ok(Scheduler::new(
        SchedulerConfig {
            node: data_dir.node()?,
            node_name: config.node_name.clone(),
            data_dir: data_dir.path().to_owned(),
            core_addr: config.core_addr.clone(),
            kinds: Vec::new(),
            other_core_addrs: Vec::new(),
            passed_env: config.passed_env.clone(),
            capacity: 0,
            weights: Default::default(),
            max_runs_per_tenant: None,
            self_registered_timeout: None,
            upkeep: config.upkeep.clone(),
        },
        SchedulerParts {
            store: Arc::clone(store),
            runners: runners.all,
            blobs: open_blobs(config, data_dir.path(), database_id).await?,
            tracker,
            identity: Default::default(),
        },
    ))
}

/// Listens where a server is asked. Nobody but its user can call there.
pub(crate) fn listen(data_dir: &std::path::Path) -> Result<UnixListener, Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let path: PathBuf = data_dir.join(SOCKET);
    let failed = |source| Error::Bind {
        what: "the socket for maintenance",
        address: path.display().to_string(),
        variable: "DATA_DIR",
        source,
    };
    let listener = crate::sockets::bind_new(data_dir, SOCKET).map_err(failed)?;
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&path, mode).map_err(failed)?;
    Ok(listener)
}
