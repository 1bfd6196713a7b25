//! Images: look, delete, and what a registration holds.

use runtara_domain::{
    ImageDigest, ImageId, ImageName, ImageRecord, Labels, RunSettings, RunnerKind, TenantId, limits,
};
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
    /// The container image that the content is laid on: the name or the id of a current image of the same tenant.
    pub base: Option<String>,
    /// What it asks of the box in which its program runs, unless a start says otherwise.
    pub settings: RunSettings,
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

impl Control {
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
