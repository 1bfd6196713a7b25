//! Registers images: the content first, then whether it can be run, then its row.

use std::io;
use std::pin::pin;
use std::time::Duration;

use runtara_domain::{
    ImageContent, ImageId, ImageRecord, NewImage, Refusal, RunSettings, RunnerKind, TenantId,
};
use runtara_images::{
    BlobError, Candidate, ChosenKind, Detected, KindRules, Pin, Stored, Upload, check_kind,
};
use runtara_runner::{AskedSettings, ImageFiles, PrepareError, describe};
use runtara_store::StoreError;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::base::Base;
use crate::{Control, ControlError, ControlResult, RegisterImage};

/// How many images are made ready at once for their registration: each unpacks as fast as a disk takes it.
pub(crate) const PREPARED_AT_ONCE: usize = 4;
/// How long a registration waits for its turn.
const PREPARE_WAIT: Duration = Duration::from_secs(60);

/// A registration whose content is on its way.
pub struct ImageRegistration {
    control: Control,
    upload: Upload,
}

impl Control {
    /// Begins a registration. What is written into it lies under a temporary name until it is finished; dropping it leaves nothing.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`] if too many uploads are under way.
    pub async fn begin_image(&self) -> ControlResult<ImageRegistration> {
        let upload = self.blobs.upload().await.map_err(of_blob)?;
        Ok(ImageRegistration {
            control: self.clone(),
            upload,
        })
    }

    /// The largest content of an image, in bytes.
    #[must_use]
    pub fn max_image_bytes(&self) -> u64 {
        self.blobs.max_bytes()
    }

    /// Refuses content of about this size (the least and the most that it may be) which a tenant has no room for, as far as that is known
    /// before its row is made. Content that the tenant may have already is let through.
    ///
    /// # Errors
    /// [`ControlError::OverLimit`] (`TOO_MANY_IMAGE_BYTES`).
    pub async fn check_image_room(
        &self,
        tenant: &TenantId,
        (least, most): (u64, u64),
    ) -> ControlResult<()> {
        let Some(allowed) = self.config.max_image_bytes_per_tenant else {
            return Ok(());
        };
        let images = self.store.image_bytes(tenant, (least, most)).await?;
        if images.has_size || images.bytes.saturating_add(least) <= allowed {
            return Ok(());
        }
        let refusal = Refusal::TooManyImageBytes {
            kept: images.bytes,
            size: least,
            allowed,
        };
        Err(StoreError::Refused(refusal).into())
    }

    fn choose_kind(
        &self,
        request: &RegisterImage,
        detected: &Detected,
    ) -> ControlResult<ChosenKind> {
        let config = &self.config;
        let mut rules = KindRules::new(config.kinds.clone(), config.native_for_oci);
        rules.unavailable = config.unavailable.clone();
        let candidate = Candidate {
            detected,
            declared: request.kind,
            with_base: request.base.is_some(),
        };
        check_kind(&candidate, &rules)
            .map_err(|error| ControlError::invalid("IMAGE_NOT_RUNNABLE", error))
    }

    /// Says whether images of a kind can be given what is asked for.
    pub(crate) fn check_settings(
        &self,
        kind: RunnerKind,
        image: &RunSettings,
        start: &RunSettings,
    ) -> ControlResult<()> {
        let asked = AskedSettings {
            image: image.clone(),
            start: start.clone(),
        };
        self.programs
            .check(kind, &asked)
            .map_err(|reason| ControlError::invalid("INVALID_SETTINGS", reason))
    }

    /// Has an image made ready, so that what can never run is refused now, and not at its first start. Answers with what it says of
    /// itself.
    async fn try_out(
        &self,
        kind: RunnerKind,
        content: ImageContent,
        nobody_waits: &CancellationToken,
    ) -> ControlResult<Option<String>> {
        // What another program needs of the host may be installed until it is started.
        if kind == RunnerKind::Native {
            return Ok(None);
        }
        let turn = tokio::select! {
            turn = timeout(PREPARE_WAIT, self.preparing.acquire()) => turn,
            () = nobody_waits.cancelled() => return Err(abandoned()),
        };
        let _turn = turn.map_err(|_| ControlError::Unavailable {
            message: format!(
                "{PREPARED_AT_ONCE} images are being made ready, and none was so within {} s",
                PREPARE_WAIT.as_secs()
            ),
        })?;
        let local = async |digest| self.blobs.local_path(&digest).await.map_err(of_blob);
        let base = match content.base {
            Some(base) => Some(local(base).await?),
            None => None,
        };
        let files = ImageFiles {
            content,
            path: local(content.digest).await?,
            base,
        };
        let prepared = self.programs.prepare(kind, files).await;
        prepared.map(|image| image.about).map_err(of_preparation)
    }

