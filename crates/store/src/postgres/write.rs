//! The one statement by which rare changes of an instance are written.
//!
//! A change is decided outside of the database: its row is read, the pure functions of the domain are asked, and what they
//! answer is written if the row is still of the version that was read. Otherwise it is all done again. So a change is two round
//! trips and one commit, and no lock is held while anybody thinks.

use bytes::Bytes;
use runtara_domain::{
    EventKind, InstanceState, NewEvent, ResultChange, Timestamp, Transition, subtype,
};
use runtara_failpoints::{Point, pass};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres};
use uuid::Uuid;

use crate::plan::RecordChange;
use crate::{WaitKey, paging};

use super::connections::{Connections, Fetch as _};
use super::error::{Answer, Fault, Kind, kind};
use super::row;

/// How often a change is decided again because somebody else changed the instance meanwhile.
pub(super) const TRIES: usize = 20;

/// What a change is decided from: the columns of [`Loaded::of`].
macro_rules! loaded_columns {
    () => {
        concat!(
            $crate::postgres::row::state_columns!(),
            ", i.version, i.event_seq, runtara_now() as now"
        )
    };
}
pub(super) use loaded_columns;

/// An instance as it was read, to be changed.
pub(super) struct Loaded {
    pub(super) state: InstanceState,
    pub(super) now: Timestamp,
    version: i64,
    event_seq: i64,
}

impl Loaded {
    /// An instance whose row was just made.
    pub(super) fn made(state: InstanceState, now: Timestamp) -> Self {
        Self {
            state,
            now,
            version: 1,
            event_seq: 0,
        }
    }

    pub(super) fn of(row: &PgRow) -> Answer<Self> {
        Ok(Self {
            state: row::state(row)?,
            now: Timestamp(row::get(row, "now")?),
            version: row::get(row, "version")?,
            event_seq: row::get(row, "event_seq")?,
        })
    }
}

/// A row of the list of checkpoints.
pub(super) struct NewCheckpoint {
    pub(super) checkpoint_id: String,
    /// 0 for a record of a retry.
    pub(super) version: i32,
    pub(super) state: Bytes,
    pub(super) request_id: Option<String>,
}

/// A kept custom signal: its id, and which one of that id.
pub(super) struct SignalPlace {
    pub(super) signal_id: String,
    pub(super) n: i32,
    /// What the call that reads it named itself.
    pub(super) request_id: Option<String>,
}

/// What is written with a new state.
pub(super) struct Write<'a> {
    pub(super) transition: &'a Transition,
    /// What the call named itself, for the event that it recorded.
    pub(super) request_id: Option<&'a str>,
    pub(super) checkpoint: Option<NewCheckpoint>,
    /// A custom signal that is noted as read by the current run.
    pub(super) take: Option<SignalPlace>,
    /// A custom signal that is kept, in place of those of its id that the current run may still read.
    pub(super) send: Option<(SignalPlace, Option<Bytes>)>,
    /// What becomes of the records of waits of a key.
    pub(super) record: Option<(&'a WaitKey, &'a RecordChange)>,
}

impl<'a> Write<'a> {
    pub(super) fn of(transition: &'a Transition) -> Self {
        Self {
            transition,
            request_id: None,
            checkpoint: None,
            take: None,
            send: None,
            record: None,
        }
    }
}

/// The key under which an event is found again by the name that its call gave itself.
pub(super) fn request_key(request_id: &str) -> Vec<u8> {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, request_id.as_bytes())
        .as_bytes()
        .to_vec()
}

/// What is kept of an event by which a step begins or ends, to find the two together.
#[derive(Debug, Default)]
pub(super) struct StepMark {
    /// Step and scope in one.
    pub(super) key: Option<String>,
    /// Whether the step ended with an error.
    pub(super) failed: Option<bool>,
}

impl StepMark {
    pub(super) fn of(event: &NewEvent) -> Self {
        let is_start = event.subtype.as_deref() == Some(subtype::STEP_START);
        let is_end = event.subtype.as_deref() == Some(subtype::STEP_END);
        let is_step = event.kind == EventKind::Custom && (is_start || is_end);
        let Some(step) = event.keys.step_id.as_deref().filter(|_| is_step) else {
            return Self::default();
        };
        let payload = event.payload.as_deref().unwrap_or_default();
        Self {
            key: Some(key_of_step(step, event.keys.scope_id.as_deref())),
            failed: is_end.then(|| paging::is_failed_end(payload)),
        }
    }
}

