//! Docker archives (Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format").

use serde::Deserialize;

use super::documents::{Configuration, Documents, parse, verify};
use super::{Found, Stored, check_layers, pair};
use crate::error::Shown;
use crate::{ImageError, Platform};
use runtara_domain::ImageDigest;

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Finds the image, of which there must be one.
pub(super) fn find(documents: &mut Documents<'_>, wanted: &Platform) -> Result<Found, ImageError> {
    let bytes = documents.by_name("the manifest", "manifest.json")?;
    let mut images: Vec<Image> = parse("the manifest", &bytes)?;
    let image = match images.len() {
        1 => images.swap_remove(0),
        0 => {
            return Err(ImageError::Inconsistent {
                what: "the manifest",
                problem: "names no image".to_owned(),
            });
        }
        _ => {
            return Err(ImageError::Ambiguous {
                found: images.into_iter().map(name).collect(),
            });
        }
    };
    let configuration = configuration(documents, &image)?;
    let built_for = configuration.platform();
    if wanted.rank(&built_for).is_none() {
        return Err(ImageError::PlatformAbsent {
            wanted: wanted.to_string(),
            available: vec![built_for.to_string()],
        });
    }
    let layers = image.layers.unwrap_or_default();
    check_layers(layers.len())?;
    let stored = layers
        .iter()
        .map(|layer| {
            let range = documents
                .members
                .find(layer)
                .ok_or(ImageError::PartAbsent {
                    what: "a layer",
                    name: layer.clone(),
                })?;
            Ok(Stored {
                digest: None,
                range,
            })
        })
        .collect::<Result<_, ImageError>>()?;
    Ok(Found {
        layers: pair(&configuration, stored)?,
        configuration,
    })
}

fn configuration(
    documents: &mut Documents<'_>,
    image: &Image,
) -> Result<Configuration, ImageError> {
    let what = "the configuration";
    let bytes = documents.by_name(what, &image.config)?;
    // It is named after its digest: `<digest>.json`, or a blob of an OCI layout.
    let file = image.config.rsplit('/').next().unwrap_or_default();
    let named = ImageDigest::from_hex(file.strip_suffix(".json").unwrap_or(file));
    let digest = match named {
        Ok(named) => {
            verify(what, named, &bytes)?;
            named
        }
        Err(_) => ImageDigest::of(&bytes),
    };
    Ok(Configuration {
        document: parse(what, &bytes)?,
        digest,
    })
}

fn name(image: Image) -> String {
    let name = image
        .repo_tags
        .and_then(|tags| tags.into_iter().next())
        .unwrap_or(image.config);
    format!("\"{}\"", Shown(name.as_bytes()))
}
