//! Starts and ends a server.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use runtara_control::{Control, ControlConfig};
use runtara_core::{Core, CoreConfig};
use runtara_domain::{DatabaseId, NodeKey};
use runtara_http::HostPolicy;
use runtara_http::core::{CoreState, RoutesWithin, Tokenless};
use runtara_http::environment::EnvironmentState;
use runtara_http::server::{Listener, Server, ServerLimits};
use runtara_images::{BlobError, BlobOptions, BlobStore, SharedStore};
use runtara_runner::shim::ShimProgram;
use runtara_runner::{CallTracker, GuardAct, NodeGuard, shim};
use runtara_scheduler::{NodeIdentity, Scheduler, SchedulerConfig, SchedulerParts};
use runtara_store::{Nudges, Store};
use tokio::net::TcpListener;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::config::{Config, DatabaseUrl, Mode};
use crate::core_address::{CorePlace, check_elsewhere};
use crate::data_dir::DataDir;
use crate::programs::{self, ProgramsOfRunners};
use crate::report::Report;
use crate::runners::Speaking;
use crate::sockets::{PassedSockets, Sockets};
use crate::{Error, maintain, runners, store};

/// Longer than it takes to send a large image again.
const KEPT_FOR_ANOTHER_TRY: Duration = Duration::from_secs(600);

/// Most connections on which something is removed by hand.
const MAINTAINERS: usize = 4;

/// A server that can be started.
pub struct EnvironmentRuntime {
    config: Config,
    passed: PassedSockets,
}

/// The servers of the two protocols.
struct Servers {
    environment: Server,
    core: Vec<Server>,
    node: Option<Server>,
    /// For whoever has something removed by hand.
    maintain: Server,
}

/// A server that runs.
pub struct RuntimeHandle {
    config: Config,
    addr: SocketAddr,
    core_addr: String,
    servers: Servers,
    leaves_gently: bool,
    control: Control,
    core: Arc<Core>,
    scheduler: Scheduler,
    store: Arc<dyn Store>,
    _data_dir: DataDir,
}

