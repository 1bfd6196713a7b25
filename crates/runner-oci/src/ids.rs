//! Which run has which user ids on the host.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use runtara_runner::RunKey;

use crate::{IdRange, IdRanges};

/// The ids that containers have on the host.
pub(crate) enum Ids {
    /// Each running container has a range of its own.
    Each(Mutex<Given>),
    /// All have this one: owners of files cannot be shifted here, so they are stored in it.
    One(IdRange),
}

/// Ranges, and who has which.
pub(crate) struct Given {
    ranges: IdRanges,
    of: HashMap<RunKey, IdRange>,
}

impl Ids {
    /// Gives each container a range of its own.
    pub(crate) fn each(ranges: IdRanges) -> Self {
        Self::Each(Mutex::new(Given {
            ranges,
            of: HashMap::new(),
        }))
    }

    /// Takes a range for a run. Says why it gets none: all are in use, or it has one.
    pub(crate) fn take(&self, key: &RunKey) -> Result<IdRange, String> {
        let given = match self {
            Self::One(range) => return Ok(*range),
            Self::Each(given) => given,
        };
        let mut given = lock(given);
        if given.of.contains_key(key) {
            return Err("there are traces of an earlier launch of this run".to_owned());
        }
        let range = given.ranges.take().map_err(|error| error.to_string())?;
        given.of.insert(key.clone(), range);
        Ok(range)
    }

    /// Notes the range of a run that an earlier server launched.
    pub(crate) fn found(&self, key: &RunKey, range: IdRange) {
        if let Self::Each(given) = self {
            let mut given = lock(given);
            if given.of.insert(key.clone(), range).is_none() {
                given.ranges.mark_taken(range);
            }
        }
    }

    /// Gives back what a run has, if it has something. No process of it may be left.
    pub(crate) fn give_back(&self, key: &RunKey) {
        if let Self::Each(given) = self {
            let mut given = lock(given);
            if let Some(range) = given.of.remove(key) {
                given.ranges.give_back(range);
            }
        }
    }
}

fn lock(given: &Mutex<Given>) -> MutexGuard<'_, Given> {
    given.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use runtara_domain::{InstanceId, RunNumber};

    use super::*;

    fn key(number: u32) -> RunKey {
        RunKey {
            instance_id: InstanceId::new("order-7").unwrap(),
            run_number: RunNumber(number),
        }
    }

    #[test]
    fn what_is_given_back_twice_stays_with_who_has_it_since() {
        let ids = Ids::each(IdRanges::new(100_000, 1).unwrap());
        let range = ids.take(&key(1)).unwrap();
        assert!(ids.take(&key(1)).is_err(), "it has one");
        ids.give_back(&key(1));
        assert_eq!(ids.take(&key(2)), Ok(range));
        ids.give_back(&key(1));
        assert!(ids.take(&key(3)).is_err(), "the second run has it");
    }

    #[test]
    fn what_was_found_is_not_given_to_others() {
        let ids = Ids::each(IdRanges::new(100_000, 2).unwrap());
        let found = IdRange::starting_at(100_000).unwrap();
        ids.found(&key(1), found);
        ids.found(&key(1), found);
        assert_ne!(ids.take(&key(2)).unwrap(), found);
        assert!(ids.take(&key(3)).is_err());
        ids.give_back(&key(1));
        assert_eq!(ids.take(&key(3)), Ok(found));
    }
}
