//! What runs say.

use bytes::Bytes;
use runtara_domain::{
    Call, Caller, CheckpointId, Checkpointed, InstanceState, NewEvent, RaisedSignal, Refusal,
    SaveCheckpoint, SignalId, TenantId, Timestamp, Word,
};

use super::model::{Checkpoint, Instance, Model};
use crate::plan::{self, KeptSignal, RecordChange, WaitPlan};
use crate::{Changed, HeldWait, WaitKey, WaitRequest, Waiting};

impl Instance {
    fn signal(&self, id: &SignalId, request_id: Option<&str>) -> Option<&KeptSignal> {
        let kept = self.signals.get(id)?;
        plan::signal_for(kept, self.state.run_number, request_id)
    }

    fn note_read(&mut self, id: &SignalId, request_id: Option<&str>) {
        let run = self.state.run_number;
        let kept = self.signals.get_mut(id).into_iter().flatten();
        let mut kept: Vec<_> = kept.collect();
        let at = kept
            .iter()
            .position(|signal| signal.was_read_by(run, request_id))
            .or_else(|| kept.iter().position(|signal| signal.is_visible_to(run)));
        if let Some(at) = at {
            kept[at].read_by = Some(run);
            kept[at].read_request = request_id.map(str::to_owned);
        }
    }

    fn note_wait(&mut self, key: &WaitKey, change: RecordChange) {
        let run = self.state.run_number;
        let records = self.waits.entry(key.clone()).or_default();
        match change {
            RecordChange::None => {}
            RecordChange::Insert(record) => records.push(record),
            RecordChange::Met { n, request_id } => {
                for record in records.iter_mut().filter(|record| record.n == n) {
                    record.met_by = run;
                    record.request_id.clone_from(&request_id);
                }
            }
        }
    }
}

impl Model {
    /// See [`crate::Store::register_instance`].
    ///
    /// # Errors
    /// [`Refusal`] by the fence, the tenant, where the instance stands, or the checkpoint.
    pub fn register_instance(
        &mut self,
        caller: &Caller,
        tenant: &TenantId,
        checkpoint_id: Option<CheckpointId>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let id = &caller.instance_id;
        let known = self.instances.get(id);
        let state = match (known, caller.fence) {
            (Some(instance), _) => instance.state.clone(),
            (None, runtara_domain::Fence::SelfRegistered) => {
                InstanceState::self_registered(id.clone(), tenant.clone(), now)
            }
            (None, runtara_domain::Fence::Run(_)) => return Err(Refusal::InstanceUnknown),
        };
        let register = Call::Register {
            tenant_id: tenant.clone(),
            checkpoint_id: checkpoint_id.clone(),
        };
        let decided = plan::call(&state, caller, register, now)?;
        if let Some(name) = checkpoint_id {
            let exists = known.is_some_and(|instance| instance.saved(&name).is_some());
            if !exists {
                return Err(Refusal::CheckpointUnknown { id: name });
            }
        }
        if known.is_none() {
            self.instances.insert(id.clone(), Instance::new(state));
        }
        self.apply(id, decided, now, |_| {});
        Ok(())
    }

    /// See [`crate::Store::save_checkpoint`].
    ///
    /// # Errors
    /// [`Refusal`] if the run may not call any more.
    pub fn save_checkpoint(
        &mut self,
        caller: &Caller,
        request: &SaveCheckpoint,
        now: Timestamp,
    ) -> Result<Checkpointed, Refusal> {
        let instance = self.known(&caller.instance_id)?;
        let name = &request.checkpoint_id;
        let request_id = request.request_id.as_deref();
        let saved = instance.saved(name).map(|saved| {
            let state = saved.state.clone().unwrap_or_default();
            (state, saved.request_id.clone())
        });
        // A signal's id and a checkpoint's name have the same form.
        let signal_id = SignalId::new(name.as_str()).ok();
        let kept = signal_id
            .as_ref()
            .and_then(|id| instance.signal(id, request_id));
        let plan = plan::save_checkpoint(&instance.state, caller, request, saved, kept, now)?;
        self.apply(&caller.instance_id, plan.transition, now, |instance| {
            if plan.store {
                let request_id = request.request_id.clone();
                instance.save(name, request.state.clone(), request_id, now);
            }
            if let Some(id) = signal_id.filter(|_| plan.take_signal) {
                instance.note_read(&id, request_id);
            }
        });
        Ok(plan.answer)
    }

    /// See [`crate::Store::poll_signal`].
    ///
    /// # Errors
    /// [`Refusal`] if the run may not call any more.
    pub fn poll_signal(
        &mut self,
        caller: &Caller,
        now: Timestamp,
    ) -> Result<Option<RaisedSignal>, Refusal> {
        let state = self.seen(caller, true, false, now)?;
        Ok(plan::visible_signal(&state))
    }

    /// See [`crate::Store::heartbeat`].
    ///
    /// # Errors
    /// [`Refusal`] if the run may not call any more.
    pub fn heartbeat(&mut self, caller: &Caller, now: Timestamp) -> Result<(), Refusal> {
        self.seen(caller, false, true, now).map(drop)
    }

    fn seen(
        &mut self,
        caller: &Caller,
        shows_signal: bool,
        heartbeat: bool,
        now: Timestamp,
    ) -> Result<InstanceState, Refusal> {
        let seen = Call::Seen {
            shows_signal,
            heartbeat,
        };
        let instance = self.known(&caller.instance_id)?;
        let decided = plan::call(&instance.state, caller, seen, now)?;
        let state = decided.state.clone();
        self.apply(&caller.instance_id, decided, now, |_| {});
        Ok(state)
    }

