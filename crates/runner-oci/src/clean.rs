//! Removes what containers have left.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtara_domain::RunNumber;
use runtara_runner::shim::{self, Shim};
use runtara_runner::{RunDirectories, RunDirectory, RunKey, owner_of_runs};
use tracing::{info, warn};

use crate::IdRange;
use crate::config::OciConfig;
use crate::host::Host;
use crate::launch::container_id;
use crate::plan::ContainerPlan;

/// How often, and how long apart, a directory is removed that something is just leaving.
const REMOVE_TRIES: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(1);

/// Of which kind the run of a directory is.
pub(crate) enum Found {
    /// There is nothing that would say so.
    Nothing,
    /// It is a native program.
    Native,
    Container(Box<ContainerPlan>),
    /// A container of which another version of the server wrote what is not understood.
    Unreadable,
}

/// Finds out of which kind a run is, as its `run.json` tells it. Blocking.
///
/// # Errors
/// What reading reported.
pub(crate) fn look(directory: &RunDirectory) -> io::Result<Found> {
    let Some(program) = shim::read_program(directory)? else {
        return Ok(Found::Nothing);
    };
    Ok(match program.container {
        None => Found::Native,
        Some(container) => match container.read() {
            Ok(plan) => Found::Container(Box::new(plan)),
            Err(_) => Found::Unreadable,
        },
    })
}

/// What is to be removed of a container: the directory it was mounted on, and its cgroups. All else, what the runtime has noted of it
/// included, was in mounts of its shim's own, and has ended with that.
pub(crate) struct Leftover {
    /// The directory is the last one.
    places: Vec<PathBuf>,
}

/// Who removes what is left of a container.
pub(crate) enum Remaining {
    /// It is removed.
    Nothing,
    /// Its shim, which is at it. What it leaves is to be removed when it has ended.
    Shim(Shim, Leftover),
}

impl Leftover {
    /// What a plan says.
    pub(crate) fn of(plan: &ContainerPlan) -> Self {
        let cgroups = plan.cgroups.iter().cloned();
        Self {
            places: cgroups.chain([plan.staging.clone()]).collect(),
        }
    }

    /// What a run of this server has, if its plan says nothing.
    pub(crate) fn of_run(key: &RunKey, config: &OciConfig, host: &Host) -> Self {
        let id = container_id(key);
        let mut places = host.cgroups_of(&id);
        places.push(config.staging().join(id));
        Self { places }
    }

    /// Removes what its shim has left of it, which has ended: as a rule nothing, as the directory says, which a shim removes when all else is
    /// gone. Blocking.
    ///
    /// # Errors
    /// As [`Leftover::remove`].
    pub(crate) fn remove_after_shim(&self) -> io::Result<()> {
        let directory = self.places.last().map(|directory| directory.try_exists());
        match directory {
            Some(Ok(false)) => Ok(()),
            _ => self.remove(),
        }
    }

    /// Removes what is there of it. Its shim must have ended, and all that ran in it. Blocking.
    ///
    /// # Errors
    /// What could not be removed; a later call goes on.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.places.iter().try_for_each(|place| remove_place(place))
    }
}

/// Removes all that a run has left; all but its logs if those are to be kept. No process of it may live. Blocking; within a tokio runtime.
pub(crate) fn clean(
    directories: &RunDirectories,
    (key, directory): (&RunKey, &RunDirectory),
    leftover: Option<Leftover>,
    keep_logs: bool,
) -> io::Result<Remaining> {
    let mut remaining = Remaining::Nothing;
    if let Some(leftover) = leftover {
        match shim::lingering(directory)? {
            Some(shim) => remaining = Remaining::Shim(shim, leftover),
            None => leftover.remove_after_shim()?,
        }
    }
    directories.remove(key, keep_logs)?;
    Ok(remaining)
}

/// Removes what is left of containers whose runs have left nothing else: of a server that was killed while it cleaned up. Nothing is launched
/// meanwhile. Blocking.
pub(crate) fn sweep(config: &OciConfig, host: &Host) {
    let Ok(of_runs) = runs(config) else {
        return;
    };
    let mut directories = host.cgroup_directories();
    directories.push(config.staging());
    let left: BTreeSet<_> = directories
        .iter()
        .flat_map(|directory| names(directory))
        .collect();
    for id in left.difference(&of_runs) {
        let places = directories.iter().map(|directory| directory.join(id));
        let leftover = Leftover {
            places: places.collect(),
        };
        match leftover.remove() {
            Ok(()) => info!(container = id, "removed what was left of a container"),
            Err(error) => warn!(container = id, %error, "what is left of a container stays"),
        }
    }
}

/// The containers of all runs that have files: recovery finds out about those.
fn runs(config: &OciConfig) -> io::Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    let instances = match fs::read_dir(config.data_dir.join("runs")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(ids),
        instances => instances?,
    };
    for instance in instances {
        let instance = instance?;
        let letters = instance.file_name();
        for run in fs::read_dir(instance.path()).into_iter().flatten() {
            let number = run?.file_name();
            ids.insert(format!("rt-{}-{}", letters.display(), number.display()));
        }
    }
    Ok(ids)
}

/// The ranges of ids of all runs that have files: also of one that has ended, until it is cleaned up. Blocking.
pub(crate) fn ranges_of_runs(config: &OciConfig) -> Vec<(RunKey, IdRange)> {
    let mut found = Vec::new();
    let instances = fs::read_dir(config.data_dir.join("runs"));
    for instance in instances.into_iter().flatten().flatten() {
        // Without an owner there is no run of it.
        let Ok(Some(instance_id)) = owner_of_runs(&instance.path()) else {
            continue;
        };
        for run in fs::read_dir(instance.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let number = run.file_name().to_str().and_then(|name| name.parse().ok());
            let plan = look(&RunDirectory::at(run.path()));
            if let (Some(number), Ok(Found::Container(plan))) = (number, plan) {
                let key = RunKey {
                    instance_id: instance_id.clone(),
                    run_number: RunNumber(number),
                };
                found.push((key, plan.ids));
            }
        }
    }
    found
}

/// The containers that have something in a directory.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("rt-")).collect()
}

/// Removes a directory that is not used any more. A cgroup is used for a moment longer than its last process is there.
pub(crate) fn remove_place(path: &Path) -> io::Result<()> {
    let mut tries = 1;
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < REMOVE_TRIES => {
                tries += 1;
                std::thread::sleep(REMOVE_PAUSE);
            }
            removed => {
                let naming = |error: io::Error| {
                    let text = format!("could not remove '{}': {error}", path.display());
                    io::Error::new(error.kind(), text)
                };
                return removed.map_err(naming);
            }
        }
    }
}
