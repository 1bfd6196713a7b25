//! One transaction of several requests.
//!
//! Each request is rolled back alone if it fails, to the savepoint before it. A request that only looks makes no savepoint.

use std::collections::BTreeMap;
use std::sync::Arc;

use runtara_domain::{InstanceState, Status, TenantId, Timestamp};
use rusqlite::Connection;

use super::anchors::Membership;
use super::failure::unavailable;
use super::sql::{Row, Sql};
use crate::{Clock, StoreError, StoreResult};

/// What a request works with.
pub(super) struct Tx {
    pub(super) connection: Option<Connection>,
    clock: Arc<dyn Clock>,
    /// The time of the request.
    pub(super) now: Timestamp,
    /// How many bytes wait in answers until the commit, as far as they count.
    pub(super) bytes_held: usize,
    /// The number of the request within the transaction.
    request: usize,
    /// Whether the request has a savepoint of its own yet.
    has_savepoint: bool,
    /// Why the whole transaction failed.
    lost: Option<String>,
    counts: Vec<(usize, TenantId, Status, i64)>,
    members: Vec<(usize, Timestamp, Membership)>,
    after: Vec<(usize, InstanceState)>,
}

/// What became of a transaction.
pub(super) struct Outcome {
    /// Why nothing of it happened.
    pub(super) lost: Option<String>,
    /// How instances changed the lists that they are in, by the time of their start.
    pub(super) members: Vec<(Timestamp, Membership)>,
    /// The states into which instances came.
    pub(super) after: Vec<InstanceState>,
}

impl Tx {
    pub(super) fn new(connection: Connection, clock: Arc<dyn Clock>) -> Self {
        Self {
            connection: Some(connection),
            now: clock.now(),
            clock,
            bytes_held: 0,
            request: 0,
            has_savepoint: false,
            lost: None,
            counts: Vec::new(),
            members: Vec::new(),
            after: Vec::new(),
        }
    }

    /// Begins a transaction. If that fails everybody is told so at its end.
    pub(super) fn begin(&mut self) {
        self.bytes_held = 0;
        let mut begin = Sql::new("begin immediate");
        begin.then("savepoint runtara");
        self.run_for_all(&begin, "beginning a transaction");
    }

    /// Begins a request.
    pub(super) fn next(&mut self, request: usize) {
        self.now = self.clock.now();
        self.request = request;
        self.has_savepoint = false;
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
    pub(super) fn execute(&mut self, sql: &Sql) -> StoreResult<()> {
        if sql.is_empty() {
            return Ok(());
        }
        if !self.has_savepoint {
            // That of the request before is let go only now, so there is always one to go back to.
            let mut own = Sql::new("release runtara");
            own.then("savepoint runtara");
            self.run_for_all(&own, "marking the begin of a request");
            self.has_savepoint = true;
        }
        self.rows(sql, "writing").map(drop)
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
    pub(super) fn nudge_after(&mut self, state: InstanceState) {
        self.after.push((self.request, state));
    }

    /// The connection, if the transaction still stands.
    fn usable(&self) -> StoreResult<&Connection> {
        if let Some(why) = &self.lost {
            return Err(unavailable(why.as_str()));
        }
        let connection = self.connection.as_ref();
        connection.ok_or_else(|| unavailable("the database could not be opened"))
    }

    /// Runs statements without which the transaction is lost.
    fn run_for_all(&mut self, sql: &Sql, what: &str) {
        if self.lost.is_some() {
            return;
        }
        if let Err(error) = self.rows(sql, what) {
            self.lose(what, &error);
        }
    }

    /// Takes back what the current request wrote: it has failed.
    pub(super) fn undo(&mut self) {
        let current = self.request;
        self.counts.retain(|(request, ..)| *request != current);
        self.members.retain(|(request, ..)| *request != current);
        self.after.retain(|(request, _)| *request != current);
        if self.has_savepoint {
            // SQLite itself takes back the whole transaction after some errors. Then there is no savepoint any more.
            self.run_for_all(&Sql::new("rollback to runtara"), "taking back a request");
        }
    }

    /// Writes the counts and commits.
    pub(super) fn commit(&mut self) {
        let ending = self.ending();
        self.run_for_all(&ending, "committing");
    }

    fn ending(&self) -> Sql {
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
        sql.then("commit");
        sql
    }

    fn lose(&mut self, what: &str, error: &StoreError) {
        self.lost = Some(match std::error::Error::source(error) {
            Some(source) => format!("{what}: {source}"),
            None => format!("{what}: {error}"),
        });
    }

    /// Ends the transaction, whatever became of it, and says what did.
    pub(super) fn end(&mut self) -> Outcome {
        self.counts.clear();
        let lost = self.lost.take();
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
