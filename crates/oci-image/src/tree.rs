//! A directory tree that nothing leaves.
//!
//! Every path of an archive is resolved by openat2(2) with RESOLVE_IN_ROOT: the kernel takes the tree's root for `/`, so that
//! neither `..` nor links, absolute ones included, lead out, whatever happens meanwhile. What is then made, changed or removed
//! is one name in a directory that was reached so, and never followed if it is a link.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::EntryProblem;
use crate::limits::Limit;
use crate::metadata::{Metadata, MetadataRules};
use crate::overlay::{Opaque, OverlayForm, open_directory};
use crate::path::ImagePath;

/// openat2(2) asks to be called again if something was renamed anywhere while it resolved a `..`.
const TRIES: usize = 128;

/// An unpacked tree at work.
pub(crate) struct Tree {
    root: OwnedFd,
    form: OverlayForm,
    rules: MetadataRules,
    max_depth: u64,
    /// What is known of each directory, by its inode: those that an entry made, and those that lie above one.
    directories: HashMap<u64, Directory>,
    /// How many directories were made that no entry describes.
    implied: u64,
    /// The last directory that something was put into. Entries come sorted, so that most are for the same.
    last: Option<(Vec<Vec<u8>>, Place)>,
}

/// What is known of a directory.
#[derive(Debug, Clone, Copy)]
struct Directory {
    /// How many directories are above it. Counted as they are made, because through links a tree can become deeper than any
    /// path in the archive.
    depth: u64,
    /// Set in the end, so that until then there may be written.
    metadata: Metadata,
    /// No entry describes it; lower layers may.
    implied: bool,
}

/// A directory of the tree.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    directory: Rc<OwnedFd>,
    depth: u64,
}

impl Place {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// Makes an error of the system a problem of the entry.
pub(crate) fn failed(action: &'static str) -> impl Fn(Errno) -> EntryProblem {
    move |error| EntryProblem::System {
        action,
        source: error.into(),
    }
}

impl Tree {
    /// Begins a tree in an empty directory.
    pub(crate) fn new(
        root: OwnedFd,
        form: OverlayForm,
        rules: MetadataRules,
        max_depth: u64,
    ) -> Result<Self, EntryProblem> {
        let stat = rustix::fs::fstat(&root).map_err(failed("looking at the root"))?;
        let directory = Directory {
            depth: 0,
            metadata: rules.implied()?,
            implied: true,
        };
        Ok(Self {
            root,
            form,
            rules,
            max_depth,
            directories: HashMap::from([(stat.st_ino, directory)]),
            implied: 0,
            last: None,
        })
    }

    pub(crate) fn form(&self) -> OverlayForm {
        self.form
    }

    pub(crate) fn rules(&self) -> MetadataRules {
        self.rules
    }

    /// How many directories were made because something lies in them, each of which takes as much room as one of an entry.
    pub(crate) fn implied(&self) -> u64 {
        self.implied
    }

    /// The directory at a path, made if it is not there, with those above it.
    pub(crate) fn reach(&mut self, path: &[Vec<u8>]) -> Result<Place, EntryProblem> {
        if let Some((last, place)) = &self.last
            && last == path
        {
            return Ok(place.clone());
        }
        Limit::Depth.check(path.len() as u64, self.max_depth)?;
        let place = match self.open(path) {
            Ok(directory) => self.place(directory)?,
            Err(_) => self.make_path(path)?,
        };
        self.last = Some((path.to_vec(), place.clone()));
        Ok(place)
    }

    /// The directory at a path, if there is one.
    pub(crate) fn find(&self, path: &[Vec<u8>]) -> Option<OwnedFd> {
        self.open(path).ok()
    }

    /// What lies under a name, links not followed.
    pub(crate) fn look(&self, place: &Place, name: &[u8]) -> Result<Option<Stat>, EntryProblem> {
        look(place.fd(), name)
    }

