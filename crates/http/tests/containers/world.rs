//! A server of the environment protocol whose runner of containers is played.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use runtara_control::{Control, ControlConfig, Programs};
use runtara_domain::{ImageDigest, NodeId, RunToken, RunnerKind};
use runtara_http::HostPolicy;
use runtara_http::environment::{
    EnvironmentService, EnvironmentState, MachineCheck, ServerReport, service,
};
use runtara_images::{BlobOptions, BlobStore};
use runtara_runner::{AskedSettings, ImageFiles, PrepareError, PreparedImage};
use runtara_store::memory::MemoryStore;
use runtara_store::{Claim, ClaimedRun, NodeLease, Nudges, Store as _, SystemClock};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Notify, Semaphore};
use tower::ServiceExt as _;
use uuid::Uuid;

pub(crate) const TENANT: &str = "acme";
/// The most memory that the played operator allows.
pub(crate) const MOST_MEMORY: u64 = 1 << 30;
/// What a container image of these tests says of itself.
pub(crate) const ABOUT: &str = r#"{"platform":"linux/amd64","entrypoint":["/app"]}"#;

/// Plays the runners: what an image's content says decides what becomes of it.
pub(crate) struct Played {
    pub(crate) prepared: Mutex<Vec<(RunnerKind, ImageFiles)>>,
    /// Told when an image is among them.
    noted: Notify,
    /// Told when an image is about to be made ready.
    pub(crate) reached: Notify,
    /// A permit for each image that may be made ready.
    pub(crate) gate: Semaphore,
    /// A permit for each image that says `held` and may be made ready.
    pub(crate) held: Semaphore,
    /// What was taken away.
    pub(crate) forgotten: Mutex<Vec<ImageDigest>>,
    /// Told when room is about to be given back.
    pub(crate) reclaiming: Notify,
    /// A permit for each time that room may be given back.
    pub(crate) room: Semaphore,
}

impl Played {
    /// Waits until so many images were made ready, or were found to be what cannot be.
    pub(crate) async fn until_prepared(&self, count: usize) {
        while self.prepared.lock().unwrap().len() < count {
            self.noted.notified().await;
        }
    }
}

#[async_trait]
impl Programs for Played {
    fn check(&self, kind: RunnerKind, settings: &AskedSettings) -> Result<(), String> {
        let AskedSettings { image, start } = settings;
        if kind == RunnerKind::Native && !(image.is_empty() && start.is_empty()) {
            return Err("native programs are given nothing".to_owned());
        }
        let asked = start.limits.memory_bytes.or(image.limits.memory_bytes);
        match asked {
            Some(asked) if asked > MOST_MEMORY => Err(format!(
                "memory of {asked} is more than the operator allows"
            )),
            _ => Ok(()),
        }
    }

    async fn prepare(
        &self,
        kind: RunnerKind,
        image: ImageFiles,
    ) -> Result<PreparedImage, PrepareError> {
        self.reached.notify_one();
        self.gate.acquire().await.unwrap().forget();
        let content = image.content;
        let text = fs::read(&image.path).unwrap();
        let says = |word: &str| text.windows(word.len()).any(|part| part == word.as_bytes());
        if says("held") {
            self.held.acquire().await.unwrap().forget();
        }
        self.prepared.lock().unwrap().push((kind, image.clone()));
        self.noted.notify_one();
        let host = |kind: io::ErrorKind| PrepareError::Host {
            content,
            context: "a layer could not be written".to_owned(),
            source: kind.into(),
        };
        if says("hostile") {
            let reason = "layer 1 has a member ../../etc/passwd".to_owned();
            return Err(PrepareError::Unfit { content, reason });
        }
        if says("crowded") {
            return Err(host(io::ErrorKind::StorageFull));
        }
        if says("unlucky") {
            return Err(host(io::ErrorKind::PermissionDenied));
        }
        Ok(PreparedImage {
            content,
            about: image.base.is_none().then(|| ABOUT.to_owned()),
            path: image.path,
        })
    }

    async fn forget(&self, digest: ImageDigest) -> io::Result<()> {
        self.forgotten.lock().unwrap().push(digest);
        Ok(())
    }

    async fn reclaim(&self) -> io::Result<()> {
        self.reclaiming.notify_one();
        self.room.acquire().await.unwrap().forget();
        Ok(())
    }
}

struct Nothing;

impl ServerReport for Nothing {
    fn active_runs(&self) -> usize {
        0
    }

    fn runners(&self) -> Vec<(String, bool, String)> {
        Vec::new()
    }

    fn machine(&self) -> Vec<MachineCheck> {
        Vec::new()
    }

    fn metrics(&self) -> String {
        String::new()
    }
}

