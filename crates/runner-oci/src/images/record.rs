//! What is written down of an image, so that a later server finds it ready.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use runtara_domain::{ImageContent, ImageDigest};
use serde::{Deserialize, Serialize};

use crate::spec::ImageConfig;

/// The version that is written, and the only one that is read: what another says is made again.
pub(super) const VERSION: u32 = 1;
/// Largest record, in bytes: what an image says of its program is bounded, and escaped at its worst.
const RECORD_BYTES: u64 = 16 * 1024 * 1024;
const ENDING: &str = ".json";
/// Between the content and its base, in the name of a record.
const ON: &str = "-on-";

/// What an image is made of, and how it is run.
#[derive(Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    /// The digests of its layers, the lowest first.
    pub(super) layers: Vec<ImageDigest>,
    pub(super) config: ImageConfig,
    pub(super) about: Option<String>,
}

impl Record {
    /// Reads a record. `None` if there is none.
    ///
    /// # Errors
    /// What reading reported; [`io::ErrorKind::InvalidData`] if it is not understood.
    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        let mut text = Vec::new();
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        file.take(RECORD_BYTES).read_to_end(&mut text)?;
        let record: Self = serde_json::from_slice(&text)?;
        if record.version != VERSION {
            let text = format!(
                "it is of version {}, and {VERSION} is known",
                record.version
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Some(record))
    }

    /// Writes it by rename, so that it is whole or not there. `scratch` is a directory on the same file system, for what is not whole yet.
    pub(super) fn write(&self, path: &Path, scratch: &Path) -> io::Result<()> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let temporary = scratch.join(format!("record-{}-{number}", std::process::id()));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(temporary, path)
    }
}

/// Where the record of an image is.
pub(super) fn path(directory: &Path, content: ImageContent) -> PathBuf {
    directory.join(name(content) + ENDING)
}

/// What an image is called in names of files.
pub(super) fn name(content: ImageContent) -> String {
    match content.base {
        None => content.digest.to_string(),
        Some(base) => format!("{}{ON}{base}", content.digest),
    }
}

/// All records, each with the image that it is of.
pub(super) fn list(directory: &Path) -> io::Result<Vec<(PathBuf, ImageContent)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if let Some(content) = entry.file_name().to_str().and_then(content_of) {
            found.push((entry.path(), content));
        }
    }
    Ok(found)
}

fn content_of(name: &str) -> Option<ImageContent> {
    let name = name.strip_suffix(ENDING)?;
    let (digest, base) = match name.split_once(ON) {
        None => (name, None),
        Some((digest, base)) => (digest, Some(base)),
    };
    let read = |hex: &str| ImageDigest::from_hex(hex).ok();
    Some(ImageContent {
        digest: read(digest)?,
        base: match base {
            None => None,
            Some(base) => Some(read(base)?),
        },
    })
}

/// Makes the directory of records, for this user alone.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_record_tells_its_image() {
        let alone = ImageContent {
            digest: ImageDigest::of(b"one"),
            base: None,
        };
        let on_base = ImageContent {
            base: Some(ImageDigest::of(b"two")),
            ..alone
        };
        for content in [alone, on_base] {
            let path = path(Path::new("/records"), content);
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(content_of(name), Some(content));
        }
        for name in ["", "x.json", "x.new-1"] {
            assert_eq!(content_of(name), None, "{name}");
        }
    }
}
