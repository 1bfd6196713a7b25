//! What this machine can run, found out without a server.

use std::ffi::OsString;

use nix::unistd::{User, geteuid};
use runtara_domain::RunnerKind;
use runtara_runner_oci::OciRunner;

pub use runtara_http::environment::{CheckResult, MachineCheck};

use crate::config::{Config, Problem};
use crate::report::checks;
use crate::runners::{self, Programs, oci_config, user};

/// The name of a server that is never started, in the names of what it would make.
const NODE: &str = "doctor";

/// What this machine can run, and what it lacks.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Diagnosis {
    /// What is wrong in the configuration.
    pub problems: Vec<Problem>,
    /// Each kind of images: whether `serve` would run it, and how, or why not.
    pub kinds: Vec<MachineCheck>,
    /// All that was looked at on the machine.
    pub machine: Vec<MachineCheck>,
}

impl Diagnosis {
    /// Whether nothing is wrong in the configuration, and at least one kind of images can be run.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let runs = |kind: &MachineCheck| kind.result != CheckResult::Unfit;
        self.problems.is_empty() && self.kinds.iter().any(runs)
    }
}

/// Finds out what a server with these variables could run on this machine, if it ran as the user of this process. No database is needed,
/// and nothing is made. Blocking, for as long as the OCI runtime takes to tell its version.
#[must_use]
pub fn look(lookup: &dyn Fn(&str) -> Option<OsString>) -> Diagnosis {
    let (config, problems) = Config::read_leniently(lookup);
    let machine = checks(&OciRunner::look(&oci_config(
        &config,
        &config.data_dir,
        NODE,
    )));
    let kinds = vec![
        native(&config, &machine),
        containers(&machine),
        of_kind(RunnerKind::Wasm, guests(&config)),
    ];
    Diagnosis {
        problems,
        kinds,
        machine,
    }
}

/// Whether guests are run.
fn guests(config: &Config) -> Result<String, String> {
    #[cfg(feature = "wasm")]
    return runners::guests(config);
    #[cfg(not(feature = "wasm"))]
    {
        let _unused = config;
        Err(runners::NOT_BUILT.to_owned())
    }
}

fn of_kind(kind: RunnerKind, standing: Result<String, String>) -> MachineCheck {
    let (result, text) = match standing {
        Ok(text) => (CheckResult::Fine, text),
        Err(text) => (CheckResult::Unfit, text),
    };
    MachineCheck {
        about: format!("{kind} images"),
        result,
        text,
    }
}

/// Native programs need nothing but what is needed to watch any process.
fn native(config: &Config, machine: &[MachineCheck]) -> MachineCheck {
    let standing = match user(config) {
        // It stands among the problems of the configuration, in full.
        Err(_) => Err("RUNTARA_NATIVE_USER cannot be used".to_owned()),
        Ok(Programs::Refused(reason)) => Err(format!("{reason} (`dev` runs them as root)")),
        Ok(Programs::Run { user }) => {
            let id = user.map_or_else(geteuid, |(uid, _)| uid.into());
            Ok(format!("run as {}", name_of(id)))
        }
    };
    let processes = machine.first().map_or(Ok(()), fit);
    of_kind(RunnerKind::Native, processes.and(standing))
}

fn name_of(id: nix::unistd::Uid) -> String {
    match User::from_uid(id) {
        Ok(Some(user)) => format!("{} (user {id})", user.name),
        _ => format!("user {id}"),
    }
}

fn containers(machine: &[MachineCheck]) -> MachineCheck {
    let unfit: Vec<_> = machine
        .iter()
        .filter_map(|check| fit(check).err().map(|_| check.about.as_str()))
        .collect();
    let standing = match unfit.is_empty() {
        true => Ok("run in containers".to_owned()),
        false => Err(format!("see {} below", unfit.join(", "))),
    };
    of_kind(RunnerKind::Oci, standing)
}

/// What a check says that keeps programs from being run.
fn fit(check: &MachineCheck) -> Result<(), String> {
    match check.result {
        CheckResult::Unfit => Err(check.text.clone()),
        CheckResult::Fine | CheckResult::Warning => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look_with(variables: &[(&str, &str)]) -> Diagnosis {
        look(&|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).into())
        })
    }

    fn kind<'a>(diagnosis: &'a Diagnosis, about: &str) -> &'a MachineCheck {
        let mut kinds = diagnosis.kinds.iter();
        kinds.find(|kind| kind.about == about).unwrap()
    }

    #[test]
    fn no_database_is_needed_and_nothing_is_made() {
        let place = tempfile::tempdir().unwrap();
        let data_dir = place.path().join("not/yet");
        let me = User::from_uid(geteuid()).unwrap().unwrap().name;
        let diagnosis = look_with(&[
            ("DATA_DIR", data_dir.to_str().unwrap()),
            ("RUNTARA_NATIVE_USER", &me),
        ]);
        assert_eq!(diagnosis.problems, []);
        let native = kind(&diagnosis, "native images");
        assert_eq!(native.result, CheckResult::Fine);
        assert!(native.text.contains(&me), "{}", native.text);
        assert!(diagnosis.is_good());
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_machine_that_runs_nothing_is_not_good() {
        let diagnosis = look_with(&[
            ("RUNTARA_OCI_RUNTIME", "/no/such/runc"),
            ("RUNTARA_NATIVE_USER", "no-such-user"),
            // More address space than processors of today have.
            ("RUNTARA_WASM_MAX_INSTANCES", "100000"),
            ("RUNTARA_WASM_MAX_MEMORY_BYTES", "4294967296"),
        ]);
        for kind in &diagnosis.kinds {
            assert_eq!(kind.result, CheckResult::Unfit, "{kind:?}");
        }
        let containers = kind(&diagnosis, "oci images");
        assert!(containers.text.contains("OCI runtime"), "{containers:?}");
        assert_eq!(diagnosis.problems.len(), 1, "{:?}", diagnosis.problems);
        assert!(!diagnosis.is_good());
    }

    #[test]
    fn what_is_wrong_in_the_configuration_does_not_hide_the_machine() {
        let diagnosis = look_with(&[("RUNTARA_MAX_RUNS", "many")]);
        assert_eq!(diagnosis.problems[0].variable, "RUNTARA_MAX_RUNS");
        assert!(diagnosis.machine.len() > 8, "{:#?}", diagnosis.machine);
        assert!(!diagnosis.is_good());
    }

    #[test]
    fn each_network_mode_is_told() {
        let diagnosis = look_with(&[]);
        for mode in ["isolated", "egress", "host"] {
            let about = format!("network mode {mode}");
            assert!(diagnosis.machine.iter().any(|check| check.about == about));
        }
    }
}
