//! What is mounted in a container, and what is hidden of it.

use oci_spec::runtime::Mount;

use super::Container;

/// Where a program finds its run directory.
pub const RUN_DIRECTORY: &str = "/data";

/// What `/dev` itself may hold, in bytes: nodes and links, and what a program puts beside them.
const DEV_BYTES: u64 = 64 * 1024;
/// Size of `/dev/shm` in the field (Docker's `--shm-size`).
const SHARED_MEMORY_BYTES: u64 = 64 * 1024 * 1024;

pub(super) fn mounts(container: &Container<'_>) -> Vec<Mount> {
    let limits = container.limits;
    let shared = SHARED_MEMORY_BYTES.min(limits.memory_bytes / 2);
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        in_memory(
            "/dev",
            DEV_BYTES,
            "755",
            &["nosuid", "noexec", "strictatime"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            // The group of terminals is 5 wherever there is one.
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        in_memory("/dev/shm", shared, "1777", &["nosuid", "noexec", "nodev"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        in_memory("/tmp", limits.writable_bytes, "1777", &["nosuid", "nodev"]),
        run_directory(container),
    ];
    // The kernel shows the network of a namespace in /sys, so it lets only those mount it that have one of their own. Without it there is
    // no /sys: the host's would have to be bound.
    if container.network.is_own() {
        mounts.push(mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]));
        // Programs read their limits there. In the old version it would be a mount for each controller, and a launch so much slower.
        if container.cgroups.unified {
            mounts.push(mount(
                "/sys/fs/cgroup",
                "cgroup",
                &["nosuid", "noexec", "nodev", "relatime", "ro"],
            ));
        }
    }
    mounts
}

fn run_directory(container: &Container<'_>) -> Mount {
    let mut mount = mount(
        RUN_DIRECTORY,
        "bind",
        &["bind", "nosuid", "nodev", "private"],
    );
    mount.set_source(Some(container.run_directory.to_owned()));
    mount
}

/// A file system in memory: its size is bounded, and what is in it counts as memory of the container.
fn in_memory(destination: &str, bytes: u64, mode: &str, options: &[&str]) -> Mount {
    let mut mount = mount(destination, "tmpfs", options);
    let sized = [format!("mode={mode}"), format!("size={bytes}")];
    if let Some(options) = mount.options_mut() {
        options.extend(sized);
    }
    mount
}

fn mount(destination: &str, kind: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(kind.into()))
        .set_options(Some(
            options.iter().map(|option| (*option).to_owned()).collect(),
        ));
    mount
}

/// Paths that are hidden: they show, or change, what is not divided into namespaces. As Docker and runc have it.
pub(super) fn masked_paths() -> Vec<String> {
    [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ]
    .map(str::to_owned)
    .into()
}

/// Paths of `/proc` that may be read and not written, as Docker and runc have it.
pub(super) fn readonly_paths() -> Vec<String> {
    [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ]
    .map(str::to_owned)
    .into()
}
