//! Programs that cargo runs as its own commands. Where one is missing it is installed, once, into the target directory.

use std::path::PathBuf;

use crate::command::{cargo, run, target};
use crate::error::Error;
use crate::requirements::{in_path, version_of};

/// One such program.
pub(crate) struct Tool {
    /// Its name, and that of its package.
    pub(crate) name: &'static str,
    /// The version that is installed where there is none. A newer one may bring new rules, so it is raised on purpose.
    version: &'static str,
    /// What it is built with; what it fetches or updates by itself is left out.
    features: &'static str,
}

/// Checks licences and sources of dependencies.
pub(crate) const DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    features: "",
};
/// Runs the tests.
pub(crate) const NEXTEST: Tool = Tool {
    name: "cargo-nextest",
    version: "0.9.143",
    features: "default-no-update",
};

impl Tool {
    /// Finds it, or installs it.
    ///
    /// # Errors
    /// When it cannot be built.
    pub(crate) fn ensure(&self) -> Result<PathBuf, Error> {
        match self.find() {
            Some(found) => Ok(found),
            None => self.install(),
        }
    }

    /// Finds it: ours if it is of the right version, else whichever the machine has.
    pub(crate) fn find(&self) -> Option<PathBuf> {
        let ours = Some(self.ours()).filter(|ours| {
            version_of(ours)
                .is_some_and(|text| text.split_whitespace().any(|it| it == self.version))
        });
        ours.or_else(|| in_path(self.name))
    }

    fn install(&self) -> Result<PathBuf, Error> {
        let (name, version) = (self.name, self.version);
        let root = target().join("tools");
        eprintln!(
            "    {name} is not here: installing {version} once, under {}",
            root.display()
        );
        let mut install = cargo(["install", name, "--version", version, "--locked"]);
        // Unoptimised it is built in a third of the time.
        install
            .args([
                "--debug",
                "--no-default-features",
                "--features",
                self.features,
            ])
            .args(["--force", "--root"])
            .arg(&root)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_INCREMENTAL", "0");
        run(&mut install)?;
        Ok(self.ours())
    }

    fn ours(&self) -> PathBuf {
        target().join("tools/bin").join(self.name)
    }
}
