//! What this machine says about itself: where the other tests pass, it must be fit.

use runtara_runner_oci::{Level, machine, runtime};

use crate::image::needed;

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
    let version = runtime::probe(&needed("runc", "runc")).unwrap();
    assert_eq!(version.name, "runc");
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
