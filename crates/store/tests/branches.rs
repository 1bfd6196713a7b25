//! Two branches of one run that wait side by side, as the SDK has them wait: what is taken off the running time is the time in which
//! both waited.
//!
//! The SDK orders one wait to park while all branches wait, and the others not to; whenever the orders change, the calls are dropped
//! and asked for anew. Each call goes over a connection of its own, so calls of one moment arrive in any order.

#![cfg(feature = "conformance")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use proptest::prelude::*;
use runtara_domain::Timestamp;
use runtara_store::conformance::Harness;
use runtara_store::conformance::make::{sleep, wait_for};
use runtara_store::conformance::world::{Run, World};
use runtara_store::memory::MemoryStore;
use runtara_store::{HeldWait, ManualClock, Nudges, Store, WaitRequest, Waiting};
use tokio::runtime::Builder;

struct Memory {
    clock: Arc<ManualClock>,
    store: Arc<dyn Store>,
}

#[async_trait]
impl Harness for Memory {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn advance(&self, millis: u64) {
        self.clock.advance_millis(millis);
    }
}

/// What a branch does.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// It works for so long.
    Work(u64),
    /// It sleeps for so long.
    Sleep(u64),
    /// It waits for its signal, which comes after so long, or for so long at most.
    Signal { comes: u64, limit: u64 },
}

/// How a wait is to be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Order {
    park: bool,
    until: i64,
}

/// A wait under way.
struct Wait {
    /// Its own end.
    until: i64,
    is_signal: bool,
    /// When the signal comes, until it has.
    comes: Option<i64>,
    order: Order,
    /// What its call names itself.
    request_id: String,
    /// Whether it is to be asked for, for the first time or anew.
    asks: bool,
    held: Option<HeldWait>,
}

enum Doing {
    Work { until: i64 },
    Wait(Wait),
    Nothing,
}

struct Branch {
    steps: VecDeque<Step>,
    doing: Doing,
    /// The wait that it goes on with after it was woken because the other branch was to go on.
    again: Option<(i64, Option<i64>)>,
}

/// Something that may happen now.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// A branch has done its work.
    WorkEnds(usize),
    /// The call of a branch arrives.
    Asks(usize),
    /// The held call of a branch is over.
    WaitEnds(usize),
    /// The signal that a branch waits for comes.
    SignalComes(usize),
}

struct Program<'w> {
    world: &'w World<'w>,
    run: Run<'w>,
    branches: Vec<Branch>,
    requests: u32,
    /// For how long so far all branches have waited.
    all_waited: u64,
}

/// How long the SDK works between a wait that was answered early and the next.
const PAUSE_MS: i64 = 10;

