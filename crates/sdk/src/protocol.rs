//! The instance protocol as the SDK means it, whatever carries it.

use crate::leave::Leave;

/// What is saved under a name, and which signals wait.
pub(crate) struct Saved {
    /// What was saved there before, if something was.
    pub(crate) found: Option<Vec<u8>>,
    /// Why this run is to leave, if it is.
    pub(crate) leave: Option<Leave>,
    /// The custom signal that came with the checkpoint of its name.
    pub(crate) custom_signal: Option<CustomSignal>,
}

/// A custom signal that has come.
pub(crate) struct CustomSignal {
    pub(crate) id: String,
    pub(crate) payload: Option<Vec<u8>>,
}

/// A durable sleep.
pub(crate) struct Sleep<'a> {
    /// Its checkpoint.
    pub(crate) id: &'a str,
    /// What is saved there.
    pub(crate) state: &'a [u8],
    /// Its end, in milliseconds since 1970.
    pub(crate) until_ms: i64,
}
