//! The nodes that share a database.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::client::Client;
use crate::query::Path;
use crate::start::whole_seconds;
use crate::transport::Call;
use crate::{Error, NotFound};

const NODES: &str = "/api/v1/nodes";

/// A server that shares its database with others, or could.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Node {
    /// Its id, which stays with its data directory.
    pub node_id: String,
    /// What people call it.
    pub name: String,
    /// `alive`; `draining`: it takes nothing new; `dead`: it has not renewed its lease in time; `removed`: what it had is just being taken
    /// over.
    pub state: String,
    /// Where other nodes reach it.
    pub address: Option<String>,
    /// The room for runs that it has.
    pub capacity: u64,
    /// How much of it was taken when it said so last.
    pub used: u64,
    /// How many runs are recorded as live on it.
    pub live_runs: u64,
    /// When it joined, in milliseconds since the epoch.
    pub registered_at_ms: i64,
    /// How much longer its lease lasts, in milliseconds; negative if it is over, for so long.
    pub lease_in_ms: i64,
    /// If it is being drained: in how many milliseconds what still runs on it is handed over.
    pub hand_over_in_ms: Option<u64>,
    /// Whether it is the one that was asked.
    pub is_this: bool,
}

#[derive(Deserialize)]
struct NodesAnswer {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct RemovedAnswer {
    live_runs: u64,
}

impl Client {
    /// All nodes, by name.
    ///
    /// # Errors
    ///
    /// Those of the connection and of the server.
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        let answer = self.send(Call::get(Path::new(NODES))).await?;
        let told: NodesAnswer = answer.ok()?.json()?;
        Ok(told.nodes)
    }

    /// Has a node, named by its id or its name, take nothing new, and hand over what still runs on it after this time, which counts in
    /// whole seconds and is rounded up: those instances run on elsewhere, from their last checkpoint, and nothing is counted against them.
    ///
    /// ```no_run
    /// # async fn example(client: runtara_management_sdk::Client) -> Result<(), runtara_management_sdk::Error> {
    /// use std::time::Duration;
    ///
    /// client.drain_node("worker-3", Duration::from_secs(60)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if it is unknown, [`Error::Refused`] if several have that name.
    pub async fn drain_node(&self, node: &str, hand_over_after: Duration) -> Result<Node, Error> {
        let seconds = whole_seconds(hand_over_after);
        self.order(node, &json!({ "hand_over_after_seconds": seconds }))
            .await
    }

    /// Has a node go on that was being drained.
    ///
    /// # Errors
    ///
    /// Those of [`Client::drain_node`].
    pub async fn undrain_node(&self, node: &str) -> Result<Node, Error> {
        self.order(node, &json!({ "drain": false })).await
    }

    async fn order(&self, node: &str, body: &serde_json::Value) -> Result<Node, Error> {
        let path = Path::new(NODES).id("the node", node)?.then("/drain");
        let answer = self.send(Call::post(path).json(body)).await?;
        answer.ok_or_missing(NotFound::Node, node)?.ok()?.json()
    }

    /// Takes a node off the list that is dead and does not come back, and gives how many runs it had: those instances run elsewhere at
    /// once.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if it is unknown, [`Error::Refused`] if it lives or several have that name.
    pub async fn remove_node(&self, node: &str) -> Result<u64, Error> {
        let path = Path::new(NODES).id("the node", node)?;
        let answer = self.send(Call::delete(path)).await?;
        let told: RemovedAnswer = answer.ok_or_missing(NotFound::Node, node)?.ok()?.json()?;
        Ok(told.live_runs)
    }
}
