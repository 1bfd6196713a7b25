//! What runs say, one call at a time.
//!
//! The calls that come in great numbers go through the queues of `lanes` first; what is told here is the whole meaning of each
//! call, for everything that the statements of the queues leave to it.

use bytes::Bytes;
use runtara_domain::{
    Call, Caller, CheckpointId, Checkpointed, Fence, InstanceState, NewEvent, RaisedSignal,
    Refusal, RunNumber, SaveCheckpoint, SignalId, TenantId, Timestamp, Word,
};
use sqlx::postgres::PgRow;

use crate::Changed;
use crate::plan::{self, KeptSignal};
use crate::removal::PIECE;

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::{Answer, Fault};
use super::instances::load;
use super::removal;
use super::row;
use super::write::{
    Loaded, NewCheckpoint, SignalPlace, TRIES, Write, loaded_columns, request_key, write, write_in,
};

/// Notes that a run is there.
pub(super) async fn register(
    store: &PostgresStore,
    caller: &Caller,
    tenant: &TenantId,
    checkpoint_id: Option<&CheckpointId>,
) -> Answer<()> {
    let call = Call::Register {
        tenant_id: tenant.clone(),
        checkpoint_id: checkpoint_id.cloned(),
    };
    for _ in 0..TRIES {
        let loaded = match load(store, &caller.instance_id).await {
            Err(Fault::Refused(Refusal::InstanceUnknown))
                if caller.fence == Fence::SelfRegistered =>
            {
                if register_unknown(store, caller, tenant, checkpoint_id, &call).await? {
                    return Ok(());
                }
                // Made meanwhile, or removed before and not whole yet.
                removal::remove_remains(store, Some(&caller.instance_id), PIECE).await?;
                continue;
            }
            loaded => loaded?,
        };
        let decided = plan::call(&loaded.state, caller, call.clone(), loaded.now)?;
        if let Some(id) = checkpoint_id
            && newest_version(store, caller, id).await? == 0
        {
            return Err(Refusal::CheckpointUnknown { id: id.clone() }.into());
        }
        if !decided.applied || write(&store.connections, &loaded, &Write::of(&decided)).await? {
            store.after(&decided.state);
            return Ok(());
        }
    }
    Err(Fault::Contended)
}

/// Makes the instance that registers itself, in one transaction. Says whether it was made: another call may have been faster.
async fn register_unknown(
    store: &PostgresStore,
    caller: &Caller,
    tenant: &TenantId,
    checkpoint_id: Option<&CheckpointId>,
    call: &Call,
) -> Answer<bool> {
    if let Some(id) = checkpoint_id {
        return Err(Refusal::CheckpointUnknown { id: id.clone() }.into());
    }
    let mut connection = store.connections.pool.begin().await?;
    let blank =
        InstanceState::self_registered(caller.instance_id.clone(), tenant.clone(), Timestamp(0));
    let now: Option<i64> = sqlx::query_scalar(
        "insert into runtara_instances (instance_id, tenant_id, origin, status, timeout_ms, created_at)
         select $1, $2, $3, 'pending', $4, runtara_now()
          where not exists (select from runtara_removals where instance_id = $1)
         on conflict (instance_id) do nothing
         returning created_at",
    )
    .bind(blank.instance_id.as_str())
    .bind(blank.tenant_id.as_str())
    .bind(row::origin_word(blank.origin))
    .bind(row::signed(blank.timeout_ms))
    .fetch_optional(&mut *connection)
    .await?;
    let Some(now) = now.map(Timestamp) else {
        return Ok(false);
    };
    let state = InstanceState::self_registered(blank.instance_id, blank.tenant_id, now);
    let loaded = Loaded::made(state, now);
    let decided = plan::call(&loaded.state, caller, call.clone(), now)?;
    let written = write_in(&mut connection, &loaded, &Write::of(&decided)).await?;
    connection.commit().await?;
    store.after(&decided.state);
    Ok(written)
}

/// The number of the newest version of a checkpoint, 0 if there is none.
async fn newest_version(store: &PostgresStore, caller: &Caller, id: &CheckpointId) -> Answer<i32> {
    let newest: Option<i32> = sqlx::query_scalar(
        "select version from runtara_checkpoints
          where instance_id = $1 and checkpoint_id = $2 and version > 0
          order by version desc limit 1",
    )
    .bind(caller.instance_id.as_str())
    .bind(id.as_str())
    .optional_on(&store.connections)
    .await?;
    Ok(newest.unwrap_or(0))
}

/// The custom signals of one id that are kept for an instance, in the order in which they came.
pub(super) struct Kept {
    signal_id: String,
    signals: Vec<KeptSignal>,
    ns: Vec<i32>,
}

/// Columns of [`Kept::of`]: signals of id `$2`, of an instance `i`.
macro_rules! kept_columns {
    () => {
        "k.signal_ns, k.signal_payloads, k.signal_runs, k.signal_requests"
    };
}
pub(super) use kept_columns;

