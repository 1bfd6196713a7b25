//! The protocol as calls of the host, for a component that runs in the server's own process.
//!
//! To this program a call of the host takes no time to wait in: everything else in it stands still until it returns. So the host is asked
//! to wait only while nothing else is to be done; meanwhile other waits are timers of this program, which look at the store now and then.

use std::time::{Duration, Instant};

use tokio::select;

use crate::clock::{now_ms, remaining};
use crate::leave::{Leave, Leaving};
use crate::protocol::{CustomSignal, Saved, Sleep};
use crate::work::Waiting;
use crate::{Error, Settings};

mod bindings {
    // Written by a macro, not by us.
    #![allow(
        missing_docs,
        unsafe_code,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes,
        reason = "generated"
    )]

    wit_bindgen::generate!({
        path: "wit",
        world: "imports",
    });
}

use bindings::runtara::durable::{checkpoints, instance, outcome, report, signals, sleep, types};

/// How soon a wait looks at the store while other branches are at work, at first and at last.
const FIRST_LOOK: Duration = Duration::from_millis(20);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// The host that this program runs in.
pub(crate) struct Server {
    settings: Settings,
}

impl Server {
    /// Whether the server hears of a sleep, and saves it, before nothing else is to be done.
    pub(crate) const HEARS_OF_EACH_SLEEP: bool = false;

