//! OCI image layouts (OCI image specification, image-layout.md): an index names manifests, or further indexes.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};

use super::documents::{Configuration, Documents, blob, parse, platform};
use super::{Found, Stored, check_layers, pair};
use crate::error::Shown;
use crate::limits::{INDEX_DEPTH, Limit, MANIFESTS};
use crate::{ImageError, Platform};

const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// With this, buildkit marks what says something about another image.
const DOCKER_REFERENCE: &str = "vnd.docker.reference.type";
const NAME: &str = "org.opencontainers.image.ref.name";

/// A manifest that an index names.
struct Leaf {
    descriptor: Descriptor,
    name: Option<String>,
}

/// An image that could be meant.
struct Candidate {
    manifest: ImageManifest,
    configuration: Configuration,
    rank: std::cmp::Reverse<u32>,
    name: String,
}

/// Finds the image for a platform.
pub(super) fn find(documents: &mut Documents<'_>, wanted: &Platform) -> Result<Found, ImageError> {
    let bytes = documents.by_name("the layout's version", "oci-layout")?;
    let layout: oci_spec::image::OciLayout = parse("the layout's version", &bytes)?;
    if !layout.image_layout_version().starts_with("1.") {
        return Err(ImageError::Inconsistent {
            what: "the layout's version",
            problem: format!(
                "is \"{}\"; 1.0.0 is understood",
                Shown(layout.image_layout_version().as_bytes())
            ),
        });
    }
    let bytes = documents.by_name("the index", "index.json")?;
    let index = parse("the index", &bytes)?;
    let mut leaves = Vec::new();
    gather(documents, &index, None, 1, &mut leaves)?;
    let chosen = choose(documents, leaves, wanted)?;
    let stored = stored(documents, &chosen.manifest)?;
    Ok(Found {
        layers: pair(&chosen.configuration, stored)?,
        configuration: chosen.configuration,
    })
}

/// Walks indexes within indexes.
fn gather(
    documents: &mut Documents<'_>,
    index: &ImageIndex,
    name: Option<&str>,
    depth: usize,
    leaves: &mut Vec<Leaf>,
) -> Result<(), ImageError> {
    Limit::IndexDepth.check(depth as u64, INDEX_DEPTH as u64)?;
    for descriptor in index.manifests() {
        let annotations = descriptor.annotations().as_ref();
        let annotation = |key| annotations.and_then(|annotations| annotations.get(key));
        if annotation(DOCKER_REFERENCE).is_some() {
            continue;
        }
        let name = annotation(NAME).map(String::as_str).or(name);
        match descriptor.media_type() {
            MediaType::ImageIndex => {}
            MediaType::Other(other) if other == DOCKER_INDEX => {}
            _ => {
                Limit::Manifests.check(leaves.len() as u64 + 1, MANIFESTS as u64)?;
                leaves.push(Leaf {
                    descriptor: descriptor.clone(),
                    name: name.map(str::to_owned),
                });
                continue;
            }
        }
        let (inner, _) = documents.described("an index", descriptor)?;
        gather(documents, &inner, name, depth + 1, leaves)?;
    }
    Ok(())
}

/// Of all images those for the platform; of those the best.
fn choose(
    documents: &mut Documents<'_>,
    leaves: Vec<Leaf>,
    wanted: &Platform,
) -> Result<Candidate, ImageError> {
    let mut available = Vec::new();
    let mut candidates = Vec::new();
    for leaf in leaves {
        match consider(documents, leaf, wanted)? {
            Ok(candidate) => candidates.push(candidate),
            Err(other) => available.push(other),
        }
    }
    candidates.sort_by_key(|candidate: &Candidate| candidate.rank);
    let Some(best) = candidates.first() else {
        available.sort_unstable();
        available.dedup();
        if available.is_empty() {
            available.push("nothing".to_owned());
        }
        return Err(ImageError::PlatformAbsent {
            wanted: wanted.to_string(),
            available,
        });
    };
    let (rank, digest) = (best.rank, best.configuration.digest);
    candidates.retain(|candidate| candidate.rank == rank);
    // One image under several names is one image.
    if candidates
        .iter()
        .any(|other| other.configuration.digest != digest)
    {
        return Err(ImageError::Ambiguous {
            found: candidates
                .into_iter()
                .map(|candidate| candidate.name)
                .collect(),
        });
    }
    Ok(candidates.swap_remove(0))
}

/// A candidate, or, as the inner error, what it is instead. Manifests whose descriptor names another platform are not read: a
/// tool may have left them out.
fn consider(
    documents: &mut Documents<'_>,
    leaf: Leaf,
    wanted: &Platform,
) -> Result<Result<Candidate, String>, ImageError> {
    let Leaf { descriptor, name } = leaf;
    match descriptor.media_type() {
        MediaType::ImageManifest => {}
        MediaType::Other(other) if other == DOCKER_MANIFEST => {}
        other => return Ok(Err(artifact(other))),
    }
    if let Some(declared) = descriptor.platform() {
        let declared = platform(
            declared.os(),
            declared.architecture(),
            declared.variant().as_ref(),
        );
        if wanted.rank(&declared).is_none() {
            return Ok(Err(declared.to_string()));
        }
    }
    let (manifest, digest): (ImageManifest, _) =
        documents.described("the manifest", &descriptor)?;
    match manifest.config().media_type() {
        MediaType::ImageConfig => {}
        MediaType::Other(other) if other == DOCKER_CONFIG => {}
        other => return Ok(Err(artifact(other))),
    }
    let (document, config_digest): (ImageConfiguration, _) =
        documents.described("the configuration", manifest.config())?;
    let configuration = Configuration {
        document,
        digest: config_digest,
    };
    let built_for = configuration.platform();
    Ok(match wanted.rank(&built_for) {
        None => Err(built_for.to_string()),
        Some(rank) => Ok(Candidate {
            name: match name {
                Some(name) => format!("\"{}\"", Shown(name.as_bytes())),
                None => format!("sha256:{digest}"),
            },
            manifest,
            configuration,
            rank,
        }),
    })
}

fn artifact(media_type: &MediaType) -> String {
    let text = media_type.to_string();
    format!("an artifact of the type {}", Shown(text.as_bytes()))
}

fn stored(documents: &Documents<'_>, manifest: &ImageManifest) -> Result<Vec<Stored>, ImageError> {
    check_layers(manifest.layers().len())?;
    manifest
        .layers()
        .iter()
        .map(|descriptor| {
            check_media_type(descriptor.media_type())?;
            let (digest, range) = blob(documents.members, "a layer", descriptor)?;
            Ok(Stored {
                digest: Some(digest),
                range,
            })
        })
        .collect()
}

/// Accepts tar archives, however compressed: see [`crate::compression`].
fn check_media_type(media_type: &MediaType) -> Result<(), ImageError> {
    let text = media_type.to_string();
    if text.contains(".tar") && !text.contains("encrypted") {
        return Ok(());
    }
    Err(ImageError::Inconsistent {
        what: "the manifest",
        problem: format!(
            "names a layer of the type \"{}\"; only tar archives, plain or compressed by gzip or zstd, are understood",
            Shown(text.as_bytes())
        ),
    })
}