/// What `kept_columns!` are of.
macro_rules! kept_signals {
    () => {
        "cross join lateral (
             select array_agg(s.n order by s.n) as signal_ns, array_agg(s.payload order by s.n) as signal_payloads,
                    array_agg(s.read_by order by s.n) as signal_runs,
                    array_agg(s.read_request order by s.n) as signal_requests
               from runtara_signals s
              where s.instance_id = i.instance_id and s.signal_id = $2) k"
    };
}
pub(super) use kept_signals;

impl Kept {
    pub(super) fn of(found: &PgRow, signal_id: &str) -> Answer<Self> {
        let ns: Vec<i32> = row::get::<Option<_>>(found, "signal_ns")?.unwrap_or_default();
        let mut signals = Vec::with_capacity(ns.len());
        if !ns.is_empty() {
            let payloads: Vec<Option<Vec<u8>>> = row::get(found, "signal_payloads")?;
            let runs: Vec<Option<i32>> = row::get(found, "signal_runs")?;
            let requests: Vec<Option<String>> = row::get(found, "signal_requests")?;
            for ((payload, run), read_request) in payloads.into_iter().zip(runs).zip(requests) {
                signals.push(KeptSignal {
                    payload: payload.map(Bytes::from),
                    read_by: run.map(|run| RunNumber(row::small(run))),
                    read_request,
                });
            }
        }
        Ok(Self {
            signal_id: signal_id.to_owned(),
            signals,
            ns,
        })
    }

    /// The one that a call is about.
    pub(super) fn for_call(&self, run: RunNumber, request_id: Option<&str>) -> Option<&KeptSignal> {
        plan::signal_for(&self.signals, run, request_id)
    }

    /// Where the one that a call is about is noted as read.
    pub(super) fn place(&self, run: RunNumber, request_id: Option<&str>) -> Option<SignalPlace> {
        let signal = self.for_call(run, request_id)?;
        let at = self
            .signals
            .iter()
            .position(|kept| std::ptr::eq(kept, signal))?;
        Some(SignalPlace {
            signal_id: self.signal_id.clone(),
            n: *self.ns.get(at)?,
            request_id: request_id.map(str::to_owned),
        })
    }
}

/// Gets a checkpoint or saves it.
pub(super) async fn save_checkpoint(
    store: &PostgresStore,
    caller: &Caller,
    request: &SaveCheckpoint,
) -> Answer<Checkpointed> {
    let name = request.checkpoint_id.as_str();
    for _ in 0..TRIES {
        let found = sqlx::query(concat!(
            "select ",
            loaded_columns!(),
            ", c.state as saved, c.request_id as saved_by,
",
            kept_columns!(),
            "
               from runtara_instances i
               left join lateral (
                    select c.state, c.request_id from runtara_checkpoints c
                     where c.instance_id = i.instance_id and c.checkpoint_id = $2 and c.version > 0
                     order by c.version desc limit 1) c on true ",
            kept_signals!(),
            " where i.instance_id = $1"
        ))
        .bind(caller.instance_id.as_str())
        .bind(name)
        .optional_on(&store.connections)
        .await?
        .ok_or(Refusal::InstanceUnknown)?;
        let loaded = Loaded::of(&found)?;
        let saved = match row::bytes(&found, "saved")? {
            Some(saved) => Some((saved, row::get(&found, "saved_by")?)),
            None => None,
        };
        let kept = Kept::of(&found, name)?;
        let (run, request_id) = (loaded.state.run_number, request.request_id.as_deref());
        let signal = kept.for_call(run, request_id);
        let decided =
            plan::save_checkpoint(&loaded.state, caller, request, saved, signal, loaded.now)?;
        let mut saving = Write::of(&decided.transition);
        if decided.take_signal {
            saving.take = kept.place(run, request_id);
        }
        saving.checkpoint = decided.store.then(|| NewCheckpoint {
            checkpoint_id: name.to_owned(),
            version: 1,
            state: request.state.clone(),
            request_id: request.request_id.clone(),
        });
        if write(&store.connections, &loaded, &saving).await? {
            store.after(&decided.transition.state);
            return Ok(decided.answer);
        }
    }
    Err(Fault::Contended)
}

/// Notes a sign of life, of one kind or another; answers with the signal that waits.
pub(super) async fn seen(
    store: &PostgresStore,
    caller: &Caller,
    shows_signal: bool,
    heartbeat: bool,
) -> Answer<Option<RaisedSignal>> {
    let call = Call::Seen {
        shows_signal,
        heartbeat,
    };
    for _ in 0..TRIES {
        let loaded = load(store, &caller.instance_id).await?;
        let decided = plan::call(&loaded.state, caller, call.clone(), loaded.now)?;
        if write(&store.connections, &loaded, &Write::of(&decided)).await? {
            store.after(&decided.state);
            return Ok(plan::visible_signal(&decided.state));
        }
    }
    Err(Fault::Contended)
}

