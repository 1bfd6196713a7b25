//! Image archives: what is in them, and which image of it is meant.

mod docker;
mod documents;
mod layer;
mod layout;
mod members;

use std::fs::File;
use std::path::{Path, PathBuf};

use runtara_domain::ImageDigest;

pub(crate) use layer::LayerStream;

use crate::config::ImageConfig;
use crate::limits::{LAYERS, Limit};
use crate::{DiffId, ImageError, Limits, Platform, Watch};
use documents::{Configuration, Documents};
use members::{Members, Range};

/// How an archive is read.
#[derive(Debug, Clone)]
pub struct ArchiveOptions {
    /// The platform to choose where there are several.
    pub platform: Platform,
    /// What the image may hold. Of these only [`Limits::image_bytes`] counts here: a compressed archive may decompress to so much.
    pub limits: Limits,
    /// A directory for the decompressed archive, if it is compressed as a whole: a file without a name, gone with the
    /// [`Archive`]. [`crate::LayerStore::scratch`] is a good one.
    pub scratch: PathBuf,
}

impl ArchiveOptions {
    /// This machine's platform and the default limits.
    #[must_use]
    pub fn new(scratch: impl Into<PathBuf>) -> Self {
        Self {
            platform: Platform::host(),
            limits: Limits::default(),
            scratch: scratch.into(),
        }
    }
}

/// A layer as an archive holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSource {
    /// The digest of its uncompressed content, as the configuration says.
    pub diff_id: DiffId,
    /// The digest of what is in the archive, as the manifest says. `None` in a docker archive, which has none.
    pub digest: Option<ImageDigest>,
    /// Its size in the archive, in bytes.
    pub size: u64,
    pub(crate) range: Range,
}

/// One image of an archive, chosen and checked, its layers yet to be unpacked: see [`crate::LayerStore::unpack`].
///
/// Reads an OCI layout (`skopeo copy … oci-archive:`, `buildah push`, `docker buildx build -o type=oci`) or a docker archive
/// (`docker save`, `skopeo copy … docker-archive:`), as tar, tar.gz or tar.zst. A docker archive of a newer Docker is both; it is
/// read as an OCI layout, which says more.
#[derive(Debug)]
pub struct Archive {
    members: Members,
    config: ImageConfig,
    config_digest: ImageDigest,
    layers: Vec<LayerSource>,
}

impl Archive {
    /// Reads the archive's table of contents, chooses the image for the platform, and verifies its manifest and
    /// configuration against their digests and sizes. Layers are verified when they are unpacked.
    ///
    /// Blocks while it reads; a compressed archive is decompressed whole.
    ///
    /// # Errors
    /// - [`ImageError::NotAnImage`] if it is something else.
    /// - [`ImageError::Archive`] if the tar archive is broken.
    /// - [`ImageError::PartAbsent`], [`ImageError::SizeMismatch`], [`ImageError::DigestMismatch`],
    ///   [`ImageError::UnsupportedDigest`], [`ImageError::Document`] and [`ImageError::Inconsistent`] if manifest, configuration
    ///   and layers do not fit together.
    /// - [`ImageError::PlatformAbsent`] if no image is for the platform, [`ImageError::Ambiguous`] if several are.
    /// - [`ImageError::Config`] if the configuration asks for what cannot be.
    /// - [`ImageError::Limit`] if a bound was met.
    /// - [`ImageError::Io`] and [`ImageError::StorageFull`] if files cannot be read or written, [`ImageError::Stopped`] if the
    ///   watch said so.
    pub fn open(
        file: File,
        options: &ArchiveOptions,
        watch: Watch<'_>,
    ) -> Result<Self, ImageError> {
        let members = Members::read(file, options, watch)?;
        let mut documents = Documents::new(&members);
        let found = if members.has("oci-layout") {
            layout::find(&mut documents, &options.platform)?
        } else if members.has("manifest.json") {
            docker::find(&mut documents, &options.platform)?
        } else {
            return Err(ImageError::NotAnImage {
                what: "a tar archive with neither `oci-layout` nor `manifest.json` in it"
                    .to_owned(),
            });
        };
        let config = ImageConfig::from_document(found.configuration.document)?;
        Ok(Self {
            config,
            config_digest: found.configuration.digest,
            layers: found.layers,
            members,
        })
    }

    /// Opens a file by its path: see [`Archive::open`].
    ///
    /// # Errors
    /// As [`Archive::open`].
    pub fn open_path(
        path: &Path,
        options: &ArchiveOptions,
        watch: Watch<'_>,
    ) -> Result<Self, ImageError> {
        let file = File::open(path).map_err(ImageError::io("open", path))?;
        Self::open(file, options, watch)
    }

    /// How the image wants to be run.
    #[must_use]
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// The digest of the configuration, which is what other tools call the id of the image: it names the content of all
    /// layers, however they are compressed.
    #[must_use]
    pub fn config_digest(&self) -> ImageDigest {
        self.config_digest
    }

    /// The layers, the lowest first.
    #[must_use]
    pub fn layers(&self) -> &[LayerSource] {
        &self.layers
    }

    pub(crate) fn stream<'a>(
        &'a self,
        layer: &'a LayerSource,
    ) -> Result<LayerStream<'a>, ImageError> {
        LayerStream::open(&self.members, layer)
    }
}

/// The image that is meant.
struct Found {
    configuration: Configuration,
    layers: Vec<LayerSource>,
}

/// A layer's place and, where a manifest tells it, its digest.
struct Stored {
    digest: Option<ImageDigest>,
    range: Range,
}

/// Joins the layers of a manifest with the digests that the configuration gives their content.
fn pair(
    configuration: &Configuration,
    stored: Vec<Stored>,
) -> Result<Vec<LayerSource>, ImageError> {
    let diff_ids = configuration.diff_ids()?;
    if diff_ids.len() != stored.len() {
        return Err(ImageError::Inconsistent {
            what: "the configuration",
            problem: format!(
                "names {} layers and the manifest {}",
                diff_ids.len(),
                stored.len()
            ),
        });
    }
    if stored.is_empty() {
        return Err(ImageError::Inconsistent {
            what: "the manifest",
            problem: "names no layers; an image needs at least one file".to_owned(),
        });
    }
    Ok(diff_ids
        .into_iter()
        .zip(stored)
        .map(|(diff_id, stored)| LayerSource {
            diff_id,
            digest: stored.digest,
            size: stored.range.size,
            range: stored.range,
        })
        .collect())
}

fn check_layers(count: usize) -> Result<(), ImageError> {
    Ok(Limit::Layers.check(count as u64, LAYERS as u64)?)
}
