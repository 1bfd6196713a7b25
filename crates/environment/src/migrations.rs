//! The tables of the runtime in the database of a host program.
//!
//! A runtime that is started brings its database up to date by itself. A host that has its own time for that, such as a step of its release, does it
//! with [`run`] or [`run_in_schema`]. Either may be repeated, by several programs at once, before and after the migrations of the host: every table,
//! index and function of ours has a name that begins with `runtara_`, and what was applied is noted in `runtara_migrations`.

use runtara_store::postgres::{PgPool, PostgresStore};

use crate::Error;

/// Brings the tables to this version, in the schema that comes first in the search path of the pool's connections.
///
/// ```no_run
/// # async fn release() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = sqlx::PgPool::connect("postgres://localhost/shop").await?;
/// runtara_environment::migrations::run(&pool).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`Error::Store`] if the database cannot be reached, is not one of UTF-8, or belongs to another Runtara server.
pub async fn run(pool: &PgPool) -> Result<(), Error> {
    PostgresStore::migrate(pool, None).await?;
    Ok(())
}

/// Brings the tables to this version in a schema of this name, which is made if it is not there.
///
/// # Errors
/// As [`run`], and if the name is none that PostgreSQL takes (1 to 63 bytes, not beginning with `pg_`), or the schema may not be made.
pub async fn run_in_schema(pool: &PgPool, schema: &str) -> Result<(), Error> {
    PostgresStore::migrate(pool, Some(schema)).await?;
    Ok(())
}
