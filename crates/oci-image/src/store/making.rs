//! A layer in the making: whole and durable, or gone.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::claims::Claims;
use super::{Layer, LayerStore, Record, make_private, remove};
use crate::tree::open_root;
use crate::unpack::Contents;
use crate::{DiffId, ImageError, Watch};

/// A temporary directory that goes with this, unless it was put in its place.
struct Making {
    path: PathBuf,
    placed: bool,
}

impl Drop for Making {
    fn drop(&mut self) {
        if self.placed {
            return;
        }
        if let Err(error) = remove(&self.path) {
            // It goes when the store is opened the next time.
            tracing::warn!(error = %error, "could not remove an unfinished layer");
        }
    }
}

pub(super) fn temporary_name() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

impl LayerStore {
    /// The layer of a digest: the one that is here, or one that is filled now. Of several who ask for the same at once, one fills
    /// it and the others wait; if that one fails, the next tries.
    pub(super) fn layer_or_make(
        &self,
        diff_id: DiffId,
        watch: Watch<'_>,
        fill: impl FnOnce(OwnedFd) -> Result<Contents, ImageError>,
    ) -> Result<Layer, ImageError> {
        let key = self.key(diff_id);
        let making = Claims::make(&self.claims, &key, watch)?;
        if let Some(layer) = self.layer(diff_id)? {
            return Ok(layer);
        }
        self.make(&key, fill)?;
        let layer = self.layer(diff_id)?;
        drop(making);
        layer.ok_or_else(|| ImageError::Io {
            action: "find the layer that was just put in",
            path: self.layers.join(&key),
            source: std::io::ErrorKind::NotFound.into(),
        })
    }

    fn make(
        &self,
        key: &str,
        fill: impl FnOnce(OwnedFd) -> Result<Contents, ImageError>,
    ) -> Result<(), ImageError> {
        let mut making = Making {
            path: self.temporary.join(temporary_name()),
            placed: false,
        };
        let tree = making.path.join("root");
        make_private(&tree).map_err(ImageError::io("make", &tree))?;
        let root = open_root(&tree).map_err(ImageError::io("open", &tree))?;
        let contents = fill(root)?;
        write_record(&making.path.join("layer.json"), &contents.into())?;
        let place = self.layers.join(key);
        self.place(&making.path, &place)?;
        making.placed = true;
        Ok(())
    }

    /// Makes a directory durable, and then puts it in its place.
    fn place(&self, made: &Path, place: &Path) -> Result<(), ImageError> {
        let directory = File::open(made).map_err(ImageError::io("open", made))?;
        // One call for all of it. Syncing each file by itself takes many times as long, and syncs no less.
        rustix::fs::syncfs(&directory)
            .map_err(Into::into)
            .map_err(ImageError::io("sync the file system of", made))?;
        if fs::symlink_metadata(place).is_ok() {
            // Without a record that can be read, or it would not be made again.
            let damaged = self.temporary.join(temporary_name());
            fs::rename(place, &damaged).map_err(ImageError::io("remove", place))?;
            remove(&damaged)?;
        }
        runtara_failpoints::pass(runtara_failpoints::Point::UnpackWhole);
        fs::rename(made, place).map_err(ImageError::io("put in place", place))?;
        File::open(&self.layers)
            .and_then(|layers| layers.sync_all())
            .map_err(ImageError::io("sync", &self.layers))
    }
}

fn write_record(path: &Path, record: &Record) -> Result<(), ImageError> {
    let text = serde_json::to_vec(record).map_err(|source| ImageError::Document {
        what: "the record of a layer",
        source,
    })?;
    File::create_new(path)
        .and_then(|mut file| file.write_all(&text))
        .map_err(ImageError::io("write", path))
}
