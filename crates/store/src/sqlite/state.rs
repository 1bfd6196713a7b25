//! The state of an instance in its row.

use std::sync::Arc;

use runtara_domain::{
    Attempts, CheckpointId, Hold, InstanceState, Origin, Pending, PendingSignal, RunMarks,
    RunNumber, SignalId, TimeInStates, Timestamp, TokenHash, Usage,
};

use super::sql::{Columns, Row, Sql};
use super::tx::Tx;
use crate::StoreResult;
use crate::plan::{KeptSignal, signal_for};

/// The columns that [`read_state`] reads, of a table called `i`.
macro_rules! state_columns {
    () => {
        "i.id, i.instance_id, i.tenant_id, i.image_id, i.origin, i.status, i.reason, i.due_at, \
         i.waiting_for, i.live_node, i.run_number, i.token, i.claimed_at, i.spoke, \
         i.heartbeat_seen, i.stored_new, i.cancel_shown, i.pause_shown, i.leave_by, \
         i.asked_to_leave, i.hold_park, i.hold_until, i.slept_ms, i.cancel_at, i.cancel_payload, \
         i.pause_at, i.pause_payload, i.resume_waits, i.crash_count, i.max_attempts, i.backoff, \
         i.interruptions, i.relaunches, i.timeout_ms, i.request_timeout_ms, i.created_at, \
         i.started_at, i.finished_at, i.last_seen_at, i.checkpoint_id, i.exit_code, i.has_error, \
         i.has_read_signals, i.cpu_usec, i.memory_peak_bytes, i.running_ms, \
         coalesce(i.status_since, i.created_at), i.pending_time_ms, i.running_time_ms, \
         i.suspended_time_ms, i.heartbeat_timeout_ms, i.expires_at, i.events_recorded, i.checkpoints_saved"
    };
}
pub(super) use state_columns;

/// An instance as it was found.
pub(super) struct Loaded {
    /// Its small number, by which what belongs to it is kept.
    pub(super) id: i64,
    pub(super) state: InstanceState,
    pub(super) events: i64,
    pub(super) checkpoints: i64,
}

/// Where the checkpoint, event or step of this number stands.
pub(super) fn place(instance: i64, seq: i64) -> i64 {
    instance << 32 | seq
}

/// The number of what stands at a place.
pub(super) fn seq_of(place: i64) -> i64 {
    place & 0xffff_ffff
}

pub(super) const LOAD: &str = concat!(
    "select ",
    state_columns!(),
    " from runtara_instances i where i.instance_id = ?"
);

/// Loads an instance by its id, unless it is known.
pub(super) fn load(
    tx: &mut Tx,
    id: &runtara_domain::InstanceId,
) -> StoreResult<Option<Arc<Loaded>>> {
    if let Some(known) = tx.known(id) {
        return Ok(Some(known));
    }
    let mut sql = Sql::new(LOAD);
    sql.bind(id.as_str());
    let Some(row) = tx.row(&sql, "loading an instance")? else {
        return Ok(None);
    };
    let found = read_state(&mut Columns::of(&row))?;
    Ok(Some(tx.found(found)))
}

fn signal(columns: &mut Columns<'_>) -> StoreResult<Option<PendingSignal>> {
    let at = columns.opt_time()?;
    let payload = columns.opt_bytes()?;
    Ok(at.map(|at| PendingSignal { payload, at }))
}

fn origin(text: &str) -> Origin {
    match text {
        "self_registered" => Origin::SelfRegistered,
        _ => Origin::Launched,
    }
}

fn origin_text(origin: Origin) -> &'static str {
    match origin {
        Origin::Launched => "launched",
        Origin::SelfRegistered => "self_registered",
    }
}

fn read_run(columns: &mut Columns<'_>) -> StoreResult<RunMarks> {
    Ok(RunMarks {
        token: columns.opt_hash()?.map(TokenHash),
        claimed_at: columns.opt_time()?,
        spoke: columns.flag()?,
        heartbeat_seen: columns.flag()?,
        stored_new: columns.flag()?,
        cancel_shown: columns.flag()?,
        pause_shown: columns.flag()?,
        leave_by: columns.opt_time()?,
        asked_to_leave: columns.flag()?,
        hold: {
            let park = columns.opt_int()?;
            let until = columns.opt_time()?;
            park.map(|park| Hold {
                until,
                park: park != 0,
            })
        },
        slept_ms: columns.number()?,
    })
}

