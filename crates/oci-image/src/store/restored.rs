//! Directories as lower layers describe them, above layers that do not: see [`UnpackedImage::layers`].
//!
//! A layer is unpacked once for all images, so that it cannot know what lies below it in one of them. What it has without
//! describing it is marked, and looked up here, once the layers of an image are known.
//!
//! [`UnpackedImage::layers`]: super::UnpackedImage::layers

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use runtara_domain::ImageDigest;
use rustix::fs::{FileType, Stat};
use sha2::{Digest as _, Sha256};

use super::{Layer, LayerStore};
use crate::flatten::metadata;
use crate::limits::{Limit, RESTORED_BYTES, RESTORED_LOOKUPS};
use crate::metadata::Metadata;
use crate::overlay::open_directory;
use crate::tree::{Tree, each, open_root};
use crate::unpack::Contents;
use crate::{DiffId, ImageError, MergedLayers, Watch};

type Path = Vec<Vec<u8>>;

/// What directories shall be like; `None` for one that no layer describes.
type Directories = BTreeMap<Path, Option<Stat>>;

impl LayerStore {
    /// The layer that must lie above the others, if one must.
    pub(super) fn restore(
        &self,
        layers: &[Layer],
        watch: Watch<'_>,
    ) -> Result<Option<Layer>, ImageError> {
        // Below the lowest layer there is nothing that could describe its directories.
        let implying = || {
            layers
                .iter()
                .skip(1)
                .filter(|layer| layer.record.implied > 0)
        };
        let implied: u64 = implying().map(|layer| layer.record.implied).sum();
        if implied == 0 {
            return Ok(None);
        }
        let lookups = implied.saturating_mul(layers.len() as u64);
        Limit::RestoredLookups.check(lookups, RESTORED_LOOKUPS)?;
        let mut search = Search {
            merged: MergedLayers::open(layers)?,
            found: Directories::new(),
            bytes: 0,
            watch,
        };
        for layer in implying() {
            let root =
                open_root(layer.directory()).map_err(ImageError::io("open", layer.directory()))?;
            search.walk(layer, &root, &mut Vec::new())?;
        }
        if search.found.is_empty() {
            return Ok(None);
        }
        let found = search.with_those_above()?;
        let diff_id = name(&found);
        self.layer_or_make(diff_id, watch, |root| self.fill_restored(root, &found))
            .map(Some)
    }

    fn fill_restored(
        &self,
        root: OwnedFd,
        directories: &Directories,
    ) -> Result<Contents, ImageError> {
        let failed = |problem| self.failed(problem);
        let mut tree = Tree::new(root, self.form, self.rules, u64::MAX).map_err(failed)?;
        for (path, stat) in directories {
            let Some((name, parent)) = path.split_last() else {
                continue;
            };
            let place = tree.reach(parent).map_err(failed)?;
            let metadata = self.described(stat.as_ref())?;
            tree.directory(&place, name, metadata).map_err(failed)?;
        }
        tree.finish()
            .map_err(ImageError::io("finish", &self.temporary))?;
        Ok(Contents {
            entries: directories.len() as u64,
            ..Contents::default()
        })
    }

    fn described(&self, stat: Option<&Stat>) -> Result<Metadata, ImageError> {
        match stat {
            Some(stat) => Ok(metadata(stat)),
            None => self.rules.implied().map_err(|problem| self.failed(problem)),
        }
    }
}

struct Search<'w> {
    merged: MergedLayers,
    found: Directories,
    bytes: u64,
    watch: Watch<'w>,
}

impl Search<'_> {
    /// Looks for directories that a layer does not describe, and that in the image are not as a lower layer describes them.
    fn walk(
        &mut self,
        layer: &Layer,
        directory: &OwnedFd,
        path: &mut Path,
    ) -> Result<(), ImageError> {
        self.watch.check()?;
        let reading = ImageError::io("read the layer", layer.directory());
        let mut ended = Ok(());
        each(directory, &mut |name, kind| {
            if kind == FileType::Directory && ended.is_ok() {
                let inner = open_directory(directory, name)?;
                path.push(name.to_vec());
                ended = self.judge(layer, &inner, path);
                if ended.is_ok() {
                    ended = self.walk(layer, &inner, path);
                }
                path.pop();
            }
            Ok(())
        })
        .map_err(reading)?;
        ended
    }

    fn judge(&mut self, layer: &Layer, directory: &OwnedFd, path: &Path) -> Result<(), ImageError> {
        let implied = layer.form().is_implied(directory);
        if !implied
            .map_err(Into::into)
            .map_err(ImageError::io("read the layer", layer.directory()))?
        {
            return Ok(());
        }
        if let Some((stat, true)) = self.merged.description(path)? {
            self.add(path, Some(stat))?;
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, stat: Option<Stat>) -> Result<(), ImageError> {
        self.bytes += path.iter().map(|name| name.len() as u64 + 1).sum::<u64>();
        Limit::RestoredBytes.check(self.bytes, RESTORED_BYTES)?;
        self.found.insert(path.clone(), stat);
        Ok(())
    }

    /// Adds the directories above: they lie above all other layers as well, and must be as they are.
    fn with_those_above(mut self) -> Result<Directories, ImageError> {
        let paths: Vec<Path> = self.found.keys().cloned().collect();
        for path in paths {
            for length in 1..path.len() {
                let above = path[..length].to_vec();
                if !self.found.contains_key(&above) {
                    let described = self.merged.description(&above)?;
                    self.add(&above, described.map(|(stat, _)| stat))?;
                }
            }
        }
        Ok(self.found)
    }
}

/// Names the layer by what it says.
fn name(directories: &Directories) -> DiffId {
    let mut hasher = Sha256::new();
    hasher.update(b"layer of restored directories, version 1\n");
    for (path, stat) in directories {
        hasher.update(path.join(&b'/'));
        let stat = stat.as_ref().map(|stat| {
            (
                stat.st_mode,
                stat.st_uid,
                stat.st_gid,
                stat.st_mtime,
                stat.st_mtime_nsec,
            )
        });
        hasher.update(format!("\0{stat:?}\n"));
    }
    DiffId(ImageDigest(hasher.finalize().into()))
}
