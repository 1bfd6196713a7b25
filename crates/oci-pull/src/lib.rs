//! Pulls container images from registries as OCI layout archives.
//!
//! [`pull`] asks a registry that speaks the OCI distribution protocol for one image, and writes it into a file as a tar archive of
//! an OCI image layout (OCI image specification, image-layout.md): what `skopeo copy docker://… oci-archive:…` would write. The
//! manifest, the configuration and the layers are kept byte for byte, so that their digests stay what the registry calls them.
//!
//! ```no_run
//! use runtara_oci_pull::{Credentials, PullError, PullOptions, Reference, pull};
//!
//! # async fn example(file: std::fs::File) -> Result<(), PullError> {
//! let reference: Reference = "alpine:3.20".parse()?;
//! let credentials = Credentials::find(&reference).await?;
//! let pulled = pull(&reference, &credentials, &PullOptions::default(), file, |_| {}).await?;
//! println!("{} {}", pulled.pinned, pulled.platform);
//! # Ok(()) }
//! ```
//!
//! # What a registry cannot do
//!
//! - **Content** is verified while it comes: manifest, configuration and layers by SHA-256 and size. A tag is whatever the registry
//!   says; the digest that it stood for is told ([`Pulled::pinned`]).
//! - **Amounts** are bounded before they are taken ([`Limits`]); layers go to the file, never into memory.
//! - **Time** is bounded ([`Deadlines`]), and so are repetitions: only what may pass is asked for again.
//! - **Credentials** go to the registry and to the token server that it names, over TLS, and nowhere else: a redirect to another
//!   host goes without them. Plain HTTP is for loopback, unless [`PullOptions::plain_http`] says otherwise.

mod answer;
mod blob;
mod challenge;
mod client;
mod credentials;
mod digest;
mod error;
mod helper;
mod layout;
mod manifest;
mod options;
mod pull;
mod reference;
mod registry;
mod token;

pub use credentials::Credentials;
pub use digest::Digest;
pub use error::{Known, PullError};
pub use options::{Deadlines, Limits, PullOptions};
pub use pull::{PullProgress, Pulled, pull};
pub use reference::Reference;
pub use runtara_domain::Platform;
