//! Removes what containers have left.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use runtara_runner::shim::{self, Program, Shim};
use runtara_runner::{RunDirectories, RunDirectory, RunKey};
use tracing::{info, warn};

use crate::config::OciConfig;
use crate::host::Host;
use crate::plan::ContainerPlan;
use crate::runtime::Runtime;

/// How long the runtime may take to remove a container.
const PATIENCE: Duration = Duration::from_secs(60);

/// The container of a run, as its `run.json` tells it. `None` if that is not there. Blocking.
///
/// # Errors
/// What reading reported; [`io::ErrorKind::InvalidData`] if it is not understood.
pub(crate) fn plan_of(directory: &RunDirectory) -> io::Result<Found> {
    Ok(match shim::read_program(directory)? {
        None => Found::Nothing,
        Some(Program {
            container: None, ..
        }) => Found::Native,
        Some(Program {
            container: Some(container),
            ..
        }) => Found::Container(Box::new(serde_json::from_value(container)?)),
    })
}

/// Of which kind the run of a directory is.
pub(crate) enum Found {
    /// There is nothing that would say so.
    Nothing,
    /// It is a native program.
    Native,
    Container(Box<ContainerPlan>),
}

/// What is to be removed of a container.
pub(crate) struct Leftover {
    id: String,
    runtime: Runtime,
    staging: std::path::PathBuf,
    cgroup_directories: Vec<std::path::PathBuf>,
}

/// Who removes what is left of a container.
pub(crate) enum Remaining {
    /// It is removed.
    Nothing,
    /// Its shim, which is at it. What it leaves is to be removed when it has ended.
    Shim(Shim, Leftover),
}

impl Leftover {
    pub(crate) fn of(plan: &ContainerPlan, host: &Host) -> Self {
        Self {
            id: plan.id.clone(),
            runtime: Runtime::new(plan.runtime.clone(), plan.runtime_state.clone()),
            staging: plan.staging.clone(),
            cgroup_directories: host.cgroup_directories(),
        }
    }

    /// Removes what is there of it. Its shim must have ended. Blocking.
    ///
    /// # Errors
    /// What could not be removed; a later call goes on.
    pub(crate) fn remove(&self) -> io::Result<()> {
        if self.runtime.knows(&self.id) {
            let deleted = self.runtime.delete(&self.id, PATIENCE);
            deleted.map_err(|error| io::Error::other(runtara_runner::describe(&error)))?;
        }
        // Its mounts were the shim's own, and have ended with it.
        remove_directory(&self.staging)?;
        for directory in &self.cgroup_directories {
            remove_directory(&directory.join(&self.id))?;
        }
        Ok(())
    }
}

/// Removes all that a run has left; all but its logs if those are to be kept. Refused while a process of it lives. Blocking; within a tokio
/// runtime.
pub(crate) fn clean(
    host: &Host,
    directories: &RunDirectories,
    (key, directory): (&RunKey, &RunDirectory),
    plan: Option<&ContainerPlan>,
    keep_logs: bool,
) -> io::Result<Remaining> {
    if shim::is_locked(directory)? {
        let text = "its shim still lives";
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
    }
    let mut remaining = Remaining::Nothing;
    if let Some(plan) = plan {
        let leftover = Leftover::of(plan, host);
        match shim::lingering(directory)? {
            Some(shim) => remaining = Remaining::Shim(shim, leftover),
            None => leftover.remove()?,
        }
    }
    directories.remove(key, keep_logs)?;
    Ok(remaining)
}

/// Removes what is left of containers whose runs have left nothing else: of a server that was killed while it cleaned up. Nothing is launched
/// meanwhile. Blocking.
pub(crate) fn sweep(config: &OciConfig, host: &Host) {
    let (Some(runtime), Ok(of_runs)) = (&host.runtime, runs(config)) else {
        return;
    };
    let cgroup_directories = host.cgroup_directories();
    let mut left = names(&config.runtime_state());
    left.append(&mut names(&config.staging()));
    for directory in &cgroup_directories {
        left.append(&mut names(directory));
    }
    for id in left.difference(&of_runs) {
        let leftover = Leftover {
            id: id.clone(),
            runtime: runtime.clone(),
            staging: config.staging().join(id),
            cgroup_directories: cgroup_directories.clone(),
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

/// The containers that have something in a directory.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("rt-")).collect()
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io::Error::new(
            error.kind(),
            format!("could not remove '{}': {error}", path.display()),
        )),
        _ => Ok(()),
    }
}
