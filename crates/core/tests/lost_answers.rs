//! Calls whose answer the store has lost: they are durable, and the program must not be told otherwise.

#![expect(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use std::sync::Arc;

use bytes::Bytes;
use runtara_core::{Core, CoreConfig};
use runtara_domain::{
    Caller, Due, Fence, ImageDigest, ImageId, ImageName, InstanceId, Labels, NewImage, NewInstance,
    NodeId, RegistrationNumber, RunSettings, RunToken, RunnerKind, SignalId, TenantId,
};
use runtara_runner::{CallTracker, InstanceCalls as _};
use runtara_store::lossy::LossyStore;
use runtara_store::memory::MemoryStore;
use runtara_store::{Claim, NodeLease, Nudges, Store as _, SystemClock};

/// An instance that runs, and who calls for it.
async fn running(store: &LossyStore) -> Caller {
    let tenant = TenantId::new("acme").unwrap();
    let image = NewImage {
        image_id: ImageId::generate(),
        number: RegistrationNumber(0),
        tenant_id: tenant.clone(),
        name: ImageName::new("program").unwrap(),
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
    };
    let image = store.register_image(image).await.unwrap();
    let instance_id = InstanceId::new("order-7").unwrap();
    let new = NewInstance {
        instance_id: instance_id.clone(),
        tenant_id: tenant,
        image_id: image.image_id,
        input: Bytes::from_static(b"{}"),
        env: Default::default(),
        args: Vec::new(),
        labels: Labels::default(),
        settings: RunSettings::default(),
        timeout_ms: 60_000,
        max_attempts: None,
        max_events: None,
        due: Due::NOW,
        request_timeout_ms: None,
        heartbeat_timeout_ms: None,
        expires: None,
        pending_allowed: None,
    };
    store.start_instance(new).await.unwrap();
    let token = RunToken::generate().hash();
    let node = NodeId::generate();
    let lease = NodeLease::new(node, "node", 600_000);
    store.renew_node(lease).await.unwrap();
    let claim = Claim {
        node,
        kinds: vec![RunnerKind::Native],
        tokens: vec![token],
        without_tenants: Vec::new(),
        running_allowed: None,
    };
    assert_eq!(store.claim_due(claim).await.unwrap().len(), 1);
    Caller {
        instance_id,
        fence: Fence::Run(token),
    }
}

#[tokio::test]
async fn a_signal_whose_taking_was_answered_in_vain_is_given_to_its_run() {
    let memory = MemoryStore::new(Arc::new(SystemClock), Nudges::new());
    let store = Arc::new(LossyStore::new(Arc::new(memory)));
    let caller = running(&store).await;
    let core = Core::new(
        Arc::clone(&store) as _,
        CallTracker::new(),
        CoreConfig::default(),
    );
    let signal = SignalId::new("approved").unwrap();
    let payload = Some(Bytes::from_static(b"by me"));
    store
        .send_signal(&caller.instance_id, &signal, payload.clone())
        .await
        .unwrap();
    store.lose("take_signal", 2);
    let taken = core.take_signal(&caller, &signal).await.unwrap();
    assert_eq!(taken, Some(payload));
    assert_eq!(store.to_lose("take_signal"), 0);
    let again = core.take_signal(&caller, &signal).await.unwrap();
    assert_eq!(again, None, "it is delivered to a run once");
}
