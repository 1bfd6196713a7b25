//! One history, from its seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use runtara_domain::{
    Change, CheckpointId, Due, ImageId, ImageName, InstanceId, Labels, NewImage, NewInstance,
    RegistrationNumber, RunSettings, RunnerKind, SignalId, Status, TenantId, Timestamp, subtype,
};
use runtara_store::memory::MemoryStore;
use runtara_store::{
    Clock, EventFilter, Nudges, PageRequest, Started, Store, StoreError, StoreResult,
};
use tokio::time::{Instant, sleep, timeout};

use super::Content;
use super::host::Host;
use super::program::{Act, Ledger};

/// How long all may take to come to its end when nothing happens any more; sleeps are shorter.
const QUIET: Duration = Duration::from_secs(40 * 86_400);

/// What a history is like.
pub(super) struct Shape {
    pub(super) nodes: usize,
    /// For how long things happen.
    pub(super) time: Duration,
    /// Whether somebody sets the clock of the store.
    pub(super) clock_is_set: bool,
}

/// What there was in a history.
pub(super) struct Lived {
    pub(super) runs: usize,
    pub(super) time: Duration,
}

/// A clock that goes as the simulated time does, and that somebody may set.
struct SimulatedClock {
    began: Instant,
    set: AtomicI64,
}

impl Clock for SimulatedClock {
    fn now(&self) -> Timestamp {
        let millis = i64::try_from(self.began.elapsed().as_millis()).unwrap();
        Timestamp(1_700_000_000_000 + millis + self.set.load(Ordering::SeqCst))
    }
}

/// To what end an instance must come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Completed,
    Failed,
    /// Or what else it comes to, if that was faster.
    Ended,
}

struct History {
    rng: Rng,
    hosts: Vec<Arc<Host>>,
    /// As those see it to whom nothing is ever lost.
    store: Arc<dyn Store>,
    ledger: Arc<Ledger>,
    clock: Arc<SimulatedClock>,
    image: ImageId,
    wanted: BTreeMap<InstanceId, Wanted>,
    shape: Shape,
}

/// Lives a history, and checks what came of it.
///
/// # Panics
/// If a promise is broken.
pub(super) async fn live(seed: u64, shape: Shape, content: &Content) -> Lived {
    let began = Instant::now();
    let mut history = History::begin(seed, shape, content).await;
    let end = began + history.shape.time;
    let mean = u64::try_from(history.shape.time.as_millis()).unwrap() / 120;
    while Instant::now() < end {
        sleep(Duration::from_millis(history.rng.u64(1..2 * mean))).await;
        history.something_happens().await;
    }
    history.comes_to_rest().await;
    history.check().await;
    for host in &history.hosts {
        host.leaves().await;
    }
    Lived {
        runs: history.ledger.runs(),
        time: began.elapsed(),
    }
}

impl History {
    async fn begin(seed: u64, shape: Shape, content: &Content) -> Self {
        let mut rng = Rng::with_seed(seed);
        let clock = Arc::new(SimulatedClock {
            began: Instant::now(),
            set: AtomicI64::new(0),
        });
        let memory = MemoryStore::new(Arc::clone(&clock) as _, Nudges::new());
        let store: Arc<dyn Store> = Arc::new(memory);
        let image = NewImage {
            image_id: ImageId::generate(),
            number: RegistrationNumber(0),
            tenant_id: TenantId::new("t").unwrap(),
            name: ImageName::new("image").unwrap(),
            description: None,
            kind: RunnerKind::Native,
            digest: content.stored.digest,
            tenant_bytes_allowed: None,
            base: None,
            size: content.stored.size,
            metadata: None,
            labels: Labels::default(),
            settings: RunSettings::default(),
            container: None,
        };
        let image = store.register_image(image).await.unwrap().image_id;
        let ledger = Ledger::with(rng.fork());
        *ledger.measures.lock().unwrap() = !shape.clock_is_set;
        let host = |number: usize| {
            Host::new(
                content.directory.path().join(format!("{seed}-{number}")),
                content.blobs.clone(),
                Arc::clone(&store),
                Arc::clone(&ledger),
                shape.nodes > 1,
            )
        };
        let hosts: Vec<_> = (0..shape.nodes).map(host).collect();
        for host in &hosts {
            host.starts();
        }
        Self {
            rng,
            hosts,
            store,
            ledger,
            clock,
            image,
            wanted: BTreeMap::new(),
            shape,
        }
    }

