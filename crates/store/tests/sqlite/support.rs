//! Small makers of what the tests need.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use runtara_domain::{
    Caller, CheckpointId, Due, Fence, ImageDigest, ImageId, ImageName, InstanceId, Labels,
    NewImage, NewInstance, NodeId, RegistrationNumber, RunSettings, RunToken, RunnerKind,
    SaveCheckpoint, TenantId, limits,
};
use runtara_store::sqlite::{SqliteOptions, SqliteStore};
use runtara_store::{Claim, ClaimedRun, NodeLease, Store};
use uuid::Uuid;

pub(super) async fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(SqliteOptions::at(path)).await.unwrap()
}

pub(super) fn tenant() -> TenantId {
    TenantId::new("acme").unwrap()
}

pub(super) fn image() -> NewImage {
    NewImage {
        image_id: ImageId::new("image-1").unwrap(),
        number: RegistrationNumber(0),
        tenant_id: tenant(),
        name: ImageName::new("orders").unwrap(),
        description: None,
        kind: RunnerKind::Native,
        digest: ImageDigest::of(b"program"),
        base: None,
        size: 7,
        metadata: None,
        labels: Labels::default(),
        settings: RunSettings::default(),
        container: None,
        tenant_bytes_allowed: None,
    }
}

pub(super) fn start(id: &str) -> NewInstance {
    NewInstance {
        instance_id: InstanceId::new(id).unwrap(),
        tenant_id: tenant(),
        image_id: image().image_id,
        input: Bytes::from_static(b"{}"),
        env: BTreeMap::new(),
        args: Vec::new(),
        labels: Labels::default(),
        settings: RunSettings::default(),
        timeout_ms: limits::RUN_TIMEOUT_MS,
        max_attempts: None,
        max_events: None,
        due: Due::NOW,
        request_timeout_ms: None,
        heartbeat_timeout_ms: None,
        expires: None,
        pending_allowed: None,
    }
}

pub(super) fn save(name: &str, state: impl Into<Bytes>) -> SaveCheckpoint {
    SaveCheckpoint {
        checkpoint_id: CheckpointId::new(name).unwrap(),
        state: state.into(),
        request_id: None,
    }
}

pub(super) async fn claim(store: &dyn Store, most: usize) -> Vec<ClaimedRun> {
    let node = NodeId(Uuid::from_u128(7));
    store
        .renew_node(NodeLease::new(node, "node", 600_000))
        .await
        .unwrap();
    let claim = Claim {
        node,
        kinds: vec![RunnerKind::Native],
        tokens: (0..most).map(|_| RunToken::generate().hash()).collect(),
        without_tenants: Vec::new(),
        running_allowed: None,
    };
    store.claim_due(claim).await.unwrap()
}

pub(super) fn caller(run: &ClaimedRun) -> Caller {
    Caller {
        instance_id: run.instance_id.clone(),
        fence: Fence::Run(run.token),
    }
}
