//! The container images that others are laid on.

use runtara_domain::{ImageDigest, ImageId, ImageName, ImageRecord, RunnerKind, TenantId};
use runtara_images::{Detected, Pin};

use crate::registration::of_blob;
use crate::{Control, ControlError, ControlResult, RegisterImage};

/// A container image that another is laid on.
pub(crate) struct Base {
    pub(crate) digest: ImageDigest,
    /// Keeps it from being removed until the row of the other is durable.
    pub(crate) pin: Pin,
}

fn invalid(message: String) -> ControlError {
    ControlError::invalid("INVALID_BASE", message)
}

impl Control {
    /// The base of an image that is to be registered.
    pub(crate) async fn base_of(&self, request: &RegisterImage) -> ControlResult<Option<Base>> {
        let Some(base) = &request.base else {
            return Ok(None);
        };
        let unknown = || {
            invalid(format!(
                "base {base:?} is neither the name nor the id of a current image of tenant '{}'",
                request.tenant_id
            ))
        };
        let found = self.current_image(&request.tenant_id, base).await?;
        let found = found.ok_or_else(unknown)?;
        // What went away since it was looked up, went with its row.
        let pin = self.blobs.pin(&found.digest).await.map_err(of_blob)?;
        let pin = pin.ok_or_else(unknown)?;
        let detected = self.blobs.detect(&found.digest).await.map_err(of_blob)?;
        check_base(base, &found, &detected)?;
        Ok(Some(Base {
            digest: found.digest,
            pin,
        }))
    }

    /// The current image of this name, else the one of this id.
    async fn current_image(
        &self,
        tenant: &TenantId,
        name_or_id: &str,
    ) -> ControlResult<Option<ImageRecord>> {
        if let Ok(name) = ImageName::new(name_or_id)
            && let Some(named) = self.store.image_by_name(tenant, &name).await?
        {
            return Ok(Some(named));
        }
        let Ok(id) = ImageId::new(name_or_id) else {
            return Ok(None);
        };
        let found = self.store.image(&id).await?;
        Ok(found.filter(|image| image.current && image.tenant_id == *tenant))
    }
}

/// Whether something can be laid on an image.
fn check_base(base: &str, image: &ImageRecord, detected: &Detected) -> ControlResult<()> {
    if image.base.is_some() {
        return Err(invalid(format!(
            "base {base:?} is itself laid on a base; name a container image"
        )));
    }
    let is_container_image = matches!(
        detected,
        Detected::OciLayout | Detected::DockerArchive | Detected::Compressed(_)
    );
    if image.kind != RunnerKind::Oci || !is_container_image {
        return Err(invalid(format!(
            "base {base:?} is {detected}; a base is a container image (OCI layout or docker archive)"
        )));
    }
    Ok(())
}
