//! Builds `config.json`: what the runtime is to make for one container (OCI runtime specification 1.0.2).

mod image;
mod mounts;
mod process;
mod resources;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use oci_spec::runtime::{
    Hooks, Linux, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType, Root,
    Spec,
};
use runtara_domain::{InstanceId, NetworkMode};

use crate::id_range::{IdRange, RANGE_SIZE};
use crate::limits::Limits;
use crate::seccomp;

pub use image::{ImageConfig, ImageUser, signal_number};
pub use mounts::RUN_DIRECTORY;
pub use process::{check_image, container_env, program_args, working_dir};

/// What the kernel of this machine can account for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CgroupFeatures {
    /// Whether all controllers are in the one hierarchy of version 2.
    pub unified: bool,
    /// Whether swap is counted, so that it can be refused.
    pub swap: bool,
}

/// One container, from which its configuration is built. It holds secrets, so it cannot be printed.
#[derive(Clone)]
pub struct Container<'a> {
    /// What the image says about its program.
    pub image: &'a ImageConfig,
    /// Arguments of the start.
    pub args: &'a [String],
    /// The whole environment, as [`container_env`] gives it. Values are secrets.
    pub env: &'a BTreeMap<String, String>,
    /// What it may take.
    pub limits: &'a Limits,
    /// What it reaches over the network.
    pub network: NetworkMode,
    /// Its host name, as [`hostname`] gives it.
    pub hostname: String,
    /// The root of its file system, as the runtime sees it: an absolute path that anybody may pass through, because the runtime looks it
    /// up as the container's root, who is nobody on the host.
    pub rootfs: &'a Path,
    /// Whether the root of its file system is read-only. What is mounted in it (`/data`, `/tmp`, `/dev/shm`) is not.
    pub read_only: bool,
    /// The directory that is mounted at [`RUN_DIRECTORY`]; it belongs to the program's user.
    pub run_directory: &'a Path,
    /// Its user and group ids on the host.
    pub ids: IdRange,
    /// Its cgroup: an absolute path below the place where each hierarchy is mounted.
    pub cgroup: &'a Path,
    /// What cgroups of this machine can do.
    pub cgroups: CgroupFeatures,
    /// How willingly the kernel ends it when memory of the machine runs out (proc_pid_oom_score_adj(5)).
    pub oom_score_adj: Option<i32>,
    /// Programs that the runtime executes on its way.
    pub hooks: Option<Hooks>,
}

/// Says why there is no configuration for a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Nothing says what is to be executed.
    #[error(
        "the image names no program: it has neither an entrypoint nor a command; build it with one, or start it with arguments"
    )]
    NoProgram,
    /// The program would start in a place through which containers were left (CVE-2024-21626).
    #[error(
        "the working directory '{found}' of the image lies under '{place}', which is the kernel's; build the image with another"
    )]
    WorkingDirectory {
        /// What the image says.
        found: String,
        /// Where it leads.
        place: &'static str,
    },
    /// The user or group has no number that a container can have.
    #[error("the image runs as {what} {found}, and a container has the ids from 0 to {}; build it with another user", RANGE_SIZE - 1)]
    IdOutOfRange {
        /// Whether it is a user or a group.
        what: &'static str,
        /// Its number.
        found: u32,
    },
    /// A text cannot be handed to a program, because it holds the byte that ends texts there.
    #[error("{what} holds a NUL character, which no program can be given; leave it out")]
    Nul {
        /// What holds it.
        what: &'static str,
    },
}

/// The configuration of a container, ready to be written as `config.json` of its bundle.
///
/// Whatever the image and the start say: own pid, mount, ipc, uts, cgroup and user namespace, and own network unless the mode is
/// [`NetworkMode::Host`]; no capability; no new privileges; system calls by a list; the paths of `/proc` and `/sys` that containers of the
/// field do not see, masked or read-only; no terminal; no variable of the kernel set.
///
/// # Errors
/// As [`SpecError`] says.
pub fn configuration(container: &Container<'_>) -> Result<Spec, SpecError> {
    let mut root = Root::default();
    root.set_path(container.rootfs.to_owned())
        .set_readonly(Some(container.read_only));
    let mut spec = Spec::default();
    spec.set_version("1.0.2".to_owned())
        .set_root(Some(root))
        .set_hostname(Some(container.hostname.clone()))
        .set_process(Some(process::process(container)?))
        .set_mounts(Some(mounts::mounts(container)))
        .set_hooks(container.hooks.clone())
        .set_annotations(None)
        .set_linux(Some(linux(container)));
    Ok(spec)
}

/// The host name of an instance: its id, where that is a label of a domain name (RFC 1123, 2.1), else the 26 letters that stand for it.
#[must_use]
pub fn hostname(instance_id: &InstanceId) -> String {
    let id = instance_id.as_str();
    let of_label = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let is_label =
        id.len() <= 63 && id.bytes().all(of_label) && !id.starts_with('-') && !id.ends_with('-');
    if is_label {
        id.to_owned()
    } else {
        instance_id.letters()
    }
}

fn linux(container: &Container<'_>) -> Linux {
    let mapping = id_mapping(container.ids);
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces(container.network)))
        .set_uid_mappings(Some(vec![mapping]))
        .set_gid_mappings(Some(vec![mapping]))
        .set_sysctl(None)
        .set_devices(None)
        .set_resources(Some(resources::resources(container)))
        .set_cgroups_path(Some(container.cgroup.to_owned()))
        .set_rootfs_propagation(Some("private".to_owned()))
        .set_seccomp(Some(seccomp::profile(std::env::consts::ARCH)))
        .set_masked_paths(Some(mounts::masked_paths()))
        .set_readonly_paths(Some(mounts::readonly_paths()));
    linux
}

fn id_mapping(ids: IdRange) -> LinuxIdMapping {
    LinuxIdMappingBuilder::default()
        .container_id(0_u32)
        .host_id(ids.first())
        .size(RANGE_SIZE)
        .build()
        .expect("all fields have defaults")
}

fn namespaces(network: NetworkMode) -> Vec<LinuxNamespace> {
    let mut kinds = vec![
        LinuxNamespaceType::User,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Cgroup,
    ];
    if network.is_own() {
        kinds.push(LinuxNamespaceType::Network);
    }
    let new = |kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind);
        namespace
    };
    kinds.into_iter().map(new).collect()
}

/// The name of a configuration in its bundle (OCI runtime specification, "Filesystem Bundle").
pub const CONFIGURATION_FILE: &str = "config.json";

/// Writes the configuration of a container into its bundle, from where the runtime reads it. It holds the values of variables, which are
/// secrets, so nobody but its owner may read it.
///
/// # Errors
/// As the system says: the bundle's directory is not there, or its disk is full.
pub fn write_configuration(spec: &Spec, bundle: &Path) -> io::Result<()> {
    let json = serde_json::to_vec(spec)?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(bundle.join(CONFIGURATION_FILE));
    file?.write_all(&json)
}

#[cfg(test)]
mod tests;
