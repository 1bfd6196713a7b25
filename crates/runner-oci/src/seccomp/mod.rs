//! The list of system calls of a container. What is not on it is refused with `EPERM`; runc answers `ENOSYS` to calls that are younger
//! than the list, so that programs try the older way.
//!
//! It follows the default list of the field (Docker's, read in June 2026) for a container without any capability, and refuses more where
//! a program of a workflow has no use for it:
//!
//! | refused here, allowed there | why |
//! |---|---|
//! | `ptrace`, `process_vm_readv`, `process_vm_writev` | debuggers are no part of a workflow, and have been a way around seccomp |
//! | `socket` of any but four families | the rest of the kernel's network code is large and seldom looked at |
//! | `socketcall` | 32-bit programs could make any socket with it: seccomp does not see its arguments. They have `socket` since Linux 4.3 |
//! | `modify_ldt` | only for 16-bit code; a source of holes in the kernel |
//! | `fanotify_mark` | useless without `fanotify_init`, which needs a capability |
//!
//! Like there: no new namespaces (`clone` with their flags, `unshare`, `setns`), no mounts, no keys of the kernel, no `bpf`,
//! `perf_event_open`, `userfaultfd` or `io_uring`. The flags of `clone3` cannot be seen, so it does not exist: C libraries then use
//! `clone`.

mod names;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

/// All flags that make namespaces (`CLONE_NEW…`, clone(2)) but that of time, whose bit means something else to `clone`.
const NAMESPACE_FLAGS: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// Families of sockets that programs use: local ones, IPv4, IPv6, and netlink, by which they list addresses (getifaddrs(3)).
const SOCKET_FAMILIES: [u64; 4] = [
    libc::AF_UNIX as u64,
    libc::AF_INET as u64,
    libc::AF_INET6 as u64,
    libc::AF_NETLINK as u64,
];

/// Execution domains (personality(2)): Linux, the same for 32 bits, either with an old version number, and the question which it is.
/// Others switch off protections such as the randomisation of addresses.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The list for a machine, named as [`std::env::consts::ARCH`] names it.
pub(crate) fn profile(machine: &str) -> LinuxSeccomp {
    let mut rules = vec![allowed(ALWAYS.concat())];
    rules.extend(SOCKET_FAMILIES.map(|family| allowed_with("socket", equal(family))));
    rules.push(allowed_with("socketpair", equal(SOCKET_FAMILIES[0])));
    rules.extend(PERSONALITIES.map(|domain| allowed_with("personality", equal(domain))));
    rules.push(allowed_with("clone", none_of(NAMESPACE_FLAGS)));
    rules.push(missing("clone3"));
    if let Some(own) = calls_of_machine(machine) {
        rules.push(allowed(own.to_vec()));
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(libc::EPERM.cast_unsigned()))
        .set_architectures(Some(architectures(machine)))
        .set_syscalls(Some(rules));
    profile
}

const ALWAYS: [&[&str]; 8] = [
    names::FILES,
    names::MEMORY,
    names::PROCESSES,
    names::SIGNALS,
    names::TIME,
    names::SOCKETS,
    names::WAITING,
    names::NEWER,
];

/// The sets of system calls that programs of a machine can use. Whatever is not named here is killed by the kernel's filter.
fn architectures(machine: &str) -> Vec<Arch> {
    match machine {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        _ => vec![Arch::ScmpArchNative],
    }
}

/// Calls that only one kind of machine has.
fn calls_of_machine(machine: &str) -> Option<&'static [&'static str]> {
    match machine {
        "x86_64" => Some(&["arch_prctl"]),
        "aarch64" => Some(&[
            "arm_fadvise64_64",
            "arm_sync_file_range",
            "breakpoint",
            "cacheflush",
            "set_tls",
            "sync_file_range2",
        ]),
        _ => None,
    }
}

fn rule(names: Vec<&str>, action: LinuxSeccompAction) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    let names = names.into_iter().map(str::to_owned).collect();
    rule.set_names(names).set_action(action);
    rule
}

fn allowed(names: Vec<&str>) -> LinuxSyscall {
    rule(names, LinuxSeccompAction::ScmpActAllow)
}

fn allowed_with(name: &str, condition: LinuxSeccompArg) -> LinuxSyscall {
    let mut rule = allowed(vec![name]);
    rule.set_args(Some(vec![condition]));
    rule
}

fn missing(name: &str) -> LinuxSyscall {
    let mut rule = rule(vec![name], LinuxSeccompAction::ScmpActErrno);
    rule.set_errno_ret(Some(libc::ENOSYS.cast_unsigned()));
    rule
}

/// The first argument has this value.
fn equal(value: u64) -> LinuxSeccompArg {
    compared(LinuxSeccompOperator::ScmpCmpEq, value, None)
}

/// The first argument has none of these bits. Of a masked comparison the first value is the mask.
fn none_of(bits: u64) -> LinuxSeccompArg {
    compared(LinuxSeccompOperator::ScmpCmpMaskedEq, bits, Some(0))
}

fn compared(operator: LinuxSeccompOperator, value: u64, value_two: Option<u64>) -> LinuxSeccompArg {
    let mut condition = LinuxSeccompArgBuilder::default()
        .index(0_usize)
        .value(value)
        .op(operator);
    if let Some(value_two) = value_two {
        condition = condition.value_two(value_two);
    }
    condition.build().expect("all fields have defaults")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Calls by which containers were left, or that reach what is not divided into namespaces.
    const DANGEROUS: &str = "acct add_key bpf chroot clone3 delete_module fanotify_init finit_module fsconfig fsmount fsopen fspick \
        get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl \
        lookup_dcookie mbind modify_ldt mount mount_setattr move_mount move_pages nfsservctl open_by_handle_at open_tree \
        perf_event_open pidfd_getfd pivot_root process_madvise process_vm_readv process_vm_writev ptrace quotactl quotactl_fd reboot \
        request_key set_mempolicy setdomainname sethostname setns settimeofday socketcall swapoff swapon syslog umount umount2 \
        unshare uselib userfaultfd vhangup vm86 vm86old";

    fn allowed_names(profile: &LinuxSeccomp) -> BTreeSet<String> {
        let rules = profile.syscalls().as_ref().unwrap();
        let allowing = rules
            .iter()
            .filter(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow);
        allowing.flat_map(|rule| rule.names().clone()).collect()
    }

    #[test]
    fn what_is_dangerous_is_not_allowed() {
        for machine in ["x86_64", "aarch64", "riscv64"] {
            let allowed = allowed_names(&profile(machine));
            let found: Vec<_> = DANGEROUS
                .split_whitespace()
                .filter(|name| allowed.contains(*name))
                .collect();
            assert_eq!(found, Vec::<&str>::new(), "{machine}");
        }
    }

    #[test]
    fn no_name_is_allowed_twice() {
        let names = ALWAYS.concat();
        let distinct: BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        for name in ["clone", "socket", "socketpair", "personality"] {
            assert!(
                !distinct.contains(&name),
                "{name} is allowed whatever its arguments"
            );
        }
    }

    #[test]
    fn what_is_not_listed_is_refused() {
        let profile = profile("x86_64");
        assert_eq!(profile.default_action(), LinuxSeccompAction::ScmpActErrno);
        assert_eq!(profile.default_errno_ret(), Some(1));
        // As Docker has it: 0x7e020000.
        assert_eq!(NAMESPACE_FLAGS, 2_114_060_288);
    }
}