/// Step and scope as one text, in which neither can be taken for the other and no scope is not the empty one.
fn key_of_step(step: &str, scope: Option<&str>) -> String {
    let scope = scope.map_or_else(|| "-".to_owned(), |scope| format!(":{scope}"));
    format!("{}:{step}{scope}", step.len())
}

type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// Writes a decided change, if the instance is still as it was read. Says whether it was.
///
/// Locks the one row of the instance; everything else follows from it, so two changes of one instance are never half mixed.
pub(super) async fn write(
    connections: &Connections,
    loaded: &Loaded,
    write: &Write<'_>,
) -> Answer<bool> {
    let answer = statement(loaded, write).one_on(connections).await;
    pass(Point::StoreCommitted);
    was_written(answer)
}

/// The same within a transaction.
pub(super) async fn write_in(
    transaction: &mut PgConnection,
    loaded: &Loaded,
    write: &Write<'_>,
) -> Answer<bool> {
    was_written(statement(loaded, write).fetch_one(transaction).await)
}

fn was_written(answer: Result<PgRow, sqlx::Error>) -> Answer<bool> {
    match answer {
        Ok(counted) => Ok(row::get::<i64>(&counted, "count")? == 1),
        // Nothing happened, and what was read is out of date.
        Err(error) if kind(&error) == Kind::Conflict => Ok(false),
        Err(error) => Err(Fault::Database(error)),
    }
}

/// What every change writes: the row, what is recorded of it, and what it ended with. Parameters 1 to 56. The literal is what else is
/// set in the row.
macro_rules! changed {
    ($more:literal) => {
        concat!("with changed as (
             update runtara_instances
                set version = version + 1,
                    status = $3, reason = $4, due_at = $5, waiting_for = $6, live_node = $7, run_number = $8,
                    token_hash = $9, claimed_at = $10, spoke = $11, heartbeat_seen = $12, stored_new = $13,
                    cancel_shown = $14, pause_shown = $15, leave_by = $16, asked_to_leave = $17,
                    held = $18, hold_until = $19, hold_park = $20, slept_ms = $21,
                    cancel_at = $22, cancel_payload = $23, pause_at = $24, pause_payload = $25, resume_pending = $26,
                    crash_count = $27, backoff = $28, interruptions = $29, relaunches = $30,
                    started_at = $31, finished_at = $32, last_seen_at = $33, exit_code = $34,
                    has_error = $35, has_read_signals = $36, cpu_usec = $37, memory_peak_bytes = $38, running_ms = $39,
                    event_seq = event_seq + cardinality($41::text[])", $more, "
              where instance_id = $1 and version = $2
          returning instance_id
         ),
         recorded as (
             insert into runtara_events
                    (instance_id, seq, kind, subtype, checkpoint_id, payload, created_at, run_number,
                     scope_id, parent_scope_id, step_id, step_type, step_key, step_failed, request_key)
             select instance_id, $53 + e.n, e.kind, e.subtype, e.checkpoint_id, e.payload, $40, $8,
                    e.scope_id, e.parent_scope_id, e.step_id, e.step_type, e.step_key, e.step_failed, e.request_key
               from changed,
                    unnest($41::text[], $42::text[], $43::text[], $44::bytea[], $45::text[], $46::text[], $47::text[],
                           $48::text[], $49::text[], $50::bytea[], $51::boolean[]) with ordinality
                    as e (kind, subtype, checkpoint_id, payload, scope_id, parent_scope_id, step_id, step_type, step_key,
                          request_key, step_failed, n)
         ),
         ended as (
             insert into runtara_instance_results as r (instance_id, output, error, stderr)
             select instance_id, $54, $55, $56 from changed where $52 <> 'keep' or $56 is not null
             on conflict (instance_id) do update
                set output = case $52 when 'keep' then r.output else excluded.output end,
                    error = case $52 when 'keep' then r.error else excluded.error end,
                    stderr = coalesce(excluded.stderr, r.stderr)
         ),
")
    };
}

