//! Durable sleeps and waits for custom signals.

use runtara_domain::{Caller, Refusal, RunNumber, WaitKind, WaitRecord};
use sqlx::postgres::PgRow;

use crate::plan::{self, WaitPlan};
use crate::{HeldWait, WaitKey, WaitRequest, Waiting};

use super::PostgresStore;
use super::calls::{Kept, kept_columns, kept_signals};
use super::connections::Fetch as _;
use super::error::{Answer, Fault};
use super::row;
use super::write::{Loaded, NewCheckpoint, TRIES, Write, loaded_columns, write};

/// An instance, and what waits for it under one key.
struct Standing {
    loaded: Loaded,
    kept: Option<Kept>,
    newest_version: i32,
}

/// Reads an instance and what a wait of this key depends on, by primary keys.
async fn look(store: &PostgresStore, caller: &Caller, key: &WaitKey) -> Answer<Standing> {
    let found = sqlx::query(concat!(
        "select ", loaded_columns!(), ", ", kept_columns!(), ",
                coalesce((select c.version from runtara_checkpoints c
                           where c.instance_id = i.instance_id and c.checkpoint_id = $2 and c.version > 0
                           order by c.version desc limit 1), 0) as newest_version
           from runtara_instances i ",
        kept_signals!(),
        " where i.instance_id = $1"
    ))
    .bind(caller.instance_id.as_str())
    .bind(key.as_str())
    .optional_on(&store.connections)
    .await?
    .ok_or(Refusal::InstanceUnknown)?;
    Ok(Standing {
        loaded: Loaded::of(&found)?,
        kept: match key {
            WaitKey::Sleep(_) => None,
            WaitKey::Signal(id) => Some(Kept::of(&found, id.as_str())?),
        },
        newest_version: row::get(&found, "newest_version")?,
    })
}

fn kind(key: &WaitKey) -> WaitKind {
    match key {
        WaitKey::Sleep(_) => WaitKind::Sleep,
        WaitKey::Signal(_) => WaitKind::Signal,
    }
}

fn record(found: &PgRow) -> Answer<WaitRecord> {
    let hash: &[u8] = row::get(found, "state_hash")?;
    Ok(WaitRecord {
        kind: row::get::<&str>(found, "kind")?.parse()?,
        n: row::count(found, "n")?,
        until: row::time(found, "until")?,
        state_hash: hash
            .try_into()
            .map_err(|_| Fault::Stored("a wait has no hash of its state".to_owned()))?,
        met_by: RunNumber(row::count(found, "met_by")?),
        request_id: row::get(found, "request_id")?,
    })
}

/// The records of a key in the order of their numbers, or the one of a number, by the primary key. Read after the instance: if
/// one is added meanwhile, the instance is of a newer version and the change is decided again.
async fn records(
    store: &PostgresStore,
    caller: &Caller,
    key: &WaitKey,
    n: Option<u32>,
) -> Answer<Vec<WaitRecord>> {
    let rows = sqlx::query(
        "select kind::text as kind, n, until, state_hash, met_by, request_id from runtara_waits
          where instance_id = $1 and kind = $2 and key = $3 and ($4::integer is null or n = $4)
          order by n",
    )
    .bind(caller.instance_id.as_str())
    .bind(kind(key).as_str())
    .bind(key.as_str())
    .bind(n.map(row::stored_small))
    .all_on(&store.connections)
    .await?;
    rows.iter().map(record).collect()
}

/// Writes a decided wait. Says whether the instance was still as it was read.
async fn apply(
    store: &PostgresStore,
    standing: &Standing,
    key: &WaitKey,
    decided: &WaitPlan,
    request_id: Option<&str>,
) -> Answer<bool> {
    let mut writing = Write::of(&decided.transition);
    writing.record = Some((key, &decided.record));
    writing.checkpoint = decided.store.as_ref().map(|(id, state)| NewCheckpoint {
        checkpoint_id: id.as_str().to_owned(),
        version: standing.newest_version + 1,
        state: state.clone(),
        request_id: None,
    });
    if decided.take_signal {
        let run = standing.loaded.state.run_number;
        let kept = standing.kept.as_ref();
        writing.take = kept.and_then(|kept| kept.place(run, request_id));
    }
    let written = write(&store.connections, &standing.loaded, &writing).await?;
    if written {
        store.after(&decided.transition.state);
    }
    Ok(written)
}

/// Begins, or goes on with, a wait.
pub(super) async fn begin(
    store: &PostgresStore,
    caller: &Caller,
    mut request: WaitRequest,
) -> Answer<Waiting> {
    let request_id = request.call.request_id.take();
    request.call.request_id = request_id.map(|id| row::without_nul(&id).into_owned());
    for _ in 0..TRIES {
        let standing = look(store, caller, &request.key).await?;
        let records = records(store, caller, &request.key, None).await?;
        let Standing { loaded, kept, .. } = &standing;
        let (state, now) = (&loaded.state, loaded.now);
        let request_id = request.call.request_id.as_deref();
        let kept = kept
            .as_ref()
            .and_then(|kept| kept.for_call(state.run_number, request_id));
        let decided = plan::wait(state, caller, &request, &records, kept, now)?;
        if apply(store, &standing, &request.key, &decided, request_id).await? {
            return Ok(decided.answer);
        }
    }
    Err(Fault::Contended)
}

/// Looks again at a held call.
pub(super) async fn go_on(
    store: &PostgresStore,
    caller: &Caller,
    held: &HeldWait,
    park_now: bool,
) -> Answer<Waiting> {
    for _ in 0..TRIES {
        let standing = look(store, caller, &held.key).await?;
        let records = records(store, caller, &held.key, Some(held.n)).await?;
        let record = records.first();
        let request_id = record.and_then(|record| record.request_id.as_deref());
        let Standing { loaded, kept, .. } = &standing;
        let (state, now) = (&loaded.state, loaded.now);
        let kept = kept
            .as_ref()
            .and_then(|kept| kept.for_call(state.run_number, request_id));
        let decided = plan::continue_wait(state, caller, held, record, kept, park_now, now)?;
        if !decided.transition.applied
            || apply(store, &standing, &held.key, &decided, request_id).await?
        {
            return Ok(decided.answer);
        }
    }
    Err(Fault::Contended)
}
