//! An image with busybox in it, and what else a test compiles.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use runtara_runner_oci::IdRange;
use runtara_runner_oci::machine::{self, Machine};

/// How many ids a container has.
const RANGE_SIZE: u32 = 65_536;

/// Finds a program, or fails with the package that has it.
pub(crate) fn needed(program: &str, package: &str) -> PathBuf {
    runtara_runner_oci::runtime::find(program, std::env::var_os("PATH"))
        .unwrap_or_else(|_| panic!("'{program}' is missing; Debian: apt install {package}"))
}

/// Looks at this machine as a server finds it that has made its places: in version 2 memory, and swap with it, is counted only in cgroups
/// that were told to.
pub(crate) fn look(data_dir: &Path) -> Machine {
    let root = Path::new("/sys/fs/cgroup");
    let control = root.join("cgroup.subtree_control");
    let place = root.join(format!("runtara-test-{}", std::process::id()));
    if control.exists() {
        fs::write(control, "+memory +pids +cpu").unwrap();
        fs::create_dir_all(&place).unwrap();
    }
    let machine = machine::look(data_dir, std::env::var_os("PATH"));
    let _another_test_of_this_process = fs::remove_dir(place);
    machine
}

/// Gives the files of a layer to a container's ids, as they are unpacked where owners cannot be shifted by mounts.
pub(crate) fn give_to(ids: IdRange, layer: &Path) {
    let found = fs::symlink_metadata(layer).unwrap();
    // Whoever had it before, ranges begin at multiples of their size.
    let given = |id: u32| ids.on_host(id % RANGE_SIZE);
    lchown(layer, given(found.uid()), given(found.gid())).unwrap();
    if found.is_dir() {
        for entry in fs::read_dir(layer).unwrap() {
            give_to(ids, &entry.unwrap().path());
        }
    } else if found.is_file() {
        // It takes away what a change of the owner takes away.
        fs::set_permissions(layer, found.permissions()).unwrap();
    }
}

/// The runtime that makes the containers: runc, or what `RUNTARA_TEST_OCI_RUNTIME` names.
pub(crate) fn runtime() -> PathBuf {
    let named = std::env::var("RUNTARA_TEST_OCI_RUNTIME");
    let name = named.unwrap_or_else(|_| "runc".to_owned());
    needed(&name, &name)
}

/// Makes a layer in which busybox is all commands.
pub(crate) fn make_layer(layer: &Path) {
    let busybox = needed("busybox", "busybox-static");
    for directory in ["bin", "etc", "home/app", "proc"] {
        fs::create_dir_all(layer.join(directory)).unwrap();
    }
    fs::copy(&busybox, layer.join("bin/busybox")).unwrap();
    let listed = Command::new(&busybox).arg("--list").output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for command in listed.lines().filter(|command| *command != "busybox") {
        symlink("busybox", layer.join("bin").join(command)).unwrap();
    }
    fs::write(
        layer.join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
    )
    .unwrap();
    fs::write(layer.join("etc/group"), "root:x:0:\napp:x:1000:\n").unwrap();
    let probe = layer.join("secret-of-root");
    fs::write(&probe, "of the image").unwrap();
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Compiles a program of one file, without any library that it would need at run time.
pub(crate) fn compile(source: &str, program: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/containers")
        .join(source);
    let compiled = Command::new(needed("cc", "gcc libc6-dev"))
        .args(["-static", "-O1", "-Wall", "-o"])
        .args([program, &source])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "{}: {said}", source.display());
}
