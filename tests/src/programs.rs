//! Where the programs under test are.

use std::env;
use std::path::PathBuf;

/// Gives the path of a program of this workspace.
///
/// # Panics
/// If it was not built, with the command that does.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let path = directory().join(name);
    assert!(
        path.is_file(),
        "{} is missing; build it with `cargo build -p {}`",
        path.display(),
        package_of(name)
    );
    path
}

fn package_of(name: &str) -> &'static str {
    match name {
        "runtara-environment" => "runtara-environment-server",
        "runtara-environment-with-failpoints" => "runtara-environment-server --features failpoints",
        "runtara" => "runtara",
        _ => "runtara-test-programs",
    }
}

/// The directory with the programs under test.
pub(crate) fn directory() -> PathBuf {
    if let Some(directory) = env::var_os("RUNTARA_TEST_BIN_DIR") {
        // Programs are started elsewhere than here.
        return std::path::absolute(directory).expect("there is a current directory");
    }
    // The test itself lies in `target/<profile>/deps`.
    let test = env::current_exe().expect("a process can tell its own program");
    test.ancestors()
        .nth(2)
        .expect("cargo puts tests two levels below the profile's directory")
        .to_path_buf()
}
