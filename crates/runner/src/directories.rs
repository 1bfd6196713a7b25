//! Makes and removes the directories of runs.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use runtara_domain::InstanceId;

use crate::shim::read_program;
use crate::{RunDirectory, RunKey, Spares, naming, remove_tree};

/// The file beside the runs of an instance that says whose they are: their directory's name cannot be turned back into the id.
const OWNER: &str = "instance";
/// Under this name it is written.
const OWNER_ASIDE: &str = "instance.new";
/// Of all directories: the server's user alone.
const MODE: u32 = 0o700;

/// The directories of all runs of a server, `<data>/runs/<letters>/<run>/`, and what is ready for the next. All calls block.
#[derive(Debug)]
pub struct RunDirectories {
    data_dir: PathBuf,
    spares: Spares,
    /// Held while the directory of an instance is made or removed: a new run may come while the last one goes.
    changing: Mutex<()>,
}

impl RunDirectories {
    /// Those of the server with this data directory. What an earlier server had ready is removed.
    ///
    /// # Errors
    /// What that reported.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let spares = Spares::open(data_dir.join("cache/spares"))?;
        Ok(Self {
            data_dir: data_dir.to_owned(),
            spares,
            changing: Mutex::default(),
        })
    }

    /// Files and directories for the runs to come.
    #[must_use]
    pub fn spares(&self) -> &Spares {
        &self.spares
    }

    /// Makes the directory of a run that is about to be launched, in that of its instance, which says whose it is before there is any run
    /// in it.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if there are traces of an earlier launch, or what the system said, with the path.
    pub fn create(&self, key: &RunKey) -> io::Result<RunDirectory> {
        let directory = RunDirectory::of(&self.data_dir, key);
        let instance = self.of_instance(&key.instance_id);
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if noted_owner(&instance)?.is_none_or(|owner| owner != key.instance_id) {
            self.note_owner(&instance, &key.instance_id)?;
        }
        let made = self.spares.directory(directory.path());
        made.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => io::Error::new(
                error.kind(),
                "there are traces of an earlier launch of this run",
            ),
            _ => naming("make the directory", directory.path(), error),
        })?;
        Ok(directory)
    }

    /// Removes the files of a run, all but its logs if those are to be kept, and with the last of them the directories. What the program
    /// has left in it must have been the server's user's. `run.json` goes last: as long as it is there, something may be left.
    ///
    /// # Errors
    /// What the system reported; a later call goes on.
    pub fn remove(&self, key: &RunKey, keep_logs: bool) -> io::Result<()> {
        let run = RunDirectory::of(&self.data_dir, key);
        self.remove_but_logs(&run)?;
        if !keep_logs {
            remove_tree(run.path())?;
        }
        self.remove_empty(key)
    }

    fn remove_but_logs(&self, run: &RunDirectory) -> io::Result<()> {
        let run_file = run.run_file();
        let entries = match fs::read_dir(run.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let path = entry.path();
            if name.starts_with("stdout.") || name.starts_with("stderr.") || path == run_file {
                continue;
            }
            if entry.file_type()?.is_file() {
                self.spares.take_back_file(&path)?;
            } else if !is_emptied(&path) || self.spares.take_back_directory(&path).is_err() {
                remove_tree(&path)?;
            }
        }
        // It says where the rest is.
        self.spares.take_back_file(&run_file)
    }

    /// Removes the directory of a run if nothing is in it, and that of its instance with the last. Nothing to do if there is none.
    ///
    /// # Errors
    /// What the system reported.
    pub fn remove_empty(&self, key: &RunKey) -> io::Result<()> {
        let instance = self.of_instance(&key.instance_id);
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let run = RunDirectory::of(&self.data_dir, key);
        match self.spares.take_back_directory(run.path()) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
            removed => removed?,
        }
        let entries = match fs::read_dir(&instance) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            if entry?.file_name() != OWNER {
                return Ok(());
            }
        }
        self.spares.take_back_file(&instance.join(OWNER))?;
        self.spares.take_back_directory(&instance)
    }

    fn of_instance(&self, id: &InstanceId) -> PathBuf {
        self.data_dir.join("runs").join(id.letters())
    }

    /// Notes whose runs a directory holds, so that no run's files are ever without an owner.
    fn note_owner(&self, directory: &Path, id: &InstanceId) -> io::Result<()> {
        match self.spares.directory(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // Somebody has removed the directory of all.
            Err(error) if error.kind() == io::ErrorKind::NotFound => DirBuilder::new()
                .recursive(true)
                .mode(MODE)
                .create(directory)?,
            made => made?,
        }
        // By rename, so that a server that is killed leaves a whole file or none.
        let aside = directory.join(OWNER_ASIDE);
        self.spares.take_back_file(&aside)?;
        let noted = self
            .spares
            .file(&aside, id.as_str().as_bytes())
            .and_then(|()| fs::rename(&aside, directory.join(OWNER)));
        if noted.is_err() {
            // A full disk. What stays of a directory in which there is nothing else is nobody's.
            let _stays = self.spares.take_back_file(&aside);
            let _not_empty = fs::remove_dir(directory);
        }
        noted
    }
}

