//! The conformance suite on PostgreSQL.

#![cfg(all(feature = "postgres", feature = "conformance"))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "postgres_support/clock.rs"]
mod clock;
mod postgres_support;

use std::sync::Arc;

use async_trait::async_trait;
use clock::Postgres;
use runtara_domain::Timestamp;
use runtara_store::conformance::Harness;
use runtara_store::memory::MemoryStore;
use runtara_store::{ManualClock, Nudges, Store};

/// The store, or what stands in for it where the tests on PostgreSQL are to be left out.
enum Tested {
    Postgres(Box<Postgres>),
    LeftOut(Arc<ManualClock>, Arc<MemoryStore>),
}

async fn postgres() -> Tested {
    match Postgres::make().await {
        Some(postgres) => Tested::Postgres(Box::new(postgres)),
        None => {
            let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
            Tested::LeftOut(
                clock.clone(),
                Arc::new(MemoryStore::new(clock, Nudges::new())),
            )
        }
    }
}

#[async_trait]
impl Harness for Tested {
    fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Postgres(postgres) => postgres.store(),
            Self::LeftOut(_, store) => store.clone(),
        }
    }

    async fn advance(&self, millis: u64) {
        match self {
            Self::Postgres(postgres) => postgres.advance(millis).await,
            Self::LeftOut(clock, _) => clock.advance_millis(millis),
        }
    }
}

runtara_store::conformance_suite!(postgres().await);
