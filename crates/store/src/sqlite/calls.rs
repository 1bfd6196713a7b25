//! What runs say.

use std::sync::Arc;

use bytes::Bytes;
use runtara_domain::{
    Call, Caller, CheckpointId, Checkpointed, Fence, NewEvent, RaisedSignal, Refusal,
    SaveCheckpoint, SignalId, TenantId, Transition, Word,
};
use runtara_domain::{RunNumber, WaitKind, WaitRecord};

use super::instances::make_self_registered;
use super::sql::{Columns, Sql};
use super::state::{KeptSignals, Loaded, load};
use super::tx::Tx;
use super::write::Write;
use crate::plan::{self, WaitPlan};
use crate::{Changed, HeldWait, StoreResult, WaitKey, WaitRequest, Waiting};

/// What is saved under a name. Served by `runtara_checkpoints_name`.
pub(super) const FIND_SAVED: &str = "select state, request_id from runtara_checkpoints \
     where instance = ? and checkpoint_id = ? and version >= 0 order by place desc limit 1";

/// Served by `runtara_events_request`.
pub(super) const FIND_EVENT: &str =
    "select 1 from runtara_events where instance = ? and request_id = ?";

fn find(tx: &mut Tx, caller: &Caller) -> StoreResult<Arc<Loaded>> {
    let found = load(tx, &caller.instance_id)?;
    Ok(found.ok_or(Refusal::InstanceUnknown)?)
}

/// Writes what a transition asks for and nothing else.
fn write(tx: &mut Tx, found: &Loaded, next: Transition) -> StoreResult<Arc<Loaded>> {
    Write::new(found, next, tx.now).run(tx)
}

fn seen(shows_signal: bool, heartbeat: bool) -> Call {
    Call::Seen {
        shows_signal,
        heartbeat,
    }
}

pub(super) fn register(
    tx: &mut Tx,
    caller: &Caller,
    tenant: &TenantId,
    checkpoint_id: Option<CheckpointId>,
) -> StoreResult<()> {
    let found = match load(tx, &caller.instance_id)? {
        Some(found) => found,
        None if caller.fence == Fence::SelfRegistered => {
            if let Some(id) = checkpoint_id {
                return Err(Refusal::CheckpointUnknown { id }.into());
            }
            make_self_registered(tx, &caller.instance_id, tenant)?;
            find(tx, caller)?
        }
        None => return Err(Refusal::InstanceUnknown.into()),
    };
    let call = Call::Register {
        tenant_id: tenant.clone(),
        checkpoint_id: checkpoint_id.clone(),
    };
    let next = plan::call(&found.state, caller, call, tx.now)?;
    if let Some(id) = checkpoint_id
        && newest_version(tx, found.id, &id)?.is_none()
    {
        return Err(Refusal::CheckpointUnknown { id }.into());
    }
    write(tx, &found, next).map(drop)
}

/// The highest version that is stored under a name.
fn newest_version(
    tx: &mut Tx,
    instance: i64,
    checkpoint_id: &CheckpointId,
) -> StoreResult<Option<i64>> {
    let mut sql = Sql::new(
        "select max(version) from runtara_checkpoints \
         where instance = ? and checkpoint_id = ? and version >= 0",
    );
    sql.bind(instance).bind(checkpoint_id.as_str());
    match tx.row(&sql, "looking for a checkpoint")? {
        Some(row) => Columns::of(&row).opt_int(),
        None => Ok(None),
    }
}

/// What is saved under a name, and the request that saved it.
fn saved(
    tx: &mut Tx,
    instance: i64,
    checkpoint_id: &CheckpointId,
) -> StoreResult<Option<(Bytes, Option<String>)>> {
    let mut sql = Sql::new(FIND_SAVED);
    sql.bind(instance).bind(checkpoint_id.as_str());
    let Some(row) = tx.row(&sql, "looking before a checkpoint")? else {
        return Ok(None);
    };
    let mut columns = Columns::of(&row);
    Ok(Some((columns.bytes()?, columns.opt_text()?)))
}

pub(super) fn save_checkpoint(
    tx: &mut Tx,
    caller: &Caller,
    request: &SaveCheckpoint,
) -> StoreResult<Checkpointed> {
    let name = request.checkpoint_id.as_str();
    let request_id = request.request_id.as_deref();
    let found = find(tx, caller)?;
    let saved = saved(tx, found.id, &request.checkpoint_id)?;
    let kept = KeptSignals::load(tx, found.id, name)?;
    let kept = kept.of_call(found.state.run_number, request_id);
    let plan = plan::save_checkpoint(
        &found.state,
        caller,
        request,
        saved,
        kept.map(|kept| kept.signal),
        tx.now,
    )?;
    let mut write = Write::new(&found, plan.transition, tx.now);
    if plan.store {
        write.checkpoint(name, 0, &request.state, request_id);
    }
    if let Some(kept) = kept.filter(|_| plan.take_signal) {
        write.take_signal(name, kept.n, request_id);
    }
    write.run(tx)?;
    tx.bytes_held += plan.answer.found.as_ref().map_or(0, Bytes::len);
    Ok(plan.answer)
}

