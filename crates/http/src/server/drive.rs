//! Drives a connection without waking its task while it runs.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// How often a future that woke itself is polled again at once, before others have their turn.
const AGAIN: usize = 8;

/// Drives a future that wakes itself: what wakes it while it is polled has it polled once more in its place.
///
/// A connection and the handlers of its requests are one task, and they hand each other the parts of bodies. A task that is woken while
/// it runs is put behind all others by the scheduler, which starts a second thread for what seems to be more work: for short requests
/// that costs more than all the rest of them. `is_unsettled` may ask for one more poll, too.
pub(super) async fn drive<F: Future>(
    mut future: Pin<&mut F>,
    is_unsettled: impl Fn() -> bool,
) -> F::Output {
    let inner = Arc::new(Inner::default());
    let waker = Waker::from(Arc::clone(&inner));
    poll_fn(|context| {
        inner.task.register(context.waker());
        let mut was_asked_again = false;
        for _ in 0..AGAIN {
            inner.state.store(POLLING, Ordering::Release);
            let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
            let was_woken = inner.state.swap(RESTING, Ordering::AcqRel) == WOKEN;
            if polled.is_ready() {
                return polled;
            }
            if !was_woken {
                if was_asked_again || !is_unsettled() {
                    return Poll::Pending;
                }
                was_asked_again = true;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// The future waits.
const RESTING: u8 = 0;
/// The future is polled.
const POLLING: u8 = 1;
/// The future was woken while it is polled.
const WOKEN: u8 = 2;

/// What is woken in place of the task.
#[derive(Default)]
struct Inner {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Inner {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let noted =
            self.state
                .compare_exchange(POLLING, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        if noted == Err(RESTING) {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Counted {
        fn so_far(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    /// Drives a future by one poll of its task. Says whether it is ready, and counts how often the task is woken.
    fn driven_once(future: impl Future<Output = ()>) -> (bool, Arc<Counted>) {
        let counted = Arc::new(Counted::default());
        let waker = Waker::from(Arc::clone(&counted));
        let mut future = pin!(future);
        let driven = pin!(drive(future.as_mut(), || false));
        let polled = driven.poll(&mut Context::from_waker(&waker));
        (polled.is_ready(), counted)
    }

    #[test]
    fn what_wakes_itself_is_polled_in_place() {
        let polls = Cell::new(0);
        let (is_ready, woken) = driven_once(poll_fn(|context| {
            polls.set(polls.get() + 1);
            if polls.get() < 3 {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        }));
        assert!(is_ready);
        assert_eq!(woken.so_far(), 0);
    }

    #[test]
    fn what_never_rests_lets_others_have_their_turn() {
        let (is_ready, woken) = driven_once(poll_fn(|context| {
            context.waker().wake_by_ref();
            Poll::Pending
        }));
        assert!(!is_ready);
        assert_eq!(woken.so_far(), 1, "it is to be run again");
    }

    #[test]
    fn what_rests_is_woken_as_a_task() {
        let kept = Cell::new(None::<Waker>);
        let (is_ready, woken) = driven_once(poll_fn(|context| {
            kept.set(Some(context.waker().clone()));
            Poll::Pending
        }));
        assert!(!is_ready);
        assert_eq!(woken.so_far(), 0);
        kept.take().expect("it was polled").wake();
        assert_eq!(woken.so_far(), 1);
    }
}
