//! How an image wants to be run.

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use runtara_domain::limits::{ARGS, ARGS_BYTES, ENV_BYTES, ENV_VARIABLES};

use crate::error::Shown;

/// Longest working directory, user or stop signal, in bytes.
const WORD_BYTES: usize = 4_095;

/// Says why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigProblem {
    /// A text that would be cut short by the NUL in it.
    #[error("{field} \"{}\" has a NUL in it", Shown(found.as_bytes()))]
    Nul {
        /// The field, such as `Cmd`.
        field: &'static str,
        /// What it says.
        found: String,
    },
    /// A variable that is not one.
    #[error("Env has \"{}\"; wanted is NAME=value", Shown(found.as_bytes()))]
    BadVariable {
        /// What was found.
        found: String,
    },
    /// A working directory from which a program reaches what is not its own.
    #[error(
        "WorkingDir \"{}\" is in {forbidden}, from where a program may reach the host; choose a directory of the image",
        Shown(found.as_bytes())
    )]
    WorkingDirectory {
        /// What was found.
        found: String,
        /// `/proc` or `/sys`.
        forbidden: &'static str,
    },
    /// More than a program can be given.
    #[error("{field} takes {found} {unit}; at most {allowed} are allowed")]
    TooMuch {
        /// The field, such as `Cmd`.
        field: &'static str,
        /// `bytes` or `entries`.
        unit: &'static str,
        /// How much was found.
        found: usize,
        /// How much is allowed.
        allowed: usize,
    },
}

/// How an image wants to be run (OCI image specification, config.md). Checked: no text has a NUL in it, and numbers and sizes
/// are those that a start may have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ImageConfig {
    /// The program and its first arguments. If empty, `cmd` has the program.
    pub entrypoint: Vec<String>,
    /// Further arguments, which a start may replace.
    pub cmd: Vec<String>,
    /// Environment, names and values in the order of the image; of equal names the last counts.
    pub env: Vec<(String, String)>,
    /// The directory to start in: absolute, without `.`, `..` and needless slashes. `/` if the image names none. Links in it
    /// are those of the image: see [`crate::MergedLayers::working_directory`].
    pub working_dir: String,
    /// The user as the image names it: `name`, `uid`, `name:group`, `uid:gid`; empty for root. See
    /// [`crate::MergedLayers::user`].
    pub user: String,
    /// The signal that asks the program to end, such as `SIGTERM` or `15`.
    pub stop_signal: Option<String>,
    /// Remarks of whoever built the image.
    pub labels: BTreeMap<String, String>,
    /// Directories that the image would like to be kept outside of it.
    pub volumes: Vec<String>,
    /// Ports that the image listens on, such as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// When it was built, as it says (RFC 3339).
    pub created: Option<String>,
}

impl ImageConfig {
    /// Takes a configuration apart and checks it.
    ///
    /// # Errors
    /// [`ConfigProblem`] if it asks for what cannot be.
    pub fn from_document(document: ImageConfiguration) -> Result<Self, ConfigProblem> {
        let created = document.created().clone();
        let config = document.config().clone().unwrap_or_default();
        let this = Self {
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            env: variables(config.env().as_deref().unwrap_or_default())?,
            working_dir: working_directory(config.working_dir().as_deref().unwrap_or_default())?,
            user: config.user().clone().unwrap_or_default(),
            stop_signal: config
                .stop_signal()
                .clone()
                .filter(|signal| !signal.is_empty()),
            labels: config
                .labels()
                .clone()
                .unwrap_or_default()
                .into_iter()
                .collect(),
            volumes: config.volumes().clone().unwrap_or_default(),
            exposed_ports: config.exposed_ports().clone().unwrap_or_default(),
            created,
        };
        this.check()?;
        Ok(this)
    }

    fn check(&self) -> Result<(), ConfigProblem> {
        words("Entrypoint", &self.entrypoint)?;
        words("Cmd", &self.cmd)?;
        word("User", &self.user)?;
        word(
            "StopSignal",
            self.stop_signal.as_deref().unwrap_or_default(),
        )
    }
}

fn words(field: &'static str, words: &[String]) -> Result<(), ConfigProblem> {
    bound(field, "entries", words.len(), ARGS)?;
    bound(
        field,
        "bytes",
        words.iter().map(String::len).sum(),
        ARGS_BYTES,
    )?;
    words.iter().try_for_each(|word| without_nul(field, word))
}

fn word(field: &'static str, word: &str) -> Result<(), ConfigProblem> {
    bound(field, "bytes", word.len(), WORD_BYTES)?;
    without_nul(field, word)
}

fn bound(
    field: &'static str,
    unit: &'static str,
    found: usize,
    allowed: usize,
) -> Result<(), ConfigProblem> {
    if found <= allowed {
        return Ok(());
    }
    Err(ConfigProblem::TooMuch {
        field,
        unit,
        found,
        allowed,
    })
}

fn without_nul(field: &'static str, text: &str) -> Result<(), ConfigProblem> {
    match text.contains('\0') {
        false => Ok(()),
        true => Err(ConfigProblem::Nul {
            field,
            found: text.to_owned(),
        }),
    }
}

fn variables(entries: &[String]) -> Result<Vec<(String, String)>, ConfigProblem> {
    bound("Env", "entries", entries.len(), ENV_VARIABLES)?;
    bound(
        "Env",
        "bytes",
        entries.iter().map(String::len).sum(),
        ENV_BYTES,
    )?;
    let variable = |entry: &String| {
        without_nul("Env", entry)?;
        match entry.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(ConfigProblem::BadVariable {
                found: entry.clone(),
            }),
        }
    };
    entries.iter().map(variable).collect()
}

