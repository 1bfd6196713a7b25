//! One transaction of several requests.
//!
//! Each request is rolled back alone if it fails, to the savepoint before it. What a request writes is not sent at once but
//! goes ahead of the next question, of whichever request, or of the commit: an errand to the thread of the connection costs
//! more than most statements. A request is therefore answered "done" here before its statements have run; which of them failed is
//! seen from how many ended well, and known before any answer is given.

use std::collections::BTreeMap;
use std::sync::Arc;

use runtara_domain::{InstanceState, Status, TenantId, Timestamp};
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::anchors::Membership;
use super::failure::{failed, unavailable};
use super::sql::Sql;
use crate::{Clock, StoreError, StoreResult};

/// What a request works with.
pub(super) struct Tx {
    pub(super) connection: Option<SqliteConnection>,
    clock: Arc<dyn Clock>,
    /// The time of the request.
    pub(super) now: Timestamp,
    /// How many bytes wait in answers until the commit, as far as they count.
    pub(super) bytes_held: usize,
    /// The number of the request within the transaction.
    request: usize,
    /// Whether the request has a savepoint of its own yet.
    has_savepoint: bool,
    /// Whether something that the request wrote was sent.
    has_sent: bool,
    /// What is still to be sent, and whose it is; the beginning of the transaction is nobody's.
    unsent: Vec<(Option<usize>, Sql)>,
    /// Requests that failed after they had thought themselves done.
    failed: BTreeMap<usize, StoreError>,
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
    /// Requests of which nothing happened.
    pub(super) failed: BTreeMap<usize, StoreError>,
    /// How instances changed the lists that they are in, by the time of their start.
    pub(super) members: Vec<(Timestamp, Membership)>,
    /// The states into which instances came.
    pub(super) after: Vec<InstanceState>,
}

impl Tx {
    pub(super) fn new(connection: SqliteConnection, clock: Arc<dyn Clock>) -> Self {
        Self {
            connection: Some(connection),
            now: clock.now(),
            clock,
            bytes_held: 0,
            request: 0,
            has_savepoint: false,
            has_sent: false,
            unsent: Vec::new(),
            failed: BTreeMap::new(),
            lost: None,
            counts: Vec::new(),
            members: Vec::new(),
            after: Vec::new(),
        }
    }

    /// Begins a transaction.
    pub(super) fn begin(&mut self) {
        let mut begin = Sql::new("begin immediate");
        begin.then("savepoint runtara");
        self.unsent.push((None, begin));
        self.bytes_held = 0;
    }

    /// Begins a request.
    pub(super) fn next(&mut self, request: usize) {
        self.now = self.clock.now();
        self.request = request;
        self.has_savepoint = false;
        self.has_sent = false;
    }

    /// Asks a question: all rows.
    pub(super) async fn rows(&mut self, question: Sql, what: &str) -> StoreResult<Vec<SqliteRow>> {
        self.send(|_| question.clone(), what).await
    }

    /// Sends what is unsent, and then what `last` makes. Where something unsent fails, its request is taken back, and the rest is sent
    /// again with a new `last`.
    async fn send(
        &mut self,
        last: impl Fn(&Self) -> Sql,
        what: &str,
    ) -> StoreResult<Vec<SqliteRow>> {
        loop {
            let mut errand = Sql::default();
            let mut ends = Vec::with_capacity(self.unsent.len());
            for (_, sql) in &self.unsent {
                errand.append(sql.clone());
                ends.push(errand.statements());
            }
            errand.append(last(self));
            let errand = errand.run(self.usable()?).await;
            let stopped_at = ends.iter().position(|end| errand.done < *end);
            match (errand.failure, stopped_at) {
                (Some(error), Some(at)) => self.blame(at, failed("writing", error)).await?,
                (failure, _) => {
                    let current = Some(self.request);
                    self.has_sent |= self.unsent.iter().any(|(request, _)| *request == current);
                    self.unsent.clear();
                    return match failure {
                        None => Ok(errand.rows),
                        Some(error) => Err(failed(what, error)),
                    };
                }
            }
        }
    }

    /// Asks a question: the first row.
    pub(super) async fn row(
        &mut self,
        question: Sql,
        what: &str,
    ) -> StoreResult<Option<SqliteRow>> {
        let rows = self.rows(question, what).await?;
        Ok(rows.into_iter().next())
    }