    fn host(&mut self) -> Arc<Host> {
        Arc::clone(&self.hosts[self.rng.usize(..self.hosts.len())])
    }

    fn instance(&mut self) -> Option<InstanceId> {
        let ids: Vec<_> = self.wanted.keys().cloned().collect();
        (!ids.is_empty()).then(|| ids[self.rng.usize(..ids.len())].clone())
    }

    async fn something_happens(&mut self) {
        let host = self.host();
        match self.rng.u32(0..20) {
            0..=4 => self.start().await,
            5 | 6 => {
                host.dies().await;
                if self.rng.bool() {
                    let away = Duration::from_millis(self.rng.u64(0..40_000));
                    sleep(away).await;
                }
                host.starts();
            }
            7 => {
                host.leaves().await;
                sleep(Duration::from_millis(self.rng.u64(0..3_000))).await;
                host.starts();
            }
            8..=10 => {
                let methods = [
                    "claim_due",
                    "change",
                    "save_checkpoint",
                    "say",
                    "begin_wait",
                    "continue_wait",
                    "live_runs",
                    "register_instance",
                    "renew_node",
                    "expire_nodes",
                ];
                let method = methods[self.rng.usize(..methods.len())];
                let server = host.server.borrow().clone();
                if let Some(server) = server {
                    server.store.lose(method, self.rng.usize(1..4));
                }
            }
            11 | 12 => {
                let live = host.live();
                if !live.is_empty() {
                    let process = &live[self.rng.usize(..live.len())];
                    match self.rng.bool() {
                        true => host.kills(process),
                        false => host.loses(process),
                    }
                }
            }
            13 => {
                if self.shape.clock_is_set {
                    let by = self.rng.i64(-3_600_000..3_600_000);
                    self.clock.set.fetch_add(by, Ordering::SeqCst);
                }
            }
            _ => self.asks_something().await,
        }
    }

    /// Somebody wants something of an instance.
    async fn asks_something(&mut self) {
        let Some(id) = self.instance() else { return };
        let change = match self.rng.u32(0..8) {
            0 | 1 => Change::Pause { payload: None },
            2 | 3 => Change::Resume,
            4 => {
                let wanted = self.wanted.get_mut(&id).unwrap();
                *wanted = Wanted::Ended;
                Change::Cancel { payload: None }
            }
            5 => {
                let wanted = self.wanted.get_mut(&id).unwrap();
                *wanted = Wanted::Ended;
                Change::Stop {
                    grace_ms: self.rng.u64(0..4_000),
                    reason: "as it happens".to_owned(),
                }
            }
            _ => return self.signals(&id).await,
        };
        match self.store.change(&id, change).await {
            Ok(_) | Err(StoreError::Refused(_)) => {}
            Err(error) => panic!("{id}: {error}"),
        }
    }

    async fn signals(&self, id: &InstanceId) {
        let signal = SignalId::new("go").unwrap();
        let sent = self
            .store
            .send_signal(id, &signal, Some(Bytes::from_static(b"\"now\"")));
        match sent.await {
            Ok(()) | Err(StoreError::Refused(_)) => {}
            Err(error) => panic!("{id}: {error}"),
        }
    }

