//! How connections are set up, and the schema.

use std::path::{Path, PathBuf};
use std::time::Duration;

use runtara_domain::DatabaseId;
use rusqlite::ToSql;
use sqlx::ConnectOptions as _;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteLockingMode, SqliteSynchronous,
};
use uuid::Uuid;

use super::failure::{broken, broken_by, failed};
use super::limited;
use super::sql::{Columns, Sql};
use crate::StoreResult;

/// How long another process is waited for that has the database, which can only be a person with a tool, or a backup.
const BUSY: Duration = Duration::from_secs(5);
/// Cache of the connection that writes.
const WRITER_CACHE_KIB: i64 = 4_096;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// The settings of the connections that read, and of that which migrates.
///
/// - A write-ahead log, so that questions and writes do not wait for each other.
/// - `synchronous=FULL`: with a write-ahead log anything less loses commits at a power failure (<https://sqlite.org/pragma.html#pragma_synchronous>).
///   The connection that writes has the [redo log](super::redo) for that.
/// - Small caches and no memory mapping: the kernel caches the file already.
fn common(path: &Path, cache_kib: i64) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .locking_mode(SqliteLockingMode::Normal)
        // Rows that belong together are written and removed in one transaction; a constraint would only cost look-ups.
        .foreign_keys(false)
        .busy_timeout(BUSY)
        .pragma("cache_size", format!("-{cache_kib}"))
        .pragma("mmap_size", "0")
        .pragma("temp_store", "memory")
        .disable_statement_logging()
}

/// How the connection that writes is opened.
pub(super) struct WriterOptions {
    pub(super) path: PathBuf,
    pub(super) max_pages: Option<u32>,
}

impl WriterOptions {
    /// Opens it, on the thread that is to use it: an errand to another thread costs more than most statements.
    ///
    /// # Errors
    /// What SQLite reported.
    pub(super) fn open(&self) -> StoreResult<rusqlite::Connection> {
        let opened = rusqlite::Connection::open(&self.path).and_then(|connection| {
            connection.busy_timeout(BUSY)?;
            connection.set_prepared_statement_cache_capacity(256);
            let pragmas: [(&str, &dyn ToSql); 8] = [
                ("journal_mode", &"wal"),
                // What is answered before a commit of SQLite is flushed to the redo log.
                ("synchronous", &"normal"),
                ("foreign_keys", &0),
                ("cache_size", &-WRITER_CACHE_KIB),
                ("mmap_size", &0),
                ("temp_store", &"memory"),
                // The log is carried over at 8 MiB and cut down to that where something held it up meanwhile.
                ("wal_autocheckpoint", &2_000),
                ("journal_size_limit", &16_777_216),
            ];
            for (name, value) in pragmas {
                connection.pragma_update(None, name, value)?;
            }
            if let Some(pages) = self.max_pages {
                connection.pragma_update(None, "max_page_count", pages)?;
            }
            Ok(connection)
        });
        opened.map_err(|error| failed("opening the database", error))
    }
}

/// The settings of the connections that read.
pub(super) fn reader(path: &Path) -> SqliteConnectOptions {
    common(path, 2_048)
        .create_if_missing(false)
        .read_only(true)
        .statement_cache_capacity(48)
}

/// Brings the schema up to date. Migrations only add, so one that this program does not know does not disturb it.
pub(super) async fn migrate(connection: &mut SqliteConnection, path: &Path) -> StoreResult<()> {
    let mut migrations = Migrator {
        migrations: MIGRATIONS.migrations.clone(),
        ..Migrator::DEFAULT
    };
    migrations.dangerous_set_table_name("runtara_migrations");
    migrations
        .set_ignore_missing(true)
        .run(&mut *connection)
        .await
        .map_err(|error| {
            broken_by(
                format!("bringing the schema of {} up to date", path.display()),
                error,
            )
        })
}

/// Has the index for claims by tenant there if it is wanted, and away if it is not.
pub(super) async fn index_claims(
    connection: &mut SqliteConnection,
    wanted: bool,
) -> StoreResult<()> {
    let sql = match wanted {
        true => limited::MAKE_INDEX,
        false => limited::DROP_INDEX,
    };
    let done = Sql::new(sql).rows(connection, "indexing what is due by tenant");
    done.await.map(drop)
}

/// Refuses a database that belongs to another program.
pub(super) async fn refuse_foreign(
    connection: &mut SqliteConnection,
    path: &Path,
) -> StoreResult<()> {
    let sql = Sql::new(
        "select name from sqlite_schema where type = 'table' and name not like 'sqlite@_%' \
         escape '@' order by name like 'runtara@_%' escape '@' desc, name limit 3",
    );
    let rows = sql.rows(connection, "reading the schema").await?;
    let mut names = Vec::new();
    for row in &rows {
        names.push(Columns::of(row).text()?);
    }
    match names.first() {
        Some(first) if !first.starts_with("runtara_") => Err(broken(format!(
            "the database {} belongs to another program (it has the table {}); name a file of its own for this one, it will be \
             made",
            path.display(),
            names.join(", ")
        ))),
        _ => Ok(()),
    }
}

/// The id of the database. It is made when it is first asked for.
pub(super) async fn database_id(connection: &mut SqliteConnection) -> StoreResult<DatabaseId> {
    let mut sql = Sql::default();
    sql.then("insert or ignore into runtara_meta (key, value) values ('database_id', ?)")
        .bind(Uuid::new_v4().to_string());
    sql.execute(connection, "writing the id of the database")
        .await?;
    let sql = Sql::new("select value from runtara_meta where key = 'database_id'");
    let row = sql
        .row(connection, "reading the id of the database")
        .await?;
    let row = row.ok_or_else(|| broken("the database has no id"))?;
    Columns::of(&row).parsed()
}

/// Opens a connection for what is done at the start.
pub(super) async fn at_the_start(options: &WriterOptions) -> StoreResult<SqliteConnection> {
    let mut settings = common(&options.path, WRITER_CACHE_KIB);
    if let Some(pages) = options.max_pages {
        settings = settings.pragma("max_page_count", pages.to_string());
    }
    settings
        .connect()
        .await
        .map_err(|error| failed("opening the database", error))
}
