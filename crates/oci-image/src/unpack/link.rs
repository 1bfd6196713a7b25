//! Symbolic and hard links.

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use super::Unpacker;
use super::whiteout::PREFIX;
use crate::EntryProblem;
use crate::limits::{Limit, PATH_BYTES};
use crate::path::ImagePath;
use crate::tar::Entry;
use crate::tree::{failed, look, split};

impl Unpacker<'_, '_> {
    /// Makes a symbolic link. Its target may be anything: it is resolved in the container, whose root it cannot leave, and here
    /// only with that root as the kernel's.
    pub(super) fn symlink(&mut self, entry: &Entry, path: &ImagePath) -> Result<(), EntryProblem> {
        let (parent, name) = split("its name", path)?;
        let target = entry.target.as_slice();
        Limit::PathBytes.check(target.len() as u64, PATH_BYTES as u64)?;
        if target.is_empty() || target.contains(&0) {
            return Err(EntryProblem::BadPath {
                role: "its target",
                path: target.to_vec(),
                what: "a link needs a target without a NUL",
            });
        }
        let metadata = self.metadata(entry, false)?;
        let place = self.tree.reach(parent)?;
        self.tree.remove(&place, name)?;
        rustix::fs::symlinkat(target, place.fd(), name).map_err(failed("making the link"))?;
        if metadata.uid.is_some() || metadata.gid.is_some() {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(place.fd(), name, metadata.uid, metadata.gid, flags)
                .map_err(failed("setting its owner"))?;
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(place.fd(), name, &metadata.times(), flags)
            .map_err(failed("setting its time"))
    }

    /// Makes a hard link to something that an earlier entry of this layer made. The target's directory is resolved in the tree;
    /// its name is not followed, so that a link to a symbolic link is one, and leads nowhere.
    pub(super) fn hard_link(
        &mut self,
        entry: &Entry,
        path: &ImagePath,
    ) -> Result<(), EntryProblem> {
        let (parent, name) = split("its name", path)?;
        let target = ImagePath::parse("its target", &entry.target)?;
        let absent = || EntryProblem::LinkTargetAbsent {
            target: entry.target.clone(),
        };
        let (target_parent, target_name) = split("its target", &target)?;
        if target_name.starts_with(PREFIX) {
            return Err(absent());
        }
        let from = self.tree.find(target_parent).ok_or_else(absent)?;
        let found = look(std::os::fd::AsFd::as_fd(&from), target_name)?.ok_or_else(absent)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                return Err(EntryProblem::LinkToDirectory {
                    target: entry.target.clone(),
                });
            }
            _ if self
                .tree
                .form()
                .is_whiteout(&from, target_name, &found)
                .map_err(failed("looking at its target"))? =>
            {
                return Err(absent());
            }
            _ => {}
        }
        let place = self.tree.reach(parent)?;
        if let Some(existing) = self.tree.look(&place, name)? {
            if (existing.st_dev, existing.st_ino) == (found.st_dev, found.st_ino) {
                return Ok(());
            }
            self.tree.remove(&place, name)?;
        }
        match rustix::fs::linkat(&from, target_name, place.fd(), name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            // It was in the directory that this link takes the place of.
            Err(Errno::NOENT) => Err(absent()),
            Err(error) => Err(failed("making the link")(error)),
        }
    }
}
