//! What one change of an instance writes.

use std::sync::Arc;

use bytes::Bytes;
use runtara_domain::{
    CheckpointId, EventKind, NewEvent, ResultChange, ScopeKeys, Timestamp, Transition, WaitKind,
    subtype,
};

use super::sql::Sql;
use super::state::{Changes, Loaded, place};
use super::tx::{After, Tx};
use crate::paging::is_failed_end;
use crate::plan::RecordChange;
use crate::{StoreResult, WaitKey};

/// Everything that one change of one instance writes, put together.
pub(super) struct Write<'a> {
    found: &'a Loaded,
    next: Transition,
    now: Timestamp,
    events: i64,
    checkpoints: i64,
    sql: Sql,
}

impl<'a> Write<'a> {
    /// Begins with what a transition asks for. Signals that were read before are confirmed first, so that one which this
    /// same change takes stays.
    pub(super) fn new(found: &'a Loaded, next: Transition, now: Timestamp) -> Self {
        let mut write = Self {
            events: found.events,
            checkpoints: found.checkpoints,
            found,
            now,
            sql: Sql::default(),
            next,
        };
        write.signals();
        write.result();
        for event in std::mem::take(&mut write.next.events) {
            write.event(&event, None);
        }
        write
    }

    fn signals(&mut self) {
        if self.next.clear_signals {
            self.sql
                .then("delete from runtara_signals where instance = ?")
                .bind(self.found.id);
        } else if self.next.confirm_read_signals {
            self.sql
                .then("delete from runtara_signals where instance = ? and read_by = ?")
                .bind(self.found.id)
                .bind(self.next.state.run_number.0);
        }
    }

    fn result(&mut self) {
        match &self.next.result {
            ResultChange::Keep => {}
            ResultChange::Clear => {
                self.sql
                    .then(
                        "update runtara_results set output = null, error = null where instance = ?",
                    )
                    .bind(self.found.id);
            }
            ResultChange::Set { output, error } => {
                self.sql
                    .then(
                        "insert into runtara_results (instance, output, error) values (?, ?, ?) \
                         on conflict (instance) do update \
                         set output = excluded.output, error = excluded.error",
                    )
                    .bind(self.found.id)
                    .bind_bytes(output.as_ref())
                    .bind(error.as_deref());
            }
        }
        if let Some(stderr) = &self.next.stderr {
            self.sql
                .then(
                    "insert into runtara_results (instance, stderr) values (?, ?) \
                     on conflict (instance) do update set stderr = excluded.stderr",
                )
                .bind(self.found.id)
                .bind(stderr.as_str());
        }
    }

