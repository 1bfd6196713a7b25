//! Which runtime it is, and which known holes it has.

use std::cmp::Ordering;
use std::fmt;

use serde::Deserialize;

use crate::finding::{Finding, Level};

const ABOUT: &str = "OCI runtime";
/// Older ones open the sources of mounts as the container's root, who may not pass to them.
const OLDEST_RUNC: Number = Number::release(1, 1, 0);

/// What a runtime says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// Its name: runc, crun, youki.
    pub name: String,
    /// Its version as it tells it.
    pub version: String,
    /// The version of the package it was built for, where it tells that too; distributions mark there what they patched.
    pub build: Option<String>,
    /// Whether it can restrict system calls.
    pub seccomp: bool,
    /// Namespaces that containers need and it does not make, as far as it tells what it makes.
    pub missing_namespaces: Vec<String>,
}

/// Namespaces that each container has of its own, as the OCI runtime specification names them.
const NAMESPACES: [&str; 7] = ["user", "pid", "mount", "ipc", "uts", "cgroup", "network"];

impl RuntimeVersion {
    /// Reads what `--version` writes; `None` if its first line has no name and version.
    pub(super) fn read(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut words = lines.next()?.split_whitespace();
        let name = words.next()?.trim_end_matches(':');
        let version = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let build = field("commit:")
            .map(str::trim)
            .filter(|build| !build.is_empty());
        Some(Self {
            name: name.to_owned(),
            version: version.to_owned(),
            build: build.map(str::to_owned),
            // runc names the library it has; crun lists what it was built with; youki cannot be built without.
            seccomp: field("libseccomp:").is_some() || text.contains("+SECCOMP") || name == "youki",
            missing_namespaces: Vec::new(),
        })
    }

    /// Takes what `features` says (OCI runtime specification, "Features Structure"), which is surer than what `--version` does. What is left
    /// out there is unknown, and stays as it was.
    pub(super) fn take_features(&mut self, json: &[u8]) {
        let Ok(features) = serde_json::from_slice::<Features>(json) else {
            return;
        };
        let linux = features.linux;
        if let Some(enabled) = linux.seccomp.and_then(|seccomp| seccomp.enabled) {
            self.seccomp = enabled;
        }
        if let Some(made) = linux.namespaces {
            let is_missing = |name: &&str| !made.iter().any(|made| made == *name);
            let missing = NAMESPACES.into_iter().filter(is_missing);
            self.missing_namespaces = missing.map(str::to_owned).collect();
        }
    }
}

/// What of `features` matters here. The types of `oci-spec` know no namespace that is newer than they are.
#[derive(Default, Deserialize)]
struct Features {
    #[serde(default)]
    linux: LinuxFeatures,
}

#[derive(Default, Deserialize)]
struct LinuxFeatures {
    namespaces: Option<Vec<String>>,
    seccomp: Option<SeccompFeatures>,
}

#[derive(Deserialize)]
struct SeccompFeatures {
    enabled: Option<bool>,
}

impl fmt::Display for RuntimeVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)?;
        match &self.build {
            Some(build) if *build != self.version => write!(f, " ({build})"),
            _ => Ok(()),
        }
    }
}

/// A version of runc. One that is before its release (`-rc.3`) comes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Number {
    major: u32,
    minor: u32,
    patch: u32,
    candidate: Option<u32>,
}

