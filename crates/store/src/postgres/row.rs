//! Rows as domain values, and back.

use std::borrow::Cow;

use bytes::Bytes;
use runtara_domain::{
    Attempts, CheckpointId, Hold, IdError, ImageDigest, ImageId, ImageName, ImageRecord,
    InstanceId, InstanceState, Labels, NodeId, Origin, Pending, PendingSignal, Reason, RunMarks,
    RunNumber, SignalId, Status, TenantId, TimeInStates, Timestamp, TokenHash, UnknownWord, Usage,
};
use sqlx::postgres::PgRow;
use sqlx::{Decode, Postgres, Row as _, Type};

use super::error::{Answer, Fault};

/// The columns of [`state`], of a table or alias `i`.
macro_rules! state_columns {
    () => {
        concat!("i.instance_id, i.tenant_id, i.image_id, i.origin::text as origin, i.status::text as status,
         i.reason::text as reason, i.due_at, i.waiting_for, i.live_node,
         i.run_number, i.token_hash, i.claimed_at, i.spoke, i.heartbeat_seen, i.stored_new, i.cancel_shown, i.pause_shown,
         i.leave_by, i.asked_to_leave, i.held, i.hold_until, i.hold_park, i.slept_ms, i.cancel_at, i.cancel_payload,
         i.pause_at, i.pause_payload, i.resume_pending, i.crash_count, i.max_attempts, i.backoff, i.interruptions,
         i.relaunches, i.timeout_ms, i.request_timeout_ms, i.created_at, i.started_at, i.finished_at, i.last_seen_at,
         ", $crate::postgres::row::last_checkpoint!(), " as checkpoint_id, i.exit_code, i.has_error, i.has_read_signals, i.cpu_usec, i.memory_peak_bytes, i.running_ms,
         coalesce(i.status_since, i.created_at) as status_since, i.pending_time_ms, i.running_time_ms, i.suspended_time_ms,
         i.heartbeat_timeout_ms, i.expires_at")
    };
}
pub(super) use state_columns;

/// Whether the last sign of life of an instance `i` is so young that another need not be noted. `5000` is
/// [`runtara_domain::limits::SIGN_OF_LIFE_MS`].
macro_rules! just_seen {
    () => {
        "i.last_seen_at > runtara_now() - 5000"
    };
}
pub(super) use just_seen;

/// The name of the checkpoint that an instance `i` saved last, along the primary key of the checkpoints.
macro_rules! last_checkpoint {
    () => {
        "(select c.checkpoint_id from runtara_checkpoints c
           where c.instance_id = i.instance_id and c.version > 0
           order by c.seq desc limit 1)"
    };
}
pub(super) use last_checkpoint;

/// The columns of [`image`], of a table or alias `m`.
macro_rules! image_columns {
    () => {
        "m.image_id, m.tenant_id, m.name, m.description, m.kind::text as kind, m.digest, m.base, m.size, m.metadata, m.created_at, m.current,
         m.settings as image_settings, m.container,
         (select json_object_agg(l.key, l.value)::text
            from runtara_image_labels l where l.image_id = m.image_id) as labels"
    };
}
pub(super) use image_columns;

/// A text as it can be stored: PostgreSQL's holds no NUL, and what programs print or name may.
pub(super) fn without_nul(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// A column of a row.
pub(super) fn get<'r, T>(row: &'r PgRow, column: &str) -> Answer<T>
where
    T: Decode<'r, Postgres> + Type<Postgres>,
{
    Ok(row.try_get(column)?)
}

fn stored(what: impl std::fmt::Display) -> Fault {
    Fault::Stored(what.to_string())
}

impl From<IdError> for Fault {
    fn from(error: IdError) -> Self {
        stored(error)
    }
}

impl From<UnknownWord> for Fault {
    fn from(error: UnknownWord) -> Self {
        stored(error)
    }
}

/// A number that is stored with a sign and has none.
pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A number without a sign as it is stored; the largest there is where it would not fit.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A small number that is stored with a sign and has none.
pub(super) fn small(value: i32) -> u32 {
    u32::try_from(value).unwrap_or(0)
}

