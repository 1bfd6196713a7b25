//! Nodes and their leases.

use runtara_domain::{Change, DatabaseId, InstanceId, NodeId, RunExit, Timestamp, limits};

use super::Model;
use super::model::Node;
use crate::{NodeLease, NodeRecord, NodeRemoval, NodeStanding};

impl Model {
    /// See [`crate::Store::database_id`].
    #[must_use]
    pub fn database_id(&mut self) -> DatabaseId {
        *self.database_id.get_or_insert_with(DatabaseId::generate)
    }

    /// See [`crate::Store::renew_node`].
    pub fn renew_node(&mut self, lease: &NodeLease, now: Timestamp) -> NodeStanding {
        let before = self.nodes.get(&lease.node);
        let lasted = before.is_some_and(|node| node.lasts(now));
        let drain_by = before.and_then(|node| node.drain_by);
        let node = Node {
            registered_at: before
                .filter(|node| node.lasts(now))
                .map_or(now, |node| node.registered_at),
            lease_until: now.plus_millis(lease.lease_ms),
            lease: lease.clone(),
            drain_by,
            removed: false,
        };
        self.nodes.insert(lease.node, node);
        let others = self.nodes.len() - 1;
        let ends = self.nodes.iter().filter(|(id, _)| **id != lease.node);
        let ends = ends.map(|(_, other)| other.lease_until.millis_since(now));
        NodeStanding {
            others: u32::try_from(others).unwrap_or(u32::MAX),
            next_end_in_ms: ends.filter(|ms| *ms > 0).min(),
            lasted,
            drain_in_ms: drain_by.map(|by| by.millis_since(now)),
        }
    }

    /// See [`crate::Store::nodes`].
    #[must_use]
    pub fn nodes(&self, now: Timestamp) -> Vec<NodeRecord> {
        let record = |(id, node): (&NodeId, &Node)| NodeRecord {
            node: *id,
            name: node.lease.name.clone(),
            address: node.lease.address.clone(),
            key: node.lease.key.clone(),
            capacity: node.lease.capacity,
            used: node.lease.used,
            live_runs: self.live_on(*id),
            registered_at: node.registered_at,
            lease_in_ms: node.lease_until.0.saturating_sub(now.0),
            drain_in_ms: node.drain_by.map(|by| by.millis_since(now)),
            removed: node.removed,
        };
        let mut nodes: Vec<_> = self.nodes.iter().map(record).collect();
        nodes.sort_by_key(|node| (node.name.clone(), node.node.to_string()));
        nodes.truncate(limits::NODES_LISTED as usize);
        nodes
    }

    fn live_on(&self, node: NodeId) -> u64 {
        let live = self.instances.values();
        let live = live.filter(|instance| instance.state.live_node == Some(node));
        live.count() as u64
    }

    /// See [`crate::Store::drain_node`].
    pub fn drain_node(
        &mut self,
        node: NodeId,
        hand_over_after_ms: Option<u64>,
        now: Timestamp,
    ) -> bool {
        let Some(node) = self.nodes.get_mut(&node) else {
            return false;
        };
        node.drain_by = hand_over_after_ms.map(|ms| now.plus_millis(ms));
        true
    }

    /// See [`crate::Store::remove_node`].
    pub fn remove_node(&mut self, node: NodeId, now: Timestamp) -> NodeRemoval {
        let live_runs = self.live_on(node);
        let Some(node) = self.nodes.get_mut(&node) else {
            return NodeRemoval::NotFound;
        };
        if node.lasts(now) {
            let lease_in_ms = node.lease_until.millis_since(now);
            return NodeRemoval::Alive { lease_in_ms };
        }
        node.removed = true;
        NodeRemoval::Removed { live_runs }
    }

    /// See [`crate::Store::release_node`].
    pub fn release_node(&mut self, node: NodeId, now: Timestamp) {
        let is_live = |instance: &super::model::Instance| instance.state.live_node == Some(node);
        if self.instances.values().any(is_live) {
            return;
        }
        match self.nodes.get_mut(&node) {
            Some(drained) if drained.drain_by.is_some() => {
                drained.lease_until = drained.lease_until.min(now);
            }
            _ => drop(self.nodes.remove(&node)),
        }
    }

    /// See [`crate::Store::expire_nodes`].
    pub fn expire_nodes(&mut self, me: NodeId, limit: u32, now: Timestamp) -> Vec<InstanceId> {
        let has_been_here = self.nodes.get(&me).is_some_and(|me| {
            let known_by_then = me.registered_at.plus_millis(limits::NODE_LEASE_MS);
            known_by_then <= now
        });
        let is_over = |node: &NodeId| {
            let other = self.nodes.get(node).filter(|_| *node != me);
            other.is_some_and(|other| {
                let may_be_taken = other.lease.guarded || other.removed || has_been_here;
                other.lease_until <= now && may_be_taken
            })
        };
        let lost: Vec<_> = self
            .instances
            .values()
            .filter(|instance| instance.state.live_node.as_ref().is_some_and(is_over))
            .map(|instance| {
                (
                    instance.state.instance_id.clone(),
                    instance.state.run_number,
                )
            })
            .take(limit as usize)
            .collect();
        for (id, run_number) in &lost {
            let exit = Change::Exit {
                run_number: *run_number,
                exit: RunExit::lost(),
                our_fault: true,
            };
            self.change(id, &exit, now)
                .expect("the exit of the current run of a live instance applies");
        }
        let is_dead = |(id, node): (&NodeId, &Node)| {
            let kept_until = node.lease_until.plus_millis(limits::NODE_KEPT_MS);
            *id != me && (node.removed || kept_until <= now) && self.live_on(*id) == 0
        };
        let dead: Vec<_> = self
            .nodes
            .iter()
            .filter(|entry| is_dead(*entry))
            .map(|(node, _)| *node)
            .collect();
        self.nodes.retain(|node, _| !dead.contains(node));
        lost.into_iter().map(|(id, _)| id).collect()
    }
}