/// Reads [`state_columns`].
pub(super) fn read_state(columns: &mut Columns<'_>) -> StoreResult<Loaded> {
    let id = columns.int()?;
    let state = InstanceState {
        instance_id: columns.parsed()?,
        tenant_id: columns.parsed()?,
        image_id: columns.opt_parsed()?,
        origin: origin(&columns.text()?),
        status: columns.parsed()?,
        reason: columns.opt_parsed()?,
        due_at: columns.opt_time()?,
        waiting_for: columns.opt_parsed()?,
        live_node: columns.opt_parsed()?,
        run_number: RunNumber(columns.number()?),
        run: read_run(columns)?,
        pending: Pending {
            cancel: signal(columns)?,
            pause: signal(columns)?,
            resume: columns.flag()?,
        },
        attempts: Attempts {
            crash_count: columns.number()?,
            max_attempts: columns.opt_number()?,
            backoff: columns.number()?,
            interruptions: columns.number()?,
            relaunches: columns.number()?,
        },
        timeout_ms: columns.number()?,
        request_timeout_ms: columns.opt_number()?,
        created_at: columns.time()?,
        started_at: columns.opt_time()?,
        finished_at: columns.opt_time()?,
        last_seen_at: columns.opt_time()?,
        checkpoint_id: columns.opt_parsed()?,
        exit_code: columns.opt_number()?,
        has_error: columns.flag()?,
        has_read_signals: columns.flag()?,
        usage: Usage {
            cpu_usec: columns.number()?,
            memory_peak_bytes: columns.number()?,
            running_ms: columns.number()?,
        },
        status_since: columns.time()?,
        time_in_states: TimeInStates {
            pending_ms: columns.number()?,
            running_ms: columns.number()?,
            suspended_ms: columns.number()?,
        },
        heartbeat_timeout_ms: columns.opt_number()?,
        expires_at: columns.opt_time()?,
    };
    Ok(Loaded {
        id,
        state,
        events: columns.int()?,
        checkpoints: columns.int()?,
    })
}

/// Served by the key of the table.
pub(super) const FIND_SIGNALS: &str = "select n, payload, read_by, read_request \
     from runtara_signals where instance = ? and signal_id = ? order by n";

/// The custom signals of one id that are kept for an instance, in the order in which they came.
pub(super) struct KeptSignals {
    numbers: Vec<i64>,
    kept: Vec<KeptSignal>,
}

impl KeptSignals {
    /// Loads them.
    pub(super) fn load(tx: &mut Tx, instance: i64, signal_id: &str) -> StoreResult<Self> {
        let mut sql = Sql::new(FIND_SIGNALS);
        sql.bind(instance).bind(signal_id);
        let rows = tx.rows(&sql, "loading custom signals")?;
        let mut found = Self {
            numbers: Vec::new(),
            kept: Vec::new(),
        };
        for row in &rows {
            found.push(&mut Columns::of(row))?;
        }
        Ok(found)
    }

    fn push(&mut self, columns: &mut Columns<'_>) -> StoreResult<()> {
        let Some(n) = columns.opt_int()? else {
            return Ok(());
        };
        self.numbers.push(n);
        self.kept.push(KeptSignal {
            payload: columns.opt_bytes()?,
            read_by: columns.opt_number()?.map(RunNumber),
            read_request: columns.opt_text()?,
        });
        Ok(())
    }

    /// The one that a call is about: see [`signal_for`].
    pub(super) fn of_call(&self, run: RunNumber, request_id: Option<&str>) -> Option<Chosen<'_>> {
        let signal = signal_for(&self.kept, run, request_id)?;
        let at = self
            .kept
            .iter()
            .position(|kept| std::ptr::eq(kept, signal))?;
        Some(Chosen {
            n: self.numbers[at],
            signal,
        })
    }
}

/// A custom signal, and its number among those of its id.
#[derive(Clone, Copy)]
pub(super) struct Chosen<'a> {
    pub(super) n: i64,
    pub(super) signal: &'a KeptSignal,
}

