//! A cluster that lives as long as one test run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::place::base;
use super::{Cluster, Mode, Settings, lock_path};
use crate::error::Error;

/// A cluster for one test run: gone with this value, and if this process is killed, with the next
/// run.
pub(crate) struct PrivateCluster {
    cluster: Cluster,
    /// Held for the whole life: a cluster whose lock is free has lost its process.
    alive: File,
}

impl PrivateCluster {
    const PREFIX: &'static str = "private-";

    /// Starts a cluster that does not wait for the disk.
    pub(crate) fn start() -> Result<Self, Error> {
        Self::with(Settings {
            fsync: false,
            port: None,
        })
    }

    /// Starts a cluster that waits for the disk at each commit, as production does: for measuring.
    pub(crate) fn durable() -> Result<Self, Error> {
        Self::with(Settings {
            fsync: true,
            port: None,
        })
    }

    fn with(settings: Settings) -> Result<Self, Error> {
        sweep()?;
        let name = format!("{}{}", Self::PREFIX, std::process::id());
        let cluster = Cluster::named(&name)?;
        let path = alive_path(&cluster.directory);
        let alive = File::create(&path).map_err(Error::io(format!("open {}", path.display())))?;
        alive
            .try_lock()
            .map_err(|error| Error::Unmet(format!("{}: {error}", path.display())))?;
        // From here on `drop` cleans up, also after a start that failed half-way.
        let started = Self { cluster, alive };
        started.cluster.start(settings)?;
        Ok(started)
    }

    /// Gives the variables by which tests find it.
    pub(crate) fn environment(&self) -> Result<[(&'static str, String); 3], Error> {
        self.cluster.environment()
    }
}

impl Drop for PrivateCluster {
    fn drop(&mut self) {
        if let Err(error) = discard(&self.cluster) {
            let text = crate::error::with_causes(&error);
            eprintln!("could not remove the private PostgreSQL: {text}");
        }
        // Explicit, because the order matters: free only when nothing is left.
        let _closed_anyway = self.alive.unlock();
    }
}

/// Removes private clusters whose process was killed.
fn sweep() -> Result<(), Error> {
    let base = base()?;
    let entries = fs::read_dir(&base).map_err(Error::io(format!("list {}", base.display())))?;
    for entry in entries {
        let entry = entry.map_err(Error::io(format!("list {}", base.display())))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".alive") else {
            continue;
        };
        let free = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if free && name.starts_with(PrivateCluster::PREFIX) {
            eprintln!("    removing {name}, whose test run was killed");
            discard(&Cluster::named(name)?)?;
        }
    }
    Ok(())
}

fn discard(cluster: &Cluster) -> Result<(), Error> {
    cluster.stop(Mode::Immediate)?;
    cluster.remove()?;
    for path in [
        lock_path(&cluster.directory),
        alive_path(&cluster.directory),
    ] {
        if path.exists() {
            fs::remove_file(&path).map_err(Error::io(format!("remove {}", path.display())))?;
        }
    }
    Ok(())
}

fn alive_path(directory: &Path) -> PathBuf {
    directory.with_extension("alive")
}
