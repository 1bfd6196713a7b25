//! What this machine can do for containers.

use std::ffi::{CStr, OsString};
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen,
    open_tree,
};
use rustix::process::{Resource, getrlimit};

use crate::finding::{Finding, Level};
use crate::id_range::{IdRange, IdRanges, USUAL_BASE};
use crate::kernel;
use crate::rootfs::UserNamespace;
use crate::runtime::find_program;
use crate::spec::CgroupFeatures;
use crate::sys;

/// Where hierarchies of cgroups are mounted, everywhere.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";
/// The file of a cgroup that lists its processes, and by which others are moved into it (cgroups(7)).
pub(crate) const PROCS: &str = "cgroup.procs";
/// How it begins what a finding about a network mode is about.
pub(crate) const NETWORK_MODE: &str = "network mode ";
/// What the finding is about that says whether containers reach the internet.
pub(crate) const EGRESS: &str = "network mode egress";
/// What the finding is about that says whether swap is counted.
pub(crate) const SWAP: &str = "swap";
/// What a container is limited by.
pub(crate) const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];
/// `CGROUP2_SUPER_MAGIC` (statfs(2)).
const CGROUP2: u64 = 0x6367_7270;

/// What this machine can do for containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// What its cgroups can do.
    pub cgroups: CgroupFeatures,
    /// How many files a process of a container can be allowed to open: what the server itself may, which only a process with
    /// `CAP_SYS_RESOURCE` could go beyond (getrlimit(2)). A ceiling for [`crate::limits::merge`].
    pub open_files: u64,
    /// Whether owners of files can be shifted by mounts of the data directory, so that containers share layers and no ids.
    pub shifts_owners: bool,
    /// Whether layers of images can be mounted. Else the root of each container is a copy: see
    /// [`RootKind::Copy`](crate::rootfs::RootKind::Copy).
    pub overlay: bool,
    /// The program that connects containers to the internet, if there is one.
    pub egress: Option<EgressProgram>,
    /// All that was found out, for people to read. Containers cannot run if one of these is [`Level::Unfit`].
    pub findings: Vec<Finding>,
}

/// A program that connects containers to the internet.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EgressProgram {
    /// slirp4netns, by its path.
    Slirp4netns(PathBuf),
    /// pasta, by its path.
    Pasta(PathBuf),
}

/// Looks at this machine. Tries what can be tried, and leaves nothing behind. Blocking.
///
/// `data_dir` is where layers are unpacked; `search_path` is where programs are looked for, as in `PATH`.
#[must_use]
pub fn look(data_dir: &Path, search_path: Option<OsString>) -> Machine {
    let mut findings = vec![superuser(), seccomp()];
    let namespace = user_namespace(&mut findings);
    let shifts_owners = shifts_owners(data_dir, namespace.as_ref(), &mut findings);
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map(drop);
    findings.push(told_of_overlay(overlay));
    findings.push(kernel_file_systems());
    let cgroups = cgroups(&mut findings);
    let egress = egress(search_path, &mut findings);
    Machine {
        cgroups,
        open_files: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
        shifts_owners,
        overlay: overlay.is_ok(),
        egress,
        findings,
    }
}

/// Whether somebody else on this machine gives away ids that these ranges hold, as `/etc/subuid` and `/etc/subgid` say. Blocking.
#[must_use]
pub fn look_at_ids(ranges: &IdRanges) -> Finding {
    let about = "user ids of containers";
    for path in ["/etc/subuid", "/etc/subgid"] {
        // Without the file nobody gives any away by it.
        let given = fs::read_to_string(path).unwrap_or_default();
        if let Some(entry) = ranges.conflict(&given) {
            let text = format!(
                "'{entry}' in {path} gives away ids that containers have; choose another base for those of containers"
            );
            return Finding::new(about, Level::Warning, text);
        }
    }
    Finding::new(about, Level::Fine, "nobody else gives them away")
}

fn superuser() -> Finding {
    let about = "superuser";
    if nix::unistd::geteuid().is_root() {
        return Finding::new(about, Level::Fine, "the server runs as root");
    }
    let text = "the server does not run as root, so it cannot mount images or give containers ids of their own; run it as root";
    Finding::new(about, Level::Unfit, text)
}

fn seccomp() -> Finding {
    let about = "seccomp";
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
    if actions.is_ok_and(|actions| actions.split_whitespace().any(|action| action == "errno")) {
        return Finding::new(about, Level::Fine, "system calls can be restricted");
    }
    let text = "the kernel cannot restrict system calls; use one with CONFIG_SECCOMP_FILTER";
    Finding::new(about, Level::Unfit, text)
}

