//! Ranges of user and group ids: each running container has one of its own, so that its processes are nobody to the host and strangers to
//! each other.

use std::collections::BTreeSet;

/// Ids of one container: those that a system has by tradition, `nobody` (65534) included.
pub const RANGE_SIZE: u32 = 65_536;

/// The first id of the first range, unless the operator chooses another. From here to [`IdRanges::USUAL_COUNT`] ranges on no one else
/// gives ids away: people and the automatic ranges of `/etc/subuid` are below 600,100,000 (`SUB_UID_MAX`, login.defs(5)), those of
/// systemd-nspawn below 0x7000_0000, and 0x7ffe_0000 is systemd's again (its document "Users, Groups, UIDs and GIDs").
pub const USUAL_BASE: u32 = 0x7000_0000;

/// A range of [`RANGE_SIZE`] user ids, and of as many group ids with the same numbers.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct IdRange {
    first: u32,
}

impl IdRange {
    /// The range that begins with this id; `None` if it holds ids of the system's own (below 65,536), or such as are negative for programs
    /// that take them for signed numbers.
    #[must_use]
    pub fn starting_at(first: u32) -> Option<Self> {
        let last = first.checked_add(RANGE_SIZE - 1)?;
        (first >= RANGE_SIZE && last < i32::MAX.cast_unsigned()).then_some(Self { first })
    }

    /// What root in the container is on the host.
    #[must_use]
    pub fn first(self) -> u32 {
        self.first
    }

    /// What an id of the container is on the host; `None` if the container has no such id.
    #[must_use]
    pub fn on_host(self, id: u32) -> Option<u32> {
        (id < RANGE_SIZE).then_some(self.first + id)
    }
}

/// Gives a range to each container that lives. It knows no other process: who runs several servers on one machine gives each a base of
/// its own.
#[derive(Debug, Clone)]
pub struct IdRanges {
    base: u32,
    count: u32,
    /// Where the next search begins: a range that has just become free rests as long as others are.
    next: u32,
    taken: BTreeSet<u32>,
}

/// Says why there is no range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdRangeError {
    /// These ids cannot be given away.
    #[error(
        "{count} ranges of {RANGE_SIZE} ids from {base} on are not all between {RANGE_SIZE} and 2147483646; choose another base or fewer ranges"
    )]
    OutOfBounds {
        /// The first id.
        base: u32,
        /// How many ranges.
        count: u32,
    },
    /// All are in use.
    #[error("all {count} ranges of user ids are in use; allow more of them, or fewer runs at once")]
    AllTaken {
        /// How many there are.
        count: u32,
    },
}

impl Default for IdRanges {
    fn default() -> Self {
        Self {
            base: USUAL_BASE,
            count: Self::USUAL_COUNT,
            next: 0,
            taken: BTreeSet::new(),
        }
    }
}

impl IdRanges {
    /// How many ranges there are from [`USUAL_BASE`] to what is systemd's.
    pub const USUAL_COUNT: u32 = (0x7ffe_0000 - USUAL_BASE) / RANGE_SIZE;

    /// Ranges from an id on.
    ///
    /// # Errors
    /// [`IdRangeError::OutOfBounds`] if one of them cannot be given away, or there is none.
    pub fn new(base: u32, count: u32) -> Result<Self, IdRangeError> {
        let out_of_bounds = IdRangeError::OutOfBounds { base, count };
        let last = count
            .checked_sub(1)
            .and_then(|last| last.checked_mul(RANGE_SIZE)?.checked_add(base));
        let bounds = [Some(base), last].map(|first| first.and_then(IdRange::starting_at));
        if bounds.contains(&None) {
            return Err(out_of_bounds);
        }
        Ok(Self {
            base,
            count,
            next: 0,
            taken: BTreeSet::new(),
        })
    }

    /// The first of them.
    #[must_use]
    pub fn first_range(&self) -> IdRange {
        IdRange { first: self.base }
    }

    /// Takes a range that no living container has.
    ///
    /// # Errors
    /// [`IdRangeError::AllTaken`] if there is none.
    pub fn take(&mut self) -> Result<IdRange, IdRangeError> {
        let free = (self.next..self.count)
            .chain(0..self.next)
            .find(|index| !self.taken.contains(index))
            .ok_or(IdRangeError::AllTaken { count: self.count })?;
        self.taken.insert(free);
        self.next = (free + 1) % self.count;
        Ok(IdRange {
            first: self.base + free * RANGE_SIZE,
        })
    }

