//! A PostgreSQL for tests: each test has a schema of its own in the database that `RUNTARA_TEST_POSTGRES_URL` names.

use std::time::{SystemTime, UNIX_EPOCH};

use runtara_store::postgres::{PostgresOptions, PostgresStore};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use uuid::Uuid;

/// Where tests find a PostgreSQL.
pub(crate) const URL: &str = "RUNTARA_TEST_POSTGRES_URL";
/// Says that there is none, and that the tests are to be left out.
pub(crate) const WITHOUT: &str = "RUNTARA_TEST_WITHOUT_POSTGRES";
/// Schemas of tests that were killed are removed after so many seconds.
const LEFT_SECONDS: u64 = 3_600;

/// The URL of the database; `None` if the tests are to be left out, which is said aloud.
pub(crate) fn url() -> Option<String> {
    if let Ok(url) = std::env::var(URL) {
        return Some(url);
    }
    if std::env::var(WITHOUT).is_ok_and(|without| without == "1") {
        eprintln!("LEFT OUT: nothing was tested on PostgreSQL, because {WITHOUT}=1");
        return None;
    }
    panic!(
        "tests of the PostgreSQL store need a PostgreSQL. Give its URL in {URL} (`eval \"$(cargo xtask db env)\"` after \
         `cargo xtask db start`), or set {WITHOUT}=1 to leave them out"
    );
}

/// A schema of its own, and where it is.
pub(crate) struct Schema {
    name: String,
    base: String,
    /// The URL by which everything is found in it.
    pub(crate) url: String,
}

impl Schema {
    pub(crate) async fn make() -> Option<Self> {
        let base = url()?;
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let name = format!("rt_{seconds}_{}", Uuid::new_v4().simple());
        let mut connection = PgConnection::connect(&base).await.unwrap();
        execute(&mut connection, &format!("create schema {name}")).await;
        let old: Vec<String> = sqlx::query_scalar(
            "select nspname::text from pg_namespace
              where nspname ~ '^rt_[0-9]+_' and split_part(nspname, '_', 2)::bigint < $1 limit 20",
        )
        .bind(i64::try_from(seconds - LEFT_SECONDS).unwrap())
        .fetch_all(&mut connection)
        .await
        .unwrap();
        for old in old {
            let drop = format!("drop schema if exists {old} cascade");
            // Another test may be removing it.
            let _done = sqlx::raw_sql(AssertSqlSafe(drop))
                .execute(&mut connection)
                .await;
        }
        let joint = if base.contains('?') { '&' } else { '?' };
        Some(Self {
            url: format!("{base}{joint}application_name={name}&options=-csearch_path%3D{name}"),
            name,
            base,
        })
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    pub(crate) async fn store(&self) -> PostgresStore {
        let options = PostgresOptions::new(&*self.url).max_connections(12);
        PostgresStore::connect(options).await.unwrap()
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        let (base, name) = (self.base.clone(), self.name.clone());
        // Dropping is synchronous; the tests' runtime must not be blocked by it.
        let removal = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let mut connection = PgConnection::connect(&base).await.unwrap();
                let drop =
                    format!("set lock_timeout = '10s'; drop schema if exists {name} cascade");
                if let Err(error) = sqlx::raw_sql(AssertSqlSafe(drop))
                    .execute(&mut connection)
                    .await
                {
                    eprintln!("left the schema {name} behind: {error}");
                }
            });
        });
        let _ended = removal.join();
    }
}

pub(crate) async fn execute(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(connection)
        .await
        .unwrap();
}
