//! What is silent for too long, and what outlives its deadline.

use runtara_domain::{Change, InstanceId, Status, Timestamp, silence_allowed_ms, transition};

use super::Model;
use super::model::Node;
use crate::Overdue;

impl Model {
    /// See [`crate::Store::expire_due`].
    pub fn expire_due(&mut self, limit: u32, now: Timestamp) -> Overdue {
        let mut open: Vec<_> = self
            .instances
            .values()
            .filter(|instance| !instance.state.status.is_end())
            .filter_map(|instance| {
                let state = &instance.state;
                Some((state.expires_at?, state.instance_id.clone()))
            })
            .collect();
        open.sort();
        let over = open.iter().take_while(|(at, _)| *at <= now).count();
        let rest = open.split_off(over.min(limit as usize));
        for (_, id) in &open {
            self.end_if_still(id, &Change::Expire, now);
        }
        Overdue {
            instances: open.into_iter().map(|(_, id)| id).collect(),
            next_in_ms: rest.first().map(|(at, _)| at.millis_since(now)),
        }
    }

    /// See [`crate::Store::lapse_silent`].
    pub fn lapse_silent(&mut self, timeout_ms: u64, limit: u32, now: Timestamp) -> Vec<InstanceId> {
        let allowed = silence_allowed_ms(timeout_ms);
        let is_away = |node: &Node| {
            let lapsed = node.lease_until <= now && node.lease_until.plus_millis(allowed) >= now;
            lapsed || node.registered_at.plus_millis(allowed) > now
        };
        if self.nodes.values().any(is_away) {
            return Vec::new();
        }
        let lapse = Change::Lapse { timeout_ms };
        let silent: Vec<_> = self
            .instances
            .values()
            .filter(|instance| instance.state.status == Status::Running)
            .filter(|instance| {
                transition(&instance.state, &lapse, now).is_ok_and(|next| next.applied)
            })
            .map(|instance| instance.state.instance_id.clone())
            .take(limit as usize)
            .collect();
        for id in &silent {
            self.end_if_still(id, &lapse, now);
        }
        silent
    }

    fn end_if_still(&mut self, id: &InstanceId, change: &Change, now: Timestamp) {
        self.change(id, change, now)
            .expect("what ends an instance that is there is not refused");
    }
}
