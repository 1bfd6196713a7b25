//! The half of the runner that works in the shim: makes a container from its plan, and removes it.
//!
//! All mounts are in the shim's own mount namespace, and the runtime's bundle is on one of them, in memory: whatever kills the shim, nothing
//! of them is left, and no configuration with its secrets is on any disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use runtara_domain::limits;
use runtara_runner::describe;
use runtara_runner::shim::{self, NotStarted, Recipe, Started, Streams, Wishes};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, unlinkat};
use rustix::mount::UnmountFlags;

use crate::clean::remove_place;
use crate::counted::CountedTo;
use crate::egress::{self, Helper};
use crate::machine::PROCS;
use crate::making::Making;
use crate::namespaces::Namespaces;
use crate::plan::{ContainerPlan, PlannedFile, paths_in};
use crate::rootfs::{
    RootKind, RootfsPlan, Staging, enter_private_mounts, measure, mount_overlay, mount_rootfs,
    mount_staging,
};
use crate::runtime::path_of;
use crate::temporary;

/// What a program reads its input from, in its run directory.
pub const INPUT_FILE: &str = "input.json";
/// What a program may write its result to, in its run directory; and its name in the server's directory of the run.
pub const OUTPUT_FILE: &str = "output.json";

/// Makes containers in shims: for [`shim::init_with`].
pub static CONTAINERS: Containers = Containers;

/// Makes containers in shims.
#[derive(Debug)]
pub struct Containers;

impl shim::Containers for Containers {
    fn start(
        &self,
        container: &Recipe,
        streams: Streams<'_>,
        wishes: &Wishes<'_>,
    ) -> Result<Started, NotStarted> {
        let plan: ContainerPlan = container.read().map_err(|error| {
            NotStarted::for_now(format!("the plan of the container cannot be used: {error}"))
        })?;
        let mut live = Live::new(&plan);
        let started = start(&plan, streams, wishes);
        if started.is_err() {
            live.kill();
            shim::Container::remove(&mut live);
        }
        let (process, network, helper) =
            started.map_err(|error| error.reworded(|text| without_paths(&plan, text)))?;
        live.helper = helper;
        live.writable = writable(&plan);
        Ok(Started {
            process,
            stop_signal: plan.stop_signal,
            network,
            container: Box::new(live),
        })
    }
}

/// The process of a program that runs, how it is heard if it has a network of its own, and what connects that to the internet.
type Begun = (
    i32,
    Option<(std::net::TcpListener, PathBuf)>,
    Option<Helper>,
);

fn start(
    plan: &ContainerPlan,
    streams: Streams<'_>,
    wishes: &Wishes<'_>,
) -> Result<Begun, NotStarted> {
    enter_private_mounts().map_err(|error| for_now(&error))?;
    let resolver = plan.egress.as_ref().map(|_| resolver());
    let files = plan
        .files
        .iter()
        .chain(&resolver)
        .map(PlannedFile::for_root);
    let files: Vec<_> = files.collect();
    let mut rootfs = RootfsPlan {
        staging: &plan.staging,
        layers: &plan.layers,
        root: plan.root,
        shift_owners: None,
        ids: plan.ids,
        writable_bytes: plan.writable_bytes,
        user: plan.user,
        wishes: Some(wishes),
        files: &files,
    };
    let early = begin_early(plan, &rootfs, streams)?;
    let port = plan.core.as_ref().map(|core| core.port);
    // The one that all containers' are in: nothing of this container's is touched.
    let above = plan.cgroups.first().and_then(|cgroup| cgroup.parent());
    let namespaces = Namespaces::make(plan.ids, port, above).map_err(|error| for_now(&error))?;
    rootfs.shift_owners = plan.shift_owners.then(|| namespaces.user.descriptor());
    let making = match early {
        Some((staging, making)) => {
            mount_overlay(&rootfs, &staging).map_err(|error| for_now(&error))?;
            making
        }
        None => {
            mount_copy(plan, &rootfs)?;
            None
        }
    };
    let helper = plan
        .egress
        .as_ref()
        .map(|program| egress::connect(program, &plan.staging, &namespaces, wishes))
        .transpose()
        .map_err(|error| for_now(&error))?;
    let mut configuration = joining(&plan.configuration, &namespaces);
    temporary::mount(&mut configuration, &plan.staging, plan.ids).map_err(|error| {
        NotStarted::for_now(format!(
            "/tmp of the container could not be mounted: {error}"
        ))
    })?;
    let making = match making {
        Some(making) => making,
        None => Making::begin(plan, streams, Some(&configuration))?,
    };
    let process = making.finish(&configuration, wishes)?;
    let network = namespaces
        .network
        .zip(plan.core.as_ref())
        .map(|(network, core)| (network.listener, core.socket.clone()));
    Ok((process, network, helper))
}

