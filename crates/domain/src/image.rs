//! Registered programs.

use crate::status::{TrimComma as _, UnknownWord, words};
use crate::{ImageDigest, ImageId, ImageName, Labels, RunSettings, TenantId, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

words! {
    /// What runs an image.
    RunnerKind, "runner type" {
        /// A container of an OCI runtime.
        Oci = "oci",
        /// A process of the host.
        Native = "native",
        /// WebAssembly inside the server.
        Wasm = "wasm",
    }
}

/// Where a registration stands among all: the later its content arrived, the higher. The store gives these out, each once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistrationNumber(pub u64);

/// An image as it is to be registered.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// The id of this registration.
    pub image_id: ImageId,
    /// Its place among the registrations of its name: the name means the one whose content arrived last, whichever was made ready first.
    pub number: RegistrationNumber,
    /// Its owner.
    pub tenant_id: TenantId,
    /// The name it is registered under. An earlier image of that name leaves the list and keeps its id and content.
    pub name: ImageName,
    /// What the person who registered it wrote about it.
    pub description: Option<String>,
    /// What runs it.
    pub kind: RunnerKind,
    /// Its content.
    pub digest: ImageDigest,
    /// The container image that its content is laid on, if it is laid on one: the content of an image of the same tenant.
    pub base: Option<ImageDigest>,
    /// The size of its content in bytes.
    pub size: u64,
    /// Whatever JSON text the person attached.
    pub metadata: Option<String>,
    /// Labels to find it by.
    pub labels: Labels,
    /// What it asks of the box in which its program runs, unless a start says otherwise.
    pub settings: RunSettings,
    /// What its content says of itself, if it is a container image: JSON text.
    pub container: Option<String>,
    /// How many bytes the images of its tenant may have together with it, each content counted once; any number if the operator does not
    /// say. Not kept.
    pub tenant_bytes_allowed: Option<u64>,
}

/// What a runner makes a program of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageContent {
    /// The content of the image.
    pub digest: ImageDigest,
    /// The container image that it is laid on, if it is laid on one.
    pub base: Option<ImageDigest>,
}

impl fmt::Display for ImageContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.base {
            None => self.digest.fmt(f),
            Some(base) => write!(f, "{} on {base}", self.digest),
        }
    }
}

impl ImageRecord {
    /// What a runner makes its program of.
    #[must_use]
    pub fn content(&self) -> ImageContent {
        ImageContent {
            digest: self.digest,
            base: self.base,
        }
    }
}

/// An image as it is registered.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRecord {
    /// The id of this registration.
    pub image_id: ImageId,
    /// Its owner.
    pub tenant_id: TenantId,
    /// The name it is registered under.
    pub name: ImageName,
    /// What the person who registered it wrote about it.
    pub description: Option<String>,
    /// What runs it.
    pub kind: RunnerKind,
    /// Its content.
    pub digest: ImageDigest,
    /// The container image that its content is laid on, if it is laid on one: the content of an image of the same tenant.
    pub base: Option<ImageDigest>,
    /// The size of its content in bytes.
    pub size: u64,
    /// Whatever JSON text the person attached.
    pub metadata: Option<String>,
    /// Labels to find it by.
    pub labels: Labels,
    /// What it asks of the box in which its program runs, unless a start says otherwise.
    pub settings: RunSettings,
    /// What its content says of itself, if it is a container image: JSON text.
    pub container: Option<String>,
    /// When it was registered.
    pub created_at: Timestamp,
    /// Whether its name still means this image: false once the name was registered again.
    pub current: bool,
}