pub(crate) struct World {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) blobs: BlobStore,
    pub(crate) programs: Arc<Played>,
    service: EnvironmentService,
    _directory: TempDir,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::that_runs(&[RunnerKind::Oci, RunnerKind::Native], &[]).await
    }

    /// One that keeps for so long what a client went away from.
    pub(crate) async fn that_keeps(kept_for_another_try: Duration) -> Self {
        Self::with(&[RunnerKind::Oci], &[], kept_for_another_try).await
    }

    pub(crate) async fn that_runs(
        kinds: &[RunnerKind],
        unavailable: &[(RunnerKind, &str)],
    ) -> Self {
        Self::with(kinds, unavailable, Duration::ZERO).await
    }

    async fn with(
        kinds: &[RunnerKind],
        unavailable: &[(RunnerKind, &str)],
        kept_for_another_try: Duration,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(directory.path().join("blobs"), BlobOptions::default());
        let blobs = blobs.await.unwrap();
        let store = Arc::new(MemoryStore::new(Arc::new(SystemClock), Nudges::new()));
        let programs = Arc::new(Played {
            prepared: Mutex::default(),
            noted: Notify::new(),
            reached: Notify::new(),
            gate: Semaphore::new(1_000),
            held: Semaphore::new(0),
            forgotten: Mutex::default(),
            reclaiming: Notify::new(),
            room: Semaphore::new(1_000),
        });
        let unavailable = unavailable.iter();
        let control = Control::new(
            Arc::clone(&store) as _,
            blobs.clone(),
            Arc::clone(&programs) as _,
            ControlConfig {
                node: NodeId(Uuid::from_u128(1)),
                max_events: None,
                kinds: kinds.to_vec(),
                unavailable: unavailable
                    .map(|(kind, reason)| (*kind, (*reason).to_owned()))
                    .collect::<BTreeMap<_, _>>(),
                native_for_oci: false,
                data_dir: directory.path().to_owned(),
                max_pending_per_tenant: None,
                max_image_bytes_per_tenant: None,
                kept_for_another_try,
            },
        );
        let state = EnvironmentState {
            control,
            report: Arc::new(Nothing),
            started: std::time::Instant::now(),
            version: "0",
        };
        Self {
            store,
            blobs,
            programs,
            service: service(state, HostPolicy::of_socket()),
            _directory: directory,
        }
    }

    /// Whether content is kept.
    pub(crate) async fn has(&self, content: &[u8]) -> bool {
        self.blobs.exists(&ImageDigest::of(content)).await.unwrap()
    }

    pub(crate) async fn ask(&self, request: Request<Body>) -> (StatusCode, Value) {
        let answer = self.service.clone().oneshot(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let (status, body) = self.ask(request).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        body
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = Request::post(path).header("content-type", "application/json");
        let request = request.body(Body::from(body.to_string())).unwrap();
        self.ask(request).await
    }

    /// Registers an image by a form.
    pub(crate) async fn upload(
        &self,
        content: &[u8],
        texts: &[(&str, &str)],
    ) -> (StatusCode, Value) {
        let mut body = Vec::new();
        let usual = [("tenant_id", TENANT), ("name", "program")];
        let usual = usual
            .iter()
            .filter(|(part, _)| texts.iter().all(|(given, _)| given != part));
        for (part, text) in usual.chain(texts) {
            let head = format!("--XX\r\nContent-Disposition: form-data; name=\"{part}\"\r\n\r\n");
            body.extend_from_slice(format!("{head}{text}\r\n").as_bytes());
        }
        body.extend_from_slice(b"--XX\r\nContent-Disposition: form-data; name=\"binary\"\r\n\r\n");
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n--XX--\r\n");
        let request = Request::post("/api/v1/images/upload")
            .header("content-type", "multipart/form-data; boundary=XX");
        self.ask(request.body(Body::from(body)).unwrap()).await
    }

    /// Registers what must be accepted, and answers with what is shown of it.
    pub(crate) async fn image(&self, content: &[u8], texts: &[(&str, &str)]) -> Value {
        let (status, body) = self.upload(content, texts).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        let id = body["image_id"].as_str().unwrap().to_owned();
        let found = self.get(&format!("/api/v1/images/{id}")).await;
        found["image"].clone()
    }

    /// Registers what must be refused with this status and code, and answers with the reason.
    pub(crate) async fn refuses(
        &self,
        content: &[u8],
        texts: &[(&str, &str)],
        status: u16,
        code: &str,
    ) -> String {
        let answer = self.upload(content, texts).await;
        refused(answer, status, code)
    }

    pub(crate) async fn start(&self, image: &Value, more: &Value) -> (StatusCode, Value) {
        let mut body = json!({ "image_id": image["image_id"], "tenant_id": TENANT });
        let fields = body.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        self.post("/api/v1/instances", &body).await
    }

    /// What is due.
    pub(crate) async fn claim(&self) -> Vec<ClaimedRun> {
        let node = NodeId(Uuid::from_u128(1));
        let lease = NodeLease::new(node, "node", 600_000);
        self.store.renew_node(lease).await.unwrap();
        let claim = Claim {
            node,
            kinds: RunnerKind::ALL.to_vec(),
            tokens: (0..9).map(|_| RunToken::generate().hash()).collect(),
            without_tenants: Vec::new(),
            running_allowed: None,
        };
        self.store.claim_due(claim).await.unwrap()
    }
}

pub(crate) fn refused(answer: (StatusCode, Value), status: u16, code: &str) -> String {
    let (found, body) = answer;
    assert_eq!(
        (found.as_u16(), body["code"].as_str()),
        (status, Some(code)),
        "{body}"
    );
    assert_eq!(body["success"], false, "{body}");
    let text = body["error"].as_str().unwrap().to_owned();
    assert!(!text.contains("not found"), "{text}");
    text
}

/// A tar archive that is taken for a container image, holding this word.
pub(crate) fn container_image(word: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in [("oci-layout", "{}"), ("index.json", word)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive
            .append_data(&mut header, name, content.as_bytes())
            .unwrap();
    }
    archive.into_inner().unwrap()
}
