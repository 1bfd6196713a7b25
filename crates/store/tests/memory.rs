//! The conformance suite on the reference model.

use std::sync::Arc;

use async_trait::async_trait;
use runtara_domain::Timestamp;
use runtara_store::conformance::Harness;
use runtara_store::memory::MemoryStore;
use runtara_store::{ManualClock, Nudges, Store};

struct Memory {
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
}

fn memory() -> Memory {
    let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
    let store = Arc::new(MemoryStore::new(clock.clone(), Nudges::new()));
    Memory { clock, store }
}

#[async_trait]
impl Harness for Memory {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn advance(&self, millis: u64) {
        self.clock.advance_millis(millis);
    }
}

runtara_store::conformance_suite!(memory());