    /// See [`crate::Store::take_signal`].
    ///
    /// # Errors
    /// [`Refusal`] if the run may not call any more.
    pub fn take_signal(
        &mut self,
        caller: &Caller,
        signal_id: &SignalId,
        request_id: Option<&str>,
        now: Timestamp,
    ) -> Result<Option<Option<Bytes>>, Refusal> {
        let instance = self.known(&caller.instance_id)?;
        let kept = instance.signal(signal_id, request_id);
        let plan = plan::take_signal(&instance.state, caller, kept, request_id, now)?;
        self.apply(&caller.instance_id, plan.transition, now, |instance| {
            if plan.taken.is_some() {
                instance.note_read(signal_id, request_id);
            }
        });
        Ok(plan.taken)
    }

    /// See [`crate::Store::begin_wait`].
    ///
    /// # Errors
    /// [`Refusal`] if the run may not call any more.
    pub fn begin_wait(
        &mut self,
        caller: &Caller,
        request: &WaitRequest,
        now: Timestamp,
    ) -> Result<Waiting, Refusal> {
        let instance = self.known(&caller.instance_id)?;
        let request_id = request.call.request_id.as_deref();
        let kept = match &request.key {
            WaitKey::Signal(id) => instance.signal(id, request_id),
            WaitKey::Sleep(_) => None,
        };
        let records = instance.waits.get(&request.key);
        let records = records.map_or(&[][..], Vec::as_slice);
        let plan = plan::wait(&instance.state, caller, request, records, kept, now)?;
        Ok(self.apply_wait(caller, &request.key, plan, request_id, now))
    }

    /// See [`crate::Store::continue_wait`].
    ///
    /// # Errors
    /// [`Refusal`] if the run may not call any more.
    pub fn continue_wait(
        &mut self,
        caller: &Caller,
        held: &HeldWait,
        park_now: bool,
        now: Timestamp,
    ) -> Result<Waiting, Refusal> {
        let instance = self.known(&caller.instance_id)?;
        let records = instance.waits.get(&held.key).into_iter().flatten();
        let record = records
            .into_iter()
            .find(|record| record.n == held.n)
            .cloned();
        let request_id = record.as_ref().and_then(|record| record.request_id.clone());
        let kept = match &held.key {
            WaitKey::Signal(id) => instance.signal(id, request_id.as_deref()),
            WaitKey::Sleep(_) => None,
        };
        let state = &instance.state;
        let plan = plan::continue_wait(state, caller, held, record.as_ref(), kept, park_now, now)?;
        Ok(self.apply_wait(caller, &held.key, plan, request_id.as_deref(), now))
    }

    fn apply_wait(
        &mut self,
        caller: &Caller,
        key: &WaitKey,
        plan: WaitPlan,
        request_id: Option<&str>,
        now: Timestamp,
    ) -> Waiting {
        self.apply(&caller.instance_id, plan.transition, now, |instance| {
            instance.note_wait(key, plan.record);
            if let Some((name, state)) = plan.store {
                instance.save(&name, state, None, now);
            }
            if let WaitKey::Signal(id) = key
                && plan.take_signal
            {
                instance.note_read(id, request_id);
            }
        });
        plan.answer
    }

    /// See [`crate::Store::record_event`].
    ///
    /// # Errors
    /// [`Refusal`] if the run may not call any more.
    pub fn record_event(
        &mut self,
        caller: &Caller,
        event: NewEvent,
        request_id: Option<String>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        self.seen(caller, false, false, now)?;
        let instance = self.known(&caller.instance_id)?;
        let repeated = request_id.is_some()
            && instance
                .events
                .iter()
                .any(|event| event.request_id == request_id);
        if !repeated {
            instance.record(event, request_id, now);
        }
        Ok(())
    }

    /// See [`crate::Store::record_retry`].
    ///
    /// # Errors
    /// [`Refusal`] if the run may not call any more.
    pub fn record_retry(
        &mut self,
        caller: &Caller,
        checkpoint_id: &CheckpointId,
        attempt: u32,
        error: Option<&str>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let instance = self.known(&caller.instance_id)?;
        let name = format!("{checkpoint_id}::retry::{attempt}");
        let is_same = |saved: &Checkpoint| saved.state.is_none() && saved.name == name;
        let known = instance.checkpoints.iter().any(is_same);
        let state = &instance.state;
        let decided = plan::record_retry(state, caller, checkpoint_id, attempt, error, known, now)?;
        self.apply(&caller.instance_id, decided, now, |instance| {
            if !known {
                instance.checkpoints.push(Checkpoint {
                    name,
                    state: None,
                    created_at: now,
                    run_number: instance.state.run_number,
                    request_id: None,
                });
            }
        });
        Ok(())
    }

    /// See [`crate::Store::say`].
    ///
    /// # Errors
    /// [`Refusal`] by the fence.
    pub fn say(
        &mut self,
        caller: &Caller,
        word: &Word,
        our_fault: bool,
        now: Timestamp,
    ) -> Result<Changed, Refusal> {
        let instance = self.known(&caller.instance_id)?;
        let said = Call::Say {
            word: word.clone(),
            our_fault,
        };
        let decided = plan::call(&instance.state, caller, said, now)?;
        let stored = plan::state_of_word(word, &decided);
        let stored = stored.map(|(name, state)| (name.clone(), state.clone()));
        let changed = Changed {
            state: decided.state.clone(),
            applied: decided.applied,
        };
        self.apply(&caller.instance_id, decided, now, |instance| {
            if let Some((name, state)) = stored {
                instance.save(&name, state, None, now);
            }
        });
        Ok(changed)
    }
}
