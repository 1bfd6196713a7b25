//! `cargo xtask guests`: programs of this workspace as WebAssembly components.

use std::path::Path;
use std::process::Command;

use crate::command::{capture, cargo, root, run as run_command};
use crate::debian_rust::DebianRust;
use crate::error::Error;

/// What components are built for.
pub(crate) const TARGET: &str = "wasm32-wasip2";
/// The programs that the tests run as components: packages and what to build of them. The same sources are built as processes.
const GUESTS: [(&str, &str, &str); 3] = [
    ("order-workflow", "--bin", "order-workflow"),
    ("runtara-test-programs", "--bin", "uses_the_sdk"),
    ("runtara-sdk", "--example", "greet"),
];
/// How they are built: small, since a server that is itself built without optimisation compiles them further when they are registered.
const PROFILE: [(&str, &str); 4] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "0"),
    ("CARGO_PROFILE_RELEASE_STRIP", "debuginfo"),
];

/// Build the programs that the tests run as WebAssembly components.
///
/// With the toolchain's own standard library for `wasm32-wasip2` where it has one (`rustup target add wasm32-wasip2`), else with the compiler
/// and the sources of Debian, which are fetched into the target directory, not installed.
#[derive(clap::Args)]
pub(crate) struct Arguments {}

/// Builds them.
///
/// # Errors
/// When they do not compile, or nothing is here that could compile them; the text has the commands that bring it.
pub(crate) fn run(_arguments: &Arguments) -> Result<(), Error> {
    build()
}

pub(crate) fn build() -> Result<(), Error> {
    let mut command = cargo(["build", "--release", "--target", TARGET]);
    for (package, kind, name) in GUESTS {
        command.args(["-p", package, kind, name]);
    }
    command.envs(PROFILE);
    if !toolchain_has_target() {
        eprintln!(
            "    this toolchain has no {TARGET}: its standard library is built from the sources that Debian has"
        );
        DebianRust::ensure()?.prepare(&mut command);
    }
    run_command(&mut command)
}

/// Whether the toolchain that builds this workspace has the standard library of the target.
fn toolchain_has_target() -> bool {
    let mut ask = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    ask.current_dir(root());
    ask.args(["--print", "target-libdir", "--target", TARGET]);
    let Ok(directory) = capture(&mut ask) else {
        return false;
    };
    let entries = Path::new(directory.trim()).read_dir().into_iter().flatten();
    let mut names = entries.flatten().map(|entry| entry.file_name());
    names.any(|name| name.to_string_lossy().starts_with("libstd-"))
}
