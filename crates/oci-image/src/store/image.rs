//! The layers of one image.

use std::collections::HashSet;
use std::path::Path;

use super::{Layer, LayerStore};
use crate::error::{EntryFailure, is_full, is_of_the_machine};
use crate::tar::{Ended, Reader, Stream};
use crate::unpack::{Budget, Contents, unpack};
use crate::{
    Archive, DiffId, EntryProblem, ImageError, LayerSource, Limit, Limits, MergedLayers, Progress,
    Watch,
};

/// An image whose layers are all in a store. While it lives, they stay there.
#[derive(Debug, Clone)]
pub struct UnpackedImage {
    layers: Vec<Layer>,
}

impl UnpackedImage {
    pub(super) fn new(layers: Vec<Layer>) -> Self {
        Self { layers }
    }

    /// Its layers, from the lowest to the highest. One may be there twice. The highest may be one of our own making: where a
    /// layer has a directory without describing it, and a lower one describes it, overlayfs would take what the higher one has;
    /// so such directories lie above all others once more, as they should be.
    #[must_use]
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The directories for the mount option `lowerdir` of overlayfs, from the highest to the lowest as it wants them. A layer that
    /// is there twice counts where it is highest (overlayfs refuses the same directory twice, and what the lower one has, the
    /// higher one has too); those below an opaque root are left out.
    #[must_use]
    pub fn lower_directories(&self) -> Vec<&Path> {
        let mut seen = HashSet::new();
        let mut directories = Vec::new();
        for layer in self.layers.iter().rev() {
            if seen.insert(layer.diff_id()) {
                directories.push(layer.directory());
            }
            if layer.hides_all_below() {
                break;
            }
        }
        directories
    }

    /// Its layers seen as one tree.
    ///
    /// # Errors
    /// As [`MergedLayers::open`].
    pub fn merged(&self) -> Result<MergedLayers, ImageError> {
        MergedLayers::open(&self.layers)
    }
}

impl LayerStore {
    /// The image of these layers, from the lowest to the highest, as [`UnpackedImage::layers`] listed them; `None` if one of them is not
    /// here.
    ///
    /// # Errors
    /// [`ImageError::Io`] if that cannot be told.
    pub fn image(&self, layers: &[DiffId]) -> Result<Option<UnpackedImage>, ImageError> {
        let found: Option<Vec<Layer>> = layers
            .iter()
            .map(|layer| self.layer(*layer))
            .collect::<Result<_, _>>()?;
        Ok(found.map(UnpackedImage::new))
    }

    /// Unpacks the layers of an image that are not here yet, from the lowest to the highest, and verifies all of them: whoever names a layer
    /// that others have must have its content, too. Those that were unpacked stay when a later one fails, until a sweep.
    ///
    /// Blocks: 200 MB take about a second, and syncing them as long as the disk needs.
    ///
    /// # Errors
    /// - [`ImageError::Layer`] if an entry of a layer is refused, with its name and the reason.
    /// - [`ImageError::DigestMismatch`] and [`ImageError::SizeMismatch`] if a layer is not the one that the image names.
    /// - [`ImageError::Limit`] if layers that were here already are together beyond a limit.
    /// - [`ImageError::StorageFull`] and [`ImageError::Io`] if the file system refuses, [`ImageError::Stopped`] if the watch said
    ///   so.
    pub fn unpack(
        &self,
        archive: &Archive,
        limits: &Limits,
        watch: Watch<'_>,
    ) -> Result<UnpackedImage, ImageError> {
        let mut budget = Budget::new(limits);
        let mut layers = Vec::new();
        for (index, source) in archive.layers().iter().enumerate() {
            let tell = |bytes| {
                watch.tell(Progress {
                    layer: index,
                    layers: archive.layers().len(),
                    bytes,
                });
            };
            let before = (budget.bytes, budget.entries);
            let mut is_new = false;
            let layer = self.layer_or_make(source.diff_id, watch, |root| {
                is_new = true;
                self.fill(root, archive, source, &mut budget, watch, &tell)
            })?;
            if !is_new {
                self.verify(archive, source, limits, watch)?;
            }
            // Counted the same whether it was unpacked now or before.
            budget.bytes = before.0.saturating_add(layer.bytes());
            budget.entries = before.1.saturating_add(layer.entries());
            Limit::ImageBytes.check(budget.bytes, limits.image_bytes)?;
            Limit::ImageEntries.check(budget.entries, limits.image_entries)?;
            tell(layer.bytes());
            layers.push(layer);
        }
        layers.extend(self.restore(&layers, watch)?);
        Ok(UnpackedImage::new(layers))
    }

    fn fill(
        &self,
        root: std::os::fd::OwnedFd,
        archive: &Archive,
        source: &LayerSource,
        budget: &mut Budget<'_>,
        watch: Watch<'_>,
        tell: &dyn Fn(u64),
    ) -> Result<Contents, ImageError> {
        let stream = archive.stream(source)?;
        let mut reader = Reader::new(Stream(stream), budget.layer(), watch);
        let contents = unpack(&mut reader, root, (self.form, self.rules), budget, tell)
            .map_err(|ended| ended.named(|failure| self.refuse(source.diff_id, failure)))?;
        reader.into_source().0.verify(watch)?;
        Ok(contents)
    }

    /// Reads a layer that is here to its end, and compares it with what the image says of it. It must be an archive, too: what we make
    /// ourselves is named by the digest of a text, which anybody could send.
    fn verify(
        &self,
        archive: &Archive,
        source: &LayerSource,
        limits: &Limits,
        watch: Watch<'_>,
    ) -> Result<(), ImageError> {
        let stream = Stream(archive.stream(source)?);
        let limit = (Limit::LayerBytes, limits.layer_bytes);
        let mut reader = Reader::new(stream, limit, watch);
        let mut read = || {
            while reader.next()?.is_some() {}
            reader.drain()
        };
        read()
            .map_err(|ended: Ended| ended.named(|failure| self.refuse(source.diff_id, failure)))?;
        reader.into_source().0.verify(watch)
    }

    /// Names the layer of a failure. A full disk, or whatever else may pass, is not the layer's fault.
    fn refuse(&self, layer: DiffId, failure: EntryFailure) -> ImageError {
        let EntryFailure { entry, problem } = failure;
        match problem {
            EntryProblem::System { source, .. } if is_full(&source) => ImageError::StorageFull {
                path: self.temporary.clone(),
                source,
            },
            EntryProblem::System { source, .. } | EntryProblem::Unreadable { source }
                if is_of_the_machine(&source) =>
            {
                ImageError::io("unpack a layer into", &self.temporary)(source)
            }
            problem => ImageError::Layer {
                layer,
                entry,
                problem: Box::new(problem),
            },
        }
    }
}
