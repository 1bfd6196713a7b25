//! Ways out that were once open, or that would be without a list of system calls.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use oci_spec::runtime::Spec;

use crate::container::{Running, Trial};
use crate::image::{self, compile};

/// What the error numbers mean that a refusal has (errno(3)).
const EPERM: i32 = 1;
const ENOSYS: i32 = 38;

#[test]
fn system_calls_that_lead_out_are_refused() {
    let trial = Trial::new("/bin/calls");
    compile("calls.c", &trial.layers[0].join("bin/calls"));
    let outcome = trial.run();
    let mut found = BTreeMap::new();
    for line in outcome.succeeded().lines() {
        let (name, error) = line.split_once(' ').unwrap();
        found
            .entry(name)
            .or_insert_with(Vec::new)
            .push(error.parse::<i32>().unwrap());
    }
    let allowed = [
        "clone",
        "socket_unix",
        "socket_inet",
        "socket_inet6",
        "socket_netlink",
        "getpid_32",
    ];
    let is_runc = image::runtime().ends_with("runc");
    for (name, errors) in found {
        let wanted = match name {
            "clone3" => vec![ENOSYS],
            // What is younger than the list: other runtimes than runc refuse it as they do the rest.
            "unknown" if is_runc => vec![ENOSYS],
            "unshare" => vec![EPERM, EPERM],
            // Another is refused, and the question which it is answered.
            "personality" => vec![EPERM, 0],
            // No disk, but a pipe.
            "mknodat" => vec![EPERM, 0],
            name if allowed.contains(&name) => vec![0],
            _ => vec![EPERM],
        };
        assert_eq!(errors, wanted, "{name}");
    }
}

/// Every name is one that the runtime's own libseccomp knows, but for those that are younger than it may be.
#[test]
fn the_runtime_knows_every_name_of_the_list() {
    const YOUNGER: [&str; 14] = [
        "cachestat",
        "fchmodat2",
        "futex_requeue",
        "futex_wait",
        "futex_wake",
        "getxattrat",
        "listmount",
        "listxattrat",
        "map_shadow_stack",
        "mseal",
        "removexattrat",
        "setxattrat",
        "statmount",
        "uretprobe",
    ];
    let trial = Trial::new("true");
    trial.run().succeeded();
    // Once more by hand: the runtime tells of names that it leaves out only when it is to tell everything.
    let bundle = trial.directory().join("bundle");
    let spec = Spec::load(bundle.join("config.json")).unwrap();
    let listed = spec.linux().as_ref().unwrap().seccomp().as_ref().unwrap();
    assert!(listed.syscalls().as_ref().unwrap()[0].names().len() > 300);
    let log = bundle.join("debug");
    let ended = std::process::Command::new(trial.runtime.program())
        .args(["--debug", "--log", log.to_str().unwrap(), "--root"])
        .arg(trial.directory().join("state"))
        .args(["run", "--bundle", bundle.to_str().unwrap(), &trial.id])
        .status()
        .unwrap();
    assert!(ended.success());
    let log = fs::read_to_string(log).unwrap();
    let unknown: Vec<_> = log
        .lines()
        .filter(|line| line.contains("seccomp syscall"))
        .filter(|line| {
            // As runc and as crun tell it.
            !YOUNGER.iter().any(|name| {
                let told = [format!("\\\"{name}\\\""), format!("`{name}`")];
                told.iter().any(|told| line.contains(told))
            })
        })
        .collect();
    assert!(
        log.contains("seccomp"),
        "the runtime no longer tells what it leaves out"
    );
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn a_working_directory_that_is_a_link_into_the_runtime_leads_nowhere() {
    // CVE-2024-21626, with a link of the image, which the configuration cannot show.
    let leaked = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let mut trial = Trial::new("pwd -P; ls");
    trial.image.working_dir = "/way".to_owned();
    let way = trial.layers[0].join("way");
    for descriptor in 3..=10 {
        let _none_at_first = fs::remove_file(&way);
        symlink(format!("/proc/self/fd/{descriptor}"), &way).unwrap();
        match trial.start() {
            Err(reason) => assert!(reason.contains("failed"), "{reason}"),
            Ok(running) => {
                let seen = running.end();
                assert!(!seen.stdout.contains("boot"), "{seen:#?}");
            }
        }
    }
}

#[test]
fn an_image_whose_proc_is_a_link_is_no_way_around_the_masks() {
    let trial = Trial::new("cat /proc/kcore | wc -c");
    let proc = trial.layers[0].join("proc");
    fs::remove_dir(&proc).unwrap();
    symlink("/tmp", &proc).unwrap();
    let Err(reason) = trial.start().map(Running::end) else {
        panic!("a container was made with /proc elsewhere");
    };
    assert!(reason.contains("proc"), "{reason}");
}

#[test]
fn links_of_an_image_do_not_lead_mounts_outside() {
    let trial = Trial::new("echo inside > /data/mark; ls -ld /data /tmp; ls /data/");
    let outside = trial.directory().join("closed/outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, trial.layers[0].join("data")).unwrap();
    symlink("../../../../../../../../../..", trial.layers[0].join("tmp")).unwrap();
    if let Ok(running) = trial.start() {
        running.end();
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_file_for_the_root_does_not_follow_a_link_outside() {
    let mut trial = Trial::new("cat /etc/hosts");
    let outside = trial.directory().join("closed/outside");
    fs::create_dir(&outside).unwrap();
    let etc = trial.layers[0].join("etc");
    fs::remove_dir_all(&etc).unwrap();
    symlink(&outside, &etc).unwrap();
    trial.files = vec![runtara_runner_oci::rootfs::RootFile {
        directory: "etc",
        name: "hosts",
        content: b"127.0.0.1 localhost\n",
    }];
    let reason = trial.start().map(Running::end).unwrap_err();
    assert!(reason.contains("writing '/etc/hosts'"), "{reason}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn the_runtime_cannot_be_replaced_from_the_inside() {
    // CVE-2019-5736: the entrypoint is the runtime itself, by the link of the kernel.
    let mut trial = Trial::new("");
    let before = fs::read(trial.runtime.program()).unwrap();
    trial.image.entrypoint = [
        "/bin/sh",
        "-c",
        "(echo owned > /proc/1/exe) 2>&1; (echo owned > /bin/busybox) 2>&1; true",
    ]
    .map(str::to_owned)
    .into();
    trial.run();
    trial.image.entrypoint = vec!["/proc/self/exe".to_owned(), "--version".to_owned()];
    let _may_fail = trial.start().map(Running::end);
    assert!(
        fs::read(trial.runtime.program()).unwrap() == before,
        "the runtime was changed"
    );
}
