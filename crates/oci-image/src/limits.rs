//! Bounds on what an image may hold.

use std::fmt;

/// Most layers of an image. Docker and containerd stop at 127; overlayfs takes up to 500 lower layers, but the options of
/// mount(2), which list them, are one page.
pub const LAYERS: usize = 127;
/// Largest manifest, index or configuration, in bytes: what registries take for a manifest (OCI distribution specification,
/// "Pushing Manifests": at least 4 MiB).
pub const DOCUMENT_BYTES: u64 = 4 * 1024 * 1024;
/// Most bytes of manifests, indexes and configurations that are read to find the one image.
pub(crate) const DOCUMENTS_BYTES: u64 = 64 * 1024 * 1024;
/// Indexes may lie within indexes to this depth.
pub(crate) const INDEX_DEPTH: usize = 4;
/// Most manifests that an archive's indexes may name together.
pub(crate) const MANIFESTS: usize = 1_024;
/// Most entries of the outer archive: a blob, or at most three files and a directory, for each layer and each document.
pub(crate) const ARCHIVE_ENTRIES: usize = 16_384;
/// Longest path of an entry and longest target of a link, in bytes, the NUL of C not counted (`PATH_MAX`, limits.h).
pub(crate) const PATH_BYTES: usize = 4_095;
/// Longest name of one path component, in bytes (`NAME_MAX`, limits.h).
pub(crate) const NAME_BYTES: usize = 255;
/// Largest extended header of one entry, in bytes. GNU tar and Go write some hundreds; attributes need the most, of which
/// Linux takes 64 KiB each.
pub(crate) const EXTENDED_HEADER_BYTES: u64 = 1024 * 1024;
/// Most extended headers before one entry; writers emit at most three.
pub(crate) const EXTENDED_HEADERS: usize = 8;
/// Most bytes of the paths of directories that one layer has without describing them, and a lower one describes.
pub(crate) const RESTORED_BYTES: u64 = 16 * 1024 * 1024;
/// Most such directories times layers: each must be looked up in each.
pub(crate) const RESTORED_LOOKUPS: u64 = 4_000_000;
/// Most pieces of data of a sparse file.
pub(crate) const SPARSE_SEGMENTS: usize = 65_536;

/// What one image may take when it is unpacked. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Most bytes of one layer: of its uncompressed archive, and, counted by themselves, of its files (a sparse file counts in
    /// full).
    pub layer_bytes: u64,
    /// Most bytes of all layers of an image together, counted in the same way, whether they are unpacked now or were before.
    pub image_bytes: u64,
    /// Most entries (files, directories, links, whiteouts) of all layers of an image together. A directory that no entry
    /// describes, and that is made because something lies in it, counts like one.
    pub image_entries: u64,
    /// Largest file; a sparse one counts in full.
    pub file_bytes: u64,
    /// Most directories above one another.
    pub depth: u64,
}

impl Default for Limits {
    /// 16 GiB for a layer and for a file, 32 GiB and 1,000,000 entries for an image, 128 directories deep. The largest public
    /// images (machine learning) have some 20 GiB and 500,000 files.
    fn default() -> Self {
        Self {
            layer_bytes: 16 << 30,
            image_bytes: 32 << 30,
            image_entries: 1_000_000,
            file_bytes: 16 << 30,
            depth: 128,
        }
    }
}

/// Which bound was met. Its `Display` is a phrase such as "bytes of one file".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// [`Limits::layer_bytes`].
    LayerBytes,
    /// [`Limits::image_bytes`].
    ImageBytes,
    /// [`Limits::image_entries`].
    ImageEntries,
    /// [`Limits::file_bytes`].
    FileBytes,
    /// [`Limits::depth`].
    Depth,
    /// Bytes of one path or link target.
    PathBytes,
    /// Bytes of one component of a path.
    NameBytes,
    /// Bytes of the extended header of one entry.
    ExtendedHeaderBytes,
    /// Extended headers of one entry.
    ExtendedHeaders,
    /// Pieces of one sparse file.
    SparseSegments,
    /// Entries of the archive that holds the image's parts.
    ArchiveEntries,
    /// Bytes of the archive that holds the image's parts, uncompressed.
    ArchiveBytes,
    /// Bytes of one manifest, index or configuration.
    DocumentBytes,
    /// Bytes of all manifests, indexes and configurations that were read.
    DocumentsBytes,
    /// Indexes within indexes.
    IndexDepth,
    /// Manifests that the indexes name.
    Manifests,
    /// Layers of the image.
    Layers,
    /// Bytes of the paths of directories that are described in a lower layer than they are used in.
    RestoredBytes,
    /// Directories that layers use without describing them, times layers.
    RestoredLookups,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LayerBytes => "bytes of one layer",
            Self::ImageBytes => "bytes of all layers of an image",
            Self::ImageEntries => "entries of all layers of an image",
            Self::FileBytes => "bytes of one file",
            Self::Depth => "directories above one another",
            Self::PathBytes => "bytes of one path",
            Self::NameBytes => "bytes of one name in a path",
            Self::ExtendedHeaderBytes => "bytes of the extended header of one entry",
            Self::ExtendedHeaders => "extended headers of one entry",
            Self::SparseSegments => "pieces of one sparse file",
            Self::ArchiveEntries => "entries of an image archive",
            Self::ArchiveBytes => "uncompressed bytes of an image archive",
            Self::DocumentBytes => "bytes of one manifest, index or configuration",
            Self::DocumentsBytes => "bytes of all manifests, indexes and configurations",
            Self::IndexDepth => "indexes within one another",
            Self::Manifests => "manifests named by indexes",
            Self::Layers => "layers of an image",
            Self::RestoredLookups => {
                "directories that layers use without describing them, times layers,"
            }
            Self::RestoredBytes => {
                "bytes of paths of directories that layers use without describing them"
            }
        })
    }
}

/// A bound that was met. The number found is where the work ended: there may be more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("at most {allowed} {limit} are allowed, and there are {found} or more")]
pub struct LimitExceeded {
    /// Which bound.
    pub limit: Limit,
    /// What it allows.
    pub allowed: u64,
    /// What was found when the work ended.
    pub found: u64,
}

impl Limit {
    /// Accepts up to `allowed`.
    pub(crate) fn check(self, found: u64, allowed: u64) -> Result<(), LimitExceeded> {
        if found <= allowed {
            return Ok(());
        }
        Err(LimitExceeded {
            limit: self,
            allowed,
            found,
        })
    }
}
