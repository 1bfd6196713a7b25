//! Parks guests when the server goes away.

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
    pub(crate) fn enter(self: &std::sync::Arc<Self>) -> Going {
        self.going.fetch_add(1, Ordering::SeqCst);
        Going(std::sync::Arc::clone(self))
    }

    /// Passes, or stays for good.
    pub(crate) async fn pass(&self) {
        if !*self.closed.borrow() {
            return;
        }
        let _parked = Fewer::of(self);
        std::future::pending::<()>().await;
    }

    /// Waits for something before a guest is run. Meanwhile it does not count as going, and if the gate closes it stays.
    pub(crate) async fn pause<F: Future>(&self, waiting: F) -> F::Output {
        let parked = Fewer::of(self);
        let waited = waiting.await;
        drop(parked);
        self.pass().await;
        waited
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

/// A guest that was noted.
pub(crate) struct Going(std::sync::Arc<Gate>);

impl Drop for Going {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A guest that is parked does not count as going; when it is dropped, it counts again, for its [`Going`] to take it away.
struct Fewer<'a>(&'a Gate);

impl<'a> Fewer<'a> {
    fn of(gate: &'a Gate) -> Self {
        gate.leave();
        Self(gate)
    }
}

impl Drop for Fewer<'_> {
    fn drop(&mut self) {
        self.0.going.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_is_closed_when_all_are_parked_or_gone() {
        let gate = Arc::new(Gate::new());
        let (gone, parked) = (gate.enter(), Arc::clone(&gate));
        gate.pass().await;
        let parked = tokio::spawn(async move {
            let _going = parked.enter();
            loop {
                parked.pass().await;
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
        parked.abort();
    }
}
