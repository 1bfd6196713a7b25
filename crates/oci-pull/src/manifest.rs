//! Manifests: found, verified and chosen.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::answer::document;
use crate::blob::Blob;
use crate::error::Shown;
use crate::options::{DOCUMENT_BYTES, MANIFESTS, check_amount};
use crate::registry::{Registry, Wanted};
use crate::{Digest, Platform, PullError};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// What we understand, for the registry.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Most platforms that an error lists. The images with the most have some ten.
const SHOWN_PLATFORMS: usize = 32;
/// With this, buildkit marks what says something about another image.
const DOCKER_REFERENCE: &str = "vnd.docker.reference.type";
/// What a registry says that a manifest's digest is.
const DIGEST_HEADER: &str = "docker-content-digest";

/// One image: its manifest and configuration, verified.
pub(crate) struct Found {
    /// The digest of what the reference stood for: of the index if there is one, else of the manifest.
    pub(crate) digest: Digest,
    pub(crate) manifest: Document,
    pub(crate) config: Document,
    pub(crate) platform: Platform,
    pub(crate) layers: Vec<Blob>,
}

/// Bytes whose digest is known.
pub(crate) struct Document {
    pub(crate) digest: Digest,
    pub(crate) bytes: Vec<u8>,
}

/// As much of a document as says what it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
}

enum Kind {
    Index,
    Manifest,
}

/// Finds the image for the platform, by its reference.
pub(crate) async fn find(registry: &mut Registry<'_>) -> Result<Found, PullError> {
    let named = match registry.reference.digest() {
        Some(digest) => digest.to_string(),
        None => registry.reference.tag().unwrap_or("latest").to_owned(),
    };
    let top = get(registry, &named, registry.reference.digest(), true).await?;
    let digest = top.digest;
    let manifest = match kind("the manifest", &top.bytes)? {
        Kind::Manifest => top,
        Kind::Index => {
            let chosen = choose(registry, parse("the index", &top.bytes)?)?;
            let digest = blob("the index", &chosen)?.digest;
            let inner = get(registry, &digest.to_string(), Some(digest), false).await?;
            check_size("the manifest", inner.bytes.len() as u64, chosen.size())?;
            inner
        }
    };
    read(registry, digest, manifest).await
}

/// Reads manifest and configuration of one image.
async fn read(
    registry: &mut Registry<'_>,
    digest: Digest,
    manifest: Document,
) -> Result<Found, PullError> {
    if matches!(kind("the manifest", &manifest.bytes)?, Kind::Index) {
        return Err(malformed("the index", "names another index"));
    }
    let parsed: ImageManifest = parse("the manifest", &manifest.bytes)?;
    check_config_type(parsed.config().media_type())?;
    let layers = parsed
        .layers()
        .iter()
        .map(|layer| blob("a layer of the manifest", layer))
        .collect::<Result<Vec<_>, _>>()?;
    let described = blob("the manifest's configuration", parsed.config())?;
    check_limits(registry, &manifest, &described, &layers)?;
    let config = configuration(registry, &described).await?;
    let platform = platform_of_config(&config)?;
    if registry.options.platform.rank(&platform).is_none() {
        return Err(missing(
            registry,
            vec![Shown(&platform.to_string()).to_string()],
        ));
    }
    Ok(Found {
        digest,
        manifest,
        config,
        platform,
        layers,
    })
}

impl Found {
    /// How the index of the archive names the manifest.
    pub(crate) fn descriptor(&self, tag: Option<&str>) -> Result<Value, PullError> {
        let shape: Shape = parse("the manifest", &self.manifest.bytes)?;
        let media_type = shape.media_type.as_deref().unwrap_or(OCI_MANIFEST);
        let mut descriptor = json!({
            "mediaType": media_type, "digest": self.manifest.digest.to_string(), "size": self.manifest.bytes.len(),
            "platform": {"architecture": self.platform.architecture, "os": self.platform.os},
        });
        if let Some(variant) = &self.platform.variant {
            descriptor["platform"]["variant"] = json!(variant);
        }
        if let Some(tag) = tag {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        Ok(descriptor)
    }
}

/// Gets a manifest or an index.
async fn get(
    registry: &mut Registry<'_>,
    named: &str,
    digest: Option<Digest>,
    is_image: bool,
) -> Result<Document, PullError> {
    let path = format!("manifests/{named}");
    let what = format!("the manifest {named}");
    let wanted = Wanted {
        path: &path,
        accept: ACCEPT,
        from: 0,
        what: &what,
        is_image,
    };
    let (headers, bytes) = whole(registry, &wanted, DOCUMENT_BYTES).await?;
    let found = Digest::of(&bytes);
    let announced = headers.get(DIGEST_HEADER);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse().ok());
    if let Some(wanted) = digest.or(announced) {
        wanted.check(&what, found)?;
    }
    Ok(Document {
        digest: found,
        bytes,
    })
}

async fn configuration(
    registry: &mut Registry<'_>,
    described: &Blob,
) -> Result<Document, PullError> {
    let what = format!("the configuration {}", described.digest);
    let path = format!("blobs/{}", described.digest);
    let wanted = Wanted {
        path: &path,
        accept: "*/*",
        from: 0,
        what: &what,
        is_image: false,
    };
    let (_, bytes) = whole(registry, &wanted, DOCUMENT_BYTES).await?;
    check_size(&what, bytes.len() as u64, described.size)?;
    described.digest.check(&what, Digest::of(&bytes))?;
    Ok(Document {
        digest: described.digest,
        bytes,
    })
}

