//! The runner.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use runtara_domain::{ImageDigest, RunnerKind};
use runtara_oci_image::{Ownership, StoreOptions};
use runtara_runner::shim::{self, Launcher};
use runtara_runner::{
    Adoption, AskedSettings, ImageFiles, LaunchError, LaunchObstacle, LaunchSpec, PrepareError,
    PreparedImage, Readiness, Run, RunDirectories, RunDirectory, RunKey, Runner, RunnerError,
    ShimRun, blocking, describe,
};
use tokio::sync::Semaphore;
use tracing::warn;

use crate::RANGE_SIZE;
use crate::clean::{self, Found, Leftover, Remaining};
use crate::config::OciConfig;
use crate::finding::Finding;
use crate::host::Host;
use crate::ids::Ids;
use crate::images::{self, Images};
use crate::launch::{Launch, NotMade, places_of_run};
use crate::plan::ContainerPlan;
use crate::settings::settle;

/// Images that are unpacked at once: one waits for the disk while the other decompresses.
const UNPACKED_AT_ONCE: usize = 2;
/// How long a shim may take to remove its container: far more than it needs, which is some directories.
const SHIM_PATIENCE: Duration = Duration::from_secs(120);

/// Runs images in containers.
pub struct OciRunner {
    parts: Arc<Parts>,
    launcher: Arc<Launcher>,
    unpacking: Semaphore,
}

/// What work on other threads needs.
struct Parts {
    config: OciConfig,
    host: Host,
    /// Why there are none, if this machine makes no containers.
    images: Result<Images, String>,
    ids: Ids,
    directories: Arc<RunDirectories>,
}

impl OciRunner {
    /// A runner that launches through this launcher, whose program begins with [`shim::init_with`] and [`CONTAINERS`](crate::shim::CONTAINERS),
    /// and keeps the files of its runs in these directories, which are those of its data directory. Looks at the machine, and removes what
    /// a server that was killed has left. Blocking.
    ///
    /// It can be had on any machine: where containers cannot be made, [`Runner::readiness`] says why, and it minds those that are there.
    #[must_use]
    pub fn new(
        config: OciConfig,
        launcher: Arc<Launcher>,
        directories: Arc<RunDirectories>,
    ) -> Self {
        let host = Host::look(&config);
        let shared_range = config.ids.first_range();
        let ids = match host.machine.shifts_owners {
            true => Ids::each(config.ids.clone()),
            false => Ids::One(shared_range),
        };
        clean::sweep(&config, &host);
        for (key, range) in clean::ranges_of_runs(&config) {
            ids.found(&key, range);
        }
        let images = match host.unfit() {
            Some(unfit) => Err(unfit),
            None => {
                let options = store_options(&config, &ids);
                let images = Images::open(&config, &options, host.machine.overlay);
                images.map_err(|error| describe(&error))
            }
        };
        Self {
            parts: Arc::new(Parts {
                config,
                host,
                images,
                ids,
                directories,
            }),
            launcher,
            unpacking: Semaphore::new(UNPACKED_AT_ONCE),
        }
    }

    /// Finds out what this machine can do for containers that are made so, and leaves it as it is: a runner finds the same. Of a data
    /// directory that is not there yet, the nearest directory above it counts. Blocking.
    #[must_use]
    pub fn look(config: &OciConfig) -> Vec<Finding> {
        Host::only_look(config).findings
    }

    /// What was found out about this machine, for people to read.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.parts.host.findings
    }
}

/// Owners of files are those of the image where mounts shift them, else those of the one range.
fn store_options(config: &OciConfig, ids: &Ids) -> StoreOptions {
    let mut options = StoreOptions::default();
    options.keep_setuid = config.keep_setuid;
    options.ownership = match ids {
        Ids::Each(_) => Ownership::Kept,
        Ids::One(range) => Ownership::Shifted {
            by: range.first(),
            count: RANGE_SIZE,
        },
    };
    options
}

impl Drop for OciRunner {
    fn drop(&mut self) {
        // Nobody waits for an image any more.
        if let Ok(images) = &self.parts.images {
            images.stop();
        }
    }
}

impl Parts {
    fn images(&self) -> io::Result<&Images> {
        let images = self.images.as_ref();
        images.map_err(|unfit| io::Error::other(unfit.clone()))
    }

    fn directory(&self, key: &RunKey) -> RunDirectory {
        RunDirectory::of(&self.config.data_dir, key)
    }