impl Number {
    const fn release(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
            candidate: None,
        }
    }

    const fn candidate(major: u32, minor: u32, patch: u32, candidate: u32) -> Self {
        Self {
            candidate: Some(candidate),
            ..Self::release(major, minor, patch)
        }
    }

    /// Reads the beginning of a version; what a distribution has appended is left.
    fn read(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (numbers, rest) = text.split_at(end.unwrap_or(text.len()));
        let mut numbers = numbers.trim_end_matches('.').split('.').map(str::parse);
        let mut next = || numbers.next().and_then(Result::ok);
        let release = Self::release(next()?, next()?, next()?);
        // Debian writes `~rc93`, older releases `-rc93`, newer ones `-rc.3`.
        let candidate = rest
            .strip_prefix(['-', '~'])
            .and_then(|rest| rest.strip_prefix("rc"));
        Some(Self {
            candidate: candidate.map(|text| {
                let digits = text.trim_start_matches('.');
                let end = digits
                    .find(|c: char| !c.is_ascii_digit())
                    .unwrap_or(digits.len());
                digits[..end].parse().unwrap_or(0)
            }),
            ..release
        })
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |number: &Self| {
            let candidate = number.candidate.unwrap_or(u32::MAX);
            (number.major, number.minor, number.patch, candidate)
        };
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A hole by which a container could be left, from runc's own advisories.
struct Hole {
    name: &'static str,
    /// The first versions without it, one for each line of versions, ascending.
    fixed: &'static [Number],
    /// Packages of distributions that have the patch although their version is lower: the text before the number of the update, and the first
    /// such number.
    patched: &'static [(&'static str, u32)],
}

const HOLES: [Hole; 2] = [
    Hole {
        name: "CVE-2024-21626 (descriptors leaked into containers)",
        fixed: &[Number::release(1, 1, 12)],
        // Debian 12, DSA-5615.
        patched: &[("1.1.5+ds1-1+deb12u", 1)],
    },
    Hole {
        name: "CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881 (races on masked paths, /dev/console and writes to /proc)",
        fixed: &[
            Number::release(1, 2, 8),
            Number::release(1, 3, 3),
            Number::candidate(1, 4, 0, 3),
        ],
        patched: &[],
    },
];

impl Hole {
    fn is_in(&self, number: Number, build: Option<&str>) -> bool {
        let same_line =
            |fixed: &&Number| (fixed.major, fixed.minor) == (number.major, number.minor);
        let newest = self.fixed.last();
        let fixed = match self.fixed.iter().find(same_line) {
            Some(fixed) => number >= *fixed,
            None => newest.is_some_and(|newest| number > *newest),
        };
        !fixed && !self.is_patched_in(build)
    }

    fn is_patched_in(&self, build: Option<&str>) -> bool {
        let update = |prefix: &str| -> Option<u32> {
            let rest = build?.strip_prefix(prefix)?;
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            rest[..end].parse().ok()
        };
        self.patched
            .iter()
            .any(|(prefix, first)| update(prefix).is_some_and(|update| update >= *first))
    }
}

