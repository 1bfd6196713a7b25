//! One native run.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use runtara_domain::{EndedBy, RunExit, Usage};
use runtara_runner::shim::{self, ExitRecord, Found, Shim};
use runtara_runner::{Run, RunKey, RunnerError};
use tokio::sync::OnceCell;

use crate::files::Places;
use crate::{blocking, outcome};

/// A run that lives, or has just ended.
#[derive(Debug)]
pub(crate) struct NativeRun {
    places: Places,
    state: State,
    exit: OnceCell<RunExit>,
}

#[derive(Debug)]
enum State {
    Live(Shim),
    Ended(ExitRecord),
}

impl NativeRun {
    pub(crate) fn live(places: Places, shim: Shim) -> Arc<Self> {
        Self::new(places, State::Live(shim))
    }

    pub(crate) fn ended(places: Places, record: ExitRecord) -> Arc<Self> {
        Self::new(places, State::Ended(record))
    }

    fn new(places: Places, state: State) -> Arc<Self> {
        Arc::new(Self {
            places,
            state,
            exit: OnceCell::new(),
        })
    }

    fn failed(&self, context: &str) -> impl FnOnce(std::io::Error) -> RunnerError {
        let (key, context) = (self.places.key.clone(), context.to_owned());
        move |source| RunnerError {
            key,
            context,
            source,
        }
    }

    async fn settle(&self) -> std::io::Result<RunExit> {
        if let State::Live(shim) = &self.state {
            shim.ended().await?;
        }
        loop {
            let (places, known) = (self.places.clone(), self.record().cloned());
            let found = blocking(move || {
                let found = match known {
                    Some(record) => Found::Exited(record),
                    None => shim::look(&places.directory)?,
                };
                Ok(match found {
                    Found::Exited(record) => Ok(outcome::of(&places, record)),
                    // Its shim was killed.
                    Found::Gone => Ok(RunExit::lost()),
                    Found::Alive(shim) => Err(shim),
                })
            });
            match found.await? {
                Ok(exit) => return Ok(exit),
                Err(other) => other.ended().await?,
            }
        }
    }

    fn record(&self) -> Option<&ExitRecord> {
        match &self.state {
            State::Live(_) => None,
            State::Ended(record) => Some(record),
        }
    }
}

#[async_trait]
impl Run for NativeRun {
    fn key(&self) -> &RunKey {
        &self.places.key
    }

    async fn wait(&self) -> Result<RunExit, RunnerError> {
        let exit = self.exit.get_or_try_init(|| self.settle()).await;
        exit.cloned()
            .map_err(self.failed("how it ended is unknown"))
    }

    async fn terminate(&self, grace: Duration, ended_by: EndedBy) -> Result<(), RunnerError> {
        let State::Live(shim) = &self.state else {
            return Ok(());
        };
        shim.terminate(grace, ended_by)
            .map_err(self.failed("its shim could not be asked to end it"))
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
        let State::Live(shim) = &self.state else {
            return Ok(self.wait().await?.usage);
        };
        // Some reads of /proc, which no disk is behind.
        let used = shim
            .usage()
            .map_err(self.failed("what it used is unknown"))?;
        match used {
            Some(usage) => Ok(usage),
            None => Ok(self.wait().await?.usage),
        }
    }
}
