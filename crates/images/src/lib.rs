//! Registered programs by content: where it is kept, what it is, which runner could run it.
//!
//! This crate knows content, not names. Who owns an image, what it is called and whether an instance still needs it are
//! rows of the store; here is only what a digest leads to.
//!
//! - [`BlobStore`] keeps content under its SHA-256. An [`Upload`] streams into it: hashed while it is written, under a
//!   temporary name, and in its place only when it is whole and durable. Memory does not grow with the size.
//! - [`detect`] says what content is, from the content alone; [`check_kind`] says whether a server can run it as what it was
//!   declared to be.
//!
//! # Content and rows
//!
//! Two orders keep the rows and the content together, whatever crashes in between:
//!
//! - **Registering**: the content first, then the row. [`Stored`] pins its digest against removal, so hold it until the row is
//!   durable. A crash in between leaves content without a row, which the removal below finds.
//! - **Removing**: [`BlobStore::removal`] locks the digest against new registrations; *then* ask the store whether a row needs
//!   it; then [`Removal::remove`]. Asking before locking would lose the content of an image that was registered in between.

mod base64_text;
mod blob;
mod detect;
mod error;
mod kind;
mod place;
mod upload;

pub use base64_text::{Base64Decoder, Base64Error};
pub use blob::{Blob, BlobOptions, BlobStore, Deletion, Removal};
pub use detect::{Compression, Detected, Elf, ElfClass, Machine, detect};
pub use error::BlobError;
pub use kind::{ChosenKind, KindError, KindRules, check_kind, kinds_of};
pub use place::Pin;
pub use upload::{Stored, Upload};