    /// Appends an event.
    pub(super) fn event(&mut self, event: &NewEvent, request_id: Option<&str>) {
        self.events += 1;
        let place = place(self.found.id, self.events);
        let payload = event.payload.as_ref();
        let is_text = payload.is_some_and(|payload| std::str::from_utf8(payload).is_ok());
        let keys = &event.keys;
        self.sql
            .then(
                "insert into runtara_events (place, instance, kind, subtype, checkpoint_id, \
                 created_at, run_number, request_id, scope_id, parent_scope_id, is_text, payload) \
                 values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(place)
            .bind(self.found.id)
            .bind(event.kind.as_str())
            .bind(event.subtype.as_deref())
            .bind(event.checkpoint_id.as_ref().map(CheckpointId::as_str))
            .bind_time(self.now)
            .bind(self.next.state.run_number.0)
            .bind(request_id)
            .bind(keys.scope_id.as_deref())
            .bind(keys.parent_scope_id.as_deref())
            .bind(i64::from(is_text))
            .bind_bytes(payload);
        if event.kind == EventKind::Custom {
            let step_id = keys.step_id.as_deref();
            match (event.subtype.as_deref(), step_id) {
                (Some(subtype::STEP_START), Some(step_id)) => self.step_began(place, step_id, keys),
                (Some(subtype::STEP_END), Some(step_id)) => {
                    let failed = payload.is_some_and(|payload| is_failed_end(payload));
                    self.step_ended(place, step_id, keys.scope_id.as_deref(), failed);
                }
                _ => {}
            }
        }
    }

    fn step_began(&mut self, place: i64, step_id: &str, keys: &ScopeKeys) {
        self.sql
            .then(
                "insert into runtara_steps (place, instance, step_id, scope_id, parent_scope_id, \
                 step_type, status) values (?, ?, ?, ?, ?, ?, 'running')",
            )
            .bind(place)
            .bind(self.found.id)
            .bind(step_id)
            .bind(keys.scope_id.as_deref())
            .bind(keys.parent_scope_id.as_deref())
            .bind(keys.step_type.as_deref());
    }

    /// Notes the end with the newest step of these keys, unless that has one.
    fn step_ended(&mut self, place: i64, step_id: &str, scope_id: Option<&str>, failed: bool) {
        let status = if failed { "failed" } else { "completed" };
        self.sql
            .then(
                "update runtara_steps set status = ?, end_place = ? \
                 where end_place is null and place = (select max(place) from runtara_steps \
                 where instance = ? and step_id = ? and scope_id is ?)",
            )
            .bind(status)
            .bind(place)
            .bind(self.found.id)
            .bind(step_id)
            .bind(scope_id);
    }

    /// Stores a state under a name.
    pub(super) fn checkpoint(
        &mut self,
        name: &str,
        version: i64,
        state: &Bytes,
        request_id: Option<&str>,
    ) {
        self.checkpoints += 1;
        let size = i64::try_from(state.len()).unwrap_or(i64::MAX);
        self.sql
            .then(
                "insert into runtara_checkpoints (place, instance, checkpoint_id, version, \
                 created_at, run_number, size, request_id, state) \
                 values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(place(self.found.id, self.checkpoints))
            .bind(self.found.id)
            .bind(name)
            .bind(version)
            .bind_time(self.now)
            .bind(self.next.state.run_number.0)
            .bind(size)
            .bind(request_id)
            .bind(state.clone());
    }

    /// Notes that a call of the current run has read a custom signal.
    pub(super) fn take_signal(&mut self, signal_id: &str, n: i64, request_id: Option<&str>) {
        self.sql
            .then(
                "update runtara_signals set read_by = ?, read_request = ? \
                 where instance = ? and signal_id = ? and n = ?",
            )
            .bind(self.next.state.run_number.0)
            .bind(request_id)
            .bind(self.found.id)
            .bind(signal_id)
            .bind(n);
    }

    /// Keeps a custom signal, in place of those of the same id that the current run has not read.
    pub(super) fn keep_signal(&mut self, signal_id: &str, payload: Option<&Bytes>) {
        self.sql
            .then(
                "delete from runtara_signals where instance = ? and signal_id = ? \
                 and (read_by is null or read_by < ?)",
            )
            .bind(self.found.id)
            .bind(signal_id)
            .bind(self.next.state.run_number.0)
            .then(
                "insert into runtara_signals (instance, signal_id, n, payload) \
                 select ?, ?, coalesce(max(n), 0) + 1, ? from runtara_signals \
                 where instance = ? and signal_id = ?",
            )
            .bind(self.found.id)
            .bind(signal_id)
            .bind_bytes(payload)
            .bind(self.found.id)
            .bind(signal_id);
    }

    /// Writes what becomes of the records of a wait.
    pub(super) fn wait_record(&mut self, key: &WaitKey, kind: WaitKind, change: &RecordChange) {
        match change {
            RecordChange::None => {}
            RecordChange::Insert(record) => {
                self.sql
                    .then(
                        "insert into runtara_waits (instance, kind, key, n, until, state_hash, \
                         met_by, request_id) values (?, ?, ?, ?, ?, ?, ?, ?)",
                    )
                    .bind(self.found.id)
                    .bind(kind.as_str())
                    .bind(key.as_str())
                    .bind(record.n)
                    .bind_opt_time(record.until)
                    .bind(record.state_hash)
                    .bind(record.met_by.0)
                    .bind(record.request_id.as_deref());
            }
            RecordChange::Met { n, request_id } => {
                self.sql
                    .then(
                        "update runtara_waits set met_by = ?, request_id = ? \
                         where instance = ? and kind = ? and key = ? and n = ?",
                    )
                    .bind(self.next.state.run_number.0)
                    .bind(request_id.as_deref())
                    .bind(self.found.id)
                    .bind(kind.as_str())
                    .bind(key.as_str())
                    .bind(*n);
            }
        }
    }

    /// Runs what was put together. Answers with what the instance is after it.
    pub(super) fn run(mut self, tx: &mut Tx) -> StoreResult<Arc<Loaded>> {
        let (old, new) = (&self.found.state, &self.next.state);
        let mut changes = Changes {
            sql: &mut self.sql,
            any: false,
        };
        changes.state(old, new);
        changes.int("events_recorded", self.found.events, self.events);
        changes.int(
            "checkpoints_saved",
            self.found.checkpoints,
            self.checkpoints,
        );
        if changes.any {
            self.sql.push(" where id = ?").bind(self.found.id);
        }
        if old.status != new.status {
            tx.moved(old.status, new);
        }
        tx.execute(self.sql)?;
        let written = tx.wrote(Loaded {
            id: self.found.id,
            state: self.next.state,
            events: self.events,
            checkpoints: self.checkpoints,
        });
        if self.next.applied {
            tx.nudge_after(After::Changed(Arc::clone(&written)));
        }
        Ok(written)
    }
}
