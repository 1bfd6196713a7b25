//! Where content lies in the local file system, and how it gets there. Everything here blocks.
//!
//! ```text
//! <root>/sha256/ab/cdef…      content, by the 64 digits of its digest, mode 0555
//! <root>/uploads/<uuid>.part  uploads under way, each locked by the process that writes it
//! <root>/locks/ab             one lock for all digests that begin with ab: shared by pins, exclusive for removals
//! ```
//!
//! Locks are `flock(2)`: they belong to the open file, so that they end with the process however it ends, and they exclude
//! each other inside one process as well as between several that share the directory. Lock files are never removed: whoever
//! waits for one would otherwise get a lock on a file that nobody else sees.

use std::error::Error as _;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtara_domain::ImageDigest;
use runtara_failpoints::{Point, pass};
use uuid::Uuid;

use crate::{BlobError, SharedPin, Swept};

/// How long a registration waits for a removal of another digest with the same first byte. A removal holds its lock for one
/// question to the database, and to take names away: giving back the room of what had them comes after it.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(2);

/// Content is what everyone may read and run, and nobody may change: a runner can link the file into place instead of copying
/// it. Who may reach it is decided by the directory, which is the server's alone.
const CONTENT_MODE: u32 = 0o555;
const DIRECTORY_MODE: u32 = 0o700;
const PART: &str = "part";

/// The directories of one store.
#[derive(Debug)]
pub(crate) struct Place {
    root: PathBuf,
}

impl Place {
    /// Makes the directories, durably.
    pub(crate) fn open(root: &Path) -> Result<Self, BlobError> {
        let fresh = !root.exists();
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(root)
            .map_err(BlobError::io("create", root))?;
        let root = fs::canonicalize(root).map_err(BlobError::io("find", root))?;
        let place = Self { root };
        for directory in [place.content(), place.uploads(), place.locks()] {
            make_directory(&directory)?;
        }
        sync_directory(&place.root)?;
        if fresh && let Some(parent) = place.root.parent() {
            sync_directory(parent)?;
        }
        Ok(place)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn path_of(&self, digest: &ImageDigest) -> PathBuf {
        let hex = digest.to_hex();
        let (shard, rest) = hex.split_at(2);
        self.content().join(shard).join(rest)
    }

    pub(crate) fn content(&self) -> PathBuf {
        self.root.join("sha256")
    }

    pub(crate) fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    /// Makes a new temporary file and locks it, so that no sweep takes it for a leftover.
    pub(crate) fn create_part(&self) -> Result<Part, BlobError> {
        loop {
            let path = self.uploads().join(format!("{}.{PART}", Uuid::new_v4()));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(BlobError::io("create", &path))?;
            let part = Part {
                file: Arc::new(file),
                path: Some(path),
            };
            // A sweep may have met the file between its creation and its lock: then it holds the lock, or the file is gone.
            // Either way, another name.
            match part.file.try_lock() {
                Ok(()) if part.is_named()? => return Ok(part),
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => {
                    return Err(BlobError::io("lock", part.path())(source));
                }
            }
        }
    }

    /// Removes the temporary files that no living process writes to, unless it is only to say how many there are.
    pub(crate) fn sweep(&self, dry_run: bool) -> Result<Swept, BlobError> {
        let uploads = self.uploads();
        let mut swept = Swept::default();
        for entry in fs::read_dir(&uploads).map_err(BlobError::io("read", &uploads))? {
            let path = entry.map_err(BlobError::io("read", &uploads))?.path();
            if path.extension().is_none_or(|extension| extension != PART) {
                continue;
            }
            match remove_if_left(&path, dry_run) {
                Ok(Some(bytes)) => swept.add(bytes),
                Ok(None) => {}
                // One leftover that stays costs its space; it is no reason not to serve.
                Err(error) => {
                    let reason = error.source().map(ToString::to_string).unwrap_or_default();
                    tracing::warn!(%error, reason, "could not remove a broken upload");
                }
            }
        }
        Ok(swept)
    }

    /// Puts a whole temporary file in its place, durably. Says whether the same content was there.
    pub(crate) fn publish(
        &self,
        mut part: Part,
        digest: &ImageDigest,
        size: u64,
    ) -> Result<(bool, Pin), BlobError> {
        let path = self.path_of(digest);
        let shard = path.parent().expect("content lies in a shard directory");
        // The long flush happens before the lock. It is left out where the content seems to be there already; should it be
        // removed before the lock is held, it is made up for.
        let mut durable = false;
        if !has_size(&path, size)? {
            part.sync()?;
            durable = true;
        }
        let pin = self.pin(digest)?;
        let already_there = has_size(&path, size)?;
        if !already_there {
            if !durable {
                part.sync()?;
            }
            make_directory(shard)?;
            pass(Point::UploadWhole);
            part.rename(&path)?;
        }
        // Also where the content was there: another process may have put it there and not have flushed the directory yet, and
        // the answer to this upload must not depend on whether it still does.
        sync_directory(shard)?;
        sync_directory(&self.content())?;
        pass(Point::UploadPlaced);
        Ok((already_there, pin))
    }

    /// Makes the removal of content durable: what came back after a crash of the machine would be in nobody's books.
    pub(crate) fn sync_removal(&self, digest: &ImageDigest) -> Result<(), BlobError> {
        let path = self.path_of(digest);
        sync_directory(path.parent().expect("content lies in a shard directory"))
    }

    /// Waits until nobody removes content of this digest, and keeps it from being removed from then on.
    pub(crate) fn pin(&self, digest: &ImageDigest) -> Result<Pin, BlobError> {
        let (file, path) = self.open_lock(digest)?;
        let since = Instant::now();
        loop {
            match file.try_lock_shared() {
                Ok(()) => {
                    return Ok(Pin {
                        _file: file,
                        shared: None,
                    });
                }
                Err(TryLockError::Error(source)) => {
                    return Err(BlobError::io("lock", &path)(source));
                }
                Err(TryLockError::WouldBlock) if since.elapsed() >= LOCK_WAIT => {
                    return Err(BlobError::Locked {
                        path,
                        waited: LOCK_WAIT,
                    });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_POLL),
            }
        }
    }

    /// Locks a digest against registrations, or answers `None` at once if one is under way.
    pub(crate) fn lock_for_removal(
        &self,
        digest: &ImageDigest,
    ) -> Result<Option<RemovalLock>, BlobError> {
        let (file, path) = self.open_lock(digest)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(RemovalLock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(BlobError::io("lock", &path)(source)),
        }
    }

    fn open_lock(&self, digest: &ImageDigest) -> Result<(File, PathBuf), BlobError> {
        let path = self.locks().join(&digest.to_hex()[..2]);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(BlobError::io("open", &path))?;
        Ok((file, path))
    }
}

/// Keeps content from being removed while it lives.
#[derive(Debug)]
pub struct Pin {
    _file: File,
    /// The same, for other nodes.
    pub(crate) shared: Option<SharedPin>,
}

/// Keeps the content of a digest from being registered while it lives.
#[derive(Debug)]
pub(crate) struct RemovalLock {
    _file: File,
}

/// A temporary file that is removed when it is dropped, unless it was put in its place.
#[derive(Debug)]
pub(crate) struct Part {
    file: Arc<File>,
    path: Option<PathBuf>,
}

impl Part {
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(crate) fn path(&self) -> &Path {
        self.path
            .as_deref()
            .expect("only a rename takes the path, and it takes the part with it")
    }

