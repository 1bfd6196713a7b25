//! What ends the making of a container: wishes to end its run, which come before there is a program that could be asked to leave, and the
//! time that the making may take.

use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use runtara_domain::EndedBy;

use super::parent::after;
use super::request::Request;
use super::sys;

/// What is heard while a container is being made. Whoever waits meanwhile polls the descriptor, and gives up at the moment.
#[derive(Debug)]
pub struct Wishes<'a> {
    signals: BorrowedFd<'a>,
    made_by: Instant,
    heard: Cell<Option<Heard>>,
}

/// Why a container is not to be made any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// Somebody wished the run to end.
    Wished(EndedBy),
    /// It took too long: the host's fault, not that of a program that has not begun.
    Late,
}

/// A wish that has come.
#[derive(Debug, Clone, Copy)]
struct Heard {
    by: EndedBy,
    kill_at: Instant,
}

impl<'a> Wishes<'a> {
    /// Of a run whose container is to be there at this moment.
    pub(super) fn new(signals: BorrowedFd<'a>, made_by: Instant) -> Self {
        Self {
            signals,
            made_by,
            heard: Cell::new(None),
        }
    }

    /// Becomes readable when a wish comes; also for other reasons.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'a> {
        self.signals
    }

    /// The moment at which the container is given up if it is not there, as far as is known now.
    #[must_use]
    pub fn ends_at(&self) -> Instant {
        self.listen();
        let heard = self.heard.get();
        heard.map_or(self.made_by, |heard| heard.kill_at.min(self.made_by))
    }

    /// Whether the container is given up by now.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.given_up().is_some()
    }

    /// Why the container is given up by now, if it is.
    pub(super) fn given_up(&self) -> Option<GivenUp> {
        self.listen();
        let now = Instant::now();
        let wished = self.heard.get().filter(|heard| heard.kill_at <= now);
        wished
            .map(|heard| GivenUp::Wished(heard.by))
            .or_else(|| (self.made_by <= now).then_some(GivenUp::Late))
    }

    /// What was heard, for whoever minds the program from now on.
    pub(super) fn pass_on(&self) -> Option<Request> {
        self.listen();
        self.heard.get().map(|heard| Request {
            grace: heard.kill_at.saturating_duration_since(Instant::now()),
            ended_by: heard.by,
        })
    }

    /// Reads what has come. The wish that leaves the least time counts.
    fn listen(&self) {
        while let Some(signal) = sys::read_signal(self.signals) {
            let Some(request) = Request::of(&signal) else {
                continue;
            };
            let kill_at = after(Instant::now(), request.grace);
            let is_earlier = |heard: Heard| kill_at < heard.kill_at;
            if self.heard.get().is_none_or(is_earlier) {
                self.heard.set(Some(Heard {
                    by: request.ended_by,
                    kill_at,
                }));
            }
        }
    }

    /// How long may be waited for something that may take this long.
    #[must_use]
    pub fn bound(&self, patience: Duration) -> Duration {
        patience.min(self.ends_at().saturating_duration_since(Instant::now()))
    }
}
