//! Random histories on the model and on SQLite and PostgreSQL: every answer is the same.
//!
//! `RUNTARA_TEST_DIFFERENTIAL_CASES` plays more of them, or fewer.

#![cfg(feature = "conformance")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use async_trait::async_trait;
use runtara_domain::Timestamp;
use runtara_store::conformance::Harness;
use runtara_store::conformance::differential::{check, compare};
use runtara_store::memory::MemoryStore;
use runtara_store::{ManualClock, Nudges, Store};
use tokio::runtime::{Builder, Runtime};

#[cfg(feature = "postgres")]
#[path = "postgres_support/clock.rs"]
mod clock;
#[cfg(feature = "postgres")]
mod postgres_support;

/// Where the clocks of all harnesses begin.
const BEGINNING: Timestamp = Timestamp(1_700_000_000_000);

struct Clocked {
    clock: Arc<ManualClock>,
    store: Arc<dyn Store>,
}

#[async_trait]
impl Harness for Clocked {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn advance(&self, millis: u64) {
        self.clock.advance_millis(millis);
    }
}

fn memory() -> Clocked {
    let clock = Arc::new(ManualClock::at(BEGINNING));
    let store = Arc::new(MemoryStore::new(clock.clone(), Nudges::new()));
    Clocked { clock, store }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

/// The test tells a store from another of its kind by nothing.
#[test]
fn a_model_answers_as_another_does() {
    let runtime = runtime();
    check(64, |history| {
        runtime.block_on(compare(&memory(), &memory(), history))
    });
}

#[cfg(feature = "sqlite")]
#[test]
fn sqlite_answers_as_the_model_does() {
    use runtara_store::sqlite::{SqliteOptions, SqliteStore};

    let runtime = runtime();
    check(80, |history| {
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let clock = Arc::new(ManualClock::at(BEGINNING));
            let options = SqliteOptions::at(directory.path().join("store.db")).several_nodes();
            let store = SqliteStore::open(options.clock(clock.clone()))
                .await
                .unwrap();
            let store: Arc<dyn Store> = Arc::new(store);
            let sqlite = Clocked {
                clock,
                store: store.clone(),
            };
            let compared = compare(&memory(), &sqlite, history).await;
            store.close().await;
            compared
        })
    });
}

#[cfg(feature = "postgres")]
#[test]
fn postgres_answers_as_the_model_does() {
    let runtime = runtime();
    if postgres_support::url().is_none() {
        // Left out, and said so, because the environment asks for it.
        return;
    }
    check(30, |history| {
        runtime.block_on(async {
            let postgres = clock::Postgres::make().await.unwrap();
            let compared = compare(&memory(), &postgres, history).await;
            postgres.store.close().await;
            compared
        })
    });
}