    /// Removes whatever lies under a name.
    pub(crate) fn remove(&mut self, place: &Place, name: &[u8]) -> Result<(), EntryProblem> {
        let Some(stat) = self.look(place, name)? else {
            return Ok(());
        };
        // What is remembered may lie below, or have been reached through it.
        self.last = None;
        let removed = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let directories = &mut self.directories;
                remove_tree(place.fd(), name, &mut |inode| {
                    directories.remove(&inode);
                })
            }
            _ => rustix::fs::unlinkat(place.fd(), name, AtFlags::empty()).map_err(Into::into),
        };
        removed.map_err(|source| EntryProblem::System {
            action: "removing what was there before",
            source,
        })
    }

    /// Makes a directory, or takes the one that is there, and notes what it shall become. Anything else in its place is
    /// removed.
    pub(crate) fn directory(
        &mut self,
        place: &Place,
        name: &[u8],
        metadata: Metadata,
    ) -> Result<OwnedFd, EntryProblem> {
        let existing = self.look(place, name)?;
        let is_directory = existing
            .as_ref()
            .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if is_directory {
            let directory = open_directory(place.fd(), name).map_err(failed("opening it"))?;
            let inode = inode(&directory)?;
            self.describe(inode, metadata);
            return Ok(directory);
        }
        let hides = match &existing {
            Some(stat) => self.is_whiteout(place, name, stat)?,
            None => false,
        };
        if existing.is_some() {
            self.remove(place, name)?;
        }
        let directory = self.make(place, name, metadata, false)?;
        if hides {
            // The layer removes what lower ones have there, and makes it anew.
            self.set_opaque(&directory)?;
        }
        Ok(directory)
    }

    /// Notes what the root shall become.
    pub(crate) fn root(&mut self, metadata: Metadata) -> Result<(), EntryProblem> {
        self.describe(inode(&self.root)?, metadata);
        Ok(())
    }

    fn describe(&mut self, inode: u64, metadata: Metadata) {
        if let Some(known) = self.directories.get_mut(&inode) {
            known.metadata = metadata;
            known.implied = false;
        }
    }

    pub(crate) fn set_opaque(&self, directory: &OwnedFd) -> Result<(), EntryProblem> {
        self.form
            .set_opaque(directory, Opaque::Yes)
            .map_err(failed("marking the directory as opaque"))
    }

    pub(crate) fn is_whiteout(
        &self,
        place: &Place,
        name: &[u8],
        stat: &Stat,
    ) -> Result<bool, EntryProblem> {
        self.form
            .is_whiteout(place.fd(), name, stat)
            .map_err(failed("looking at what is there"))
    }

    /// Gives all directories their owners, modes and times: the innermost first, since each change below changes a time. Answers
    /// with how many of them, the root not counted, no entry describes.
    pub(crate) fn finish(self) -> io::Result<u64> {
        let mut implied = 0;
        self.finish_directory(&self.root, &mut implied)?;
        let root_is = self.form.is_implied(&self.root)?;
        Ok(implied - u64::from(root_is))
    }

    fn finish_directory(&self, directory: &OwnedFd, implied: &mut u64) -> io::Result<()> {
        each(directory, &mut |name, kind| match kind {
            FileType::Directory => {
                self.finish_directory(&open_directory(directory, name)?, implied)
            }
            _ => Ok(()),
        })?;
        if let Some(found) = self.directories.get(&rustix::fs::fstat(directory)?.st_ino) {
            if found.implied {
                *implied += 1;
                self.form.set_implied(directory)?;
            }
            set(directory, &found.metadata)?;
        }
        Ok(())
    }

    /// Opens a directory by its path from the root.
    fn open(&self, path: &[Vec<u8>]) -> Result<OwnedFd, Errno> {
        let joined = match path {
            [] => b".".to_vec(),
            path => path.join(&b'/'),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let mut result = Err(Errno::AGAIN);
        for _ in 0..TRIES {
            result =
                rustix::fs::openat2(&self.root, joined.as_slice(), flags, Mode::empty(), resolve);
            if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
        }
        result
    }

    fn place(&self, directory: OwnedFd) -> Result<Place, EntryProblem> {
        let known = self.directories.get(&inode(&directory)?);
        Ok(Place {
            directory: Rc::new(directory),
            depth: known.map_or(0, |known| known.depth),
        })
    }

    /// Walks down to a path and makes what is missing.
    fn make_path(&mut self, path: &[Vec<u8>]) -> Result<Place, EntryProblem> {
        let mut place = self.open(&[]).map_err(failed("opening the root"))?;
        for (index, name) in path.iter().enumerate() {
            let prefix = &path[..=index];
            let above = self.place(place)?;
            place = match self.open(prefix) {
                Ok(directory) => directory,
                Err(Errno::NOENT) if self.look(&above, name)?.is_none() => {
                    let metadata = self.rules.implied()?;
                    self.implied += 1;
                    self.make(&above, name, metadata, true)?
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                    self.replace_whiteout(&above, name, prefix)?
                }
                Err(error) => return Err(failed("opening the directory it lies in")(error)),
            };
        }
        self.place(place)
    }

    /// A directory in place of a whiteout; anything else that is no directory stays, and the entry is refused.
    fn replace_whiteout(
        &mut self,
        above: &Place,
        name: &[u8],
        path: &[Vec<u8>],
    ) -> Result<OwnedFd, EntryProblem> {
        match self.look(above, name)? {
            Some(stat) if self.is_whiteout(above, name, &stat)? => {
                let metadata = self.rules.implied()?;
                self.directory(above, name, metadata)
            }
            _ => Err(EntryProblem::ParentNotDirectory {
                parent: path.join(&b'/'),
            }),
        }
    }

    /// Makes a directory where there is nothing.
    fn make(
        &mut self,
        place: &Place,
        name: &[u8],
        metadata: Metadata,
        implied: bool,
    ) -> Result<OwnedFd, EntryProblem> {
        let depth = place.depth + 1;
        Limit::Depth.check(depth, self.max_depth)?;
        rustix::fs::mkdirat(place.fd(), name, Mode::RWXU)
            .map_err(failed("making the directory"))?;
        let directory = open_directory(place.fd(), name).map_err(failed("opening it"))?;
        let known = Directory {
            depth,
            metadata,
            implied,
        };
        self.directories.insert(inode(&directory)?, known);
        Ok(directory)
    }
}

