//! How a PostgreSQL is connected to.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::{Nudges, StoreError, StoreResult};

use super::connections::Losses;
use super::error::Fault;

/// How a [`super::PostgresStore`] connects.
///
/// It shows no password: it does not implement `Debug`.
#[derive(Clone)]
#[non_exhaustive]
pub struct PostgresOptions {
    place: Place,
    /// The schema of the tables; the one that connections have unless another is named.
    pub schema: Option<String>,
    /// Most connections at once.
    pub max_connections: u32,
    /// How long anyone waits for a free connection, or for room in a queue.
    pub acquire_timeout: Duration,
    /// How long one statement may take.
    pub statement_timeout: Duration,
    /// Whether to bring the database to the schema of this build.
    pub migrate: bool,
    /// Whom the store tells that something changed.
    pub nudges: Nudges,
}

/// Where a database is, and how connections to it are made.
#[derive(Clone)]
enum Place {
    Url(String),
    /// As a pool of the host program makes them.
    As(Box<(PgConnectOptions, PgPoolOptions)>),
}

impl PostgresOptions {
    /// Options for a database (`postgres://user:password@host:port/database?options`), all others being usual: 20 connections, 10 s for a connection,
    /// 30 s for a statement, migrations, the schema of the connections.
    pub fn new(url: impl Into<String>) -> Self {
        Self::at(Place::Url(url.into()))
    }

    /// Options for the database of a host program's pool. Connections are made as that pool makes them, with what it does to each, and there are at most
    /// as many as it may have; but they are the store's own: its statements count on settings of the planner that would not be right for the host's.
    /// What is done with the pool itself, such as closing it, is none of the store's concern.
    #[must_use]
    pub fn beside(pool: &PgPool) -> Self {
        let made = ((*pool.connect_options()).clone(), pool.options().clone());
        let most = made.1.get_max_connections();
        Self::at(Place::As(Box::new(made))).max_connections(most)
    }

    fn at(place: Place) -> Self {
        Self {
            place,
            schema: None,
            max_connections: 20,
            acquire_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            migrate: true,
            nudges: Nudges::new(),
        }
    }

    /// Has the tables in a schema of their own, which migrations make if it is not there.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Changes how many connections there are at most.
    #[must_use]
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.max_connections = connections.max(2);
        self
    }

    /// Changes how long anyone waits for a free connection.
    #[must_use]
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// Changes how long one statement may take.
    #[must_use]
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = timeout;
        self
    }

    /// Changes whether the database is brought to the schema of this build.
    #[must_use]
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// Changes whom the store tells that something changed.
    #[must_use]
    pub fn nudges(mut self, nudges: Nudges) -> Self {
        self.nudges = nudges;
        self
    }

    fn connect_options(&self) -> StoreResult<PgConnectOptions> {
        let options = match &self.place {
            Place::Url(url) => read_url(url)?,
            Place::As(made) => made.0.clone(),
        };
        let options = match &self.schema {
            Some(schema) => options.options([("search_path", quoted(schema)?)]),
            None => options,
        };
        let timeout = format!("{}ms", self.statement_timeout.as_millis());
        // Each statement here has an index that serves it. While tables are small or newly filled the planner thinks that reading
        // them whole is cheaper, and keeps that plan; planning anew for each call, to which arrays as parameters mislead it, or
        // compiling statements that take a tenth of a millisecond takes longer than they do. Joins go along indexes, which also keeps
        // the order in which a batch changes its rows.
        let options = match options.get_application_name() {
            Some(_) => options,
            None => options.application_name("runtara"),
        };
        Ok(options
            .options([
                ("statement_timeout", timeout.as_str()),
                ("idle_in_transaction_session_timeout", timeout.as_str()),
                ("enable_seqscan", "off"),
                ("enable_hashjoin", "off"),
                ("enable_mergejoin", "off"),
                ("plan_cache_mode", "force_generic_plan"),
                ("jit", "off"),
                ("random_page_cost", "1.1"),
            ])
            .disable_statement_logging())
    }

    pub(super) async fn pool(&self, losses: Losses) -> StoreResult<PgPool> {
        let connect = self.connect_options()?;
        let options = match &self.place {
            Place::Url(_) => PgPoolOptions::new()
                .idle_timeout(Duration::from_secs(600))
                .max_lifetime(Duration::from_secs(3_600))
                // A question before each use would double the round trips of a busy store.
                .test_before_acquire(false)
                .before_acquire(move |connection, rested| {
                    let is_doubtful = losses.cast_doubt_on(rested.idle_for);
                    Box::pin(async move {
                        if is_doubtful {
                            connection.ping().await?;
                        }
                        Ok(true)
                    })
                }),
            // What the host does before a connection is used is the host's.
            Place::As(made) => made.1.clone().min_connections(0),
        };
        options
            .max_connections(self.max_connections)
            .acquire_timeout(self.acquire_timeout)
            .connect_with(connect)
            .await
            .map_err(|error| Fault::from(error).during("connecting to the database"))
    }
}

fn read_url(url: &str) -> StoreResult<PgConnectOptions> {
    url.parse().map_err(|error| StoreError::Broken {
        // The error of the parser may show parts of the URL, and so of the password.
        context: match error {
            sqlx::Error::Configuration(_) => {
                "the URL of the database is not of the form postgres://user:password@host:port/database"
                    .to_owned()
            }
            _ => "the URL of the database cannot be read".to_owned(),
        },
        source: None,
    })
}

/// The name of a schema as statements have it.
///
/// # Errors
/// [`StoreError::Broken`] for a name that PostgreSQL does not take, or would cut.
pub(super) fn quoted(schema: &str) -> StoreResult<String> {
    /// Longest name of anything in PostgreSQL, in bytes (NAMEDATALEN - 1).
    const NAME_BYTES: usize = 63;
    let is_fit = (1..=NAME_BYTES).contains(&schema.len()) && !schema.contains('\0');
    if !is_fit || schema.starts_with("pg_") {
        return Err(StoreError::Broken {
            context: format!(
                "the schema {schema:?} cannot be used; a name has 1 to {NAME_BYTES} bytes, none of which is zero, and does not begin with pg_"
            ),
            source: None,
        });
    }
    Ok(format!("\"{}\"", schema.replace('"', "\"\"")))
}
