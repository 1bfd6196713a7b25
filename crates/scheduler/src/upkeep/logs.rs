//! What ended runs have written.

use std::collections::BinaryHeap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use runtara_domain::{InstanceId, RunNumber};
use runtara_runner::{RunDirectory, RunKey, blocking, owner_of_runs, remove_tree};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::run_files::{clean, runs_in};
use super::{Failure, Pass, Reconciler};
use crate::Shared;

/// How many logs are noted in one look at all of them. Where more are too old or too large, it is looked again.
const NOTED: usize = 10_000;
/// How many are removed before others have their turn.
const AT_ONCE: usize = 50;

/// Removes the logs of ended runs: those that are too old, and the oldest for as long as all together are too large. A run that is not over,
/// or whose exit is not recorded, keeps what it has written.
pub(super) struct Logs;

/// The logs of one run that is over. The newest is the greatest, so that a heap gives it up first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Log {
    written: SystemTime,
    /// The directory of the runs of its instance.
    runs: PathBuf,
    /// Whose it is. A machine that lost its power may have lost that.
    owner: Option<InstanceId>,
    run: RunNumber,
    bytes: u64,
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Some(owner) => write!(f, "run {} of {owner}", self.run),
            None => write!(
                f,
                "run {} in {}, of nobody known",
                self.run,
                self.runs.display()
            ),
        }
    }
}

/// What a look found.
#[derive(Debug, Default)]
struct Found {
    /// How many bytes all logs of ended runs have.
    bytes: u64,
    /// The oldest of them, oldest first.
    oldest: Vec<Log>,
    /// Whether there are more.
    more: bool,
}

#[async_trait]
impl Reconciler for Logs {
    fn name(&self) -> &'static str {
        "logs"
    }

    fn about(&self) -> &'static str {
        "what ended runs have written, where it is too old or too much"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(900)
    }

    async fn reconcile(&self, shared: &Shared, pass: &Pass) -> Result<(), Failure> {
        let config = &shared.config.upkeep;
        let max_age = config.logs_max_age.millis().map(Duration::from_millis);
        if max_age.is_none() && config.logs_max_bytes.is_none() {
            return Ok(());
        }
        // Whoever sets his clock back must not lose what is new by it: a time before the first is none.
        let horizon = max_age.and_then(|age| SystemTime::now().checked_sub(age));
        loop {
            let (runs, stop) = (shared.config.data_dir.join("runs"), shared.closing.clone());
            let found = blocking(move || look(&runs, &stop)).await?;
            let mut excess = config
                .logs_max_bytes
                .map_or(0, |most| found.bytes.saturating_sub(most));
            let mut removed = 0;
            let mut began = Instant::now();
            for log in &found.oldest {
                let is_old = horizon.is_some_and(|horizon| log.written < horizon);
                if !is_old && excess == 0 {
                    return Ok(());
                }
                if pass.is_over() {
                    return Ok(());
                }
                excess = excess.saturating_sub(log.bytes);
                if !pass.dry_run && !remove(shared, log).await? {
                    continue;
                }
                pass.item(|| log.to_string(), log.bytes);
                removed += 1;
                if removed % AT_ONCE == 0 {
                    pass.give_way(began.elapsed()).await;
                    began = Instant::now();
                }
            }
            if found.more && pass.dry_run {
                // The same would be found again.
                pass.ends_early();
            }
            if !found.more || removed == 0 || pass.dry_run {
                return Ok(());
            }
        }
    }
}

/// Removes the logs of a run, unless it is there again.
async fn remove(shared: &Shared, log: &Log) -> Result<bool, Failure> {
    let Some(owner) = &log.owner else {
        return remove_of_nobody(shared, log).await;
    };
    let key = RunKey {
        instance_id: owner.clone(),
        run_number: log.run,
    };
    let run_file = RunDirectory::of(&shared.config.data_dir, &key).run_file();
    if shared.live.knows(&key) || tokio::fs::try_exists(run_file).await? {
        return Ok(false);
    }
    clean(shared, owner, log.run, false).await?;
    Ok(true)
}