impl EnvironmentRuntime {
    /// A server with this configuration.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            passed: PassedSockets::default(),
        }
    }

    /// Listens on these sockets instead of binding some of its own, as far as they listen where the configuration says. Whoever has
    /// passed them on has them open for the next server too, so this one leaves gently: it waits, within a part of its grace, until
    /// each connection has carried an answer that says `Connection: close`.
    #[must_use]
    pub fn sockets(mut self, passed: PassedSockets) -> Self {
        self.passed = passed;
        self
    }

    /// Starts: locks the data directory, binds, opens and migrates the store, takes over the runs of the process before, and serves.
    ///
    /// # Errors
    /// [`Error`], each saying what to do.
    pub async fn start(self) -> Result<RuntimeHandle, Error> {
        let config = self.config;
        let data_dir = DataDir::open(&config.data_dir)?;
        let leaves_gently = !self.passed.is_empty();
        let sockets = Sockets::bind(&config, data_dir.path(), self.passed).await?;
        info!(data_dir = %data_dir.path().display(), node = %data_dir.node()?, "starting");
        let nudges = Nudges::new();
        let store = store::open(&config, data_dir.path(), nudges).await?;
        let database_id = store.database_id().await?;
        // Before the launcher is started, which is told what the limit was.
        open_files();
        if let CorePlace::Elsewhere { address, taken } = &sockets.core {
            check_elsewhere(address, *taken, database_id).await?;
        }
        let core_addr = sockets.core_addr(&config)?;
        let blobs = open_blobs(&config, data_dir.path(), database_id).await?;
        let tracker = CallTracker::new();
        let core = Arc::new(Core::new(
            Arc::clone(&store),
            tracker.clone(),
            CoreConfig {
                hold_ms: config.sleep_hold_ms,
                ..CoreConfig::default()
            },
        ));
        let routes = RoutesWithin::new(
            Arc::clone(&core) as _,
            tracker.clone(),
            Arc::clone(&store),
            database_id,
        );
        let speaking = Speaking {
            calls: Arc::clone(&core) as _,
            routes: Arc::new(routes),
            tracker: tracker.clone(),
        };
        let runners = runners::set_up(&config, &data_dir, speaking).await?;
        let programs = Arc::new(ProgramsOfRunners::new(&runners.all));
        let several_nodes = !database_of(&config, data_dir.path()).is_sqlite();
        let key = NodeKey::generate();
        let scheduler = Scheduler::new(
            SchedulerConfig {
                node: data_dir.node()?,
                node_name: config.node_name.clone(),
                data_dir: data_dir.path().to_owned(),
                core_addr: core_addr.clone(),
                kinds: runners.kinds.clone(),
                other_core_addrs: sockets.other_core_addrs(),
                passed_env: config.passed_env.clone(),
                capacity: config.max_runs,
                weights: config.node.weights.clone(),
                max_runs_per_tenant: config.max_runs_per_tenant,
                self_registered_timeout: config.self_registered_timeout,
                upkeep: config.upkeep.clone(),
            },
            SchedulerParts {
                store: Arc::clone(&store),
                runners: runners.all,
                blobs: blobs.clone(),
                tracker: tracker.clone(),
                identity: NodeIdentity {
                    address: sockets.node.as_ref().map(|(_, address)| address.clone()),
                    key: Some(key.clone()),
                    guard: several_nodes.then(|| guard_of(data_dir.path())),
                },
            },
        );
        let control = Control::new(
            Arc::clone(&store),
            blobs,
            programs,
            ControlConfig {
                node: data_dir.node()?,
                kinds: runners.kinds,
                unavailable: programs::unavailable(&runners.report),
                native_for_oci: config.native_for_oci,
                max_events: config.max_events,
                data_dir: data_dir.path().to_owned(),
                kept_for_another_try: KEPT_FOR_ANOTHER_TRY,
                max_pending_per_tenant: config.max_pending_per_tenant,
                max_image_bytes_per_tenant: config.max_image_bytes_per_tenant,
            },
        );
        let addr = sockets
            .environment
            .local_addr()
            .map_err(|source| Error::Bind {
                what: "the environment protocol",
                address: config.env_addr.to_string(),
                variable: "RUNTARA_ENV_HTTP_PORT",
                source,
            })?;
        let report = Arc::new(Report {
            scheduler: scheduler.clone(),
            runners: runners.report,
            machine: runners.machine,
        });
        let core_state = CoreState::new(
            Arc::clone(&core) as _,
            tracker,
            Arc::clone(&store),
            database_id,
            Arc::clone(&report) as _,
        );
        let environment_state = EnvironmentState {
            control: control.clone(),
            report,
            started: std::time::Instant::now(),
            version: env!("CARGO_PKG_VERSION"),
        };
        let maintain = maintain::listen(data_dir.path())?;
        let maintain = Server::start(
            Listener::Unix(maintain),
            maintain::service(scheduler.clone()),
            limits(MAINTAINERS),
        );
        let servers = Servers::start(
            sockets,
            &config,
            &core_state,
            environment_state,
            key,
            maintain,
        )?;
        scheduler.start();
        info!(environment = %addr, core = %core_addr, "serving");
        Ok(RuntimeHandle {
            config,
            addr,
            core_addr,
            servers,
            leaves_gently,
            control,
            core,
            scheduler,
            store,
            _data_dir: data_dir,
        })
    }
}

/// The guard of this node. What one before it did, whose server could not tell of it any more, is told now.
fn guard_of(data_dir: &Path) -> NodeGuard {
    let guard = NodeGuard::new(ShimProgram::ThisProgram, data_dir.to_owned());
    match guard.take_last_act() {
        Ok(None) => {}
        Ok(Some((act, at))) => {
            let seconds_ago = at.elapsed().unwrap_or_default().as_secs();
            match act {
                GuardAct::KilledServer => warn!(
                    seconds_ago,
                    "the guard of this node killed the server before this one: it did not renew its lease, and did not end its runs in time"
                ),
                GuardAct::EndedRuns => info!(
                    seconds_ago,
                    "the guard of this node ended what still ran after the server before this one had died"
                ),
            }
        }
        Err(error) => {
            warn!(%error, "the word that the guard of this node may have left cannot be read");
        }
    }
    guard
}

