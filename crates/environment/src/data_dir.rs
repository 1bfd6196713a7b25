//! The directory that belongs to one server.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use runtara_domain::NodeId;

use crate::Error;

/// The data directory, locked for as long as this lives.
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl DataDir {
    /// Makes the directory if it is not there, and locks it. Others than this user have no business in it.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |action: &str| {
            let (path, action) = (path.to_owned(), action.to_owned());
            move |source| Error::DataDirectory {
                path,
                action,
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("it cannot be made"))?;
        let path = path.canonicalize().map_err(failed("it cannot be found"))?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o700))
            .map_err(failed("its mode cannot be set"))?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(failed("its lock file cannot be opened"))?;
        let mut holder = String::new();
        file.read_to_string(&mut holder)
            .map_err(failed("its lock file cannot be read"))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => {
                let holder = holder.trim().to_owned();
                return Err(Error::DataDirectoryInUse { path, holder });
            }
            Err((_, errno)) => return Err(failed("it cannot be locked")(errno.into())),
        };
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(failed("its lock file cannot be written"))?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is, as an absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The node that this directory makes of whatever server uses it.
    pub(crate) fn node(&self) -> Result<NodeId, Error> {
        let text = self.kept("node", || NodeId::generate().to_string())?;
        text.trim().parse().map_err(|_| {
            self.failed("its file `node` does not hold a node id; restore or remove it")(
                io::ErrorKind::InvalidData.into(),
            )
        })
    }

    fn kept(&self, name: &str, make: impl FnOnce() -> String) -> Result<String, Error> {
        match std::fs::read_to_string(self.path.join(name)) {
            Ok(text) if !text.trim().is_empty() => Ok(text),
            Ok(_) => self.write(name, &make()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.write(name, &make()),
            Err(error) => Err(self.failed(&format!("its file `{name}` cannot be read"))(
                error,
            )),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<String, Error> {
        let unfinished = self.path.join(format!("{name}.new"));
        let written = File::create(&unfinished)
            .and_then(|mut file| {
                writeln!(file, "{text}")?;
                file.sync_all()
            })
            .and_then(|()| std::fs::rename(&unfinished, self.path.join(name)))
            .and_then(|()| File::open(&self.path)?.sync_all());
        written
            .map(|()| text.to_owned())
            .map_err(self.failed(&format!("its file `{name}` cannot be written")))
    }

    fn failed(&self, action: &str) -> impl FnOnce(io::Error) -> Error + use<> {
        let (path, action) = (self.path.clone(), action.to_owned());
        move |source| Error::DataDirectory {
            path,
            action,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_serves_one_server_at_a_time_and_keeps_its_node() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a/b");
        let first = DataDir::open(&path).unwrap();
        let node = first.node().unwrap();
        assert!(matches!(
            DataDir::open(&path),
            Err(Error::DataDirectoryInUse { .. })
        ));
        drop(first);
        let second = DataDir::open(&path).unwrap();
        assert_eq!(second.node().unwrap(), node);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
