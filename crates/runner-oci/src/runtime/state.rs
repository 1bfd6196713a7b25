//! How it is with a container, as the runtime tells (OCI runtime specification, "State").

use serde::Deserialize;

/// How it is with a container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ContainerState {
    /// Its id.
    pub id: String,
    /// In what part of its life it is.
    pub status: ContainerStatus,
    /// Its first process, on the host; 0 if it has none.
    #[serde(default)]
    pub pid: i32,
}

/// Parts of the life of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerStatus {
    /// It is being made.
    Creating,
    /// It is made, and its program was not started yet.
    Created,
    /// Its program runs.
    Running,
    /// Its program is halted by the freezer.
    Paused,
    /// Its program has ended.
    Stopped,
}

pub(super) fn read(json: &[u8]) -> Result<ContainerState, serde_json::Error> {
    serde_json::from_slice(json)
}
