//! The files of runs whose instance is gone.

use std::io;
use std::path::{Path, PathBuf};

use runtara_domain::{InstanceId, RunNumber};
use runtara_runner::{RunDirectory, RunKey};
use tracing::info;

use crate::Shared;

/// The file beside the runs of an instance that says whose they are: their directory's name cannot be turned back into the id.
const OWNER: &str = "instance";

/// Notes whose runs a directory holds. Before a launch, so that no run's files are ever without an owner.
pub(crate) async fn note_owner(data_dir: &Path, key: &RunKey) -> io::Result<()> {
    let directory = directory_of(data_dir, key);
    let owner = directory.join(OWNER);
    if tokio::fs::try_exists(&owner).await? {
        return Ok(());
    }
    tokio::fs::create_dir_all(&directory).await?;
    tokio::fs::write(owner, key.instance_id.as_str()).await
}

fn directory_of(data_dir: &Path, key: &RunKey) -> PathBuf {
    let run = RunDirectory::of(data_dir, key);
    run.path().parent().unwrap_or(data_dir).to_owned()
}

/// Removes the files of all runs whose instance is not in the store any more.
pub(crate) async fn remove_ownerless(
    shared: &Shared,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
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
        let Some(owner) = read_owner(&entry.path()).await? else {
            continue;
        };
        if shared.store.instance(&owner).await?.is_none() {
            remove_runs(shared, &owner, &entry.path()).await?;
            info!(instance = %owner, "removed the files of a removed instance's runs");
        }
    }
    Ok(())
}

async fn read_owner(directory: &Path) -> io::Result<Option<InstanceId>> {
    match tokio::fs::read_to_string(directory.join(OWNER)).await {
        Ok(text) => Ok(InstanceId::new(text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn remove_runs(
    shared: &Shared,
    owner: &InstanceId,
    directory: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut entries = tokio::fs::read_dir(directory).await?;
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let key = RunKey {
            instance_id: owner.clone(),
            run_number: RunNumber(number),
        };
        for runner in shared.runners.values() {
            runner.clean(&key, false).await?;
        }
    }
    tokio::fs::remove_dir_all(directory).await?;
    Ok(())
}
