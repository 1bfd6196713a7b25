//! Who is at work and who waits: whether the process may be ended while a wait goes on.
//!
//! The server ends the process of an instance that waits long (it *parks* it), and starts it again when the wait is over. With
//! several branches side by side it may do so only while all of them wait, and must start it again when the *first* of them
//! is to go on. The server sees one call at a time, so that is decided here: every wait has an [`Order`] which changes as
//! the others begin and end, and at most one wait at a time is ordered to park.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// What a branch waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    Time,
    Signal,
}

/// How a wait is to be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    /// Whether the process may be ended meanwhile.
    pub(crate) park: bool,
    /// When to stop waiting, in milliseconds since 1970; sooner than the wait itself ends if another branch must go on then.
    pub(crate) until_ms: Option<i64>,
}

struct Waiter {
    awaited: Awaited,
    until_ms: Option<i64>,
    order: watch::Sender<Order>,
}

struct State {
    /// How many branches there are; one, where the program has not split.
    branches: usize,
    /// How many splits are under way.
    splits: usize,
    /// How many steps and calls are at work, waits excluded.
    operations: usize,
    next: u64,
    waiters: BTreeMap<u64, Waiter>,
}

/// The count of one instance.
pub(crate) struct Work(Mutex<State>);

impl Work {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            branches: 1,
            splits: 0,
            operations: 0,
            next: 0,
            waiters: BTreeMap::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        state.settle();
    }

    /// Notes that a step or a call begins.
    pub(crate) fn begin(self: &Arc<Self>) -> Operation {
        self.change(|state| state.operations += 1);
        Operation(Arc::clone(self))
    }

    /// Notes that the program splits.
    pub(crate) fn split(self: &Arc<Self>, branches: usize) -> Split {
        self.change(|state| {
            state.splits += 1;
            // The one that splits does nothing else meanwhile.
            state.branches += branches.saturating_sub(1);
        });
        Split {
            work: Arc::clone(self),
            left: branches,
        }
    }

    /// Whether branches are side by side now.
    pub(crate) fn is_split(&self) -> bool {
        self.lock().splits > 0
    }
}

impl State {
    /// Gives each waiter its order.
    fn settle(&mut self) {
        let elected = self.elected();
        for (id, waiter) in &self.waiters {
            let order = match elected {
                Some((chosen, order)) if chosen == *id => order,
                _ => Order {
                    park: false,
                    until_ms: waiter.until_ms,
                },
            };
            waiter.order.send_if_modified(|current| {
                let changed = *current != order;
                *current = order;
                changed
            });
        }
    }

    /// The waiter that may park, if one may.
    fn elected(&self) -> Option<(u64, Order)> {
        if self.operations > 0 || self.waiters.len() < self.branches {
            return None;
        }
        let first_end = self
            .waiters
            .values()
            .filter_map(|waiter| waiter.until_ms)
            .min();
        let park = |id| {
            let order = Order {
                park: true,
                until_ms: first_end,
            };
            (id, order)
        };
        let mut signals = self
            .waiters
            .iter()
            .filter(|(_, waiter)| waiter.awaited == Awaited::Signal);
        match (signals.next(), signals.next()) {
            (None, _) => self
                .waiters
                .iter()
                .min_by_key(|(_, waiter)| waiter.until_ms)
                .map(|(id, _)| park(*id)),
            // The signal or the first of the others, whichever comes first, starts the program again.
            (Some((id, _)), None) => Some(park(*id)),
            // A parked instance is woken by one signal only: with two to wait for it must stay.
            (Some(_), Some(_)) => None,
        }
    }
}

/// A step or a call that is at work.
pub(crate) struct Operation(Arc<Work>);

impl Operation {
    /// Turns the operation into a wait until what this gives is dropped.
    pub(crate) fn wait(&self, awaited: Awaited, until_ms: Option<i64>) -> Waiting<'_> {
        let (order, orders) = watch::channel(Order {
            park: false,
            until_ms,
        });
        let mut id = 0;
        self.0.change(|state| {
            id = state.next;
            state.next += 1;
            state.operations -= 1;
            let waiter = Waiter {
                awaited,
                until_ms,
                order,
            };
            state.waiters.insert(id, waiter);
        });
        Waiting {
            operation: self,
            id,
            orders,
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.0.change(|state| state.operations -= 1);
    }
}

/// A wait, as long as it lives.
pub(crate) struct Waiting<'a> {
    operation: &'a Operation,
    id: u64,
    orders: watch::Receiver<Order>,
}