    /// Waits while somebody who went away too early may ask again. Nobody waits for this. A server that ends meanwhile leaves what is kept to
    /// the sweep of the next one.
    async fn keep_for_another_try(&self) -> ControlResult<()> {
        tokio::select! {
            () = sleep(self.config.kept_for_another_try) => Ok(()),
            () = self.closing.cancelled() => Err(abandoned()),
        }
    }

    /// Removes content that was refused or that nobody wants any more, with all that was made of it, unless an image needs it or another
    /// registration is about to.
    async fn remove_refused(&self, content: ImageContent) {
        let digest = content.digest;
        let removed = async {
            let internal = |error: io::Error| ControlError::internal(&error);
            // As long as it is locked, nobody makes anything of it, nor lays anything on it.
            let Some(removal) = self.blobs.removal(&digest).await.map_err(of_blob)? else {
                return Ok(());
            };
            if self.store.is_content_needed(&digest).await? {
                return Ok(());
            }
            self.programs.forget(digest).await.map_err(internal)?;
            removal.remove().await.map_err(of_blob)?;
            // The lock is given back: registrations wait for nothing of this.
            self.programs.reclaim().await.map_err(internal)
        };
        // What stays is found by the sweep of content that no image has.
        if let Err(error) = removed.await {
            tracing::warn!(%error, %digest, "the content of an image that was not registered could not be removed");
        }
    }
}

impl ImageRegistration {
    /// Appends content.
    ///
    /// # Errors
    /// [`ControlError::Invalid`] (`IMAGE_TOO_LARGE`), [`ControlError::Unavailable`] if the disk is full.
    pub async fn write(&mut self, piece: &[u8]) -> ControlResult<()> {
        self.upload.write(piece).await.map_err(of_blob)
    }

    /// Appends content that is given as the next piece of one base64 text.
    ///
    /// # Errors
    /// [`ControlError::Invalid`] (`INVALID_BINARY`) if it is none, otherwise as [`ImageRegistration::write`].
    pub async fn write_base64(&mut self, text: &[u8]) -> ControlResult<()> {
        self.upload.write_base64(text).await.map_err(of_blob)
    }

    /// Puts the content in its place and registers it. What cannot run on this server is refused, with the reason.
    ///
    /// Of several registrations of a name, the name means the one that was finished last: one whose content took longer to be made
    /// ready does not replace it.
    ///
    /// If the future is dropped before the content has been made ready, nothing is registered, and the content is removed with all that was
    /// made of it; what is ready by then is kept for [`crate::ControlConfig::kept_for_another_try`].
    ///
    /// # Errors
    /// [`ControlError::Invalid`]: `EMPTY_BINARY`, `CHECKSUM_MISMATCH`, `INVALID_BASE`, `INVALID_SETTINGS`, `IMAGE_NOT_RUNNABLE`.
    pub async fn finish(self, request: RegisterImage) -> ControlResult<ImageRecord> {
        request.check()?;
        let nobody_waits = CancellationToken::new();
        let _somebody_waits = nobody_waits.clone().drop_guard();
        // On a task of its own: a client that goes away now must leave neither content without its row, nor what is half made of it.
        tokio::spawn(self.finish_checked(request, nobody_waits))
            .await
            .map_err(|error| ControlError::internal(&error))?
    }

