//! Images that instances were started of, so that the next start need not read them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use runtara_domain::{ImageId, ImageRecord};
use runtara_store::{Store, StoreResult};

/// Most images that are remembered. Beyond it all are forgotten: reading one again costs little.
const REMEMBERED: usize = 1024;
/// Images with longer texts than this, in bytes, are read each time.
const TEXT_BYTES: usize = 4 * 1024;

/// Images by their ids. What a start needs of one never changes; whether it is still there is asked by the statement that makes the
/// instance, so an image may be known here that is gone.
#[derive(Default)]
pub(crate) struct KnownImages(Mutex<HashMap<ImageId, Arc<ImageRecord>>>);

impl KnownImages {
    /// An image, also one that is deleted.
    pub(crate) async fn get(
        &self,
        store: &dyn Store,
        id: &ImageId,
    ) -> StoreResult<Option<Arc<ImageRecord>>> {
        if let Some(known) = self.lock().get(id) {
            return Ok(Some(Arc::clone(known)));
        }
        let Some(image) = store.image_even_deleted(id).await? else {
            return Ok(None);
        };
        let image = Arc::new(image);
        let texts = [&image.metadata, &image.container].into_iter().flatten();
        if texts.map(String::len).sum::<usize>() <= TEXT_BYTES {
            let mut images = self.lock();
            if images.len() >= REMEMBERED {
                images.clear();
            }
            images.insert(image.image_id.clone(), Arc::clone(&image));
        }
        Ok(Some(image))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ImageId, Arc<ImageRecord>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
