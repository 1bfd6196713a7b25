//! Images: register, look, delete.

use runtara_domain::{
    ImageDigest, ImageId, ImageName, ImageRecord, Labels, NewImage, RunSettings, RunnerKind,
    TenantId, limits,
};
use runtara_images::{BlobError, KindRules, Upload, check_kind};
use runtara_store::ImageDeletion;

use crate::{Control, ControlError, ControlResult, Scope};

/// What is registered, beside the content.
#[derive(Debug, Clone)]
pub struct RegisterImage {
    /// Its owner.
    pub tenant_id: TenantId,
    /// The name it is registered under.
    pub name: ImageName,
    /// What the person wrote about it.
    pub description: Option<String>,
    /// The kind that was declared; the content decides if there is none.
    pub kind: Option<RunnerKind>,
    /// JSON text.
    pub metadata: Option<String>,
    /// Labels to find it by.
    pub labels: Labels,
    /// The digest that the sender announced.
    pub expected: Option<ImageDigest>,
}

impl RegisterImage {
    /// Checks what can be checked without the content.
    ///
    /// # Errors
    /// [`ControlError::Invalid`].
    pub fn check(&self) -> ControlResult<()> {
        let description = self.description.as_deref().unwrap_or_default();
        if description.len() > limits::DESCRIPTION_BYTES || description.contains('\0') {
            return Err(ControlError::invalid(
                "INVALID_DESCRIPTION",
                format!(
                    "the description has {} bytes; at most {} without NUL are allowed",
                    description.len(),
                    limits::DESCRIPTION_BYTES
                ),
            ));
        }
        let metadata = self.metadata.as_deref().unwrap_or_default();
        // PostgreSQL cannot keep NUL in text, and JSON has no need of the raw character.
        if metadata.len() > limits::METADATA_BYTES || metadata.contains('\0') {
            return Err(ControlError::invalid(
                "INVALID_METADATA",
                format!(
                    "the metadata has {} bytes; at most {} without NUL are allowed",
                    metadata.len(),
                    limits::METADATA_BYTES
                ),
            ));
        }
        Ok(())
    }
}

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

    /// An image that the scope may see.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`].
    pub async fn image(&self, scope: &Scope, id: &ImageId) -> ControlResult<Option<ImageRecord>> {
        let found = self.store.image(id).await?;
        Ok(found.filter(|image| {
            scope
                .as_ref()
                .is_none_or(|tenant| image.tenant_id == *tenant)
        }))
    }

    /// Deletes an image. Its content stays for as long as ended instances of it could be resumed.
    ///
    /// # Errors
    /// [`ControlError::NotFound`]; [`ControlError::Refused`] (`IMAGE_IN_USE`) while an instance of it has not ended.
    pub async fn delete_image(&self, scope: &Scope, id: &ImageId) -> ControlResult<()> {
        if self.image(scope, id).await?.is_none() {
            return Err(ControlError::image_not_found(id));
        }
        match self.store.delete_image(id).await? {
            ImageDeletion::Deleted => Ok(()),
            ImageDeletion::NotFound => Err(ControlError::image_not_found(id)),
            ImageDeletion::InUse(count) => Err(ControlError::Refused {
                code: "IMAGE_IN_USE",
                message: format!(
                    "Image '{id}' is in use by {count} instances that have not ended; stop them or wait for their end"
                ),
            }),
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
    /// # Errors
    /// [`ControlError::Invalid`]: `EMPTY_BINARY`, `CHECKSUM_MISMATCH`, `IMAGE_NOT_RUNNABLE`.
    pub async fn finish(self, request: RegisterImage) -> ControlResult<ImageRecord> {
        request.check()?;
        // On a task of its own: a client that goes away now must not leave content without its row.
        tokio::spawn(self.finish_checked(request))
            .await
            .map_err(|error| ControlError::internal(&error))?
    }

    async fn finish_checked(mut self, request: RegisterImage) -> ControlResult<ImageRecord> {
        if self.upload.received() == 0 {
            return Err(ControlError::invalid("EMPTY_BINARY", "the binary is empty"));
        }
        let config = &self.control.config;
        let rules = KindRules::new(config.kinds.clone(), config.native_for_oci);
        let detected = self.upload.detect().await.map_err(of_blob)?;
        let chosen = check_kind(&detected, request.kind, &rules)
            .map_err(|error| ControlError::invalid("IMAGE_NOT_RUNNABLE", error))?;
        let stored = self
            .upload
            .finish(request.expected)
            .await
            .map_err(of_blob)?;
        let image = NewImage {
            image_id: ImageId::generate(),
            tenant_id: request.tenant_id,
            name: request.name,
            description: request.description,
            kind: chosen.kind,
            digest: stored.digest,
            base: None,
            size: stored.size,
            metadata: request.metadata,
            labels: request.labels,
            settings: RunSettings::default(),
            container: None,
        };
        let registered = self.control.store.register_image(image).await?;
        tracing::info!(
            tenant = %registered.tenant_id,
            image = %registered.image_id,
            name = %registered.name,
            kind = %registered.kind,
            native_for_oci = chosen.native_for_oci,
            bytes = registered.size,
            "registered an image"
        );
        // Held until the row is durable, so that nobody removes the content in between.
        drop(stored.pin);
        Ok(registered)
    }
}

fn of_blob(error: BlobError) -> ControlError {
    match error {
        BlobError::TooLarge { .. } => ControlError::invalid("IMAGE_TOO_LARGE", error),
        BlobError::ChecksumMismatch { .. } => ControlError::invalid("CHECKSUM_MISMATCH", error),
        BlobError::Base64(_) => ControlError::invalid("INVALID_BINARY", error),
        BlobError::Source { .. } => ControlError::invalid("UPLOAD_ERROR", error),
        BlobError::TooManyUploads { .. }
        | BlobError::StorageFull { .. }
        | BlobError::Stopping
        | BlobError::Locked { .. } => {
            tracing::warn!(%error, "an image could not be stored");
            let message = match &error {
                BlobError::TooManyUploads { .. } => error.to_string(),
                _ => "the server cannot store images now".to_owned(),
            };
            ControlError::Unavailable { message }
        }
        other => ControlError::internal(&other),
    }
}