pub(crate) async fn open_blobs(
    config: &Config,
    data_dir: &Path,
    database: DatabaseId,
) -> Result<BlobStore, Error> {
    let part = |what| {
        move |error: BlobError| Error::Part {
            what,
            source: error.into(),
        }
    };
    let options = BlobOptions {
        max_bytes: config.max_image_bytes,
        cache_bytes: config.image_cache_bytes,
        ..BlobOptions::default()
    };
    let blobs = BlobStore::open(data_dir.join("blobs"), options)
        .await
        .map_err(part("the store of images"))?;
    let Some(url) = &config.image_store else {
        return Ok(blobs);
    };
    let shared_part = || part("the image store that RUNTARA_IMAGE_STORE_URL names");
    let shared = SharedStore::at(url).map_err(shared_part())?;
    shared.claim(database).await.map_err(shared_part())?;
    info!(url = shared.name(), "images are shared");
    Ok(blobs.with_shared(shared))
}

impl Servers {
    fn start(
        sockets: Sockets,
        config: &Config,
        core: &CoreState,
        environment: EnvironmentState,
        key: NodeKey,
        maintain: Server,
    ) -> Result<Self, Error> {
        let shares = Shares::of(open_files());
        let hosts = |listener: &TcpListener| {
            let address = listener.local_addr().map_err(|source| Error::Part {
                what: "a listening socket",
                source: source.into(),
            })?;
            Ok::<_, Error>(HostPolicy::of_port(address, &config.allowed_hosts))
        };
        let start_core = |listener, tokenless, hosts, connections| {
            let service = runtara_http::core::service(core.clone(), tokenless, hosts);
            Server::start(listener, service, limits(connections))
        };
        let socket = Listener::Unix(sockets.core_socket);
        let hosts_of_socket = HostPolicy::of_socket();
        let mut servers = vec![start_core(
            socket,
            Tokenless::Nobody,
            hosts_of_socket,
            shares.other,
        )];
        let second = sockets.second_core.map(|listener| (listener, shares.other));
        let first = match sockets.core {
            CorePlace::Here(listener) => Some((listener, shares.core)),
            CorePlace::Elsewhere { .. } => None,
        };
        for (listener, connections) in first.into_iter().chain(second) {
            let hosts = hosts(&listener)?;
            let listener = Listener::Tcp(listener);
            servers.push(start_core(listener, Tokenless::Local, hosts, connections));
        }
        let node = sockets.node.map(|(listener, _)| {
            let service = runtara_http::nodes::service(environment.control.clone(), key);
            Server::start(Listener::Tcp(listener), service, limits(shares.other))
        });
        let service = runtara_http::environment::service(environment, hosts(&sockets.environment)?);
        let listener = Listener::Tcp(sockets.environment);
        Ok(Self {
            environment: Server::start(listener, service, limits(shares.environment)),
            core: servers,
            node,
            maintain,
        })
    }
}

/// How many connections each listener may have. Each has its own share, so that callers of one port cannot keep those of another out;
/// what is left of the descriptors is for files, runs and the database.
struct Shares {
    /// Of the address that launched programs are given: up to a few each, some held open while they sleep.
    core: usize,
    /// Of the environment protocol.
    environment: usize,
    /// Of the second port and of the socket of the instance protocol, and of other nodes.
    other: usize,
}

impl Shares {
    fn of(open_files: u64) -> Self {
        let of_eighths = |eighths| {
            let share = usize::try_from(open_files / 36 * 3 * eighths).unwrap_or(usize::MAX);
            share.clamp(16, ServerLimits::default().connections)
        };
        Self {
            core: of_eighths(4),
            environment: of_eighths(2),
            other: of_eighths(1),
        }
    }
}

fn limits(connections: usize) -> ServerLimits {
    ServerLimits {
        connections,
        ..ServerLimits::default()
    }
}

/// How many descriptors this process may have, after it has asked for all that it can get.
fn open_files() -> u64 {
    /// What every system gives.
    const USUAL: u64 = 1_024;
    shim::raise_open_files().unwrap_or_else(|error| {
        warn!(%error, "the limit on open files could not be raised; there are few places for connections");
        USUAL
    })
}

