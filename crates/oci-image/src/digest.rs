//! Digests, and readers that compute them.

use std::fmt;
use std::io::{self, Read};

use runtara_domain::ImageDigest;
use sha2::{Digest as _, Sha256};

/// The name of a layer's content: the SHA-256 of its tar archive before any compression (OCI image specification, config.md,
/// "Layer DiffID"). Two images that share a layer share this id, however each of them compressed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiffId(pub ImageDigest);

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// Reads `sha256:` and 64 hexadecimal digits. `None` for anything else, and for other algorithms: registries and tools write
/// nothing but SHA-256, and each further algorithm is one more way to be fooled.
pub(crate) fn parse(text: &str) -> Option<ImageDigest> {
    ImageDigest::from_hex(text.strip_prefix("sha256:")?).ok()
}

/// Hashes and counts what is read through it.
pub(crate) struct Hashing<R> {
    inner: R,
    hasher: Option<Sha256>,
    bytes: u64,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Some(Sha256::new()),
            bytes: 0,
        }
    }

    /// Only counts, where the digest is of no interest.
    pub(crate) fn counting(inner: R) -> Self {
        Self {
            inner,
            hasher: None,
            bytes: 0,
        }
    }

    /// How much was read through it, in bytes.
    pub(crate) fn count(&self) -> u64 {
        self.bytes
    }

    /// The digest of what was read until now; `None` if it only counts.
    pub(crate) fn digest(&self) -> Option<ImageDigest> {
        let hasher = self.hasher.clone()?;
        Some(ImageDigest(hasher.finalize().into()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..read]);
        }
        self.bytes += read as u64;
        Ok(read)
    }
}
