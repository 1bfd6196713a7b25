//! The files of runs: whose they are, and that none stay which nobody needs.

use std::io;
use std::path::Path;

use runtara_domain::{InstanceId, InstanceState, RunNumber};
use runtara_runner::{RunDirectory, RunKey, blocking, owner_of_runs, remove_tree};
use tracing::{info, warn};

use crate::Shared;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Removes all files of runs whose instance is not in the store any more; of other runs that are over, what was to be removed when their
/// exit was recorded, if the server was killed in between or could not.
pub(crate) async fn remove_unneeded(shared: &Shared) -> Result<(), Failure> {
    let runs = shared.config.data_dir.join("runs");
    let mut directories = match tokio::fs::read_dir(&runs).await {
        Ok(directories) => directories,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    while let Some(entry) = directories.next_entry().await? {
        if shared.closing.is_cancelled() {
            return Ok(());
        }
        // What stands in the way of one must not keep the others.
        if let Err(error) = tidy(shared, &entry.path()).await {
            let directory = entry.path();
            warn!(directory = %directory.display(), %error, "files of runs could not be removed; it is tried again");
        }
    }
    Ok(())
}

async fn tidy(shared: &Shared, directory: &Path) -> Result<(), Failure> {
    let path = directory.to_owned();
    // Listed before the row is read: a run that is claimed afterwards is not among them.
    let listed = blocking(move || Ok((owner_of_runs(&path)?, runs_in(&path)?)));
    let (Some(owner), runs) = listed.await? else {
        return Ok(());
    };
    let Some(instance) = shared.store.instance(&owner).await? else {
        return remove_all(shared, &owner, directory).await;
    };
    if runs.is_empty() {
        return remove_empty(shared, &owner, directory).await;
    }
    for (number, is_whole) in runs {
        if is_whole && !may_live(shared, &instance.state, number) {
            clean(shared, &owner, number, true).await?;
            info!(instance = %owner, run_number = %number, "removed what a run had left");
        }
    }
    Ok(())
}

/// Removes the files of all runs of an instance that is not there any more.
async fn remove_all(shared: &Shared, owner: &InstanceId, directory: &Path) -> Result<(), Failure> {
    // Nothing is claimed meanwhile; another instance may have its id since.
    let _no_claims = shared.claiming.lock().await;
    if shared.live.get(owner).is_some() || shared.store.instance(owner).await?.is_some() {
        return Ok(());
    }
    let path = directory.to_owned();
    for (number, _) in blocking(move || runs_in(&path)).await? {
        clean(shared, owner, number, false).await?;
    }
    let path = directory.to_owned();
    blocking(move || remove_tree(&path)).await?;
    info!(instance = %owner, "removed the files of a removed instance's runs");
    Ok(())
}

/// Whether a run may have processes: its exit is not recorded, or whoever recorded it is just about to remove its files.
fn may_live(shared: &Shared, state: &InstanceState, number: RunNumber) -> bool {
    let key = RunKey {
        instance_id: state.instance_id.clone(),
        run_number: number,
    };
    let is_newest = number >= state.run_number;
    (is_newest && state.live_node.is_some()) || shared.live.knows(&key)
}

async fn clean(
    shared: &Shared,
    owner: &InstanceId,
    number: RunNumber,
    keep_logs: bool,
) -> Result<(), Failure> {
    let key = RunKey {
        instance_id: owner.clone(),
        run_number: number,
    };
    for runner in shared.runners.values() {
        runner.clean(&key, keep_logs).await?;
    }
    Ok(())
}

/// Removes the directory of an instance of which no run has left anything.
async fn remove_empty(
    shared: &Shared,
    owner: &InstanceId,
    directory: &Path,
) -> Result<(), Failure> {
    // Nothing is claimed meanwhile, so no launch counts on the note.
    let _no_claims = shared.claiming.lock().await;
    if shared.live.get(owner).is_some() {
        return Ok(());
    }
    let path = directory.to_owned();
    let removed = blocking(move || match runs_in(&path)?.is_empty() {
        true => remove_tree(&path),
        false => Ok(()),
    });
    Ok(removed.await?)
}

/// The runs of a directory, and of each whether its `run.json` is there: it is the last that is removed of a run but for its logs.
fn runs_in(directory: &Path) -> io::Result<Vec<(RunNumber, bool)>> {
    let mut runs = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        {
            let run = RunDirectory::at(entry.path());
            runs.push((RunNumber(number), run.run_file().try_exists()?));
        }
    }
    Ok(runs)
}