impl RuntimeHandle {
    /// Where the environment protocol is served.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where launched programs reach the instance protocol.
    #[must_use]
    pub fn core_addr(&self) -> &str {
        &self.core_addr
    }

    /// How many runs are live here.
    #[must_use]
    pub fn live_runs(&self) -> usize {
        self.scheduler.live_runs()
    }

    /// Ends in order, within the configured grace: takes no more requests and claims nothing more, answers what is under way, makes far
    /// sleeps of held ones, and leaves running programs to the next server process. In dev they are ended, uncounted: nobody would come
    /// for them.
    ///
    /// Each phase has a part of the grace that those before it cannot spend, so that a client who holds its connection open takes
    /// nothing from the end of the runs.
    pub async fn shutdown(self) {
        let grace = Grace::new(self.config.shutdown_grace);
        info!(runs = self.live_runs(), "leaving");
        self.scheduler.stop_claiming();
        runtara_failpoints::pass(runtara_failpoints::Point::ShutdownBegun);
        self.leave(&self.servers.environment);
        self.servers.maintain.stop();
        self.control.close();
        self.core.close();
        if self.config.mode == Mode::Dev {
            self.scheduler.end_runs();
        }
        if grace.until(20, self.core.settled()).await.is_err() {
            warn!("some held calls were cut off");
        }
        if let Some(node) = &self.servers.node {
            node.stop();
        }
        let environment = std::slice::from_ref(&self.servers.environment);
        if grace.see_off(environment, [30, 35]).await.is_err() {
            warn!("some requests were cut off");
        }
        self.scheduler.shutdown(grace.at(80)).await;
        for server in &self.servers.core {
            self.leave(server);
        }
        if grace.see_off(&self.servers.core, [87, 90]).await.is_err() {
            warn!("some calls of instances were cut off");
        }
        if grace.until(100, self.store.close()).await.is_err() {
            warn!("the store did not close in time");
        }
        info!("left");
    }

    fn leave(&self, server: &Server) {
        if self.leaves_gently {
            server.leave();
        } else {
            server.stop();
        }
    }
}

/// The time for an orderly end.
struct Grace {
    since: Instant,
    whole: Duration,
}

impl Grace {
    fn new(whole: Duration) -> Self {
        let since = Instant::now();
        Self { since, whole }
    }

    /// The moment at which this much of it is over.
    fn at(&self, percent: u32) -> Instant {
        self.since + self.whole * percent / 100
    }

    /// Waits until all connections of servers are closed. Those that are idle are closed at the first of two moments, those that are left
    /// are given up at the second.
    async fn see_off(&self, servers: &[Server], [idle, all]: [u32; 2]) -> Result<(), Elapsed> {
        for server in servers {
            let _idle_are_left = self.until(idle, server.stopped()).await;
            server.stop();
        }
        for server in servers {
            self.until(all, server.stopped()).await?;
        }
        Ok(())
    }

    /// Does something until then at the latest.
    async fn until<T>(&self, percent: u32, act: impl Future<Output = T>) -> Result<T, Elapsed> {
        timeout_at(self.at(percent), act).await
    }
}

/// The address of the database that a configuration means.
#[must_use]
pub fn database_of(config: &Config, data_dir: &Path) -> DatabaseUrl {
    config
        .database
        .clone()
        .unwrap_or_else(|| DatabaseUrl::sqlite(&data_dir.join("state.db")))
}

/// Brings the database up to date.
///
/// # Errors
/// [`Error::Store`] if it cannot be opened or migrated, [`Error::DataDirectory`] if it lies in a data directory that cannot be used.
pub async fn migrate(config: &Config) -> Result<(), Error> {
    let data_dir = DataDir::open(&config.data_dir)?;
    let store = store::open(config, data_dir.path(), Nudges::new()).await?;
    store.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_together_leave_descriptors_for_other_things() {
        for open_files in [1_024, 4_096, 1 << 20] {
            let shares = Shares::of(open_files);
            let all = shares.core + shares.environment + 3 * shares.other;
            assert!(all as u64 <= open_files * 3 / 4, "{open_files}: {all}");
            assert!(shares.core > shares.environment || shares.core == 10_000);
        }
    }
}