    /// Marks the range of a container as taken that an earlier server launched. Says whether it was free. A range that is none of these
    /// is nobody else's here, and counts as free.
    pub fn mark_taken(&mut self, range: IdRange) -> bool {
        self.index(range)
            .is_none_or(|index| self.taken.insert(index))
    }

    /// Gives a range back, when no process of its container is left.
    pub fn give_back(&mut self, range: IdRange) {
        if let Some(index) = self.index(range) {
            self.taken.remove(&index);
        }
    }

    /// The first entry of `/etc/subuid` or `/etc/subgid` (subuid(5)) by which somebody else gives away ids of these ranges.
    #[must_use]
    pub fn conflict<'a>(&self, subordinate_ids: &'a str) -> Option<&'a str> {
        let own = u64::from(self.base)
            ..u64::from(self.base) + u64::from(self.count) * u64::from(RANGE_SIZE);
        subordinate_ids.lines().find(|line| {
            let mut fields = line
                .split(':')
                .skip(1)
                .map(|field| field.trim().parse::<u64>());
            match (fields.next(), fields.next()) {
                (Some(Ok(first)), Some(Ok(count))) => {
                    first < own.end && own.start < first.saturating_add(count)
                }
                _ => false,
            }
        })
    }

    fn index(&self, range: IdRange) -> Option<u32> {
        let distance = range.first.checked_sub(self.base)?;
        let index = distance / RANGE_SIZE;
        (distance % RANGE_SIZE == 0 && index < self.count).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_that_was_given_back_rests_while_others_are_free() {
        let mut ranges = IdRanges::new(100_000, 3).unwrap();
        let first = ranges.take().unwrap();
        assert_eq!(first.first(), 100_000);
        ranges.give_back(first);
        assert_ne!(ranges.take().unwrap(), first);
    }

    #[test]
    fn when_all_are_taken_the_error_says_how_many() {
        let mut ranges = IdRanges::new(100_000, 2).unwrap();
        ranges.take().unwrap();
        ranges.take().unwrap();
        let error = ranges.take().unwrap_err();
        assert_eq!(error, IdRangeError::AllTaken { count: 2 });
    }

    #[test]
    fn a_range_of_an_earlier_server_is_not_given_again() {
        let mut ranges = IdRanges::new(100_000, 2).unwrap();
        let adopted = IdRange::starting_at(100_000).unwrap();
        assert!(ranges.mark_taken(adopted));
        assert!(!ranges.mark_taken(adopted));
        assert_ne!(ranges.take().unwrap(), adopted);
        assert!(ranges.take().is_err());
    }

    #[test]
    fn ids_of_the_system_and_negative_ones_are_never_given() {
        assert!(IdRanges::new(0, 1).is_err());
        assert!(IdRanges::new(1000, 1).is_err());
        assert!(IdRanges::new(100_000, 0).is_err());
        assert!(IdRanges::new(USUAL_BASE, 4097).is_err());
        assert!(IdRanges::new(u32::MAX, 1).is_err());
        assert!(IdRanges::new(USUAL_BASE, IdRanges::USUAL_COUNT).is_ok());
    }

    #[test]
    fn an_id_of_the_container_is_one_of_the_range() {
        let range = IdRange::starting_at(100_000).unwrap();
        assert_eq!(range.on_host(0), Some(100_000));
        assert_eq!(range.on_host(65_535), Some(165_535));
        assert_eq!(range.on_host(65_536), None);
    }

    #[test]
    fn an_entry_that_overlaps_is_found() {
        let ranges = IdRanges::default();
        let file = "alice:100000:65536\nbroken\nbob:1879000000:100000\n";
        assert_eq!(ranges.conflict(file), Some("bob:1879000000:100000"));
        assert_eq!(ranges.conflict("alice:100000:65536\n"), None);
        assert_eq!(ranges.conflict(""), None);
    }

    proptest! {
        #[test]
        fn no_two_living_containers_share_a_range(steps in prop::collection::vec(any::<bool>(), 1..200)) {
            let mut ranges = IdRanges::new(200_000, 5).unwrap();
            let mut living: Vec<IdRange> = Vec::new();
            for start in steps {
                if start {
                    match ranges.take() {
                        Ok(range) => {
                            prop_assert!(!living.contains(&range));
                            living.push(range);
                        }
                        Err(_) => prop_assert_eq!(living.len(), 5),
                    }
                } else if !living.is_empty() {
                    ranges.give_back(living.remove(0));
                }
            }
        }
    }
}
