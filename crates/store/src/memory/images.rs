//! Registered programs.

use std::collections::{BTreeMap, BTreeSet};

use runtara_domain::{
    Cursor, ImageDigest, ImageId, ImageName, ImageRecord, NewImage, Refusal, RegistrationNumber,
    Status, TenantId, Timestamp,
};

use super::Model;
use super::lists::cut;
use super::model::Image;
use crate::{ImageBytes, ImageDeletion, ImageFilter, Page, PageRequest, PageStart};

/// Up to how many instances are counted that keep an image.
const COUNTED_USERS: usize = 1_000;

impl Model {
    /// See [`crate::Store::next_registration`].
    pub fn next_registration(&mut self) -> RegistrationNumber {
        self.registrations += 1;
        RegistrationNumber(self.registrations)
    }

    /// See [`crate::Store::register_image`].
    ///
    /// # Errors
    /// [`Refusal::TooManyImageBytes`].
    pub fn register_image(
        &mut self,
        new: NewImage,
        now: Timestamp,
    ) -> Result<ImageRecord, Refusal> {
        if let Some(known) = self.images.get(&new.image_id) {
            return Ok(known.record.clone());
        }
        let contents = self.contents_of(&new.tenant_id);
        let kept = contents.values().sum();
        if let Some(allowed) = new.tenant_bytes_allowed
            && !contents.contains_key(&new.digest)
            && new.size.saturating_add(kept) > allowed
        {
            let size = new.size;
            return Err(Refusal::TooManyImageBytes {
                kept,
                size,
                allowed,
            });
        }
        let mut current = true;
        for image in self.images.values_mut() {
            let record = &mut image.record;
            if record.tenant_id == new.tenant_id && record.name == new.name && record.current {
                record.current = image.number > new.number;
                current &= !record.current;
            }
        }
        let record = ImageRecord {
            image_id: new.image_id,
            tenant_id: new.tenant_id,
            name: new.name,
            description: new.description,
            kind: new.kind,
            digest: new.digest,
            base: new.base,
            size: new.size,
            metadata: new.metadata,
            labels: new.labels,
            settings: new.settings,
            container: new.container,
            created_at: now,
            current,
        };
        let image = Image {
            record: record.clone(),
            number: new.number,
            deleted: false,
        };
        self.images.insert(record.image_id.clone(), image);
        Ok(record)
    }

    /// The sizes of a tenant's contents.
    fn contents_of(&self, tenant: &TenantId) -> BTreeMap<ImageDigest, u64> {
        let images = self.images.values().map(|image| &image.record);
        let own = images.filter(|record| record.tenant_id == *tenant);
        own.map(|record| (record.digest, record.size)).collect()
    }

    /// See [`crate::Store::image_bytes`].
    #[must_use]
    pub fn image_bytes(&self, tenant: &TenantId, sizes: (u64, u64)) -> ImageBytes {
        let contents = self.contents_of(tenant);
        let is_of_size = |size: &u64| (sizes.0..=sizes.1).contains(size);
        ImageBytes {
            bytes: contents.values().sum(),
            has_size: contents.values().any(is_of_size),
        }
    }

    /// See [`crate::Store::image`].
    #[must_use]
    pub fn image(&self, id: &ImageId) -> Option<ImageRecord> {
        let image = self.images.get(id).filter(|image| !image.deleted);
        image.map(|image| image.record.clone())
    }

    /// See [`crate::Store::image_even_deleted`].
    #[must_use]
    pub fn image_even_deleted(&self, id: &ImageId) -> Option<ImageRecord> {
        self.images.get(id).map(|image| image.record.clone())
    }

    fn current_images(&self) -> impl Iterator<Item = &ImageRecord> {
        let current = |image: &&Image| image.record.current && !image.deleted;
        self.images
            .values()
            .filter(current)
            .map(|image| &image.record)
    }

    /// See [`crate::Store::image_by_name`].
    #[must_use]
    pub fn image_by_name(&self, tenant: &TenantId, name: &ImageName) -> Option<ImageRecord> {
        self.current_images()
            .find(|image| image.tenant_id == *tenant && image.name == *name)
            .cloned()
    }

