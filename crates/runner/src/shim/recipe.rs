//! What a container is made of, on its way from the runner that writes it to the shim that makes it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// What a container is made of, as the text of a JSON value. The shim itself does not look into it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Recipe(Box<RawValue>);

impl Recipe {
    /// Writes one.
    ///
    /// # Errors
    /// As [`serde_json::value::to_raw_value`].
    pub fn write(what: &impl Serialize) -> serde_json::Result<Self> {
        serde_json::value::to_raw_value(what).map(Self)
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is of another version, and cannot be understood.
    pub fn read<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(self.0.get())
    }
}

/// Equal if they are the same text.
impl PartialEq for Recipe {
    fn eq(&self, other: &Self) -> bool {
        self.0.get() == other.0.get()
    }
}

impl Eq for Recipe {}