/// Takes a custom signal.
pub(super) async fn take_signal(
    store: &PostgresStore,
    caller: &Caller,
    signal_id: &SignalId,
    request_id: Option<&str>,
) -> Answer<Option<Option<Bytes>>> {
    for _ in 0..TRIES {
        let found = sqlx::query(concat!(
            "select ",
            loaded_columns!(),
            ", ",
            kept_columns!(),
            " from runtara_instances i ",
            kept_signals!(),
            " where i.instance_id = $1"
        ))
        .bind(caller.instance_id.as_str())
        .bind(signal_id.as_str())
        .optional_on(&store.connections)
        .await?
        .ok_or(Refusal::InstanceUnknown)?;
        let loaded = Loaded::of(&found)?;
        let kept = Kept::of(&found, signal_id.as_str())?;
        let run = loaded.state.run_number;
        let signal = kept.for_call(run, request_id);
        let decided = plan::take_signal(&loaded.state, caller, signal, request_id, loaded.now)?;
        let mut taking = Write::of(&decided.transition);
        if decided.taken.is_some() {
            taking.take = kept.place(run, request_id);
        }
        if write(&store.connections, &loaded, &taking).await? {
            store.after(&decided.transition.state);
            return Ok(decided.taken);
        }
    }
    Err(Fault::Contended)
}

/// Appends an event.
pub(super) async fn record_event(
    store: &PostgresStore,
    caller: &Caller,
    event: &NewEvent,
    request_id: Option<&str>,
) -> Answer<()> {
    let call = Call::Seen {
        shows_signal: false,
        heartbeat: false,
    };
    for _ in 0..TRIES {
        let found = sqlx::query(concat!(
            "select ",
            loaded_columns!(),
            ",
                    exists (select from runtara_events e
                             where e.instance_id = i.instance_id and e.request_key = $2) as repeated
               from runtara_instances i where i.instance_id = $1"
        ))
        .bind(caller.instance_id.as_str())
        .bind(request_id.map(request_key))
        .optional_on(&store.connections)
        .await?
        .ok_or(Refusal::InstanceUnknown)?;
        let loaded = Loaded::of(&found)?;
        let mut decided = plan::call(&loaded.state, caller, call.clone(), loaded.now)?;
        let mut recording_id = None;
        if !row::get::<bool>(&found, "repeated")? {
            decided.events.push(event.clone());
            recording_id = request_id;
        }
        let mut recording = Write::of(&decided);
        recording.request_id = recording_id;
        if write(&store.connections, &loaded, &recording).await? {
            store.after(&decided.state);
            return Ok(());
        }
    }
    Err(Fault::Contended)
}

/// Keeps a record that a step is tried again.
pub(super) async fn record_retry(
    store: &PostgresStore,
    caller: &Caller,
    checkpoint_id: &CheckpointId,
    attempt: u32,
    error: Option<&str>,
) -> Answer<()> {
    let name = format!("{checkpoint_id}::retry::{attempt}");
    for _ in 0..TRIES {
        let found = sqlx::query(concat!(
            "select ", loaded_columns!(), ",
                    exists (select from runtara_checkpoints c
                             where c.instance_id = i.instance_id and c.checkpoint_id = $2 and c.version = 0) as known
               from runtara_instances i where i.instance_id = $1"
        ))
        .bind(caller.instance_id.as_str())
        .bind(&name)
        .optional_on(&store.connections)
        .await?
        .ok_or(Refusal::InstanceUnknown)?;
        let loaded = Loaded::of(&found)?;
        let known: bool = row::get(&found, "known")?;
        let state = &loaded.state;
        let decided = plan::record_retry(
            state,
            caller,
            checkpoint_id,
            attempt,
            error,
            known,
            loaded.now,
        )?;
        let mut recording = Write::of(&decided);
        recording.checkpoint = (!known).then(|| NewCheckpoint {
            checkpoint_id: name.clone(),
            version: 0,
            state: Bytes::new(),
            request_id: None,
        });
        if write(&store.connections, &loaded, &recording).await? {
            store.after(&decided.state);
            return Ok(());
        }
    }
    Err(Fault::Contended)
}

/// Records the last word of a run.
pub(super) async fn say(
    store: &PostgresStore,
    caller: &Caller,
    word: &Word,
    our_fault: bool,
) -> Answer<Changed> {
    let said = Call::Say {
        word: word.clone(),
        our_fault,
    };
    for _ in 0..TRIES {
        let loaded = load(store, &caller.instance_id).await?;
        let decided = plan::call(&loaded.state, caller, said.clone(), loaded.now)?;
        if !decided.applied {
            return Ok(Changed {
                state: decided.state,
                applied: false,
            });
        }
        let mut saying = Write::of(&decided);
        if let Some((id, state)) = plan::state_of_word(word, &decided) {
            saying.checkpoint = Some(NewCheckpoint {
                checkpoint_id: id.as_str().to_owned(),
                version: newest_version(store, caller, id).await? + 1,
                state: state.clone(),
                request_id: None,
            });
        }
        if write(&store.connections, &loaded, &saying).await? {
            store.after(&decided.state);
            return Ok(Changed {
                state: decided.state,
                applied: true,
            });
        }
    }
    Err(Fault::Contended)
}
