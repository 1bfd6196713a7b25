//! Images made ready: their layers unpacked, and what they say about their program.
//!
//! ```text
//! <data>/cache/oci/layers/, temporary/, lock    the layers: see `runtara_oci_image::LayerStore`
//! <data>/cache/oci/images/<content>.json        which layers an image has, and how it is run
//! <data>/cache/oci/flat/<content>/              all of an image in one tree, where there is no overlayfs
//! ```

mod make;
mod record;
mod room;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use runtara_domain::{ImageContent, ImageDigest};
use runtara_oci_image::{
    DiffId, ImageError, LayerStore, Limits, StoreOptions, UnpackedImage, Watch,
};
use runtara_runner::{ImageFiles, PrepareError, remove_tree};
use tracing::info;

use crate::config::OciConfig;
use crate::spec::ImageConfig;
use record::Record;

/// An image that containers can be made of. While it lives, its layers stay.
pub(crate) struct Ready {
    /// The directories of its layers, the lowest first.
    pub(crate) layers: Vec<PathBuf>,
    /// How it is run.
    pub(crate) config: ImageConfig,
    /// What it says of itself: JSON text; `None` if it is a program alone.
    pub(crate) about: Option<String>,
    unpacked: UnpackedImage,
}

/// The images of a server. All calls block.
pub(crate) struct Images {
    store: LayerStore,
    records: PathBuf,
    /// Where whole images are, if containers are made of those.
    flat: Option<PathBuf>,
    limits: Limits,
    ready: Mutex<HashMap<ImageContent, Arc<Ready>>>,
    /// Who makes which.
    turns: Mutex<HashMap<ImageContent, Arc<Mutex<()>>>>,
    stopping: AtomicBool,
    forgotten: Mutex<Forgotten>,
}

/// What there is of an image.
pub(crate) enum Found {
    /// Nothing has to be made: it was made ready in this process or in an earlier one.
    Ready(Arc<Ready>),
    /// Something has to be made.
    Missing(Missing),
}

/// An image of which something has to be made, and what an earlier process has noted of it: its layers are here, but not all of it in one
/// tree.
pub(crate) struct Missing(Option<Box<Ready>>);

/// What forgotten images have left on the disk.
#[derive(Default)]
struct Forgotten {
    /// Whether layers may be there that no image has any more.
    layers: bool,
    /// Whole images, renamed.
    trees: Vec<PathBuf>,
    /// The last number in a name of those.
    number: u64,
}

impl Images {
    /// Opens those that were made ready before. Layers that no image has are removed.
    pub(crate) fn open(
        config: &OciConfig,
        options: &StoreOptions,
        overlay: bool,
    ) -> Result<Self, ImageError> {
        let root = config.images();
        let store = LayerStore::open(&root, options)?;
        let images = Self {
            store,
            records: root.join("images"),
            flat: (!overlay).then(|| root.join("flat")),
            limits: config.image_limits.clone(),
            ready: Mutex::default(),
            turns: Mutex::default(),
            stopping: AtomicBool::new(false),
            forgotten: Mutex::default(),
        };
        let sweep = record::make_directory(&images.records).and_then(|()| {
            // Of settings that may have changed; it costs little to make it again.
            remove_tree(&root.join("flat"))?;
            images.sweep()
        });
        if let Err(error) = sweep {
            info!(%error, "layers of images that are not needed stay");
        }
        Ok(images)
    }

    /// An image that was made ready in this process, if its layers are still there.
    pub(crate) fn ready(&self, content: ImageContent) -> Option<Arc<Ready>> {
        let ready = self.remembered().get(&content).cloned()?;
        ready
            .layers
            .iter()
            .all(|layer| layer.exists())
            .then_some(ready)
    }

    /// Looks what there is of an image.
    pub(crate) fn find(&self, content: ImageContent) -> Found {
        if let Some(ready) = self.ready(content) {
            return Found::Ready(ready);
        }
        match self.recorded(content) {
            Some(ready) if self.flat.is_none() => Found::Ready(self.remember(content, ready)),
            recorded => Found::Missing(Missing(recorded.map(Box::new))),
        }
    }

    /// Whether work on images is to end: nobody waits for it any more, or the disk is nearly full.
    fn is_over(&self) -> bool {
        self.stopping.load(Ordering::Relaxed) || room::is_short(&self.records)
    }

    /// Makes an image ready of which something was missing. Of several who ask for the same at once, one does it, and the others find it
    /// done.
    pub(crate) fn prepare(
        &self,
        image: &ImageFiles,
        missing: Missing,
    ) -> Result<Arc<Ready>, PrepareError> {
        let turn = self.turn_of(image.content);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Only this process makes images, and it remembers those that are done.
        if let Some(ready) = self.ready(image.content) {
            return Ok(ready);
        }
        let made = self.prepare_once(image, missing);
        if made.is_err() {
            self.sweep_after_refusal();
        }
        made
    }

