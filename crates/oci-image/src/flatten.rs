//! Several layers copied into one directory, for machines without overlayfs.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom as Sought, Stat, Timespec, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::metadata::Metadata;
use crate::overlay::{OverlayForm, open_directory};
use crate::store::UnpackedImage;
use crate::tree::{each, open_root, remove_tree, set, stat};
use crate::unpack::is_kept;
use crate::{ImageError, Watch};

/// How much is copied between two looks at the watch.
const COPY_BYTES: u64 = 4 * 1024 * 1024;
/// Largest list of names of attributes, and largest value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`, limits.h).
const ATTRIBUTE_BYTES: usize = 65_536;

impl UnpackedImage {
    /// Copies the image into a directory, which is made or must be empty: what a container would see through overlayfs, with
    /// owners, modes, times, hard links and holes. Blocks shared by the file system are shared where it can (btrfs, xfs).
    ///
    /// It is not synced: such a copy is made for one run. If it ends with an error, what was copied until then stays; remove
    /// the directory.
    ///
    /// # Errors
    /// [`ImageError::StorageFull`] and [`ImageError::Io`] if the file system refuses, [`ImageError::Stopped`] if the watch said
    /// so.
    pub fn flatten(&self, target: &Path, watch: Watch<'_>) -> Result<(), ImageError> {
        fs::create_dir_all(target).map_err(ImageError::io("make", target))?;
        let root = open_root(target).map_err(ImageError::io("open", target))?;
        let links =
            Links::new(target).map_err(ImageError::io("make a directory beside", target))?;
        let lowest = self
            .layers()
            .iter()
            .rposition(crate::Layer::hides_all_below);
        let mut is_lowest = true;
        for layer in &self.layers()[lowest.unwrap_or(0)..] {
            let source =
                open_root(layer.directory()).map_err(ImageError::io("open", layer.directory()))?;
            let mut copy = Copy {
                form: layer.form(),
                links: &links,
                watch,
            };
            copy.directory(&source, (&root, is_lowest), true)
                .map_err(|ended| match ended {
                    Ended::Stopped => ImageError::Stopped,
                    Ended::Failed(error) => ImageError::io("copy an image to", target)(error),
                })?;
            is_lowest = false;
            links
                .forget()
                .map_err(ImageError::io("clear a directory beside", target))?;
        }
        Ok(())
    }
}

enum Ended {
    Stopped,
    Failed(io::Error),
}

impl<E: Into<io::Error>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The copies of files that have several names, each under the number of its inode: on disk, so that their number costs no
/// memory.
struct Links {
    path: PathBuf,
    directory: OwnedFd,
}

impl Links {
    fn new(target: &Path) -> io::Result<Self> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(format!("-links-{}", uuid::Uuid::new_v4().simple()));
        let path = target.with_file_name(name);
        fs::create_dir(&path)?;
        let directory = open_root(&path)?;
        Ok(Self { path, directory })
    }

    /// Another layer has other inodes.
    fn forget(&self) -> io::Result<()> {
        each(&self.directory, &mut |name, _| {
            Ok(rustix::fs::unlinkat(
                &self.directory,
                name,
                AtFlags::empty(),
            )?)
        })
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(error = %error, path = %self.path.display(), "could not remove a directory of links");
        }
    }
}

struct Copy<'a> {
    form: OverlayForm,
    links: &'a Links,
    watch: Watch<'a>,
}

