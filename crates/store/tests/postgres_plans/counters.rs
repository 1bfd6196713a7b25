//! What PostgreSQL has counted.

use sqlx::PgConnection;

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counted {
    pub(crate) used: i64,
    pub(crate) entries: i64,
    pub(crate) whole: i64,
}

pub(crate) async fn counted(connection: &mut PgConnection, index: &str) -> Counted {
    let (used, entries, whole) = sqlx::query_as(
        "select (select coalesce(sum(idx_scan), 0)::bigint from pg_stat_user_indexes
                  where schemaname = current_schema() and indexrelname = $1),
                (select coalesce(sum(idx_tup_read), 0)::bigint from pg_stat_user_indexes
                  where schemaname = current_schema()),
                (select coalesce(sum(seq_scan), 0)::bigint from pg_stat_user_tables
                  where schemaname = current_schema()
                    and relname not in ('runtara_meta', 'runtara_migrations', 'runtara_nodes', 'runtara_counted'))",
    )
    .bind(index)
    .fetch_one(connection)
    .await
    .unwrap();
    Counted {
        used,
        entries,
        whole,
    }
}

/// How many connections of this name there are.
pub(crate) async fn connections(connection: &mut PgConnection, name: &str) -> i64 {
    sqlx::query_scalar("select count(*) from pg_stat_activity where application_name = $1")
        .bind(name)
        .fetch_one(connection)
        .await
        .unwrap()
}
