//! What a layer removes of the ones below it (OCI image specification, layer.md, "Whiteouts").

use rustix::fs::FileType;

use super::Unpacker;
use crate::EntryProblem;
use crate::overlay::open_directory;
use crate::path::ImagePath;
use crate::tree::failed;

pub(super) const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Further names of AUFS, which old images have: its own bookkeeping, of no meaning elsewhere, at the root or as a directory there.
const AUFS: &[u8] = b".wh..wh.";

/// Whether an entry says what to remove, rather than being something.
pub(super) fn is_one(path: &ImagePath) -> bool {
    path.split_last()
        .is_some_and(|(_, name)| name.starts_with(PREFIX))
}

/// Whether an entry lies in what should be a whiteout.
pub(super) fn lies_in_one(path: &ImagePath) -> bool {
    path.split_last()
        .is_some_and(|(parent, _)| parent.iter().any(|name| name.starts_with(PREFIX)))
}

impl Unpacker<'_, '_> {
    /// Whether an entry is a file system's bookkeeping, which is left out.
    pub(super) fn is_bookkeeping(&mut self, path: &ImagePath) -> bool {
        let first = path.first().unwrap_or_default();
        let is_one = first.starts_with(AUFS) && first != OPAQUE;
        self.contents.skipped += u64::from(is_one);
        is_one
    }

    /// Takes in a whiteout. It speaks of lower layers only: what this layer has under the name stays, wherever in the
    /// archive it comes.
    pub(super) fn whiteout(&mut self, path: &ImagePath) -> Result<(), EntryProblem> {
        let Some((parent, name)) = path.split_last() else {
            return Ok(());
        };
        if name == OPAQUE {
            return self.opaque(parent);
        }
        let removed = &name[PREFIX.len()..];
        if matches!(removed, b"" | b"." | b"..") {
            return Err(EntryProblem::BadWhiteout {
                what: "names nothing that could be removed",
            });
        }
        let place = match self.tree.reach(parent) {
            // Where this layer has a file, lower layers have no say already. Some tools write both.
            Err(EntryProblem::ParentNotDirectory { .. }) => return Ok(()),
            place => place?,
        };
        match self.tree.look(&place, removed)? {
            None => self
                .tree
                .form()
                .make_whiteout(place.fd(), removed)
                .map_err(failed("making the whiteout")),
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let directory =
                    open_directory(place.fd(), removed).map_err(failed("opening the directory"))?;
                self.tree.set_opaque(&directory)
            }
            Some(_) => Ok(()),
        }
    }

    fn opaque(&mut self, path: &[Vec<u8>]) -> Result<(), EntryProblem> {
        if path.is_empty() {
            self.contents.opaque_root = true;
        }
        let place = self.tree.reach(path)?;
        let directory =
            open_directory(place.fd(), b".").map_err(failed("opening the directory"))?;
        self.tree.set_opaque(&directory)
    }
}
