//! Wishes to end a run that come before there is a program that could be asked to leave.

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
    deadline: Instant,
    heard: Cell<Option<Heard>>,
}

/// A wish that has come.
#[derive(Debug, Clone, Copy)]
struct Heard {
    by: EndedBy,
    kill_at: Instant,
}

impl<'a> Wishes<'a> {
    /// Of a run whose time is over at the deadline.
    pub(super) fn new(signals: BorrowedFd<'a>, deadline: Instant) -> Self {
        Self {
            signals,
            deadline,
            heard: Cell::new(None),
        }
    }

    /// Becomes readable when a wish comes; also for other reasons.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'a> {
        self.signals
    }

    /// The moment at which nothing of the run may be any more, as far as is known now.
    #[must_use]
    pub fn ends_at(&self) -> Instant {
        self.ending().kill_at
    }

    /// Whether the run is to be over by now.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.due().is_some()
    }

    /// On whose wish the run is to be over by now, if it is.
    pub(super) fn due(&self) -> Option<EndedBy> {
        let ending = self.ending();
        (ending.kill_at <= Instant::now()).then_some(ending.by)
    }

    /// What was heard, for whoever minds the program from now on.
    pub(super) fn pass_on(&self) -> Option<Request> {
        self.listen();
        self.heard.get().map(|heard| Request {
            grace: heard.kill_at.saturating_duration_since(Instant::now()),
            ended_by: heard.by,
        })
    }

    fn ending(&self) -> Heard {
        self.listen();
        let deadline = Heard {
            by: EndedBy::Deadline,
            kill_at: self.deadline,
        };
        let heard = self.heard.get();
        heard
            .filter(|heard| heard.kill_at < deadline.kill_at)
            .unwrap_or(deadline)
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
