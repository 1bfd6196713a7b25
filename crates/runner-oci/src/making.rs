//! Has the runtime make a container, in the shim: hands over its bundle, its streams and its configuration.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Seek as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::Spec;
use runtara_runner::describe;
use runtara_runner::shim::{NotStarted, Streams, Wishes};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::plan::{ContainerPlan, paths_in};
use crate::rootfs::{CONFINED, MemoryOptions, mount_in_memory};
use crate::runtime::{self, ConfigurationPipe, NewContainer, Runtime, RuntimeError};
use crate::shim::INPUT_FILE;
use crate::spec::{CONFIGURATION_FILE, write_configuration};

/// How long the runtime may take to make a container.
const PATIENCE: Duration = Duration::from_secs(60);
/// The bundle's directory, beside the root of the container.
const BUNDLE: &str = "bundle";
/// What the runtime notes of the container, beside that.
const STATE: &str = "state";
/// The size of the bundle: a configuration has what `run.json` has, of up to 8 MiB, and there is the log of the runtime.
const BUNDLE_BYTES: u64 = 16 * 1024 * 1024;
/// What keeps a file of memory as it is (fcntl(2), "File Sealing").
const UNCHANGING: SealFlags = SealFlags::WRITE
    .union(SealFlags::GROW)
    .union(SealFlags::SHRINK)
    .union(SealFlags::SEAL);

/// A runtime that is making a container. Dropped, it is killed; there may be parts of the container.
pub(crate) struct Making {
    bundle: PathBuf,
    pipe: Option<ConfigurationPipe>,
    making: runtime::Making,
}

impl Making {
    /// Begins it, with the configuration or before there is one. The run directory is mounted.
    pub(crate) fn begin(
        plan: &ContainerPlan,
        streams: Streams<'_>,
        configuration: Option<&Spec>,
    ) -> Result<Self, NotStarted> {
        let bundle = plan.staging.join(BUNDLE);
        let stdin = put_input(plan, streams.stdin).map_err(|error| {
            NotStarted::for_now(format!("the input could not be handed over: {error}"))
        })?;
        make_bundle(&bundle).map_err(|error| not_made(&error))?;
        let pipe = match configuration {
            Some(configuration) => write_configuration(configuration, &bundle).map(|()| None),
            None => ConfigurationPipe::put(&bundle).map(Some),
        };
        let pipe = pipe.map_err(|error| not_made(&error))?;
        let output = |stream| give_output(plan, stream).map_err(|error| not_made(&error));
        let streams = runtime::Streams {
            stdin,
            stdout: output(streams.stdout)?,
            stderr: output(streams.stderr)?,
        };
        let new = NewContainer {
            id: &plan.id,
            bundle: &bundle,
            pid_file: &pid_file(&bundle),
            log_file: &bundle.join("log"),
        };
        let runtime = Runtime::new(plan.runtime.clone(), plan.staging.join(STATE));
        let making = runtime.begin_detached(&new, streams);
        let making = making.map_err(|error| not_run(&error))?;
        Ok(Self {
            bundle,
            pipe,
            making,
        })
    }

    /// Waits until the program was started, and gives its process. All that the configuration names is there.
    pub(crate) fn finish(
        self,
        configuration: &Spec,
        wishes: &Wishes<'_>,
    ) -> Result<i32, NotStarted> {
        let handover = self.pipe.map(|pipe| pipe.hand_over(configuration));
        let handover = handover.transpose().map_err(|error| not_made(&error))?;
        self.making
            .finish(handover, PATIENCE, Some(wishes))
            .map_err(|error| not_run(&error))?;
        let pid = fs::read_to_string(pid_file(&self.bundle)).map_err(|error| not_made(&error))?;
        // The configuration has served, and holds the values of variables.
        let _gone_with_the_mount = fs::remove_file(self.bundle.join(CONFIGURATION_FILE));
        pid.trim()
            .parse()
            .map_err(|_| NotStarted::for_now(format!("the runtime gave the process '{pid}'")))
    }
}

fn pid_file(bundle: &Path) -> PathBuf {
    bundle.join("pid")
}

/// Copies the input to where the program finds it, and into a file of memory for its standard input. That one has no place: the link of a
/// descriptor tells the path of its file (proc_pid_fd(5)), and where the host has it is nobody's business.
fn put_input(plan: &ContainerPlan, input: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (uid, gid) = plan.user;
    let (uid, gid) = (plan.ids.on_host(uid), plan.ids.on_host(gid));
    let (_, run_directory) = paths_in(&plan.staging);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(run_directory.join(INPUT_FILE))?;
    let mut input = File::from(input.try_clone_to_owned()?);
    io::copy(&mut input, &mut file)?;
    fchown(&file, uid, gid)?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut stdin = File::from(memfd_create(INPUT_FILE, flags)?);
    input.rewind()?;
    io::copy(&mut input, &mut stdin)?;
    stdin.rewind()?;
    fchown(&stdin, uid, gid)?;
    fcntl_add_seals(&stdin, UNCHANGING)?;
    Ok(stdin.into())
}

/// Makes the bundle in memory of its own: the runtime writes to it when the program may have filled that of the container already.
fn make_bundle(bundle: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(bundle)?;
    let options = MemoryOptions {
        bytes: BUNDLE_BYTES,
        mode: "0700",
        ..MemoryOptions::default()
    };
    mount_in_memory(bundle, &options, CONFINED)?;
    Ok(())
}

/// An end of a pipe that belongs to the program's user, who may then open it by its name, too (`/dev/stdout`).
fn give_output(plan: &ContainerPlan, stream: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let (uid, gid) = plan.user;
    fchown(stream, plan.ids.on_host(uid), plan.ids.on_host(gid))?;
    stream.try_clone_to_owned()
}

fn not_made(error: &io::Error) -> NotStarted {
    NotStarted::for_now(format!(
        "the bundle of the container could not be made: {error}"
    ))
}

fn not_run(error: &RuntimeError) -> NotStarted {
    let text = describe(error);
    match error {
        RuntimeError::Failed { reason, .. } if runtime::is_fault_of_image(reason) => {
            NotStarted::for_good(text)
        }
        _ => NotStarted::for_now(text),
    }
}
