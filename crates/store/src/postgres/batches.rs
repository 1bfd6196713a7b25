//! The statements of the queues: what many instances write at once, where it changes the rows of the instances.
//!
//! Each is `Call::…` of the domain for the ordinary case, as one statement for many rows. The fence is a join: a row whose token is
//! not that of the instance's current run, or whose instance does not run, is left out and told alone what is wrong, as is
//! everything that is not ordinary. Rows come in the order of their ids and are changed in that order, so that two statements do not wait
//! for each other.

use std::sync::Arc;

use bytes::Bytes;
use runtara_domain::{CheckpointId, InstanceId, NewEvent, RaisedSignal, TenantId, TokenHash};
use sqlx::Postgres;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;

use crate::Nudges;

use super::connections::{Connections, Fetch as _};
use super::error::Answer;
use super::lanes::Batch;
use super::row;
use super::steady::saved;
use super::write::{StepMark, request_key};

/// What a batch is written to, and who is told.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) connections: Arc<Connections>,
    pub(super) nudges: Nudges,
}

impl Target {
    /// Whoever minds the run is told if a wait of it has ended. Nobody waits for what a run records.
    fn nudge(&self, found: &PgRow, id: &InstanceId) -> Answer<()> {
        if row::get(found, "look")? {
            self.nudges.look_at_run(id);
        }
        Ok(())
    }
}

/// The columns by which a caller is told of the signal that waits for its instance, and whether whoever minds the run should look.
macro_rules! told_columns {
    () => {
        "i.instance_id, i.cancel_at, i.cancel_payload, i.pause_at, i.pause_payload, i.resume_pending,
         i.live_node is not null and (i.leave_by is not null or i.slept_ms > 0) as look"
    };
}

/// The names of `told_columns!`.
macro_rules! told_names {
    () => {
        "instance_id, cancel_at, cancel_payload, pause_at, pause_payload, resume_pending, look"
    };
}

/// What each call that changes the row of its instance notes with it.
macro_rules! seen {
    () => {
        concat!(
            "spoke = true, last_seen_at = case when ",
            $crate::postgres::row::just_seen!(),
            " then i.last_seen_at else runtara_now() end,"
        )
    };
}

fn signal(found: &PgRow) -> Answer<Option<RaisedSignal>> {
    let pending = row::pending(found)?;
    let visible = pending.visible();
    Ok(visible.map(|(kind, payload)| RaisedSignal { kind, payload }))
}

/// Puts what was written, in whatever order, beside what was asked for.
pub(super) fn in_order<'a, T>(
    asked: impl Iterator<Item = &'a InstanceId>,
    written: &[PgRow],
    told: impl Fn(&PgRow, &InstanceId) -> Answer<T>,
) -> Answer<Vec<Option<T>>> {
    let mut by_id = std::collections::HashMap::with_capacity(written.len());
    for found in written {
        by_id.insert(row::get::<&str>(found, "instance_id")?, found);
    }
    asked
        .map(|id| {
            by_id
                .get(id.as_str())
                .map(|found| told(found, id))
                .transpose()
        })
        .collect()
}

/// A save of a checkpoint with a state.
#[derive(Clone)]
pub(super) struct Save {
    pub(super) instance_id: InstanceId,
    pub(super) token: TokenHash,
    pub(super) checkpoint_id: CheckpointId,
    pub(super) state: Bytes,
    pub(super) request_id: String,
}

impl Save {
    pub(super) fn bytes(&self) -> usize {
        self.state.len() + self.checkpoint_id.as_str().len() + 256
    }

    /// Binds the first five parameters: arrays of ids, tokens, names, states and requests.
    pub(super) fn bind<'q>(
        sql: &'static str,
        rows: &'q [Self],
    ) -> Query<'q, Postgres, PgArguments> {
        let texts = |text: fn(&Self) -> &str| rows.iter().map(text).collect::<Vec<_>>();
        sqlx::query(sql)
            .bind(texts(|row| row.instance_id.as_str()))
            .bind(rows.iter().map(|row| &row.token.0[..]).collect::<Vec<_>>())
            .bind(texts(|row| row.checkpoint_id.as_str()))
            .bind(rows.iter().map(|row| &row.state[..]).collect::<Vec<_>>())
            .bind(texts(|row| row.request_id.as_str()))
    }
}

