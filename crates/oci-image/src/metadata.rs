//! Who owns unpacked files, and what may be done with them.

use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid};

use crate::EntryProblem;
use crate::tar::{Entry, Time};

/// The last second of the year 9999. Nothing was made later, and larger numbers overflow somewhere in most programs.
const TIME_MAX: i64 = 253_402_300_799;

/// Who owns the files of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ownership {
    /// The users and groups of the archive, as they are: for idmapped mounts of each layer (Linux 5.19). Needs CAP_CHOWN.
    Kept,
    /// The users and groups of the archive moved up by a number, for kernels without idmapped mounts: the range of the
    /// user namespace in which containers run. Needs CAP_CHOWN.
    Shifted {
        /// What is added to each number.
        by: u32,
        /// How many numbers there are: of the archive's, those from this one on are refused.
        count: u32,
    },
    /// Whoever unpacks them: for who cannot change owners. So that the owner can read, copy and remove them, files get `u+r` and
    /// directories `u+rwx`.
    Discarded,
}

impl Ownership {
    /// [`Ownership::Kept`] for root, [`Ownership::Discarded`] for others.
    #[must_use]
    pub fn of_this_process() -> Self {
        match rustix::process::geteuid().is_root() {
            true => Self::Kept,
            false => Self::Discarded,
        }
    }

    fn number(self, what: &'static str, found: i64) -> Result<Option<u32>, EntryProblem> {
        let (by, allowed) = match self {
            Self::Discarded => return Ok(None),
            // The largest number means "do not change" (chown(2)).
            Self::Kept => (0, u32::MAX - 1),
            Self::Shifted { by, count } => (by, count.min(u32::MAX - by).saturating_sub(1)),
        };
        match u32::try_from(found) {
            Ok(number) if number <= allowed => Ok(Some(by + number)),
            _ => Err(EntryProblem::OwnerOutOfRange {
                what,
                found,
                allowed: u64::from(allowed),
            }),
        }
    }
}

/// What is kept of an entry beside its content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metadata {
    pub(crate) uid: Option<Uid>,
    pub(crate) gid: Option<Gid>,
    pub(crate) mode: Mode,
    pub(crate) modified: Timespec,
}

impl Metadata {
    /// Both times: that of the last access is in no archive.
    pub(crate) fn times(&self) -> Timestamps {
        Timestamps {
            last_access: self.modified,
            last_modification: self.modified,
        }
    }
}

/// What is kept of all entries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MetadataRules {
    pub(crate) ownership: Ownership,
    pub(crate) keep_setuid: bool,
}

impl MetadataRules {
    /// The metadata of a file, link or directory, by these rules.
    pub(crate) fn metadata(
        &self,
        entry: &Entry,
        directory: bool,
    ) -> Result<Metadata, EntryProblem> {
        let mut mode = entry.mode & if self.keep_setuid { 0o7777 } else { 0o1777 };
        if self.ownership == Ownership::Discarded {
            mode |= if directory { 0o700 } else { 0o400 };
        }
        self.make(entry.uid, entry.gid, mode, entry.modified)
    }

    /// The metadata of a directory that no entry describes: root's, as other readers make it.
    pub(crate) fn implied(&self) -> Result<Metadata, EntryProblem> {
        self.ours(0o755)
    }

    /// The metadata of what no archive describes: root's, of 1970.
    pub(crate) fn ours(&self, mode: u32) -> Result<Metadata, EntryProblem> {
        self.make(0, 0, mode, Time::default())
    }

    fn make(
        &self,
        uid: i64,
        gid: i64,
        mode: u32,
        modified: Time,
    ) -> Result<Metadata, EntryProblem> {
        let modified = Timespec {
            tv_sec: modified.seconds.clamp(-TIME_MAX, TIME_MAX),
            tv_nsec: i64::from(modified.nanoseconds),
        };
        Ok(Metadata {
            uid: self.ownership.number("user", uid)?.map(Uid::from_raw),
            gid: self.ownership.number("group", gid)?.map(Gid::from_raw),
            mode: Mode::from_raw_mode(mode),
            modified,
        })
    }
}
