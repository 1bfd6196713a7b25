//! Runs images as native processes of the host: an ELF program or a `#!` script, in a session of its own, with a clean environment and
//! bounded resources, parented by a shim that outlives the server.
//!
//! For trusted programs: they see the host's file system and network. With a user of their own ([`NativeConfig::user`]) they
//! cannot reach the server's files; between programs of one user nothing keeps them apart but good manners.
//!
//! ```text
//! <data>/cache/native/<digest>             the image, ready to be executed, if the program's user is the server's; otherwise:
//! <work_root>/images/<digest>              because no other user may pass through <data>
//! <data>/cache/spares/                     empty files and directories for the runs to come
//! <data>/runs/<letters>/<run>/             run.json, lock, exit.json, stdout.<n>, stderr.<n>
//! <data>/runs/<letters>/<run>/input.json, work/     if the program's user is the server's; otherwise:
//! <work_root>/<letters>/<run>/input.json, work/
//! ```

mod clean;
mod config;
mod files;
mod prepare;
mod settings;

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use runtara_domain::{ImageDigest, RunnerKind};
use runtara_runner::shim::{self, Launcher};
use runtara_runner::{
    Adoption, AskedSettings, ImageFiles, LaunchError, LaunchObstacle, LaunchSpec, PrepareError,
    PreparedImage, Readiness, Run, RunDirectories, RunDirectory, RunKey, Runner, RunnerError,
    ShimRun, blocking,
};
use tracing::warn;

pub use config::NativeConfig;
use files::Places;

/// Runs images as native processes.
#[derive(Debug)]
pub struct NativeRunner {
    config: Arc<NativeConfig>,
    launcher: Arc<Launcher>,
    directories: Arc<RunDirectories>,
}

impl NativeRunner {
    /// A runner that launches through this launcher, and keeps the files of its runs in these directories, which are those of its data
    /// directory.
    #[must_use]
    pub fn new(
        config: NativeConfig,
        launcher: Arc<Launcher>,
        directories: Arc<RunDirectories>,
    ) -> Self {
        Self {
            config: Arc::new(config),
            launcher,
            directories,
        }
    }
}

#[async_trait]
impl Runner for NativeRunner {
    fn kind(&self) -> RunnerKind {
        RunnerKind::Native
    }

    async fn readiness(&self) -> Readiness {
        if let Some(missing) = shim::missing().or_else(|| self.config.obstacle()) {
            return Readiness::Unfit(missing);
        }
        Readiness::Ready(match self.config.user {
            Some((uid, gid)) => format!("processes of user {uid}, group {gid}"),
            None => format!("processes of the server's user {}", nix::unistd::geteuid()),
        })
    }

    async fn prepare(&self, image: ImageFiles) -> Result<PreparedImage, PrepareError> {
        let (config, content) = (Arc::clone(&self.config), image.content);
        let path = blocking(move || Ok(prepare::prepare(&config, &image))).await;
        let path =
            path.map_err(|source| PrepareError::host(content, "the work was not done", source))??;
        Ok(PreparedImage {
            content,
            about: None,
            path,
        })
    }

    fn check(&self, settings: &AskedSettings) -> Result<(), String> {
        settings::check(settings)
    }

    async fn forget(&self, digest: ImageDigest) -> Result<(), io::Error> {
        let config = Arc::clone(&self.config);
        blocking(move || prepare::forget(&config, digest)).await
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Run>, LaunchError> {
        let key = spec.key.clone();
        let image = spec.image.path.clone();
        let refused = |reason: String| LaunchError {
            key: key.clone(),
            obstacle: LaunchObstacle::Host,
            reason,
        };
        if let Some(refusal) = &self.config.refusal {
            return Err(refused(refusal.clone()));
        }
        let config = Arc::clone(&self.config);
        let mut places = Places::of(&config, &spec.key);
        places.core_addr = Some(spec.core_addr.clone());
        let made = {
            let (places, directories) = (places.clone(), Arc::clone(&self.directories));
            blocking(move || {
                if !spec.image.path.try_exists()? {
                    return Ok(None);
                }
                files::make(&config, &directories, &places, &spec).map(Some)
            })
            .await
        };
        made.map_err(|error| refused(error.to_string()))?
            .ok_or_else(|| LaunchError {
                key: key.clone(),
                obstacle: LaunchObstacle::NotPrepared,
                reason: format!("the executable '{}' is gone", image.display()),
            })?;
        match ShimRun::launch(&self.launcher, places.clone().of_run()).await {
            Ok(run) => Ok(run),
            Err(reason) => {
                let directories = Arc::clone(&self.directories);
                let removed = blocking(move || clean::clean(&places, &directories, false)).await;
                if let Err(error) = removed {
                    warn!(run = %key, %error, "files of a run that was not launched stay");
                }
                Err(refused(reason))
            }
        }
    }

    async fn adopt(&self, key: &RunKey) -> Result<Adoption, RunnerError> {
        let (config, run) = (Arc::clone(&self.config), key.clone());
        let found = blocking(move || {
            let found = shim::look(&RunDirectory::of(&config.data_dir, &run))?;
            let places = Places::found(&config, &run)?.ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, "it was launched as a container")
            })?;
            Ok((found, places))
        });
        let (found, places) = found.await.map_err(|source| RunnerError {
            key: key.clone(),
            context: "what became of it is unknown".to_owned(),
            source,
        })?;
        ShimRun::adopt(places.of_run(), found).await
    }

    async fn clean(&self, key: &RunKey, keep_logs: bool) -> Result<(), RunnerError> {
        let (config, directories) = (Arc::clone(&self.config), Arc::clone(&self.directories));
        let run = key.clone();
        let cleaned = blocking(move || match Places::found(&config, &run)? {
            Some(places) => clean::clean(&places, &directories, keep_logs),
            None => Ok(()),
        });
        let cleaned = cleaned.await;
        cleaned.map_err(|source| RunnerError {
            key: key.clone(),
            context: "its files could not be removed".to_owned(),
            source,
        })
    }
}
