//! What happens to the events of a long instance.

use runtara_domain::{InstanceId, subtype};

use super::Model;
use super::model::{Event, Instance};
use crate::Folded;
use crate::folding::{Foldable, fold, is_foldable, to_take};

impl Instance {
    fn too_many(&self, limit: u32) -> Option<usize> {
        let take = to_take(self.max_events?, self.events.len() as u64, limit)?;
        usize::try_from(take).ok()
    }
}

fn may_go(event: &Event) -> bool {
    is_foldable(event.event.kind, event.event.subtype.as_deref())
}

fn foldable(event: &Event) -> Foldable {
    let is_folded = event.event.subtype.as_deref() == Some(subtype::FOLDED);
    let payload = event.event.payload.as_deref().filter(|_| is_folded);
    Foldable {
        seq: event.seq,
        created_at: event.created_at,
        run_number: event.run_number,
        folded: payload.and_then(|payload| serde_json::from_slice(payload).ok()),
    }
}

impl Model {
    /// See [`crate::Store::overfull_instances`].
    #[must_use]
    pub fn overfull_instances(&self, ids: &[InstanceId]) -> Vec<InstanceId> {
        let is_overfull = |id: &&InstanceId| {
            let instance = self.instances.get(*id);
            instance.is_some_and(|instance| instance.too_many(2).is_some())
        };
        ids.iter().filter(is_overfull).cloned().collect()
    }

    /// See [`crate::Store::fold_events`].
    pub fn fold_events(&mut self, id: &InstanceId, limit: u32) -> Folded {
        let Some(instance) = self.instances.get_mut(id) else {
            return Folded::default();
        };
        let Some(take) = instance.too_many(limit) else {
            return Folded::default();
        };
        let oldest = instance.events.iter().filter(|event| may_go(event));
        let oldest: Vec<_> = oldest.take(take).map(foldable).collect();
        let (Some(event), Some(last)) = (fold(&oldest), oldest.last()) else {
            return Folded::default();
        };
        let stands = Event {
            seq: last.seq,
            event,
            created_at: last.created_at,
            run_number: last.run_number,
            request_id: None,
        };
        instance
            .events
            .retain(|event| event.seq > last.seq || !may_go(event));
        let place = instance
            .events
            .partition_point(|event| event.seq < last.seq);
        instance.events.insert(place, stands);
        Folded {
            events: oldest.len() as u64 - 1,
            more: instance.too_many(limit).is_some(),
        }
    }
}
