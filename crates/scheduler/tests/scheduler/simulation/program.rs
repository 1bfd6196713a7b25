//! What the programs of a history do, and the ledger of what they did.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use runtara_domain::{
    Caller, CheckpointId, ExitCause, Fence, InstanceId, SaveCheckpoint, SignalId, SignalKind,
    SignalWait, Sleep, TenantId, TokenHash, Word,
};
use runtara_runner::{CallError, InstanceCalls, RunKey};
use tokio::time::{Instant, sleep};

use super::host::{Host, Process, Server};
use crate::world::exit;

/// One thing to do.
#[derive(Debug, Clone)]
pub(super) enum Act {
    /// A step of so much work.
    Step(Duration),
    /// A durable sleep.
    Sleep(Duration),
    /// Waits for the signal of this id, and saves what it brings.
    Await(&'static str),
    /// Dies in its first run.
    CrashOnce,
    /// Says that it has failed.
    Fail,
}

/// What is known of all instances, from outside of the store.
#[derive(Default)]
pub(super) struct Ledger {
    rng: Mutex<Option<Rng>>,
    scripts: Mutex<HashMap<InstanceId, Vec<Act>>>,
    live: Mutex<BTreeMap<InstanceId, u32>>,
    newest: Mutex<HashMap<InstanceId, u32>>,
    saved: Mutex<HashMap<(InstanceId, String), Bytes>>,
    sleeps: Mutex<HashMap<(InstanceId, usize), Instant>>,
    runs: Mutex<usize>,
    /// How often a program has died through a fault of its own, or was killed by nobody of the server.
    crashes: Mutex<HashMap<InstanceId, usize>>,
    /// What was found in tasks, whose panics nobody would hear of.
    broken: Mutex<Vec<String>>,
    /// Whether sleeps are measured: not where the clock is set.
    pub(super) measures: Mutex<bool>,
}

impl Ledger {
    pub(super) fn with(rng: Rng) -> Arc<Self> {
        let ledger = Self::default();
        *ledger.rng.lock().unwrap() = Some(rng);
        Arc::new(ledger)
    }

    fn random<T>(&self, of: impl FnOnce(&mut Rng) -> T) -> T {
        of(self.rng.lock().unwrap().as_mut().unwrap())
    }

    pub(super) fn launch_takes(&self) -> (Duration, Duration) {
        self.random(|rng| {
            let mut some = || Duration::from_millis(rng.u64(0..40));
            (some(), some())
        })
    }

    pub(super) fn is_unlucky(&self, percent: u8) -> bool {
        self.random(|rng| rng.u8(0..100) < percent)
    }

    pub(super) fn plans(&self, id: &InstanceId, script: Vec<Act>) {
        self.scripts.lock().unwrap().insert(id.clone(), script);
    }

    /// Notes what is not as it should be.
    pub(super) fn holds(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken.lock().unwrap().push(what());
        }
    }

    /// What was not as it should be.
    pub(super) fn broken(&self) -> Vec<String> {
        self.broken.lock().unwrap().clone()
    }

    /// A program dies, and it is not the server's doing.
    pub(super) fn crashes(&self, key: &RunKey) {
        let mut crashes = self.crashes.lock().unwrap();
        *crashes.entry(key.instance_id.clone()).or_default() += 1;
    }

    pub(super) fn crashes_of(&self, id: &InstanceId) -> usize {
        self.crashes.lock().unwrap().get(id).copied().unwrap_or(0)
    }

    /// How many runs there were.
    pub(super) fn runs(&self) -> usize {
        *self.runs.lock().unwrap()
    }

    pub(super) fn live(&self) -> BTreeSet<InstanceId> {
        self.live.lock().unwrap().keys().cloned().collect()
    }

    /// A process begins: no other of its instance may live, and none of a later run may have been there.
    pub(super) fn began(&self, key: &RunKey) {
        let other = self
            .live
            .lock()
            .unwrap()
            .insert(key.instance_id.clone(), key.run_number.0);
        self.holds(other.is_none(), || {
            format!("{key} began while run {other:?} lived")
        });
        let newest = self
            .newest
            .lock()
            .unwrap()
            .insert(key.instance_id.clone(), key.run_number.0);
        self.holds(newest < Some(key.run_number.0), || {
            format!("{key} began after run {newest:?}")
        });
        *self.runs.lock().unwrap() += 1;
    }