pub(super) fn poll_signal(tx: &mut Tx, caller: &Caller) -> StoreResult<Option<RaisedSignal>> {
    let found = find(tx, caller)?;
    let next = plan::call(&found.state, caller, seen(true, false), tx.now)?;
    let written = write(tx, &found, next)?;
    Ok(plan::visible_signal(&written.state))
}

pub(super) fn take_signal(
    tx: &mut Tx,
    caller: &Caller,
    signal_id: &SignalId,
    request_id: Option<&str>,
) -> StoreResult<Option<Option<Bytes>>> {
    let found = find(tx, caller)?;
    let kept = KeptSignals::load(tx, found.id, signal_id.as_str())?;
    let kept = kept.of_call(found.state.run_number, request_id);
    let signal = kept.map(|kept| kept.signal);
    let plan = plan::take_signal(&found.state, caller, signal, request_id, tx.now)?;
    let mut write = Write::new(&found, plan.transition, tx.now);
    if let Some(kept) = kept.filter(|_| plan.taken.is_some()) {
        write.take_signal(signal_id.as_str(), kept.n, request_id);
    }
    write.run(tx)?;
    Ok(plan.taken)
}

/// The records of a key, as far as they decide what a call means.
///
/// A run that has stored something new begins a new wait unless it repeats a call, so of a long loop of sleeps only the repeated
/// record, the last one that the run has met, and the last one of all matter; a run that replays counts all of them.
fn wait_records(
    tx: &mut Tx,
    found: &Loaded,
    key: &WaitKey,
    request_id: Option<&str>,
) -> StoreResult<Vec<WaitRecord>> {
    let mut sql = Sql::new(
        "select kind, n, until, state_hash, met_by, request_id from runtara_waits w \
         where instance = ? and kind = ? and key = ?",
    );
    sql.bind(found.id)
        .bind(kind_of(key).as_str())
        .bind(key.as_str());
    if found.state.run.stored_new {
        sql.push(
            " and (n = (select max(n) from runtara_waits l \
             where l.instance = w.instance and l.kind = w.kind and l.key = w.key) \
             or n = (select n from runtara_waits m \
             where m.instance = w.instance and m.kind = w.kind and m.key = w.key and m.met_by = ? \
             order by n desc limit 1) \
             or (met_by = ? and request_id = ?))",
        )
        .bind(found.state.run_number.0)
        .bind(found.state.run_number.0)
        .bind(request_id);
    }
    sql.push(" order by n");
    let rows = tx.rows(&sql, "loading the records of a wait")?;
    rows.iter()
        .map(|row| read_record(&mut Columns::of(row)))
        .collect()
}

fn read_record(columns: &mut Columns<'_>) -> StoreResult<WaitRecord> {
    Ok(WaitRecord {
        kind: columns.parsed()?,
        n: columns.number()?,
        until: columns.opt_time()?,
        state_hash: columns.hash()?,
        met_by: RunNumber(columns.number()?),
        request_id: columns.opt_text()?,
    })
}

fn kind_of(key: &WaitKey) -> WaitKind {
    match key {
        WaitKey::Sleep(_) => WaitKind::Sleep,
        WaitKey::Signal(_) => WaitKind::Signal,
    }
}

fn kept_for(tx: &mut Tx, found: &Loaded, key: &WaitKey) -> StoreResult<Option<KeptSignals>> {
    match key {
        WaitKey::Sleep(_) => Ok(None),
        WaitKey::Signal(id) => KeptSignals::load(tx, found.id, id.as_str()).map(Some),
    }
}

pub(super) fn begin_wait(
    tx: &mut Tx,
    caller: &Caller,
    request: &WaitRequest,
) -> StoreResult<Waiting> {
    let found = find(tx, caller)?;
    let request_id = request.call.request_id.as_deref();
    let records = wait_records(tx, &found, &request.key, request_id)?;
    let kept = kept_for(tx, &found, &request.key)?;
    let kept = kept
        .as_ref()
        .and_then(|kept| kept.of_call(found.state.run_number, request_id));
    let signal = kept.map(|kept| kept.signal);
    let plan = plan::wait(&found.state, caller, request, &records, signal, tx.now)?;
    let taken = kept.map(|kept| kept.n);
    write_wait(tx, &found, &request.key, plan, taken, request_id)
}