    async fn finish_checked(
        self,
        request: RegisterImage,
        nobody_waits: CancellationToken,
    ) -> ControlResult<ImageRecord> {
        let Self {
            control,
            mut upload,
        } = self;
        if upload.received() == 0 {
            return Err(ControlError::invalid("EMPTY_BINARY", "the binary is empty"));
        }
        // All of it has arrived: from now on nothing that takes its time changes which of two registrations the name means.
        let number = control.store.next_registration().await?;
        let detected = upload.detect().await.map_err(of_blob)?;
        let chosen = control.choose_kind(&request, &detected)?;
        control.check_settings(chosen.kind, &request.settings, &RunSettings::default())?;
        let base = control.base_of(&request).await?;
        let mut stored = upload.finish(request.expected).await.map_err(of_blob)?;
        let (content, base_pin) = pinned(&stored, base);
        let tenant = request.tenant_id.clone();
        // Before it is made ready, which takes its time; and once more with its row.
        let room = control
            .check_image_room(&tenant, (stored.size, stored.size))
            .await;
        if let Err(refused) = room {
            drop((stored, base_pin));
            control.remove_refused(content).await;
            return Err(refused);
        }
        let mut trying = pin!(control.try_out(chosen.kind, content, &nobody_waits));
        let (tried, is_wanted) = tokio::select! {
            biased;
            () = nobody_waits.cancelled() => {
                tracing::info!(
                    tenant = %request.tenant_id,
                    name = %request.name,
                    digest = %content.digest,
                    "an image is not registered: its client went away before it was ready"
                );
                // What is being made cannot be removed before it is.
                (trying.await, false)
            }
            tried = &mut trying => (tried, true),
        };
        let container = match tried {
            Ok(container) if is_wanted => container,
            tried => {
                // Content that is held is not removed.
                drop((stored, base_pin));
                let refused = match tried {
                    Ok(_) => {
                        control.keep_for_another_try().await?;
                        abandoned()
                    }
                    Err(refused) => refused,
                };
                control.remove_refused(content).await;
                return Err(refused);
            }
        };
        // Not before: what is refused is no other node's business.
        control.blobs.share(&mut stored).await.map_err(of_blob)?;
        let image = NewImage {
            image_id: ImageId::generate(),
            number,
            tenant_id: request.tenant_id,
            name: request.name,
            description: request.description,
            kind: chosen.kind,
            digest: content.digest,
            base: content.base,
            size: stored.size,
            metadata: request.metadata,
            labels: request.labels,
            settings: request.settings,
            container,
            tenant_bytes_allowed: control.config.max_image_bytes_per_tenant,
        };
        let registered = match control.store.register_image(image).await {
            Ok(registered) => registered,
            Err(error) => {
                let is_refused = matches!(error, StoreError::Refused(_));
                drop((stored, base_pin));
                if is_refused {
                    control.remove_refused(content).await;
                }
                return Err(error.into());
            }
        };
        tracing::info!(
            tenant = %registered.tenant_id,
            image = %registered.image_id,
            name = %registered.name,
            kind = %registered.kind,
            native_for_oci = chosen.native_for_oci,
            bytes = registered.size,
            replaced_already = !registered.current,
            "registered an image"
        );
        // Held until the row is durable, so that nobody removes the content or its base in between.
        drop((stored, base_pin));
        Ok(registered)
    }
}

fn pinned(stored: &Stored, base: Option<Base>) -> (ImageContent, Option<Pin>) {
    let digest = stored.digest;
    let (base, pin) = base.map(|base| (base.digest, base.pin)).unzip();
    (ImageContent { digest, base }, pin)
}

/// What is answered where nobody listens any more.
fn abandoned() -> ControlError {
    ControlError::Unavailable {
        message: "who registered the image no longer waits for it".to_owned(),
    }
}

/// What stood in the way of making an image ready.
fn of_preparation(error: PrepareError) -> ControlError {
    use std::io::ErrorKind;
    match error {
        PrepareError::Unfit { reason, .. } | PrepareError::NotAllowed { reason, .. } => {
            ControlError::invalid("IMAGE_NOT_RUNNABLE", reason)
        }
        PrepareError::Host { ref source, .. }
            if matches!(
                source.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded
            ) =>
        {
            tracing::warn!(error = describe(&error), "an image could not be made ready");
            ControlError::Unavailable {
                message: "the server has no room to make images ready now".to_owned(),
            }
        }
        other => ControlError::internal(&other),
    }
}

pub(crate) fn of_blob(error: BlobError) -> ControlError {
    match error {
        BlobError::TooLarge { .. } => ControlError::invalid("IMAGE_TOO_LARGE", error),
        BlobError::ChecksumMismatch { .. } => ControlError::invalid("CHECKSUM_MISMATCH", error),
        BlobError::Base64(_) => ControlError::invalid("INVALID_BINARY", error),
        BlobError::Source { .. } => ControlError::invalid("UPLOAD_ERROR", error),
        BlobError::TooManyUploads { .. }
        | BlobError::StorageFull { .. }
        | BlobError::Stopping
        | BlobError::Locked { .. }
        | BlobError::Shared { .. }
        | BlobError::OtherDatabase { .. } => {
            tracing::warn!(%error, "an image could not be stored");
            let message = match &error {
                BlobError::TooManyUploads { .. } => error.to_string(),
                BlobError::Shared { .. } | BlobError::OtherDatabase { .. } => {
                    "the server cannot store images now: the storage that it shares with other nodes cannot be reached; try again later".to_owned()
                }
                _ => "the server cannot store images now".to_owned(),
            };
            ControlError::Unavailable { message }
        }
        other => ControlError::internal(&other),
    }
}