    /// Has statements run that change something, before the next question and before the commit.
    pub(super) fn execute(&mut self, sql: Sql) {
        if sql.is_empty() {
            return;
        }
        let mut own = Sql::default();
        if !self.has_savepoint {
            // The savepoint of the request before is let go only now, so there is always one to go back to.
            own.then("release runtara").then("savepoint runtara");
            self.has_savepoint = true;
        }
        own.append(sql);
        self.unsent.push((Some(self.request), own));
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

    /// The connection, if the transaction and the current request still stand.
    fn usable(&mut self) -> StoreResult<&mut SqliteConnection> {
        if let Some(why) = &self.lost {
            return Err(unavailable(why.as_str()));
        }
        if self.failed.contains_key(&self.request) {
            return Err(unavailable("an earlier statement of the request failed"));
        }
        let connection = self.connection.as_mut();
        connection.ok_or_else(|| unavailable("the database could not be opened"))
    }

    /// Takes back a request whose statements failed, and leaves those before it.
    async fn blame(&mut self, at: usize, error: StoreError) -> StoreResult<()> {
        let Some(request) = self.unsent[at].0 else {
            return Err(self.lose("beginning a transaction", &error));
        };
        self.unsent.drain(..=at);
        self.unsent.retain(|(of, _)| *of != Some(request));
        self.failed.insert(request, error);
        self.roll_back().await
    }

    /// Goes back to the newest savepoint. SQLite itself rolls the whole transaction back after some errors; then this fails, for
    /// there is no savepoint any more.
    async fn roll_back(&mut self) -> StoreResult<()> {
        let back = Sql::new("rollback to runtara");
        let Some(connection) = self.connection.as_mut() else {
            return Err(unavailable("the database could not be opened"));
        };
        let result = back.execute(connection, "rolling back a request").await;
        result.map_err(|error| self.lose("rolling back a request", &error))
    }

    /// Takes back what the current request wrote: it has failed by its own account.
    pub(super) async fn undo(&mut self) {
        let current = Some(self.request);
        self.unsent.retain(|(request, _)| *request != current);
        self.counts
            .retain(|(request, ..)| Some(*request) != current);
        self.after.retain(|(request, _)| Some(*request) != current);
        if self.has_sent && self.lost.is_none() {
            // If it fails, the transaction is lost, and everybody is told so at its end.
            let _lost = self.roll_back().await;
        }
    }

    /// Writes the counts and commits.
    pub(super) async fn commit(&mut self) {
        // Nobody's: what fails now is blamed on those who wrote it.
        self.request = usize::MAX;
        if self.lost.is_some() {
            return;
        }
        if let Err(error) = self.send(Self::ending, "committing").await
            && self.lost.is_none()
        {
            self.lose("committing", &error);
        }
    }

    fn ending(&self) -> Sql {
        let mut counts = BTreeMap::new();
        for (request, tenant, status, by) in &self.counts {
            if !self.failed.contains_key(request) {
                *counts.entry((tenant, status)).or_insert(0) += by;
            }
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

    fn lose(&mut self, what: &str, error: &StoreError) -> StoreError {
        let why = match std::error::Error::source(error) {
            Some(source) => format!("{what}: {source}"),
            None => format!("{what}: {error}"),
        };
        self.lost = Some(why.clone());
        unavailable(why)
    }

    /// Ends the transaction, whatever became of it, and says what did.
    pub(super) async fn end(&mut self) -> Outcome {
        self.unsent.clear();
        self.counts.clear();
        let lost = self.lost.take();
        let failed = std::mem::take(&mut self.failed);
        let mut after = std::mem::take(&mut self.after);
        let mut members = std::mem::take(&mut self.members);
        if lost.is_some() {
            self.abandon().await;
            after.clear();
            members.clear();
        }
        after.retain(|(request, _)| !failed.contains_key(request));
        members.retain(|(request, ..)| !failed.contains_key(request));
        Outcome {
            members: members.into_iter().map(|(_, at, how)| (at, how)).collect(),
            after: after.into_iter().map(|(_, state)| state).collect(),
            failed,
            lost,
        }
    }

    /// Leaves a transaction that failed. A connection that cannot even do that is opened anew for the next one.
    async fn abandon(&mut self) {
        let Some(connection) = self.connection.as_mut() else {
            return;
        };
        // Fails where SQLite has rolled back by itself; whether it did is seen by a transaction that does begin.
        let _rolled_back_already = Sql::new("rollback").run(connection).await;
        let mut probe = Sql::new("begin");
        probe.then("rollback");
        if probe.run(connection).await.failure.is_some() {
            self.connection = None;
        }
    }
}
