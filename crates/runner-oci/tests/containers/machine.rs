//! What this machine says about itself: where the other tests pass, it must be fit.

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use runtara_runner_oci::rootfs::enter_private_mounts;
use runtara_runner_oci::{IdRanges, Level, machine, runtime};

use crate::image;

#[test]
fn a_machine_that_runs_containers_is_fit() {
    let place = tempfile::tempdir().unwrap();
    let machine = machine::look(place.path(), std::env::var_os("PATH"));
    let unfit: Vec<_> = machine
        .findings
        .iter()
        .filter(|finding| finding.level == Level::Unfit)
        .collect();
    assert!(unfit.is_empty(), "{unfit:#?}");
    let ids = machine::look_at_ids(&IdRanges::default());
    assert_eq!(ids.level, Level::Fine, "{}", ids.text);
    let program = image::runtime();
    let version = runtime::probe(&program).unwrap();
    assert_eq!(Some(version.name.as_ref()), program.file_name());
    assert_ne!(runtime::assess(&version).level, Level::Unfit);
}

#[test]
fn a_place_that_cannot_shift_owners_is_told() {
    let machine = machine::look(std::path::Path::new("/proc"), None);
    assert!(!machine.shifts_owners);
    let told = machine
        .findings
        .iter()
        .find(|finding| finding.about == "shifted owners")
        .unwrap();
    assert_eq!(told.level, Level::Warning);
    assert!(told.text.contains("'/proc'"), "{}", told.text);
}

#[test]
fn controllers_that_are_not_there_are_named() {
    // An empty directory has none of them, of either version.
    enter_private_mounts().unwrap();
    let none = None::<&str>;
    mount(
        none,
        "/sys/fs/cgroup",
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )
    .unwrap();
    let machine = machine::look(std::path::Path::new("/"), None);
    let told = machine
        .findings
        .iter()
        .find(|finding| finding.about == "cgroups")
        .unwrap();
    assert_eq!(told.level, Level::Unfit);
    assert!(
        told.text.contains("version 1 without memory, pids, cpu"),
        "{}",
        told.text
    );
}

#[test]
fn the_newer_cgroups_are_told_from_the_older() {
    enter_private_mounts().unwrap();
    let none = None::<&str>;
    let mounted = mount(
        Some("cgroup2"),
        "/sys/fs/cgroup",
        Some("cgroup2"),
        MsFlags::empty(),
        none,
    );
    // They may be there already.
    assert!(matches!(mounted, Ok(()) | Err(Errno::EBUSY)), "{mounted:?}");
    let machine = machine::look(std::path::Path::new("/"), None);
    assert!(machine.cgroups.unified);
    let told = machine
        .findings
        .iter()
        .find(|finding| finding.about == "cgroups")
        .unwrap();
    assert!(told.text.starts_with("version 2"), "{}", told.text);
}

#[test]
fn a_server_that_sees_not_all_of_proc_is_unfit() {
    // As in a container.
    enter_private_mounts().unwrap();
    let none = None::<&str>;
    mount(none, "/proc/irq", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let machine = machine::look(std::path::Path::new("/"), None);
    let told = machine
        .findings
        .iter()
        .find(|finding| finding.about == "/proc and /sys")
        .unwrap();
    assert_eq!(told.level, Level::Unfit, "{}", told.text);
    assert!(
        told.text.contains("Operation not permitted"),
        "{}",
        told.text
    );
}
