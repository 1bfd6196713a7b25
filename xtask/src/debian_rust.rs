//! The Rust of Debian, beside the one that builds this workspace: its packages have the sources of the standard library, from which it can
//! be built for targets that the toolchain here has not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::command::{capture, run, target};
use crate::error::Error;
use crate::guests::TARGET;
use crate::requirements::{in_path, wasm_library};

/// The compiler and the sources that belong to it. Debian updates this one with its browsers, within stable releases too.
const PACKAGES: [&str; 2] = ["rustc-web", "rust-web-src"];
/// What they need and no machine has by chance: the libraries of the compiler, and LLVM.
const NEEDED: [&str; 2] = ["libstd-rust-web", "libllvm"];

/// Those packages, unpacked into the target directory. Nothing is installed: on a machine that has another Rust of Debian, that would be
/// removed.
pub(crate) struct DebianRust {
    root: PathBuf,
}

impl DebianRust {
    /// Finds them, or fetches them once.
    ///
    /// # Errors
    /// When this machine has no apt, or that has no such packages.
    pub(crate) fn ensure() -> Result<Self, Error> {
        let root = target().join("tools/debian-rust");
        if !root.join("usr/bin/rustc").is_file() {
            let fetched = fetch(&root);
            fetched.map_err(|error| Error::Unmet(advice(&error)))?;
        }
        Ok(Self { root })
    }

    /// Has a build use this compiler, and build the standard library too.
    pub(crate) fn prepare(&self, build: &mut Command) {
        build
            .arg("-Zbuild-std=std,panic_abort")
            .env("RUSTC", self.root.join("usr/bin/rustc"))
            // Building the standard library is not for everybody yet.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("LD_LIBRARY_PATH", self.libraries())
            // The server makes components of modules, so that no other linker is needed.
            .env("CARGO_TARGET_WASM32_WASIP2_LINKER", self.linker())
            // The C library of Debian is older than threads in it, which nothing here begins.
            .env(
                "CARGO_TARGET_WASM32_WASIP2_RUSTFLAGS",
                "-C link-arg=--unresolved-symbols=ignore-all",
            );
    }

    /// Where its shared libraries are: a directory that is named after the processor.
    fn libraries(&self) -> PathBuf {
        let place = self.root.join("usr/lib");
        let entries = place.read_dir().into_iter().flatten().flatten();
        let mut directories = entries.map(|entry| entry.path());
        let is_named = |path: &PathBuf| path.to_string_lossy().ends_with("-linux-gnu");
        directories.find(is_named).unwrap_or(place)
    }

    fn linker(&self) -> PathBuf {
        self.root.join("usr/bin/rust-lld")
    }
}

/// Fetches the packages and unpacks them, whole or not at all.
fn fetch(root: &Path) -> Result<(), Error> {
    for program in ["apt-get", "apt-cache", "dpkg-deb"] {
        if in_path(program).is_none() {
            return Err(Error::Unmet(format!("{program} is not here")));
        }
    }
    if nix::unistd::geteuid().is_root() {
        // The lists of packages may be missing, or older than the archive.
        run(Command::new("apt-get").args(["--quiet", "update"]))?;
    }
    let names = needed()?;
    let place = root.with_extension("new");
    let made = |action: &str| Error::io(format!("{action} {}", place.display()));
    if place.exists() {
        fs::remove_dir_all(&place).map_err(made("empty"))?;
    }
    fs::create_dir_all(&place).map_err(made("make"))?;
    run(Command::new("apt-get")
        .args(["--quiet", "download"])
        .args(&names)
        .current_dir(&place))?;
    for entry in place.read_dir().map_err(made("read"))?.flatten() {
        unpack(&entry.path(), &place)?;
        fs::remove_file(entry.path()).map_err(made("empty"))?;
    }
    complete(&place)?;
    fs::rename(&place, root).map_err(made("rename"))
}

