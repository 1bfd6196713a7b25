//! A node with an image to start.

use runtara_domain::{
    Due, ImageDigest, ImageId, ImageName, InstanceId, Labels, NewImage, NewInstance,
    RegistrationNumber, RunSettings, RunnerKind, TenantId,
};
use runtara_store::Store;
use runtara_store::postgres::PostgresStore;

/// A node that starts and claims.
pub(crate) struct Node<'a> {
    store: &'a PostgresStore,
    pub(crate) tenant: TenantId,
    image: ImageId,
}

impl<'a> Node<'a> {
    /// A node with an image to start.
    pub(crate) async fn make(store: &'a PostgresStore) -> Self {
        let node = Self {
            store,
            tenant: TenantId::new("acme").unwrap(),
            image: ImageId::new("image").unwrap(),
        };
        let image = NewImage {
            image_id: node.image.clone(),
            number: RegistrationNumber(0),
            tenant_id: node.tenant.clone(),
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
        store.register_image(image).await.unwrap();
        node
    }

    fn new_instance(&self, id: &str) -> NewInstance {
        NewInstance {
            instance_id: InstanceId::new(id).unwrap(),
            tenant_id: self.tenant.clone(),
            image_id: self.image.clone(),
            input: "{}".into(),
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
        }
    }

    pub(crate) async fn start(&self, id: &str) {
        let new = self.new_instance(id);
        self.store.start_instance(new).await.unwrap();
    }
}