macro_rules! plain {
    ($more:literal) => {
        concat!(
            changed!($more),
            "         dropped as (
             delete from runtara_signals s using changed
              where s.instance_id = changed.instance_id
                and ($57 or s.read_by = $58)
         )
         select count(*) from changed"
        )
    };
}

/// A change that brings nothing of its own. Each part of a statement costs the server time, also where there is nothing for it to do.
const PLAIN: &str = plain!("");
/// The same with a change of status, whose time is counted. Parameters 59 to 62 besides.
const PLAIN_TIMED: &str = plain!(
    ",
                    status_since = $59, pending_time_ms = $60, running_time_ms = $61, suspended_time_ms = $62"
);

macro_rules! whole {
    ($more:literal) => {
        concat!(
            changed!($more),
            "         saved as (
             insert into runtara_checkpoints
                    (instance_id, seq, checkpoint_id, version, state, size, created_at, run_number, request_id)
             select instance_id, nextval('runtara_checkpoint_seq'), c.checkpoint_id, c.version, c.state, length(c.state), $40, $8, c.request_id
               from changed,
                    unnest($59::text[], $60::integer[], $61::bytea[], $62::text[])
                    as c (checkpoint_id, version, state, request_id)
         ),
         dropped as (
             delete from runtara_signals s using changed
              where s.instance_id = changed.instance_id
                and ($57 or s.read_by = $58 or (s.signal_id = $66 and coalesce(s.read_by < $8, true)))
         ),
         taken as (
             update runtara_signals s set read_by = $8, read_request = $65 from changed
              where s.instance_id = changed.instance_id and s.signal_id = $63 and s.n = $64
         ),
         sent as (
             insert into runtara_signals (instance_id, signal_id, n, payload)
             select instance_id, $66, $67, $68 from changed where $66 is not null
         ),
         waited as (
             insert into runtara_waits (instance_id, kind, key, n, until, state_hash, met_by, request_id)
             select instance_id, $70, $71, $72, $73, $74, $8, $75 from changed where $69 = 'insert'
         ),
         met as (
             update runtara_waits w set met_by = $8, request_id = $75 from changed
              where $69 = 'met' and w.instance_id = changed.instance_id and w.kind = $70 and w.key = $71 and w.n = $72
         )
         select count(*) from changed"
        )
    };
}

/// A change with a checkpoint, a custom signal or a wait.
const WHOLE: &str = whole!("");
/// The same with a change of status, whose time is counted. Parameters 76 to 79 besides.
const WHOLE_TIMED: &str = whole!(
    ",
                    status_since = $76, pending_time_ms = $77, running_time_ms = $78, suspended_time_ms = $79"
);

fn statement<'q>(loaded: &Loaded, write: &Write<'_>) -> Statement<'q> {
    let plain = write.checkpoint.is_none()
        && write.take.is_none()
        && write.send.is_none()
        && matches!(write.record, None | Some((_, RecordChange::None)));
    let state = &write.transition.state;
    let timed = state.status != loaded.state.status;
    let statement = sqlx::query(match (plain, timed) {
        (true, false) => PLAIN,
        (true, true) => PLAIN_TIMED,
        (false, false) => WHOLE,
        (false, true) => WHOLE_TIMED,
    });
    let statement = bind_state(statement, loaded, state);
    let statement = bind_events(statement, loaded, write);
    let statement = bind_result(statement, loaded, write.transition);
    let statement = bind_confirmed(statement, write.transition);
    let statement = if plain {
        statement
    } else {
        let statement = bind_checkpoint(statement, write.checkpoint.as_ref());
        let statement = bind_signals(statement, write);
        bind_record(statement, write.record)
    };
    if timed {
        bind_time_in_states(statement, state)
    } else {
        statement
    }
}

fn millis(time: Option<Timestamp>) -> Option<i64> {
    time.map(|time| time.0)
}