/// Writes the row of a new instance. Its number is `last_insert_rowid()` in the statements that follow: the next one that SQLite gives,
/// unless an instance of a higher number was taken away and something of it is left.
pub(super) fn insert(
    sql: &mut Sql,
    state: &InstanceState,
    kind: Option<&str>,
    labels: Option<&str>,
) {
    sql.then(
        "insert into runtara_instances (id, instance_id, tenant_id, image_id, kind, origin, status, \
         due_at, run_number, spoke, heartbeat_seen, stored_new, cancel_shown, pause_shown, \
         asked_to_leave, slept_ms, resume_waits, crash_count, max_attempts, backoff, \
         interruptions, relaunches, timeout_ms, request_timeout_ms, created_at, has_error, \
         has_read_signals, cpu_usec, memory_peak_bytes, running_ms, labels, heartbeat_timeout_ms, \
         expires_at) \
         values ((select max(r.instance) + 1 from runtara_removals r \
         where r.instance >= (select coalesce(max(i.id), 0) from runtara_instances i)), \
         ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ?, 0, 0, 0, ?, ?, ?, 0, 0, 0, 0, 0, ?, ?, ?)",
    )
    .bind(state.instance_id.as_str())
    .bind(state.tenant_id.as_str())
    .bind(state.image_id.as_ref().map(runtara_domain::ImageId::as_str))
    .bind(kind)
    .bind(origin_text(state.origin))
    .bind(state.status.as_str())
    .bind_opt_time(state.due_at)
    .bind(state.attempts.max_attempts)
    .bind_u64(state.timeout_ms)
    .bind(state.request_timeout_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)))
    .bind_time(state.created_at)
    .bind(labels)
    .bind(state.heartbeat_timeout_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)))
    .bind_opt_time(state.expires_at);
}

/// Collects the columns that differ, so that an index whose columns stay as they are is not touched.
pub(super) struct Changes<'a> {
    pub(super) sql: &'a mut Sql,
    pub(super) any: bool,
}