/// The directory and the name of a path that must not be the root.
pub(crate) fn split<'p>(
    role: &'static str,
    path: &'p ImagePath,
) -> Result<(&'p [Vec<u8>], &'p [u8]), EntryProblem> {
    path.split_last().ok_or_else(|| EntryProblem::BadPath {
        role,
        path: b"/".to_vec(),
        what: "the root of an image is a directory",
    })
}

/// What lies under a name in a directory, links not followed.
pub(crate) fn look(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, EntryProblem> {
    stat(directory, name).map_err(failed("looking at what is there"))
}

/// As [`look`], for who has no entry to blame.
pub(crate) fn stat(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn inode(directory: &OwnedFd) -> Result<u64, EntryProblem> {
    rustix::fs::fstat(directory)
        .map(|stat| stat.st_ino)
        .map_err(failed("looking at the directory"))
}

/// Visits what is in a directory, name by name, so that no list of names is held.
pub(crate) fn each(
    directory: &OwnedFd,
    visit: &mut dyn FnMut(&[u8], FileType) -> io::Result<()>,
) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems do not tell.
            FileType::Unknown => {
                let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        visit(name, kind)?;
    }
    Ok(())
}

/// Removes a directory and all in it; links are removed, not followed. Says which directories went.
pub(crate) fn remove_tree(
    parent: BorrowedFd<'_>,
    name: &[u8],
    removed: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let directory = open_directory(parent, name)?;
    each(&directory, &mut |inner, kind| match kind {
        FileType::Directory => remove_tree(directory.as_fd(), inner, removed),
        _ => Ok(rustix::fs::unlinkat(&directory, inner, AtFlags::empty())?),
    })?;
    removed(rustix::fs::fstat(&directory)?.st_ino);
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Gives an open file or directory its owner, mode and time. The mode comes after the owner, whose change takes bits away.
pub(crate) fn set(file: &OwnedFd, metadata: &Metadata) -> Result<(), Errno> {
    if metadata.uid.is_some() || metadata.gid.is_some() {
        rustix::fs::fchown(file, metadata.uid, metadata.gid)?;
    }
    rustix::fs::fchmod(file, metadata.mode)?;
    rustix::fs::futimens(file, &metadata.times())
}

/// Opens a directory of ours by its path.
pub(crate) fn open_root(path: &std::path::Path) -> io::Result<OwnedFd> {
    let file = File::open(path)?;
    Ok(OwnedFd::from(file))
}
