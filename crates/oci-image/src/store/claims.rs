//! Who works on which layer, and who holds one.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{ImageError, Watch};

/// How often one who waits for another's unpacking asks whether to stop.
const ASK_INTERVAL: Duration = Duration::from_millis(100);

/// Layers at work and in use, by their directory's name.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_key: Mutex<HashMap<String, Uses>>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Uses {
    /// Somebody is unpacking it.
    making: bool,
    pins: usize,
}

/// Keeps a layer from being swept.
#[derive(Debug)]
pub(super) struct Pin {
    claims: Arc<Claims>,
    key: String,
}

/// The right to unpack a layer; nobody else has it.
#[derive(Debug)]
pub(super) struct Making {
    claims: Arc<Claims>,
    key: String,
}

impl Claims {
    /// Holds a layer, whether it is there or not.
    pub(super) fn pin(this: &Arc<Self>, key: &str) -> Pin {
        this.lock().entry(key.to_owned()).or_default().pins += 1;
        Pin {
            claims: Arc::clone(this),
            key: key.to_owned(),
        }
    }

    /// Waits until nobody else unpacks a layer, and then has the right to.
    pub(super) fn make(
        this: &Arc<Self>,
        key: &str,
        watch: Watch<'_>,
    ) -> Result<Making, ImageError> {
        let mut by_key = this.lock();
        loop {
            watch.check()?;
            let uses = by_key.entry(key.to_owned()).or_default();
            if !uses.making {
                uses.making = true;
                return Ok(Making {
                    claims: Arc::clone(this),
                    key: key.to_owned(),
                });
            }
            by_key = this
                .released
                .wait_timeout(by_key, ASK_INTERVAL)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Does something short while nobody can begin to use a layer, or answers `None` if somebody does.
    pub(super) fn unless_claimed<T>(&self, key: &str, act: impl FnOnce() -> T) -> Option<T> {
        let by_key = self.lock();
        (!by_key.contains_key(key)).then(act)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Uses>> {
        // Nothing that could panic is done under the lock but the rename of a sweep, which changes no count.
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, key: &str, change: impl FnOnce(&mut Uses)) {
        let mut by_key = self.lock();
        if let Some(uses) = by_key.get_mut(key) {
            change(uses);
            if !uses.making && uses.pins == 0 {
                by_key.remove(key);
            }
        }
        self.released.notify_all();
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.claims.change(&self.key, |uses| uses.pins -= 1);
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.claims.change(&self.key, |uses| uses.making = false);
    }
}