/// A small number without a sign as it is stored.
pub(super) fn stored_small(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

pub(super) fn time(row: &PgRow, column: &str) -> Answer<Option<Timestamp>> {
    Ok(get::<Option<i64>>(row, column)?.map(Timestamp))
}

pub(super) fn bytes(row: &PgRow, column: &str) -> Answer<Option<Bytes>> {
    Ok(get::<Option<Vec<u8>>>(row, column)?.map(Bytes::from))
}

pub(super) fn count(row: &PgRow, column: &str) -> Answer<u32> {
    Ok(small(get(row, column)?))
}

pub(super) fn run_number(row: &PgRow, column: &str) -> Answer<RunNumber> {
    Ok(RunNumber(count(row, column)?))
}

pub(super) fn token(row: &PgRow, column: &str) -> Answer<Option<TokenHash>> {
    let bytes: Option<&[u8]> = get(row, column)?;
    bytes
        .map(|bytes| bytes.try_into().map(TokenHash).map_err(stored))
        .transpose()
}

pub(super) fn status(row: &PgRow) -> Answer<Status> {
    Ok(get::<&str>(row, "status")?.parse()?)
}

pub(super) fn reason(row: &PgRow) -> Answer<Option<Reason>> {
    let word: Option<&str> = get(row, "reason")?;
    Ok(word.map(str::parse).transpose()?)
}

pub(super) fn node(row: &PgRow, column: &str) -> Answer<Option<NodeId>> {
    let text: Option<&str> = get(row, column)?;
    Ok(text.map(str::parse).transpose()?)
}

pub(super) fn image_id(row: &PgRow) -> Answer<Option<ImageId>> {
    let text: Option<&str> = get(row, "image_id")?;
    Ok(text.map(ImageId::new).transpose()?)
}

pub(super) fn instance_id(row: &PgRow) -> Answer<InstanceId> {
    Ok(InstanceId::new(get::<&str>(row, "instance_id")?)?)
}

pub(super) fn tenant_id(row: &PgRow) -> Answer<TenantId> {
    Ok(TenantId::new(get::<&str>(row, "tenant_id")?)?)
}

pub(super) fn checkpoint_id(row: &PgRow) -> Answer<Option<CheckpointId>> {
    let text: Option<&str> = get(row, "checkpoint_id")?;
    Ok(text.map(CheckpointId::new).transpose()?)
}

/// Labels as the database puts them together: a JSON object, or nothing.
pub(super) fn labels(row: &PgRow) -> Answer<Labels> {
    match get::<Option<&str>>(row, "labels")? {
        None => Ok(Labels::default()),
        Some(text) => serde_json::from_str(text).map_err(stored),
    }
}

/// A value that is stored as JSON text; its default where nothing is stored.
pub(super) fn json<T: serde::de::DeserializeOwned + Default>(
    row: &PgRow,
    column: &str,
) -> Answer<T> {
    match get::<Option<&str>>(row, column)? {
        None => Ok(T::default()),
        Some(text) => serde_json::from_str(text).map_err(stored),
    }
}

/// The JSON text of a value; nothing for one that is empty.
pub(super) fn json_text(value: &impl serde::Serialize, is_empty: bool) -> Answer<Option<String>> {
    let text = (!is_empty).then(|| serde_json::to_string(value));
    text.transpose().map_err(stored)
}

fn signal(row: &PgRow, at: &str, payload: &str) -> Answer<Option<PendingSignal>> {
    let Some(at) = time(row, at)? else {
        return Ok(None);
    };
    let payload = bytes(row, payload)?;
    Ok(Some(PendingSignal { payload, at }))
}

/// The instance-wide signals that wait.
pub(super) fn pending(row: &PgRow) -> Answer<Pending> {
    Ok(Pending {
        cancel: signal(row, "cancel_at", "cancel_payload")?,
        pause: signal(row, "pause_at", "pause_payload")?,
        resume: get(row, "resume_pending")?,
    })
}

fn marks(row: &PgRow) -> Answer<RunMarks> {
    let hold = if get(row, "held")? {
        Some(Hold {
            until: time(row, "hold_until")?,
            park: get(row, "hold_park")?,
        })
    } else {
        None
    };
    Ok(RunMarks {
        token: token(row, "token_hash")?,
        claimed_at: time(row, "claimed_at")?,
        spoke: get(row, "spoke")?,
        heartbeat_seen: get(row, "heartbeat_seen")?,
        stored_new: get(row, "stored_new")?,
        cancel_shown: get(row, "cancel_shown")?,
        pause_shown: get(row, "pause_shown")?,
        leave_by: time(row, "leave_by")?,
        asked_to_leave: get(row, "asked_to_leave")?,
        hold,
        slept_ms: unsigned(get(row, "slept_ms")?),
    })
}

/// Who brought an instance to life, as it is stored.
pub(super) fn origin_word(origin: Origin) -> &'static str {
    match origin {
        Origin::Launched => "launched",
        Origin::SelfRegistered => "self_registered",
    }
}