/// Makes a working directory absolute, as Docker does, and takes `.` and `..` out of it, as the kernel does at the root.
///
/// Refused are `/proc` and `/sys`: `/proc/self/fd/<n>` is a directory of the host if the runtime has left one open
/// (CVE-2024-21626), and there is nothing to work on in either.
fn working_directory(text: &str) -> Result<String, ConfigProblem> {
    word("WorkingDir", text)?;
    let mut components: Vec<&str> = Vec::new();
    for component in text.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                components.pop();
            }
            component => components.push(component),
        }
    }
    match forbidden(components.first().copied()) {
        Some(forbidden) => Err(ConfigProblem::WorkingDirectory {
            found: text.to_owned(),
            forbidden,
        }),
        None => Ok(format!("/{}", components.join("/"))),
    }
}

/// The directory at the root that a program must not start in, if this is one.
pub(crate) fn forbidden(first: Option<&str>) -> Option<&'static str> {
    match first {
        Some("proc") => Some("/proc"),
        Some("sys") => Some("/sys"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(config: &serde_json::Value) -> Result<ImageConfig, ConfigProblem> {
        let document = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        ImageConfig::from_document(serde_json::from_value(document).unwrap())
    }

    #[test]
    fn a_full_configuration_is_taken_apart() {
        let config = parse(&serde_json::json!({
            "User": "app:staff", "ExposedPorts": {"80/tcp": {}}, "Env": ["PATH=/bin", "EMPTY=", "A=b=c"],
            "Entrypoint": ["/app"], "Cmd": ["run"], "Volumes": {"/data": {}}, "WorkingDir": "srv//app/./x/..",
            "Labels": {"b": "2", "a": "1"}, "StopSignal": "SIGINT",
        }))
        .unwrap();
        assert_eq!(config.entrypoint, ["/app"]);
        assert_eq!(config.cmd, ["run"]);
        assert_eq!(
            config.env[1..],
            [("EMPTY".into(), String::new()), ("A".into(), "b=c".into())]
        );
        assert_eq!(config.working_dir, "/srv/app");
        assert_eq!(config.user, "app:staff");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(config.labels["a"], "1");
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.exposed_ports, ["80/tcp"]);
    }

    #[test]
    fn what_go_writes_for_nothing_is_nothing() {
        let config = parse(&serde_json::json!({
            "Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "Env": null, "Cmd": null, "Image": "",
            "Volumes": null, "WorkingDir": "", "Entrypoint": null, "OnBuild": null, "Labels": null, "ArgsEscaped": true,
            "ExposedPorts": null, "StopSignal": "",
        }))
        .unwrap();
        assert_eq!(
            config,
            ImageConfig {
                working_dir: "/".into(),
                ..ImageConfig::default()
            }
        );
    }

    #[test]
    fn working_directories_in_proc_and_sys_are_refused() {
        for found in [
            "/proc/self/fd/7",
            "proc",
            "/sys/fs",
            "/a/../proc/self/fd/8",
            "/../proc/1",
            "//proc//1",
            "/./sys",
        ] {
            let refused = parse(&serde_json::json!({ "WorkingDir": found }));
            assert!(
                matches!(refused, Err(ConfigProblem::WorkingDirectory { .. })),
                "{found}: {refused:?}"
            );
        }
        assert_eq!(
            parse(&serde_json::json!({ "WorkingDir": "/process" }))
                .unwrap()
                .working_dir,
            "/process"
        );
    }

    #[test]
    fn what_no_program_can_be_given_is_refused() {
        let nul = |field| ConfigProblem::Nul {
            field,
            found: "a=b\0c".into(),
        };
        for field in ["Env", "Cmd", "Entrypoint"] {
            assert_eq!(
                parse(&serde_json::json!({ field: ["a=b\0c"] })),
                Err(nul(field))
            );
        }
        for field in ["User", "WorkingDir", "StopSignal"] {
            assert_eq!(
                parse(&serde_json::json!({ field: "a=b\0c" })),
                Err(nul(field))
            );
        }
        for entry in ["PATH", "=x", ""] {
            let found = entry.to_owned();
            assert_eq!(
                parse(&serde_json::json!({ "Env": [entry] })),
                Err(ConfigProblem::BadVariable { found })
            );
        }
        let refused = parse(&serde_json::json!({ "Cmd": vec!["x"; ARGS + 1] }));
        assert!(matches!(
            refused,
            Err(ConfigProblem::TooMuch {
                unit: "entries",
                ..
            })
        ));
        let refused =
            parse(&serde_json::json!({ "Env": [format!("A={}", "x".repeat(ENV_BYTES))] }));
        assert!(matches!(
            refused,
            Err(ConfigProblem::TooMuch { unit: "bytes", .. })
        ));
    }

    proptest! {
        #[test]
        fn a_working_directory_never_ends_up_in_proc(parts in proptest::collection::vec(
            prop::sample::select(vec!["proc", "sys", "..", ".", "", "a", "self"]), 0..8)) {
            if let Ok(directory) = working_directory(&parts.join("/")) {
                prop_assert!(directory.starts_with('/'));
                prop_assert!(!directory.split('/').any(|part| part == ".." || part == "."));
                prop_assert!(!directory.starts_with("/proc") && !directory.starts_with("/sys"));
            }
        }
    }
}
