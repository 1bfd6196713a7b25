//! One guest, from its instantiation to its end.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nix::time::{ClockId, clock_gettime};
use runtara_domain::{EndedBy, ExitCause, RunExit, Usage, limits};
use runtara_runner::shim::LogStream;
use runtara_runner::{
    ProgramResult, Run, RunDirectory, RunKey, RunnerError, blocking, end_of_stderr,
    result_of_stdout,
};
use tokio::sync::{Semaphore, watch};
use tracing::warn;
use wasmtime::{Engine, Store, Trap};
use wasmtime_wasi::I32Exit;

use crate::engine::Ticker;
use crate::guest::{Guest, OutOfMemory};
use crate::images::Image;
use crate::output::Outputs;

/// A guest that runs, or has just ended.
pub(crate) struct WasmRun {
    key: RunKey,
    /// Whether it could notice that it is to leave.
    listens: bool,
    pub(crate) shared: Arc<Shared>,
}

/// What a guest and those who mind it share.
pub(crate) struct Shared {
    /// When it is to end, and on whose wish, if somebody wishes it.
    ending: watch::Sender<Option<Ending>>,
    slept: watch::Sender<Duration>,
    exit: watch::Sender<Option<RunExit>>,
    used: Mutex<Used>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ending {
    by: EndedBy,
    at: Instant,
}

/// What it has used so far.
#[derive(Debug, Clone, Copy)]
struct Used {
    /// When its program began; it may wait for its turn before.
    began: Option<Instant>,
    computed: Duration,
    memory_peak_bytes: u64,
}

impl WasmRun {
    pub(crate) fn new(key: RunKey, listens: bool) -> Self {
        Self {
            key,
            listens,
            shared: Arc::new(Shared {
                ending: watch::Sender::new(None),
                slept: watch::Sender::new(Duration::ZERO),
                exit: watch::Sender::new(None),
                used: Mutex::new(Used {
                    began: None,
                    computed: Duration::ZERO,
                    memory_peak_bytes: 0,
                }),
            }),
        }
    }
}

impl Shared {
    fn used(&self) -> Usage {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Usage {
            cpu_usec: whole(used.computed),
            memory_peak_bytes: used.memory_peak_bytes,
            running_ms: used.began.map_or(0, |began| whole(began.elapsed()) / 1000),
        }
    }

    /// Its time begins now.
    fn begin(&self) {
        self.used
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .began = Some(Instant::now());
    }

    fn note(&self, computed: Duration, memory_peak_bytes: u64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.computed += computed;
        used.memory_peak_bytes = used.memory_peak_bytes.max(memory_peak_bytes);
    }

    /// Has it end, at the earlier moment if it is to end already.
    fn end(&self, wish: Ending) {
        self.ending.send_if_modified(|ending| {
            let is_earlier = ending.is_none_or(|known| wish.at < known.at);
            if is_earlier {
                *ending = Some(wish);
            }
            is_earlier
        });
    }

    /// Whatever becomes of the task that runs it, its end is told: if not by that, then as that of a run that was lost.
    pub(crate) fn tell_its_end(self: &Arc<Self>) -> TellsEnd {
        TellsEnd(Arc::clone(self))
    }

    /// Drops it at once: the server goes away.
    pub(crate) fn drop_now(&self) {
        self.end(Ending {
            by: EndedBy::Host,
            at: Instant::now(),
        });
    }
}

/// See [`Shared::tell_its_end`].
pub(crate) struct TellsEnd(Arc<Shared>);

impl Drop for TellsEnd {
    fn drop(&mut self) {
        self.0.exit.send_if_modified(|exit| {
            let is_untold = exit.is_none();
            exit.get_or_insert_with(RunExit::lost);
            is_untold
        });
    }
}

#[async_trait]
impl Run for WasmRun {
    fn key(&self) -> &RunKey {
        &self.key
    }

    fn core_addr(&self) -> Option<&str> {
        None
    }

    async fn wait(&self) -> Result<RunExit, RunnerError> {
        let mut exit = self.shared.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await;
        // The sender lives as long as this run.
        Ok(ended.map_or_else(
            |_| RunExit::lost(),
            |exit| exit.clone().unwrap_or_else(RunExit::lost),
        ))
    }

    async fn terminate(&self, grace: Duration, ended_by: EndedBy) -> Result<(), RunnerError> {
        let grace = match self.listens {
            true => grace,
            // As a process without a handler: it ends at once.
            false => Duration::ZERO,
        };
        let now = Instant::now();
        self.shared.end(Ending {
            by: ended_by,
            at: now.checked_add(grace).unwrap_or(now),
        });
        Ok(())
    }

