//! Makes an image of its content.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use runtara_domain::{ImageContent, ImageDigest, limits};
use runtara_images::{Detected, detect};
use runtara_oci_image::{
    Archive, ArchiveOptions, ImageConfig as Configuration, ImageError, MergedLayers, PROGRAM_PATH,
    ResolvedUser, UnpackedImage, Watch,
};
use runtara_runner::{ImageFiles, PrepareError, describe};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::{Found, Images, Ready};
use crate::spec::{ImageConfig, ImageUser, RUN_DIRECTORY, check_image, signal_number};

/// Says why there is no image.
pub(super) enum NotMade {
    Unfit(String),
    Host { context: String, source: io::Error },
}

impl From<ImageError> for NotMade {
    fn from(error: ImageError) -> Self {
        let text = describe(&error);
        let source = match error {
            ImageError::Io { source, .. } | ImageError::StorageFull { source, .. } => source,
            // Of a server that ends, nobody reads it.
            ImageError::Stopped => io::Error::new(
                io::ErrorKind::StorageFull,
                "the disk of the server is nearly full",
            ),
            ImageError::InUse { .. } | ImageError::WhiteoutsUnsupported { .. } => {
                io::ErrorKind::Other.into()
            }
            _ => return Self::Unfit(text),
        };
        // It names places of the host, which are no business of whoever sent the image.
        warn!(error = text, "an image could not be unpacked");
        Self::Host {
            context: "it could not be unpacked".to_owned(),
            source,
        }
    }
}

/// Says that of an image.
pub(super) fn refused(content: ImageContent, error: impl Into<NotMade>) -> PrepareError {
    match error.into() {
        NotMade::Unfit(reason) => PrepareError::Unfit { content, reason },
        NotMade::Host { context, source } => PrepareError::host(content, context, source),
    }
}

impl Images {
    /// Makes an image of its content: unpacks what is not unpacked yet.
    pub(super) fn make(&self, image: &ImageFiles) -> Result<Ready, PrepareError> {
        self.try_make(image)
            .map_err(|error| refused(image.content, error))
    }

    fn try_make(&self, image: &ImageFiles) -> Result<Ready, NotMade> {
        let mut file = File::open(&image.path).map_err(reading)?;
        let detected = detect(&mut file).map_err(reading)?;
        match (&detected, &image.base) {
            (Detected::Elf(_) | Detected::Script { .. }, base) => {
                self.make_of_program(image, &file, base.as_deref())
            }
            (Detected::OciLayout | Detected::DockerArchive | Detected::Compressed(_), None) => {
                self.make_of_archive(file)
            }
            (Detected::OciLayout | Detected::DockerArchive | Detected::Compressed(_), Some(_)) => {
                Err(NotMade::Unfit(format!(
                    "it is {detected}, and only a program or a script can be laid on a base"
                )))
            }
            (other, _) => Err(NotMade::Unfit(format!(
                "it is {other}, and containers are made of ELF programs, `#!` scripts, OCI layouts and docker archives"
            ))),
        }
    }

    fn make_of_archive(&self, file: File) -> Result<Ready, NotMade> {
        let began = Instant::now();
        let stop = || self.is_over();
        let watch = Watch::new(&stop, &|_| ());
        let mut options = ArchiveOptions::new(self.store.scratch());
        options.limits = self.limits.clone();
        let archive = Archive::open(file, &options, watch)?;
        let unpacked = self.store.unpack(&archive, &self.limits, watch)?;
        let config = configuration(archive.config(), &unpacked)?;
        let about = about(&archive, &unpacked);
        let ms = began.elapsed().as_millis();
        info!(layers = archive.layers().len(), ms, "unpacked an image");
        Ok(Ready::new(unpacked, config, Some(about)))
    }

    fn make_of_program(
        &self,
        image: &ImageFiles,
        file: &File,
        base: Option<&Path>,
    ) -> Result<Ready, NotMade> {
        let base = match (base, image.content.base) {
            (Some(path), Some(digest)) => Some(self.base(path, digest)?),
            _ => None,
        };
        let stop = || self.is_over();
        let watch = Watch::new(&stop, &|_| ());
        let digest = image.content.digest;
        let below = base.as_ref().map(|base| &base.unpacked);
        let unpacked = self.store.program(file, digest, below, watch)?;
        let config = ImageConfig {
            entrypoint: vec![PROGRAM_PATH.to_owned()],
            cmd: Vec::new(),
            ..base.map(|base| base.config.clone()).unwrap_or_default()
        };
        Ok(Ready::new(unpacked, config, None))
    }