/// Saves that find their name free.
pub(super) struct Saves(pub(super) Target);

/// Left out besides refused rows: names that are taken, and instances with custom signals to be taken or confirmed. A name that
/// another transaction takes meanwhile is an error of the unique index, and the batch is written again without it. Indexes: primary
/// keys, `runtara_instances_token` and `runtara_checkpoints_name`.
pub(super) const SAVE: &str = concat!(
    "with marked as (
         update runtara_instances i
            set version = i.version + 1, ",
    seen!(),
    " stored_new = true, crash_count = 0, interruptions = 0,
                cancel_shown = i.cancel_shown or i.cancel_at is not null,
                pause_shown = i.pause_shown
                    or (i.cancel_at is null and i.pause_at is not null and not i.resume_pending)
           from unnest($1::text[], $2::bytea[], $3::text[], $4::bytea[], $5::text[])
                    as n (instance_id, token_hash, checkpoint_id, state, request_id)
          where i.instance_id = n.instance_id and i.token_hash = n.token_hash and (i.status = 'running') is true
            and not i.has_read_signals
            and not exists (select from runtara_signals s
                             where s.instance_id = n.instance_id and s.signal_id = n.checkpoint_id)
            and not exists (select from runtara_checkpoints c
                             where c.instance_id = n.instance_id and c.checkpoint_id = n.checkpoint_id and c.version = 1)
      returning i.run_number, n.checkpoint_id, n.state, n.request_id, ",
    told_columns!(),
    "),
     saved as (
         insert into runtara_checkpoints
                (instance_id, seq, checkpoint_id, version, state, size, created_at, run_number, request_id)
         select instance_id, nextval('runtara_checkpoint_seq'), checkpoint_id, 1, state, length(state), runtara_now(), run_number,
                request_id
           from marked
     )
     select ",
    told_names!(),
    " from marked"
);

impl Batch for Saves {
    type Row = Save;
    type Told = Option<RaisedSignal>;

    fn instance(row: &Save) -> &InstanceId {
        &row.instance_id
    }

    fn bytes(row: &Save) -> usize {
        row.bytes()
    }

    async fn commit(&self, rows: &[Save]) -> Answer<Vec<Option<Self::Told>>> {
        let written = Save::bind(SAVE, rows).all_on(&self.0.connections).await?;
        in_order(
            rows.iter().map(|row| &row.instance_id),
            &written,
            |found, id| {
                self.0.nudge(found, id)?;
                signal(found)
            },
        )
    }
}

/// A custom event.
pub(super) struct Record {
    pub(super) instance_id: InstanceId,
    pub(super) token: TokenHash,
    pub(super) event: NewEvent,
    pub(super) request_id: String,
}

/// Custom events.
pub(super) struct Records(pub(super) Target);

/// Left out besides refused rows: events that are recorded already. Indexes: primary keys, `runtara_instances_token` and
/// `runtara_events_request`.
pub(super) const RECORD: &str = concat!(
    "with marked as (
         update runtara_instances i
            set version = i.version + 1, ",
    seen!(),
    " event_seq = i.event_seq + 1
           from unnest($1::text[], $2::bytea[], $3::bytea[], $4::text[], $5::text[], $6::text[], $7::bytea[],
                       $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::boolean[])
                    as n (instance_id, token_hash, request_key, kind, subtype, event_checkpoint_id, payload,
                          scope_id, parent_scope_id, step_id, step_type, step_key, step_failed)
          where i.instance_id = n.instance_id and i.token_hash = n.token_hash and (i.status = 'running') is true
            and not exists (select from runtara_events e
                             where e.instance_id = n.instance_id and e.request_key = n.request_key)
      returning i.run_number, i.event_seq, n.request_key, n.kind, n.subtype, n.event_checkpoint_id, n.payload,
                n.scope_id, n.parent_scope_id, n.step_id, n.step_type, n.step_key, n.step_failed, ",
    told_columns!(),
    "),
     recorded as (
         insert into runtara_events
                (instance_id, seq, kind, subtype, checkpoint_id, payload, created_at, run_number,
                 scope_id, parent_scope_id, step_id, step_type, step_key, step_failed, request_key)
         select instance_id, event_seq, kind, subtype, event_checkpoint_id, payload, runtara_now(), run_number,
                scope_id, parent_scope_id, step_id, step_type, step_key, step_failed, request_key
           from marked
     )
     select ",
    told_names!(),
    " from marked"
);

