//! Whose instances the callers are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use runtara_domain::{Caller, Fence, InstanceId, TenantId, TokenHash};

/// Of how many callers the tenant is remembered.
const CALLERS: usize = 20_000;

#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    Run(TokenHash),
    Own(InstanceId),
}

impl Key {
    fn of(caller: &Caller) -> Self {
        match caller.fence {
            Fence::Run(token) => Self::Run(token),
            Fence::SelfRegistered => Self::Own(caller.instance_id.clone()),
        }
    }
}

/// Remembers the tenants of callers, so that the header by which published clients name theirs costs no question with each call.
///
/// The tenant of a run never changes, and whether the run is still the current one is decided elsewhere, by the fence. An instance that
/// registered itself may be removed and registered anew by another tenant: so only a match is taken from here, never a mismatch.
#[derive(Debug, Clone, Default)]
pub(super) struct Tenants(Arc<Mutex<HashMap<Key, TenantId>>>);

impl Tenants {
    fn known(&self) -> MutexGuard<'_, HashMap<Key, TenantId>> {
        // Each change is one of whole values: a panic elsewhere cannot have left it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a caller is known to be of this tenant.
    pub(super) fn is_of(&self, caller: &Caller, tenant: &str) -> bool {
        let known = self.known();
        known
            .get(&Key::of(caller))
            .is_some_and(|known| known.as_str() == tenant)
    }

    pub(super) fn remember(&self, caller: &Caller, tenant: TenantId) {
        let mut known = self.known();
        if known.len() >= CALLERS {
            // Those that still call are asked for once more.
            known.clear();
        }
        known.insert(Key::of(caller), tenant);
    }
}