/// Gets a document, with repetitions.
async fn whole(
    registry: &mut Registry<'_>,
    wanted: &Wanted<'_>,
    most: u64,
) -> Result<(HeaderMap, Vec<u8>), PullError> {
    let mut attempt = 1;
    loop {
        let once = async {
            let response = registry.get(wanted).await?;
            let headers = response.headers().clone();
            let bytes = document(response, wanted.what, most, registry.options).await?;
            Ok((headers, bytes))
        };
        match once.await {
            Ok(found) => return Ok(found),
            Err(error) => registry.pause(error, attempt).await?,
        }
        attempt += 1;
    }
}

/// Says what a document is. One that could be read as both is refused: others would see another image than we do
/// (CVE-2021-41190).
fn kind(what: &str, bytes: &[u8]) -> Result<Kind, PullError> {
    let shape: Shape = parse(what, bytes)?;
    let is_index = shape.manifests.is_some();
    let is_manifest = shape.config.is_some() || shape.layers.is_some();
    match (is_index, is_manifest, shape.media_type.as_deref()) {
        (true, false, None | Some(OCI_INDEX | DOCKER_INDEX)) => Ok(Kind::Index),
        (false, true, None | Some(OCI_MANIFEST | DOCKER_MANIFEST)) => Ok(Kind::Manifest),
        (_, _, Some(other)) => Err(malformed(
            what,
            &format!(
                "has the type {:?} and not the shape of it, or is of a kind that is not understood",
                Shown(other).to_string()
            ),
        )),
        _ => Err(malformed(
            what,
            "is neither an index nor a manifest; images of Docker before 1.10 (schema 1) are not understood",
        )),
    }
}

/// Of all images of an index the best for the platform.
fn choose(registry: &Registry<'_>, index: ImageIndex) -> Result<Descriptor, PullError> {
    let entries = index.manifests();
    check_amount(
        "manifests of the index",
        entries.len() as u64,
        MANIFESTS as u64,
    )?;
    let wanted = &registry.options.platform;
    let mut best = None;
    let mut available = Vec::new();
    for entry in entries.iter().filter(|entry| is_image(entry)) {
        let Some(declared) = entry.platform() else {
            continue;
        };
        let declared = Platform {
            os: declared.os().to_string(),
            architecture: declared.architecture().to_string(),
            variant: declared.variant().clone(),
        };
        match wanted.rank(&declared) {
            Some(rank) if best.as_ref().is_none_or(|(other, _)| rank < *other) => {
                best = Some((rank, entry));
            }
            Some(_) => {}
            None => available.push(Shown(&declared.to_string()).to_string()),
        }
    }
    match best {
        Some((_, entry)) => Ok(entry.clone()),
        None => Err(missing(registry, available)),
    }
}

/// Whether an entry of an index is an image that somebody could run.
fn is_image(entry: &Descriptor) -> bool {
    let annotations = entry.annotations().as_ref();
    let is_about_another =
        annotations.is_some_and(|annotations| annotations.contains_key(DOCKER_REFERENCE));
    let media_type = entry.media_type().to_string();
    matches!(media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST) && !is_about_another
}

fn missing(registry: &Registry<'_>, mut available: Vec<String>) -> PullError {
    available.sort_unstable();
    available.dedup();
    available.truncate(SHOWN_PLATFORMS);
    if available.is_empty() {
        available.push("nothing that is named".to_owned());
    }
    PullError::PlatformMissing {
        reference: registry.reference.to_string(),
        wanted: registry.options.platform.clone(),
        available,
    }
}

fn check_config_type(found: &MediaType) -> Result<(), PullError> {
    let text = found.to_string();
    if *found == MediaType::ImageConfig || text == DOCKER_CONFIG {
        return Ok(());
    }
    let shown = Shown(&text).to_string();
    Err(malformed(
        "what the reference names",
        &format!("is no container image, but an artifact of the type {shown:?}"),
    ))
}

fn check_limits(
    registry: &Registry<'_>,
    manifest: &Document,
    config: &Blob,
    layers: &[Blob],
) -> Result<(), PullError> {
    let limits = &registry.options.limits;
    check_amount(
        "layers of the image",
        layers.len() as u64,
        limits.layers as u64,
    )?;
    check_amount("bytes of the configuration", config.size, DOCUMENT_BYTES)?;
    let mut total = config.size.saturating_add(manifest.bytes.len() as u64);
    for layer in layers {
        check_amount("bytes of a layer", layer.size, limits.layer_bytes)?;
        total = total.saturating_add(layer.size);
    }
    check_amount("bytes of the image", total, limits.image_bytes)
}

fn platform_of_config(config: &Document) -> Result<Platform, PullError> {
    let parsed: ImageConfiguration = parse("the configuration", &config.bytes)?;
    Ok(Platform {
        os: parsed.os().to_string(),
        architecture: parsed.architecture().to_string(),
        variant: parsed
            .variant()
            .clone()
            .filter(|variant| !variant.is_empty()),
    })
}

fn blob(what: &str, descriptor: &Descriptor) -> Result<Blob, PullError> {
    let text = descriptor.digest().to_string();
    let digest = text
        .parse()
        .map_err(|problem: String| PullError::Malformed {
            what: what.to_owned(),
            problem: format!("cannot be verified: {problem}"),
        })?;
    Ok(Blob {
        digest,
        size: descriptor.size(),
    })
}

fn check_size(what: &str, found: u64, wanted: u64) -> Result<(), PullError> {
    if found == wanted {
        return Ok(());
    }
    Err(PullError::SizeMismatch {
        what: what.to_owned(),
        wanted,
        found,
    })
}

fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, PullError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let problem = error.to_string();
        malformed(what, &format!("cannot be understood: {}", Shown(&problem)))
    })
}

fn malformed(what: &str, problem: &str) -> PullError {
    PullError::Malformed {
        what: what.to_owned(),
        problem: problem.to_owned(),
    }
}
