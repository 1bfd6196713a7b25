//! Makes an image of its content.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use runtara_domain::{ImageContent, ImageDigest, limits};
use runtara_images::{Detected, detect};
use runtara_oci_image::{
    Archive, ArchiveOptions, ImageConfig as Configuration, ImageError, PROGRAM_PATH, ResolvedUser,
    UnpackedImage, Watch,
};
use runtara_runner::{ImageFiles, PrepareError, describe};
use serde_json::{Value, json};
use tracing::info;

use super::{Images, Ready};
use crate::spec::{ImageConfig, ImageUser, check_image, signal_number};

/// Says why there is no image.
pub(super) enum NotMade {
    Unfit(String),
    Host { context: String, source: io::Error },
}

impl From<ImageError> for NotMade {
    fn from(error: ImageError) -> Self {
        let text = describe(&error);
        match error {
            ImageError::Io { source, .. } | ImageError::StorageFull { source, .. } => Self::Host {
                context: text,
                source,
            },
            ImageError::Stopped => Self::Host {
                context: text,
                source: io::ErrorKind::Interrupted.into(),
            },
            ImageError::InUse { .. } | ImageError::WhiteoutsUnsupported { .. } => Self::Host {
                context: text,
                source: io::ErrorKind::Other.into(),
            },
            _ => Self::Unfit(text),
        }
    }
}

/// Says that of an image.
pub(super) fn refused(content: ImageContent, error: impl Into<NotMade>) -> PrepareError {
    match error.into() {
        NotMade::Unfit(reason) => PrepareError::Unfit { content, reason },
        NotMade::Host { context, source } => PrepareError::Host {
            content,
            context,
            source,
        },
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
        let stop = || self.stopping.load(Ordering::Relaxed);
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
        let stop = || self.stopping.load(Ordering::Relaxed);
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
        self.prepare(&base).map_err(|error| match error {
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
    Ok(config)
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
