//! Container images: archives read, layers unpacked safely and kept once each.
//!
//! Everything here blocks: call it from a thread that may wait. And everything here works on content that nobody vouches for.
//!
//! - [`Archive`] reads an image archive: an OCI layout or a docker archive, as tar, tar.gz or tar.zst. It chooses the image
//!   for this machine, verifies its manifest and configuration, and says how the image wants to be run ([`ImageConfig`]).
//! - [`LayerStore`] unpacks layers, each once for all images that have it, ready to be mounted by overlayfs, and removes those
//!   that nobody needs. It also makes an image of a single program.
//! - [`UnpackedImage`] is what comes out: directories to mount, or, where there is no overlayfs, something to
//!   [flatten](UnpackedImage::flatten) into one. [`MergedLayers`] looks into it without mounting.
//!
//! # What keeps a hostile archive in its place
//!
//! - **Paths** are resolved by the kernel with the layer's directory for `/` (openat2(2), RESOLVE_IN_ROOT), so that no `..`, no
//!   absolute path and no link leads out. What is then made is one name in a directory, never followed, and never made in place
//!   of something that is there: that goes first, so that nothing is written through a link.
//! - **Content** is verified: manifest, configuration, compressed and uncompressed layers, by SHA-256 and size. A layer is put in
//!   its place only when all of it was right.
//! - **Amounts** are bounded before they are taken ([`Limits`]): bytes, entries, file sizes, depth, lengths of names, documents.
//!   Memory does not grow with an image, but for some 80 bytes for each directory of a layer and 128 MiB for the window of
//!   Zstandard.
//! - **Kinds** of files that could do harm are left out, setuid bits and capabilities dropped, extended attributes limited to
//!   `user.`.
//! - **Time** is the caller's: see [`Watch`].
//!
//! ```
//! use runtara_oci_image::{Archive, ArchiveOptions, ImageError, LayerStore, Limits, StoreOptions, Watch};
//! # use std::path::Path;
//!
//! # fn run(root: &Path, file: &Path) -> Result<(), ImageError> {
//! let store = LayerStore::open(root, &StoreOptions::default())?;
//! let archive = Archive::open_path(file, &ArchiveOptions::new(store.scratch()), Watch::none())?;
//! let image = store.unpack(&archive, &Limits::default(), Watch::none())?;
//! let user = image.merged()?.user(&archive.config().user)?;
//! println!("mount {:?}, run as {}:{}", image.lower_directories(), user.uid, user.gid);
//! # Ok(())
//! # }
//! ```

mod archive;
mod compression;
mod config;
mod digest;
mod error;
mod flatten;
pub mod limits;
mod merged;
mod metadata;
mod overlay;
mod path;
mod store;
mod tar;
mod tree;
mod unpack;
mod user;
mod watch;

pub use archive::{Archive, ArchiveOptions, LayerSource};
pub use config::{ConfigProblem, ImageConfig};
pub use digest::DiffId;
pub use error::{EntryName, EntryProblem, ImageError};
pub use limits::{Limit, LimitExceeded, Limits};
pub use merged::MergedLayers;
pub use metadata::Ownership;
pub use overlay::{OverlayAttributes, OverlayForm, Whiteouts};
pub use runtara_domain::Platform;
pub use store::{Layer, LayerStore, PROGRAM_PATH, StoreOptions, Swept, UnpackedImage};
pub use user::{ResolvedUser, UserProblem, Whom};
pub use watch::{Progress, Watch};
