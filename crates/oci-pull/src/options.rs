//! What to pull, and how much, and how long to wait for it.

use std::time::Duration;

use crate::{Platform, PullError};

/// Largest manifest, index or configuration, in bytes: what registries take for a manifest (OCI distribution specification,
/// "Pushing Manifests": at least 4 MiB).
pub(crate) const DOCUMENT_BYTES: u64 = 4 * 1024 * 1024;
/// Most manifests that an index may name.
pub(crate) const MANIFESTS: usize = 1_024;
/// How often one thing is asked for, the first time included.
pub(crate) const ATTEMPTS: u32 = 4;
/// Longest pause that a registry may ask for with `Retry-After`. Docker Hub counts pulls over hours; nobody waits for that.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Most redirects for one answer. Registries need one, to where they keep blobs; some of those have one of their own.
pub(crate) const REDIRECTS: usize = 5;

/// How an image is pulled.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PullOptions {
    /// Which image of several is meant; [`Platform::least_host`] by default.
    pub platform: Platform,
    /// Speak plain HTTP with the registry. On the loopback interface it is spoken anyway; everywhere else, whoever is on the way
    /// can then read the credentials, and send another image for a tag.
    pub plain_http: bool,
    /// How much is taken.
    pub limits: Limits,
    /// How long is waited.
    pub deadlines: Deadlines,
    /// The pause before something is asked for the second time. It doubles from time to time.
    pub first_pause: Duration,
}

/// How much a registry may send. Sizes are bytes as they are transferred.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Most layers. Docker and containerd stop at 127.
    pub layers: usize,
    /// Largest layer.
    pub layer_bytes: u64,
    /// Largest image: manifest, configuration and layers together.
    pub image_bytes: u64,
}

/// How long a registry may take.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deadlines {
    /// For a connection to be made, TLS included.
    pub connect: Duration,
    /// For the next bytes to come, and for an answer to begin.
    pub idle: Duration,
    /// For a manifest, a configuration or a token as a whole.
    pub document: Duration,
    /// For everything.
    pub total: Duration,
}

impl Default for PullOptions {
    /// This machine's platform, TLS, the default limits and deadlines, and half a second before the second attempt.
    fn default() -> Self {
        Self {
            // Containers run on Linux, and the server may be another machine than this one.
            platform: Platform::least_host(),
            plain_http: false,
            limits: Limits::default(),
            deadlines: Deadlines::default(),
            first_pause: Duration::from_millis(500),
        }
    }
}

impl Default for Limits {
    /// 127 layers of at most 16 GiB, and 32 GiB in all. The largest public images (machine learning) have some 20 GiB.
    fn default() -> Self {
        Self {
            layers: 127,
            layer_bytes: 16 << 30,
            image_bytes: 32 << 30,
        }
    }
}

impl Default for Deadlines {
    /// 10 s to connect, 30 s of silence, a minute for a document, six hours in all: 32 GiB at 12 Mbit/s.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            document: Duration::from_secs(60),
            total: Duration::from_secs(6 * 60 * 60),
        }
    }
}

/// Refuses more than is allowed.
pub(crate) fn check_amount(what: &str, found: u64, allowed: u64) -> Result<(), PullError> {
    if found <= allowed {
        return Ok(());
    }
    Err(PullError::TooLarge {
        what: what.to_owned(),
        found,
        allowed,
    })
}