impl Program<'_> {
    fn now(&self) -> i64 {
        self.world.now().0
    }

    /// What may happen at this moment, in no order.
    fn possible(&self) -> Vec<Next> {
        let now = self.now();
        let mut possible = Vec::new();
        for (n, branch) in self.branches.iter().enumerate() {
            match &branch.doing {
                Doing::Work { until } if *until <= now => possible.push(Next::WorkEnds(n)),
                Doing::Wait(wait) => {
                    if wait.comes.is_some_and(|comes| comes <= now) {
                        possible.push(Next::SignalComes(n));
                    }
                    if wait.asks {
                        possible.push(Next::Asks(n));
                    } else if wait.order.until <= now || (wait.is_signal && wait.comes.is_none()) {
                        possible.push(Next::WaitEnds(n));
                    }
                }
                _ => {}
            }
        }
        possible
    }

    /// When something may happen next.
    fn next_moment(&self) -> Option<i64> {
        let moments = self
            .branches
            .iter()
            .filter_map(|branch| match &branch.doing {
                Doing::Work { until } => Some(*until),
                Doing::Wait(wait) => Some(
                    wait.comes
                        .map_or(wait.order.until, |comes| comes.min(wait.order.until)),
                ),
                Doing::Nothing => None,
            });
        moments.min()
    }

    async fn happen(&mut self, next: Next) {
        match next {
            Next::WorkEnds(n) => self.go_on(n),
            Next::SignalComes(n) => {
                self.world
                    .send(self.run.id(), &signal_of(n), b"it came")
                    .await;
                self.wait_of(n).comes = None;
            }
            Next::Asks(n) => {
                let now = self.now();
                let request = self.request(n, now);
                let answer = self.run.wait(request).await;
                self.answered(n, answer);
            }
            Next::WaitEnds(n) => {
                let held = self.wait_of(n).held.clone().unwrap();
                let answer = self.run.go_on(&held, false).await;
                assert!(!matches!(answer, Waiting::Held(_)), "its time has come");
                self.answered(n, answer);
            }
        }
    }

    fn wait_of(&mut self, n: usize) -> &mut Wait {
        match &mut self.branches[n].doing {
            Doing::Wait(wait) => wait,
            _ => panic!("branch {n} does not wait"),
        }
    }

    fn request(&mut self, n: usize, now: i64) -> WaitRequest {
        let wait = self.wait_of(n);
        wait.asks = false;
        let remaining = |until: i64| u64::try_from(until - now).unwrap_or(0);
        let mut request = if wait.is_signal {
            let mut request = wait_for(&signal_of(n), Some(remaining(wait.order.until)));
            request.call.state_hash = [u8::try_from(wait.order.until % 251).unwrap(); 32];
            request
        } else {
            let state = wait.until.to_string();
            let name = format!("sleep-{n}");
            sleep(Some(&name), remaining(wait.until), state.as_bytes())
        };
        request.call.request_id = Some(wait.request_id.clone());
        request.call.named = true;
        request.call.park = wait.order.park;
        request.hold_ms = u64::MAX;
        request
    }

    fn answered(&mut self, n: usize, answer: Waiting) {
        let now = self.now();
        match answer {
            Waiting::Held(held) => self.wait_of(n).held = Some(held),
            Waiting::Parked => panic!("it is near"),
            Waiting::Over { signal, .. } => {
                let wait = self.wait_of(n);
                let is_woken_early = wait.is_signal && signal.is_none() && now < wait.until;
                if is_woken_early {
                    let again = (wait.until, wait.comes);
                    self.branches[n].again = Some(again);
                    self.branches[n].doing = Doing::Work {
                        until: now + PAUSE_MS,
                    };
                    self.settle();
                } else {
                    self.go_on(n);
                }
            }
        }
    }

    /// A branch begins what is next.
    fn go_on(&mut self, n: usize) {
        let now = self.now();
        let at = |millis: u64| now + i64::try_from(millis).unwrap();
        let branch = &mut self.branches[n];
        let begin = |is_signal, until, comes| {
            Doing::Wait(Wait {
                until,
                is_signal,
                comes,
                order: Order { park: false, until },
                request_id: String::new(),
                asks: true,
                held: None,
            })
        };
        branch.doing = match branch.again.take() {
            Some((until, comes)) => begin(true, until, comes),
            None => match branch.steps.pop_front() {
                None => Doing::Nothing,
                Some(Step::Work(millis)) => Doing::Work { until: at(millis) },
                Some(Step::Sleep(millis)) => begin(false, at(millis), None),
                Some(Step::Signal { comes, limit }) => begin(true, at(limit), Some(at(comes))),
            },
        };
        self.requests += 1;
        let request_id = format!("r-{}", self.requests);
        if let Doing::Wait(wait) = &mut self.branches[n].doing {
            wait.request_id = request_id;
        }
        self.settle();
    }

    /// The wait that is ordered to park, and until when.
    fn elected(&self) -> Option<(usize, i64)> {
        let mut waits = Vec::new();
        for (n, branch) in self.branches.iter().enumerate() {
            match &branch.doing {
                Doing::Wait(wait) => waits.push((n, wait)),
                Doing::Work { .. } => return None,
                Doing::Nothing => {}
            }
        }
        let first_end = waits.iter().map(|(_, wait)| wait.until).min()?;
        let mut signals = waits.iter().filter(|(_, wait)| wait.is_signal);
        match (signals.next(), signals.next()) {
            (None, _) => waits
                .iter()
                .min_by_key(|(_, wait)| wait.until)
                .map(|(n, _)| (*n, first_end)),
            (Some((n, _)), None) => Some((*n, first_end)),
            (Some(_), Some(_)) => None,
        }
    }

    /// Gives each wait its order; one whose order has changed is asked for anew.
    fn settle(&mut self) {
        let elected = self.elected();
        for n in 0..self.branches.len() {
            let Doing::Wait(wait) = &mut self.branches[n].doing else {
                continue;
            };
            let order = match elected {
                Some((chosen, until)) if chosen == n => Order { park: true, until },
                _ => Order {
                    park: false,
                    until: wait.until,
                },
            };
            if order == wait.order {
                continue;
            }
            if wait.is_signal && order.until != wait.order.until {
                // Another end is another wait.
                self.requests += 1;
                wait.request_id = format!("r-{}", self.requests);
            }
            wait.order = order;
            wait.asks = true;
        }
    }

    /// Plays until all branches have ended. `choices` says which of what may happen at one moment comes first.
    async fn play(&mut self, choices: &[usize]) {
        let mut choices = choices.iter().copied().cycle();
        while let Some(next) = self.next_moment() {
            let passes = next - self.now();
            if let Ok(passes) = u64::try_from(passes) {
                if self.elected().is_some() {
                    self.all_waited += passes;
                }
                self.world.advance(passes).await;
            }
            loop {
                let possible = self.possible();
                if possible.is_empty() {
                    break;
                }
                let choice = choices.next().unwrap() % possible.len();
                self.happen(possible[choice]).await;
            }
        }
    }
}

fn signal_of(branch: usize) -> String {
    format!("signal-{branch}")
}

fn steps(has_signals: bool) -> impl Strategy<Value = Vec<Step>> {
    let millis = || prop_oneof![3 => 1..2_000_u64, 1 => 1..5_u64];
    let signal = (millis(), millis()).prop_map(|(comes, limit)| Step::Signal { comes, limit });
    let weight = if has_signals { 2 } else { 0 };
    let step = prop_oneof![
        2 => millis().prop_map(Step::Work),
        4 => millis().prop_map(Step::Sleep),
        weight => signal,
    ];
    proptest::collection::vec(step, 1..8)
}

async fn slept(branches: [&[Step]; 2], choices: &[usize]) -> (u64, u64) {
    let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
    let store = Arc::new(MemoryStore::new(clock.clone(), Nudges::new()));
    let harness = Memory { clock, store };
    let world = World::new(&harness).await;
    let run = world.launch("order-1").await;
    let mut program = Program {
        world: &world,
        run,
        branches: Vec::new(),
        requests: 0,
        all_waited: 0,
    };
    for steps in branches {
        program.branches.push(Branch {
            steps: steps.iter().copied().collect(),
            doing: Doing::Work {
                until: program.now(),
            },
            again: None,
        });
    }
    program.play(choices).await;
    let state = world.state(program.run.id()).await;
    (state.run.slept_ms, program.all_waited)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_taken_off_is_the_time_in_which_both_waited(
        first in steps(true),
        second in steps(false),
        choices in proptest::collection::vec(0..4_usize, 1..64),
    ) {
        let runtime = Builder::new_current_thread().build().unwrap();
        let (slept, waited) = runtime.block_on(slept([&first, &second], &choices));
        prop_assert_eq!(slept, waited);
    }
}
