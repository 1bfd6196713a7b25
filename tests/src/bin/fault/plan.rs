//! Which instances are started when, what they do, and what is done to them: all of it follows from the seed.

use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use crate::judge::EFFECTS;

/// How an instance is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    /// A process of the host, which keeps the ledger.
    #[default]
    Native,
    /// The same program in a container.
    Oci,
    /// A WebAssembly guest.
    Wasm,
}

/// To what end it must come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Expected {
    #[default]
    Completed,
    /// With this in its error.
    Failed(String),
    /// Or completed, if that was faster.
    Cancelled,
}

/// What is asked of the server for an instance.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Start,
    /// Sent, and the answer not read.
    StartUnheard,
    Signal(&'static str),
    Custom(String, Value),
    Resume,
    Stop,
}

/// An image that was registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registered {
    pub(crate) id: String,
    /// The digest of its content.
    pub(crate) digest: String,
}

/// An instance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Planned {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    /// What it does.
    pub(crate) actions: Value,
    /// The checkpoints that it saves.
    pub(crate) steps: Vec<String>,
    /// The custom signals that it waits for, and what they bring.
    pub(crate) signals: Vec<(String, Value)>,
    pub(crate) expected: Expected,
    /// What is asked when, in this order.
    pub(crate) asks: Vec<(Duration, Ask)>,
    /// Its image, if it is not that of its kind: then it knows nothing of the protocol.
    pub(crate) image: Option<Registered>,
    /// What it must give, if it is known.
    pub(crate) output: Option<Value>,
    /// What it is, for people.
    pub(crate) about: &'static str,
}

impl Planned {
    /// What its start sends.
    pub(crate) fn input(&self, ledger: &str) -> Value {
        match self.kind {
            Kind::Native => json!({"ledger_file": ledger, "actions": self.actions}),
            Kind::Oci => json!({"effects_event": EFFECTS, "actions": self.actions}),
            Kind::Wasm => {
                json!({"effects_event": EFFECTS, "ledger_on_stderr": true, "actions": self.actions})
            }
        }
    }
}

/// Plans so many instances over this time.
pub(crate) fn plan(rng: &mut Rng, count: usize, time: Duration, kinds: &[Kind]) -> Vec<Planned> {
    // They come in waves, of which the last has time left to meet faults.
    let waves = (count / 12).max(2);
    let one = |number: usize| {
        let wave = number * waves / count;
        let at = time.mul_f64(0.85 * wave as f64 / waves as f64);
        let at = at + Duration::from_millis(rng.u64(0..1_500));
        let kind = match rng.u32(0..10) {
            0 | 1 if kinds.contains(&Kind::Oci) => Kind::Oci,
            2..=4 if kinds.contains(&Kind::Wasm) => Kind::Wasm,
            _ if kinds.contains(&Kind::Native) => Kind::Native,
            _ => kinds[rng.usize(..kinds.len())],
        };
        planned(rng, number, kind, at)
    };
    (0..count).map(one).collect()
}

