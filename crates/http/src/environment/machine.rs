//! What the server found out about its machine when it started.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::EnvironmentState;

/// Most checks in an answer.
const MOST_CHECKS: usize = 64;
/// Longest text of a check, in characters. What programs of the machine say of themselves is part of some.
const LONGEST_TEXT: usize = 2_000;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MachineCheck {
    /// What it is about, in a few words.
    pub about: String,
    /// How it is.
    pub result: CheckResult,
    /// What was found, and, if it is not fine, after a semicolon what to do.
    pub text: String,
}

/// How it is with something that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckResult {
    /// As it should be.
    Fine,
    /// It works, and the operator should know.
    Warning,
    /// Something cannot be run like this.
    Unfit,
}

#[derive(Serialize)]
pub(super) struct MachineAnswer {
    checks: Vec<MachineCheck>,
}

impl MachineAnswer {
    fn new(checks: Vec<MachineCheck>) -> Self {
        let bounded = |mut check: MachineCheck| {
            if let Some((end, _)) = check.text.char_indices().nth(LONGEST_TEXT) {
                check.text.truncate(end);
            }
            check
        };
        let checks = checks.into_iter().take(MOST_CHECKS).map(bounded);
        Self {
            checks: checks.collect(),
        }
    }
}

/// `GET /machine`: what was found out about the machine of this server when it started. It is nobody's in particular, so no tenant is asked.
pub(super) async fn machine(State(state): State<EnvironmentState>) -> Json<MachineAnswer> {
    Json(MachineAnswer::new(state.report.machine()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(text: &str) -> MachineCheck {
        MachineCheck {
            about: "OCI runtime".to_owned(),
            result: CheckResult::Warning,
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_check_stands_on_the_wire_by_its_words() {
        let answer = serde_json::to_value(MachineAnswer::new(vec![check("old; update it")]));
        let wanted = json!({
            "checks": [{ "about": "OCI runtime", "result": "warning", "text": "old; update it" }]
        });
        assert_eq!(answer.ok(), Some(wanted));
    }

    #[test]
    fn no_machine_makes_the_answer_long() {
        let long = check(&"ö".repeat(LONGEST_TEXT + 1));
        let answer = MachineAnswer::new(vec![long; MOST_CHECKS + 1]);
        assert_eq!(answer.checks.len(), MOST_CHECKS);
        assert_eq!(answer.checks[0].text.chars().count(), LONGEST_TEXT);
    }
}
