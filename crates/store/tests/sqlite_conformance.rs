//! The conformance suite on SQLite.

#![cfg(all(feature = "sqlite", feature = "conformance"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use async_trait::async_trait;
use runtara_domain::Timestamp;
use runtara_store::conformance::Harness;
use runtara_store::sqlite::{SqliteOptions, SqliteStore};
use runtara_store::{ManualClock, Store};

struct Sqlite {
    clock: Arc<ManualClock>,
    store: Arc<SqliteStore>,
    _directory: tempfile::TempDir,
}

async fn sqlite() -> Sqlite {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
    let options = SqliteOptions::at(directory.path().join("store.db"))
        .clock(clock.clone())
        .several_nodes()
        .claims_by_tenant(true);
    let store = SqliteStore::open(options).await.unwrap();
    Sqlite {
        clock,
        store: Arc::new(store),
        _directory: directory,
    }
}

#[async_trait]
impl Harness for Sqlite {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn advance(&self, millis: u64) {
        self.clock.advance_millis(millis);
    }
}

runtara_store::conformance_suite!(sqlite().await);
