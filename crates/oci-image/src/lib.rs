//! Container images: archives read, layers unpacked safely and kept once each.
//!
//! Everything here blocks, and works on content that nobody vouches for. Call it from a thread that may wait.

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
mod platform;
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
pub use platform::Platform;
pub use store::{Layer, LayerStore, PROGRAM_PATH, StoreOptions, Swept, UnpackedImage};
pub use user::{ResolvedUser, UserProblem, Whom};
pub use watch::{Progress, Watch};
