//! Turns a claimed instance into a run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use runtara_domain::{ImageContent, ImageDigest, RunExit, RunToken, RunnerKind};
use runtara_failpoints::{Point, pass};
use runtara_images::{BlobError, BlobStore};
use runtara_runner::{
    AskedSettings, ImageFiles, Input, LaunchObstacle, LaunchSpec, PrepareError, PreparedImage,
    Runner, describe,
};
use runtara_store::{ClaimedRun, NodeRecord, Store};
use tokio::sync::OnceCell;
use tracing::{Instrument as _, info, info_span, warn};

use crate::image_cache::{InUse, UsedContent};
use crate::live::Live;
use crate::{Shared, lease, supervise};

/// Why a claimed instance has no run.
struct NotLaunched {
    permanent: bool,
    /// Whether it is because there is no content.
    is_absent: bool,
    error: String,
}

impl NotLaunched {
    fn for_now(error: impl std::fmt::Display) -> Self {
        Self {
            permanent: false,
            is_absent: false,
            error: error.to_string(),
        }
    }
}

/// Launches a claimed instance and minds its run to the end.
pub(crate) async fn run(
    shared: Arc<Shared>,
    live: Arc<Live>,
    claimed: ClaimedRun,
    token: RunToken,
) {
    let span = info_span!(
        "run",
        tenant = %claimed.tenant_id,
        instance = %claimed.instance_id,
        run_number = %claimed.run_number,
    );
    async {
        let kind = claimed.image.kind;
        let _in_use = shared.images.in_use(claimed.image.content());
        match launch(&shared, &live, claimed, token).await {
            Ok(()) => {
                shared.counters.launched(kind);
                supervise::mind(&shared, &live, kind).await;
            }
            Err(refused) => {
                warn!(
                    error = refused.error,
                    permanent = refused.permanent,
                    "not launched"
                );
                shared.counters.not_launched();
                let exit = RunExit::not_launched(refused.permanent, refused.error);
                supervise::record(&shared, &live, exit).await;
            }
        }
    }
    .instrument(span)
    .await;
}

async fn launch(
    shared: &Shared,
    live: &Live,
    claimed: ClaimedRun,
    token: RunToken,
) -> Result<(), NotLaunched> {
    // By the store's clock, as of the claim; what is done to make it ready comes off it.
    let expiry = claimed
        .expires_in_ms
        .and_then(|left| Instant::now().checked_add(Duration::from_millis(left)));
    let kind = claimed.image.kind;
    let runner = shared
        .runners
        .get(&kind)
        .ok_or_else(|| NotLaunched::for_now(format!("this server has no runner for '{kind}'")))?;
    let settings = AskedSettings {
        image: claimed.image.settings.clone(),
        start: claimed.settings,
    };
    // Before anything is made ready: of such instances there may be thousands, each of which asks again from time to time.
    runner.check(&settings).map_err(|reason| {
        NotLaunched::for_now(format!(
            "what it asks for was allowed when it was started, and is not now: {reason}; it waits until the operator allows it again, or until it is \
             stopped"
        ))
    })?;
    let image = prepared(shared, runner.as_ref(), claimed.image.content()).await?;
    // Not before the image is ready: one that is just being unpacked must not keep others from their turn.
    let _turn = shared
        .launches
        .acquire()
        .await
        .map_err(NotLaunched::for_now)?;
    let input = match claimed.input {
        Some(input) => input,
        None => shared
            .store
            .instance_input(&claimed.instance_id)
            .await
            .map_err(NotLaunched::for_now)?
            .flatten()
            .unwrap_or_default(),
    };
    let spec = LaunchSpec {
        key: live.key.clone(),
        tenant_id: claimed.tenant_id,
        image,
        settings,
        args: claimed.args,
        env: claimed.env,
        passed_env: shared.config.passed_env.clone(),
        input: Input::Inline(input),
        checkpoint_id: claimed.checkpoint_id,
        token,
        core_addr: shared.config.core_addr.clone(),
        timeout: Duration::from_millis(claimed.timeout_ms),
        expires_in: expiry.map(|at| at.saturating_duration_since(Instant::now())),
    };
    // In this order: whoever ends all runs because the lease is lost waits for those that begin.
    live.begins();
    if shared.lease.is_lost() {
        return Err(NotLaunched::for_now(lease::LOST));
    }
    pass(Point::BeforeLaunch);
    let launched = match runner.launch(spec.clone()).await {
        // Somebody has cleaned up under us.
        Err(error) if error.obstacle == LaunchObstacle::NotPrepared => {
            let content = claimed.image.content();
            shared.images.forget(kind, content);
            let image = prepared(shared, runner.as_ref(), content).await?;
            runner.launch(LaunchSpec { image, ..spec }).await
        }
        launched => launched,
    };
    let run = launched.map_err(|error| NotLaunched {
        permanent: error.obstacle == LaunchObstacle::Image,
        is_absent: false,
        error: error.reason,
    })?;
    pass(Point::AfterLaunch);
    live.set_run(run);
    if claimed.heartbeat_timeout_ms.is_some() {
        // So that its minder learns how long it may be silent.
        live.look();
    }
    info!(image = %claimed.image.image_id, "launched");
    Ok(())
}

