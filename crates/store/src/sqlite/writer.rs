//! The one thread that writes.
//!
//! SQLite has one writer at a time, and what costs is the flush at the end. So all writes go through one queue: the thread takes
//! what is there, runs one request after the other in one [`Tx`], flushes once, and only then answers them all.
//!
//! What is durable is not yet seen by the connections that read: a commit costs too, and is made when somebody wants to read, when
//! nothing is written for a moment, or when enough has come together.
//!
//! Whoever waits for an answer may go away at any time: a request that was queued is carried out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use runtara_domain::Timestamp;
use runtara_failpoints::{Point, pass};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::TURN;
use super::anchors::{Anchors, Membership};
use super::connect::WriterOptions;
use super::failure::{broken, broken_by, unavailable};
use super::file::Lock;
use super::tx::{Outcome, Tx};
use crate::{Nudges, StoreError, StoreResult};

/// Most requests in one transaction.
const BATCH_REQUESTS: usize = 256;
/// Most bytes in one transaction, but for its last request.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Most requests that wait.
const QUEUE_REQUESTS: usize = 1_024;
/// Most KiB that wait.
const QUEUE_KIB: usize = 128 * 1024;

/// After how many requests what they wrote is committed. Their pages fit into the cache of the connection, and whoever waits for the
/// commit waits for some milliseconds.
const COMMIT_REQUESTS: usize = 512;
/// After what time it is committed if nothing else is to be done.
const COMMIT_QUIET: Duration = Duration::from_millis(2);
/// After what time it is committed in any case.
const COMMIT_AGE: Duration = Duration::from_millis(50);
/// The pause after a commit that failed, unless somebody asks for it before.
const COMMIT_AGAIN: Duration = Duration::from_millis(500);

/// One request: what it does, and how much it brings along.
struct Request {
    bytes: usize,
    work: Work,
    _room: tokio::sync::OwnedSemaphorePermit,
}

enum Work {
    Write(Write),
    /// Has everything committed that was answered.
    Publish(oneshot::Sender<StoreResult<()>>),
}

type Write = Box<dyn FnOnce(&mut Tx) -> Box<dyn Held> + Send>;

/// An answer that is held back until what it says is durable.
trait Held: Send {
    fn is_error(&self) -> bool;
    fn give(self: Box<Self>);
    /// Answers with something else, for nothing of what it says has happened.
    fn fail(self: Box<Self>, error: StoreError);
}

struct Answer<T> {
    result: StoreResult<T>,
    to: oneshot::Sender<StoreResult<T>>,
}

impl<T: Send> Held for Answer<T> {
    fn is_error(&self) -> bool {
        self.result.is_err()
    }

    fn give(self: Box<Self>) {
        // Whoever asked may have gone away.
        let _gone = self.to.send(self.result);
    }

    fn fail(self: Box<Self>, error: StoreError) {
        let _gone = self.to.send(Err(error));
    }
}

/// Whom the writing task tells of changes.
pub(super) struct Told {
    pub(super) anchors: Arc<Anchors>,
    pub(super) nudges: Nudges,
}

/// The door to the writing task.
pub(super) struct Writer {
    is_ahead: Arc<AtomicBool>,
    queue: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    stop: Arc<Notify>,
    statement_timeout: Duration,
}

