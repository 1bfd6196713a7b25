//! What happens to ended instances when their time is over.

use runtara_domain::{InstanceId, Timestamp};

use super::Model;
use crate::{EndPlace, EndedInstance, Expired, ExpiredPage, Owners, Purge};

impl Model {
    /// See [`crate::Store::expired_instances`].
    #[must_use]
    pub fn expired_instances(&self, demand: &Expired, now: Timestamp) -> ExpiredPage {
        let ended_ms = i64::try_from(demand.ended_ms).unwrap_or(i64::MAX);
        let horizon = Timestamp(now.0.saturating_sub(ended_ms));
        let mut ended: Vec<_> = self
            .instances
            .values()
            .filter_map(|instance| {
                let state = &instance.state;
                if let Owners::Only(tenant) = &demand.owners
                    && *tenant != state.tenant_id
                {
                    return None;
                }
                let place = EndPlace {
                    finished_at: state.finished_at.filter(|at| *at <= horizon)?,
                    instance_id: state.instance_id.clone(),
                };
                let beyond = demand.after.as_ref().is_none_or(|after| place > *after);
                beyond.then_some((place, state))
            })
            .collect();
        ended.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut page = ExpiredPage {
            more: ended.len() >= demand.limit as usize,
            ..ExpiredPage::default()
        };
        for (place, state) in ended.into_iter().take(demand.limit as usize) {
            let ended = EndedInstance {
                instance_id: place.instance_id,
                tenant_id: state.tenant_id.clone(),
                status: state.status,
                finished_at: place.finished_at,
            };
            page.look_at(demand, ended, state.live_node.is_some());
        }
        page
    }

    /// See [`crate::Store::remove_ended`].
    pub fn remove_ended(&mut self, ended: &[EndedInstance]) -> Vec<InstanceId> {
        let is_as_found = |found: &&EndedInstance| {
            let known = self.instances.get(&found.instance_id);
            known.is_some_and(|known| known.state.finished_at == Some(found.finished_at))
        };
        let same: Vec<_> = ended.iter().filter(is_as_found).cloned().collect();
        same.into_iter()
            .map(|ended| ended.instance_id)
            .filter(|id| self.purge_instance(id) == Purge::Purged)
            .collect()
    }
}
