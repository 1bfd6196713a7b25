//! What the cgroup of a container limits.

use oci_spec::runtime::{LinuxCpu, LinuxDeviceCgroup, LinuxMemory, LinuxPids, LinuxResources};

use super::Container;

/// The time over which processor time is measured out, in microseconds: the kernel's own default.
const CPU_PERIOD_USEC: u64 = 100_000;

pub(super) fn resources(container: &Container<'_>) -> LinuxResources {
    let limits = container.limits;
    let mut pids = LinuxPids::default();
    pids.set_limit(signed(limits.pids));
    let mut resources = LinuxResources::default();
    resources
        .set_devices(Some(vec![no_devices()]))
        .set_memory(Some(memory(container)))
        .set_pids(Some(pids))
        .set_cpu(limits.cpu_millicores.map(cpu));
    resources
}

/// None but those few that the runtime itself adds: null, zero, full, random, urandom, tty and pseudo-terminals.
fn no_devices() -> LinuxDeviceCgroup {
    let mut none = LinuxDeviceCgroup::default();
    none.set_allow(false).set_access(Some("rwm".to_owned()));
    none
}

fn memory(container: &Container<'_>) -> LinuxMemory {
    let limit = signed(container.limits.memory_bytes);
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(limit));
    // Memory and swap together, so this leaves none for swap; runtimes translate it for version 2.
    if container.cgroups.swap {
        memory.set_swap(Some(limit));
    }
    memory
}

fn cpu(millicores: u64) -> LinuxCpu {
    let mut cpu = LinuxCpu::default();
    cpu.set_period(Some(CPU_PERIOD_USEC)).set_quota(Some(signed(
        millicores.saturating_mul(CPU_PERIOD_USEC / 1000),
    )));
    cpu
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