impl Writer {
    /// Begins to write. The lock is held until the thread that does it has ended, which the second part of the answer tells.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(
        tx: Tx,
        options: WriterOptions,
        told: Told,
        statement_timeout: Duration,
        lock: Lock,
    ) -> StoreResult<(Self, oneshot::Receiver<()>)> {
        let (queue, requests) = mpsc::channel(QUEUE_REQUESTS);
        let is_ahead = Arc::new(AtomicBool::new(false));
        let task = Task {
            is_ahead: Arc::clone(&is_ahead),
            tx,
            options,
            anchors: told.anchors,
            nudges: told.nudges,
            uncommitted: Uncommitted::default(),
        };
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let (runtime, (ended, end)) = (Handle::current(), oneshot::channel());
        // A thread of its own: what it does blocks, and nobody else is to wait for that.
        let thread = std::thread::Builder::new().name("runtara-sqlite".to_owned());
        let thread = thread.spawn(move || {
            runtime.block_on(task.run(requests, &stopped));
            drop(lock);
            let _nobody_waits = ended.send(());
        });
        thread.map_err(|error| broken_by("starting the thread that writes", error))?;
        let writer = Self {
            is_ahead,
            queue,
            room: Arc::new(Semaphore::new(QUEUE_KIB)),
            stop,
            statement_timeout,
        };
        Ok((writer, end))
    }

    /// Queues a request that brings so many bytes along, and waits until what it did is durable.
    ///
    /// If the caller goes away meanwhile, the request is carried out all the same once it is queued.
    pub(super) async fn write<T, F>(&self, bytes: usize, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx) -> StoreResult<T> + Send + 'static,
    {
        let (to, answer) = oneshot::channel();
        let work = Work::Write(Box::new(move |tx| {
            let result = catch_unwind(AssertUnwindSafe(|| work(tx)));
            let result = result.unwrap_or_else(|_| Err(broken("a request panicked")));
            Box::new(Answer { result, to }) as Box<dyn Held>
        }));
        self.ask(bytes, work, answer).await
    }

    /// Whether something was answered that connections that read do not see yet.
    pub(super) fn is_ahead(&self) -> bool {
        self.is_ahead.load(Ordering::SeqCst)
    }

    /// Waits until connections that read see everything that was answered before.
    pub(super) async fn published(&self) -> StoreResult<()> {
        if !self.is_ahead() {
            return Ok(());
        }
        let (to, answer) = oneshot::channel();
        self.ask(0, Work::Publish(to), answer).await
    }

    async fn ask<T>(
        &self,
        bytes: usize,
        work: Work,
        answer: oneshot::Receiver<StoreResult<T>>,
    ) -> StoreResult<T> {
        let full = || unavailable("the queue of writes stayed full");
        let kib = u32::try_from((bytes / 1024 + 1).min(QUEUE_KIB)).unwrap_or(1);
        let queued = async {
            let room = Arc::clone(&self.room).acquire_many_owned(kib).await;
            let room = room.map_err(|_| closed())?;
            let place = self.queue.reserve().await.map_err(|_| closed())?;
            place.send(Request {
                bytes,
                work,
                _room: room,
            });
            StoreResult::Ok(())
        };
        let turn = self.statement_timeout.min(TURN);
        timeout(turn, queued).await.map_err(|_| full())??;
        match timeout(self.statement_timeout, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(unavailable("the answer to a write did not come in time")),
        }
    }

    /// Takes no further requests. The task ends once it has carried out those that are queued.
    pub(super) fn close(&self) {
        self.room.close();
        self.stop.notify_one();
    }
}

fn closed() -> StoreError {
    unavailable("the store is closed")
}

/// What only the connection that writes sees.
#[derive(Default)]
struct Uncommitted {
    requests: usize,
    since: Option<Instant>,
    members: Vec<(Timestamp, Membership)>,
    asked: Vec<oneshot::Sender<StoreResult<()>>>,
    /// Whether the last try to commit failed.
    has_failed: bool,
}

impl Uncommitted {
    fn is_wanted(&self) -> bool {
        let is_old = self.since.is_some_and(|since| since.elapsed() > COMMIT_AGE);
        !self.asked.is_empty() || !self.has_failed && (is_old || self.requests >= COMMIT_REQUESTS)
    }

    fn pause(&self) -> Duration {
        if self.has_failed {
            COMMIT_AGAIN
        } else {
            COMMIT_QUIET
        }
    }
}

struct Task {
    is_ahead: Arc<AtomicBool>,
    uncommitted: Uncommitted,
    tx: Tx,
    options: WriterOptions,
    anchors: Arc<Anchors>,
    nudges: Nudges,
}

