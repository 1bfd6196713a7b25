//! `runtara-environment doctor`: prints what this machine can run.

use std::io::{self, Write as _};
use std::process::ExitCode;

use runtara_environment::doctor::{CheckResult, Diagnosis, MachineCheck, look};

/// Looks and tells.
pub(crate) fn run() -> ExitCode {
    let diagnosis = look(&|name| std::env::var_os(name));
    let told = io::stdout().lock().write_all(text(&diagnosis).as_bytes());
    match told {
        // Whoever has read enough has not been failed.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        _ if diagnosis.is_good() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn text(diagnosis: &Diagnosis) -> String {
    let checks: Vec<_> = diagnosis.kinds.iter().chain(&diagnosis.machine).collect();
    let width = checks.iter().map(|check| check.about.len()).max();
    let lines = checks.iter().map(|check| line(check, width.unwrap_or(0)));
    let problems = diagnosis.problems.iter();
    let problems = problems.map(|problem| format!("configuration: {problem}\n"));
    problems.chain(lines).collect()
}

fn line(check: &MachineCheck, width: usize) -> String {
    let word = match check.result {
        CheckResult::Fine => "ok",
        CheckResult::Warning => "warning",
        CheckResult::Unfit => "missing",
    };
    format!(
        "{:<width$}  {word:<7}  {}\n",
        check.about,
        printable(&check.text)
    )
}

/// What programs of the machine say of themselves must not steer the terminal.
fn printable(text: &str) -> String {
    let shown = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stand_in_columns_with_the_advice_in_full() {
        let check = MachineCheck {
            about: "OCI runtime".to_owned(),
            result: CheckResult::Unfit,
            text: "it was not found; apt install\u{1b} runc".to_owned(),
        };
        assert_eq!(
            line(&check, 13),
            "OCI runtime    missing  it was not found; apt install  runc\n"
        );
    }
}