    async fn set_slept(&self, slept: Duration) -> Result<(), RunnerError> {
        self.shared.slept.send_replace(slept);
        Ok(())
    }

    async fn usage(&self) -> Result<Usage, RunnerError> {
        let ended = self.shared.exit.borrow().as_ref().map(|exit| exit.usage);
        Ok(ended.unwrap_or_else(|| self.shared.used()))
    }
}

/// All that a guest needs to run.
pub(crate) struct Launched {
    pub(crate) engine: Engine,
    pub(crate) ticker: Arc<Ticker>,
    pub(crate) places: Arc<Semaphore>,
    pub(crate) image: Arc<Image>,
    pub(crate) guest: Guest,
    pub(crate) outputs: Arc<Outputs>,
    pub(crate) memory_bytes: u64,
    pub(crate) timeout: Duration,
    /// When it is ended whatever it does, if its instance has an overall deadline.
    pub(crate) expiry: Option<Instant>,
}

impl Launched {
    /// Runs the guest to its end, and tells it. Gives the directory of the run if it has one.
    pub(crate) async fn run(self, key: &RunKey, shared: &Shared) -> Option<RunDirectory> {
        let (outputs, memory_bytes) = (Arc::clone(&self.outputs), self.memory_bytes);
        let ended = self.run_in_a_place(shared).await;
        let (cause, ended_by) = match ended {
            Err(by) => (ExitCause::Dropped, Some(by)),
            Ok(Ok(code)) => (ExitCause::Code(code), None),
            Ok(Err(error)) => judge(&error),
        };
        let (directory, cut) = outputs.finish();
        let cause = match cause {
            // What it gave is its standard output, and nobody has it.
            ExitCause::Code(0) if cut.contains(&LogStream::Stdout) => ExitCause::OutputLost,
            cause => cause,
        };
        let exit = RunExit {
            cause,
            ended_by,
            limits_met: (!cut.is_empty())
                .then(|| "disk".to_owned())
                .into_iter()
                .collect(),
            memory_limit_bytes: Some(memory_bytes),
            output: None,
            stderr: String::new(),
            usage: shared.used(),
        };
        let exit = match directory.clone() {
            Some(directory) => with_outputs(key, directory, exit).await,
            None => exit,
        };
        shared.exit.send_replace(Some(exit));
        directory
    }

