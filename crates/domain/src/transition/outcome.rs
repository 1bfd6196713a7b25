//! What decisions make of a state, and what they leave to be recorded.

use bytes::Bytes;
use serde_json::json;

use super::{ResultChange, Transition};
use crate::{
    EventKind, InstanceState, NewEvent, Pending, Reason, Status, Timestamp, limits, subtype, tail,
};

impl Transition {
    pub(super) fn of(state: InstanceState) -> Self {
        Self {
            state,
            events: Vec::new(),
            result: ResultChange::Keep,
            stderr: None,
            clear_signals: false,
            confirm_read_signals: false,
            applied: true,
        }
    }

    pub(super) fn unchanged(state: &InstanceState) -> Self {
        Self {
            applied: false,
            ..Self::of(state.clone())
        }
    }

    pub(super) fn record(mut self, event: NewEvent) -> Self {
        self.events.push(event);
        self
    }

    pub(super) fn end(mut self, status: Status, reason: Reason, now: Timestamp) -> Self {
        let state = &mut self.state;
        state.status = status;
        state.reason = Some(reason);
        state.finished_at = Some(now);
        state.due_at = None;
        state.waiting_for = None;
        state.pending = Pending::default();
        state.has_read_signals = false;
        self.clear_signals = true;
        self
    }

    pub(super) fn suspend(mut self, reason: Option<Reason>, due_at: Option<Timestamp>) -> Self {
        let state = &mut self.state;
        state.status = Status::Suspended;
        state.reason = reason;
        state.due_at = due_at;
        state.waiting_for = None;
        state.pending = Pending::default();
        self
    }

    /// Gives the process of the run, if there is one, this long to leave.
    pub(super) fn leave_within(mut self, millis: u64, now: Timestamp) -> Self {
        let run = &mut self.state.run;
        run.hold = None;
        if self.state.live_node.is_some() {
            let by = now.plus_millis(millis);
            run.leave_by = Some(run.leave_by.map_or(by, |earlier| earlier.min(by)));
        }
        self
    }

    pub(super) fn set_result(mut self, output: Option<Bytes>, error: Option<String>) -> Self {
        self.state.has_error = error.is_some();
        self.result = ResultChange::Set { output, error };
        self
    }

    pub(super) fn complete(self, output: Option<Bytes>, now: Timestamp) -> Self {
        let event = NewEvent::with_payload(EventKind::Completed, output.clone());
        self.end(Status::Completed, Reason::Completed, now)
            .set_result(output, None)
            .record(event)
    }

    pub(super) fn fail(self, reason: Reason, error: &str, now: Timestamp) -> Self {
        let error = tail(error, limits::ERROR_BYTES);
        let payload = Bytes::from(error.clone().into_bytes());
        let event = NewEvent::with_payload(EventKind::Failed, Some(payload));
        self.end(Status::Failed, reason, now)
            .set_result(None, Some(error))
            .record(event)
    }

    pub(super) fn cancel(self, now: Timestamp) -> Self {
        let run = self.state.run_number.0;
        self.end(Status::Cancelled, Reason::Cancelled, now)
            .record(NewEvent::by_server(
                subtype::CANCELLED,
                &json!({ "run": run }),
            ))
    }

    /// Suspends at the program's own wish or for a pause, due at once if a resume has already come.
    pub(super) fn pause(self, now: Timestamp) -> Self {
        let due = self.state.pending.resume.then_some(now);
        let reason = due.is_none().then_some(Reason::Paused);
        self.suspend(reason, due)
            .record(NewEvent::plain(EventKind::Suspended))
    }
}
