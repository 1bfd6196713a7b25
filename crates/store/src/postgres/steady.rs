//! The statements of the queues for runs that are under way.
//!
//! Most calls of a run change nothing of its instance: it has registered and made progress already, no signal waits for it, and its
//! last sign of life was noted a moment ago. Then a save is one inserted row, and a look reads one. Whatever is not so is left out by the
//! condition, and told by the statements of `batches`.
//!
//! A save locks the row of its instance, so that it is either before an end of the run or refused by it: the fence is read again under the
//! lock. A look needs none: its answer was true when it was read.

use std::sync::Arc;

use bytes::Bytes;
use runtara_domain::InstanceId;
use sqlx::postgres::PgRow;

use super::batches::{Mark, Save, in_order};
use super::connections::{Connections, Fetch as _};
use super::error::Answer;
use super::lanes::Batch;
use super::row;

/// Rows whose run holds the token and needs nothing noted. `is true` keeps the planner from walking an index of states: while few
/// instances run it takes that for a short way, and keeps the plan when there are many.
macro_rules! steady {
    () => {
        concat!(
            "i.instance_id = n.instance_id and i.token_hash = n.token_hash and (i.status = 'running') is true and i.spoke
            and i.cancel_at is null and i.pause_at is null and ",
            $crate::postgres::row::just_seen!()
        )
    };
}

/// Custom signals of the name that a row is about: to be taken with it.
macro_rules! no_signal {
    ($name:literal) => {
        concat!(
            " and not exists (select from runtara_signals s where s.instance_id = n.instance_id and s.signal_id = ",
            $name,
            ")"
        )
    };
}

macro_rules! save {
    ($rows:literal) => {
        concat!(
            "insert into runtara_checkpoints
                    (instance_id, seq, checkpoint_id, version, state, size, created_at, run_number, request_id)
             select i.instance_id, nextval('runtara_checkpoint_seq'), n.checkpoint_id, 1, n.state, length(n.state),
                    runtara_now(), i.run_number, n.request_id
               from ",
            $rows,
            " as n (instance_id, token_hash, checkpoint_id, state, request_id), runtara_instances i
              where ",
            steady!(),
            " and i.stored_new and i.crash_count = 0 and i.interruptions = 0 and not i.has_read_signals",
            no_signal!("n.checkpoint_id"),
            " for no key update of i
             on conflict do nothing
             returning instance_id"
        )
    };
}

/// Saves of names that are free. Indexes: primary keys and `runtara_checkpoints_name`.
const SAVE: &str = save!("unnest($1::text[], $2::bytea[], $3::text[], $4::bytea[], $5::text[])");
/// The same for one row, which costs the server half as much.
const SAVE_ONE: &str = save!("(values ($1::text, $2::bytea, $3::text, $4::bytea, $5::text))");

/// Saves of runs that are under way. Told nothing: no signal waits for them.
pub(super) struct Saves(pub(super) Arc<Connections>);

impl Batch for Saves {
    type Row = Save;
    type Told = ();

    fn instance(row: &Save) -> &InstanceId {
        &row.instance_id
    }

    fn bytes(row: &Save) -> usize {
        row.bytes()
    }

    async fn commit(&self, rows: &[Save]) -> Answer<Vec<Option<()>>> {
        let written = match rows {
            [one] => {
                sqlx::query(SAVE_ONE)
                    .bind(one.instance_id.as_str())
                    .bind(&one.token.0[..])
                    .bind(one.checkpoint_id.as_str())
                    .bind(&one.state[..])
                    .bind(one.request_id.as_str())
                    .all_on(&self.0)
                    .await?
            }
            many => Save::bind(SAVE, many).all_on(&self.0).await?,
        };
        in_order(rows.iter().map(|row| &row.instance_id), &written, |_, _| {
            Ok(())
        })
    }
}

macro_rules! look {
    ($rows:literal) => {
        concat!(
            "select i.instance_id, c.state as saved, c.request_id as saved_by
               from ",
            $rows,
            " as n (instance_id, token_hash, sign, looked_for)
               join runtara_instances i on ",
            steady!(),
            " left join lateral (
                    select c.state, c.request_id from runtara_checkpoints c
                     where n.sign = 'look' and c.instance_id = n.instance_id and c.checkpoint_id = n.looked_for
                       and c.version > 0
                     order by c.version desc limit 1) c on true
              where n.sign <> 'register' and (n.sign <> 'heartbeat' or i.heartbeat_seen)",
            no_signal!("n.looked_for")
        )
    };
}

/// Signs of life that change nothing. Indexes: primary keys and `runtara_checkpoints_name`.
const LOOK: &str = look!("unnest($1::text[], $2::bytea[], $3::text[], $4::text[])");
/// The same for one row.
const LOOK_ONE: &str = look!("(values ($1::text, $2::bytea, $3::text, $4::text))");

/// Looks of runs that are under way, and their other signs of life. Told the state that was looked for, and the request that saved it.
pub(super) struct Looks(pub(super) Arc<Connections>);

impl Batch for Looks {
    type Row = Mark;
    type Told = Option<(Bytes, Option<String>)>;

    fn instance(row: &Mark) -> &InstanceId {
        &row.instance_id
    }

    fn bytes(_row: &Mark) -> usize {
        1024
    }

    async fn commit(&self, rows: &[Mark]) -> Answer<Vec<Option<Self::Told>>> {
        let read = match rows {
            [one] => {
                sqlx::query(LOOK_ONE)
                    .bind(one.instance_id.as_str())
                    .bind(&one.token.0[..])
                    .bind(one.sign.word())
                    .bind(one.sign.looked_for())
                    .all_on(&self.0)
                    .await?
            }
            many => {
                sqlx::query(LOOK)
                    .bind(texts(many, |row| row.instance_id.as_str()))
                    .bind(many.iter().map(|row| &row.token.0[..]).collect::<Vec<_>>())
                    .bind(texts(many, |row| row.sign.word()))
                    .bind(texts(many, |row| row.sign.looked_for()))
                    .all_on(&self.0)
                    .await?
            }
        };
        in_order(
            rows.iter().map(|row| &row.instance_id),
            &read,
            |found, _| saved(found),
        )
    }
}

fn texts<'a, T>(rows: &'a [Mark], text: impl Fn(&'a Mark) -> T) -> Vec<T> {
    rows.iter().map(text).collect()
}

/// The columns `saved` and `saved_by`: the state that was looked for, and the request that saved it.
pub(super) fn saved(found: &PgRow) -> Answer<Option<(Bytes, Option<String>)>> {
    Ok(match row::bytes(found, "saved")? {
        Some(state) => Some((state, row::get(found, "saved_by")?)),
        None => None,
    })
}
