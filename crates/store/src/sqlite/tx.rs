//! Batches of several requests, each durable as a whole, in a transaction of the database that may last over many batches.
//!
//! A request that fails after it has written something is taken back alone. That is rare: who is refused has written nothing. So it
//! costs those nothing that do not fail: the whole transaction is rolled back, what batches before have written is taken
//! over from the [redo log](super::redo) again, and what the other requests of the batch have written is run again.

use std::collections::BTreeMap;
use std::sync::Arc;

use runtara_domain::{InstanceId, InstanceState, Status, TenantId, Timestamp};
use rusqlite::Connection;

use super::anchors::Membership;
use super::failure::{failed, unavailable};
use super::known::Known;
use super::redo::{self, Lap, Mark, Redo};
use super::sql::{Columns, Row, Sql};
use super::state::Loaded;
use crate::{Clock, StoreError, StoreResult};

/// What a request works with.
pub(super) struct Tx {
    pub(super) connection: Option<Connection>,
    redo: Redo,
    /// How much of the redo log the database has committed.
    committed: Mark,
    /// Whether a new lap of the redo log is to begin before anything is written.
    wants_lap: bool,
    /// Whether there is a transaction.
    is_open: bool,
    /// What the requests of the batch have written.
    written: Vec<(usize, Sql)>,
    clock: Arc<dyn Clock>,
    /// The time of the request.
    pub(super) now: Timestamp,
    /// How many bytes wait in answers until the commit, as far as they count.
    pub(super) bytes_held: usize,
    /// The number of the request within the batch.
    request: usize,
    /// Whether the request has begun to write.
    has_written: bool,
    /// Why the whole batch failed.
    lost: Option<String>,
    counts: Vec<(usize, TenantId, Status, i64)>,
    members: Vec<(usize, Timestamp, Membership)>,
    after: Vec<(usize, After)>,
    known: Known,
}

/// A state into which an instance came.
pub(super) enum After {
    Made(Box<InstanceState>),
    Changed(Arc<Loaded>),
}

impl After {
    pub(super) fn state(&self) -> &InstanceState {
        match self {
            Self::Made(state) => state,
            Self::Changed(loaded) => &loaded.state,
        }
    }
}

/// What became of a batch.
pub(super) struct Outcome {
    /// Why nothing of it happened.
    pub(super) lost: Option<String>,
    /// How instances changed the lists that they are in, by the time of their start.
    pub(super) members: Vec<(Timestamp, Membership)>,
    /// The states into which instances came.
    pub(super) after: Vec<After>,
}

impl Tx {
    pub(super) fn new(connection: Connection, redo: Redo, clock: Arc<dyn Clock>) -> Self {
        Self {
            connection: Some(connection),
            committed: redo.mark(),
            redo,
            wants_lap: true,
            is_open: false,
            written: Vec::new(),
            now: clock.now(),
            clock,
            bytes_held: 0,
            request: 0,
            has_written: false,
            lost: None,
            counts: Vec::new(),
            members: Vec::new(),
            after: Vec::new(),
            known: Known::default(),
        }
    }

    /// Whether something was answered that only this connection sees.
    pub(super) fn is_ahead(&self) -> bool {
        self.committed != self.redo.mark()
    }

    /// Begins a batch. If that fails everybody is told so at its end.
    pub(super) fn begin(&mut self) {
        self.bytes_held = 0;
        if self.is_open {
            return;
        }
        if let Err(error) = self.open() {
            self.lose(&error);
        }
    }

    /// Begins a transaction, on a database that has all that was answered.
    fn open(&mut self) -> StoreResult<()> {
        self.take_over()?;
        if self.wants_lap {
            self.begin_lap()?;
        }
        self.rows(&Sql::new("begin immediate"), "beginning a transaction")?;
        self.is_open = true;
        let version = self.version();
        self.known.begin(version);
        Ok(())
    }

    /// The database's own count of what other connections have changed.
    fn version(&mut self) -> Option<i64> {
        let asked = self.row(
            &Sql::new("pragma data_version"),
            "asking for changes by others",
        );
        Columns::of(&asked.ok()??).int().ok()
    }

    /// Begins a request.
    pub(super) fn next(&mut self, request: usize) {
        self.now = self.clock.now();
        self.request = request;
        self.has_written = false;
    }

    /// Asks a question: all rows.
    pub(super) fn rows(&mut self, question: &Sql, what: &str) -> StoreResult<Vec<Row>> {
        question.run_here(self.usable()?, what)
    }

    /// Asks a question: the first row.
    pub(super) fn row(&mut self, question: &Sql, what: &str) -> StoreResult<Option<Row>> {
        let rows = self.rows(question, what)?;
        Ok(rows.into_iter().next())
    }

    /// Runs statements that change something.
    pub(super) fn execute(&mut self, sql: Sql) -> StoreResult<()> {
        self.execute_for_rows(sql).map(drop)
    }