/// Removes the files in a directory. False if something stays: a directory in it, or what may not be removed so simply.
fn is_emptied(directory: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(directory) else {
        return false;
    };
    entries.all(|entry| entry.is_ok_and(|entry| fs::remove_file(entry.path()).is_ok()))
}

/// Whose runs a directory of `<data>/runs` holds; `None` if it does not say. A machine that lost its power may have kept the name of
/// the file and not its content: then a run says it that is not over. Blocking.
///
/// # Errors
/// What reading reported.
pub fn owner_of_runs(directory: &Path) -> io::Result<Option<InstanceId>> {
    if let Some(owner) = noted_owner(directory)? {
        return Ok(Some(owner));
    }
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    for entry in entries {
        let run = RunDirectory::at(entry?.path());
        if run.path().is_dir()
            && let Some(program) = read_program(&run)?
            && let Some(id) = instance_of(&program.env)
            && directory
                .file_name()
                .is_some_and(|name| *name == *id.letters())
        {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

fn noted_owner(directory: &Path) -> io::Result<Option<InstanceId>> {
    match fs::read_to_string(directory.join(OWNER)) {
        Ok(text) => Ok(InstanceId::new(text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The instance that a program was told it is.
fn instance_of(env: &[String]) -> Option<InstanceId> {
    let mut variables = env.iter();
    let id = variables.find_map(|variable| variable.strip_prefix("RUNTARA_INSTANCE_ID="))?;
    InstanceId::new(id).ok()
}

#[cfg(test)]
mod tests {
    use runtara_domain::RunNumber;
    use serde_json::json;

    use super::*;

    struct Place {
        data_dir: tempfile::TempDir,
        directories: RunDirectories,
    }

    impl Place {
        fn new() -> Self {
            let data_dir = tempfile::tempdir().unwrap();
            let directories = RunDirectories::open(data_dir.path()).unwrap();
            Self {
                data_dir,
                directories,
            }
        }

        fn instances(&self) -> Vec<PathBuf> {
            let entries = fs::read_dir(self.data_dir.path().join("runs")).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect()
        }
    }

    fn key(run_number: u32) -> RunKey {
        RunKey {
            instance_id: InstanceId::new("order 7").unwrap(),
            run_number: RunNumber(run_number),
        }
    }

    #[test]
    fn the_directory_of_a_run_says_whose_it_is_and_is_made_once() {
        let place = Place::new();
        let made = place.directories.create(&key(1)).unwrap();
        let instance = made.path().parent().unwrap();
        let owner = owner_of_runs(instance).unwrap();
        assert_eq!(owner, Some(key(1).instance_id));
        let refused = place.directories.create(&key(1)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(owner_of_runs(place.data_dir.path()).unwrap(), None);
    }

    #[test]
    fn an_owner_that_was_not_written_whole_is_written_again() {
        let place = Place::new();
        let instance = place.directories.of_instance(&key(1).instance_id);
        fs::create_dir_all(&instance).unwrap();
        fs::write(instance.join(OWNER), "").unwrap();
        fs::write(instance.join(OWNER_ASIDE), "ord").unwrap();
        assert_eq!(owner_of_runs(&instance).unwrap(), None);
        place.directories.create(&key(1)).unwrap();
        let owner = owner_of_runs(&instance).unwrap();
        assert_eq!(owner, Some(key(1).instance_id));
    }

    #[test]
    fn an_owner_that_cannot_be_noted_leaves_nothing_aside() {
        let place = Place::new();
        let instance = place.directories.of_instance(&key(1).instance_id);
        // A file cannot take the place of a directory.
        fs::create_dir_all(instance.join(OWNER).join("in the way")).unwrap();
        assert!(
            place
                .directories
                .note_owner(&instance, &key(1).instance_id)
                .is_err()
        );
        assert!(!instance.join(OWNER_ASIDE).exists());
        fs::remove_dir_all(instance.join(OWNER)).unwrap();
        place.directories.create(&key(1)).unwrap();
    }

    #[test]
    fn an_owner_that_was_lost_is_told_by_a_run_that_is_not_over() {
        let place = Place::new();
        let run = place.directories.create(&key(1)).unwrap();
        let instance = run.path().parent().unwrap();
        fs::write(instance.join(OWNER), "").unwrap();
        assert_eq!(owner_of_runs(instance).unwrap(), None);
        let program = json!({
            "executable": "/bin/true", "args": [], "env": ["RUNTARA_INSTANCE_ID=order 7"], "work": "/",
            "stdin": null, "user": null, "oom_score_adj": null, "nice": null, "timeout_ms": 1, "log_cap_bytes": 1,
        });
        let program = serde_json::from_value(program).unwrap();
        place.directories.put_program(&run, program).unwrap();
        let owner = owner_of_runs(instance).unwrap();
        assert_eq!(owner, Some(key(1).instance_id));
        // It is not that of another directory.
        let other = instance.with_file_name("other");
        fs::rename(instance, &other).unwrap();
        assert_eq!(owner_of_runs(&other).unwrap(), None);
    }

    #[test]
    fn the_last_run_takes_the_directory_of_its_instance_with_it() {
        let place = Place::new();
        // The second time with spares.
        for _ in 0..2 {
            let first = place.directories.create(&key(1)).unwrap();
            let second = place.directories.create(&key(2)).unwrap();
            fs::write(first.path().join("stdout.0"), "hello").unwrap();
            place.directories.remove_empty(&key(1)).unwrap();
            assert!(first.path().exists(), "its log stays");
            place.directories.remove_empty(&key(2)).unwrap();
            assert!(!second.path().exists() && first.path().exists());
            fs::remove_file(first.path().join("stdout.0")).unwrap();
            place.directories.remove_empty(&key(1)).unwrap();
            assert_eq!(place.instances(), Vec::<PathBuf>::new());
            place.directories.remove_empty(&key(1)).unwrap();
        }
    }

    #[test]
    fn a_run_that_comes_while_the_last_one_goes_has_its_directory() {
        let place = Place::new();
        std::thread::scope(|threads| {
            let _runs: Vec<_> = (1..=4)
                .map(|number| {
                    threads.spawn({
                        let place = &place;
                        move || {
                            for _ in 0..200 {
                                let made = place.directories.create(&key(number)).unwrap();
                                let instance = made.path().parent().unwrap();
                                assert!(owner_of_runs(instance).unwrap().is_some());
                                assert!(made.path().exists());
                                place.directories.remove_empty(&key(number)).unwrap();
                            }
                        }
                    })
                })
                .collect();
        });
        assert_eq!(place.instances(), Vec::<PathBuf>::new());
    }
}