    pub(super) fn gone(&self, key: &RunKey) {
        let mut live = self.live.lock().unwrap();
        if live.get(&key.instance_id) == Some(&key.run_number.0) {
            live.remove(&key.instance_id);
        }
    }

    /// The effect of a step.
    fn effect(&self, key: &RunKey, step: &str) {
        let saved = self.saved.lock().unwrap();
        let before = saved.get(&(key.instance_id.clone(), step.to_owned()));
        self.holds(before.is_none(), || {
            format!("{key} runs step {step} again, which is saved")
        });
    }

    /// What the server says is saved of a step.
    fn told(&self, key: &RunKey, step: &str, value: &Bytes) {
        let mut saved = self.saved.lock().unwrap();
        let place = (key.instance_id.clone(), step.to_owned());
        let known = saved.entry(place).or_insert_with(|| value.clone());
        self.holds(known == value, || {
            format!("{key} is told {value:?} of step {step}, which was {known:?}")
        });
    }

    /// What was told to be saved of an instance.
    pub(super) fn saved_of(&self, id: &InstanceId) -> Vec<(String, Bytes)> {
        let saved = self.saved.lock().unwrap();
        let of = saved.iter().filter(|((of, _), _)| of == id);
        of.map(|((_, step), value)| (step.clone(), value.clone()))
            .collect()
    }

    /// A sleep begins, in whatever run first.
    fn sleeps(&self, key: &RunKey, place: usize) {
        let mut sleeps = self.sleeps.lock().unwrap();
        sleeps
            .entry((key.instance_id.clone(), place))
            .or_insert_with(Instant::now);
    }

    /// A sleep is over.
    fn woke(&self, key: &RunKey, place: usize, time: Duration) {
        let sleeps = self.sleeps.lock().unwrap();
        let slept = sleeps[&(key.instance_id.clone(), place)].elapsed();
        // The store counts whole milliseconds.
        let is_over = slept + Duration::from_millis(2) >= time;
        self.holds(is_over || !*self.measures.lock().unwrap(), || {
            format!("{key} woke after {slept:?} of {time:?}")
        });
    }
}

/// Why a program leaves.
enum Leave {
    /// With this exit code, and all said.
    With(i32),
    /// A call was not done.
    Failed(String),
}

struct Program {
    host: Arc<Host>,
    key: RunKey,
    caller: Caller,
    token: TokenHash,
}

/// A program, from its first line to its exit.
pub(super) async fn play(host: Arc<Host>, process: Arc<Process>, key: RunKey, token: TokenHash) {
    let program = Program {
        caller: Caller {
            instance_id: key.instance_id.clone(),
            fence: Fence::Run(token),
        },
        host,
        key,
        token,
    };
    let mut asked = process.asked.subscribe();
    let code = tokio::select! {
        left = program.run() => match left {
            Ok(()) => 0,
            Err(Leave::With(code)) => code,
            Err(Leave::Failed(error)) => {
                // As published clients do, who know nothing better.
                let word = Word::Failed { error };
                let _in_vain = program.call(false, async |server| server.core.say(&program.caller, word).await).await;
                1
            }
        },
        // Who is asked to leave does so, after a while.
        _ = async {
            drop(asked.wait_for(|asked| *asked).await);
            sleep(Duration::from_millis(500)).await;
        } => 143,
    };
    process.ends(exit(ExitCause::Code(code), None));
}

impl Program {
    /// Calls the server, which may not be there, or die meanwhile.
    async fn call<T>(
        &self,
        waits: bool,
        call: impl AsyncFnOnce(&Server) -> Result<T, CallError>,
    ) -> Result<T, Leave> {
        let server = self.host.server.borrow().clone();
        let cut = || Leave::Failed("HTTP request failed: the connection was cut".to_owned());
        let server = server.ok_or_else(cut)?;
        let guard = server.tracker.begin(self.token, waits);
        let answer = tokio::select! {
            biased;
            () = server.died.cancelled() => return Err(cut()),
            answer = call(&server) => answer,
        };
        match answer {
            Err(CallError::Unavailable) => {
                guard.failed();
                Err(Leave::Failed("HTTP request failed: 503".to_owned()))
            }
            Err(refused) => {
                guard.answered();
                // A program that is refused has been superseded, or its instance has ended: it goes.
                let _refused = refused;
                Err(Leave::With(1))
            }
            Ok(answer) => {
                guard.answered();
                Ok(answer)
            }
        }
    }