impl Batch for Records {
    type Row = Record;
    type Told = ();

    fn instance(row: &Record) -> &InstanceId {
        &row.instance_id
    }

    fn bytes(row: &Record) -> usize {
        row.event.payload.as_ref().map_or(0, Bytes::len) + 512
    }

    async fn commit(&self, rows: &[Record]) -> Answer<Vec<Option<()>>> {
        let texts = |part: fn(&NewEvent) -> Option<&str>| {
            let stored = rows
                .iter()
                .map(|row| part(&row.event).map(row::without_nul));
            stored.collect::<Vec<_>>()
        };
        let keys: Vec<_> = rows
            .iter()
            .map(|row| request_key(&row.request_id))
            .collect();
        let (step_keys, failed): (Vec<_>, Vec<_>) = rows
            .iter()
            .map(|row| StepMark::of(&row.event))
            .map(|mark| (mark.key, mark.failed))
            .unzip();
        let written = sqlx::query(RECORD)
            .bind(
                rows.iter()
                    .map(|row| row.instance_id.as_str())
                    .collect::<Vec<_>>(),
            )
            .bind(rows.iter().map(|row| &row.token.0[..]).collect::<Vec<_>>())
            .bind(keys)
            .bind(texts(|event| Some(event.kind.as_str())))
            .bind(texts(|event| event.subtype.as_deref()))
            .bind(texts(|event| {
                event.checkpoint_id.as_ref().map(AsRef::as_ref)
            }))
            .bind(
                rows.iter()
                    .map(|row| row.event.payload.as_deref())
                    .collect::<Vec<_>>(),
            )
            .bind(texts(|event| event.keys.scope_id.as_deref()))
            .bind(texts(|event| event.keys.parent_scope_id.as_deref()))
            .bind(texts(|event| event.keys.step_id.as_deref()))
            .bind(texts(|event| event.keys.step_type.as_deref()))
            .bind(step_keys)
            .bind(failed)
            .all_on(&self.0.connections)
            .await?;
        in_order(
            rows.iter().map(|row| &row.instance_id),
            &written,
            |found, id| self.0.nudge(found, id),
        )
    }
}

/// What a run gives a sign of life with.
#[derive(Clone)]
pub(super) enum Sign {
    /// It is there, and belongs to this tenant.
    Register(TenantId),
    /// It lives.
    Heartbeat,
    /// It asks for the signal that waits.
    Poll,
    /// It looks for a checkpoint.
    Look(CheckpointId),
}

impl Sign {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Register(_) => "register",
            Self::Heartbeat => "heartbeat",
            Self::Poll => "poll",
            Self::Look(_) => "look",
        }
    }

    pub(super) fn looked_for(&self) -> Option<&str> {
        match self {
            Self::Look(name) => Some(name.as_str()),
            _ => None,
        }
    }
}

/// A sign of life.
#[derive(Clone)]
pub(super) struct Mark {
    pub(super) instance_id: InstanceId,
    pub(super) token: TokenHash,
    pub(super) sign: Sign,
}

/// What a sign of life is answered with.
pub(super) struct Marked {
    /// The signal that waits.
    pub(super) signal: Option<RaisedSignal>,
    /// The state that was looked for, and the request that saved it.
    pub(super) saved: Option<(Bytes, Option<String>)>,
}