/// Removes the logs of a run of which nobody knows whose it was, and its directory with it.
async fn remove_of_nobody(shared: &Shared, log: &Log) -> Result<bool, Failure> {
    // Nothing is launched meanwhile that would be laid beside them.
    let _no_claims = shared.claiming.lock().await;
    let (runs, run) = (log.runs.clone(), log.run);
    let removed = blocking(move || {
        let may_live = |(found, is_whole): &(RunNumber, bool)| *found == run && *is_whole;
        if owner_of_runs(&runs)?.is_some() || runs_in(&runs)?.iter().any(may_live) {
            return Ok(false);
        }
        remove_tree(&runs.join(run.to_string()))?;
        Ok(true)
    });
    Ok(removed.await?)
}

/// Looks at the logs of all runs that are over. Blocking; ends early when the server leaves.
fn look(runs: &Path, stop: &CancellationToken) -> io::Result<Found> {
    let mut found = Found::default();
    let mut oldest = BinaryHeap::new();
    let directories = match fs::read_dir(runs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        directories => directories?,
    };
    for directory in directories {
        if stop.is_cancelled() {
            break;
        }
        let directory = directory?.path();
        // Runs come and go meanwhile: what is not there any more is no error.
        let Ok(owner) = owner_of_runs(&directory) else {
            continue;
        };
        for (run, may_live) in runs_in(&directory).unwrap_or_default() {
            if may_live {
                continue;
            }
            let Some((written, bytes)) = measure(&directory.join(run.to_string())) else {
                continue;
            };
            found.bytes += bytes;
            oldest.push(Log {
                written,
                runs: directory.clone(),
                owner: owner.clone(),
                run,
                bytes,
            });
            if oldest.len() > NOTED {
                // The newest is the greatest.
                oldest.pop();
                found.more = true;
            }
        }
    }
    found.oldest = oldest.into_sorted_vec();
    Ok(found)
}

/// When a run has written last, and how much of it is kept; `None` if it has written nothing.
fn measure(run: &Path) -> Option<(SystemTime, u64)> {
    let mut measured = None;
    for entry in fs::read_dir(run).ok()?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("stdout.") && !name.starts_with("stderr.") {
            continue;
        }
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let Ok(written) = metadata.modified() else {
            continue;
        };
        let (newest, bytes) = measured.unwrap_or((written, 0));
        measured = Some((newest.max(written), bytes + metadata.len()));
    }
    measured
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_ended_runs_are_found_oldest_first() {
        let place = tempfile::tempdir().unwrap();
        let runs = place.path().join("runs");
        let none = look(&runs, &CancellationToken::new()).unwrap();
        assert_eq!((none.bytes, none.oldest.len()), (0, 0));
        let write = |owner: &str, run: u32, file: &str, age: u64, bytes: usize| {
            let directory = runs.join(owner).join(run.to_string());
            fs::create_dir_all(&directory).unwrap();
            fs::write(runs.join(owner).join("instance"), owner).unwrap();
            let path = directory.join(file);
            fs::write(&path, vec![b'x'; bytes]).unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            let written = SystemTime::now() - Duration::from_secs(age);
            file.set_modified(written).unwrap();
        };
        write("a", 1, "stdout.0", 300, 10);
        write("a", 2, "stdout.0", 100, 10);
        write("a", 2, "stderr.5", 50, 5);
        write("b", 7, "stderr.0", 200, 1);
        // A machine that lost its power may have kept the name of a file without its content.
        write("c", 3, "stdout.0", 150, 1);
        fs::write(runs.join("c/instance"), "").unwrap();
        // Neither are logs of a run that is over.
        write("b", 8, "stdout.0", 400, 1_000);
        write("b", 8, "run.json", 400, 1);
        write("b", 9, "other", 400, 1_000);
        let found = look(&runs, &CancellationToken::new()).unwrap();
        let order: Vec<_> = found
            .oldest
            .iter()
            .map(|log| format!("{log}: {}", log.bytes))
            .collect();
        let of_nobody = format!("run 3 in {}, of nobody known: 1", runs.join("c").display());
        assert_eq!(
            order,
            [
                "run 1 of a: 10",
                "run 7 of b: 1",
                &of_nobody,
                "run 2 of a: 15"
            ]
        );
        assert_eq!(found.bytes, 27);
        assert!(!found.more);
    }
}