    async fn start(&mut self) {
        let id = InstanceId::new(format!("i{}", self.wanted.len())).unwrap();
        let longest = u64::try_from(self.shape.time.as_millis()).unwrap() / 4;
        let rng = &mut self.rng;
        let mut wanted = Wanted::Completed;
        let mut script = Vec::new();
        for _ in 0..rng.usize(2..8) {
            script.push(match rng.u32(0..12) {
                0 | 1 => Act::Sleep(Duration::from_millis(rng.u64(1..longest))),
                2 => Act::Sleep(Duration::from_millis(rng.u64(1..9_000))),
                3 => Act::Await("go"),
                4 => Act::CrashOnce,
                5 if rng.u32(0..4) == 0 => Act::Fail,
                6 => Act::Step(Duration::from_millis(rng.u64(0..90_000))),
                _ => Act::Step(Duration::from_millis(rng.u64(0..8_000))),
            });
        }
        if script.iter().any(|act| matches!(act, Act::Fail)) {
            wanted = Wanted::Failed;
        }
        self.ledger.plans(&id, script);
        let new = NewInstance {
            instance_id: id.clone(),
            image_id: self.image.clone(),
            tenant_id: TenantId::new("t").unwrap(),
            input: "{}".into(),
            env: Default::default(),
            args: Vec::new(),
            labels: Labels::default(),
            settings: RunSettings::default(),
            timeout_ms: 365 * 86_400_000,
            max_attempts: Some(1_000),
            due: Due::After(if rng.bool() { 0 } else { rng.u64(0..5_000) }),
            request_timeout_ms: None,
            heartbeat_timeout_ms: None,
            expires: None,
            max_events: None,
            pending_allowed: None,
        };
        // By way of a server whose answers are lost: whoever hears nothing asks again.
        for _ in 0..10 {
            let server = self.host().server.borrow().clone();
            let Some(server) = server else { continue };
            if self.rng.u32(0..4) == 0 {
                server.store.lose("start_instance", 1);
            }
            let started: StoreResult<Started> = server.store.start_instance(new.clone()).await;
            match started {
                Ok(Started::New(_) | Started::Same(_)) => break,
                Ok(other) => panic!("{id}: {other:?}"),
                Err(_) => {}
            }
        }
        if self.store.instance(&id).await.unwrap().is_some() {
            self.wanted.insert(id, wanted);
        }
    }

    /// Nothing happens any more but what must; all come to their end.
    async fn comes_to_rest(&mut self) {
        let all_ended = async {
            loop {
                let mut open = 0;
                for id in self.wanted.keys() {
                    let state = self.store.instance(id).await.unwrap().unwrap().state;
                    if state.status.is_end() && state.live_node.is_none() {
                        continue;
                    }
                    open += 1;
                    // Whoever was paused goes on, and whoever waits for a signal gets it.
                    if state.status == Status::Suspended && state.due_at.is_none() {
                        let _superseded = self.store.change(id, Change::Resume).await;
                    }
                    self.signals(id).await;
                }
                if open == 0 {
                    return;
                }
                sleep(Duration::from_secs(60)).await;
            }
        };
        if timeout(QUIET, all_ended).await.is_ok() {
            return;
        }
        for id in self.wanted.keys() {
            let state = self.store.instance(id).await.unwrap().unwrap().state;
            assert!(state.status.is_end(), "it does not end: {state:#?}");
            assert_eq!(state.live_node, None, "its run is never over: {state:#?}");
        }
    }

    async fn check(&self) {
        assert_eq!(self.ledger.broken(), [""; 0]);
        assert_eq!(
            self.ledger.live(),
            Default::default(),
            "processes are left over"
        );
        for (id, wanted) in &self.wanted {
            let state = self.store.instance(id).await.unwrap().unwrap().state;
            let is_right = match wanted {
                Wanted::Completed => state.status == Status::Completed,
                Wanted::Failed => state.status == Status::Failed,
                Wanted::Ended => state.status.is_end(),
            };
            let values = self.store.instance_values(id).await.unwrap();
            assert!(is_right, "wanted {wanted:?}: {state:#?} {values:?}");
            if state.status == Status::Failed {
                let error = values.and_then(|values| values.error).unwrap_or_default();
                assert_eq!(error, "as planned", "{id}");
            }
            let crashed = EventFilter {
                subtype: Some(subtype::CRASHED.to_owned()),
                ..EventFilter::default()
            };
            let page = PageRequest::first(1_000);
            let counted = self.store.list_events(id, &crashed, &page).await.unwrap();
            let counted = counted.rows.len();
            assert!(
                counted <= self.ledger.crashes_of(id),
                "{id}: {counted} crashes were counted, and there were {}",
                self.ledger.crashes_of(id)
            );
            for (step, value) in self.ledger.saved_of(id) {
                let step = CheckpointId::new(step).unwrap();
                let kept = self.store.checkpoint(id, &step).await.unwrap();
                let kept = kept.unwrap_or_else(|| panic!("{id}: step {step} is lost"));
                assert_eq!(kept.state, value, "{id}: step {step}");
            }
        }
    }
}