    /// # Errors
    /// [`Error::Settings`] if they are those of another instance: the host speaks for the one that it runs.
    pub(crate) fn new(settings: Settings) -> Result<Self, Error> {
        let id = instance::id();
        if settings.instance_id != id {
            return Err(Error::Settings {
                variable: "RUNTARA_INSTANCE_ID",
                found: format!("{:?}", settings.instance_id),
                wanted: "the id of the instance that this component was launched as",
            });
        }
        Ok(Self { settings })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The host announces this run with its first call, which a look for a signal is.
    pub(crate) async fn register(&self) -> Result<(), Error> {
        done("signals.poll", signals::poll).map(drop)
    }

    pub(crate) async fn input(&self) -> Result<Option<Vec<u8>>, Error> {
        done("instance.input", instance::input)
    }

    /// Looks a checkpoint up.
    pub(crate) async fn look_up(&self, id: &str) -> Result<Saved, Error> {
        let answer = done("checkpoints.get", || checkpoints::get(id))?;
        Ok(saved(id, answer))
    }

    /// Saves a checkpoint, unless there is one.
    pub(crate) async fn save(&self, id: &str, state: &[u8]) -> Result<Saved, Error> {
        let answer = done("checkpoints.save", || checkpoints::save(id, state))?;
        Ok(saved(id, answer))
    }

    /// Why this run is to leave, if it is.
    pub(crate) async fn poll(&self) -> Result<Option<Leave>, Error> {
        let signal = done("signals.poll", signals::poll)?;
        Ok(signal.and_then(|signal| told(signal.kind)))
    }

    /// Sleeps: in the host if nothing else is to be done, and else beside it. It may end before its time.
    pub(crate) async fn sleep(
        &self,
        sleep: &Sleep<'_>,
        waiting: &mut Waiting<'_>,
        leaving: &Leaving,
    ) -> Result<(), Error> {
        let mut looks = Looks::new();
        loop {
            if waiting.order().park {
                let save = sleep::State {
                    name: sleep.id.to_owned(),
                    state: sleep.state.to_vec(),
                };
                let milliseconds = remaining(sleep.until_ms);
                return done("sleep.sleep", || sleep::sleep(milliseconds, Some(&save)));
            }
            if now_ms() >= sleep.until_ms || self.poll().await?.is_some() {
                return Ok(());
            }
            looks.pause(Some(sleep.until_ms), waiting, leaving).await?;
        }
    }

    /// Waits for a custom signal: in the host if nothing else is to be done, and else beside it. It may end before its time without one.
    pub(crate) async fn wait(
        &self,
        id: &str,
        waiting: &mut Waiting<'_>,
        leaving: &Leaving,
    ) -> Result<Option<CustomSignal>, Error> {
        let came = |payload| {
            Some(CustomSignal {
                id: id.to_owned(),
                payload,
            })
        };
        let mut looks = Looks::new();
        loop {
            let order = waiting.order();
            if order.park {
                let milliseconds = order.until_ms.map(remaining);
                let waited = done("signals.wait", || signals::wait(id, milliseconds))?;
                return Ok(match waited {
                    signals::Waited::Came(payload) => came(payload),
                    signals::Waited::TimedOut | signals::Waited::Interrupted => None,
                });
            }
            if let Some(payload) = done("signals.take", || signals::take(id))? {
                return Ok(came(payload));
            }
            let is_over = order.until_ms.is_some_and(|until| until <= now_ms());
            if is_over || self.poll().await?.is_some() {
                return Ok(None);
            }
            looks.pause(order.until_ms, waiting, leaving).await?;
        }
    }

    /// Says that this run leaves as it was asked to.
    pub(crate) async fn acknowledge_cancel(&self) -> Result<(), Error> {
        done("signals.acknowledge", || {
            signals::acknowledge(types::SignalKind::Cancel)
        })
    }

    /// Says that this run leaves as it was asked to.
    pub(crate) async fn acknowledge_pause(&self) -> Result<(), Error> {
        done("signals.acknowledge", || {
            signals::acknowledge(types::SignalKind::Pause)
        })
    }

    pub(crate) async fn suspend(&self) -> Result<(), Error> {
        done("outcome.suspend", outcome::suspend)
    }

    /// Says that the instance is done, with this output as JSON.
    pub(crate) async fn complete(&self, output: &[u8]) -> Result<(), Error> {
        done("outcome.complete", || outcome::complete(Some(output)))
    }

    pub(crate) async fn fail(&self, error: &str) -> Result<(), Error> {
        done("outcome.fail", || outcome::fail(error))
    }

    /// Records an event of the program's own.
    pub(crate) async fn event(&self, subtype: &str, payload: &[u8]) -> Result<(), Error> {
        done("report.event", || report::event(subtype, Some(payload)))
    }

    pub(crate) async fn heartbeat(&self) -> Result<(), Error> {
        done("report.heartbeat", report::heartbeat)
    }

    pub(crate) async fn retry(&self, name: &str, attempt: u32, error: &str) -> Result<(), Error> {
        done("report.retry", || report::retry(name, attempt, Some(error)))
    }
}

/// Carries out a call. The host repeats by itself what can be repeated, for about ten minutes.
fn done<T>(function: &str, call: impl FnOnce() -> Result<T, types::Error>) -> Result<T, Error> {
    let begun = Instant::now();
    call().map_err(|error| match error {
        types::Error::Refused(_) => Error::Ended,
        types::Error::Superseded(_) => Error::Superseded,
        types::Error::Invalid(message) => Error::Refused {
            action: action(function),
            status: 400,
            code: "INVALID".to_owned(),
            message,
        },
        types::Error::Unavailable(last) => Error::Unreachable {
            action: action(function),
            server: "the host".to_owned(),
            tried_for: begun.elapsed(),
            last,
        },
    })
}

fn action(function: &str) -> String {
    format!("runtara:durable/{function}")
}

fn saved(id: &str, answer: checkpoints::Saved) -> Saved {
    let id = id.to_owned();
    Saved {
        found: answer.found,
        leave: answer.signal.and_then(|signal| told(signal.kind)),
        custom_signal: answer
            .custom_signal
            .map(|payload| CustomSignal { id, payload }),
    }
}

/// Why this run is to leave, if a signal says so.
fn told(kind: types::SignalKind) -> Option<Leave> {
    match kind {
        types::SignalKind::Cancel => Some(Leave::Cancelled),
        types::SignalKind::Pause => Some(Leave::Suspended),
        types::SignalKind::Resume => None,
    }
}

/// Looks one after the other, with growing pauses.
struct Looks(Duration);

impl Looks {
    fn new() -> Self {
        Self(FIRST_LOOK)
    }

    /// Waits until it is time to look again, the end has come, or the other branches have changed what is to be done.
    async fn pause(
        &mut self,
        until_ms: Option<i64>,
        waiting: &mut Waiting<'_>,
        leaving: &Leaving,
    ) -> Result<(), Error> {
        let end = until_ms.map_or(Duration::MAX, |until| {
            Duration::from_millis(remaining(until))
        });
        let pause = self.0.min(end);
        self.0 = (self.0 * 2).min(LAST_LOOK);
        select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = waiting.changed() => Ok(()),
            error = leaving.wait() => Err(error),
        }
    }
}
