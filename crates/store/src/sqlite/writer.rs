//! The one task that writes.
//!
//! SQLite has one writer at a time, and what costs is the flush at the end of a transaction. So all writes go through one queue:
//! the task takes what is there, runs one request after the other in one transaction, flushes once, and only then answers
//! them all. A request that fails is rolled back alone, to the savepoint before it.
//!
//! Whoever waits for an answer may go away at any time: a request that was queued is carried out.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use runtara_domain::{InstanceState, Status, TenantId, Timestamp};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::failure::{broken, failed, unavailable};
use super::file::Lock;
use super::sql::Sql;
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

type Work = Box<dyn for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Box<dyn Held>> + Send>;

/// An answer that is held back until what it says is durable.
trait Held: Send {
    fn is_error(&self) -> bool;
    fn give(self: Box<Self>);
    /// Says that the whole transaction was lost.
    fn give_up(self: Box<Self>, why: &str);
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

    fn give_up(self: Box<Self>, why: &str) {
        let _gone = self.to.send(Err(unavailable(why)));
    }
}

/// What a request works with.
pub(super) struct Tx {
    connection: Option<SqliteConnection>,
    clock: Arc<dyn Clock>,
    /// The time of the request.
    pub(super) now: Timestamp,
    wrote: bool,
    counts: Vec<((TenantId, Status), i64)>,
    after: Vec<InstanceState>,
}

impl Tx {
    /// The connection, for reading.
    pub(super) fn connection(&mut self) -> StoreResult<&mut SqliteConnection> {
        self.connection
            .as_mut()
            .ok_or_else(|| unavailable("the connection to the database was lost"))
    }

    /// Runs statements that change something.
    pub(super) async fn execute(&mut self, mut sql: Sql, what: &str) -> StoreResult<u64> {
        if sql.is_empty() {
            return Ok(0);
        }
        if !self.wrote {
            // The savepoint of the request before is let go only now: so there is always one, and no errand for it alone.
            sql.put_first("release runtara; savepoint runtara");
            self.wrote = true;
        }
        sql.execute(self.connection()?, what).await
    }

    /// Notes that there is one instance more, or fewer, in a status.
    pub(super) fn count(&mut self, tenant: &TenantId, status: Status, by: i64) {
        self.counts.push(((tenant.clone(), status), by));
    }

    /// Has the nudges given that follow from a state, once it is durable.
    pub(super) fn nudge_after(&mut self, state: InstanceState) {
        self.after.push(state);
    }
}

/// The door to the writing task.
pub(super) struct Writer {
    queue: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    stop: Arc<Notify>,
    patience: Duration,
}

