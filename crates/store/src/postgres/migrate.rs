//! Brings a database to the schema that this build needs.

use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row as _};

use crate::{StoreError, StoreResult};

use super::error::{Answer, Fault};
use super::options::quoted;

struct Migration {
    version: i64,
    name: &'static str,
    sql: &'static str,
}

/// All migrations in their order. They only add, so that an old server works with a new schema until the last is replaced.
const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "first",
        sql: include_str!("../../migrations/postgres/0001_first.sql"),
    },
    Migration {
        version: 2,
        name: "lean_saves_and_far_pages",
        sql: include_str!("../../migrations/postgres/0002_lean_saves_and_far_pages.sql"),
    },
    Migration {
        version: 3,
        name: "filters",
        sql: include_str!("../../migrations/postgres/0003_filters.sql"),
    },
    Migration {
        version: 4,
        name: "time_in_states",
        sql: include_str!("../../migrations/postgres/0004_time_in_states.sql"),
    },
    Migration {
        version: 5,
        name: "run_settings",
        sql: include_str!("../../migrations/postgres/0005_run_settings.sql"),
    },
    Migration {
        version: 6,
        name: "registrations",
        sql: include_str!("../../migrations/postgres/0006_registrations.sql"),
    },
    Migration {
        version: 7,
        name: "nodes",
        sql: include_str!("../../migrations/postgres/0007_nodes.sql"),
    },
    Migration {
        version: 8,
        name: "liveness",
        sql: include_str!("../../migrations/postgres/0008_liveness.sql"),
    },
    Migration {
        version: 9,
        name: "removals",
        sql: include_str!("../../migrations/postgres/0009_removals.sql"),
    },
    Migration {
        version: 10,
        name: "event_bounds",
        sql: include_str!("../../migrations/postgres/0010_event_bounds.sql"),
    },
];

/// The key of the advisory lock under which one server migrates and others wait: "runtara" in ASCII.
const LOCK: i64 = 0x72_756e_7461_7261;

/// Applies the migrations that are missing, all in one transaction and under a lock, so that several servers may start at once.
pub(super) async fn run(pool: &PgPool, schema: Option<&str>) -> StoreResult<()> {
    let schema = schema.map(quoted).transpose()?;
    let doing = "bringing the database to the schema of this build";
    let mut transaction = pool
        .begin()
        .await
        .map_err(|error| Fault::from(error).during(doing))?;
    lock(&mut transaction)
        .await
        .map_err(|error| error.during(doing))?;
    if let Some(schema) = schema {
        enter(&mut transaction, &schema)
            .await
            .map_err(|error| error.during(doing))?;
    }
    check_owner(&mut transaction).await?;
    apply(&mut transaction)
        .await
        .map_err(|error| error.during(doing))?;
    transaction
        .commit()
        .await
        .map_err(|error| Fault::from(error).during(doing))
}

/// Waits until no other server migrates, and keeps others waiting for the rest of the transaction.
async fn lock(connection: &mut PgConnection) -> Answer<()> {
    // Whoever waits here for another server waits for its migrations: longer than a statement usually may.
    sqlx::query("select set_config('statement_timeout', '0', true)")
        .execute(&mut *connection)
        .await?;
    sqlx::query("select pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .execute(connection)
        .await?;
    Ok(())
}

/// Makes a schema if it is not there, and goes there for the rest of the transaction.
async fn enter(connection: &mut PgConnection, schema: &str) -> Answer<()> {
    let exists: bool = sqlx::query_scalar("select to_regnamespace($1) is not null")
        .bind(schema)
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        // Only then: whoever may use one need not have the right to make one.
        let made = format!("create schema if not exists {schema}");
        sqlx::query(AssertSqlSafe(made))
            .execute(&mut *connection)
            .await?;
    }
    sqlx::query("select set_config('search_path', $1, true)")
        .bind(schema)
        .execute(&mut *connection)
        .await?;
    Ok(())
}

/// Refuses a database of the product of the same name whose place this one takes, and one that cannot hold every text.
async fn check_owner(connection: &mut PgConnection) -> StoreResult<()> {
    let row = sqlx::query(
        "select to_regclass('runtara_migrations') is not null as ours,
                to_regclass('instances') is not null
                    and (to_regclass('instance_images') is not null or to_regclass('container_registry') is not null)
                    as theirs,
                current_setting('server_encoding') as encoding",
    )
    .fetch_one(connection)
    .await
    .map_err(|error| Fault::from(error).during("looking at the database"))?;
    let refuse = |context: String| {
        Err(StoreError::Broken {
            context,
            source: None,
        })
    };
    let read = |error: sqlx::Error| Fault::from(error).during("looking at the database");
    let encoding: String = row.try_get("encoding").map_err(read)?;
    if encoding != "UTF8" {
        return refuse(format!(
            "the database has the encoding {encoding}; create one with encoding UTF8"
        ));
    }
    let (ours, theirs): (bool, bool) = (
        row.try_get("ours").map_err(read)?,
        row.try_get("theirs").map_err(read)?,
    );
    if theirs && !ours {
        return refuse(
            "the database belongs to another Runtara server (it has its tables `instances` and `instance_images` or \
             `container_registry`), whose data this one cannot take over; give this server a database of its own"
                .to_owned(),
        );
    }
    Ok(())
}

async fn apply(connection: &mut PgConnection) -> Answer<()> {
    sqlx::query(
        "create table if not exists runtara_migrations (
             version    bigint primary key,
             name       text not null,
             applied_at timestamptz not null default now()
         )",
    )
    .execute(&mut *connection)
    .await?;
    let applied: Vec<i64> = sqlx::query_scalar("select version from runtara_migrations")
        .fetch_all(&mut *connection)
        .await?;
    for migration in MIGRATIONS {
        if applied.contains(&migration.version) {
            continue;
        }
        sqlx::raw_sql(AssertSqlSafe(migration.sql))
            .execute(&mut *connection)
            .await?;
        sqlx::query("insert into runtara_migrations (version, name) values ($1, $2)")
            .bind(migration.version)
            .bind(migration.name)
            .execute(&mut *connection)
            .await?;
        tracing::info!(
            version = migration.version,
            name = migration.name,
            "applied a migration"
        );
    }
    Ok(())
}