    async fn run(&self) -> Result<(), Leave> {
        let caller = &self.caller;
        let tenant = TenantId::new("t").unwrap();
        self.call(false, async |server| {
            server.core.register(caller, tenant, None).await
        })
        .await?;
        let script = self.host.ledger.scripts.lock().unwrap()[&self.key.instance_id].clone();
        for (place, act) in script.iter().enumerate() {
            let name = format!("step-{place}");
            match act {
                Act::Step(work) => {
                    if self.look(&name).await?.is_none() {
                        self.host.ledger.effect(&self.key, &name);
                        sleep(*work).await;
                        let value = Bytes::from(self.key.run_number.0.to_string());
                        self.save(&name, value).await?;
                    }
                }
                Act::Sleep(time) => {
                    self.host.ledger.sleeps(&self.key, place);
                    let request = Sleep {
                        duration_ms: u64::try_from(time.as_millis()).unwrap(),
                        checkpoint_id: Some(CheckpointId::new(&*name).unwrap()),
                        state: Bytes::from_static(b"asleep"),
                        park: true,
                        request_id: None,
                    };
                    self.call(true, async |server| {
                        server.core.sleep(caller, request).await
                    })
                    .await?;
                    self.host.ledger.woke(&self.key, place, *time);
                }
                Act::Await(signal) => {
                    while self.look(&name).await?.is_none() {
                        let request = SignalWait {
                            signal_id: SignalId::new(*signal).unwrap(),
                            timeout_ms: None,
                            park: true,
                            request_id: None,
                        };
                        let waited = self
                            .call(true, async |server| {
                                server.core.wait_signal(caller, request).await
                            })
                            .await?;
                        match waited.signal {
                            Some(payload) => {
                                self.save(&name, payload.unwrap_or_default()).await?;
                            }
                            // Something waits for the whole instance: the look at the step shows it.
                            None => sleep(Duration::from_millis(50)).await,
                        }
                    }
                }
                Act::CrashOnce if self.key.run_number.0 == 1 => {
                    self.host.ledger.crashes(&self.key);
                    return Err(Leave::With(139));
                }
                Act::CrashOnce => {}
                Act::Fail => {
                    let word = Word::Failed {
                        error: "as planned".to_owned(),
                    };
                    self.say(word).await?;
                    return Err(Leave::With(1));
                }
            }
        }
        let output = Some(Bytes::from_static(b"\"done\""));
        self.say(Word::Completed { output }).await
    }

    async fn say(&self, word: Word) -> Result<(), Leave> {
        self.call(false, async |server| {
            server.core.say(&self.caller, word).await
        })
        .await
    }

    async fn look(&self, name: &str) -> Result<Option<Bytes>, Leave> {
        self.checkpoint(name, Bytes::new()).await
    }

    async fn save(&self, name: &str, value: Bytes) -> Result<(), Leave> {
        let found = self.checkpoint(name, value.clone()).await?;
        let kept = found.unwrap_or(value);
        self.host.ledger.told(&self.key, name, &kept);
        Ok(())
    }

    async fn checkpoint(&self, name: &str, state: Bytes) -> Result<Option<Bytes>, Leave> {
        let request = SaveCheckpoint {
            checkpoint_id: CheckpointId::new(name).unwrap(),
            state,
            request_id: None,
        };
        let caller = &self.caller;
        let answer = self
            .call(false, async |server| {
                server.core.checkpoint(caller, request).await
            })
            .await?;
        if let Some(found) = &answer.found {
            self.host.ledger.told(&self.key, name, found);
        }
        match answer.signal.map(|signal| signal.kind) {
            None | Some(SignalKind::Resume) => Ok(answer.found),
            Some(SignalKind::Pause) => {
                self.say(Word::Acknowledged(SignalKind::Pause)).await?;
                self.say(Word::Suspended).await?;
                Err(Leave::With(0))
            }
            Some(SignalKind::Cancel) => {
                self.say(Word::Acknowledged(SignalKind::Cancel)).await?;
                Err(Leave::With(1))
            }
        }
    }
}