    /// Whether the file still has a name.
    fn is_named(&self) -> Result<bool, BlobError> {
        use std::os::unix::fs::MetadataExt as _;
        let metadata = self.file.metadata();
        Ok(metadata
            .map_err(BlobError::io("read", self.path()))?
            .nlink()
            > 0)
    }

    fn sync(&self) -> Result<(), BlobError> {
        self.file
            .set_permissions(Permissions::from_mode(CONTENT_MODE))
            .map_err(BlobError::io("change the mode of", self.path()))?;
        self.file
            .sync_all()
            .map_err(BlobError::io("flush", self.path()))
    }

    fn rename(&mut self, to: &Path) -> Result<(), BlobError> {
        fs::rename(self.path(), to).map_err(BlobError::io("rename an upload to", to))?;
        self.path = None;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // The next sweep tries again.
            tracing::warn!(path = %path.display(), %error, "could not remove a broken upload");
        }
    }
}

/// Removes a temporary file that no living process writes to, unless this is a dry run. Gives its size; `None` if there is none to be removed.
fn remove_if_left(path: &Path, dry_run: bool) -> Result<Option<u64>, BlobError> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if gone(&error) => return Ok(None),
        Err(error) => return Err(BlobError::io("open", path)(error)),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(BlobError::io("lock", path)(error)),
    }
    let size = file.metadata().map_err(BlobError::io("read", path))?.len();
    if dry_run {
        return Ok(Some(size));
    }
    // An upload that was put in its place meanwhile has no file of this name any more, and names are not used twice.
    match fs::remove_file(path) {
        Ok(()) => Ok(Some(size)),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(BlobError::io("remove", path)(error)),
    }
}

fn has_size(path: &Path, size: u64) -> Result<bool, BlobError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_file() && metadata.len() == size),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(BlobError::io("read", path)(error)),
    }
}

fn make_directory(path: &Path) -> Result<(), BlobError> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(BlobError::io("create", path)(error))
        }
        _ => Ok(()),
    }
}

fn sync_directory(path: &Path) -> Result<(), BlobError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(BlobError::io("flush", path))
}