    /// See [`crate::Store::list_images`].
    #[must_use]
    pub fn list_images(&self, filter: &ImageFilter, page: &PageRequest) -> Page<ImageRecord> {
        let mut found: Vec<_> = self
            .current_images()
            .filter(|image| {
                let of_tenant = filter
                    .tenant_id
                    .as_ref()
                    .is_none_or(|t| *t == image.tenant_id);
                let named = filter
                    .name
                    .as_ref()
                    .is_none_or(|n| n == image.name.as_str());
                of_tenant && named && filter.labels.iter().all(|l| l.matches(&image.labels))
            })
            .cloned()
            .collect();
        let place = |image: &ImageRecord| (image.created_at, image.image_id.clone());
        found.sort_by_key(|image| std::cmp::Reverse(place(image)));
        let is_after = |image: &ImageRecord| match &page.start {
            PageStart::Offset(_) => true,
            PageStart::After(cursor) => {
                let at = (cursor.value.map(Timestamp), cursor.key.as_str());
                (Some(image.created_at), image.image_id.as_str()) < at
            }
        };
        cut(
            found,
            page,
            None,
            is_after,
            |image| Cursor {
                value: Some(image.created_at.0),
                key: image.image_id.as_str().to_owned(),
            },
            |_| 0,
        )
    }

    /// See [`crate::Store::delete_image`].
    pub fn delete_image(&mut self, id: &ImageId) -> ImageDeletion {
        let Some(image) = self.images.get_mut(id).filter(|image| !image.deleted) else {
            return ImageDeletion::NotFound;
        };
        let users = self
            .instances
            .values()
            .filter(|of| of.state.image_id.as_ref() == Some(id) && !of.state.status.is_end())
            .take(COUNTED_USERS)
            .count();
        if users > 0 {
            return ImageDeletion::InUse(u32::try_from(users).unwrap_or(u32::MAX));
        }
        image.deleted = true;
        ImageDeletion::Deleted
    }

    /// See [`crate::Store::unneeded_images`].
    #[must_use]
    pub fn unneeded_images(&self, limit: u32) -> Vec<ImageRecord> {
        let needed: BTreeSet<_> = self
            .instances
            .values()
            .filter_map(|instance| instance.state.image_id.clone())
            .collect();
        self.images
            .iter()
            .filter(|(id, image)| (image.deleted || !image.record.current) && !needed.contains(*id))
            .map(|(_, image)| image.record.clone())
            .take(limit as usize)
            .collect()
    }

    /// See [`crate::Store::unused_images`].
    #[must_use]
    pub fn unused_images(&self, unused_ms: u64, limit: u32, now: Timestamp) -> Vec<ImageRecord> {
        let unused_ms = i64::try_from(unused_ms).unwrap_or(i64::MAX);
        let horizon = Timestamp(now.0.saturating_sub(unused_ms));
        let is_used = |image: &ImageRecord| {
            let mut instances = self.instances.values();
            let mut images = self.images.values();
            instances.any(|of| {
                of.state.image_id.as_ref() == Some(&image.image_id)
                    && (of.state.status != Status::Completed || of.state.created_at > horizon)
            }) || images.any(|other| other.record.base == Some(image.digest))
        };
        let mut unused: Vec<_> = self
            .current_images()
            .filter(|image| image.created_at <= horizon && !is_used(image))
            .cloned()
            .collect();
        unused.sort_by_key(|image| (image.created_at, image.image_id.clone()));
        unused.truncate(limit as usize);
        unused
    }

    /// See [`crate::Store::delete_unused_images`].
    pub fn delete_unused_images(
        &mut self,
        unused_ms: u64,
        limit: u32,
        now: Timestamp,
    ) -> Vec<ImageRecord> {
        let unused = self.unused_images(unused_ms, limit, now);
        for image in &unused {
            if let Some(image) = self.images.get_mut(&image.image_id) {
                image.deleted = true;
            }
        }
        unused
    }

    /// See [`crate::Store::remove_unneeded_images`].
    pub fn remove_unneeded_images(&mut self, limit: u32) -> Vec<ImageDigest> {
        let unneeded = self.unneeded_images(limit);
        let removed: BTreeSet<_> = unneeded
            .iter()
            .filter_map(|image| self.images.remove(&image.image_id))
            .flat_map(|image| [Some(image.record.digest), image.record.base])
            .flatten()
            .collect();
        removed
            .into_iter()
            .filter(|digest| !self.is_content_needed(digest))
            .collect()
    }

    /// See [`crate::Store::is_content_needed`].
    #[must_use]
    pub fn is_content_needed(&self, digest: &ImageDigest) -> bool {
        self.images.values().any(|image| {
            image.record.digest == *digest || image.record.base.as_ref() == Some(digest)
        })
    }
}
