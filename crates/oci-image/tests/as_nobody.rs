//! Unpacking without root's rights. Root runs this test program again as nobody, so that it is tested wherever tests run.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use common::layout::image;
use common::tar_writer::{archive, directory, file};
use common::{Ground, is_root, listing};
use runtara_oci_image::{OverlayAttributes, Ownership, StoreOptions};

const NOBODY: u32 = 65_534;

#[test]
fn layers_are_unpacked_without_rights() {
    if is_root() {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let copy = place.path().join("test");
        fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new(&copy)
            .args([
                "--exact",
                "layers_are_unpacked_without_rights",
                "--nocapture",
            ])
            .env("TMPDIR", place.path())
            .current_dir(place.path())
            .uid(NOBODY)
            .gid(NOBODY)
            .output()
            .unwrap();
        let told = [output.stdout, output.stderr].concat();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&told)
        );
        return;
    }
    assert_eq!(StoreOptions::default().ownership, Ownership::Discarded);
    let ground = Ground::new();
    assert_eq!(ground.store.form().attributes, OverlayAttributes::User);
    let lower = archive(&[
        directory("closed").mode(0),
        file("closed/file", "x").mode(0).owner(1000, 1000),
        file("gone", ""),
        directory("opaque"),
        file("opaque/lower", ""),
    ]);
    let upper = archive(&[
        file(".wh.gone", ""),
        file("opaque/.wh..wh..opq", ""),
        file("closed/more", ""),
    ]);
    let image = ground.unpack(&image(&[&lower, &upper])).unwrap();
    let file = fs::metadata(image.layers()[0].directory().join("closed/file")).unwrap();
    assert_eq!(
        (file.uid(), file.mode() & 0o777),
        (rustix::process::geteuid().as_raw(), 0o400)
    );
    let flat = ground.flatten(&image);
    assert_eq!(
        listing(&flat).into_keys().collect::<Vec<_>>(),
        ["closed", "closed/file", "closed/more", "opaque"]
    );
    assert_eq!(
        fs::metadata(flat.join("closed")).unwrap().mode() & 0o777,
        0o700
    );
    drop(image);
    assert_eq!(
        ground
            .store
            .sweep(&std::collections::BTreeSet::new())
            .unwrap()
            .removed
            .len(),
        3
    );
    ground.assert_untouched();
}