pub(super) fn continue_wait(
    tx: &mut Tx,
    caller: &Caller,
    held: &HeldWait,
    park_now: bool,
) -> StoreResult<Waiting> {
    let found = find(tx, caller)?;
    let record = wait_record(tx, &found, held)?;
    let request_id = record
        .as_ref()
        .and_then(|record| record.request_id.as_deref());
    let kept = kept_for(tx, &found, &held.key)?;
    let kept = kept
        .as_ref()
        .and_then(|kept| kept.of_call(found.state.run_number, request_id));
    let plan = plan::continue_wait(
        &found.state,
        caller,
        held,
        record.as_ref(),
        kept.map(|kept| kept.signal),
        park_now,
        tx.now,
    )?;
    let taken = kept.map(|kept| kept.n);
    write_wait(tx, &found, &held.key, plan, taken, request_id)
}

fn wait_record(tx: &mut Tx, found: &Loaded, held: &HeldWait) -> StoreResult<Option<WaitRecord>> {
    let mut sql = Sql::new(
        "select kind, n, until, state_hash, met_by, request_id from runtara_waits \
         where instance = ? and kind = ? and key = ? and n = ?",
    );
    sql.bind(found.id)
        .bind(kind_of(&held.key).as_str())
        .bind(held.key.as_str())
        .bind(held.n);
    let row = tx.row(&sql, "loading the record of a wait")?;
    row.map(|row| read_record(&mut Columns::of(&row)))
        .transpose()
}

fn write_wait(
    tx: &mut Tx,
    found: &Loaded,
    key: &WaitKey,
    plan: WaitPlan,
    signal: Option<i64>,
    request_id: Option<&str>,
) -> StoreResult<Waiting> {
    let version = match &plan.store {
        Some((name, _)) => newest_version(tx, found.id, name)?,
        None => None,
    };
    let mut write = Write::new(found, plan.transition, tx.now);
    write.wait_record(key, kind_of(key), &plan.record);
    if let Some((name, state)) = &plan.store {
        let version = version.map_or(1, |newest| newest + 1);
        write.checkpoint(name.as_str(), version, state, None);
    }
    if let Some(n) = signal.filter(|_| plan.take_signal) {
        write.take_signal(key.as_str(), n, request_id);
    }
    write.run(tx)?;
    Ok(plan.answer)
}

pub(super) fn record_event(
    tx: &mut Tx,
    caller: &Caller,
    event: &NewEvent,
    request_id: Option<&str>,
) -> StoreResult<()> {
    let found = find(tx, caller)?;
    let repeated = match request_id {
        Some(request_id) => {
            let mut sql = Sql::new(FIND_EVENT);
            sql.bind(found.id).bind(request_id);
            tx.row(&sql, "looking before an event")?.is_some()
        }
        None => false,
    };
    let next = plan::call(&found.state, caller, seen(false, false), tx.now)?;
    let mut write = Write::new(&found, next, tx.now);
    if !repeated {
        write.event(event, request_id);
    }
    write.run(tx)?;
    Ok(())
}

pub(super) fn heartbeat(tx: &mut Tx, caller: &Caller) -> StoreResult<()> {
    let found = find(tx, caller)?;
    let next = plan::call(&found.state, caller, seen(false, true), tx.now)?;
    write(tx, &found, next).map(drop)
}

pub(super) fn record_retry(
    tx: &mut Tx,
    caller: &Caller,
    checkpoint_id: &CheckpointId,
    attempt: u32,
    error: Option<&str>,
) -> StoreResult<()> {
    let name = format!("{checkpoint_id}::retry::{attempt}");
    let found = find(tx, caller)?;
    let mut sql = Sql::new(
        "select 1 from runtara_checkpoints \
         where instance = ? and checkpoint_id = ? and version = -1",
    );
    sql.bind(found.id).bind(name.as_str());
    let known = tx.row(&sql, "looking before a retry")?;
    let known = known.is_some();
    let next = plan::record_retry(
        &found.state,
        caller,
        checkpoint_id,
        attempt,
        error,
        known,
        tx.now,
    )?;
    let mut write = Write::new(&found, next, tx.now);
    if !known {
        write.checkpoint(&name, -1, &Bytes::new(), None);
    }
    write.run(tx)?;
    Ok(())
}

pub(super) fn say(
    tx: &mut Tx,
    caller: &Caller,
    word: &Word,
    our_fault: bool,
) -> StoreResult<Changed> {
    let found = find(tx, caller)?;
    let said = Call::Say {
        word: word.clone(),
        our_fault,
    };
    let next = plan::call(&found.state, caller, said, tx.now)?;
    let applied = next.applied;
    let stored =
        plan::state_of_word(word, &next).map(|(name, state)| (name.clone(), state.clone()));
    let version = match &stored {
        Some((name, _)) => newest_version(tx, found.id, name)?,
        None => None,
    };
    let mut write = Write::new(&found, next, tx.now);
    if let Some((name, state)) = &stored {
        let version = version.map_or(0, |newest| newest + 1);
        write.checkpoint(name.as_str(), version, state, None);
    }
    let written = write.run(tx)?;
    Ok(Changed {
        state: written.state.clone(),
        applied,
    })
}
