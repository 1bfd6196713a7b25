//! A run that a shim parents, as the server sees it.

mod outcome;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use runtara_domain::{EndedBy, RunExit, Usage};
use tokio::sync::OnceCell;

use crate::shim::{self, ExitRecord, Found, Launcher, Shim, ShimError};
use crate::{Adoption, Run, RunDirectory, RunKey, RunnerError, blocking, describe};

/// Where the files of a run are, and what is known of it.
#[derive(Debug, Clone)]
pub struct ShimRunPlaces {
    /// Which run.
    pub key: RunKey,
    /// The directory that its shim works in.
    pub directory: RunDirectory,
    /// The file that its program may have written as its result.
    pub output: PathBuf,
    /// The user who must own that file, where a program of another could have put one in its place.
    pub output_owner: Option<u32>,
    /// Where the program was told that the core listens, if it reaches it by an address, and if that is known.
    pub core_addr: Option<String>,
}

/// A run that a shim parents. It lives, or has just ended.
#[derive(Debug)]
pub struct ShimRun {
    places: ShimRunPlaces,
    state: OnceCell<State>,
    exit: OnceCell<RunExit>,
}

#[derive(Debug)]
enum State {
    Live(Shim),
    Ended(ExitRecord),
    Gone,
}

impl From<Found> for State {
    fn from(found: Found) -> Self {
        match found {
            Found::Alive(shim) => Self::Live(shim),
            Found::Exited(record) => Self::Ended(record),
            Found::Gone => Self::Gone,
        }
    }
}

impl ShimRun {
    /// Has a shim take up a run whose files are made.
    ///
    /// # Errors
    /// Why there is no process of it and there will be none.
    pub async fn launch(launcher: &Launcher, places: ShimRunPlaces) -> Result<Arc<Self>, String> {
        match launcher.launch(&places.directory).await {
            Ok(shim) => Ok(Self::live(places, shim)),
            // There may be a process, so this is no refusal.
            Err(ShimError::Unknown(_)) => Ok(Self::unknown(places)),
            Err(error) => Err(describe(&error)),
        }
    }

    /// What became of a run that an earlier server launched, after a look at it.
    ///
    /// # Errors
    /// [`RunnerError`] if it has ended, and how cannot be told.
    pub async fn adopt(places: ShimRunPlaces, found: Found) -> Result<Adoption, RunnerError> {
        Ok(match found {
            Found::Alive(shim) => Adoption::Alive(Self::live(places, shim)),
            Found::Exited(record) => Adoption::Exited(Self::ended(places, record).wait().await?),
            Found::Gone => Adoption::Gone,
        })
    }

    /// A run with this shim.
    #[must_use]
    pub fn live(places: ShimRunPlaces, shim: Shim) -> Arc<Self> {
        Self::new(places, Some(State::Live(shim)))
    }

    /// A run that ended like this.
    #[must_use]
    pub fn ended(places: ShimRunPlaces, record: ExitRecord) -> Arc<Self> {
        Self::new(places, Some(State::Ended(record)))
    }

    /// A run of which it is not known whether it was started. It is found out when something is wanted of it.
    #[must_use]
    pub fn unknown(places: ShimRunPlaces) -> Arc<Self> {
        Self::new(places, None)
    }

    fn new(places: ShimRunPlaces, state: Option<State>) -> Arc<Self> {
        Arc::new(Self {
            places,
            state: OnceCell::new_with(state),
            exit: OnceCell::new(),
        })
    }

    async fn state(&self) -> io::Result<&State> {
        let look = || async { Ok(State::from(self.look().await?)) };
        self.state.get_or_try_init(look).await
    }

    async fn look(&self) -> io::Result<Found> {
        let directory = self.places.directory.clone();
        blocking(move || shim::look(&directory)).await
    }

    fn failed(&self, context: &str) -> impl FnOnce(io::Error) -> RunnerError {
        let (key, context) = (self.places.key.clone(), context.to_owned());
        move |source| RunnerError {
            key,
            context,
            source,
        }
    }

    async fn settle(&self) -> io::Result<RunExit> {
        match self.state().await? {
            State::Ended(record) => {
                let (places, record) = (self.places.clone(), record.clone());
                return blocking(move || outcome::of(&places, record)).await;
            }
            // Its shim was killed, or never began.
            State::Gone => return Ok(RunExit::lost()),
            State::Live(shim) => shim.ended().await?,
        }
        loop {
            match self.outcome().await? {
                Ok(exit) => return Ok(exit),
                Err(other) => other.ended().await?,
            }
        }
    }

    /// How a run ended whose shim has, or the other shim that it has.
    async fn outcome(&self) -> io::Result<Result<RunExit, Shim>> {
        let places = self.places.clone();
        blocking(move || {
            Ok(match shim::look(&places.directory)? {
                Found::Exited(record) => Ok(outcome::of(&places, record)?),
                Found::Gone => Ok(RunExit::lost()),
                Found::Alive(other) => Err(other),
            })
        })
        .await
    }
}

#[async_trait]
impl Run for ShimRun {
    fn key(&self) -> &RunKey {
        &self.places.key
    }

    fn core_addr(&self) -> Option<&str> {
        self.places.core_addr.as_deref()
    }

    async fn wait(&self) -> Result<RunExit, RunnerError> {
        let exit = self.exit.get_or_try_init(|| self.settle()).await;
        exit.cloned()
            .map_err(self.failed("how it ended is unknown"))
    }

    async fn terminate(&self, grace: Duration, ended_by: EndedBy) -> Result<(), RunnerError> {
        let ended = match self.state().await {
            Ok(State::Live(shim)) => shim.terminate(grace, ended_by),
            Ok(State::Ended(_) | State::Gone) => Ok(()),
            Err(error) => Err(error),
        };
        ended.map_err(self.failed("its shim could not be asked to end it"))
    }

    async fn set_slept(&self, slept: Duration) -> Result<(), RunnerError> {
        let path = self.places.directory.slept_file();
        let written = blocking(move || shim::write_slept(&path, slept)).await;
        written.map_err(self.failed("how long it slept could not be written down"))
    }

    async fn usage(&self) -> Result<Usage, RunnerError> {
        if let Some(exit) = self.exit.get() {
            return Ok(exit.usage);
        }
        // Some reads of /proc, which no disk is behind.
        let used = match self.state().await {
            Ok(State::Live(shim)) => shim.usage(&self.places.directory),
            Ok(State::Ended(_) | State::Gone) => Ok(None),
            Err(error) => Err(error),
        };
        let used = used.map_err(self.failed("what it used is unknown"))?;
        match used {
            Some(usage) => Ok(usage),
            None => Ok(self.wait().await?.usage),
        }
    }
}