impl Changes<'_> {
    fn set<T: PartialEq>(
        &mut self,
        column: &'static str,
        (old, new): (&T, &T),
        bind: impl FnOnce(&mut Sql, &T),
    ) {
        if old == new {
            return;
        }
        if self.any {
            self.sql.push(", ");
        } else {
            self.sql.then("update runtara_instances set ");
            self.any = true;
        }
        self.sql.push(column).push(" = ?");
        bind(self.sql, new);
    }

    fn time(&mut self, column: &'static str, values: (&Option<Timestamp>, &Option<Timestamp>)) {
        self.set(column, values, |sql, time| {
            sql.bind_opt_time(*time);
        });
    }

    fn flag(&mut self, column: &'static str, values: (&bool, &bool)) {
        self.set(column, values, |sql, flag| {
            sql.bind(i64::from(*flag));
        });
    }

    pub(super) fn int(&mut self, column: &'static str, old: impl Into<i64>, new: impl Into<i64>) {
        self.set(column, (&old.into(), &new.into()), |sql, number| {
            sql.bind(*number);
        });
    }

    fn long(&mut self, column: &'static str, values: (&u64, &u64)) {
        self.set(column, values, |sql, number| {
            sql.bind_u64(*number);
        });
    }

    fn run(&mut self, old: &RunMarks, new: &RunMarks) {
        self.set("token", (&old.token, &new.token), |sql, token| {
            sql.bind(token.map(|token| token.0));
        });
        self.time("claimed_at", (&old.claimed_at, &new.claimed_at));
        self.flag("spoke", (&old.spoke, &new.spoke));
        self.flag("heartbeat_seen", (&old.heartbeat_seen, &new.heartbeat_seen));
        self.flag("stored_new", (&old.stored_new, &new.stored_new));
        self.flag("cancel_shown", (&old.cancel_shown, &new.cancel_shown));
        self.flag("pause_shown", (&old.pause_shown, &new.pause_shown));
        self.time("leave_by", (&old.leave_by, &new.leave_by));
        self.flag("asked_to_leave", (&old.asked_to_leave, &new.asked_to_leave));
        self.set("hold_park", (&old.hold, &new.hold), |sql, hold| {
            sql.bind(hold.as_ref().map(|hold| i64::from(hold.park)));
            sql.push(", hold_until = ?")
                .bind_opt_time(hold.as_ref().and_then(|hold| hold.until));
        });
        self.long("slept_ms", (&old.slept_ms, &new.slept_ms));
    }

    fn pending(&mut self, old: &Pending, new: &Pending) {
        self.set("cancel_at", (&old.cancel, &new.cancel), |sql, signal| {
            sql.bind_opt_time(signal.as_ref().map(|signal| signal.at));
            sql.push(", cancel_payload = ?")
                .bind_bytes(signal.as_ref().and_then(|signal| signal.payload.as_ref()));
        });
        self.set("pause_at", (&old.pause, &new.pause), |sql, signal| {
            sql.bind_opt_time(signal.as_ref().map(|signal| signal.at));
            sql.push(", pause_payload = ?")
                .bind_bytes(signal.as_ref().and_then(|signal| signal.payload.as_ref()));
        });
        self.flag("resume_waits", (&old.resume, &new.resume));
    }

    fn attempts(&mut self, old: Attempts, new: Attempts) {
        self.int("crash_count", old.crash_count, new.crash_count);
        self.int("backoff", old.backoff, new.backoff);
        self.int("interruptions", old.interruptions, new.interruptions);
        self.int("relaunches", old.relaunches, new.relaunches);
    }

    fn usage(&mut self, old: &Usage, new: &Usage) {
        self.long("cpu_usec", (&old.cpu_usec, &new.cpu_usec));
        self.long(
            "memory_peak_bytes",
            (&old.memory_peak_bytes, &new.memory_peak_bytes),
        );
        self.long("running_ms", (&old.running_ms, &new.running_ms));
    }

    fn time_in_states(&mut self, old: &InstanceState, new: &InstanceState) {
        self.set(
            "status_since",
            (&old.status_since, &new.status_since),
            |sql, since| {
                sql.bind_time(*since);
            },
        );
        let (old, new) = (&old.time_in_states, &new.time_in_states);
        self.long("pending_time_ms", (&old.pending_ms, &new.pending_ms));
        self.long("running_time_ms", (&old.running_ms, &new.running_ms));
        self.long("suspended_time_ms", (&old.suspended_ms, &new.suspended_ms));
    }

    /// All but what never changes: ids, origin, limits, the time of the start.
    pub(super) fn state(&mut self, old: &InstanceState, new: &InstanceState) {
        self.set("status", (&old.status, &new.status), |sql, status| {
            sql.bind(status.as_str());
        });
        self.set("reason", (&old.reason, &new.reason), |sql, reason| {
            sql.bind(reason.map(runtara_domain::Reason::as_str));
        });
        self.time("due_at", (&old.due_at, &new.due_at));
        self.set(
            "waiting_for",
            (&old.waiting_for, &new.waiting_for),
            |sql, id| {
                sql.bind(id.as_ref().map(SignalId::as_str));
            },
        );
        self.set(
            "live_node",
            (&old.live_node, &new.live_node),
            |sql, node| {
                sql.bind(node.map(|node| node.to_string()));
            },
        );
        self.int("run_number", old.run_number.0, new.run_number.0);
        self.run(&old.run, &new.run);
        self.pending(&old.pending, &new.pending);
        self.attempts(old.attempts, new.attempts);
        self.time("started_at", (&old.started_at, &new.started_at));
        self.time("finished_at", (&old.finished_at, &new.finished_at));
        self.time("last_seen_at", (&old.last_seen_at, &new.last_seen_at));
        self.set(
            "checkpoint_id",
            (&old.checkpoint_id, &new.checkpoint_id),
            |sql, id| {
                sql.bind(id.as_ref().map(CheckpointId::as_str));
            },
        );
        self.set(
            "exit_code",
            (&old.exit_code, &new.exit_code),
            |sql, code| {
                sql.bind(*code);
            },
        );
        self.flag("has_error", (&old.has_error, &new.has_error));
        self.flag(
            "has_read_signals",
            (&old.has_read_signals, &new.has_read_signals),
        );
        self.usage(&old.usage, &new.usage);
        self.time_in_states(old, new);
    }
}

/// Reads the first row as the state of an instance with what was joined to it.
pub(super) fn read_with<'r>(row: &'r Row) -> StoreResult<(Loaded, Columns<'r>)> {
    let mut columns = Columns::of(row);
    let found = read_state(&mut columns)?;
    Ok((found, columns))
}
