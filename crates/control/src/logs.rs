//! What runs wrote.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use runtara_domain::{InstanceId, RunNumber};
use runtara_runner::shim::{LogReader, LogStream};
use runtara_runner::{LogWatch, RunDirectory, RunKey};
use runtara_store::{NodeRecord, Watch};
use tokio::time::timeout;

use crate::{Control, ControlError, ControlResult, Scope};

/// Most bytes of one piece.
const PIECE: usize = 64 * 1024;
/// How often a followed log is looked at although nothing was told: a safety net.
const SLOW_LOOK: Duration = Duration::from_secs(5);

/// One output of one run, read piece by piece.
pub struct Log {
    control: Control,
    scope: Scope,
    key: RunKey,
    reader: LogReader,
    offset: u64,
    /// Behind the last byte that there was when it was opened. Reading on to wherever the program has come meanwhile would have no end.
    end: u64,
    follow: Option<Follow>,
}

/// Tells when there may be more to read.
struct Follow {
    files: LogWatch,
    instance: Watch,
    ended: bool,
}

/// Where the files of a run are to be looked for.
#[derive(Debug, Clone, PartialEq)]
pub enum LogPlace {
    /// Here, or nowhere.
    Here,
    /// On one of these nodes.
    Elsewhere {
        /// Which run it is.
        run_number: RunNumber,
        /// Who may have them; this one does not.
        nodes: Vec<NodeRecord>,
        /// Whether the run has ended, so that it need not have left any.
        is_over: bool,
    },
}

impl Control {
    /// Says where the outputs of a run are to be looked for: of the run with this number, or of the latest.
    ///
    /// # Errors
    /// [`ControlError::NotFound`] for the instance.
    pub async fn place_of_log(
        &self,
        scope: &Scope,
        id: &InstanceId,
        run: Option<RunNumber>,
    ) -> ControlResult<LogPlace> {
        let state = self.find(scope, id).await?.state;
        let run_number = run.unwrap_or(state.run_number);
        let key = RunKey {
            instance_id: id.clone(),
            run_number,
        };
        if run_number == RunNumber(0)
            || run_number > state.run_number
            || self.has_files(&key).await?
        {
            return Ok(LogPlace::Here);
        }
        let lives_on = state.live_node.filter(|_| run_number == state.run_number);
        let me = self.config.node;
        if lives_on == Some(me) {
            return Ok(LogPlace::Here);
        }
        let mut nodes = self.store.nodes().await?;
        nodes.retain(|other| other.node != me && lives_on.is_none_or(|node| other.node == node));
        if nodes.is_empty() {
            return Ok(LogPlace::Here);
        }
        Ok(LogPlace::Elsewhere {
            run_number,
            nodes,
            is_over: lives_on.is_none(),
        })
    }

    /// Whether there are files here of the run with this number, or of the latest.
    ///
    /// # Errors
    /// [`ControlError::NotFound`] for the instance.
    pub async fn has_log(&self, id: &InstanceId, run: Option<RunNumber>) -> ControlResult<bool> {
        let run_number = match run {
            Some(run) => run,
            None => self.find(&None, id).await?.state.run_number,
        };
        let key = RunKey {
            instance_id: id.clone(),
            run_number,
        };
        self.has_files(&key).await
    }

    async fn has_files(&self, key: &RunKey) -> ControlResult<bool> {
        let directory = RunDirectory::of(&self.config.data_dir, key);
        blocking(move || directory.path().try_exists()).await
    }

