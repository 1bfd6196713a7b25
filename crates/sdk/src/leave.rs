//! Cancel, pause, and the other reasons to leave.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::Error;
use crate::instance::Instance;

/// Why this run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    Cancelled,
    Suspended,
    Superseded,
    Ended,
}

impl Leave {
    fn error(self) -> Error {
        match self {
            Self::Cancelled => Error::Cancelled,
            Self::Suspended => Error::Suspended,
            Self::Superseded => Error::Superseded,
            Self::Ended => Error::Ended,
        }
    }

    /// Whether steps that are at work may still be saved.
    pub(crate) fn lets_steps_finish(self) -> bool {
        matches!(self, Self::Cancelled | Self::Suspended)
    }
}

/// Whether this run is over. Once it is, it stays so.
pub(crate) struct Leaving {
    reason: watch::Sender<Option<Leave>>,
    acknowledged: AtomicBool,
}

impl Leaving {
    pub(crate) fn new() -> Self {
        Self {
            reason: watch::Sender::new(None),
            acknowledged: AtomicBool::new(false),
        }
    }

    pub(crate) fn reason(&self) -> Option<Leave> {
        *self.reason.borrow()
    }

    /// The error to hand on if this run is over.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.reason().map_or(Ok(()), |leave| Err(leave.error()))
    }

    /// Ends as soon as this run is over.
    pub(crate) async fn wait(&self) -> Error {
        let mut reasons = self.reason.subscribe();
        let reason = reasons.wait_for(Option::is_some).await;
        // The sender is `self`, so the channel is open and there is a reason.
        reason.map_or(Error::Ended, |leave| leave.unwrap_or(Leave::Ended).error())
    }

    /// Notes why this run is over and gives the error to hand on. The first reason stands, but a cancel wins over a pause,
    /// and what the server has decided wins over both.
    pub(crate) fn leave(&self, leave: Leave) -> Error {
        self.reason.send_if_modified(|reason| {
            let wins = match (*reason, leave) {
                (None, _) => true,
                (Some(Leave::Suspended), Leave::Cancelled) => true,
                (Some(now), new) => now.lets_steps_finish() && !new.lets_steps_finish(),
            };
            if wins {
                *reason = Some(leave);
            }
            wins
        });
        self.reason().unwrap_or(leave).error()
    }
}

impl Instance {
    /// Sees whether a cancel or a pause waits, and obeys it. Every other call does so by itself; this is for a long loop
    /// without any.
    ///
    /// # Errors
    /// [`Error::Cancelled`] or [`Error::Suspended`]: leave.
    pub async fn poll(&self) -> Result<(), Error> {
        let leave = self.told(self.server().poll().await)?;
        self.obey(leave).await
    }

    /// Obeys the signal that an answer showed.
    pub(crate) async fn obey(&self, leave: Option<Leave>) -> Result<(), Error> {
        let Some(leave) = leave else {
            return Ok(());
        };
        let error = self.leaving().leave(leave);
        // With other branches at work the answer is given when all of them have come to the end of their step: after
        // it nothing can be saved any more.
        if !self.work().is_split() {
            self.acknowledge().await?;
        }
        Err(error)
    }

    /// Tells the server that this run leaves as it was asked to. Once: what is repeated is only the call.
    pub(crate) async fn acknowledge(&self) -> Result<(), Error> {
        let Some(leave) = self.leaving().reason() else {
            return Ok(());
        };
        if !leave.lets_steps_finish() || self.leaving().acknowledged.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        if leave == Leave::Cancelled {
            return self.said(self.server().acknowledge_cancel().await);
        }
        self.said(self.server().acknowledge_pause().await)?;
        self.said(self.server().suspend().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stands_unless_a_stronger_one_comes() {
        let leaving = Leaving::new();
        assert!(leaving.check().is_ok());
        leaving.leave(Leave::Suspended);
        leaving.leave(Leave::Cancelled);
        assert_eq!(leaving.reason(), Some(Leave::Cancelled));
        leaving.leave(Leave::Suspended);
        assert_eq!(leaving.reason(), Some(Leave::Cancelled));
        leaving.leave(Leave::Superseded);
        leaving.leave(Leave::Ended);
        leaving.leave(Leave::Cancelled);
        assert_eq!(leaving.reason(), Some(Leave::Superseded));
    }
}
