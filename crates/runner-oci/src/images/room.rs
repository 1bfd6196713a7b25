//! Whether there is room for more on a disk that others need, too.

use std::path::Path;

/// What images leave free, in bytes, where the disk is large enough for it...
const FLOOR_BYTES: u64 = 1024 * 1024 * 1024;
/// ...and else the part of the disk that they leave: the database, and the files of runs, must never be refused their few pages for them.
const FLOOR_PART: u64 = 20;

/// Whether images would take what others need. What cannot be told is not short.
pub(super) fn is_short(directory: &Path) -> bool {
    rustix::fs::statvfs(directory).is_ok_and(|found| {
        let block = found.f_frsize;
        let floor = FLOOR_BYTES.min(found.f_blocks.saturating_mul(block) / FLOOR_PART);
        // Where files are not counted, there are none in all.
        let files_are_short = found.f_files > 0 && found.f_favail < found.f_files / 100;
        found.f_bavail.saturating_mul(block) < floor || files_are_short
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_cannot_be_looked_at_is_not_short() {
        assert!(!is_short(Path::new("/no/such/directory")));
    }
}