fn user_namespace(findings: &mut Vec<Finding>) -> Option<UserNamespace> {
    let about = "user namespaces";
    let ids = IdRange::starting_at(USUAL_BASE)?;
    let made = UserNamespace::new(ids);
    findings.push(match &made {
        Ok(_) => Finding::new(about, Level::Fine, "root in a container is nobody on the host"),
        Err(error) => {
            let most = fs::read_to_string("/proc/sys/user/max_user_namespaces");
            let hint = match most.as_deref().map(str::trim) {
                Ok("0") => "sysctl -w user.max_user_namespaces=65536",
                Ok(_) => "run the server as root, on the host or in a container that may make user namespaces",
                Err(_) => "use a kernel with CONFIG_USER_NS",
            };
            Finding::new(about, Level::Unfit, format!("none can be made ({error}); {hint}"))
        }
    });
    made.ok()
}

/// Tries it on a mount that is never attached anywhere.
fn shifts_owners(
    data_dir: &Path,
    namespace: Option<&UserNamespace>,
    findings: &mut Vec<Finding>,
) -> bool {
    let about = "shifted owners";
    let Some(namespace) = namespace else {
        return false;
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    // Mounts are shifted since 5.12, and refused as layers of an overlay until 5.19.
    let tried = if kernel::is_older_than((5, 19)) {
        Err(rustix::io::Errno::OPNOTSUPP)
    } else {
        open_tree(CWD, data_dir, flags)
    };
    let tried = tried
        .map_err(std::io::Error::from)
        .and_then(|mount: OwnedFd| {
            sys::set_mount_attributes(mount.as_fd(), 0, Some(namespace.descriptor()))
        });
    findings.push(match &tried {
        Ok(()) => Finding::new(about, Level::Fine, "containers share the layers of images, each with ids of its own"),
        Err(error) => Finding::new(
            about,
            Level::Warning,
            format!(
                "owners of files in '{}' cannot be shifted by mounts ({error}), so that all containers have the same ids on the host; use \
                 Linux 5.19 or newer, and a file system that knows it, such as ext4, xfs or btrfs",
                data_dir.display()
            ),
        ),
    });
    tried.is_ok()
}

fn told_of_overlay(mounted: rustix::io::Result<()>) -> Finding {
    let about = "overlayfs";
    match mounted {
        Ok(()) => Finding::new(
            about,
            Level::Fine,
            "layers of images are mounted, not copied",
        ),
        Err(errno) => {
            let text = format!(
                "the kernel cannot mount it ({errno}), so images are copied for each run, and count as its memory; use one with \
                 CONFIG_OVERLAY_FS (modprobe overlay)"
            );
            Finding::new(about, Level::Warning, text)
        }
    }
}

/// Tries to mount `/proc` and `/sys` as a container has them. The kernel lets a user namespace do so only if the one above it sees all of
/// them, which in a container it does not.
fn kernel_file_systems() -> Finding {
    let about = "/proc and /sys";
    let namespaces =
        libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET;
    let attempt = || {
        mount_detached(c"proc")?;
        mount_detached(c"sysfs")
    };
    match sys::try_in_namespaces(namespaces, attempt) {
        Ok(()) => Finding::new(about, Level::Fine, "containers have their own"),
        Err(error) => {
            let text = format!(
                "containers cannot have their own ({error}), because something is mounted over the server's; run it on the host or, in a \
                 container, with nothing over /proc and /sys (docker run --security-opt systempaths=unconfined)"
            );
            Finding::new(about, Level::Unfit, text)
        }
    }
}

/// Mounts a file system where nobody sees it. System calls only.
fn mount_detached(kind: &CStr) -> rustix::io::Result<()> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map(drop)
}

fn cgroups(findings: &mut Vec<Finding>) -> CgroupFeatures {
    let about = "cgroups";
    let place = Path::new(CGROUPS);
    let kind = rustix::fs::statfs(place).map(|found| u64::try_from(found.f_type).unwrap_or(0));
    let unified = kind == Ok(CGROUP2);
    let missing: Vec<_> = if unified {
        let listed = fs::read_to_string(place.join("cgroup.controllers")).unwrap_or_default();
        let is_listed = |name: &&str| listed.split_whitespace().any(|found| found == *name);
        CONTROLLERS
            .into_iter()
            .filter(|name| !is_listed(name))
            .collect()
    } else {
        let is_mounted = |name: &&str| place.join(name).join("tasks").exists();
        CONTROLLERS
            .into_iter()
            .filter(|name| !is_mounted(name))
            .collect()
    };
    let swap = counts_swap(place, unified);
    let version = if unified { 2 } else { 1 };
    findings.push(if missing.is_empty() {
        let text = format!("version {version} with {}", CONTROLLERS.join(", "));
        Finding::new(about, Level::Fine, text)
    } else {
        let text = format!(
            "version {version} without {}, so containers cannot be limited; mount cgroups at {CGROUPS} with these controllers (in a \
             container: with a cgroup namespace and write access)",
            missing.join(", ")
        );
        Finding::new(about, Level::Unfit, text)
    });
    findings.extend(told_of_swap(swap));
    CgroupFeatures {
        unified,
        swap: swap == Some(true),
    }
}