/// The state of an instance, from the columns of `state_columns!`.
pub(super) fn state(row: &PgRow) -> Answer<InstanceState> {
    let waiting_for: Option<&str> = get(row, "waiting_for")?;
    Ok(InstanceState {
        instance_id: instance_id(row)?,
        tenant_id: tenant_id(row)?,
        image_id: image_id(row)?,
        origin: match get(row, "origin")? {
            "launched" => Origin::Launched,
            _ => Origin::SelfRegistered,
        },
        status: status(row)?,
        status_since: Timestamp(get(row, "status_since")?),
        reason: reason(row)?,
        due_at: time(row, "due_at")?,
        waiting_for: waiting_for.map(SignalId::new).transpose()?,
        live_node: node(row, "live_node")?,
        run_number: run_number(row, "run_number")?,
        run: marks(row)?,
        pending: pending(row)?,
        attempts: Attempts {
            crash_count: count(row, "crash_count")?,
            max_attempts: get::<Option<i32>>(row, "max_attempts")?.map(small),
            backoff: count(row, "backoff")?,
            interruptions: count(row, "interruptions")?,
            relaunches: count(row, "relaunches")?,
        },
        timeout_ms: unsigned(get(row, "timeout_ms")?),
        request_timeout_ms: get::<Option<i64>>(row, "request_timeout_ms")?.map(unsigned),
        heartbeat_timeout_ms: get::<Option<i64>>(row, "heartbeat_timeout_ms")?.map(unsigned),
        expires_at: time(row, "expires_at")?,
        created_at: Timestamp(get(row, "created_at")?),
        started_at: time(row, "started_at")?,
        finished_at: time(row, "finished_at")?,
        last_seen_at: time(row, "last_seen_at")?,
        checkpoint_id: checkpoint_id(row)?,
        exit_code: get(row, "exit_code")?,
        has_error: get(row, "has_error")?,
        has_read_signals: get(row, "has_read_signals")?,
        usage: Usage {
            cpu_usec: unsigned(get(row, "cpu_usec")?),
            memory_peak_bytes: unsigned(get(row, "memory_peak_bytes")?),
            running_ms: unsigned(get(row, "running_ms")?),
        },
        time_in_states: TimeInStates {
            pending_ms: unsigned(get(row, "pending_time_ms")?),
            running_ms: unsigned(get(row, "running_time_ms")?),
            suspended_ms: unsigned(get(row, "suspended_time_ms")?),
        },
    })
}

/// An image, from the columns of `image_columns!`.
pub(super) fn image(row: &PgRow) -> Answer<ImageRecord> {
    let digest: &[u8] = get(row, "digest")?;
    let base: Option<&[u8]> = get(row, "base")?;
    Ok(ImageRecord {
        image_id: ImageId::new(get::<&str>(row, "image_id")?)?,
        tenant_id: tenant_id(row)?,
        name: ImageName::new(get::<&str>(row, "name")?)?,
        description: get(row, "description")?,
        kind: get::<&str>(row, "kind")?.parse()?,
        digest: digest.try_into().map(ImageDigest).map_err(stored)?,
        base: base
            .map(|base| base.try_into().map(ImageDigest).map_err(stored))
            .transpose()?,
        size: unsigned(get(row, "size")?),
        metadata: get(row, "metadata")?,
        labels: labels(row)?,
        settings: json(row, "image_settings")?,
        container: get(row, "container")?,
        created_at: Timestamp(get(row, "created_at")?),
        current: get(row, "current")?,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_condition_knows_how_long_a_sign_of_life_counts() {
        let written = format!("- {}", runtara_domain::limits::SIGN_OF_LIFE_MS);
        assert!(just_seen!().ends_with(&written), "{}", just_seen!());
    }
}