    /// The image that a program is laid on.
    fn base(&self, path: &Path, digest: ImageDigest) -> Result<Arc<Ready>, NotMade> {
        let base = ImageFiles {
            content: ImageContent { digest, base: None },
            path: path.to_owned(),
            base: None,
        };
        let prepared = match self.find(base.content) {
            Found::Ready(ready) => Ok(ready),
            Found::Missing(missing) => self.prepare(&base, missing),
        };
        prepared.map_err(|error| match error {
            PrepareError::Host {
                context, source, ..
            } => NotMade::Host {
                context: format!("its base: {context}"),
                source,
            },
            other => NotMade::Unfit(format!("its base: {}", describe(&other))),
        })
    }
}

fn reading(source: io::Error) -> NotMade {
    NotMade::Host {
        context: "its content could not be read".to_owned(),
        source,
    }
}

/// What an image says about its program, with its names resolved.
fn configuration(said: &Configuration, unpacked: &UnpackedImage) -> Result<ImageConfig, NotMade> {
    let merged = unpacked.merged()?;
    let ResolvedUser {
        uid,
        gid,
        groups,
        home,
    } = merged.user(&said.user)?;
    let working_dir = merged.working_directory(&said.working_dir)?;
    let working_dir = working_dir.into_os_string().into_string().map_err(|path| {
        let path = path.display();
        NotMade::Unfit(format!("its working directory '{path}' is not UTF-8"))
    })?;
    let stop_signal = match said.stop_signal.as_deref() {
        None => None,
        Some(text) => Some(signal_number(text).ok_or_else(|| {
            let text = text.escape_debug();
            NotMade::Unfit(format!(
                "its stop signal '{text}' is none; build it with one such as SIGTERM or 15"
            ))
        })?),
    };
    let config = ImageConfig {
        entrypoint: said.entrypoint.clone(),
        cmd: said.cmd.clone(),
        env: said
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        working_dir,
        user: ImageUser {
            uid,
            gid,
            additional_gids: groups,
            home,
        },
        stop_signal,
    };
    check_image(&config).map_err(|error| NotMade::Unfit(error.to_string()))?;
    check_places(&merged, &config.working_dir)?;
    Ok(config)
}

/// Where something is mounted or put in every container.
const PLACES: [&str; 6] = ["/proc", "/sys", "/dev", "/tmp", "/etc", RUN_DIRECTORY];
/// Files that are put in the place of what the image has.
const FILES: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// Refuses an image in which something that every container needs has no room: it could never run.
fn check_places(merged: &MergedLayers, working_dir: &str) -> Result<(), NotMade> {
    for place in PLACES.into_iter().chain([working_dir]) {
        if !merged.has_room_for_directory(place)? {
            return Err(NotMade::Unfit(format!(
                "a container needs a directory at '{place}', and the image has a file, or links that lead nowhere, there or above it; build it without"
            )));
        }
    }
    for file in FILES {
        if merged.has_directory(file)? {
            return Err(NotMade::Unfit(format!(
                "a container has a file of its own at '{file}', and the image has a directory there; build it without"
            )));
        }
    }
    Ok(())
}

/// What an image says of itself. Not the values of its variables, which may be secrets of whoever built it.
fn about(archive: &Archive, unpacked: &UnpackedImage) -> String {
    let config = archive.config();
    let names: Vec<_> = config.env.iter().map(|(name, _)| name).collect();
    let skipped: u64 = unpacked
        .layers()
        .iter()
        .map(runtara_oci_image::Layer::skipped)
        .sum();
    let mut about = json!({
        "config_digest": format!("sha256:{}", archive.config_digest()),
        "layers": archive.layers().len(),
        "unpacked_bytes": unpacked.layers().iter().map(runtara_oci_image::Layer::bytes).sum::<u64>(),
        "entrypoint": config.entrypoint,
        "cmd": config.cmd,
        "env_names": names,
        "working_dir": config.working_dir,
        "user": config.user,
        "labels": config.labels,
    });
    let further = [
        ("stop_signal", config.stop_signal.clone().map(Value::from)),
        ("created", config.created.clone().map(Value::from)),
        ("left_out_entries", (skipped > 0).then(|| skipped.into())),
    ];
    for (name, value) in further {
        if let Some(value) = value {
            about[name] = value;
        }
    }
    let text = about.to_string();
    if text.len() <= limits::METADATA_BYTES {
        return text;
    }
    // What is larger than what a person may attach does not belong into lists.
    for name in ["labels", "env_names", "entrypoint", "cmd"] {
        about[name] = Value::Null;
    }
    about["too_large_to_show"] = true.into();
    about.to_string()
}