/// Whether swap is counted by cgroups mounted at a place. In version 2 the root does not say so, but those that count memory do: `None` if
/// there are none yet.
fn counts_swap(place: &Path, unified: bool) -> Option<bool> {
    if !unified {
        return Some(place.join("memory/memory.memsw.limit_in_bytes").exists());
    }
    let children = fs::read_dir(place).into_iter().flatten().flatten();
    let counts: Vec<_> = children
        .map(|child| child.path())
        .filter(|child| child.join("memory.max").exists())
        .map(|child| is_swap_counted_in(&child))
        .collect();
    (!counts.is_empty()).then(|| counts.contains(&true))
}

/// Whether a cgroup of version 2 that counts memory counts swap, too.
pub(crate) fn is_swap_counted_in(cgroup: &Path) -> bool {
    cgroup.join("memory.swap.max").exists()
}

/// What is to be said of swap; nothing if it is counted.
pub(crate) fn told_of_swap(counted: Option<bool>) -> Option<Finding> {
    let (level, text) = match counted {
        Some(true) => return None,
        Some(false) => (
            Level::Warning,
            "swap is not counted, so a container may use as much of it as there is; boot with swapaccount=1, or without swap",
        ),
        None => (
            Level::Fine,
            "whether it is counted shows when a server has started here",
        ),
    };
    Some(Finding::new(SWAP, level, text))
}

fn egress(search_path: Option<OsString>, findings: &mut Vec<Finding>) -> Option<EgressProgram> {
    let about = EGRESS;
    let find = |name| find_program(name, search_path.clone());
    // slirp4netns first: it can shut out the loopback of the host, and shuts itself in.
    let found = find("slirp4netns")
        .map(EgressProgram::Slirp4netns)
        .or_else(|| find("pasta").map(EgressProgram::Pasta));
    let has_tun = Path::new("/dev/net/tun").exists();
    let (level, text) = match &found {
        Some(_) if !has_tun => (
            Level::Warning,
            "/dev/net/tun is missing, so runs with it are refused; load the module tun (modprobe tun)".to_owned(),
        ),
        Some(EgressProgram::Pasta(path) | EgressProgram::Slirp4netns(path)) => {
            (Level::Fine, format!("by {}", path.display()))
        }
        None => (
            Level::Warning,
            "neither slirp4netns nor pasta is installed, so runs with it are refused; Debian: apt install slirp4netns, or apt install passt"
                .to_owned(),
        ),
    };
    let needs_nothing = |about| Finding::new(about, Level::Fine, "needs nothing");
    findings.push(needs_nothing("network mode isolated"));
    findings.push(needs_nothing("network mode host"));
    findings.push(Finding::new(about, level, text));
    found.filter(|_| has_tun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_overlayfs_is_slow_but_fit() {
        let told = told_of_overlay(Err(rustix::io::Errno::NODEV));
        assert_eq!(told.level, Level::Warning);
        assert!(told.text.contains("copied for each run"), "{}", told.text);
    }

    #[test]
    fn swap_is_asked_of_cgroups_that_count_memory() {
        let place = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = place.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "max").unwrap();
        };
        make("of-pids-alone/pids.max");
        assert_eq!(counts_swap(place.path(), true), None);
        let unknown = told_of_swap(None).unwrap();
        assert_eq!(unknown.level, Level::Fine, "nothing is wrong yet");
        make("counts-memory/memory.max");
        assert_eq!(counts_swap(place.path(), true), Some(false));
        assert_eq!(told_of_swap(Some(false)).unwrap().level, Level::Warning);
        make("counts-memory/memory.swap.max");
        assert_eq!(counts_swap(place.path(), true), Some(true));
        assert_eq!(told_of_swap(Some(true)), None);
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let mut findings = Vec::new();
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(egress(Some(empty.path().into()), &mut findings), None);
        let told = findings.last().unwrap();
        assert_eq!(told.level, Level::Warning);
        assert!(
            told.text.contains("apt install slirp4netns"),
            "{}",
            told.text
        );
    }
}