/// One of them.
fn planned(rng: &mut Rng, number: usize, kind: Kind, at: Duration) -> Planned {
    let mut it = Planned {
        id: format!("i{number:04}"),
        kind,
        ..Planned::default()
    };
    let mut actions = Vec::new();
    if rng.u32(0..4) == 0 {
        // Whoever starts hears nothing, and asks again.
        it.asks.push((at, Ask::StartUnheard));
    }
    let mut next = at + Duration::from_millis(rng.u64(0..300));
    it.asks.push((next, Ask::Start));
    let mut later = |rng: &mut Rng, from: u64, to: u64| {
        next += Duration::from_millis(rng.u64(from..to));
        next
    };
    let steps = rng.usize(3..12);
    let what = rng.u32(0..10);
    // A guest does not save what a signal brings; so it waits for it as the last that it does, and is shown it again.
    let is_last = kind == Kind::Wasm && matches!(what, 2 | 3);
    let middle = if is_last { steps } else { rng.usize(1..steps) };
    for step in 0..=steps {
        let id = format!("s{step}");
        // Who is told something meanwhile works until then.
        let slowly = if matches!(what, 5 | 6 | 8) { 4 } else { 1 };
        let work_ms = rng.u64(0..250) * slowly;
        if step == middle {
            match what {
                0 => {
                    it.about = "holds a sleep";
                    actions.push(json!({"sleep": {"id": "held", "ms": rng.u64(200..900)}}));
                }
                1 => {
                    it.about = "sleeps far";
                    actions.push(json!({"sleep": {"id": "far", "ms": rng.u64(2_000..8_000)}}));
                }
                2 => {
                    it.about = "waits for a signal";
                    let payload = json!({"n": number});
                    actions.push(json!({"wait_signal": {"id": "go", "timeout_ms": null}}));
                    it.signals.push(("go".to_owned(), payload.clone()));
                    it.asks.push((
                        later(rng, 500, 9_000),
                        Ask::Custom("go".to_owned(), payload),
                    ));
                }
                3 => {
                    it.about = "asks for a signal";
                    let payload = json!(format!("for {number}"));
                    actions.push(json!({"signal": "go"}));
                    it.signals.push(("go".to_owned(), payload.clone()));
                    it.asks.push((
                        later(rng, 500, 5_000),
                        Ask::Custom("go".to_owned(), payload),
                    ));
                }
                4 => {
                    it.about = "crashes in its first run";
                    actions.push(json!({"on_run": 1, "do": {"abort": true}}));
                }
                5 => {
                    it.about = "is paused and resumed";
                    it.asks.push((later(rng, 200, 2_500), Ask::Signal("pause")));
                    it.asks.push((later(rng, 500, 4_000), Ask::Resume));
                }
                6 => {
                    it.about = "is cancelled";
                    it.expected = Expected::Cancelled;
                    it.asks
                        .push((later(rng, 200, 4_000), Ask::Signal("cancel")));
                }
                7 => {
                    it.about = "fails";
                    let why = format!("as told to {number}");
                    it.expected = Expected::Failed(why.clone());
                    actions.push(json!({"fail": why}));
                    break;
                }
                8 => {
                    it.about = "is stopped";
                    it.expected = Expected::Cancelled;
                    it.asks.push((later(rng, 500, 5_000), Ask::Stop));
                }
                _ => it.about = "works",
            }
        }
        if step == steps {
            break;
        }
        actions.push(json!({"checkpoint": {"id": id, "work_ms": work_ms}}));
        it.steps.push(id);
        if rng.u32(0..5) == 0 {
            actions.push(json!({"poll": true}));
        }
    }
    it.actions = actions.into();
    it
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_plan_and_has_all_in_it() {
        let kinds = [Kind::Native, Kind::Oci, Kind::Wasm];
        let made = |seed| {
            let time = Duration::from_secs(60);
            plan(&mut Rng::with_seed(seed), 300, time, &kinds)
        };
        assert_eq!(format!("{:?}", made(7)), format!("{:?}", made(7)));
        assert_ne!(format!("{:?}", made(7)), format!("{:?}", made(8)));
        let abouts: std::collections::BTreeSet<_> =
            made(7).iter().map(|it| (it.kind, it.about)).collect();
        assert_eq!(abouts.len(), 30, "{abouts:?}");
        let ids: std::collections::BTreeSet<_> = made(7).into_iter().map(|it| it.id).collect();
        assert_eq!(ids.len(), 300);
    }

    #[test]
    fn what_is_asked_of_an_instance_comes_in_order_and_after_its_start() {
        let time = Duration::from_secs(60);
        for it in plan(&mut Rng::with_seed(3), 200, time, &[Kind::Native]) {
            assert!(it.asks.is_sorted_by_key(|(at, _)| *at), "{it:?}");
            let first = &it.asks[0].1;
            assert!(matches!(first, Ask::Start | Ask::StartUnheard), "{it:?}");
        }
    }
}
