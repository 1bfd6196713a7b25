//! Registered programs by content: where it is kept, what it is, which runner could run it.
//!
//! This crate knows content, not names. Who owns an image, what it is called and whether an instance still needs it are
//! rows of the store; here is only what a digest leads to.
//!
//! - [`BlobStore`] keeps content under its SHA-256. An [`Upload`] streams into it: hashed while it is written, under a
//!   temporary name, and in its place only when it is whole and durable. Memory does not grow with the size.
//! - A [`SharedStore`] beside it is where several nodes have the same content; what is here are copies then.
//! - [`detect`] says what content is, from the content alone; [`check_kind`] says whether a server can run it as what it was
//!   declared to be.
//!
//! # Content and rows
//!
//! Two orders keep the rows and the content together, whatever crashes in between:
//!
//! - **Registering**: the content first, then the row. [`Stored`] pins its digest against removal, so hold it until the row is
//!   durable, with a [`BlobStore::pin`] of the content that it is laid on. A crash in between leaves content without a row, which
//!   the removal below finds.
//! - **Removing**: [`BlobStore::removal`] locks the digest against new registrations; *then* ask the store whether a row needs
//!   it; then take away what was made of it; then [`Removal::remove`]. Asking before locking would lose the content of an image that was
//!   registered in between. Registrations wait for all of this, so what takes long (deleting many files) comes after it.
//!
//! That is for the servers that share a directory. Nodes that share content through a [`SharedStore`] have no locks, and an order of their own:
//! [`BlobStore::share`] before the row, and [`SharedStore::remove`] after [`Removal::remove`].
//!
//! ```
//! use runtara_domain::RunnerKind;
//! use runtara_images::{BlobOptions, BlobStore, Candidate, Deletion, KindRules, check_kind};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! let store = BlobStore::open(directory.path(), BlobOptions::default()).await?;
//! let rules = KindRules::new([RunnerKind::Native], false);
//!
//! let mut upload = store.upload().await?;
//! upload.write(b"#!/bin/sh\n").await?;
//! upload.write(b"echo hello\n").await?;
//! // Dropping the upload here, because nothing could run it, would leave nothing behind.
//! let candidate = Candidate { detected: &upload.detect().await?, declared: None, with_base: false };
//! let chosen = check_kind(&candidate, &rules)?;
//! assert_eq!(chosen.kind, RunnerKind::Native);
//! let stored = upload.finish(None).await?;
//! // … write the row of the image …
//! let digest = stored.digest;
//! drop(stored);
//!
//! // Much later, the row is gone:
//! if let Some(removal) = store.removal(&digest).await? {
//!     // … ask whether any other row needs the content …
//!     assert_eq!(removal.remove().await?, Deletion::Removed);
//! }
//! # Ok(())
//! # }
//! ```

mod base64_text;
mod blob;
mod cache;
mod detect;
mod error;
mod fetch;
mod kind;
mod listing;
mod place;
mod shared;
mod upload;

pub use base64_text::{Base64Decoder, Base64Error};
pub use blob::{Blob, BlobOptions, BlobStore, Deletion, Removal, Swept};
pub use cache::Cached;
pub use detect::{Compression, Detected, Elf, ElfClass, Machine, detect};
pub use error::BlobError;
pub use kind::{Candidate, ChosenKind, KindError, KindRules, check_kind, kinds_of};
pub use place::Pin;
pub use shared::{ImageStoreUrl, SharedBlob, SharedPin, SharedStore};
pub use upload::{Stored, Upload};
