//! Whether the server lives, and whether it can work.

use std::collections::BTreeMap;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Error;
use crate::client::Client;
use crate::query::Path;
use crate::transport::Call;

/// What the server says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Health {
    /// Whether it can reach its database.
    pub healthy: bool,
    /// Its version.
    pub version: String,
    /// How long it has been up, in milliseconds.
    #[serde(default)]
    pub uptime_ms: i64,
}

/// Whether the server can work.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Readiness {
    /// Whether it takes work.
    pub ready: bool,
    /// What it says of its parts, such as the database and the runners.
    #[serde(flatten)]
    pub details: BTreeMap<String, Value>,
}

impl Client {
    /// Asks whether the server lives.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), runtara_management_sdk::Error> {
    /// let health = runtara_management_sdk::Client::local().health().await?;
    /// println!("runtara-environment {}", health.version);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the connection; a server without its database answers with `healthy: false`.
    pub async fn health(&self) -> Result<Health, Error> {
        self.send(Call::get(Path::new("/api/v1/health")))
            .await?
            .ok()?
            .json()
    }

    /// Asks whether the server can work: database reachable, migrations done, runners ready.
    ///
    /// # Errors
    ///
    /// Those of the connection. A server that is not ready is an answer, not an error.
    pub async fn ready(&self) -> Result<Readiness, Error> {
        let answer = self.send(Call::get(Path::new("/ready"))).await?;
        let ready = answer.status.is_success();
        if !ready && answer.status != StatusCode::SERVICE_UNAVAILABLE {
            return Err(answer.into_refusal());
        }
        let mut details = match answer.json()? {
            Value::Object(details) => details.into_iter().collect(),
            other => BTreeMap::from([("answer".to_owned(), other)]),
        };
        details.remove("ready");
        Ok(Readiness { ready, details })
    }
}