impl Copy<'_> {
    fn directory(
        &mut self,
        source: &OwnedFd,
        (target, is_new): (&OwnedFd, bool),
        is_root: bool,
    ) -> Result<(), Ended> {
        // A layer that does not describe a directory leaves it as lower layers have it.
        let before = match !is_new && self.form.is_implied(source)? {
            true => Some(rustix::fs::fstat(target)?),
            false => None,
        };
        if !is_root && self.form.is_opaque(source)? {
            each(target, &mut |name, _| remove(target, name))?;
        }
        let mut stopped = false;
        each(source, &mut |name, _| {
            if stopped {
                return Ok(());
            }
            match self.entry(source, target, name) {
                Err(Ended::Stopped) => stopped = true,
                Err(Ended::Failed(error)) => return Err(error),
                Ok(()) => {}
            }
            Ok(())
        })?;
        if stopped {
            return Err(Ended::Stopped);
        }
        if let Some(before) = before {
            return Ok(set(target, &metadata(&before))?);
        }
        let stat = rustix::fs::fstat(source)?;
        attributes(source, target)?;
        Ok(set(target, &metadata(&stat))?)
    }

    fn entry(&mut self, source: &OwnedFd, target: &OwnedFd, name: &[u8]) -> Result<(), Ended> {
        self.watch.check().map_err(|_| Ended::Stopped)?;
        let Some(found) = stat(source.as_fd(), name)? else {
            return Ok(());
        };
        if self.form.is_whiteout(source, name, &found)? {
            return Ok(remove(target, name)?);
        }
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => {
                let inner = open_directory(source, name)?;
                let (made, is_new) = make_directory(target, name)?;
                self.directory(&inner, (&made, is_new), false)
            }
            FileType::Symlink => {
                remove(target, name)?;
                Ok(symlink(source, target, name, &found)?)
            }
            FileType::RegularFile => {
                remove(target, name)?;
                self.file(source, target, name, &found)
            }
            // The store has nothing else.
            _ => Ok(()),
        }
    }

    fn file(
        &mut self,
        source: &OwnedFd,
        target: &OwnedFd,
        name: &[u8],
        found: &Stat,
    ) -> Result<(), Ended> {
        let links = &self.links.directory;
        let number = found.st_ino.to_string();
        if found.st_nlink > 1 {
            match rustix::fs::linkat(links, &number, target, name, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = File::from(rustix::fs::openat(source, name, flags, Mode::empty())?);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let to = File::from(rustix::fs::openat(target, name, flags, mode)?);
        self.content(&from, &to, found.st_size.cast_unsigned())?;
        let (from, to) = (OwnedFd::from(from), OwnedFd::from(to));
        attributes(&from, &to)?;
        set(&to, &metadata(found))?;
        if found.st_nlink > 1 {
            rustix::fs::linkat(target, name, links, &number, AtFlags::empty())?;
        }
        Ok(())
    }

    /// Copies what is not a hole.
    fn content(&mut self, from: &File, to: &File, size: u64) -> Result<(), Ended> {
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(from, Sought::Data(at)) {
                Ok(start) => start,
                // Nothing but a hole follows.
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(from, Sought::Hole(start))?;
            at = start;
            while at < end {
                self.watch.check().map_err(|_| Ended::Stopped)?;
                let copied = copy_piece(from, to, at, (end - at).min(COPY_BYTES))?;
                if copied == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                at += copied;
            }
        }
        Ok(rustix::fs::ftruncate(to, size)?)
    }
}

/// Copies within the kernel, or by hand where it cannot.
fn copy_piece(mut from: &File, mut to: &File, at: u64, length: u64) -> io::Result<u64> {
    let (mut read_at, mut write_at) = (at, at);
    let asked = usize::try_from(length).unwrap_or(usize::MAX);
    match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), asked) {
        Ok(copied) => return Ok(copied as u64),
        Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    from.seek(SeekFrom::Start(at))?;
    to.seek(SeekFrom::Start(at))?;
    let mut piece = Vec::new();
    from.take(length).read_to_end(&mut piece)?;
    to.write_all(&piece)?;
    Ok(piece.len() as u64)
}

fn remove(directory: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let Some(found) = stat(directory.as_fd(), name)? else {
        return Ok(());
    };
    match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => remove_tree(directory.as_fd(), name, &mut |_| ()),
        _ => Ok(rustix::fs::unlinkat(directory, name, AtFlags::empty())?),
    }
}

/// The directory that is there, or a new one in place of anything else, and whether it is new.
fn make_directory(parent: &OwnedFd, name: &[u8]) -> io::Result<(OwnedFd, bool)> {
    let exists = stat(parent.as_fd(), name)?
        .is_some_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory);
    if !exists {
        remove(parent, name)?;
        rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
    }
    Ok((open_directory(parent, name)?, !exists))
}

fn symlink(source: &OwnedFd, target: &OwnedFd, name: &[u8], found: &Stat) -> io::Result<()> {
    let leads_to = rustix::fs::readlinkat(source, name, Vec::new())?;
    rustix::fs::symlinkat(&leads_to, target, name)?;
    let metadata = metadata(found);
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    if metadata.uid.is_some() {
        rustix::fs::chownat(target, name, metadata.uid, metadata.gid, flags)?;
    }
    Ok(rustix::fs::utimensat(
        target,
        name,
        &metadata.times(),
        flags,
    )?)
}

/// What is kept of a file. Only root can give files away; to others they belong already.
pub(crate) fn metadata(found: &Stat) -> Metadata {
    let is_root = rustix::process::geteuid().is_root();
    Metadata {
        uid: is_root.then(|| Uid::from_raw(found.st_uid)),
        gid: is_root.then(|| Gid::from_raw(found.st_gid)),
        mode: Mode::from_raw_mode(found.st_mode & 0o7777),
        modified: Timespec {
            tv_sec: found.st_mtime,
            tv_nsec: found.st_mtime_nsec.cast_signed(),
        },
    }
}

/// Copies the extended attributes that images keep.
fn attributes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let length = match rustix::fs::flistxattr_query(from) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(length) => length,
        Err(error) => return Err(error.into()),
    };
    let mut names = vec![0; length.min(ATTRIBUTE_BYTES)];
    let length = rustix::fs::flistxattr(from, names.as_mut_slice())?;
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| is_kept(name))
    {
        let mut value = vec![0; ATTRIBUTE_BYTES];
        let length = rustix::fs::fgetxattr(from, name, value.as_mut_slice())?;
        match rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            // As when a layer is unpacked: what has no room does without.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