/// Signs of life.
pub(super) struct Marks(pub(super) Target);

/// `o` is the row as it was when the statement began, which alone tells whether a sign is the first of its kind. Left out besides
/// refused rows: looks at names for which a custom signal is kept, as they may take it, and rows of which another transaction makes
/// the first sign meanwhile. Indexes: primary keys, `runtara_instances_token` and `runtara_checkpoints_name`.
pub(super) const MARK: &str = concat!(
    "with marked as (
         update runtara_instances i
            set version = i.version + 1, ",
    seen!(),
    "   heartbeat_seen = i.heartbeat_seen or n.sign = 'heartbeat',
                event_seq = i.event_seq
                    + case n.sign when 'register' then (not o.spoke)::integer
                                  when 'heartbeat' then (not o.heartbeat_seen)::integer else 0 end,
                cancel_shown = i.cancel_shown or (n.sign in ('poll', 'look') and i.cancel_at is not null),
                pause_shown = i.pause_shown
                    or (n.sign in ('poll', 'look') and i.cancel_at is null and i.pause_at is not null
                        and not i.resume_pending)
           from unnest($1::text[], $2::bytea[], $3::text[], $4::text[], $5::text[])
                    as n (instance_id, token_hash, sign, tenant_id, looked_for)
           join runtara_instances o on o.token_hash = n.token_hash
          where i.instance_id = n.instance_id and i.token_hash = n.token_hash and (i.status = 'running') is true
            and (i.spoke, i.heartbeat_seen) = (o.spoke, o.heartbeat_seen)
            and (n.tenant_id is null or i.tenant_id = n.tenant_id)
            and (n.sign <> 'look'
                 or not exists (select from runtara_signals s
                                 where s.instance_id = n.instance_id and s.signal_id = n.looked_for))
      returning i.run_number, i.event_seq, n.sign, n.looked_for,
                case n.sign when 'register' then not o.spoke when 'heartbeat' then not o.heartbeat_seen else false end as first, ",
    told_columns!(),
    "),
     recorded as (
         insert into runtara_events (instance_id, seq, kind, created_at, run_number)
         select instance_id, event_seq, case sign when 'register' then 'started' else 'heartbeat' end, runtara_now(),
                run_number
           from marked where first
     )
     select c.state as saved, c.request_id as saved_by, ",
    told_names!(),
    "  from marked m
       left join lateral (
            select c.state, c.request_id from runtara_checkpoints c
             where m.sign = 'look' and c.instance_id = m.instance_id and c.checkpoint_id = m.looked_for and c.version > 0
             order by c.version desc limit 1) c on true"
);

impl Batch for Marks {
    type Row = Mark;
    type Told = Marked;

    fn instance(row: &Mark) -> &InstanceId {
        &row.instance_id
    }

    fn bytes(_row: &Mark) -> usize {
        1024
    }

    async fn commit(&self, rows: &[Mark]) -> Answer<Vec<Option<Marked>>> {
        let tenant = |row: &Mark| match &row.sign {
            Sign::Register(tenant) => Some(tenant.as_str().to_owned()),
            _ => None,
        };
        let written = sqlx::query(MARK)
            .bind(
                rows.iter()
                    .map(|row| row.instance_id.as_str())
                    .collect::<Vec<_>>(),
            )
            .bind(rows.iter().map(|row| &row.token.0[..]).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.sign.word()).collect::<Vec<_>>())
            .bind(rows.iter().map(tenant).collect::<Vec<_>>())
            .bind(
                rows.iter()
                    .map(|row| row.sign.looked_for())
                    .collect::<Vec<_>>(),
            )
            .all_on(&self.0.connections)
            .await?;
        in_order(
            rows.iter().map(|row| &row.instance_id),
            &written,
            |found, id| {
                self.0.nudge(found, id)?;
                Ok(Marked {
                    signal: signal(found)?,
                    saved: saved(found)?,
                })
            },
        )
    }
}
