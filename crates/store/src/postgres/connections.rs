//! Connections that are used again without a question in between.
//!
//! A pool asks the server, each time a connection comes back, whether it still lives: a round trip and a task for each statement. So
//! connections whose statement was answered are kept aside for the next one. Those that rest, or have been aside for long, go back to the
//! pool, which minds their age and how many there are.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgRow};
use sqlx::query::{Query, QueryScalar};

use super::error::{Kind, kind};

/// A connection that was used within this time is taken to live; one that has rested for longer goes through the pool, which asks.
const RESTED: Duration = Duration::from_millis(500);
/// How long a connection is kept from the pool, which would close it if it has grown old.
const ASIDE: Duration = Duration::from_secs(60);

/// When a connection was last found lost: the server may have gone, and with it all that had been used before.
#[derive(Clone, Default)]
pub(super) struct Losses(Arc<Mutex<Option<Instant>>>);

impl Losses {
    fn note(&self) {
        *self.lock() = Some(Instant::now());
    }

    /// Whether a connection that has rested so long must be asked whether it lives.
    pub(super) fn cast_doubt_on(&self, rested: Duration) -> bool {
        rested > RESTED || self.lock().is_some_and(|lost| lost.elapsed() <= rested)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connections of a store.
pub(super) struct Connections {
    pub(super) pool: PgPool,
    losses: Losses,
    /// The one that was used last is at the end.
    idle: Mutex<Vec<Idle>>,
    most: usize,
}

struct Idle {
    connection: PoolConnection<Postgres>,
    aside_since: Instant,
    used: Instant,
}

impl Connections {
    pub(super) fn new(pool: PgPool, losses: Losses) -> Self {
        // The others serve whoever needs one of the pool itself: transactions of several statements.
        let most = pool.options().get_max_connections() as usize / 2;
        Self {
            pool,
            losses,
            idle: Mutex::default(),
            most,
        }
    }

    /// Gives all connections back to the pool.
    pub(super) fn release(&self) {
        let all = std::mem::take(&mut *self.lock());
        drop(all);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that was just used if there is one, else one of the pool.
    pub(super) async fn get(&self) -> Result<Kept<'_>, sqlx::Error> {
        let now = Instant::now();
        if let Some(idle) = self.just_used(now) {
            return Ok(Kept { of: self, idle });
        }
        let idle = Idle {
            connection: self.pool.acquire().await?,
            aside_since: now,
            used: now,
        };
        Ok(Kept { of: self, idle })
    }

    fn just_used(&self, now: Instant) -> Option<Idle> {
        let rested = {
            let mut all = self.lock();
            match all.pop() {
                Some(idle) if now.duration_since(idle.used) <= RESTED => {
                    return (now.duration_since(idle.aside_since) <= ASIDE).then_some(idle);
                }
                // They are in the order of their last use: if the last has rested, all have.
                last => (last, std::mem::take(&mut *all)),
            }
        };
        drop(rested);
        None
    }
}

/// A connection for one statement. Dropped, it goes back to the pool, which finds out whether it can be used again.
pub(super) struct Kept<'a> {
    of: &'a Connections,
    idle: Idle,
}

impl Kept<'_> {
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.idle.connection
    }

    /// Keeps the connection if the server has answered on it. If it was lost, so are the others, most likely: the pool finds that
    /// out before anybody else does.
    pub(super) fn answered<T>(self, answer: Result<T, sqlx::Error>) -> Result<T, sqlx::Error> {
        let Self { of, mut idle } = self;
        match &answer {
            Ok(_) | Err(sqlx::Error::RowNotFound) => {
                idle.used = Instant::now();
                let mut all = of.lock();
                if all.len() < of.most {
                    all.push(idle);
                }
            }
            Err(error) if kind(error) == Kind::Away => {
                of.losses.note();
                of.release();
            }
            Err(_) => {}
        }
        answer
    }
}

/// How a single statement is carried out.
pub(super) trait Fetch: Sized {
    /// What a row is.
    type Row: Send;

    /// Gives all rows.
    fn all_on(
        self,
        on: &Connections,
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

    /// Gives the first row, if there is one.
    fn optional_on(
        self,
        on: &Connections,
    ) -> impl Future<Output = Result<Option<Self::Row>, sqlx::Error>> + Send;

    /// Gives the first row.
    fn one_on(
        self,
        on: &Connections,
    ) -> impl Future<Output = Result<Self::Row, sqlx::Error>> + Send;
}

macro_rules! fetch {
    ($row:ty) => {
        type Row = $row;

        async fn all_on(self, on: &Connections) -> Result<Vec<$row>, sqlx::Error> {
            let mut kept = on.get().await?;
            let answer = self.fetch_all(kept.connection()).await;
            kept.answered(answer)
        }

        async fn optional_on(self, on: &Connections) -> Result<Option<$row>, sqlx::Error> {
            let mut kept = on.get().await?;
            let answer = self.fetch_optional(kept.connection()).await;
            kept.answered(answer)
        }

        async fn one_on(self, on: &Connections) -> Result<$row, sqlx::Error> {
            let mut kept = on.get().await?;
            let answer = self.fetch_one(kept.connection()).await;
            kept.answered(answer)
        }
    };
}

impl Fetch for Query<'_, Postgres, PgArguments> {
    fetch!(PgRow);
}

impl<O> Fetch for QueryScalar<'_, Postgres, O, PgArguments>
where
    O: Send + Unpin,
    (O,): for<'r> sqlx::FromRow<'r, PgRow> + Send + Unpin,
{
    fetch!(O);
}
