//! What the dispatcher asks.

use runtara_domain::{NodeId, RunToken, RunnerKind, TenantId};
use runtara_store::postgres::PostgresStore;
use runtara_store::{Claim, NodeLease, Store as _};

use crate::case::Case;
use crate::filled::id;

fn claim(without: &[&str]) -> Claim {
    Claim {
        node: NODE.parse().unwrap(),
        kinds: vec![RunnerKind::Native],
        tokens: (0..5).map(|_| RunToken::generate().hash()).collect(),
        without_tenants: without
            .iter()
            .map(|tenant| TenantId::new(tenant).unwrap())
            .collect(),
        running_allowed: None,
    }
}

const NODE: &str = "00000000-0000-0000-0000-000000000042";

/// Only a node with a lease is given anything.
async fn register(store: &PostgresStore) {
    let lease = NodeLease::new(NODE.parse().unwrap(), "node", 600_000);
    store.renew_node(lease).await.unwrap();
}

pub(crate) const CASES: &[Case] = &[
    Case {
        what: "claim",
        index: "runtara_instances_due",
        entries: 60,
        call: |store, _| {
            Box::pin(async {
                register(store).await;
                let claimed = store.claim_due(claim(&[])).await.unwrap();
                assert_eq!(claimed.len(), 5);
            })
        },
    },
    Case {
        what: "claim without the tenants that have the most",
        index: "runtara_instances_tenant_due",
        entries: 700,
        call: |store, _| {
            Box::pin(async {
                register(store).await;
                let claimed = store.claim_due(claim(&["t-15", "t-35"])).await.unwrap();
                assert_eq!(claimed.len(), 5);
            })
        },
    },
    Case {
        what: "next due time",
        index: "runtara_instances_due",
        entries: 120,
        call: |store, _| {
            Box::pin(async {
                let next = store.next_due(&[RunnerKind::Native]).await.unwrap();
                assert_eq!(next.in_ms, Some(0));
            })
        },
    },
    Case {
        what: "live runs of a node",
        index: "runtara_instances_live",
        entries: 12,
        call: |store, _| {
            Box::pin(async {
                let node: NodeId = "00000000-0000-0000-0000-000000000005".parse().unwrap();
                let runs = store.live_runs(node, Some(&id(50)), 10).await.unwrap();
                assert_eq!(runs.len(), 10);
            })
        },
    },
];
