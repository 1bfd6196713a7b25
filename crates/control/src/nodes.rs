//! The nodes that share this database.

use std::time::Duration;

use runtara_domain::{NodeId, limits};
use runtara_store::{NodeRecord, NodeRemoval};

use crate::{Control, ControlError, ControlResult};

/// What a node is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// Take nothing new, and hand over what still runs when this time is over.
    HandOverAfter(Duration),
    /// Go on as usual.
    Off,
}

/// How many runs are taken over by one call of the store.
const TAKEN_AT_ONCE: u32 = 100;

impl Control {
    /// All nodes, by name.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`].
    pub async fn nodes(&self) -> ControlResult<Vec<NodeRecord>> {
        Ok(self.store.nodes().await?)
    }

    /// The node with this id, or, if there is just one, of this name.
    ///
    /// # Errors
    /// [`ControlError::NotFound`]; [`ControlError::Refused`] if several have the name.
    pub async fn node(&self, id_or_name: &str) -> ControlResult<NodeRecord> {
        let nodes = self.store.nodes().await?;
        let id: Option<NodeId> = id_or_name.parse().ok();
        if let Some(found) = nodes.iter().find(|node| Some(node.node) == id) {
            return Ok(found.clone());
        }
        let mut named: Vec<_> = nodes
            .into_iter()
            .filter(|node| node.name == id_or_name)
            .collect();
        match (named.pop(), named.len()) {
            (Some(found), 0) => Ok(found),
            (Some(_), others) => Err(ControlError::Refused {
                code: "AMBIGUOUS_NODE",
                message: format!(
                    "{} nodes are called '{id_or_name}'; name one of them by its id",
                    others + 1
                ),
            }),
            (None, _) => Err(ControlError::NotFound {
                what: "Node",
                id: id_or_name.to_owned(),
            }),
        }
    }

    /// Has a node drained, or go on as usual.
    ///
    /// # Errors
    /// As [`Control::node`].
    pub async fn drain_node(&self, id_or_name: &str, drain: Drain) -> ControlResult<NodeRecord> {
        let node = self.node(id_or_name).await?;
        let after = match drain {
            Drain::Off => None,
            Drain::HandOverAfter(time) => {
                let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                Some(millis.min(limits::GRACE_MAX_MS))
            }
        };
        self.store.drain_node(node.node, after).await?;
        self.node(&node.node.to_string()).await
    }

    /// Takes a node that has died off the list, and its runs over at once. Gives how many there were.
    ///
    /// # Errors
    /// As [`Control::node`]; [`ControlError::Refused`] while the node lives.
    pub async fn remove_node(&self, id_or_name: &str) -> ControlResult<u64> {
        let node = self.node(id_or_name).await?;
        match self.store.remove_node(node.node).await? {
            NodeRemoval::Removed { live_runs } => {
                // What is left after an error here is taken over by the chore that does it always.
                while self
                    .store
                    .expire_nodes(self.config.node, TAKEN_AT_ONCE)
                    .await?
                    .len()
                    == TAKEN_AT_ONCE as usize
                {}
                Ok(live_runs)
            }
            NodeRemoval::NotFound => Err(ControlError::NotFound {
                what: "Node",
                id: id_or_name.to_owned(),
            }),
            NodeRemoval::Alive { lease_in_ms } => Err(ControlError::Refused {
                code: "NODE_ALIVE",
                message: format!(
                    "Node '{}' lives: its lease lasts for {lease_in_ms} ms more, and it renews it; drain it, stop its server, and try again",
                    node.name
                ),
            }),
        }
    }
}