/// The image made ready, with the advice that whoever finds no content needs.
async fn prepared(
    shared: &Shared,
    runner: &dyn Runner,
    content: ImageContent,
) -> Result<PreparedImage, NotLaunched> {
    let mut refused = match shared.images.get(runner, content).await {
        Ok(image) => return Ok(image),
        Err(refused) => refused,
    };
    if refused.is_absent && shared.images.blobs.shared().is_none() {
        // Only asked where something is wrong already; who does not know names the variable once too often.
        let nodes = shared.store.nodes().await;
        let others = |nodes: Vec<NodeRecord>| nodes.iter().any(|it| it.node != shared.config.node);
        if nodes.map_or(true, others) {
            refused.error.push_str(
                " on this node, and RUNTARA_IMAGE_STORE_URL is not set: without it each node has only the images that were registered with it. Set it for \
                 all nodes, and start the one that has the content first",
            );
        }
    }
    Err(refused)
}

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Runners = HashMap<RunnerKind, Arc<dyn Runner>>;
type ReadyImages = HashMap<(RunnerKind, ImageContent), Arc<OnceCell<PreparedImage>>>;

/// Images that runners have made ready, each once.
pub(crate) struct PreparedImages {
    pub(crate) blobs: BlobStore,
    ready: Mutex<ReadyImages>,
    pub(crate) used: Arc<UsedContent>,
}

/// Most images that are remembered as ready. Beyond it all are forgotten: making one ready again costs little.
const REMEMBERED: usize = 4_096;

impl PreparedImages {
    pub(crate) fn new(blobs: BlobStore) -> Self {
        Self {
            blobs,
            ready: Mutex::default(),
            used: Arc::default(),
        }
    }

    /// Says that an image is being made ready or run, until the answer is dropped.
    pub(crate) fn in_use(&self, content: ImageContent) -> InUse {
        self.used.hold(content)
    }

    async fn get(
        &self,
        runner: &dyn Runner,
        content: ImageContent,
    ) -> Result<PreparedImage, NotLaunched> {
        for digest in [Some(content.digest), content.base].into_iter().flatten() {
            self.blobs.used(&digest).await;
        }
        let cell = self.cell(runner.kind(), content);
        let image = cell
            .get_or_try_init(|| self.prepare(runner, content))
            .await?;
        Ok(image.clone())
    }

    fn cell(&self, kind: RunnerKind, content: ImageContent) -> Arc<OnceCell<PreparedImage>> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.len() > REMEMBERED {
            ready.clear();
        }
        Arc::clone(ready.entry((kind, content)).or_default())
    }

    fn forget(&self, kind: RunnerKind, content: ImageContent) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.remove(&(kind, content));
    }

    pub(crate) fn forget_all_with(&self, digest: ImageDigest) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.retain(|(_, content), _| content.digest != digest && content.base != Some(digest));
    }

    /// The content of images.
    pub(crate) fn blobs(&self) -> &BlobStore {
        &self.blobs
    }

    /// Removes the contents of images that nobody needs any more, and what was made of them. Tells which were removed, and how many
    /// bytes they had.
    pub(crate) async fn remove(
        &self,
        digests: &[ImageDigest],
        store: &dyn Store,
        runners: &Runners,
        tell: impl Fn(ImageDigest, u64) + Send,
    ) -> Result<(), Failure> {
        let mut removed = Ok(());
        for digest in digests {
            match self.remove_one(*digest, store, runners).await {
                Ok(None) => {}
                Ok(Some(bytes)) => tell(*digest, bytes),
                Err(error) => {
                    removed = Err(error);
                    break;
                }
            }
        }
        // Only now, when no content is locked: this may take long.
        for runner in runners.values() {
            runner.reclaim().await?;
        }
        removed
    }

    async fn remove_one(
        &self,
        digest: ImageDigest,
        store: &dyn Store,
        runners: &Runners,
    ) -> Result<Option<u64>, Failure> {
        // Locked against registrations while the store is asked: the same content may just be registered anew.
        if let Some(removal) = self.blobs.removal(&digest).await?
            && !store.is_content_needed(&digest).await?
        {
            for runner in runners.values() {
                runner.forget(digest).await?;
            }
            self.forget_all_with(digest);
            let size = self.blobs.size(&digest).await?;
            removal.remove().await?;
            if let Some(shared) = self.blobs.shared() {
                // No lock of this node is held any more: what keeps registrations and this apart is an order.
                let is_needed = async || Ok::<_, Failure>(store.is_content_needed(&digest).await?);
                shared.remove(&digest, is_needed).await?;
            }
            return Ok(size);
        }
        Ok(None)
    }

    async fn prepare(
        &self,
        runner: &dyn Runner,
        content: ImageContent,
    ) -> Result<PreparedImage, NotLaunched> {
        let local = async |digest| {
            let path = self.blobs.local_path(&digest).await;
            path.map_err(|error| NotLaunched {
                is_absent: matches!(error, BlobError::Absent { .. }),
                ..NotLaunched::for_now(describe(&error))
            })
        };
        let base = match content.base {
            Some(base) => Some(local(base).await?),
            None => None,
        };
        let files = ImageFiles {
            content,
            path: local(content.digest).await?,
            base,
        };
        runner.prepare(files).await.map_err(|error| NotLaunched {
            permanent: matches!(error, PrepareError::Unfit { .. }),
            is_absent: false,
            error: error.to_string(),
        })
    }
}
