//! What images and starts ask of the containers of their programs.

use serde::{Deserialize, Serialize};

/// What a program may take. Each limit may be left to others: a start wins over its image, and what neither says is the operator's to
/// say. Nobody gets more than the operator allows.
///
/// ```
/// use runtara_management_sdk::ResourceLimits;
///
/// let limits = ResourceLimits::new().memory_bytes(256 * 1024 * 1024).cpu_millicores(500);
/// assert_eq!(limits.pids, None);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ResourceLimits {
    /// Memory of all processes and of all that they write to places in memory, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processor time: 1000 is one processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millicores: Option<u64>,
    /// Processes and threads at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Open files of each process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// Size of the writable layer in bytes; the run directory is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writable_bytes: Option<u64>,
}

impl ResourceLimits {
    /// Gives limits of which all are left to others.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether all are left to others.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Limits the memory, in bytes.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = Some(bytes);
        self
    }

    /// Limits the processor time: 1000 is one processor.
    #[must_use]
    pub fn cpu_millicores(mut self, millicores: u64) -> Self {
        self.cpu_millicores = Some(millicores);
        self
    }

    /// Limits the processes and threads at once.
    #[must_use]
    pub fn pids(mut self, pids: u64) -> Self {
        self.pids = Some(pids);
        self
    }

    /// Limits the open files of each process.
    #[must_use]
    pub fn open_files(mut self, files: u64) -> Self {
        self.open_files = Some(files);
        self
    }

    /// Limits the writable layer, in bytes.
    #[must_use]
    pub fn writable_bytes(mut self, bytes: u64) -> Self {
        self.writable_bytes = Some(bytes);
        self
    }
}