    fn turn_of(&self, content: ImageContent) -> Arc<Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody has any more.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(content).or_default())
    }

    fn prepare_once(
        &self,
        image: &ImageFiles,
        Missing(recorded): Missing,
    ) -> Result<Arc<Ready>, PrepareError> {
        let content = image.content;
        let mut ready = match recorded {
            Some(ready) => *ready,
            None => {
                let ready = self.make(image)?;
                self.record(content, &ready).map_err(|source| {
                    let context = "what it is made of could not be noted";
                    PrepareError::host(content, context, source)
                })?;
                ready
            }
        };
        if let Some(flat) = &self.flat {
            let tree = self.flatten(&flat.join(record::name(content)), &ready);
            ready.layers = vec![tree.map_err(|error| make::refused(content, error))?];
        }
        Ok(self.remember(content, ready))
    }

    fn remember(&self, content: ImageContent, ready: Ready) -> Arc<Ready> {
        let ready = Arc::new(ready);
        self.remembered().insert(content, Arc::clone(&ready));
        ready
    }

    /// Takes away what was made of a content, alone and with others, so that nobody finds it any more. Removes no layer and no tree: what is
    /// left is for [`Self::reclaim`], or for the next server that opens these images.
    pub(crate) fn forget(&self, digest: ImageDigest) -> io::Result<()> {
        let is_of =
            |content: &ImageContent| content.digest == digest || content.base == Some(digest);
        self.remembered().retain(|content, _| !is_of(content));
        for (path, content) in record::list(&self.records)? {
            if !is_of(&content) {
                continue;
            }
            if let Some(flat) = &self.flat {
                self.set_aside(&flat.join(record::name(content)))?;
            }
            gone(fs::remove_file(path))?;
            self.forgotten().layers = true;
        }
        Ok(())
    }

    /// Renames the tree of a whole image, if there is one, so that it is not found and can be removed in its own time.
    fn set_aside(&self, tree: &Path) -> io::Result<()> {
        let mut forgotten = self.forgotten();
        forgotten.number += 1;
        let aside = tree.with_extension(format!("removed-{}", forgotten.number));
        match fs::rename(tree, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed?,
        }
        forgotten.trees.push(aside);
        Ok(())
    }

    /// Removes from the disk what forgotten images have left. Layers that others have stay, and so do those that are at work or in use.
    pub(crate) fn reclaim(&self) -> io::Result<()> {
        loop {
            let Some(tree) = self.forgotten().trees.pop() else {
                break;
            };
            if let Err(error) = remove_tree(&tree) {
                self.forgotten().trees.push(tree);
                return Err(error);
            }
        }
        if !std::mem::take(&mut self.forgotten().layers) {
            return Ok(());
        }
        let swept = self.sweep();
        if swept.is_err() {
            self.forgotten().layers = true;
        }
        swept
    }

    fn forgotten(&self) -> std::sync::MutexGuard<'_, Forgotten> {
        self.forgotten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Has work that is under way end soon.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Puts all of an image into one tree.
    fn flatten(&self, path: &Path, ready: &Ready) -> Result<PathBuf, ImageError> {
        let temporary = path.with_extension("new");
        let io = |action, source| ImageError::Io {
            action,
            path: path.to_owned(),
            source,
        };
        for leftover in [&temporary, path] {
            remove_tree(leftover).map_err(|error| io("remove", error))?;
        }
        let stop = || self.is_over();
        let flattened = ready
            .unpacked
            .flatten(&temporary, Watch::new(&stop, &|_| ()));
        if flattened.is_err() {
            let _stays = remove_tree(&temporary);
        }
        flattened?;
        fs::rename(&temporary, path).map_err(|error| io("rename to", error))?;
        Ok(path.to_owned())
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<ImageContent, Arc<Ready>>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An image that was made ready by an earlier process. What cannot be read, or is not whole, is made again.
    fn recorded(&self, content: ImageContent) -> Option<Ready> {
        let record = Record::read(&record::path(&self.records, content)).ok()??;
        let layers: Vec<_> = record.layers.iter().copied().map(DiffId).collect();
        let unpacked = self.store.image(&layers).ok().flatten()?;
        Some(Ready::new(unpacked, record.config, record.about))
    }

    fn record(&self, content: ImageContent, ready: &Ready) -> io::Result<()> {
        let record = Record {
            version: record::VERSION,
            layers: ready.diff_ids().map(|layer| layer.0).collect(),
            config: ready.config.clone(),
            about: ready.about.clone(),
        };
        record.write(&record::path(&self.records, content), self.store.scratch())
    }

    /// Removes the layers of an image that was refused for another of its layers, or for what it says: who sends such images again and
    /// again must not fill the disk. Layers that others are just unpacking stay.
    fn sweep_after_refusal(&self) {
        if let Err(error) = self.sweep() {
            info!(%error, "layers of an image that was refused stay");
        }
    }

    /// Removes the layers that no image has which was made ready.
    fn sweep(&self) -> io::Result<()> {
        let mut needed = BTreeSet::new();
        for (path, _) in record::list(&self.records)? {
            // What cannot be read now may name layers under living containers: then nothing is removed.
            let record = Record::read(&path).map_err(|error| {
                let text = format!("the record '{}' cannot be read: {error}", path.display());
                io::Error::new(error.kind(), text)
            })?;
            let layers = record.into_iter().flat_map(|record| record.layers);
            needed.extend(layers.map(DiffId));
        }
        let swept = self.store.sweep(&needed);
        swept.map(drop).map_err(io::Error::other)
    }
}

/// Takes what is not there for removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl Ready {
    fn new(unpacked: UnpackedImage, config: ImageConfig, about: Option<String>) -> Self {
        let highest_first = unpacked.lower_directories();
        let layers = highest_first.into_iter().rev().map(ToOwned::to_owned);
        Self {
            layers: layers.collect(),
            config,
            about,
            unpacked,
        }
    }

    fn diff_ids(&self) -> impl Iterator<Item = DiffId> {
        self.unpacked
            .layers()
            .iter()
            .map(runtara_oci_image::Layer::diff_id)
    }
}
