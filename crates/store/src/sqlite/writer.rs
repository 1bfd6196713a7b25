//! The one thread that writes.
//!
//! SQLite has one writer at a time, and what costs is the flush at the end of a transaction. So all writes go through one queue:
//! the thread takes what is there, runs one request after the other in one [`Tx`], flushes once, and only then answers
//! them all.
//!
//! Whoever waits for an answer may go away at any time: a request that was queued is carried out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::TURN;
use super::anchors::Anchors;
use super::connect::WriterOptions;
use super::failure::{broken, broken_by, unavailable};
use super::file::Lock;
use super::sql::Sql;
use super::tx::{Outcome, Tx};
use crate::{Clock, Nudges, StoreError, StoreResult};

/// Most requests in one transaction.
const BATCH_REQUESTS: usize = 256;
/// Most bytes in one transaction; a larger request goes alone.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Most requests that wait.
const QUEUE_REQUESTS: usize = 1_024;
/// Most KiB that wait.
const QUEUE_KIB: usize = 128 * 1024;

/// One request: what it does, and how much it brings along.
struct Request {
    bytes: usize,
    work: Work,
    _room: tokio::sync::OwnedSemaphorePermit,
}

type Work = Box<dyn FnOnce(&mut Tx) -> Box<dyn Held> + Send>;

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

/// Whom the writing task asks for the time, and whom it tells of changes.
pub(super) struct Told {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) anchors: Arc<Anchors>,
    pub(super) nudges: Nudges,
}

/// The door to the writing task.
pub(super) struct Writer {
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
        connection: Connection,
        options: WriterOptions,
        told: Told,
        statement_timeout: Duration,
        lock: Lock,
    ) -> StoreResult<(Self, oneshot::Receiver<()>)> {
        let (queue, requests) = mpsc::channel(QUEUE_REQUESTS);
        let task = Task {
            tx: Tx::new(connection, told.clock),
            options,
            anchors: told.anchors,
            nudges: told.nudges,
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
        let work: Work = Box::new(move |tx| {
            let result = catch_unwind(AssertUnwindSafe(|| work(tx)));
            let result = result.unwrap_or_else(|_| Err(broken("a request panicked")));
            Box::new(Answer { result, to }) as Box<dyn Held>
        });
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

struct Task {
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
            };
            let Some(first) = first else { break };
            let mut bytes = first.bytes;
            let mut batch = vec![first];
            while batch.len() < BATCH_REQUESTS && bytes < BATCH_BYTES {
                let Ok(next) = requests.try_recv() else {
                    break;
                };
                bytes = bytes.saturating_add(next.bytes);
                batch.push(next);
            }
            let mut batch = batch.into_iter();
            while !batch.as_slice().is_empty() {
                self.carry_out(&mut batch);
            }
        }
        self.finish();
    }

    fn finish(&mut self) {
        let Some(connection) = self.tx.connection.take() else {
            return;
        };
        let checkpoint = Sql::new("pragma wal_checkpoint(truncate)");
        if let Err(error) = checkpoint.run_here(&connection, "emptying the log of writes") {
            tracing::warn!(%error, "the log of writes was left for the next start");
        }
        if let Err((_, error)) = connection.close() {
            tracing::warn!(%error, "the database was not closed orderly");
        }
    }

    /// Carries requests out in one transaction: all of them, unless their answers grow too large to be held back together.
    fn carry_out(&mut self, batch: &mut std::vec::IntoIter<Request>) {
        self.connect();
        self.tx.begin();
        let mut answers = Vec::with_capacity(batch.len());
        for request in batch.by_ref() {
            self.tx.next(answers.len());
            let answer = (request.work)(&mut self.tx);
            if answer.is_error() {
                self.tx.undo();
            }
            answers.push(answer);
            if self.tx.bytes_held > BATCH_BYTES {
                break;
            }
        }
        self.tx.commit();
        let Outcome {
            lost,
            members,
            after,
        } = self.tx.end();
        if let Some(why) = &lost {
            tracing::warn!(why, "a transaction was lost");
        }
        for (created_at, how) in members {
            self.anchors.note(created_at, how);
        }
        // Before the answers: who is answered can count on it that everybody has been told.
        for state in after {
            self.nudges.after(&state);
        }
        for answer in answers {
            match &lost {
                Some(why) => answer.fail(unavailable(why.as_str())),
                None => answer.give(),
            }
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