/// Parameters 1 to 39.
fn bind_state<'q>(
    statement: Statement<'q>,
    loaded: &Loaded,
    state: &InstanceState,
) -> Statement<'q> {
    let run = &state.run;
    let (pending, attempts, usage) = (&state.pending, &state.attempts, &state.usage);
    let hold = run.hold.as_ref();
    let payload = |signal: &Option<runtara_domain::PendingSignal>| {
        let payload = signal.as_ref().and_then(|signal| signal.payload.as_deref());
        payload.map(<[u8]>::to_vec)
    };
    let at = |signal: &Option<runtara_domain::PendingSignal>| signal.as_ref().map(|s| s.at.0);
    statement
        .bind(state.instance_id.as_str().to_owned())
        .bind(loaded.version)
        .bind(state.status.as_str())
        .bind(state.reason.map(runtara_domain::Reason::as_str))
        .bind(millis(state.due_at))
        .bind(state.waiting_for.as_ref().map(|id| id.as_str().to_owned()))
        .bind(state.live_node.map(|node| node.to_string()))
        .bind(row::stored_small(state.run_number.0))
        .bind(run.token.map(|token| token.0.to_vec()))
        .bind(millis(run.claimed_at))
        .bind(run.spoke)
        .bind(run.heartbeat_seen)
        .bind(run.stored_new)
        .bind(run.cancel_shown)
        .bind(run.pause_shown)
        .bind(millis(run.leave_by))
        .bind(run.asked_to_leave)
        .bind(hold.is_some())
        .bind(millis(hold.and_then(|hold| hold.until)))
        .bind(hold.is_some_and(|hold| hold.park))
        .bind(row::signed(run.slept_ms))
        .bind(at(&pending.cancel))
        .bind(payload(&pending.cancel))
        .bind(at(&pending.pause))
        .bind(payload(&pending.pause))
        .bind(pending.resume)
        .bind(row::stored_small(attempts.crash_count))
        .bind(row::stored_small(attempts.backoff))
        .bind(row::stored_small(attempts.interruptions))
        .bind(row::stored_small(attempts.relaunches))
        .bind(millis(state.started_at))
        .bind(millis(state.finished_at))
        .bind(millis(state.last_seen_at))
        .bind(state.exit_code)
        .bind(state.has_error)
        .bind(state.has_read_signals)
        .bind(row::signed(usage.cpu_usec))
        .bind(row::signed(usage.memory_peak_bytes))
        .bind(row::signed(usage.running_ms))
}

/// Parameters 40 to 51.
fn bind_events<'q>(statement: Statement<'q>, loaded: &Loaded, write: &Write<'_>) -> Statement<'q> {
    let events = &write.transition.events;
    let key = write.request_id.map(request_key);
    let texts = |part: fn(&NewEvent) -> Option<&str>| {
        let stored = |text| row::without_nul(text).into_owned();
        let texts = events.iter().map(|event| part(event).map(stored));
        texts.collect::<Vec<_>>()
    };
    let payloads: Vec<Option<Vec<u8>>> = events
        .iter()
        .map(|event| event.payload.as_deref().map(<[u8]>::to_vec))
        .collect();
    let kinds: Vec<&'static str> = events.iter().map(|event| event.kind.as_str()).collect();
    let (step_keys, failed): (Vec<_>, Vec<_>) = events
        .iter()
        .map(StepMark::of)
        .map(|mark| (mark.key, mark.failed))
        .unzip();
    statement
        .bind(loaded.now.0)
        .bind(kinds)
        .bind(texts(|event| event.subtype.as_deref()))
        .bind(texts(|event| {
            event.checkpoint_id.as_ref().map(AsRef::as_ref)
        }))
        .bind(payloads)
        .bind(texts(|event| event.keys.scope_id.as_deref()))
        .bind(texts(|event| event.keys.parent_scope_id.as_deref()))
        .bind(texts(|event| event.keys.step_id.as_deref()))
        .bind(texts(|event| event.keys.step_type.as_deref()))
        .bind(step_keys)
        .bind(vec![key; events.len()])
        .bind(failed)
}

