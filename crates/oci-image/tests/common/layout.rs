//! Image archives written by hand.

use std::io::Write as _;

use runtara_oci_image::Platform;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::tar_writer::{self, Entry, directory, file};

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// How layers are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed {
    Plain,
    Gzip,
    Zstd,
}

pub fn pack(bytes: &[u8], packed: Packed) -> Vec<u8> {
    match packed {
        Packed::Plain => bytes.to_vec(),
        Packed::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Packed::Zstd => zstd::encode_all(bytes, 1).unwrap(),
    }
}

/// An OCI layout in the making.
#[derive(Default)]
pub struct Layout {
    blobs: Vec<(String, Vec<u8>)>,
}

impl Layout {
    /// Adds a blob, and answers with its descriptor.
    pub fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = sha256(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()});
        self.blobs.push((digest, bytes));
        descriptor
    }

    pub fn json(&mut self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, value.to_string().into_bytes())
    }

    /// Adds an image of this platform, and answers with its manifest's descriptor.
    pub fn image(
        &mut self,
        platform: &Platform,
        layers: &[(&[u8], Packed)],
        config: &Value,
    ) -> Value {
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|(layer, _)| format!("sha256:{}", sha256(layer)))
            .collect();
        let mut document = json!({
            "architecture": platform.architecture, "os": platform.os, "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        if let Some(variant) = &platform.variant {
            document["variant"] = json!(variant);
        }
        let config = self.json("application/vnd.oci.image.config.v1+json", &document);
        let layers: Vec<Value> = layers
            .iter()
            .map(|(layer, packed)| {
                self.blob(
                    "application/vnd.oci.image.layer.v1.tar",
                    pack(layer, *packed),
                )
            })
            .collect();
        self.json(
            "application/vnd.oci.image.manifest.v1+json",
            &json!({"schemaVersion": 2, "config": config, "layers": layers}),
        )
    }

    /// The archive, with these descriptors in its index.
    pub fn finish(self, manifests: &[Value]) -> Vec<u8> {
        tar_writer::archive(&self.entries(manifests))
    }

    pub fn entries(self, manifests: &[Value]) -> Vec<Entry> {
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
        let mut entries = vec![
            directory("blobs/"),
            directory("blobs/sha256/"),
            file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
            file("index.json", index),
        ];
        for (digest, bytes) in self.blobs {
            entries.push(file(format!("blobs/sha256/{digest}"), bytes));
        }
        entries
    }
}

/// An archive of one image for this machine.
pub fn image(layers: &[&[u8]]) -> Vec<u8> {
    let layers: Vec<_> = layers.iter().map(|layer| (*layer, Packed::Plain)).collect();
    image_of(&layers, &json!({}))
}

pub fn image_of(layers: &[(&[u8], Packed)], config: &Value) -> Vec<u8> {
    let mut layout = Layout::default();
    let manifest = layout.image(&Platform::host(), layers, config);
    layout.finish(&[manifest])
}

/// A docker archive of one image: names of the layers' files and their content, and further entries.
pub fn docker(platform: &Platform, layers: &[(&str, &[u8])], more: &[Entry]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|(_, layer)| format!("sha256:{}", sha256(layer)))
        .collect();
    let config = json!({
        "architecture": platform.architecture, "os": platform.os, "config": {"Cmd": ["/bin/true"]},
        "container_config": {"Image": ""}, "docker_version": "20.10.0", "history": [{"empty_layer": true}],
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string();
    let name = format!("{}.json", sha256(config.as_bytes()));
    let names: Vec<&str> = layers.iter().map(|(name, _)| *name).collect();
    let manifest = json!([{"Config": name, "RepoTags": ["a:latest"], "Layers": names}]).to_string();
    let mut entries: Vec<Entry> = Vec::new();
    for (name, layer) in layers {
        if !more.iter().any(|entry| entry.name == name.as_bytes()) {
            entries.push(file(name, layer));
        }
    }
    entries.extend_from_slice(more);
    entries.push(file(name, config));
    entries.push(file("manifest.json", manifest));
    tar_writer::archive(&entries)
}