/// Mounts what is there before any layer, and begins the runtime if it can be begun before its configuration is there: while it comes to
/// read that, the rest of the container is made beside it. `None` of a root that is a copy, which takes too long for that.
fn begin_early(
    plan: &ContainerPlan,
    rootfs: &RootfsPlan<'_>,
    streams: Streams<'_>,
) -> Result<Option<(Staging, Option<Making>)>, NotStarted> {
    match plan.root {
        RootKind::Overlay => {
            let staging = mount_staging(rootfs).map_err(|error| for_now(&error))?;
            let late = plan.late_configuration;
            let making = late
                .then(|| Making::begin(plan, streams, None))
                .transpose()?;
            Ok(Some((staging, making)))
        }
        RootKind::Copy => Ok(None),
    }
}

fn resolver() -> PlannedFile {
    PlannedFile {
        directory: "etc".to_owned(),
        name: "resolv.conf".to_owned(),
        content: egress::resolver_file(),
    }
}

/// Mounts a root that is a copy, and has it counted as memory of the container.
fn mount_copy(plan: &ContainerPlan, rootfs: &RootfsPlan<'_>) -> Result<(), NotStarted> {
    let linux = plan.configuration.linux().as_ref();
    let memory = linux
        .and_then(|linux| linux.resources().as_ref()?.memory().as_ref()?.limit())
        .and_then(|limit| u64::try_from(limit).ok());
    let copied = rootfs.layers.iter().map(|layer| measure(layer));
    let copied: u64 = copied.flatten().map(|size| size.bytes).sum();
    if let Some(memory) = memory.filter(|memory| *memory < copied) {
        return Err(NotStarted::for_good(format!(
            "the image has {copied} bytes, which count as memory because the kernel has no overlayfs to share them, and its memory limit is \
             {memory} bytes; start it with a higher one"
        )));
    }
    let cgroup = linux.and_then(|linux| linux.cgroups_path().as_ref());
    let uncounted = |error: &io::Error| {
        NotStarted::for_now(format!(
            "the copy of the image could not be counted as memory of the container: {error}"
        ))
    };
    let counted = cgroup.map(|path| CountedTo::container(path)).transpose();
    let counted = counted.map_err(|error| uncounted(&error))?;
    let mounted = mount_rootfs(rootfs);
    if let Some(counted) = counted {
        counted.leave().map_err(|error| uncounted(&error))?;
    }
    mounted.map(drop).map_err(|error| for_now(&error))
}

/// The configuration, in which the namespaces that are there already are joined.
fn joining(configuration: &Spec, namespaces: &Namespaces) -> Spec {
    let mut spec = configuration.clone();
    let Some(mut linux) = spec.linux().clone() else {
        return spec;
    };
    let join = |mut namespace: LinuxNamespace| {
        let found = match namespace.typ() {
            LinuxNamespaceType::User => Some(path_of(namespaces.user.descriptor())),
            LinuxNamespaceType::Network => namespaces
                .network
                .as_ref()
                .map(|network| path_of(network.namespace.as_fd())),
            _ => None,
        };
        namespace.set_path(found);
        namespace
    };
    let joined = linux
        .namespaces()
        .clone()
        .map(|all| all.into_iter().map(join).collect());
    linux.set_namespaces(joined);
    spec.set_linux(Some(linux));
    spec
}

