//! Manifests, indexes and configurations: read, bounded and verified.

use std::io::Read as _;

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, Os};
use runtara_domain::ImageDigest;
use serde::de::DeserializeOwned;

use super::members::{Members, Range};
use crate::limits::{DOCUMENT_BYTES, DOCUMENTS_BYTES, Limit};
use crate::{DiffId, ImageError, Platform, digest};

/// Reads documents out of an archive, a bounded number of bytes in all.
pub(super) struct Documents<'a> {
    pub(super) members: &'a Members,
    read: u64,
}

/// A configuration and its digest.
pub(super) struct Configuration {
    pub(super) document: ImageConfiguration,
    pub(super) digest: ImageDigest,
}

impl<'a> Documents<'a> {
    pub(super) fn new(members: &'a Members) -> Self {
        Self { members, read: 0 }
    }

    /// Reads a document by its name, which nothing vouches for.
    pub(super) fn by_name(
        &mut self,
        what: &'static str,
        name: &str,
    ) -> Result<Vec<u8>, ImageError> {
        let range = self.members.find(name).ok_or(ImageError::PartAbsent {
            what,
            name: name.to_owned(),
        })?;
        self.bytes(what, range)
    }

    /// Reads what a descriptor names, and verifies its size and digest.
    pub(super) fn described<T: DeserializeOwned>(
        &mut self,
        what: &'static str,
        descriptor: &Descriptor,
    ) -> Result<(T, ImageDigest), ImageError> {
        let (wanted, range) = blob(self.members, what, descriptor)?;
        let bytes = self.bytes(what, range)?;
        verify(what, wanted, &bytes)?;
        Ok((parse(what, &bytes)?, wanted))
    }

    fn bytes(&mut self, what: &'static str, range: Range) -> Result<Vec<u8>, ImageError> {
        Limit::DocumentBytes.check(range.size, DOCUMENT_BYTES)?;
        self.read += range.size;
        Limit::DocumentsBytes.check(self.read, DOCUMENTS_BYTES)?;
        let mut bytes = Vec::new();
        self.members
            .reader(range)
            .read_to_end(&mut bytes)
            .map_err(|source| ImageError::Io {
                action: "read from the image archive",
                path: what.into(),
                source,
            })?;
        Ok(bytes)
    }
}

/// The digest of a descriptor, and where its content lies. The size is compared here, the content by whoever reads it.
pub(super) fn blob(
    members: &Members,
    what: &'static str,
    descriptor: &Descriptor,
) -> Result<(ImageDigest, Range), ImageError> {
    let text = descriptor.digest().to_string();
    let digest = digest::parse(&text).ok_or(ImageError::UnsupportedDigest { what, found: text })?;
    let name = format!("blobs/sha256/{digest}");
    let range = members
        .find(&name)
        .ok_or(ImageError::PartAbsent { what, name })?;
    if range.size != descriptor.size() {
        return Err(ImageError::SizeMismatch {
            what,
            digest,
            wanted: descriptor.size(),
            found: range.size,
        });
    }
    Ok((digest, range))
}

pub(super) fn verify(
    what: &'static str,
    wanted: ImageDigest,
    bytes: &[u8],
) -> Result<(), ImageError> {
    let found = ImageDigest::of(bytes);
    if found == wanted {
        return Ok(());
    }
    Err(ImageError::DigestMismatch {
        what,
        wanted,
        found,
    })
}

pub(super) fn parse<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|source| ImageError::Document { what, source })
}

impl Configuration {
    pub(super) fn platform(&self) -> Platform {
        platform(
            self.document.os(),
            self.document.architecture(),
            self.document.variant().as_ref(),
        )
    }

    /// The digests of the layers' content.
    pub(super) fn diff_ids(&self) -> Result<Vec<DiffId>, ImageError> {
        let what = "a layer of the configuration";
        let read = |text: &String| {
            digest::parse(text)
                .map(DiffId)
                .ok_or_else(|| ImageError::UnsupportedDigest {
                    what,
                    found: text.clone(),
                })
        };
        self.document.rootfs().diff_ids().iter().map(read).collect()
    }
}

pub(super) fn platform(os: &Os, architecture: &Arch, variant: Option<&String>) -> Platform {
    Platform {
        os: os.to_string(),
        architecture: architecture.to_string(),
        variant: variant.cloned(),
    }
}
