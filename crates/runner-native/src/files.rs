//! The files of a run, before it begins.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, chown};
use runtara_runner::shim::{self, Program};
use runtara_runner::{
    Input, LaunchSpec, ProgramPaths, RunDirectories, RunDirectory, RunKey, ShimRunPlaces,
    contract_env, naming, unexpected,
};

use crate::NativeConfig;
use crate::clean;

/// Where the files of a run are.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) key: RunKey,
    /// Those that only the server reads.
    pub(crate) directory: RunDirectory,
    /// Those of the program: the same directory, unless the program's user cannot go there.
    pub(crate) program: PathBuf,
    /// The program's user, if it is not the server's.
    pub(crate) user: Option<(u32, u32)>,
    /// Where the program was told that the core listens, if that is known.
    pub(crate) core_addr: Option<String>,
}

/// The variable by which a program is told where the core listens.
const CORE_ADDR: &str = "RUNTARA_SERVER_ADDR=";

impl Places {
    pub(crate) fn of(config: &NativeConfig, key: &RunKey) -> Self {
        let directory = RunDirectory::of(&config.data_dir, key);
        let program = match config.user {
            None => directory.path().to_owned(),
            Some(_) => config
                .work_root
                .join(key.instance_id.letters())
                .join(key.run_number.to_string()),
        };
        Self {
            key: key.clone(),
            directory,
            program,
            user: config.user,
            core_addr: None,
        }
    }

    /// Those of a run that was launched before, maybe under other settings: it says itself where its files are. `None` if it is a
    /// container, whose files are not a native program's. Blocking.
    pub(crate) fn found(config: &NativeConfig, key: &RunKey) -> io::Result<Option<Self>> {
        let mut places = Self::of(config, key);
        if let Some(program) = shim::read_program(&places.directory)? {
            if program.container.is_some() {
                return Ok(None);
            }
            places.user = program.user;
            let mut variables = program.env.iter();
            let addr = variables.find_map(|variable| variable.strip_prefix(CORE_ADDR));
            places.core_addr = addr.map(ToOwned::to_owned);
            if let Some(parent) = program.work.parent() {
                places.program = parent.to_owned();
            }
        }
        Ok(Some(places))
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.program.join("work")
    }

    pub(crate) fn input(&self) -> PathBuf {
        self.program.join("input.json")
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.work().join("output.json")
    }

    /// What is told of a run that its shim parents.
    pub(crate) fn of_run(self) -> ShimRunPlaces {
        ShimRunPlaces {
            output: self.output(),
            output_owner: self.user.map(|(uid, _)| uid),
            key: self.key,
            directory: self.directory,
            core_addr: self.core_addr,
        }
    }

    /// Whether the program's files are apart from the server's.
    pub(crate) fn are_apart(&self) -> bool {
        self.program != self.directory.path()
    }
}

/// Makes all files of a run, `run.json` last. Traces of an earlier launch are left alone, and refuse this one.
pub(crate) fn make(
    config: &NativeConfig,
    directories: &RunDirectories,
    places: &Places,
    spec: &LaunchSpec,
) -> io::Result<()> {
    directories.create(&places.key)?;
    let made = fill(config, directories, places, spec);
    if made.is_err() && !is_taken(&made) {
        // Nothing has been started. If it cannot be removed either, it is found and cleaned like that of any other run.
        let _stays = clean::clean(places, directories, false);
    }
    made
}

/// Whether somebody has forbidden the start meanwhile: then the directory is theirs.
fn is_taken(made: &io::Result<()>) -> bool {
    made.as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists)
}

fn fill(
    config: &NativeConfig,
    directories: &RunDirectories,
    places: &Places,
    spec: &LaunchSpec,
) -> io::Result<()> {
    match config.user {
        Some(user) => make_theirs(places, &spec.input, user)?,
        None => {
            let work = places.work();
            let made = directories.spares().directory(&work);
            made.map_err(|error| naming("make the directory", &work, unexpected(error)))?;
            directories.put_input(&places.input(), &spec.input)?;
        }
    }
    directories.put_program(&places.directory, program(config, places, spec)?)
}

/// Makes what is the program's, and not the server's.
fn make_theirs(places: &Places, input: &Input, (uid, gid): (u32, u32)) -> io::Result<()> {
    let (work, input_file) = (places.work(), places.input());
    // Others may pass, and not look around.
    make_new(&places.program, 0o711)
        .map_err(|error| naming("make the directory", &places.program, unexpected(error)))?;
    DirBuilder::new()
        .mode(0o700)
        .create(&work)
        .map_err(|error| naming("make the directory", &work, unexpected(error)))?;
    match input {
        Input::Inline(bytes) => new_file(&input_file).and_then(|mut file| file.write_all(bytes)),
        Input::File(from) => copy_input(&input_file, from),
    }
    .map_err(|error| naming("write the input", &input_file, unexpected(error)))?;
    for path in [&work, &input_file] {
        chown(
            path.as_path(),
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
        )
        .map_err(|errno| naming("give to its user", path, errno.into()))?;
    }
    Ok(())
}

/// Makes a directory that must not be there yet, and those above it.
fn make_new(path: &Path, mode: u32) -> io::Result<()> {
    let make = || DirBuilder::new().mode(mode).create(path);
    match (make(), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            // One of an instance is removed with its last run, maybe just now.
            DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(parent)?;
            make()
        }
        (made, _) => made,
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// A copy: what the program has is its own. Within a file system that shares blocks it costs nothing.
fn copy_input(path: &Path, from: &Path) -> io::Result<()> {
    io::copy(&mut File::open(from)?, &mut new_file(path)?)?;
    Ok(())
}

fn program(config: &NativeConfig, places: &Places, spec: &LaunchSpec) -> io::Result<Program> {
    let (work, input, output) = (places.work(), places.input(), places.output());
    let paths = ProgramPaths {
        run_dir: &work,
        input_file: &input,
        output_file: &output,
    };
    let env = contract_env(spec, paths);
    let executable = &spec.image.path;
    let name = executable.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(Program {
        args: std::iter::once(name.to_owned())
            .chain(spec.args.iter().cloned())
            .collect(),
        executable: executable.clone(),
        env: env
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect(),
        work,
        stdin: Some(input),
        user: config.user,
        limits: config.limits,
        cgroup: config.cgroups.as_ref().map(|root| root.of(&places.key)),
        container: None,
        oom_score_adj: config.oom_score_adj,
        nice: config.nice,
        timeout_ms: u64::try_from(spec.timeout.as_millis()).unwrap_or(u64::MAX),
        expires_in_ms: spec
            .expires_in
            .map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
        made_within_ms: None,
        log_cap_bytes: config.log_cap_bytes,
    })
}
