//! What the server says of itself.

use runtara_http::environment::{CheckResult, MachineCheck, ServerReport};
use runtara_runner::shim;
use runtara_runner_oci::{Finding, Level};
use runtara_scheduler::Scheduler;

use crate::metrics;

/// The runners of this server and its machine as they were found at its start, and its runs as they are now.
pub(crate) struct Report {
    pub(crate) scheduler: Scheduler,
    pub(crate) runners: Vec<(String, bool, String)>,
    pub(crate) machine: Vec<MachineCheck>,
}

impl ServerReport for Report {
    fn active_runs(&self) -> usize {
        self.scheduler.live_runs()
    }

    fn runners(&self) -> Vec<(String, bool, String)> {
        self.runners.clone()
    }

    fn machine(&self) -> Vec<MachineCheck> {
        self.machine.clone()
    }

    fn metrics(&self) -> String {
        let (runs, upkeep) = (self.scheduler.figures(), self.scheduler.upkeep_figures());
        metrics::text(env!("CARGO_PKG_VERSION"), &runs, &upkeep)
    }
}

/// What was found out about this machine, as it is told to people: by the runner of containers, and for programs of all kinds.
pub(crate) fn checks(findings: &[Finding]) -> Vec<MachineCheck> {
    let check = |finding: &Finding| MachineCheck {
        about: finding.about.to_owned(),
        result: match finding.level {
            Level::Fine => CheckResult::Fine,
            Level::Warning => CheckResult::Warning,
            Level::Unfit => CheckResult::Unfit,
        },
        text: finding.text.clone(),
    };
    let findings = findings.iter().map(check);
    std::iter::once(processes()).chain(findings).collect()
}

fn processes() -> MachineCheck {
    let missing = shim::missing();
    MachineCheck {
        about: "processes".to_owned(),
        result: match missing {
            None => CheckResult::Fine,
            Some(_) => CheckResult::Unfit,
        },
        text: missing.unwrap_or_else(|| "programs of all kinds can be watched".to_owned()),
    }
}
