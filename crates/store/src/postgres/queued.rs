//! What runs say in great numbers: through the queues first, alone where it is not of the ordinary kind.
//!
//! What is done alone is boxed: the futures of the ordinary calls stay small, and they are moved often.

use std::sync::Arc;
use std::time::Duration;

use runtara_domain::{
    Caller, CheckpointId, Checkpointed, Fence, NewEvent, RaisedSignal, SaveCheckpoint, TenantId,
    TokenHash,
};
use uuid::Uuid;

use crate::Nudges;

use super::batches::{Mark, Marked, Marks, Record, Records, Save, Saves, Sign, Target};
use super::connections::Connections;
use super::error::Answer;
use super::lanes::{Lane, ROW_BYTES};
use super::{PostgresStore, calls, row, steady};

/// The queues of a store.
pub(super) struct Queues {
    steady_saves: Lane<steady::Saves>,
    looks: Lane<steady::Looks>,
    saves: Lane<Saves>,
    records: Lane<Records>,
    marks: Lane<Marks>,
}

impl Queues {
    pub(super) fn start(connections: &Arc<Connections>, nudges: &Nudges) -> Self {
        let target = Target {
            connections: Arc::clone(connections),
            nudges: nudges.clone(),
        };
        let options = connections.pool.options();
        let patience = options.get_acquire_timeout().max(Duration::from_millis(1));
        // Those of all queues together leave at least half of the connections to everything else.
        let statements = (options.get_max_connections() as usize / 10).clamp(1, 2);
        Self {
            steady_saves: Lane::start(steady::Saves(Arc::clone(connections)), statements, patience),
            looks: Lane::start(steady::Looks(Arc::clone(connections)), statements, patience),
            saves: Lane::start(Saves(target.clone()), statements, patience),
            records: Lane::start(Records(target.clone()), statements, patience),
            marks: Lane::start(Marks(target), statements, patience),
        }
    }

    /// Waits until everything that was asked for is answered; takes nothing more.
    pub(super) async fn close(&self) {
        self.steady_saves.close().await;
        self.looks.close().await;
        self.saves.close().await;
        self.records.close().await;
        self.marks.close().await;
    }

    /// Notes a sign of life, or finds that nothing of it needs noting.
    async fn mark(&self, caller: &Caller, token: TokenHash, sign: Sign) -> Answer<Option<Marked>> {
        let mark = Mark {
            instance_id: caller.instance_id.clone(),
            token,
            sign,
        };
        if !matches!(mark.sign, Sign::Register(_))
            && let Some(saved) = self.looks.ask(mark.clone()).await?
        {
            return Ok(Some(Marked {
                signal: None,
                saved,
            }));
        }
        self.marks.ask(mark).await
    }
}

/// Notes that a run is there.
pub(super) async fn register(
    store: &PostgresStore,
    caller: &Caller,
    tenant: &TenantId,
    checkpoint_id: Option<&CheckpointId>,
) -> Answer<()> {
    if let (Fence::Run(token), None) = (caller.fence, checkpoint_id) {
        let sign = Sign::Register(tenant.clone());
        if store.queues.mark(caller, token, sign).await?.is_some() {
            return Ok(());
        }
    }
    Box::pin(calls::register(store, caller, tenant, checkpoint_id)).await
}

/// Gets a checkpoint or saves it.
pub(super) async fn save_checkpoint(
    store: &PostgresStore,
    caller: &Caller,
    request: SaveCheckpoint,
) -> Answer<Checkpointed> {
    // A name of its own, so that a save that is repeated because its commit was not answered finds itself.
    let request_id = match &request.request_id {
        Some(given) => row::without_nul(given).into_owned(),
        None => Uuid::new_v4().to_string(),
    };
    let request = SaveCheckpoint {
        request_id: Some(request_id),
        ..request
    };
    if let Fence::Run(token) = caller.fence {
        let told = if request.state.is_empty() {
            look(store, caller, token, &request).await?
        } else {
            save(store, caller, token, &request).await?
        };
        if let Some(told) = told {
            return Ok(told);
        }
    }
    Box::pin(calls::save_checkpoint(store, caller, &request)).await
}

async fn save(
    store: &PostgresStore,
    caller: &Caller,
    token: TokenHash,
    request: &SaveCheckpoint,
) -> Answer<Option<Checkpointed>> {
    if request.state.len() > ROW_BYTES {
        return Ok(None);
    }
    let save = Save {
        instance_id: caller.instance_id.clone(),
        token,
        checkpoint_id: request.checkpoint_id.clone(),
        state: request.state.clone(),
        request_id: request.request_id.clone().unwrap_or_default(),
    };
    if let Some(()) = store.queues.steady_saves.ask(save.clone()).await? {
        return Ok(Some(Checkpointed::default()));
    }
    let saved = store.queues.saves.ask(save).await?;
    Ok(saved.map(|signal| Checkpointed {
        signal,
        ..Checkpointed::default()
    }))
}

async fn look(
    store: &PostgresStore,
    caller: &Caller,
    token: TokenHash,
    request: &SaveCheckpoint,
) -> Answer<Option<Checkpointed>> {
    let sign = Sign::Look(request.checkpoint_id.clone());
    let marked = store.queues.mark(caller, token, sign).await?;
    Ok(marked.map(|marked| {
        let by_others = |(_, by): &(_, Option<String>)| *by != request.request_id;
        Checkpointed {
            found: marked.saved.filter(by_others).map(|(state, _)| state),
            signal: marked.signal,
            custom_signal: None,
        }
    }))
}

/// The instance-wide signal that waits.
pub(super) async fn poll_signal(
    store: &PostgresStore,
    caller: &Caller,
) -> Answer<Option<RaisedSignal>> {
    if let Fence::Run(token) = caller.fence
        && let Some(marked) = store.queues.mark(caller, token, Sign::Poll).await?
    {
        return Ok(marked.signal);
    }
    Box::pin(calls::seen(store, caller, true, false)).await
}

/// Notes a sign of life.
pub(super) async fn heartbeat(store: &PostgresStore, caller: &Caller) -> Answer<()> {
    if let Fence::Run(token) = caller.fence
        && store
            .queues
            .mark(caller, token, Sign::Heartbeat)
            .await?
            .is_some()
    {
        return Ok(());
    }
    Box::pin(calls::seen(store, caller, false, true))
        .await
        .map(drop)
}

/// Appends an event.
pub(super) async fn record_event(
    store: &PostgresStore,
    caller: &Caller,
    event: NewEvent,
    request_id: Option<String>,
) -> Answer<()> {
    let request_id = request_id.unwrap_or_else(|| Uuid::new_v4().to_string());
    if let Fence::Run(token) = caller.fence {
        let record = Record {
            instance_id: caller.instance_id.clone(),
            token,
            event: event.clone(),
            request_id: request_id.clone(),
        };
        if store.queues.records.ask(record).await?.is_some() {
            return Ok(());
        }
    }
    Box::pin(calls::record_event(
        store,
        caller,
        &event,
        Some(&request_id),
    ))
    .await
}
