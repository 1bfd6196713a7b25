//! Agents and what they offer.

use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::Client;
use crate::query::Path;
use crate::transport::Call;
use crate::{Error, NotFound};

const AGENTS: &str = "/api/v1/agents";
/// How long a test may take unless it says otherwise.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

// Published servers write these keys in camel case, published clients want them in snake case: both are read.

/// An agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Agent {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// Whether it changes anything outside.
    #[serde(default, alias = "hasSideEffects")]
    pub has_side_effects: bool,
    /// Whether it can be given a connection.
    #[serde(default, alias = "supportsConnections")]
    pub supports_connections: bool,
    /// What it connects to.
    #[serde(default, alias = "integrationIds")]
    pub integration_ids: Vec<String>,
    /// What it can do.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
}

/// One thing an agent can do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Capability {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its name for people.
    #[serde(default, alias = "displayName")]
    pub display_name: Option<String>,
    /// What it is for.
    #[serde(default)]
    pub description: Option<String>,
    /// Whether it changes anything outside.
    #[serde(default, alias = "hasSideEffects")]
    pub has_side_effects: bool,
    /// Whether doing it twice is as doing it once.
    #[serde(default, alias = "isIdempotent")]
    pub is_idempotent: bool,
    /// Whether it is bounded in its rate.
    #[serde(default, alias = "rateLimited")]
    pub rate_limited: bool,
}

/// One input of a capability.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CapabilityField {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(alias = "type")]
    pub field_type: String,
    /// Whether it must be given.
    #[serde(default)]
    pub required: bool,
    /// Its name for people.
    #[serde(default, alias = "displayName")]
    pub display_name: Option<String>,
    /// What it is for.
    #[serde(default)]
    pub description: Option<String>,
    /// What it is if it is not given.
    #[serde(default, alias = "default", alias = "defaultValue")]
    pub default_value: Option<Value>,
    /// An example.
    #[serde(default)]
    pub example: Option<Value>,
}

/// A capability with its inputs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CapabilityDetail {
    /// The capability.
    pub capability: Capability,
    /// Its inputs.
    #[serde(default)]
    pub inputs: Vec<CapabilityField>,
}

/// A trial of a capability.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CapabilityTest {
    /// The agent.
    pub agent_id: String,
    /// The capability.
    pub capability_id: String,
    /// For whom; the client's tenant if absent.
    pub tenant_id: Option<String>,
    /// What it is given.
    pub input: Value,
    /// The connection it is given.
    pub connection: Option<Value>,
    /// How long it may take; 30 s if absent.
    pub timeout: Option<Duration>,
}

impl CapabilityTest {
    /// Begins a trial with this input.
    #[must_use]
    pub fn new(
        agent_id: impl Into<String>,
        capability_id: impl Into<String>,
        input: Value,
    ) -> Self {
        Self {
            agent_id: agent_id.into(),
            capability_id: capability_id.into(),
            input,
            ..Self::default()
        }
    }
}

/// How a trial went.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CapabilityTestResult {
    /// Whether it worked.
    pub success: bool,
    /// What it gave.
    #[serde(default)]
    pub output: Option<Value>,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<String>,
    /// How long it took.
    #[serde(default)]
    pub execution_time_ms: u64,
}

#[derive(Deserialize)]
struct AgentsAnswer {
    agents: Vec<Agent>,
}

#[derive(Deserialize)]
struct CapabilityAnswer {
    found: bool,
    capability: Option<Capability>,
    #[serde(default)]
    inputs: Vec<CapabilityField>,
}

impl Client {
    /// Lists the agents of the server.
    ///
    /// # Errors
    ///
    /// Those of the connection and of the server.
    pub async fn agents(&self) -> Result<Vec<Agent>, Error> {
        let answer: AgentsAnswer = self
            .send(Call::get(Path::new(AGENTS)))
            .await?
            .ok()?
            .json()?;
        Ok(answer.agents)
    }

    /// Gives a capability with its inputs.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if no agent offers it.
    pub async fn capability(
        &self,
        agent_id: &str,
        capability_id: &str,
    ) -> Result<CapabilityDetail, Error> {
        let path = Path::new(AGENTS)
            .id("agent id", agent_id)?
            .then("/capabilities")
            .id("capability id", capability_id)?;
        let missing =
            || Error::not_found(NotFound::Capability, &format!("{agent_id}/{capability_id}"));
        let answer = self.send(Call::get(path)).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(missing());
        }
        let CapabilityAnswer {
            found,
            capability,
            inputs,
        } = answer.ok()?.json()?;
        match capability {
            Some(capability) if found => Ok(CapabilityDetail { capability, inputs }),
            _ => Err(missing()),
        }
    }

    /// Tries a capability. That it did not work is an answer, not an error.
    ///
    /// # Errors
    ///
    /// Those of the connection and of the server.
    pub async fn test_capability(
        &self,
        test: &CapabilityTest,
    ) -> Result<CapabilityTestResult, Error> {
        let timeout = test.timeout.unwrap_or(TEST_TIMEOUT);
        let body = json!({
            "tenant_id": self.tenant_or(test.tenant_id.as_deref())?,
            "agent_id": test.agent_id,
            "capability_id": test.capability_id,
            "input": test.input,
            "connection": test.connection,
            "timeout_ms": u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        });
        let call = Call::post(Path::new(AGENTS).then("/test"))
            .json(&body)
            .patience(timeout);
        self.send(call).await?.ok()?.json()
    }
}
