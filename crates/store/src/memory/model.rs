//! What the model knows, and the one place where a decided change is written.

use std::collections::BTreeMap;

use bytes::Bytes;
use runtara_domain::{
    CheckpointId, DatabaseId, ImageId, ImageRecord, InstanceId, InstanceState, Labels, NewEvent,
    NodeId, Refusal, RegistrationNumber, ResultChange, RunNumber, RunSettings, SignalId, Timestamp,
    Transition, WaitRecord,
};

use crate::plan::KeptSignal;
use crate::{NodeLease, StoredEvent, WaitKey};

/// All that a store knows, as plain values.
#[derive(Debug, Default)]
pub struct Model {
    pub(super) database_id: Option<DatabaseId>,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    /// The last number that was given to a registration.
    pub(super) registrations: u64,
    pub(super) images: BTreeMap<ImageId, Image>,
    pub(super) instances: BTreeMap<InstanceId, Instance>,
    told: Vec<Told>,
}

/// What is to be told once a change is done.
#[derive(Debug)]
pub enum Told {
    /// An instance came into this state.
    State(Box<InstanceState>),
    /// Something that belongs to an instance changed.
    Changed(InstanceId),
}

#[derive(Debug)]
pub(super) struct Node {
    /// What it said of itself at its last renewal.
    pub(super) lease: NodeLease,
    pub(super) registered_at: Timestamp,
    pub(super) lease_until: Timestamp,
    pub(super) drain_by: Option<Timestamp>,
    pub(super) removed: bool,
}

impl Node {
    /// Whether it has a lease.
    pub(super) fn lasts(&self, now: Timestamp) -> bool {
        self.lease_until > now && !self.removed
    }

    /// Whether it is given what is due.
    pub(super) fn may_claim(&self, now: Timestamp) -> bool {
        self.lasts(now) && self.drain_by.is_none()
    }
}

#[derive(Debug)]
pub(super) struct Image {
    pub(super) record: ImageRecord,
    pub(super) number: RegistrationNumber,
    pub(super) deleted: bool,
}

#[derive(Debug)]
pub(super) struct Instance {
    pub(super) state: InstanceState,
    pub(super) labels: Labels,
    pub(super) input: Option<Bytes>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) args: Vec<String>,
    pub(super) settings: RunSettings,
    pub(super) output: Option<Bytes>,
    pub(super) error: Option<String>,
    pub(super) stderr: Option<String>,
    /// In the order in which they were saved; the number of each is its place, from 1.
    pub(super) checkpoints: Vec<Checkpoint>,
    /// How many of its events are kept.
    pub(super) max_events: Option<u32>,
    /// In the order in which they were recorded.
    pub(super) events: Vec<Event>,
    /// The number of the last event.
    pub(super) event_seq: u64,
    /// In the order of their numbers.
    pub(super) waits: BTreeMap<WaitKey, Vec<WaitRecord>>,
    /// In the order in which they came.
    pub(super) signals: BTreeMap<SignalId, Vec<KeptSignal>>,
}

#[derive(Debug)]
pub(super) struct Checkpoint {
    pub(super) name: String,
    /// `None` for a record that a step was tried again.
    pub(super) state: Option<Bytes>,
    pub(super) created_at: Timestamp,
    pub(super) run_number: RunNumber,
    pub(super) request_id: Option<String>,
}

#[derive(Debug)]
pub(super) struct Event {
    pub(super) seq: u64,
    pub(super) event: NewEvent,
    pub(super) created_at: Timestamp,
    pub(super) run_number: RunNumber,
    pub(super) request_id: Option<String>,
}

impl Instance {
    pub(super) fn new(state: InstanceState) -> Self {
        Self {
            state,
            labels: Labels::default(),
            input: None,
            env: BTreeMap::new(),
            args: Vec::new(),
            settings: RunSettings::default(),
            output: None,
            error: None,
            stderr: None,
            checkpoints: Vec::new(),
            max_events: None,
            events: Vec::new(),
            event_seq: 0,
            waits: BTreeMap::new(),
            signals: BTreeMap::new(),
        }
    }

    /// Writes a decided change, whole.
    pub(super) fn apply(&mut self, transition: Transition, now: Timestamp) {
        let run = self.state.run_number;
        if transition.confirm_read_signals {
            self.retain_signals(|signal| signal.read_by != Some(run));
        }
        if transition.clear_signals {
            self.signals.clear();
        }
        self.state = transition.state;
        match transition.result {
            ResultChange::Keep => {}
            ResultChange::Clear => (self.output, self.error) = (None, None),
            ResultChange::Set { output, error } => (self.output, self.error) = (output, error),
        }
        if transition.stderr.is_some() {
            self.stderr = transition.stderr;
        }
        for event in transition.events {
            self.record(event, None, now);
        }
    }

    fn retain_signals(&mut self, keep: impl Fn(&KeptSignal) -> bool) {
        self.signals.retain(|_, signals| {
            signals.retain(&keep);
            !signals.is_empty()
        });
    }

    pub(super) fn record(&mut self, event: NewEvent, request_id: Option<String>, now: Timestamp) {
        self.event_seq += 1;
        self.events.push(Event {
            seq: self.event_seq,
            event,
            created_at: now,
            run_number: self.state.run_number,
            request_id,
        });
    }

    pub(super) fn save(
        &mut self,
        name: &CheckpointId,
        state: Bytes,
        request_id: Option<String>,
        now: Timestamp,
    ) {
        self.checkpoints.push(Checkpoint {
            name: name.as_str().to_owned(),
            state: Some(state),
            created_at: now,
            run_number: self.state.run_number,
            request_id,
        });
    }

    /// The newest version of a checkpoint, if any was saved.
    pub(super) fn saved(&self, name: &CheckpointId) -> Option<&Checkpoint> {
        self.checkpoints
            .iter()
            .rev()
            .find(|saved| saved.name == name.as_str() && saved.state.is_some())
    }

    /// The record of a retry of this name.
    pub(super) fn retry(&self, name: &CheckpointId) -> Option<&Checkpoint> {
        self.checkpoints
            .iter()
            .rev()
            .find(|retry| retry.name == name.as_str() && retry.state.is_none())
    }

    pub(super) fn stored_events(&self) -> impl DoubleEndedIterator<Item = (&Event, StoredEvent)> {
        self.events.iter().map(|event| {
            let stored = StoredEvent {
                seq: event.seq,
                kind: event.event.kind,
                subtype: event.event.subtype.clone(),
                checkpoint_id: event.event.checkpoint_id.clone(),
                payload: event.event.payload.clone(),
                created_at: event.created_at,
                run_number: event.run_number,
            };
            (event, stored)
        })
    }
}

impl Model {
    /// A model that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            database_id: Some(DatabaseId::generate()),
            ..Self::default()
        }
    }

    /// Takes what is to be told about the changes since this was last asked.
    pub fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    pub(super) fn tell(&mut self, told: Told) {
        self.told.push(told);
    }

    pub(super) fn known(&mut self, id: &InstanceId) -> Result<&mut Instance, Refusal> {
        self.instances.get_mut(id).ok_or(Refusal::InstanceUnknown)
    }

    /// Writes a decided change to one instance, with what else belongs to the same step.
    pub(super) fn apply(
        &mut self,
        id: &InstanceId,
        transition: Transition,
        now: Timestamp,
        also: impl FnOnce(&mut Instance),
    ) {
        let applied = transition.applied;
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        if applied {
            instance.apply(transition, now);
        }
        also(instance);
        if applied {
            let state = Box::new(instance.state.clone());
            self.told.push(Told::State(state));
        }
    }
}
