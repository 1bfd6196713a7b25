//! Parks guests when the server goes away.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

/// Lets guests through between their durable calls, until the server goes away. From then on each that comes to it stays: what it has said is
/// durable, and a later run goes on from there.
pub(crate) struct Gate {
    closed: watch::Sender<bool>,
    /// Guests that run and are not parked.
    going: AtomicUsize,
    fewer: Notify,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            closed: watch::Sender::new(false),
            going: AtomicUsize::new(0),
            fewer: Notify::new(),
        }
    }

    /// Notes a guest, as long as the answer lives.
    pub(crate) fn enter(self: &Arc<Self>) -> Going {
        self.going.fetch_add(1, Ordering::SeqCst);
        Going(Arc::clone(self))
    }

    /// Closes it, and waits until no guest is going any more.
    pub(crate) async fn close(&self) {
        self.closed.send_replace(true);
        loop {
            let fewer = self.fewer.notified();
            if self.going.load(Ordering::SeqCst) == 0 {
                return;
            }
            fewer.await;
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    fn leave(&self) {
        self.going.fetch_sub(1, Ordering::SeqCst);
        self.fewer.notify_waiters();
    }
}

/// The way of one guest through the gate.
pub(crate) struct Door {
    gate: Arc<Gate>,
    /// Calls of the guest that stay here: it may have several open.
    parked: AtomicUsize,
}

impl Door {
    pub(crate) fn new(gate: Arc<Gate>) -> Self {
        Self {
            gate,
            parked: AtomicUsize::new(0),
        }
    }

    /// Passes, or stays for good.
    pub(crate) async fn pass(&self) {
        if !self.gate.is_closed() {
            return;
        }
        let _parked = Parked::at(self);
        std::future::pending::<()>().await;
    }

    /// Waits for something before a guest is run. Meanwhile it does not count as going, and if the gate closes it stays.
    pub(crate) async fn pause<F: Future>(&self, waiting: F) -> F::Output {
        let parked = Parked::at(self);
        let waited = waiting.await;
        drop(parked);
        self.pass().await;
        waited
    }
}

/// A guest that was noted.
pub(crate) struct Going(Arc<Gate>);

impl Drop for Going {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A guest of which a call is parked does not count as going; when the last of them is dropped, it counts again, for its [`Going`] to take
/// it away.
struct Parked<'a>(&'a Door);

impl<'a> Parked<'a> {
    fn at(door: &'a Door) -> Self {
        if door.parked.fetch_add(1, Ordering::SeqCst) == 0 {
            door.gate.leave();
        }
        Self(door)
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        if self.0.parked.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.gate.going.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_is_closed_when_all_are_parked_or_gone() {
        let gate = Arc::new(Gate::new());
        let (gone, parked) = (gate.enter(), Arc::new(Door::new(Arc::clone(&gate))));
        parked.pass().await;
        let parked = tokio::spawn(async move {
            let _going = parked.gate.enter();
            loop {
                // More than one call at once.
                tokio::join!(parked.pass(), parked.pass());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let closing = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.close().await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!closing.is_finished());
        drop(gone);
        closing.await.unwrap();
        assert!(gate.is_closed());
        assert_eq!(gate.going.load(Ordering::SeqCst), 0);
        parked.abort();
        assert!(parked.await.is_err());
        assert_eq!(gate.going.load(Ordering::SeqCst), 0);
    }
}