/// The names of all packages.
fn needed() -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = PACKAGES.map(str::to_owned).to_vec();
    let mut looked_at = 0;
    while let Some(name) = names.get(looked_at) {
        let told = capture(Command::new("apt-cache").args(["depends", "--important", name]))?;
        for found in dependencies(&told) {
            if !names.iter().any(|name| name == found) {
                names.push(found.to_owned());
            }
        }
        looked_at += 1;
    }
    let linker = names
        .iter()
        .find_map(|name| name.strip_prefix("libllvm"))
        .map(|version| format!("lld-{version}"));
    match linker {
        Some(linker) => {
            names.push(linker);
            Ok(names)
        }
        None => Err(Error::Unmet(format!(
            "apt knows no LLVM that {} needs",
            PACKAGES[0]
        ))),
    }
}

/// Those of the dependencies of a package that are to be fetched, from what `apt-cache depends` says.
fn dependencies(told: &str) -> impl Iterator<Item = &str> {
    let names = told
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.filter(|name| NEEDED.iter().any(|needed| name.starts_with(needed)))
}

/// Unpacks a package. Of the sources only those of the standard library: those of the compiler are larger than all else together.
fn unpack(package: &Path, to: &Path) -> Result<(), Error> {
    let opened = || format!("unpack {}", package.display());
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(Error::io(opened()))?;
    let mut unpack = Command::new("tar");
    unpack.args(["-x", "--no-wildcards-match-slash"]);
    for left_out in ["./usr/src/*/compiler", "./usr/src/*/src", "./usr/share"] {
        unpack.arg(format!("--exclude={left_out}"));
    }
    unpack.arg("-C").arg(to);
    if let Some(tar) = archive.stdout.take() {
        unpack.stdin(tar);
    }
    run(&mut unpack)?;
    let status = archive.wait().map_err(Error::io(opened()))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Unmet(format!(
        "{}: dpkg-deb: {status}",
        package.display()
    )))
}

/// Adds what a whole toolchain has beside the compiler: the linker under the name that the compiler knows, and the C library.
fn complete(root: &Path) -> Result<(), Error> {
    let named = |path: &Path| Error::io(format!("make {}", path.display()));
    let llvm = root.join("usr/lib");
    let entries = llvm.read_dir().map_err(Error::io("read the packages"))?;
    let mut linkers = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("llvm-"))
        .map(|entry| Path::new("../lib").join(entry.file_name()).join("bin/lld"));
    let linker = linkers
        .next()
        .ok_or_else(|| Error::Unmet("the packages have no lld".to_owned()))?;
    let link = root.join("usr/bin/rust-lld");
    std::os::unix::fs::symlink(linker, &link).map_err(named(&link))?;
    let place = root
        .join("usr/lib/rustlib")
        .join(TARGET)
        .join("lib/self-contained");
    fs::create_dir_all(&place).map_err(named(&place))?;
    for name in ["crt1-command.o", "libc.a"] {
        let found = wasm_library(name).ok_or_else(|| {
            Error::Unmet(format!("clang finds no {name} for wasm32-wasi (wasi-libc)"))
        })?;
        let to = place.join(name);
        fs::copy(found, &to).map_err(named(&to))?;
    }
    Ok(())
}

fn advice(error: &Error) -> String {
    format!(
        "this machine cannot build Rust for {TARGET}: the toolchain has no standard library for it, and the one of Debian cannot be had \
         ({})\nto bring it:\n  rustup target add {TARGET}",
        crate::error::with_causes(error)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_dependencies_those_of_the_compiler_are_fetched() {
        let told = "rustc-web\n  Depends: libc6\n  Depends: libstd-rust-web-dev\n  Conflicts: libstd-rust-web-other\n  Depends: libllvm22\n";
        let found: Vec<_> = dependencies(told).collect();
        assert_eq!(found, ["libstd-rust-web-dev", "libllvm22"]);
    }
}