    /// Runs statements that change something: all rows that the last one returns.
    pub(super) fn execute_for_rows(&mut self, sql: Sql) -> StoreResult<Vec<Row>> {
        if sql.is_empty() {
            return Ok(Vec::new());
        }
        self.has_written = true;
        let rows = match self.transaction() {
            Ok(connection) => sql.run_here(connection, "writing")?,
            Err(error) => {
                self.lose(&error);
                return Err(error);
            }
        };
        self.written.push((self.request, sql));
        Ok(rows)
    }

    /// Notes that there is a new instance.
    pub(super) fn came(&mut self, state: &InstanceState) {
        self.count(state, state.status, 1, Membership::Came);
    }

    /// Notes that an instance has another status than before.
    pub(super) fn moved(&mut self, before: Status, state: &InstanceState) {
        self.count(state, before, -1, Membership::Moved);
        self.count(state, state.status, 1, Membership::Moved);
    }

    /// How many instances of a tenant have a status, with what this batch has changed.
    pub(super) fn instances_of(&mut self, tenant: &TenantId, status: Status) -> StoreResult<u64> {
        let mut sql =
            Sql::new("select instances from runtara_counts where tenant_id = ? and status = ?");
        sql.bind(tenant.as_str()).bind(status.as_str());
        let row = self.row(&sql, "counting instances")?;
        let kept = row.map_or(Ok(0), |row| Columns::of(&row).int())?;
        let count = kept + self.changed_counts(tenant, status);
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// By how many this batch has changed that.
    pub(super) fn changed_counts(&self, tenant: &TenantId, status: Status) -> i64 {
        let changed = self.counts.iter();
        changed
            .filter(|(_, of, in_status, _)| of == tenant && *in_status == status)
            .map(|(.., by)| by)
            .sum()
    }

    /// Notes that an instance is gone.
    pub(super) fn left(&mut self, state: &InstanceState) {
        self.count(state, state.status, -1, Membership::Left);
    }

    fn count(&mut self, state: &InstanceState, status: Status, by: i64, how: Membership) {
        let tenant = state.tenant_id.clone();
        self.counts.push((self.request, tenant, status, by));
        self.members.push((self.request, state.created_at, how));
    }

    /// Has the nudges given that follow from a state, once it is durable.
    pub(super) fn nudge_after(&mut self, state: After) {
        self.after.push((self.request, state));
    }

    /// The state of an instance, if it is known without asking the database.
    pub(super) fn known(&mut self, id: &InstanceId) -> Option<Arc<Loaded>> {
        self.known.get(id)
    }

    /// Notes what was found of an instance.
    pub(super) fn found(&mut self, found: Loaded) -> Arc<Loaded> {
        let found = Arc::new(found);
        self.known.found(&found);
        found
    }

    /// Notes what was written of an instance.
    pub(super) fn wrote(&mut self, written: Loaded) -> Arc<Loaded> {
        let written = Arc::new(written);
        self.known.wrote(self.request, &written);
        written
    }

    /// The connection, if the transaction still stands.
    fn usable(&self) -> StoreResult<&Connection> {
        if let Some(why) = &self.lost {
            return Err(unavailable(why.as_str()));
        }
        let connection = self.connection.as_ref();
        connection.ok_or_else(|| unavailable("the database could not be opened"))
    }

    /// The connection, if it has a transaction. SQLite takes back a whole transaction by itself after some errors; what is written
    /// then would be committed alone.
    fn transaction(&self) -> StoreResult<&Connection> {
        let connection = self.usable()?;
        if connection.is_autocommit() {
            return Err(unavailable("the database has rolled back the transaction"));
        }
        Ok(connection)
    }

    /// Takes back what the current request wrote: it has failed.
    pub(super) fn undo(&mut self) {
        let current = self.request;
        self.written.retain(|(request, _)| *request != current);
        self.counts.retain(|(request, ..)| *request != current);
        self.members.retain(|(request, ..)| *request != current);
        self.after.retain(|(request, _)| *request != current);
        self.known.undo(current);
        if self.has_written
            && self.lost.is_none()
            && let Err(error) = self.begin_again()
        {
            self.lose(&error);
        }
    }

    /// Begins the batch anew, with what its requests have written.
    fn begin_again(&mut self) -> StoreResult<()> {
        self.abandon();
        self.open()?;
        let connection = self.usable()?;
        self.written
            .iter()
            .try_for_each(|(_, sql)| sql.run_here(connection, "writing again").map(drop))
    }

    /// Writes the counts, and makes the batch durable.
    pub(super) fn commit(&mut self) {
        if self.lost.is_none()
            && let Err(error) = self.execute(self.counts())
        {
            self.lose(&error);
        }
        if self.lost.is_some() || self.written.is_empty() {
            return;
        }
        let statements = self.written.iter().map(|(_, sql)| sql);
        let done = match self.redo.append(statements) {
            Ok(true) => Ok(()),
            Ok(false) => self.begin_lap(),
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            self.lose(&error);
        }
    }

    fn counts(&self) -> Sql {
        let mut counts = BTreeMap::new();
        for (_, tenant, status, by) in &self.counts {
            *counts.entry((tenant, status)).or_insert(0) += by;
        }
        let mut sql = Sql::default();
        for ((tenant, status), by) in counts.into_iter().filter(|(_, by)| *by != 0) {
            sql.then(
                "insert into runtara_counts (tenant_id, status, instances) values (?, ?, ?) \
                 on conflict (tenant_id, status) do update \
                 set instances = instances + excluded.instances",
            )
            .bind(tenant.as_str())
            .bind(status.as_str())
            .bind(by);
        }
        sql
    }

    /// Commits what was written, for all to see.
    ///
    /// # Errors
    /// As the database answers. What was answered is in the redo log, and is taken over from there at the next try.
    pub(super) fn publish(&mut self) -> StoreResult<()> {
        if !self.is_open {
            return self.take_over();
        }
        let mark = self.redo.mark();
        let mut sql = if self.is_ahead() {
            redo::note(mark)
        } else {
            Sql::default()
        };
        sql.then("commit");
        let connection = self.transaction();
        let done = connection.and_then(|connection| sql.run_here(connection, "committing"));
        runtara_failpoints::pass(runtara_failpoints::Point::RedoTakenOver);
        if done.is_ok() {
            self.is_open = false;
            self.committed = mark;
        } else {
            self.abandon();
        }
        done.map(drop)
    }

    /// Has the database commit what it lacks of that which was answered, if there is something.
    fn take_over(&mut self) -> StoreResult<()> {
        if self.is_ahead() {
            self.redo.catch_up(self.usable()?, self.committed)?;
            self.committed = self.redo.mark();
        }
        Ok(())
    }

    /// Begins a new lap of the redo log, with a database that has everything and has flushed it.
    fn begin_lap(&mut self) -> StoreResult<()> {
        self.publish()?;
        self.wants_lap = true;
        let mark = Mark {
            lap: Lap::new(),
            records: 0,
        };
        let connection = self.usable()?;
        // How a commit is flushed can be changed between transactions only. This one flushes all that were before it.
        let set = |how: &str| {
            let set = connection.pragma_update(None, "synchronous", how);
            set.map_err(|error| failed("setting how commits are flushed", error))
        };
        set("full")?;
        let noted = redo::note(mark).run_here(connection, "beginning a lap of the redo log");
        set("normal")?;
        noted?;
        self.redo.begin(mark.lap);
        self.committed = mark;
        self.wants_lap = false;
        Ok(())
    }

    /// Closes the database, with everything in it, and removes the redo log.
    ///
    /// # Errors
    /// As the database answers. Then the log is left, for the next one to take over.
    pub(super) fn close(mut self) -> StoreResult<()> {
        self.begin_lap()?;
        let Some(connection) = self.connection.take() else {
            return Err(unavailable("the database could not be opened"));
        };
        let checkpoint = Sql::new("pragma wal_checkpoint(truncate)");
        checkpoint.run_here(&connection, "emptying the log of writes")?;
        let closed = connection.close();
        closed.map_err(|(_, error)| failed("closing the database", error))?;
        self.redo.remove();
        Ok(())
    }

    fn lose(&mut self, error: &StoreError) {
        self.lost = Some(match error {
            StoreError::Unavailable {
                context,
                source: Some(source),
            }
            | StoreError::Broken {
                context,
                source: Some(source),
            } => format!("{context}: {source}"),
            StoreError::Unavailable { context, .. } | StoreError::Broken { context, .. } => {
                context.clone()
            }
            StoreError::Refused(_) => error.to_string(),
        });
    }

    /// Ends the batch, whatever became of it, and says what did.
    pub(super) fn end(&mut self) -> Outcome {
        self.counts.clear();
        self.written.clear();
        let lost = self.lost.take();
        self.known.end();
        let mut after = std::mem::take(&mut self.after);
        let mut members = std::mem::take(&mut self.members);
        if lost.is_some() {
            self.abandon();
            after.clear();
            members.clear();
        }
        Outcome {
            members: members.into_iter().map(|(_, at, how)| (at, how)).collect(),
            after: after.into_iter().map(|(_, state)| state).collect(),
            lost,
        }
    }

    /// Leaves a transaction that failed. A connection that cannot even do that is opened anew for the next one.
    fn abandon(&mut self) {
        self.is_open = false;
        self.known.clear();
        let Some(connection) = self.connection.as_ref() else {
            return;
        };
        // Fails where SQLite has rolled back by itself; whether it did is seen by a transaction that does begin.
        let _rolled_back_already = Sql::new("rollback").run_here(connection, "leaving");
        let mut probe = Sql::new("begin");
        probe.then("rollback");
        if probe.run_here(connection, "trying the connection").is_err() {
            self.connection = None;
        }
    }
}

#[cfg(test)]
mod tests;