    /// Runs it as soon as there is a place for it in the pool, unless somebody wishes its end before: then that is the answer.
    async fn run_in_a_place(self, shared: &Shared) -> Result<wasmtime::Result<i32>, EndedBy> {
        let door = Arc::clone(&self.guest.door);
        let places = Arc::clone(&self.places);
        let place = match places.try_acquire_many(self.image.places) {
            Ok(place) => Ok(place),
            Err(_) => tokio::select! {
                biased;
                by = told_to_end(shared, None, self.expiry) => Err(by),
                place = door.pause(places.acquire_many(self.image.places)) => {
                    Ok(place.expect("the places are as long there as their runner"))
                }
            },
        };
        let place = place?;
        shared.begin();
        let mut store = Store::new(&self.engine, self.guest);
        store.limiter(|guest| &mut guest.limits);
        // What one call may hand over: as much as a call over HTTP.
        store.set_hostcall_fuel(limits::BODY_BYTES);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        // In its own memory, so that what a fiber of it holds is freed with it.
        let ended = {
            let guest = Metered {
                inner: Box::pin(command(&mut store, &self.image)),
                ticker: &self.ticker,
                shared,
            };
            tokio::select! {
                biased;
                by = told_to_end(shared, Some(self.timeout), self.expiry) => Err(by),
                ended = guest => Ok(ended),
            }
        };
        let peak = u64::try_from(store.data().limits.peak_bytes).unwrap_or(u64::MAX);
        drop(store);
        shared.note(Duration::ZERO, peak);
        // Not before its memory is back in the pool.
        drop(place);
        ended
    }
}

async fn command(store: &mut Store<Guest>, image: &Image) -> wasmtime::Result<i32> {
    let command = image.command.instantiate_async(&mut *store).await?;
    match command.wasi_cli_run().call_run(&mut *store).await {
        Ok(Ok(())) => Ok(0),
        Ok(Err(())) => Ok(1),
        Err(error) => match error.downcast_ref::<I32Exit>() {
            Some(exit) => Ok(exit.0),
            None => Err(error),
        },
    }
}

/// What ended a guest that did not leave by itself.
fn judge(error: &wasmtime::Error) -> (ExitCause, Option<EndedBy>) {
    if error.downcast_ref::<OutOfMemory>().is_some() {
        return (ExitCause::Dropped, Some(EndedBy::OutOfMemory));
    }
    let text = match error.downcast_ref::<Trap>() {
        // With the way to it, which the error tells first.
        Some(trap) => format!("{trap}\n{error}"),
        None => format!("{error:#}"),
    };
    (ExitCause::Trap(text), None)
}

/// Adds what the guest has written: its result, if it left well, and its last words.
async fn with_outputs(key: &RunKey, directory: RunDirectory, mut exit: RunExit) -> RunExit {
    let is_well = exit.cause == ExitCause::Code(0);
    let read = blocking(move || {
        let result = match is_well {
            true => result_of_stdout(&directory)?,
            false => ProgramResult::None,
        };
        Ok((result, end_of_stderr(&directory)?))
    });
    match read.await {
        Ok((result, stderr)) => {
            exit.stderr = stderr;
            match result {
                ProgramResult::None => {}
                ProgramResult::Json(json) => exit.output = Some(json),
                ProgramResult::TooLarge => exit.limits_met.push("output".to_owned()),
                ProgramResult::Lost => exit.cause = ExitCause::OutputLost,
            }
        }
        Err(error) => {
            warn!(run = %key, %error, "the outputs of a run could not be read");
            if is_well {
                // It must not be completed without its result.
                exit.cause = ExitCause::Lost;
            }
        }
    }
    exit
}

/// Waits until the guest is to be dropped, and says on whose wish.
async fn told_to_end(
    shared: &Shared,
    timeout: Option<Duration>,
    expiry: Option<Instant>,
) -> EndedBy {
    let (mut ending, mut slept) = (shared.ending.subscribe(), shared.slept.subscribe());
    let began = Instant::now();
    loop {
        let slept_so_far = *slept.borrow_and_update();
        let over = timeout.and_then(|most| began.checked_add(most.saturating_add(slept_so_far)));
        let deadline = over.into_iter().chain(expiry).min().map(|at| Ending {
            by: EndedBy::Deadline,
            at,
        });
        let wish = *ending.borrow_and_update();
        let next = wish
            .into_iter()
            .chain(deadline)
            .min_by_key(|ending| ending.at);
        let come = async {
            match next {
                Some(next) => {
                    tokio::time::sleep_until(next.at.into()).await;
                    next.by
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            by = come => return by,
            _ = ending.changed() => {}
            _ = slept.changed() => {}
        }
    }
}

/// A future of which is measured what it computes.
struct Metered<'a, F> {
    inner: Pin<Box<F>>,
    ticker: &'a Ticker,
    shared: &'a Shared,
}

impl<F: Future> Future for Metered<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let before = thread_time();
        let computing = self.ticker.computing();
        let polled = self.inner.as_mut().poll(context);
        drop(computing);
        self.shared.note(thread_time().saturating_sub(before), 0);
        polled
    }
}

/// What this thread has computed.
fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use runtara_domain::{InstanceId, RunNumber};

    use super::*;

    fn run() -> WasmRun {
        let key = RunKey {
            instance_id: InstanceId::new("order-7").unwrap(),
            run_number: RunNumber(1),
        };
        WasmRun::new(key, true)
    }

    #[tokio::test(start_paused = true)]
    async fn an_overall_deadline_is_moved_by_nothing() {
        let run = run();
        run.set_slept(Duration::from_secs(3600)).await.unwrap();
        let expiry = Some(Instant::now() + Duration::from_millis(10));
        for timeout in [None, Some(Duration::from_secs(1))] {
            let end = told_to_end(&run.shared, timeout, expiry).await;
            assert_eq!(end, EndedBy::Deadline);
        }
    }

    #[tokio::test]
    async fn a_task_that_panics_leaves_a_run_that_is_lost() {
        let run = run();
        let tells_end = run.shared.tell_its_end();
        let task = tokio::spawn(async move {
            let _at_last = tells_end;
            panic!("a fault of ours");
        });
        assert_eq!(run.wait().await.unwrap(), RunExit::lost());
        assert!(task.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_end_counts_and_time_that_was_slept_does_not() {
        let run = run();
        run.set_slept(Duration::from_secs(3600)).await.unwrap();
        let end = told_to_end(&run.shared, Some(Duration::from_millis(1)), None);
        run.terminate(Duration::from_secs(60), EndedBy::Stop)
            .await
            .unwrap();
        run.terminate(Duration::ZERO, EndedBy::Leaving)
            .await
            .unwrap();
        assert_eq!(end.await, EndedBy::Leaving);
    }
}
