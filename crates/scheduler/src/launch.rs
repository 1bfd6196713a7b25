//! Turns a claimed instance into a run.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtara_domain::{ImageContent, ImageDigest, RunExit, RunToken, RunnerKind};
use runtara_images::{BlobError, BlobStore, Deletion, SharedStore};
use runtara_runner::{
    AskedSettings, ImageFiles, Input, LaunchObstacle, LaunchSpec, PrepareError, PreparedImage,
    Runner, describe,
};
use runtara_store::{ClaimedRun, NodeRecord, Store};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
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
            Ok(()) => supervise::mind(&shared, &live, kind).await,
            Err(refused) => {
                warn!(
                    error = refused.error,
                    permanent = refused.permanent,
                    "not launched"
                );
                live.has_ended();
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
    };
    // In this order: whoever ends all runs because the lease is lost waits for those that begin.
    live.begins();
    if shared.lease.is_lost() {
        return Err(NotLaunched::for_now(lease::LOST));
    }
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
    live.set_run(run);
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
/// How many contents are listed at once.
const ORPHANS_PAGE: usize = 500;

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

    /// Removes the contents of images that nobody needs any more, and what was made of them.
    pub(crate) async fn remove(
        &self,
        digests: &[ImageDigest],
        store: &dyn Store,
        runners: &Runners,
    ) -> Result<(), Failure> {
        let mut removed = Ok(());
        for digest in digests {
            removed = self.remove_one(*digest, store, runners).await;
            if removed.is_err() {
                break;
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
    ) -> Result<(), Failure> {
        // Locked against registrations while the store is asked: the same content may just be registered anew.
        if let Some(removal) = self.blobs.removal(&digest).await?
            && !store.is_content_needed(&digest).await?
        {
            for runner in runners.values() {
                runner.forget(digest).await?;
            }
            self.forget_all_with(digest);
            removal.remove().await?;
            if let Some(shared) = self.blobs.shared() {
                // No lock of this node is held any more: what keeps registrations and this apart is an order.
                let is_needed = async || Ok::<_, Failure>(store.is_content_needed(&digest).await?);
                shared.remove(&digest, is_needed).await?;
            }
        }
        Ok(())
    }

    /// Removes content that no image has: of uploads that ended between their content and their row. Gives up when `closing` ends.
    pub(crate) async fn remove_orphans(
        &self,
        store: &dyn Store,
        runners: &Runners,
        closing: &CancellationToken,
    ) -> Result<(), Failure> {
        self.blobs.sweep().await?;
        let is_owner = match self.blobs.shared() {
            // Without rows, what another database's servers have put there would be taken for nobody's.
            Some(shared) => {
                shared.check_owner(store.database_id().await?).await?;
                true
            }
            None => false,
        };
        let mut after = None;
        loop {
            let page = self.blobs.list(after, ORPHANS_PAGE).await?;
            let mut orphans = Vec::new();
            for blob in &page {
                if closing.is_cancelled() {
                    return Ok(());
                }
                if !store.is_content_needed(&blob.digest).await? {
                    orphans.push(blob.digest);
                } else if is_owner {
                    self.blobs.share_again(&blob.digest).await?;
                }
            }
            self.remove(&orphans, store, runners).await?;
            match page.last() {
                Some(last) if page.len() == ORPHANS_PAGE => after = Some(last.digest),
                _ => break,
            }
        }
        match self.blobs.shared() {
            Some(shared) if is_owner => remove_shared_orphans(shared, store, closing).await,
            _ => Ok(()),
        }
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

/// Removes content from the shared store that no image has, and what those who died there have left.
async fn remove_shared_orphans(
    shared: &SharedStore,
    store: &dyn Store,
    closing: &CancellationToken,
) -> Result<(), Failure> {
    let is_needed =
        async |digest: ImageDigest| Ok::<_, Failure>(store.is_content_needed(&digest).await?);
    let swept = shared.sweep_removed(is_needed).await?;
    let (mut after, mut removed) = (None, 0_u64);
    loop {
        let page = shared.list(after, ORPHANS_PAGE).await?;
        for (digest, is_old) in &page {
            if closing.is_cancelled() {
                return Ok(());
            }
            if *is_old && !is_needed(*digest).await? {
                let deletion = shared.remove(digest, || is_needed(*digest)).await?;
                removed += u64::from(deletion == Deletion::Removed);
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == ORPHANS_PAGE => after = Some(*last),
            _ => break,
        }
    }
    if swept + removed > 0 {
        info!(
            removed,
            swept, "removed what no image has from the shared image store"
        );
    }
    Ok(())
}