    /// Makes the files of a run, and gives what is told of it.
    fn make(&self, spec: &LaunchSpec) -> Result<runtara_runner::ShimRunPlaces, LaunchError> {
        let refused = |obstacle, reason: String| LaunchError {
            key: spec.key.clone(),
            obstacle,
            reason,
        };
        let host = |reason| refused(LaunchObstacle::Host, reason);
        let images = self.images().map_err(|unfit| host(unfit.to_string()))?;
        let runtime = self.host.runtime.as_deref();
        let runtime = runtime.ok_or_else(|| host("there is no OCI runtime".to_owned()))?;
        // A start that could not be given this was refused: operator or machine have changed since, and may change again.
        let given = settle(&self.config, &self.host.machine, &spec.settings).map_err(host)?;
        let image = images.ready(spec.image.content).ok_or_else(|| {
            let reason = "its layers are gone".to_owned();
            refused(LaunchObstacle::NotPrepared, reason)
        })?;
        let ids = self.ids.take(&spec.key).map_err(host)?;
        let launch = Launch {
            config: &self.config,
            host: &self.host,
            runtime,
            image: &image,
            given,
            ids,
            spec,
        };
        match launch.make(&self.directories) {
            Ok(()) => {
                let directory = self.directory(&spec.key);
                Ok(places_of_run(&spec.key, directory, launch.core_addr()))
            }
            Err(error) => {
                self.ids.give_back(&spec.key);
                Err(match error {
                    NotMade::Image(error) => refused(LaunchObstacle::Image, error.to_string()),
                    NotMade::Taken(error) => host(error.to_string()),
                    NotMade::Host(error) => {
                        // It names places of the host, which are no business of whoever started the instance.
                        warn!(run = %spec.key, %error, "the files of a run could not be made");
                        let kind = error.kind();
                        host(format!(
                            "the server could not make the files of the run: {kind}"
                        ))
                    }
                })
            }
        }
    }