/// Parameters 52 to 56.
fn bind_result<'q>(
    statement: Statement<'q>,
    loaded: &Loaded,
    transition: &Transition,
) -> Statement<'q> {
    let (action, output, error) = match &transition.result {
        ResultChange::Keep => ("keep", None, None),
        ResultChange::Clear => ("clear", None, None),
        ResultChange::Set { output, error } => ("set", output.as_deref(), error.clone()),
    };
    statement
        .bind(action)
        .bind(loaded.event_seq)
        .bind(output.map(<[u8]>::to_vec))
        .bind(error.map(|text| row::without_nul(&text).into_owned()))
        .bind(
            transition
                .stderr
                .as_deref()
                .map(|text| row::without_nul(text).into_owned()),
        )
}

/// Parameters 59 to 62.
fn bind_checkpoint<'q>(
    statement: Statement<'q>,
    checkpoint: Option<&NewCheckpoint>,
) -> Statement<'q> {
    let rows = checkpoint.as_slice();
    let ids: Vec<String> = rows.iter().map(|row| row.checkpoint_id.clone()).collect();
    let versions: Vec<i32> = rows.iter().map(|row| row.version).collect();
    let states: Vec<Vec<u8>> = rows.iter().map(|row| row.state.to_vec()).collect();
    let requests: Vec<Option<String>> = rows.iter().map(|row| row.request_id.clone()).collect();
    statement
        .bind(ids)
        .bind(versions)
        .bind(states)
        .bind(requests)
}

/// Parameters 57 and 58.
fn bind_confirmed<'q>(statement: Statement<'q>, transition: &Transition) -> Statement<'q> {
    let confirmed = transition
        .confirm_read_signals
        .then_some(row::stored_small(transition.state.run_number.0));
    statement.bind(transition.clear_signals).bind(confirmed)
}

/// Parameters 63 to 68.
fn bind_signals<'q>(statement: Statement<'q>, write: &Write<'_>) -> Statement<'q> {
    let take = write.take.as_ref();
    let (sent, payload) = match &write.send {
        Some((place, payload)) => (Some(place), payload.as_deref()),
        None => (None, None),
    };
    statement
        .bind(take.map(|place| place.signal_id.clone()))
        .bind(take.map(|place| place.n))
        .bind(take.and_then(|place| place.request_id.clone()))
        .bind(sent.map(|place| place.signal_id.clone()))
        .bind(sent.map(|place| place.n))
        .bind(payload.map(<[u8]>::to_vec))
}

/// Parameters 69 to 75.
fn bind_record<'q>(
    statement: Statement<'q>,
    record: Option<(&WaitKey, &RecordChange)>,
) -> Statement<'q> {
    let (kind, key) = match record {
        Some((key @ WaitKey::Sleep(_), _)) => ("sleep", key.as_str()),
        Some((key @ WaitKey::Signal(_), _)) => ("signal", key.as_str()),
        None => ("sleep", ""),
    };
    let (action, n, until, hash, request_id) = match record.map(|(_, change)| change) {
        None | Some(RecordChange::None) => ("none", 0, None, None, None),
        Some(RecordChange::Insert(new)) => (
            "insert",
            new.n,
            new.until,
            Some(new.state_hash.to_vec()),
            new.request_id.clone(),
        ),
        Some(RecordChange::Met { n, request_id }) => ("met", *n, None, None, request_id.clone()),
    };
    statement
        .bind(action)
        .bind(kind)
        .bind(key.to_owned())
        .bind(row::stored_small(n))
        .bind(millis(until))
        .bind(hash)
        .bind(request_id)
}

/// Parameters 59 to 62, or 76 to 79.
fn bind_time_in_states<'q>(statement: Statement<'q>, state: &InstanceState) -> Statement<'q> {
    let spent = &state.time_in_states;
    statement
        .bind(state.status_since.0)
        .bind(row::signed(spent.pending_ms))
        .bind(row::signed(spent.running_ms))
        .bind(row::signed(spent.suspended_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_steps_do_not_meet() {
        let keys = [
            key_of_step("", None),
            key_of_step("", Some("")),
            key_of_step("a", Some("b")),
            key_of_step("a:b", None),
            key_of_step("a:b", Some("-")),
            key_of_step("a", Some("b-")),
            key_of_step("-", None),
        ];
        let different: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len(), "{keys:?}");
    }
}
