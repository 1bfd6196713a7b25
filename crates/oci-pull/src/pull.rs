//! The way from a reference to an archive.

use std::collections::HashSet;
use std::fs::File;

use crate::layout::LayoutWriter;
use crate::manifest::{self, Found};
use crate::registry::Registry;
use crate::{Credentials, Digest, Platform, PullError, PullOptions, Reference, blob};

/// How far the layers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PullProgress {
    /// Bytes of layers that are there. May go back where one had to be begun anew.
    pub received_bytes: u64,
    /// Bytes of all layers.
    pub total_bytes: u64,
}

/// What was pulled.
#[derive(Debug)]
#[non_exhaustive]
pub struct Pulled {
    /// The reference with the digest that it stood for: pulling this gives the same again, for any platform.
    pub pinned: Reference,
    /// That digest: of the index if the image is there for several platforms, else of its manifest.
    pub digest: Digest,
    /// The digest of the manifest of the one image that was pulled.
    pub manifest_digest: Digest,
    /// What that image was built for.
    pub platform: Platform,
    /// The archive, to be read from its beginning.
    pub archive: File,
    /// Size of the archive.
    pub bytes: u64,
}

/// Pulls an image into `file`, which is empty, and best has no name: what is in it after an error is of no use.
///
/// `progress` is called while layers come and must not block. The future may be dropped at any time.
///
/// # Errors
/// - [`PullError::NotFound`] and [`PullError::PlatformMissing`] if the registry does not have it.
/// - [`PullError::Denied`] if it wants other credentials.
/// - [`PullError::Unreachable`], [`PullError::Tls`], [`PullError::PlainHttp`], [`PullError::Stalled`], [`PullError::TooSlow`],
///   [`PullError::Busy`] and [`PullError::Answer`] if it cannot be asked, or does not answer as it should.
/// - [`PullError::Malformed`], [`PullError::DigestMismatch`], [`PullError::SizeMismatch`] and [`PullError::TooLarge`] if what it
///   sends is not right.
/// - [`PullError::File`] if the archive cannot be written.
pub async fn pull(
    reference: &Reference,
    credentials: &Credentials,
    options: &PullOptions,
    file: File,
    progress: impl FnMut(PullProgress) + Send,
) -> Result<Pulled, PullError> {
    let after = options.deadlines.total;
    let mut registry = Registry::new(reference, credentials, options)?;
    let pulling = async {
        let found = manifest::find(&mut registry).await?;
        let (archive, bytes) = write(&mut registry, &found, file, progress).await?;
        Ok(Pulled {
            pinned: reference.pinned(found.digest),
            digest: found.digest,
            manifest_digest: found.manifest.digest,
            platform: found.platform,
            archive,
            bytes,
        })
    };
    match tokio::time::timeout(after, pulling).await {
        Ok(result) => result,
        Err(_) => Err(PullError::TooSlow { after }),
    }
}

/// Writes the archive. Gives its file and its size.
async fn write(
    registry: &mut Registry<'_>,
    found: &Found,
    file: File,
    mut progress: impl FnMut(PullProgress) + Send,
) -> Result<(File, u64), PullError> {
    let descriptor = found.descriptor(registry.reference.tag())?;
    let mut layout = LayoutWriter::new(file, &descriptor).await?;
    for document in [&found.manifest, &found.config] {
        layout.blob(document.digest, &document.bytes).await?;
    }
    // An image may have a layer twice, an archive should not.
    let mut seen = HashSet::from([found.manifest.digest, found.config.digest]);
    let mut layers = found.layers.clone();
    layers.retain(|layer| seen.insert(layer.digest));
    let total_bytes = layers.iter().map(|layer| layer.size).sum();
    let mut before = 0;
    for layer in &layers {
        let mut told = |received| {
            progress(PullProgress {
                received_bytes: before + received,
                total_bytes,
            });
        };
        blob::fetch(registry, layer, &mut layout, &mut told).await?;
        before += layer.size;
    }
    Ok(layout.finish().await?)
}
