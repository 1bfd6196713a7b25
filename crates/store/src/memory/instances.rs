//! What is asked of instances from outside: starts, changes, signals, purges.

use bytes::Bytes;
use runtara_domain::{
    Change, InstanceId, InstanceState, NewInstance, Refusal, SignalId, Status, Timestamp,
    transition,
};

use super::model::{Instance, Model, Told};
use crate::plan::KeptSignal;
use crate::{Changed, Purge, Started, StoreError, StoreResult};

impl Model {
    /// See [`crate::Store::start_instance`].
    pub fn start_instance(&mut self, new: NewInstance, now: Timestamp) -> Started {
        if let Some(known) = self.instances.get(&new.instance_id) {
            let state = &known.state;
            let same_tenant = state.tenant_id == new.tenant_id;
            let same_image = state.image_id.as_ref() == Some(&new.image_id);
            return if same_tenant && same_image && known.input.as_ref() == Some(&new.input) {
                Started::Same(Box::new(state.clone()))
            } else {
                Started::Taken { same_tenant }
            };
        }
        let is_of_tenant =
            |image: &super::model::Image| !image.deleted && image.record.tenant_id == new.tenant_id;
        if !self.images.get(&new.image_id).is_some_and(is_of_tenant) {
            return Started::ImageNotFound;
        }
        if let Some(allowed) = new.pending_allowed {
            let states = self.instances.values().map(|instance| &instance.state);
            let of_tenant = states.filter(|state| state.tenant_id == new.tenant_id);
            let pending = of_tenant.filter(|state| state.status == Status::Pending);
            let pending = pending.count() as u64;
            if pending >= allowed {
                return Started::TooManyPending { pending };
            }
        }
        let state = InstanceState::started(&new, now);
        let instance = Instance {
            labels: new.labels,
            input: Some(new.input),
            env: new.env,
            args: new.args,
            settings: new.settings,
            max_events: new.max_events,
            ..Instance::new(state.clone())
        };
        self.instances.insert(new.instance_id, instance);
        self.tell(Told::State(Box::new(state.clone())));
        Started::New(Box::new(state))
    }

    /// See [`crate::Store::change`].
    ///
    /// # Errors
    /// As [`transition`] refuses; unknown instances; a resume without an image; changes that come with calls and claims.
    pub fn change(
        &mut self,
        id: &InstanceId,
        change: &Change,
        now: Timestamp,
    ) -> StoreResult<Changed> {
        if let Change::Claim { .. } | Change::Call(..) | Change::SignalArrived { .. } = change {
            return Err(StoreError::Broken {
                context: "this change has a method of its own".to_owned(),
                source: None,
            });
        }
        let state = &self.known(id)?.state;
        let decided = transition(state, change, now)?;
        let image = decided.state.image_id.as_ref();
        let has_image = image.is_some_and(|image| self.images.contains_key(image));
        if *change == Change::Resume && !has_image {
            return Err(Refusal::NoImage.into());
        }
        let changed = Changed {
            state: decided.state.clone(),
            applied: decided.applied,
        };
        self.apply(id, decided, now, |_| {});
        Ok(changed)
    }

    /// See [`crate::Store::send_signal`].
    ///
    /// # Errors
    /// [`Refusal`] if the instance is unknown or has ended.
    pub fn send_signal(
        &mut self,
        id: &InstanceId,
        signal_id: &SignalId,
        payload: Option<Bytes>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let arrived = Change::SignalArrived {
            signal_id: signal_id.clone(),
        };
        let decided = transition(&self.known(id)?.state, &arrived, now)?;
        self.apply(id, decided, now, |instance| {
            let run = instance.state.run_number;
            let kept = instance.signals.entry(signal_id.clone()).or_default();
            kept.retain(|signal| !signal.is_visible_to(run));
            kept.push(KeptSignal {
                payload,
                read_by: None,
                read_request: None,
            });
        });
        self.tell(Told::Changed(id.clone()));
        Ok(())
    }

    /// See [`crate::Store::purge_instance`].
    pub fn purge_instance(&mut self, id: &InstanceId) -> Purge {
        let Some(instance) = self.instances.get(id) else {
            return Purge::NotFound;
        };
        let state = &instance.state;
        if !state.status.is_end() {
            return Purge::NotEnded(state.status);
        }
        if state.live_node.is_some() {
            return Purge::ProcessLeaving;
        }
        self.instances.remove(id);
        self.tell(Told::Changed(id.clone()));
        Purge::Purged
    }
}
