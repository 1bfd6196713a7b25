//! The files of runs: whose they are, and that none stay which nobody needs.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use runtara_domain::{EndedBy, InstanceId, InstanceState, RunNumber};
use runtara_runner::shim::is_locked;
use runtara_runner::{Adoption, RunDirectory, RunKey, blocking, owner_of_runs, remove_tree};
use tokio::time::timeout;
use tracing::warn;

use super::{Failure, Pass, Reconciler};
use crate::Shared;

/// How long a run may take to end that is killed.
const STRAY_ENDS_WITHIN: Duration = Duration::from_secs(10);
/// Most files whose sizes are added up: what a run has left may be of any shape.
const MEASURED: usize = 10_000;

/// Removes all files of runs whose instance is not in the store any more; of other runs that are over, what was to be removed when their
/// exit was recorded, if the server was killed in between or could not. What belongs to whom decides, never how old it is.
pub(super) struct RunFiles;

#[async_trait]
impl Reconciler for RunFiles {
    fn name(&self) -> &'static str {
        "run-files"
    }

    fn about(&self) -> &'static str {
        "files of runs that are over, and of instances that are gone"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(600)
    }

    async fn reconcile(&self, shared: &Shared, pass: &Pass) -> Result<(), Failure> {
        let runs = shared.config.data_dir.join("runs");
        let mut directories = match tokio::fs::read_dir(&runs).await {
            Ok(directories) => directories,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        while let Some(entry) = directories.next_entry().await? {
            if pass.is_over() {
                return Ok(());
            }
            // What stands in the way of one must not keep the others.
            if let Err(error) = tidy(shared, pass, &entry.path()).await {
                let directory = entry.path();
                warn!(directory = %directory.display(), %error, "files of runs could not be removed; it is tried again");
            }
        }
        Ok(())
    }
}

/// How many bytes a directory holds, as far as that is found out soon. Links are not followed.
async fn size_of(directory: PathBuf) -> Result<u64, Failure> {
    let measured = blocking(move || {
        let (mut bytes, mut files, mut left) = (0, 0, vec![directory]);
        while let Some(directory) = left.pop() {
            // What is gone or closed meanwhile has no size that matters.
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                files += 1;
                if files > MEASURED {
                    return Ok(bytes);
                }
                match entry.metadata() {
                    Ok(found) if found.is_dir() => left.push(entry.path()),
                    Ok(found) => bytes += found.len(),
                    Err(_) => {}
                }
            }
        }
        Ok(bytes)
    });
    Ok(measured.await?)
}

async fn tidy(shared: &Shared, pass: &Pass, directory: &Path) -> Result<(), Failure> {
    let path = directory.to_owned();
    // Listed before the row is read: a run that is claimed afterwards is not among them.
    let listed = blocking(move || Ok((owner_of_runs(&path)?, runs_in(&path)?)));
    let (owner, runs) = listed.await?;
    let Some(owner) = owner else {
        return match runs.is_empty() {
            true => remove_empty(shared, pass, None, directory).await,
            // Their logs go by age and size.
            false => Ok(()),
        };
    };
    let Some(instance) = shared.store.instance(&owner).await? else {
        return remove_all(shared, pass, &owner, directory).await;
    };
    if runs.is_empty() {
        return remove_empty(shared, pass, Some(&owner), directory).await;
    }
    for (number, is_whole) in runs {
        if is_whole && !may_live(shared, &instance.state, number) {
            // Its logs stay, which are nearly all of it: how much goes is not worth finding out.
            if !pass.dry_run {
                clean(shared, &owner, number, true).await?;
            }
            pass.item(|| format!("run {number} of {owner}"), 0);
        }
    }
    Ok(())
}

/// Removes the files of all runs of an instance that is not there any more.
async fn remove_all(
    shared: &Shared,
    pass: &Pass,
    owner: &InstanceId,
    directory: &Path,
) -> Result<(), Failure> {
    let bytes = size_of(directory.to_owned()).await?;
    // Nothing is claimed meanwhile; another instance may have its id since.
    let _no_claims = shared.claiming.lock().await;
    if shared.live.get(owner).is_some() || shared.store.instance(owner).await?.is_some() {
        return Ok(());
    }
    if pass.dry_run {
        pass.item(|| format!("all runs of {owner}"), bytes);
        return Ok(());
    }
    let path = directory.to_owned();
    for (number, _) in blocking(move || runs_in(&path)).await? {
        clean(shared, owner, number, false).await?;
    }
    let path = directory.to_owned();
    blocking(move || remove_tree(&path)).await?;
    pass.item(|| format!("all runs of {owner}"), bytes);
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

pub(super) async fn clean(
    shared: &Shared,
    owner: &InstanceId,
    number: RunNumber,
    keep_logs: bool,
) -> Result<(), Failure> {
    let key = RunKey {
        instance_id: owner.clone(),
        run_number: number,
    };
    end_stray(shared, &key).await?;
    for runner in shared.runners.values() {
        runner.clean(&key, keep_logs).await?;
    }
    Ok(())
}

/// Ends a run that still lives although its instance has gone on without it: its node was away for so long that others took it over.
async fn end_stray(shared: &Shared, key: &RunKey) -> Result<(), Failure> {
    let directory = RunDirectory::of(&shared.config.data_dir, key);
    if !blocking(move || is_locked(&directory)).await? {
        return Ok(());
    }
    for runner in shared.runners.values() {
        // Of which kind it was nobody knows any more; a runner of another kind cannot tell what became of it.
        if let Ok(Adoption::Alive(run)) = runner.adopt(key).await {
            warn!(%key, "ends a run whose instance has gone on without it");
            run.terminate(Duration::ZERO, EndedBy::Host).await?;
            timeout(STRAY_ENDS_WITHIN, run.wait()).await??;
            return Ok(());
        }
    }
    Ok(())
}

/// Removes the directory of an instance of which no run has left anything.
async fn remove_empty(
    shared: &Shared,
    pass: &Pass,
    owner: Option<&InstanceId>,
    directory: &Path,
) -> Result<(), Failure> {
    // Nothing is claimed meanwhile, so no launch counts on the note.
    let _no_claims = shared.claiming.lock().await;
    let is_live = match owner {
        Some(owner) => shared.live.get(owner).is_some(),
        None => {
            let live = shared.live.all();
            let name = directory.file_name().unwrap_or_default();
            live.iter()
                .any(|live| *name == *live.key.instance_id.letters())
        }
    };
    if is_live {
        return Ok(());
    }
    let path = directory.to_owned();
    let dry_run = pass.dry_run;
    let removed = blocking(move || {
        let is_empty = runs_in(&path)?.is_empty();
        if is_empty && !dry_run {
            remove_tree(&path)?;
        }
        Ok(is_empty)
    });
    if removed.await? {
        let name = || match owner {
            Some(owner) => format!("the empty directory of {owner}"),
            None => format!("{}, empty and of nobody known", directory.display()),
        };
        pass.item(name, 0);
    }
    Ok(())
}

/// The runs of a directory, and of each whether its `run.json` is there: it is the last that is removed of a run but for its logs.
pub(super) fn runs_in(directory: &Path) -> io::Result<Vec<(RunNumber, bool)>> {
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