impl Writer {
    /// Begins to write. The lock is held until the task has ended.
    pub(super) fn start(
        connection: SqliteConnection,
        options: SqliteConnectOptions,
        clock: Arc<dyn Clock>,
        nudges: Nudges,
        patience: Duration,
        lock: Lock,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, requests) = mpsc::channel(QUEUE_REQUESTS);
        let task = Task {
            tx: Tx {
                connection: Some(connection),
                now: clock.now(),
                clock,
                wrote: false,
                counts: Vec::new(),
                after: Vec::new(),
            },
            options,
            nudges,
        };
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            task.run(requests, &stopped).await;
            drop(lock);
        });
        let writer = Self {
            queue,
            room: Arc::new(Semaphore::new(QUEUE_KIB)),
            stop,
            patience,
        };
        (writer, task)
    }

    /// Queues a request that brings so many bytes along, and waits until what it did is durable.
    ///
    /// If the caller goes away meanwhile, the request is carried out all the same once it is queued.
    pub(super) async fn write<T, F>(&self, bytes: usize, work: F) -> StoreResult<T>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, StoreResult<T>> + Send + 'static,
    {
        let (to, answer) = oneshot::channel();
        let work: Work = Box::new(move |tx| {
            Box::pin(async move {
                let result = AssertUnwindSafe(work(tx)).catch_unwind().await;
                let result = result.unwrap_or_else(|_| Err(broken("a request panicked")));
                Box::new(Answer { result, to }) as Box<dyn Held>
            })
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
        timeout(self.patience, queued).await.map_err(|_| full())??;
        match timeout(self.patience * 6, answer).await {
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
    options: SqliteConnectOptions,
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
            self.carry_out(batch).await;
        }
        self.finish().await;
    }

    async fn finish(&mut self) {
        if let Some(mut connection) = self.tx.connection.take() {
            let checkpoint = Sql::new("pragma wal_checkpoint(truncate)");
            if let Err(error) = checkpoint
                .execute(&mut connection, "emptying the log of writes")
                .await
            {
                tracing::warn!(%error, "the log of writes was left for the next start");
            }
            if let Err(error) = connection.close().await {
                tracing::warn!(%error, "the database was not closed orderly");
            }
        }
    }

    async fn carry_out(&mut self, batch: Vec<Request>) {
        if let Err(error) = self.begin().await {
            let why = format!("beginning a transaction: {}", describe(&error));
            for request in batch {
                give_up(request, &mut self.tx, &why).await;
            }
            return;
        }
        let mut answers = Vec::with_capacity(batch.len());
        let mut counts = BTreeMap::new();
        let mut after = Vec::new();
        let mut lost: Option<String> = None;
        for request in batch {
            if let Some(why) = &lost {
                give_up(request, &mut self.tx, why).await;
                continue;
            }
            self.tx.now = self.tx.clock.now();
            self.tx.wrote = false;
            let answer = (request.work)(&mut self.tx).await;
            let counted = std::mem::take(&mut self.tx.counts);
            let changed = std::mem::take(&mut self.tx.after);
            if !answer.is_error() {
                after.extend(changed);
                for (key, by) in counted {
                    *counts.entry(key).or_insert(0) += by;
                }
            } else if self.tx.wrote
                && let Err(error) = self.undo().await
            {
                lost = Some(format!("rolling back a request: {}", describe(&error)));
            }
            answers.push(answer);
        }
        if lost.is_none()
            && let Err(error) = self.commit(counts).await
        {
            lost = Some(format!("committing: {}", describe(&error)));
        }
        match lost {
            None => {
                for answer in answers {
                    answer.give();
                }
                for state in after {
                    self.nudges.after(&state);
                }
            }
            Some(why) => {
                tracing::warn!(why, "a transaction was lost");
                self.abandon().await;
                for answer in answers {
                    answer.give_up(&why);
                }
            }
        }
    }

    async fn begin(&mut self) -> StoreResult<()> {
        if self.tx.connection.is_none() {
            let connected = SqliteConnection::connect_with(&self.options).await;
            let connected = connected.map_err(|error| failed("opening the database", error))?;
            self.tx.connection = Some(connected);
        }
        let begun = Sql::new("begin immediate;\nsavepoint runtara")
            .execute(self.tx.connection()?, "beginning a transaction")
            .await;
        if begun.is_err() {
            self.abandon().await;
        }
        begun.map(drop)
    }

    /// Takes back what the current request wrote, and nothing else. SQLite itself rolls the whole transaction back after some
    /// errors; then this fails, for there is no savepoint any more.
    async fn undo(&mut self) -> StoreResult<()> {
        Sql::new("rollback to runtara")
            .execute(self.tx.connection()?, "rolling back a request")
            .await
            .map(drop)
    }

    async fn commit(&mut self, counts: BTreeMap<(TenantId, Status), i64>) -> StoreResult<()> {
        let mut sql = Sql::default();
        for ((tenant, status), by) in counts.into_iter().filter(|(_, by)| *by != 0) {
            sql.then(
                "insert into runtara_counts (tenant_id, status, instances) values (?, ?, ?) \
                 on conflict (tenant_id, status) do update \
                 set instances = instances + excluded.instances",
            )
            .bind(tenant.as_str())
            .bind(status.as_str())
            .bind(by);
        }
        sql.then("commit");
        sql.execute(self.tx.connection()?, "committing")
            .await
            .map(drop)
    }

    /// Leaves a transaction that failed. A connection that cannot even do that is opened anew for the next one.
    async fn abandon(&mut self) {
        let Some(connection) = self.tx.connection.as_mut() else {
            return;
        };
        // Fails where SQLite has rolled back by itself; whether it did is seen by a transaction that does begin.
        let _rolled_back_already = sqlx::query("rollback").execute(&mut *connection).await;
        let probe = Sql::new("begin;\nrollback");
        if probe
            .execute(connection, "looking after a failed transaction")
            .await
            .is_err()
        {
            self.tx.connection = None;
        }
    }
}

/// Answers a request that was not carried out: without a connection it cannot do anything but say so.
async fn give_up(request: Request, tx: &mut Tx, why: &str) {
    let connection = tx.connection.take();
    let answer = (request.work)(tx).await;
    tx.connection = connection;
    tx.counts.clear();
    tx.after.clear();
    answer.give_up(why);
}

fn describe(error: &StoreError) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}
