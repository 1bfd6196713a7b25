//! The files of a database: where it lies, that it is ours alone, and that nobody else may read it.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::failure::{broken, broken_by};
use crate::StoreResult;

/// The path in a text such as `sqlite:data/runtara.db`, `sqlite:///var/lib/runtara.db` or a plain path.
///
/// # Errors
/// [`crate::StoreError::Broken`] if the text names no file.
pub(super) fn path_of(url: &str) -> StoreResult<PathBuf> {
    let rest = url.strip_prefix("sqlite:").unwrap_or(url);
    let is_url = rest.len() != url.len();
    let rest = match (is_url, rest.strip_prefix("//")) {
        (true, Some(path)) => path,
        _ => rest,
    };
    let (path, parameters) = match rest.split_once('?') {
        Some((path, parameters)) if is_url => (path, parameters),
        _ => (rest, ""),
    };
    // Other clients of SQLite want to be told that they may create the file; we always do.
    if !matches!(parameters, "" | "mode=rwc") {
        return Err(broken(format!(
            "the database URL has the parameters {parameters:?}, which mean nothing here; leave them out"
        )));
    }
    let path = if is_url {
        percent_decoded(path)
    } else {
        Some(path.to_owned())
    };
    match path.as_deref() {
        Some("" | ":memory:") => Err(broken(
            "the database URL names no file; a database that is to keep anything needs one, such as sqlite:data/runtara.db",
        )),
        Some(path) if !path.contains('\0') => Ok(PathBuf::from(path)),
        _ => Err(broken(
            "the path in the database URL is not percent-encoded UTF-8",
        )),
    }
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let (high, low) = (digit(rest.next())?, digit(rest.next())?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

/// The path of a file that belongs to a database: beside it, with an ending of its own.
pub(super) fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(ending);
    PathBuf::from(path)
}

/// Opens a file with what is in it, or makes it; nobody else may read it.
pub(super) fn open_as_it_is(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// The lock of a database: held for as long as this value lives, by one process at a time.
///
/// It is a file of its own beside the database, because SQLite locks parts of the database itself, and a process that closes any
/// descriptor of a file loses all its POSIX locks on it (fcntl(2)).
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    fn take(database: &Path) -> StoreResult<Self> {
        let path = beside(database, ".lock");
        let opened = open_as_it_is(&path);
        let mut file = opened
            .map_err(|error| broken_by(format!("opening the lock {}", path.display()), error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _unknown = (&mut file).take(20).read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(broken(format!(
                    "the database {} is in use by {holder}, which holds the lock {}; a SQLite database serves one server at \
                     a time: stop that one, or use PostgreSQL for several",
                    database.display(),
                    path.display()
                )));
            }
            Err(TryLockError::Error(error)) => {
                let context = format!(
                    "locking {}; the file system may not know locks",
                    path.display()
                );
                return Err(broken_by(context, error));
            }
        }
        // For people and for the message above only: the lock is what counts.
        let written = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{}", std::process::id()));
        if let Err(error) = written {
            tracing::warn!(lock = %path.display(), %error, "the lock does not say who holds it");
        }
        Ok(Self { file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Said outright: a child that was forked shares the description, and closing ours alone would not free it (flock(2)).
        let _freed_by_the_close_then = self.file.unlock();
    }
}

/// Makes the directory and the file of a database if they are not there, and takes its lock.
///
/// # Errors
/// [`crate::StoreError::Broken`] if that cannot be, or if another process has the lock.
pub(super) fn prepare(path: &Path) -> StoreResult<Lock> {
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(|error| {
                broken_by(format!("making the directory {}", parent.display()), error)
            })?;
    }
    let lock = Lock::take(path)?;
    // SQLite gives its other files the mode of this one.
    open_as_it_is(path)
        .map_err(|error| broken_by(format!("opening the database {}", path.display()), error))?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_plain_paths_name_files() {
        for (url, path) in [
            ("sqlite:data/a.db", "data/a.db"),
            ("sqlite://data/a.db", "data/a.db"),
            ("sqlite:///var/a.db", "/var/a.db"),
            ("sqlite:/var/a%20b.db?mode=rwc", "/var/a b.db"),
            ("data/a%20b?.db", "data/a%20b?.db"),
        ] {
            assert_eq!(path_of(url).unwrap(), PathBuf::from(path), "{url}");
        }
        for bad in [
            "sqlite:",
            "sqlite::memory:",
            "sqlite:a.db?cache=shared",
            "sqlite:a%zz",
            "",
        ] {
            assert!(path_of(bad).is_err(), "{bad}");
        }
    }
}
