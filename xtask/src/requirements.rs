//! What a machine needs beside Rust, and how to bring it there.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{capture, run};
use crate::error::Error;
use crate::postgres;
use crate::tools::{self, Tool};

/// One thing that the tests need.
struct Requirement {
    /// What is looked for.
    probe: Probe,
    /// What brings it.
    source: Source,
    /// Who needs it.
    purpose: &'static str,
}

enum Probe {
    /// A program of this name in `PATH`.
    Program(&'static str),
    /// A command of cargo's.
    Tool(&'static Tool),
    /// A library that clang links into WebAssembly: a file, found where clang looks for it.
    WasmLibrary(&'static str),
    /// The programs of a PostgreSQL server, which Debian keeps out of `PATH`.
    PostgresServer,
}

enum Source {
    /// A package of Debian and Ubuntu.
    Debian(&'static str),
    /// Built by cargo into the target directory.
    Cargo,
    /// A command for the developer to run: nothing that we would run unasked.
    Command(&'static str),
}

/// Everything that `cargo xtask test` needs. One line each.
#[rustfmt::skip]
const TABLE: &[Requirement] = &[
    Requirement { probe: Probe::Program("cc"), source: Source::Debian("gcc"), purpose: "links every program, compiles the embedded database" },
    Requirement { probe: Probe::Program("runuser"), source: Source::Debian("util-linux"), purpose: "runs PostgreSQL as another user than root" },
    Requirement { probe: Probe::PostgresServer, source: Source::Debian("postgresql"), purpose: "the store's tests and the black-box suites" },
    Requirement { probe: Probe::Program("busybox"), source: Source::Debian("busybox-static"), purpose: "static programs that the tests register as images" },
    Requirement { probe: Probe::Program("skopeo"), source: Source::Debian("skopeo"), purpose: "writes the archives of container images that the tests read" },
    Requirement { probe: Probe::Program("docker-registry"), source: Source::Debian("docker-registry"), purpose: "the registry that the tests pull from" },
    Requirement { probe: Probe::Program("openssl"), source: Source::Debian("openssl"), purpose: "makes the certificate of that registry" },
    Requirement { probe: Probe::Program("umoci"), source: Source::Debian("umoci"), purpose: "makes the container images that the tests compare with" },
    Requirement { probe: Probe::Program("zstd"), source: Source::Debian("zstd"), purpose: "compresses some of them" },
    Requirement { probe: Probe::Program("runc"), source: Source::Debian("runc"), purpose: "the tests of containers" },
    Requirement { probe: Probe::Program("slirp4netns"), source: Source::Debian("slirp4netns"), purpose: "connects containers to the internet" },
    Requirement { probe: Probe::Program("pasta"), source: Source::Debian("passt"), purpose: "connects containers in another way" },
    Requirement { probe: Probe::Program("ip"), source: Source::Debian("iproute2"), purpose: "makes the networks in which containers are tested" },
    Requirement { probe: Probe::Program("clang"), source: Source::Debian("clang"), purpose: "compiles the WebAssembly that the tests register" },
    Requirement { probe: Probe::Program("wasm-ld"), source: Source::Debian("lld"), purpose: "links it" },
    Requirement { probe: Probe::WasmLibrary("libc.a"), source: Source::Debian("wasi-libc"), purpose: "is its C library" },
    Requirement { probe: Probe::WasmLibrary("libclang_rt.builtins-wasm32.a"), source: Source::Debian("libclang-rt-dev-wasm32"), purpose: "does what WebAssembly has no instructions for" },
    Requirement { probe: Probe::Tool(&tools::NEXTEST), source: Source::Cargo, purpose: "runs the tests" },
    Requirement { probe: Probe::Program("cargo-fmt"), source: Source::Command("rustup component add rustfmt"), purpose: "checks the format" },
    Requirement { probe: Probe::Program("cargo-clippy"), source: Source::Command("rustup component add clippy"), purpose: "checks the code" },
];

/// Brings what is missing where that is possible: as root, where there is apt.
///
/// # Errors
/// When something is missing that cannot be brought; the text has the commands to type.
pub(crate) fn ensure() -> Result<(), Error> {
    ensure_those(|_| true)
}

/// Brings what a PostgreSQL server needs, and nothing else.
pub(crate) fn ensure_postgres() -> Result<(), Error> {
    ensure_those(|requirement| matches!(requirement.probe, Probe::PostgresServer))
}

fn ensure_those(wanted: impl Fn(&Requirement) -> bool) -> Result<(), Error> {
    let missing = missing(&wanted);
    if missing.is_empty() {
        return Ok(());
    }
    for requirement in &missing {
        eprintln!(
            "    missing: {} ({})",
            requirement.name(),
            requirement.purpose
        );
    }
    let packages = packages(&missing);
    if !packages.is_empty() && nix::unistd::geteuid().is_root() && in_path("apt-get").is_some() {
        run(Command::new("apt-get").arg("update"))?;
        let mut install = Command::new("apt-get");
        install
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&packages);
        run(install.env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    // What is built needs what was brought, such as a linker.
    let missing = self::missing(&wanted);
    let (tools, others): (Vec<_>, Vec<_>) = missing
        .into_iter()
        .partition(|requirement| matches!(requirement.source, Source::Cargo));
    if !others.is_empty() {
        return Err(Error::Unmet(advice(&others)));
    }
    for requirement in tools {
        if let Probe::Tool(tool) = requirement.probe {
            tool.ensure()?;
        }
    }
    Ok(())
}

impl Requirement {
    fn name(&self) -> &'static str {
        match self.probe {
            Probe::Program(name) | Probe::WasmLibrary(name) => name,
            Probe::Tool(tool) => tool.name,
            Probe::PostgresServer => "PostgreSQL server programs (initdb, pg_ctl)",
        }
    }

    fn is_met(&self) -> bool {
        match self.probe {
            Probe::Program(name) => in_path(name).is_some(),
            Probe::Tool(tool) => tool.find().is_some(),
            Probe::WasmLibrary(name) => wasm_library(name).is_some(),
            Probe::PostgresServer => postgres::binaries().is_ok(),
        }
    }
}

fn missing(wanted: impl Fn(&Requirement) -> bool) -> Vec<&'static Requirement> {
    TABLE
        .iter()
        .filter(|requirement| wanted(requirement) && !requirement.is_met())
        .collect()
}

fn packages(missing: &[&Requirement]) -> Vec<&'static str> {
    let package = |requirement: &&Requirement| match requirement.source {
        Source::Debian(package) => Some(package),
        Source::Cargo | Source::Command(_) => None,
    };
    missing.iter().filter_map(package).collect()
}

/// Says what is missing and the exact commands that bring it.
fn advice(missing: &[&Requirement]) -> String {
    let mut text = "this machine lacks".to_owned();
    for requirement in missing {
        text.push_str(&format!(
            "\n  {}: {}",
            requirement.name(),
            requirement.purpose
        ));
    }
    text.push_str("\nto bring it (on other systems than Debian and Ubuntu by other means):");
    let packages = packages(missing);
    if !packages.is_empty() {
        text.push_str(&format!("\n  sudo apt-get install {}", packages.join(" ")));
    }
    for requirement in missing {
        if let Source::Command(command) = requirement.source {
            text.push_str(&format!("\n  {command}"));
        }
    }
    text
}

/// Finds an executable program of that name as a shell would, and beside the cargo that runs us.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside_cargo = std::env::var_os("CARGO").map(PathBuf::from);
    let beside_cargo = beside_cargo
        .as_deref()
        .and_then(Path::parent)
        .map(Path::to_path_buf);
    std::env::split_paths(&path)
        .chain(beside_cargo)
        .map(|directory| directory.join(name))
        .find(|file| is_executable(file))
}

/// Finds a library where clang would find it when it links WebAssembly.
pub(crate) fn wasm_library(name: &str) -> Option<PathBuf> {
    let mut clang = Command::new(in_path("clang")?);
    clang.args(["--target=wasm32-wasi", &format!("-print-file-name={name}")]);
    // Where there is none it prints the mere name.
    let found = PathBuf::from(capture(&mut clang).ok()?.trim());
    (found.is_absolute() && found.is_file()).then_some(found)
}

/// Tells the version that a program prints, if it runs at all.
pub(crate) fn version_of(program: &Path) -> Option<String> {
    capture(Command::new(program).arg("--version"))
        .ok()
        .map(|text| text.trim().to_owned())
}

fn is_executable(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_path_holds_is_found_and_nothing_else() {
        assert!(in_path("sh").is_some_and(|file| file.is_absolute()));
        assert_eq!(in_path("no-such-program-anywhere"), None);
    }

    #[test]
    fn no_library_is_found_that_is_none() {
        // With clang or without it.
        assert_eq!(wasm_library("libnosuch.a"), None);
    }

    #[test]
    fn the_table_names_each_thing_once_and_says_why() {
        for (place, requirement) in TABLE.iter().enumerate() {
            assert!(
                !requirement.purpose.is_empty(),
                "{} without a purpose",
                requirement.name()
            );
            let again = TABLE[place + 1..]
                .iter()
                .find(|other| other.name() == requirement.name());
            assert!(
                again.is_none(),
                "{} stands in the table twice",
                requirement.name()
            );
        }
    }

    #[test]
    fn advice_is_a_command_to_type() {
        let found: Vec<&Requirement> = TABLE.iter().collect();
        let text = advice(&found);
        assert!(
            text.contains("sudo apt-get install gcc util-linux postgresql"),
            "{text}"
        );
        assert!(text.contains("\n  rustup component add clippy"), "{text}");
    }
}
