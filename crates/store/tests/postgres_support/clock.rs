//! A store on PostgreSQL whose clock is the test's.

use std::sync::Arc;

use async_trait::async_trait;
use runtara_store::Store;
use runtara_store::conformance::Harness;
use runtara_store::postgres::PostgresStore;
use sqlx::postgres::PgPool;

use crate::postgres_support::{Schema, execute};

/// A store whose clock stands still unless it is moved.
pub(crate) struct Postgres {
    pub(crate) store: Arc<PostgresStore>,
    clock: PgPool,
    _schema: Schema,
}

impl Postgres {
    pub(crate) async fn make() -> Option<Self> {
        let schema = Schema::make().await?;
        let store = Arc::new(schema.store().await);
        let clock = PgPool::connect_lazy(&schema.url).unwrap();
        let mut connection = schema.connect().await;
        execute(
            &mut connection,
            "create table test_clock (now bigint not null);
             insert into test_clock values (1700000000000);
             create or replace function runtara_now() returns bigint language sql stable
                 as 'select now from test_clock';",
        )
        .await;
        Some(Self {
            store,
            clock,
            _schema: schema,
        })
    }
}

#[async_trait]
impl Harness for Postgres {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn advance(&self, millis: u64) {
        sqlx::query("update test_clock set now = now + $1")
            .bind(i64::try_from(millis).unwrap())
            .execute(&self.clock)
            .await
            .unwrap();
    }
}