/// What is to be said of a runtime: fine; a warning if it has, as far as its version tells, holes that later ones have not; unfit if it cannot
/// keep what containers are promised.
#[must_use]
pub fn assess(runtime: &RuntimeVersion) -> Finding {
    if !runtime.seccomp {
        let text = format!(
            "{runtime} was built without seccomp, so it cannot restrict system calls; install a build that has it (Debian: apt install runc)"
        );
        return Finding::new(ABOUT, Level::Unfit, text);
    }
    if !runtime.missing_namespaces.is_empty() {
        let text = format!(
            "{runtime} makes no namespaces of these kinds: {}; install runc (Debian: apt install runc)",
            runtime.missing_namespaces.join(", ")
        );
        return Finding::new(ABOUT, Level::Unfit, text);
    }
    if runtime.name != "runc" {
        let text = format!(
            "{runtime}; which of its versions have known holes is not known here, so ask its authors"
        );
        return Finding::new(ABOUT, Level::Fine, text);
    }
    let Some(number) = Number::read(&runtime.version) else {
        let text = format!("{runtime} has no version that can be compared; install a released one");
        return Finding::new(ABOUT, Level::Warning, text);
    };
    if number < OLDEST_RUNC {
        let text = format!(
            "{runtime} is too old; version 1.1.0 or newer is needed (Debian 12 or newer: apt install runc)"
        );
        return Finding::new(ABOUT, Level::Unfit, text);
    }
    let holes: Vec<_> = HOLES
        .iter()
        .filter(|hole| hole.is_in(number, runtime.build.as_deref()))
        .map(|hole| hole.name)
        .collect();
    if holes.is_empty() {
        return Finding::new(ABOUT, Level::Fine, runtime.to_string());
    }
    let text = format!(
        "{runtime} is of a version with known holes: {}; whether your distribution has patched its build is not known here: ask it \
         (Debian: security-tracker.debian.org), or install runc 1.2.8, 1.3.3, 1.4.0 or newer",
        holes.join("; ")
    );
    Finding::new(ABOUT, Level::Warning, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\ngo: go1.19.8\nlibseccomp: 2.5.4\n";

    fn runc(version: &str) -> RuntimeVersion {
        RuntimeVersion::read(&format!("runc version {version}\nlibseccomp: 2.5.5\n")).unwrap()
    }

    #[test]
    fn what_debian_patched_is_not_held_against_it() {
        let version = RuntimeVersion::read(DEBIAN).unwrap();
        assert_eq!(version.to_string(), "runc 1.1.5+ds1 (1.1.5+ds1-1+deb12u1)");
        let finding = assess(&version);
        assert_eq!(finding.level, Level::Warning);
        assert!(!finding.text.contains("CVE-2024-21626"), "{}", finding.text);
        assert!(finding.text.contains("CVE-2025-52881"), "{}", finding.text);
        let unpatched = RuntimeVersion {
            build: Some("1.1.5+ds1-1+b3".to_owned()),
            ..version
        };
        assert!(assess(&unpatched).text.contains("CVE-2024-21626"));
    }

    #[test]
    fn each_line_of_versions_has_its_own_fix() {
        for (version, level) in [
            ("1.0.0-rc93", Level::Unfit),
            ("1.1.12", Level::Warning),
            ("1.2.7", Level::Warning),
            ("1.2.8", Level::Fine),
            ("1.3.2", Level::Warning),
            ("1.3.3-0ubuntu1~24.04.3", Level::Fine),
            ("1.4.0-rc.2", Level::Warning),
            ("1.4.0-rc.3", Level::Fine),
            ("1.4.0", Level::Fine),
            ("1.5.1", Level::Fine),
            ("2.0.0", Level::Fine),
        ] {
            let finding = assess(&runc(version));
            assert_eq!(finding.level, level, "{version}: {}", finding.text);
        }
    }

    #[test]
    fn a_runtime_without_seccomp_is_unfit() {
        let version = RuntimeVersion::read("runc version 1.4.0\nspec: 1.2.0\n").unwrap();
        assert_eq!(assess(&version).level, Level::Unfit);
    }

    #[test]
    fn what_a_runtime_says_of_its_features_counts_more() {
        let mut version = runc("1.4.0");
        version.take_features(b"no features here");
        version.take_features(br#"{"ociVersionMin": "1.0.0"}"#);
        assert_eq!(assess(&version).level, Level::Fine);
        let few = br#"{"linux": {"namespaces": ["ipc", "mount", "network", "pid", "user", "uts", "new"]}}"#;
        version.take_features(few);
        let finding = assess(&version);
        assert_eq!(finding.level, Level::Unfit);
        assert!(finding.text.contains("kinds: cgroup;"), "{}", finding.text);
        let mut version = runc("1.4.0");
        version.take_features(br#"{"linux": {"seccomp": {"enabled": false}}}"#);
        assert_eq!(assess(&version).level, Level::Unfit);
    }

    #[test]
    fn other_runtimes_are_read_too() {
        let crun = "crun version 1.8.1\ncommit: f8a096be\nrundir: /run/crun\nspec: 1.0.0\n+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF\n";
        let version = RuntimeVersion::read(crun).unwrap();
        assert_eq!(
            (version.name.as_str(), version.version.as_str()),
            ("crun", "1.8.1")
        );
        assert_eq!(assess(&version).level, Level::Fine);
        let youki =
            RuntimeVersion::read("youki version: 0.5.7\ncommit: 0.5.7-0-0000000\n").unwrap();
        assert_eq!(
            (youki.name.as_str(), youki.version.as_str()),
            ("youki", "0.5.7")
        );
    }

    #[test]
    fn what_is_no_version_is_not_read() {
        for text in ["", "\n", "runc", "runc version\n", "usage: foo"] {
            assert_eq!(RuntimeVersion::read(text), None, "{text:?}");
        }
        assert_eq!(Number::read("1.2"), None);
        assert_eq!(Number::read("999999999999.1.1"), None);
        assert_eq!(assess(&runc("1.x")).level, Level::Warning);
    }
}