/// A text without the places of the host: whoever started the instance reads it.
fn without_paths(plan: &ContainerPlan, text: &str) -> String {
    let shown = |path: &Path| path.display().to_string();
    let (root, _) = paths_in(&plan.staging);
    let mut places = vec![
        (shown(&root), String::new()),
        (shown(&plan.staging), "<container>".to_owned()),
    ];
    let layers = plan.layers.iter().enumerate();
    places.extend(layers.map(|(index, layer)| (shown(layer), format!("<layer {index}>"))));
    let program = plan.runtime.file_name().unwrap_or_default();
    places.push((shown(&plan.runtime), program.display().to_string()));
    places.iter().fold(text.to_owned(), |text, (place, word)| {
        text.replace(place.as_str(), word)
    })
}

fn for_now(error: &dyn std::error::Error) -> NotStarted {
    NotStarted::for_now(describe(error))
}

/// A container that lives: what is needed at its end.
struct Live {
    staging: PathBuf,
    cgroups: Vec<PathBuf>,
    /// What connects it to the internet: held, not used.
    helper: Option<Helper>,
    /// File systems that the program writes to.
    writable: Vec<OwnedFd>,
}

impl Live {
    fn new(plan: &ContainerPlan) -> Self {
        Self {
            staging: plan.staging.clone(),
            cgroups: plan.cgroups.clone(),
            helper: None,
            writable: Vec::new(),
        }
    }

    /// Kills what a runtime has begun that did not come to its end. Its number cannot be another's: whoever had it is a child of this
    /// process by then, and nobody has waited for it.
    fn kill(&self) {
        let own = std::process::id().cast_signed();
        for place in &self.cgroups {
            let listed = fs::read_to_string(place.join(PROCS)).unwrap_or_default();
            let pids = listed.lines().filter_map(|line| line.parse().ok());
            for pid in pids.filter(|pid| *pid > 0 && *pid != own) {
                let _ended = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

impl shim::Container for Live {
    fn limits_met(&self) -> Vec<&'static str> {
        let is_full = self.writable.iter().any(is_full);
        is_full.then_some("disk").into_iter().collect()
    }

    fn keep(&mut self, run_directory: BorrowedFd<'_>) {
        let (_, from) = paths_in(&self.staging);
        // Without it the standard output is the result, as for a program that writes none.
        let _kept = keep_output(&from.join(OUTPUT_FILE), run_directory);
    }

    /// Nothing of the container lives, and what the runtime noted of it is in mounts that end with this process: there is nothing that the
    /// runtime would have to be asked for, which would cost as much as a sixth of the whole run.
    fn remove(&mut self) {
        // They would keep file systems in memory.
        self.writable.clear();
        while rustix::mount::unmount(&self.staging, UnmountFlags::DETACH).is_ok() {}
        let mut places = self.cgroups.iter().chain([&self.staging]);
        // The directory last, as a sign that all else is removed. What cannot be removed now is removed by the server, which knows the
        // container by its run.
        let _removed = places.try_for_each(|place| remove_place(place));
    }
}

/// Opens the file systems that a program may fill: that of its root, and its `/tmp`.
fn writable(plan: &ContainerPlan) -> Vec<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let places = [plan.staging.clone(), temporary::place(&plan.staging)];
    let opened = places.map(|place| openat(CWD, &place, flags, Mode::empty()));
    opened.into_iter().flatten().collect()
}

/// Whether nothing more can be written to a file system, be it for want of room or of files.
fn is_full(file_system: &OwnedFd) -> bool {
    let figures = rustix::fs::fstatvfs(file_system);
    figures.is_ok_and(|found| {
        // Where either is not bounded, there are none in all.
        let is_used_up = |all: u64, left: u64| all > 0 && left == 0;
        is_used_up(found.f_blocks, found.f_bavail) || is_used_up(found.f_files, found.f_ffree)
    })
}

/// Copies what the program wrote as its result, unless it is no file or is larger than results may be: then one byte too much is copied,
/// which says so.
fn keep_output(from: &Path, run_directory: BorrowedFd<'_>) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(from)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let kept = openat(
        run_directory,
        OUTPUT_FILE,
        flags,
        Mode::from_raw_mode(0o600),
    )?;
    let limit = limits::STATE_BYTES as u64 + 1;
    let mut kept = File::from(kept);
    let copied = io::copy(&mut file.take(limit), &mut kept).and_then(|_| kept.flush());
    if copied.is_err() {
        // The beginning of a result is none.
        let _removed = unlinkat(run_directory, OUTPUT_FILE, AtFlags::empty());
    }
    copied
}
