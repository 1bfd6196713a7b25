//! Instances: where they stand, and what is done to them.

use std::time::Duration;

use runtara_domain::{Change, InstanceId, InstanceState, RunNumber, Status, limits};
use runtara_store::{InstanceRecord, InstanceValues, Purge};
use tokio::time::{Instant, timeout_at};

use crate::{Control, ControlError, ControlResult, Scope};

/// Longest wait of one call for the end of an instance.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Longest wait of one call for a process to leave: published clients give up after 30 seconds.
const LONGEST_STOP: Duration = Duration::from_secs(25);

/// An instance with its large values.
#[derive(Debug, Clone)]
pub struct InstanceView {
    /// What is not large.
    pub record: InstanceRecord,
    /// What is.
    pub values: InstanceValues,
}

/// What a caller waits for.
#[derive(Debug, Clone, Copy)]
enum Wanted {
    /// The end of the instance.
    End,
    /// That the process of this run is gone.
    Gone(RunNumber),
}

impl Wanted {
    fn is(self, state: &InstanceState) -> bool {
        match self {
            Self::End => state.status.is_end(),
            Self::Gone(run) => state.live_node.is_none() || state.run_number != run,
        }
    }

    /// Whether it may have come with a change to this status.
    fn may_be(self, status: Option<Status>) -> bool {
        match self {
            Self::End => status.is_none_or(Status::is_end),
            Self::Gone(_) => true,
        }
    }
}

/// What came of a stop.
#[derive(Debug, Clone)]
pub struct StopOutcome {
    /// Where the instance stands now: cancelled; completed or failed if it was faster; running if its process is still leaving.
    pub state: InstanceState,
    /// Whether its process has left. If not, it is killed when the grace period is over.
    pub process_gone: bool,
}

impl Control {
    /// An instance with its values. With `wait`, answers when it ends, when that time (bounded at a minute) is over, or when this process
    /// is about to end.
    ///
    /// # Errors
    /// [`ControlError::NotFound`].
    pub async fn instance(
        &self,
        scope: &Scope,
        id: &InstanceId,
        wait: Duration,
    ) -> ControlResult<InstanceView> {
        let deadline = Instant::now() + wait.min(LONGEST_WAIT);
        let (record, values) = self.watch_until(scope, id, deadline, Wanted::End).await?;
        let mut values = match values {
            Some(values) => values,
            None => self.store.instance_values(id).await?.unwrap_or_default(),
        };
        if !record.state.shows_error() {
            values.error = None;
        }
        Ok(InstanceView { record, values })
    }

    /// Looks at an instance now and whenever it changes, until it is as wanted, the deadline has come, or this process is about to end.
    async fn watch_until(
        &self,
        scope: &Scope,
        id: &InstanceId,
        deadline: Instant,
        wanted: Wanted,
    ) -> ControlResult<(InstanceRecord, Option<InstanceValues>)> {
        // Changes made by other processes nudge nobody here: look from time to time.
        const SLOW_LOOK: Duration = Duration::from_secs(2);
        let mut watch = self.store.nudges().watch(id);
        loop {
            let (found, values) = self.find_at_its_end(scope, id).await?;
            let now = Instant::now();
            let is_over = now >= deadline || self.closing.is_cancelled();
            if is_over || wanted.is(&found.state) {
                return Ok((found, values));
            }
            let nudged = async {
                let matters = async { while !wanted.may_be(watch.changed().await) {} };
                tokio::select! {
                    () = matters => {}
                    () = self.closing.cancelled() => {}
                }
            };
            let _slowly = timeout_at(deadline.min(now + SLOW_LOOK), nudged).await;
        }
    }

    /// Stops an instance: one without a process is cancelled at once; one with a process is asked to leave, and killed when the grace
    /// period is over. Answers when the process is gone, or after the grace period and two seconds, 25 seconds at most. An instance
    /// that completes meanwhile is completed.
    ///
    /// # Errors
    /// [`ControlError::NotFound`], [`ControlError::Refused`] if it has ended before.
    pub async fn stop(
        &self,
        scope: &Scope,
        id: &InstanceId,
        grace_seconds: u64,
        reason: &str,
    ) -> ControlResult<StopOutcome> {
        self.find(scope, id).await?;
        let grace_ms = grace_seconds
            .saturating_mul(1_000)
            .min(limits::GRACE_MAX_MS);
        let stop = Change::Stop {
            grace_ms,
            reason: reason.to_owned(),
        };
        let changed = self
            .store
            .change(id, stop)
            .await
            .map_err(|error| ControlError::of_instance(error, id))?;
        if changed.state.live_node.is_none() {
            return Ok(StopOutcome {
                state: changed.state,
                process_gone: true,
            });
        }
        let patience = Duration::from_millis(grace_ms.saturating_add(2_000)).min(LONGEST_STOP);
        let deadline = Instant::now() + patience;
        let gone = Wanted::Gone(changed.state.run_number);
        let (found, _) = self.watch_until(scope, id, deadline, gone).await?;
        Ok(StopOutcome {
            process_gone: gone.is(&found.state),
            state: found.state,
        })
    }

    /// Resumes an instance that is suspended, failed or cancelled, from its checkpoints: it is due now. One that was told to pause and has not yet
    /// done so goes on.
    ///
    /// # Errors
    /// [`ControlError::NotFound`], [`ControlError::Refused`] if it cannot be resumed where it stands, or registered itself.
    pub async fn resume(&self, scope: &Scope, id: &InstanceId) -> ControlResult<()> {
        self.find(scope, id).await?;
        self.store
            .change(id, Change::Resume)
            .await
            .map(drop)
            .map_err(|error| ControlError::of_instance(error, id))
    }

    /// Removes an ended instance with everything that belongs to it.
    ///
    /// # Errors
    /// [`ControlError::NotFound`], [`ControlError::Refused`] while it has not ended or its process has not left.
    pub async fn purge(&self, scope: &Scope, id: &InstanceId) -> ControlResult<()> {
        self.find(scope, id).await?;
        let refused = |message: String| {
            Err(ControlError::Refused {
                code: "NOT_ENDED",
                message,
            })
        };
        match self.store.purge_instance(id).await? {
            Purge::Purged => Ok(()),
            Purge::NotFound => Err(ControlError::instance_not_found(id)),
            Purge::NotEnded(status) => refused(format!(
                "Instance '{id}' is {status}; only an ended instance can be removed: stop it first"
            )),
            Purge::ProcessLeaving => refused(format!(
                "Instance '{id}' has ended, but its process has not left yet; try again shortly"
            )),
        }
    }
}