impl Waiting<'_> {
    /// How to wait now.
    pub(crate) fn order(&mut self) -> Order {
        *self.orders.borrow_and_update()
    }

    /// Ends when the order has changed since it was taken last.
    pub(crate) async fn changed(&mut self) {
        if self.orders.changed().await.is_err() {
            // The sender lives in the count until this wait is dropped, so this is never reached; nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.operation.0.change(|state| {
            state.waiters.remove(&self.id);
            state.operations += 1;
        });
    }
}

/// Branches side by side, as long as it lives.
pub(crate) struct Split {
    work: Arc<Work>,
    left: usize,
}

impl Split {
    /// Notes that one branch has ended.
    pub(crate) fn ended(&mut self) {
        self.left -= 1;
        // In place of the last one, the program that split is at work again.
        if self.left > 0 {
            self.work.change(|state| state.branches -= 1);
        }
    }
}

impl Drop for Split {
    fn drop(&mut self) {
        let left = self.left.saturating_sub(1);
        self.work.change(|state| {
            state.splits -= 1;
            state.branches -= left;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARK: bool = true;
    const HOLD: bool = false;

    fn order(park: bool, until_ms: Option<i64>) -> Order {
        Order { park, until_ms }
    }

    #[test]
    fn alone_it_parks() {
        let work = Work::new();
        let operation = work.begin();
        let mut wait = operation.wait(Awaited::Time, Some(7));
        assert_eq!(wait.order(), order(PARK, Some(7)));
    }

    #[test]
    fn it_is_held_while_another_branch_is_at_work() {
        let work = Work::new();
        let mut split = work.split(2);
        let a = work.begin();
        let mut wait = a.wait(Awaited::Time, Some(7));
        assert_eq!(wait.order(), order(HOLD, Some(7)));
        split.ended();
        assert_eq!(wait.order(), order(PARK, Some(7)));
    }

    #[test]
    fn the_first_to_wake_parks_and_the_others_are_held() {
        let work = Work::new();
        let _split = work.split(2);
        let (a, b) = (work.begin(), work.begin());
        let mut first = a.wait(Awaited::Time, Some(9));
        {
            let mut second = b.wait(Awaited::Time, Some(5));
            assert_eq!(first.order(), order(HOLD, Some(9)));
            assert_eq!(second.order(), order(PARK, Some(5)));
        }
        assert_eq!(first.order(), order(HOLD, Some(9)));
        let mut second = b.wait(Awaited::Time, Some(11));
        assert_eq!(first.order(), order(PARK, Some(9)));
        assert_eq!(second.order(), order(HOLD, Some(11)));
    }

    #[test]
    fn a_signal_parks_until_the_first_of_the_others_is_to_go_on() {
        let work = Work::new();
        let _split = work.split(3);
        let (a, b, c) = (work.begin(), work.begin(), work.begin());
        let mut signal = a.wait(Awaited::Signal, None);
        let mut late = b.wait(Awaited::Time, Some(9));
        assert_eq!(signal.order(), order(HOLD, None));
        let mut soon = c.wait(Awaited::Time, Some(5));
        assert_eq!(signal.order(), order(PARK, Some(5)));
        assert_eq!(late.order(), order(HOLD, Some(9)));
        assert_eq!(soon.order(), order(HOLD, Some(5)));
    }

    #[test]
    fn two_signals_are_held() {
        let work = Work::new();
        let _split = work.split(2);
        let (a, b) = (work.begin(), work.begin());
        let mut one = a.wait(Awaited::Signal, None);
        let mut two = b.wait(Awaited::Signal, Some(3));
        assert_eq!(one.order(), order(HOLD, None));
        assert_eq!(two.order(), order(HOLD, Some(3)));
    }

    #[test]
    fn a_step_in_another_future_holds_it_without_branches() {
        let work = Work::new();
        let step = work.begin();
        let operation = work.begin();
        let mut wait = operation.wait(Awaited::Time, Some(7));
        assert_eq!(wait.order(), order(HOLD, Some(7)));
        drop(step);
        assert_eq!(wait.order(), order(PARK, Some(7)));
    }

    #[test]
    fn branches_that_are_dropped_leave_nothing_behind() {
        let work = Work::new();
        {
            let mut split = work.split(3);
            split.ended();
            assert!(work.is_split());
            let _nested = work.split(4);
        }
        assert!(!work.is_split());
        drop(work.split(0));
        let state = work.lock();
        assert_eq!((state.branches, state.operations), (1, 0));
    }
}
