//! Nodes and their leases.

use runtara_domain::{Change, DatabaseId, InstanceId, NodeId, RunExit, Timestamp, limits};

use super::Model;
use super::model::Node;
use crate::{NodeLease, NodeStanding};

impl Model {
    /// See [`crate::Store::database_id`].
    #[must_use]
    pub fn database_id(&mut self) -> DatabaseId {
        *self.database_id.get_or_insert_with(DatabaseId::generate)
    }

    /// See [`crate::Store::renew_node`].
    pub fn renew_node(&mut self, lease: &NodeLease, now: Timestamp) -> NodeStanding {
        let known = self.nodes.get(&lease.node);
        let known = known.filter(|known| known.lease_until > now);
        let node = Node {
            up_since: known.map_or(now, |known| known.up_since),
            lease_until: now.plus_millis(lease.lease_ms),
        };
        self.nodes.insert(lease.node, node);
        let others = self.nodes.len() - 1;
        NodeStanding {
            others: u32::try_from(others).unwrap_or(u32::MAX),
        }
    }

    /// See [`crate::Store::release_node`].
    pub fn release_node(&mut self, node: NodeId) {
        let is_live = |instance: &super::model::Instance| instance.state.live_node == Some(node);
        if !self.instances.values().any(is_live) {
            self.nodes.remove(&node);
        }
    }

    /// See [`crate::Store::expire_nodes`].
    pub fn expire_nodes(&mut self, me: NodeId, limit: u32, now: Timestamp) -> Vec<InstanceId> {
        let is_over = |node: &NodeId| {
            let lease = self.nodes.get(node);
            *node != me && lease.is_some_and(|lease| lease.lease_until <= now)
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
        let is_live = |node: &NodeId| {
            let mut instances = self.instances.values();
            instances.any(|instance| instance.state.live_node == Some(*node))
        };
        let is_dead = |(node, lease): (&NodeId, &Node)| {
            let kept_until = lease.lease_until.plus_millis(limits::NODE_KEPT_MS);
            *node != me && kept_until <= now && !is_live(node)
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