    /// Opens one output of a run: of the run with this number, or of the latest. It begins at `offset`, or at the oldest byte that is
    /// kept if that is later. With `follow` it ends with the run, otherwise with what is there.
    ///
    /// # Errors
    /// [`ControlError::NotFound`] for the instance, or for a run that there was not yet. One that wrote nothing has an empty log, and so has
    /// one of another node, if [`Control::place_of_log`] is not asked before.
    pub async fn log(
        &self,
        scope: &Scope,
        id: &InstanceId,
        stream: LogStream,
        run: Option<RunNumber>,
        offset: u64,
        follow: bool,
    ) -> ControlResult<Log> {
        let state = self.find(scope, id).await?.state;
        let key = RunKey {
            instance_id: id.clone(),
            run_number: run.unwrap_or(state.run_number),
        };
        // What has run and left nothing has no directory any more.
        let is_over = key.run_number < state.run_number
            || (key.run_number == state.run_number && state.live_node.is_none());
        let has_run = key.run_number > RunNumber(0) && is_over;
        let directory = RunDirectory::of(&self.config.data_dir, &key);
        let unknown = || ControlError::NotFound {
            what: "Log",
            id: format!("{id}/{}", key.run_number),
        };
        let follow = match follow.then(|| LogWatch::new(&directory)) {
            None => None,
            Some(Ok(files)) => Some(Follow {
                files,
                instance: self.store.nudges().watch(id),
                ended: false,
            }),
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ControlError::internal(&error));
            }
            Some(Err(_)) if has_run => None,
            Some(Err(_)) => return Err(unknown()),
        };
        let reader = LogReader::new(&directory, stream);
        let (extent, exists) = {
            let (reader, path) = (reader.clone(), directory.path().to_owned());
            blocking(move || Ok((reader.extent()?, path.try_exists()?))).await?
        };
        if !exists && !has_run {
            return Err(unknown());
        }
        Ok(Log {
            control: self.clone(),
            scope: scope.clone(),
            key,
            reader,
            offset: offset.max(extent.oldest),
            end: extent.end,
            follow,
        })
    }
}

impl Log {
    /// Offset of the next byte.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The run that wrote it.
    #[must_use]
    pub fn run_number(&self) -> RunNumber {
        self.key.run_number
    }

    /// The next piece; `None` at the end. If what came next is gone by now, goes on with the oldest byte that is kept.
    ///
    /// # Errors
    /// [`ControlError::Internal`] if it cannot be read; [`ControlError::Unavailable`] if it is followed and this process is about to end:
    /// an end would say that the run has ended.
    pub async fn next(&mut self) -> ControlResult<Option<Bytes>> {
        loop {
            // Also where there is more to read: a program that writes without pause would keep the process from ending.
            if self.follow.is_some() && self.control.closing.is_cancelled() {
                return Err(ControlError::Unavailable {
                    message: "the server is about to leave; read on from where this broke off"
                        .to_owned(),
                });
            }
            let (reader, offset) = (self.reader.clone(), self.offset);
            let limit = match self.follow {
                Some(_) => PIECE,
                None => usize::try_from(self.end.saturating_sub(offset))
                    .map_or(PIECE, |left| left.min(PIECE)),
            };
            if limit == 0 {
                return Ok(None);
            }
            let piece = blocking(move || reader.read(offset, limit)).await?;
            if self.follow.is_none() && piece.offset >= self.end {
                // All that there was is gone by now.
                return Ok(None);
            }
            if !piece.bytes.is_empty() {
                self.offset = piece.offset + piece.bytes.len() as u64;
                return Ok(Some(piece.bytes.into()));
            }
            let Some(follow) = &mut self.follow else {
                return Ok(None);
            };
            if follow.ended {
                return Ok(None);
            }
            // What was written before the end is read after the end was seen.
            follow.ended = match self.control.find(&self.scope, &self.key.instance_id).await {
                Ok(found) => {
                    let state = found.state;
                    state.run_number != self.key.run_number || state.live_node.is_none()
                }
                Err(ControlError::NotFound { .. }) => true,
                Err(error) => return Err(error),
            };
            if !follow.ended {
                tokio::select! {
                    () = follow.changed() => {}
                    () = self.control.closing.cancelled() => {}
                }
            }
        }
    }
}

impl Follow {
    /// Waits until there may be more.
    async fn changed(&mut self) {
        let either = async {
            tokio::select! {
                () = self.files.changed() => {}
                _ = self.instance.changed() => {}
            }
        };
        let _slowly = timeout(SLOW_LOOK, either).await;
    }
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> ControlResult<T> {
    let done = runtara_runner::blocking(act).await;
    done.map_err(|error| ControlError::internal(&error))
}
