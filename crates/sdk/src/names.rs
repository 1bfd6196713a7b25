//! Names of checkpoints, sleeps and signals, and how often this run has used them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::Error;
use crate::protocol::CustomSignal;

/// Longest name: what is appended for further uses must fit into the server's 2,048 bytes.
const NAME_BYTES: usize = 2_000;
/// Under this the SDK saves what signals brought.
const SIGNAL_PREFIX: &str = "signal::";

/// What one name is used for; each use is counted for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Use {
    Sleep,
    Signal,
}

/// How often this run has used which name, and the signals that came on the way.
#[derive(Default)]
pub(crate) struct Names {
    counts: Mutex<HashMap<(Use, String), u32>>,
    /// The payloads of signals that the server handed over with a checkpoint of the same name.
    arrived: Mutex<HashMap<String, Option<Vec<u8>>>>,
}

impl Names {
    /// Gives the checkpoint that belongs to the next use of the name in this run. A replay counts the same way, so it comes
    /// to the same checkpoints.
    pub(crate) fn next(&self, purpose: Use, name: &str) -> String {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry((purpose, name.to_owned())).or_insert(0);
        *count += 1;
        let stem = match purpose {
            Use::Sleep => name.to_owned(),
            Use::Signal => format!("{SIGNAL_PREFIX}{name}"),
        };
        match *count {
            1 => stem,
            n => format!("{stem}::{n}"),
        }
    }

    /// Keeps a signal that came with a checkpoint of its name, for whoever waits for it.
    pub(crate) fn keep(&self, signal: CustomSignal) {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.insert(signal.id, signal.payload);
    }

    /// Takes such a signal.
    #[expect(
        clippy::option_option,
        reason = "a signal may come without a payload, which is not the same as no signal"
    )]
    pub(crate) fn take(&self, signal_id: &str) -> Option<Option<Vec<u8>>> {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.remove(signal_id)
    }
}

/// Refuses a name that the server would refuse, or that the SDK uses itself.
pub(crate) fn check(name: &str) -> Result<&str, Error> {
    let wanted = if name.is_empty() || name.len() > NAME_BYTES {
        "1 to 2000 bytes"
    } else if name.contains('\0') {
        "a text without NUL"
    } else if name.starts_with(SIGNAL_PREFIX) {
        "one that does not begin with 'signal::', where received signals are kept"
    } else {
        return Ok(name);
    };
    let name = name.chars().take(60).collect();
    Err(Error::Name { name, wanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_of_one_name_are_counted() {
        let names = Names::default();
        assert_eq!(names.next(Use::Sleep, "poll"), "poll");
        assert_eq!(names.next(Use::Sleep, "poll"), "poll::2");
        assert_eq!(names.next(Use::Signal, "poll"), "signal::poll");
        assert_eq!(names.next(Use::Signal, "poll"), "signal::poll::2");
    }

    #[test]
    fn names_that_cannot_work_are_refused() {
        assert!(check("reserve stock (1/2) é").is_ok());
        for name in ["", "a\0b", "signal::x", &"x".repeat(2_001)] {
            assert!(check(name).is_err(), "{name:?}");
        }
    }
}
