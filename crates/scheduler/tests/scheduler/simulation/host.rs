//! A machine: the processes on it, which outlive their server, and the server.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use runtara_core::{Core, CoreConfig};
use runtara_domain::{EndedBy, ExitCause, NodeId, RunExit, RunnerKind, TokenHash, Usage, limits};
use runtara_images::BlobStore;
use runtara_runner::{
    Adoption, AskedSettings, CallTracker, ImageFiles, LaunchError, LaunchObstacle, LaunchSpec,
    PrepareError, PreparedImage, Readiness, Run, RunKey, Runner, RunnerError,
};
use runtara_scheduler::{Scheduler, SchedulerConfig, SchedulerParts};
use runtara_store::Store;
use runtara_store::lossy::LossyStore;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::program::{Ledger, play};
use crate::world::exit;

const ADDRESS: &str = "127.0.0.1:1";

/// A process of a run, and its shim.
pub(super) struct Process {
    key: RunKey,
    task: Mutex<Option<AbortHandle>>,
    exit: watch::Sender<Option<RunExit>>,
    /// Whether it was asked to leave.
    pub(super) asked: watch::Sender<bool>,
    ledger: Arc<Ledger>,
}

impl Process {
    fn is_live(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// Notes its end, unless it has ended.
    pub(super) fn ends(&self, found: RunExit) {
        let mut is_first = false;
        self.exit.send_if_modified(|known| {
            is_first = known.is_none();
            if is_first {
                *known = Some(found);
            }
            is_first
        });
        if is_first {
            self.ledger.gone(&self.key);
        }
    }

    fn kill(&self, ended_by: Option<EndedBy>) {
        if let Some(task) = self.task.lock().unwrap().take() {
            task.abort();
        }
        self.ends(exit(ExitCause::Signal(9), ended_by));
    }
}

/// What the server process holds of a run.
struct Handle(Arc<Process>);

#[async_trait]
impl Run for Handle {
    fn key(&self) -> &RunKey {
        &self.0.key
    }

    fn core_addr(&self) -> Option<&str> {
        Some(ADDRESS)
    }

    async fn wait(&self) -> Result<RunExit, RunnerError> {
        let mut ended = self.0.exit.subscribe();
        let ended = ended.wait_for(Option::is_some).await.unwrap();
        Ok(ended.clone().unwrap())
    }

    async fn terminate(&self, grace: Duration, by: EndedBy) -> Result<(), RunnerError> {
        if grace.is_zero() {
            self.0.kill(Some(by));
            return Ok(());
        }
        self.0.asked.send_replace(true);
        let process = Arc::clone(&self.0);
        tokio::spawn(async move {
            sleep(grace).await;
            process.kill(Some(by));
        });
        Ok(())
    }

    async fn set_slept(&self, _slept: Duration) -> Result<(), RunnerError> {
        Ok(())
    }

    async fn usage(&self) -> Result<Usage, RunnerError> {
        Ok(Usage::default())
    }
}

/// A server process.
pub(super) struct Server {
    pub(super) store: Arc<LossyStore>,
    pub(super) core: Core,
    pub(super) tracker: CallTracker,
    pub(super) died: CancellationToken,
    scheduler: Scheduler,
    is_alive: Arc<AtomicBool>,
}

/// The runner of one server process: with that, it does nothing any more.
struct HostRunner {
    host: Arc<Host>,
    is_alive: Arc<AtomicBool>,
}

impl HostRunner {
    async fn alive(&self) {
        if !self.is_alive.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

/// A machine.
pub(super) struct Host {
    pub(super) node: NodeId,
    directory: PathBuf,
    blobs: BlobStore,
    store: Arc<dyn Store>,
    pub(super) ledger: Arc<Ledger>,
    /// Whether there are others: then a machine without a server ends its runs before they are taken over.
    has_others: bool,
    processes: Mutex<HashMap<RunKey, Arc<Process>>>,
    pub(super) server: watch::Sender<Option<Arc<Server>>>,
    /// How many launches fail, in a hundred.
    fails: u8,
}

impl Host {
    pub(super) fn new(
        directory: PathBuf,
        blobs: BlobStore,
        store: Arc<dyn Store>,
        ledger: Arc<Ledger>,
        has_others: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            node: NodeId::generate(),
            directory,
            blobs,
            store,
            ledger,
            has_others,
            processes: Mutex::default(),
            server: watch::Sender::new(None),
            fails: 3,
        })
    }

    /// Starts the server.
    pub(super) fn starts(self: &Arc<Self>) {
        let store = Arc::new(LossyStore::new(Arc::clone(&self.store)));
        let tracker = CallTracker::new();
        let is_alive = Arc::new(AtomicBool::new(true));
        let config = SchedulerConfig {
            node: self.node,
            node_name: "simulated".to_owned(),
            data_dir: self.directory.clone(),
            core_addr: ADDRESS.to_owned(),
            passed_env: Default::default(),
            kinds: vec![RunnerKind::Native],
            capacity: 5,
            weights: Default::default(),
            max_runs_per_tenant: None,
            self_registered_timeout: None,
            upkeep: Default::default(),
            other_core_addrs: Vec::new(),
        };
        let parts = SchedulerParts {
            store: Arc::clone(&store) as _,
            runners: vec![Arc::new(HostRunner {
                host: Arc::clone(self),
                is_alive: Arc::clone(&is_alive),
            })],
            blobs: self.blobs.clone(),
            tracker: tracker.clone(),
            identity: Default::default(),
        };
        let core = Core::new(
            Arc::clone(&store) as _,
            tracker.clone(),
            CoreConfig::default(),
        );
        let scheduler = Scheduler::new(config, parts);
        scheduler.start();
        self.server.send_replace(Some(Arc::new(Server {
            store,
            core,
            tracker,
            died: CancellationToken::new(),
            scheduler,
            is_alive,
        })));
    }