    /// Removes what a run has left. A run of another kind is left alone.
    fn clean(&self, key: &RunKey, keep_logs: bool) -> io::Result<Remaining> {
        let directory = self.directory(key);
        let found = clean::look(&directory)?;
        if matches!(found, Found::Native) {
            return Ok(Remaining::Nothing);
        }
        if shim::is_locked(&directory)? {
            let text = "its shim still lives";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
        // No process of it is left, whatever else is.
        self.ids.give_back(key);
        let leftover = match &found {
            Found::Native | Found::Nothing => None,
            Found::Container(plan) => Some(Leftover::of(plan)),
            Found::Unreadable => Some(Leftover::of_run(key, &self.config, &self.host)),
        };
        clean::clean(&self.directories, (key, &directory), leftover, keep_logs)
    }

    fn adopt(&self, key: &RunKey) -> io::Result<(shim::Found, Option<Box<ContainerPlan>>)> {
        let directory = self.directory(key);
        let found = shim::look(&directory)?;
        let plan = match clean::look(&directory)? {
            Found::Container(plan) => Some(plan),
            Found::Nothing | Found::Unreadable => None,
            Found::Native => {
                let text = "it was launched as a native program";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        };
        // Also of one that has ended: its range is given back when it is cleaned up.
        if let Some(plan) = &plan {
            self.ids.found(key, plan.ids);
        }
        Ok((found, plan))
    }
}

/// Where the program of a container was told that the core listens, if it reaches it by an address of the host.
fn core_addr(plan: &ContainerPlan) -> Option<String> {
    if plan.core.is_some() {
        return None;
    }
    let process = plan.configuration.process().as_ref()?;
    let mut variables = process.env().iter().flatten();
    let addr = variables.find_map(|variable| variable.strip_prefix("RUNTARA_SERVER_ADDR="));
    addr.map(ToOwned::to_owned)
}

#[async_trait]
impl Runner for OciRunner {
    fn kind(&self) -> RunnerKind {
        RunnerKind::Oci
    }

    async fn readiness(&self) -> Readiness {
        if let Some(missing) = shim::missing() {
            return Readiness::Unfit(missing);
        }
        match (&self.parts.images, &self.parts.host.version) {
            (Err(unfit), _) => Readiness::Unfit(unfit.clone()),
            (Ok(_), version) => {
                let runtime = version.as_ref().map(ToString::to_string);
                let ids = match self.parts.ids {
                    Ids::Each(_) => "each container with user ids of its own",
                    Ids::One(_) => "all containers with the same user ids",
                };
                Readiness::Ready(format!("{}, {ids}", runtime.unwrap_or_default()))
            }
        }
    }

    async fn prepare(&self, image: ImageFiles) -> Result<PreparedImage, PrepareError> {
        let content = image.content;
        let unfit = |error| PrepareError::host(content, "no container can be made here", error);
        let parts = Arc::clone(&self.parts);
        let found = blocking(move || Ok(parts.images()?.find(content)));
        let ready = match found.await.map_err(unfit)? {
            images::Found::Ready(ready) => ready,
            images::Found::Missing(missing) => {
                // What is to be unpacked waits for its turn, and nothing else waits for that.
                let turn = self.unpacking.acquire().await;
                let _turn = turn.map_err(|error| unfit(io::Error::other(error)))?;
                let parts = Arc::clone(&self.parts);
                let made = blocking(move || Ok(parts.images()?.prepare(&image, missing))).await;
                made.map_err(unfit)??
            }
        };
        Ok(PreparedImage {
            content,
            about: ready.about.clone(),
            path: self.parts.config.images(),
        })
    }

    fn check(&self, settings: &AskedSettings) -> Result<(), String> {
        settle(&self.parts.config, &self.parts.host.machine, settings).map(drop)
    }

    async fn forget(&self, digest: ImageDigest) -> Result<(), io::Error> {
        let parts = Arc::clone(&self.parts);
        blocking(move || match &parts.images {
            Ok(images) => images.forget(digest),
            Err(_) => Ok(()),
        })
        .await
    }

    async fn reclaim(&self) -> Result<(), io::Error> {
        let parts = Arc::clone(&self.parts);
        blocking(move || match &parts.images {
            Ok(images) => images.reclaim(),
            Err(_) => Ok(()),
        })
        .await
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Run>, LaunchError> {
        let key = spec.key.clone();
        let parts = Arc::clone(&self.parts);
        let made = blocking(move || Ok(parts.make(&spec))).await;
        let places = made.map_err(|error| LaunchError {
            key: key.clone(),
            obstacle: LaunchObstacle::Host,
            reason: error.to_string(),
        })??;
        match ShimRun::launch(&self.launcher, places).await {
            Ok(run) => Ok(run),
            Err(reason) => {
                if let Err(error) = self.clean(&key, false).await {
                    let error = describe(&error);
                    warn!(run = %key, error, "files of a run that was not launched stay");
                }
                Err(LaunchError {
                    key,
                    obstacle: LaunchObstacle::Host,
                    reason,
                })
            }
        }
    }

    async fn adopt(&self, key: &RunKey) -> Result<Adoption, RunnerError> {
        let (parts, run) = (Arc::clone(&self.parts), key.clone());
        let found = blocking(move || parts.adopt(&run)).await;
        let (found, plan) = found.map_err(|source| RunnerError {
            key: key.clone(),
            context: "what became of it is unknown".to_owned(),
            source,
        })?;
        let addr = plan.as_deref().and_then(core_addr);
        let places = places_of_run(key, self.parts.directory(key), addr);
        ShimRun::adopt(places, found).await
    }

    async fn leave(&self) {
        let parts = Arc::clone(&self.parts);
        let left = blocking(move || {
            // What is being unpacked would keep the layers from the next server.
            if let Ok(images) = &parts.images {
                images.stop();
            }
            parts.host.leave_places(&parts.config);
            Ok(())
        });
        let _removed = left.await;
    }

    async fn clean(&self, key: &RunKey, keep_logs: bool) -> Result<(), RunnerError> {
        let (parts, run) = (Arc::clone(&self.parts), key.clone());
        let cleaned = blocking(move || parts.clean(&run, keep_logs)).await;
        let remaining = cleaned.map_err(|source| RunnerError {
            key: key.clone(),
            context: "what it has left could not be removed".to_owned(),
            source,
        })?;
        if let Remaining::Shim(shim, leftover) = remaining {
            // Nobody waits for it. Should this server end before, the next one sweeps.
            let key = key.clone();
            tokio::spawn(async move {
                let _late = tokio::time::timeout(SHIM_PATIENCE, shim.ended()).await;
                if let Err(error) = blocking(move || leftover.remove_after_shim()).await {
                    warn!(run = %key, %error, "what is left of a container stays");
                }
            });
        }
        Ok(())
    }
}
