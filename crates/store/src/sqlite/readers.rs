//! The connections that read. They see what is committed, and never wait for the writer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::TURN;
use super::failure::{failed, unavailable};
use crate::{StoreError, StoreResult};

/// How many there are: one for short questions while a long list is made.
const READERS: usize = 2;
/// After how many steps of SQLite's machine a question looks at its deadline.
const STEPS_PER_LOOK: i32 = 20_000;

/// How long questions under way may take when the store is closed.
const CLOSING: Duration = Duration::from_secs(10);

/// A connection, and the moment at which its question is given up.
struct Reader {
    connection: SqliteConnection,
    give_up_at: Arc<AtomicU64>,
}

/// A small pool of connections that read.
pub(super) struct Readers {
    free: Mutex<Vec<Reader>>,
    permits: Semaphore,
    options: SqliteConnectOptions,
    statement_timeout: Duration,
    epoch: Instant,
}

impl Readers {
    pub(super) fn new(options: SqliteConnectOptions, statement_timeout: Duration) -> Self {
        Self {
            free: Mutex::new(Vec::new()),
            permits: Semaphore::new(READERS),
            options,
            statement_timeout,
            epoch: Instant::now(),
        }
    }

    /// A connection for one question. It goes back when the guard is dropped; a question that was cut short is stopped by
    /// the thread of the connection at its next row or at its deadline, before the next question of that connection.
    pub(super) async fn get(&self) -> StoreResult<Guard<'_>> {
        let permit = timeout(self.statement_timeout.min(TURN), self.permits.acquire())
            .await
            .map_err(|_| unavailable("all connections for reading stayed busy"))?
            .map_err(|_| unavailable("the store is closed"))?;
        let free = self.free().pop();
        let reader = match free {
            Some(reader) => reader,
            None => self.connect().await?,
        };
        let give_up = self.epoch.elapsed() + self.statement_timeout;
        let give_up = u64::try_from(give_up.as_millis()).unwrap_or(u64::MAX);
        reader.give_up_at.store(give_up, Ordering::Relaxed);
        Ok(Guard {
            reader: Some(reader),
            readers: self,
            _permit: permit,
        })
    }

    async fn connect(&self) -> StoreResult<Reader> {
        let connected = self.options.connect().await;
        let mut connection =
            connected.map_err(|error| failed("opening the database for reading", error))?;
        let give_up_at = Arc::new(AtomicU64::new(u64::MAX));
        let (deadline, epoch) = (Arc::clone(&give_up_at), self.epoch);
        let handle = connection.lock_handle().await;
        let mut handle =
            handle.map_err(|error| failed("opening the database for reading", error))?;
        handle.set_progress_handler(STEPS_PER_LOOK, move || {
            epoch.elapsed().as_millis() < u128::from(deadline.load(Ordering::Relaxed))
        });
        drop(handle);
        Ok(Reader {
            connection,
            give_up_at,
        })
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<Reader>> {
        // A list of whole values: a panic elsewhere cannot have left it half changed.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the questions under way, then closes all connections.
    pub(super) async fn close(&self) {
        let all = u32::try_from(READERS).unwrap_or(1);
        let _late = timeout(CLOSING, self.permits.acquire_many(all)).await;
        self.permits.close();
        let free: Vec<_> = self.free().drain(..).collect();
        for reader in free {
            if let Err(error) = reader.connection.close().await {
                tracing::warn!(%error, "a connection for reading was not closed orderly");
            }
        }
    }
}

/// A connection that goes back to the pool.
pub(super) struct Guard<'a> {
    reader: Option<Reader>,
    readers: &'a Readers,
    _permit: SemaphorePermit<'a>,
}

impl Guard<'_> {
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        let reader = self.reader.as_mut();
        &mut reader.expect("it is taken only on drop").connection
    }

    /// Looks at an answer: after one that failed the connection is opened anew for the next question.
    pub(super) fn judge<T>(mut self, answer: &StoreResult<T>) {
        if matches!(
            answer,
            Err(StoreError::Unavailable { .. } | StoreError::Broken { .. })
        ) {
            self.reader = None;
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            self.readers.free().push(reader);
        }
    }
}