impl Task {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>, stopped: &Notify) {
        loop {
            let first = tokio::select! {
                biased;
                first = requests.recv() => first,
                () = stopped.notified() => {
                    requests.close();
                    continue;
                }
                () = sleep(self.uncommitted.pause()), if self.tx.is_ahead() => {
                    self.publish();
                    continue;
                }
            };
            let Some(first) = first else { break };
            self.carry_out(first, &mut requests);
        }
        self.finish();
    }

    /// Commits what was written, for all to see.
    fn publish(&mut self) {
        self.connect();
        let done = self.tx.publish();
        self.uncommitted.has_failed = done.is_err();
        self.uncommitted.since = None;
        self.uncommitted.requests = 0;
        match &done {
            Ok(()) => {
                // Whoever counts on these places must find in the database what they are of.
                for (created_at, how) in self.uncommitted.members.drain(..) {
                    self.anchors.note(created_at, how);
                }
            }
            Err(error) => tracing::warn!(
                %error,
                "what was written is kept in the redo log, and could not be committed"
            ),
        }
        self.is_ahead.store(self.tx.is_ahead(), Ordering::SeqCst);
        for asked in self.uncommitted.asked.drain(..) {
            // Whoever asked may have gone away.
            let _gone = asked.send(match &done {
                Ok(()) => Ok(()),
                Err(_) => Err(unavailable("what was written could not be committed")),
            });
        }
    }

    fn finish(mut self) {
        self.connect();
        self.publish();
        if let Err(error) = self.tx.close() {
            tracing::warn!(%error, "the database was not closed orderly; what it lacks is taken over at the next start");
        }
    }

    /// Carries requests out as one batch: this one, and all that are there when those before them are done.
    fn carry_out(&mut self, first: Request, requests: &mut mpsc::Receiver<Request>) {
        self.connect();
        self.tx.begin();
        let (mut bytes, mut answers) = (0, Vec::new());
        let mut next = Some(first);
        while let Some(request) = next {
            bytes += request.bytes;
            match request.work {
                Work::Write(work) => {
                    self.tx.next(answers.len());
                    let answer = work(&mut self.tx);
                    if answer.is_error() {
                        self.tx.undo();
                    }
                    answers.push(answer);
                }
                Work::Publish(to) => self.uncommitted.asked.push(to),
            }
            let is_full = answers.len() >= BATCH_REQUESTS
                || bytes >= BATCH_BYTES
                || self.tx.bytes_held > BATCH_BYTES;
            next = if is_full {
                None
            } else {
                requests.try_recv().ok()
            };
        }
        pass(Point::StoreWriting);
        self.tx.commit();
        pass(Point::StoreCommitted);
        let Outcome {
            lost,
            members,
            after,
        } = self.tx.end();
        if let Some(why) = &lost {
            tracing::warn!(why, "a transaction was lost");
        }
        self.uncommitted.members.extend(members);
        self.uncommitted.requests += answers.len();
        if self.tx.is_ahead() {
            self.uncommitted.since.get_or_insert_with(Instant::now);
            self.is_ahead.store(true, Ordering::SeqCst);
        }
        // Before the answers: who is answered can count on it that everybody has been told.
        for state in after {
            self.nudges.after(state.state());
        }
        for answer in answers {
            match &lost {
                Some(why) => answer.fail(unavailable(why.as_str())),
                None => answer.give(),
            }
        }
        // A transaction in which nothing was written would only keep others out.
        if self.uncommitted.is_wanted() || !self.tx.is_ahead() {
            self.publish();
        }
    }

    /// Opens the connection anew if it was given up.
    fn connect(&mut self) {
        if self.tx.connection.is_some() {
            return;
        }
        match self.options.open() {
            Ok(connection) => self.tx.connection = Some(connection),
            Err(error) => tracing::warn!(%error, "the database could not be opened again"),
        }
    }
}
