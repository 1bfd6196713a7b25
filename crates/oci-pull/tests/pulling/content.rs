//! Images, made by hand, and a registry's answers for them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::fake::{Asked, Reply};

pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What a repository holds, each under its digest.
#[derive(Clone, Default)]
pub(crate) struct Content {
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Bytes that do not get smaller when they are compressed.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

impl Content {
    /// One image of two layers under `1`, for 64-bit x86.
    pub(crate) fn simple() -> Self {
        let mut content = Self::default();
        let image = content.image("linux/amd64", "/app", &[&noise(40_000), b"small"]);
        content.tag("1", &image);
        content
    }

    /// Images for several platforms under `1`, and something that is none.
    pub(crate) fn several() -> Self {
        let mut content = Self::default();
        let mut entries = Vec::new();
        for platform in [
            "linux/arm64/v8",
            "linux/amd64",
            "linux/arm/v6",
            "linux/arm/v7",
        ] {
            let program = format!("/app-{}", platform.replace('/', "-"));
            let mut entry = content.image(platform, &program, &[program.as_bytes()]);
            let parts: Vec<&str> = platform.split('/').collect();
            entry["platform"] = json!({"os": parts[0], "architecture": parts[1]});
            if let Some(variant) = parts.get(2) {
                entry["platform"]["variant"] = json!(variant);
            }
            entries.push(entry);
        }
        let mut about = entries[1].clone();
        about["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        about["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
        entries.push(about);
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
        let index = content.manifest(INDEX, &index);
        content.tag("1", &index);
        content
    }

    /// Adds an image whose entrypoint is `program`, with one layer for each of the files' contents.
    pub(crate) fn image(&mut self, platform: &str, program: &str, files: &[&[u8]]) -> Value {
        let layers: Vec<Vec<u8>> = files.iter().map(|bytes| layer(program, bytes)).collect();
        let parts: Vec<&str> = platform.split('/').collect();
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let mut config = json!({
            "os": parts[0], "architecture": parts[1], "config": {"Entrypoint": [program]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        if let Some(variant) = parts.get(2) {
            config["variant"] = json!(variant);
        }
        let config = self.blob(CONFIG, config.to_string().into_bytes());
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| self.blob(LAYER, gzip(layer)))
            .collect();
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.manifest(MANIFEST, &manifest)
    }

    pub(crate) fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.blobs.insert(digest, bytes);
        descriptor
    }

    pub(crate) fn manifest(&mut self, media_type: &str, manifest: &Value) -> Value {
        let descriptor = self.blob(media_type, manifest.to_string().into_bytes());
        let digest = descriptor["digest"].as_str().unwrap().to_owned();
        self.manifests.insert(digest, media_type.to_owned());
        descriptor
    }

    pub(crate) fn tag(&mut self, tag: &str, descriptor: &Value) {
        let digest = descriptor["digest"].as_str().unwrap();
        self.tags.insert(tag.to_owned(), digest.to_owned());
    }

    /// The digest that a tag stands for.
    pub(crate) fn tagged(&self, tag: &str) -> &str {
        &self.tags[tag]
    }

    /// The manifest or index under a tag.
    pub(crate) fn document(&self, tag: &str) -> Value {
        serde_json::from_slice(&self.blobs[self.tagged(tag)]).unwrap()
    }

    /// The digest of a layer of the image under `1`.
    pub(crate) fn layer(&self, place: usize) -> String {
        let manifest = self.document("1");
        manifest["layers"][place]["digest"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    pub(crate) fn bytes(&self, digest: &str) -> &[u8] {
        &self.blobs[digest]
    }

    /// What a registry answers that has this under `team/app`.
    pub(crate) fn answer(&self, asked: &Asked) -> Reply {
        let missing = || {
            let error =
                json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
            Reply::new(404, error.to_string())
        };
        let Some(path) = asked.target.strip_prefix("/v2/team/app/") else {
            return missing();
        };
        let (kind, name) = path.split_once('/').unwrap();
        let digest = self.tags.get(name).map_or(name, String::as_str);
        match (kind, self.blobs.get(digest), self.manifests.get(digest)) {
            ("manifests", Some(bytes), Some(media_type)) => Reply::new(200, bytes.as_slice())
                .header("content-type", media_type)
                .header("docker-content-digest", digest),
            ("blobs", Some(bytes), None) => part(asked, bytes),
            _ => missing(),
        }
    }

    /// Writes it as a directory that `skopeo` reads.
    pub(crate) fn write_layout(&self, directory: &Path) {
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        for (digest, bytes) in &self.blobs {
            std::fs::write(blobs.join(&digest["sha256:".len()..]), bytes).unwrap();
        }
        let entry = |(tag, digest): (&String, &String)| {
            json!({
                "mediaType": self.manifests[digest], "digest": digest, "size": self.blobs[digest].len(),
                "annotations": {"org.opencontainers.image.ref.name": tag},
            })
        };
        let entries: Vec<Value> = self.tags.iter().map(entry).collect();
        let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        std::fs::write(directory.join("index.json"), index).unwrap();
        let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
        std::fs::write(directory.join("oci-layout"), version).unwrap();
    }
}

/// All of it, or the part that was asked for.
fn part(asked: &Asked, bytes: &[u8]) -> Reply {
    let range = asked.header("range").and_then(|range| {
        let first = range.strip_prefix("bytes=")?.strip_suffix('-')?;
        first.parse::<usize>().ok()
    });
    match range {
        Some(first) => Reply::new(206, &bytes[first..]).header(
            "content-range",
            format!("bytes {first}-{}/{}", bytes.len() - 1, bytes.len()),
        ),
        None => Reply::new(200, bytes),
    }
}

fn layer(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o755);
    let name = format!("{}-{}", name.trim_start_matches('/'), bytes.len());
    archive.append_data(&mut header, name, bytes).unwrap();
    archive.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