    /// The server is killed.
    pub(super) async fn dies(self: &Arc<Self>) {
        let Some(server) = self.server.send_replace(None) else {
            return;
        };
        server.store.cut_off();
        server.is_alive.store(false, Ordering::SeqCst);
        server.died.cancel();
        // It cannot do anything any more; this ends those of its tasks that would hear what is meant for the next one.
        server.scheduler.shutdown(Instant::now()).await;
        self.guard();
    }

    /// The server leaves in good order.
    pub(super) async fn leaves(self: &Arc<Self>) {
        let Some(server) = self.server.borrow().clone() else {
            return;
        };
        server.scheduler.stop_claiming();
        server.core.close();
        server
            .scheduler
            .shutdown(Instant::now() + Duration::from_secs(8))
            .await;
        self.dies().await;
    }

    /// As the guard of a node does: a node that has not renewed its lease in time ends its runs.
    fn guard(self: &Arc<Self>) {
        if !self.has_others {
            return;
        }
        let host = Arc::clone(self);
        tokio::spawn(async move {
            let mut server = host.server.subscribe();
            let limit = Duration::from_millis(limits::NODE_UNRENEWED_MS);
            let back = tokio::time::timeout(limit, server.wait_for(Option::is_some));
            if back.await.is_err() {
                for process in host.live() {
                    process.kill(Some(EndedBy::Host));
                }
            }
        });
    }

    /// All processes that live here.
    pub(super) fn live(&self) -> Vec<Arc<Process>> {
        let processes = self.processes.lock().unwrap();
        let live = processes.values().filter(|process| process.is_live());
        live.cloned().collect()
    }

    /// A program is killed.
    pub(super) fn kills(&self, process: &Process) {
        self.ledger.crashes(&process.key);
        process.kill(None);
    }

    /// A shim is killed, and its program with it; nobody has written down how it ended.
    pub(super) fn loses(&self, process: &Process) {
        if let Some(task) = process.task.lock().unwrap().take() {
            task.abort();
        }
        process.ends(RunExit::lost());
    }

    fn launch(self: &Arc<Self>, spec: LaunchSpec) -> Arc<Process> {
        let process = Arc::new(Process {
            key: spec.key.clone(),
            task: Mutex::default(),
            exit: watch::Sender::new(None),
            asked: watch::Sender::new(false),
            ledger: Arc::clone(&self.ledger),
        });
        self.ledger.began(&spec.key);
        let mut processes = self.processes.lock().unwrap();
        let before = processes.insert(spec.key.clone(), Arc::clone(&process));
        self.ledger.holds(before.is_none(), || {
            format!("{} was launched twice", spec.key)
        });
        drop(processes);
        let token: TokenHash = spec.token.hash();
        let task = tokio::spawn(play(
            Arc::clone(self),
            Arc::clone(&process),
            spec.key,
            token,
        ));
        *process.task.lock().unwrap() = Some(task.abort_handle());
        process
    }
}

#[async_trait]
impl Runner for HostRunner {
    fn kind(&self) -> RunnerKind {
        RunnerKind::Native
    }

    async fn readiness(&self) -> Readiness {
        Readiness::Ready("simulated".to_owned())
    }

    async fn prepare(&self, image: ImageFiles) -> Result<PreparedImage, PrepareError> {
        Ok(PreparedImage {
            content: image.content,
            about: None,
            path: image.path,
        })
    }

    fn check(&self, _settings: &AskedSettings) -> Result<(), String> {
        Ok(())
    }

    async fn forget(&self, _digest: runtara_domain::ImageDigest) -> Result<(), std::io::Error> {
        Ok(())
    }

    async fn reclaim(&self) -> Result<(), std::io::Error> {
        Ok(())
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Run>, LaunchError> {
        // A server may die before and after it has launched.
        let (before, after) = self.host.ledger.launch_takes();
        sleep(before).await;
        self.alive().await;
        if self.host.ledger.is_unlucky(self.host.fails) {
            return Err(LaunchError {
                key: spec.key,
                obstacle: LaunchObstacle::Host,
                reason: "the machine is tired".to_owned(),
            });
        }
        let process = self.host.launch(spec);
        sleep(after).await;
        self.alive().await;
        Ok(Arc::new(Handle(process)))
    }

    async fn adopt(&self, key: &RunKey) -> Result<Adoption, RunnerError> {
        self.alive().await;
        let found = self.host.processes.lock().unwrap().get(key).cloned();
        Ok(match found {
            None => Adoption::Gone,
            Some(process) => {
                let known = process.exit.borrow().clone();
                match known {
                    Some(exit) => Adoption::Exited(exit),
                    None => Adoption::Alive(Arc::new(Handle(process))),
                }
            }
        })
    }

    async fn clean(&self, key: &RunKey, _keep_logs: bool) -> Result<(), RunnerError> {
        self.alive().await;
        let process = self.host.processes.lock().unwrap().get(key).cloned();
        if let Some(process) = process {
            self.host.ledger.holds(!process.is_live(), || {
                format!("{key} was cleaned away while it lived")
            });
        }
        Ok(())
    }
}
