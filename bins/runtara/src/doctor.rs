//! `runtara doctor`: what works, what does not, and what to do about it.

use std::collections::BTreeMap;
use std::time::Duration;

use runtara_management_sdk::{CheckResult, Client, MachineCheck, Readiness};
use serde::Serialize;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::{Cell, Table, Tint};
use crate::text::span;

/// One thing that was looked at.
#[derive(Debug)]
struct Check {
    name: String,
    outcome: Outcome,
    found: String,
    advice: Option<String>,
}

/// What came of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// It works.
    Ok,
    /// It works, and the operator should know something about it.
    Warning,
    /// It does not work yet.
    Missing,
    /// Nobody who could tell was reached.
    Unknown,
}

impl Check {
    /// It works.
    fn ok(name: &str, found: String) -> Self {
        Self {
            name: name.to_owned(),
            outcome: Outcome::Ok,
            found,
            advice: None,
        }
    }

    /// It does not work yet.
    fn missing(name: &str, found: String, advice: &str) -> Self {
        Self {
            name: name.to_owned(),
            outcome: Outcome::Missing,
            found,
            advice: Some(advice.to_owned()),
        }
    }

    /// What the server has looked at on its machine.
    fn told(told: &MachineCheck) -> Self {
        Self {
            name: told.about.clone(),
            outcome: match told.result {
                CheckResult::Fine => Outcome::Ok,
                CheckResult::Warning => Outcome::Warning,
                CheckResult::Unfit => Outcome::Missing,
                _ => Outcome::Unknown,
            },
            found: told.found().to_owned(),
            advice: told.advice().map(str::to_owned),
        }
    }

    /// Only a server that answers could tell.
    fn unknown(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            outcome: Outcome::Unknown,
            found: "the server did not say".to_owned(),
            advice: None,
        }
    }

    fn is_ok(&self) -> bool {
        self.outcome == Outcome::Ok
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "ok": self.is_ok(),
            "result": self.outcome,
            "found": self.found,
            "advice": self.advice,
        })
    }
}

/// The kinds of images that there are.
const KINDS: [&str; 3] = ["native", "oci", "wasm"];

/// What a server says of a kind whose runner was left out when it was built: nothing that is installed beside it helps.
const NOT_BUILT: &str = "this build has no runner of this kind";

/// Who else can tell what the machine of a server lacks.
const ASK_THERE: &str = "run `runtara-environment doctor` on the machine of the server, as its user and with its variables";

pub(crate) async fn run(client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    let (mut checks, verdict) = server(client).await;
    let is_there = checks.first().is_some_and(Check::is_ok);
    checks.extend(match is_there {
        true => machine(client).await,
        false => vec![untold_machine("the server did not say".to_owned())],
    });
    if screen.json {
        let checks: Vec<_> = checks.iter().map(Check::json).collect();
        screen.json(&json!({ "checks": checks }))?;
    } else {
        screen.table(&table(&checks), true)?;
        for check in &checks {
            if let Some(advice) = &check.advice {
                screen.line(&format!("\n{}: {advice}", check.name))?;
            }
        }
    }
    verdict
}

fn table(checks: &[Check]) -> Table {
    let mut table = Table::new(["CHECK", "RESULT", "FOUND"]);
    for check in checks {
        let result = match check.outcome {
            Outcome::Ok => Cell::new("ok", Tint::Green),
            Outcome::Warning => Cell::new("warning", Tint::Yellow),
            Outcome::Missing => Cell::new("missing", Tint::Red),
            Outcome::Unknown => Cell::new("unknown", Tint::Yellow),
        };
        table.row([Cell::from(&check.name), result, Cell::from(&check.found)]);
    }
    table
}

/// What the server says, and what the whole command says by it.
async fn server(client: &Client) -> (Vec<Check>, Result<(), Failure>) {
    const START: &str =
        "start one here with `runtara-environment dev`, or name another with --server";
    let health = match client.health().await {
        Ok(health) => health,
        Err(error) => {
            let failure = Failure::from(error);
            let code = if failure.exit_code() == 4 { 4 } else { 1 };
            let found = failure.text().lines().next().unwrap_or_default().to_owned();
            let message = format!(
                "the server at {} does not answer as it should",
                client.server()
            );
            let mut checks = vec![Check::missing("server", found, START)];
            checks.extend(untold());
            return (checks, Err(Failure::Check { message, code }));
        }
    };
    let up = span(Duration::from_millis(
        u64::try_from(health.uptime_ms).unwrap_or_default(),
    ));
    let mut checks = vec![Check::ok(
        "server",
        format!(
            "{}, version {}, up for {up}",
            client.server(),
            health.version
        ),
    )];
    let readiness = match client.ready().await {
        Ok(readiness) => readiness,
        Err(error) => {
            let found = Failure::from(error).text();
            checks.push(Check::missing("ready", found, "see the log of the server"));
            checks.extend(untold());
            let message = "the server does not say whether it is ready".to_owned();
            return (checks, Err(Failure::Check { message, code: 1 }));
        }
    };
    checks.push(database(&readiness));
    checks.extend(KINDS.map(|kind| runner(&readiness.details, kind)));
    let verdict = match readiness.ready {
        true => Ok(()),
        false => Err(Failure::Check {
            message: "the server is not ready".to_owned(),
            code: 1,
        }),
    };
    (checks, verdict)
}

/// What the server has found out about its machine.
async fn machine(client: &Client) -> Vec<Check> {
    match client.machine().await {
        Ok(Some(told)) => told.iter().map(Check::told).collect(),
        Ok(None) => vec![untold_machine("the server is too old to say".to_owned())],
        Err(error) => vec![untold_machine(Failure::from(error).text())],
    }
}

fn untold_machine(found: String) -> Check {
    Check {
        found,
        advice: Some(ASK_THERE.to_owned()),
        ..Check::unknown("machine")
    }
}

/// What only the server can tell, where it does not.
fn untold() -> impl Iterator<Item = Check> {
    let kinds = KINDS.map(|kind| Check::unknown(&row_of(kind)));
    std::iter::once(Check::unknown("database")).chain(kinds)
}

fn row_of(kind: &str) -> String {
    format!("{kind} images")
}

fn database(readiness: &Readiness) -> Check {
    let told = readiness.details.get("database").map(brief);
    // A server can be up without its database, but never ready.
    let is_ok = readiness.ready || readiness.details.get("database").is_some_and(is_good);
    match (is_ok, told) {
        (true, told) => Check::ok("database", told.unwrap_or_else(|| "reachable".to_owned())),
        (false, told) => Check::missing(
            "database",
            told.unwrap_or_else(|| brief(&json!(readiness.details))),
            "see that it runs, and that RUNTARA_ENVIRONMENT_DATABASE_URL of the server names it",
        ),
    }
}

/// Whether the server runs images of a kind, by what it tells under `runners`: a list of kinds, or a map from kind to its state.
fn runner(details: &BTreeMap<String, Value>, kind: &str) -> Check {
    let name = row_of(kind);
    let advice = match kind {
        "oci" => "install what is missing, then start the server again",
        "wasm" => "see the log of the server",
        _ => "as root, set RUNTARA_NATIVE_USER of the server to the user who is to run them",
    };
    let told = match details.get("runners") {
        Some(Value::Array(kinds)) => Some(json!(
            kinds.iter().any(|found| found.as_str() == Some(kind))
        )),
        Some(Value::Object(kinds)) => Some(kinds.get(kind).cloned().unwrap_or(Value::Bool(false))),
        _ => None,
    };
    match told {
        Some(told) if is_good(&told) => Check::ok(&name, "the server runs them".to_owned()),
        Some(Value::String(why)) if why == NOT_BUILT => {
            let advice = format!("use a build of the server that has the runner for {kind} images");
            Check::missing(&name, why, &advice)
        }
        Some(Value::Bool(_)) => {
            Check::missing(&name, "the server does not run them".to_owned(), advice)
        }
        Some(told) => Check::missing(&name, brief(&told), advice),
        None => Check::missing(
            &name,
            "the server does not say".to_owned(),
            "see the log of the server",
        ),
    }
}

/// Whether a told state is a good one: `true`, a good word, or a map that says so of itself.
fn is_good(told: &Value) -> bool {
    match told {
        Value::Bool(good) => *good,
        Value::String(word) => matches!(word.as_str(), "ok" | "ready" | "reachable" | "up"),
        Value::Object(map) => ["ready", "ok", "reachable", "status"]
            .iter()
            .any(|key| map.get(*key).is_some_and(is_good)),
        _ => false,
    }
}

fn brief(told: &Value) -> String {
    match told {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "reachable".to_owned(),
        Value::Bool(false) => "not reachable".to_owned(),
        other => crate::text::cut(&other.to_string(), 200),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(details: Value) -> BTreeMap<String, Value> {
        serde_json::from_value(details).unwrap()
    }

    #[test]
    fn runners_are_read_as_a_list_or_a_map() {
        let list = told(json!({"runners": ["native"]}));
        assert!(runner(&list, "native").is_ok());
        assert_eq!(runner(&list, "wasm").found, "the server does not run them");
        let map = told(
            json!({"runners": {"native": {"ready": true}, "oci": "runc is not installed", "wasm": false}}),
        );
        assert!(runner(&map, "native").is_ok());
        assert_eq!(runner(&map, "oci").found, "runc is not installed");
        assert!(!runner(&map, "wasm").is_ok());
        assert_eq!(
            runner(&BTreeMap::new(), "oci").found,
            "the server does not say"
        );
    }

    #[test]
    fn what_was_not_built_in_is_not_to_be_installed() {
        let server =
            told(json!({"runners": {"native": true, "oci": NOT_BUILT, "wasm": NOT_BUILT}}));
        for kind in ["oci", "wasm"] {
            let check = runner(&server, kind);
            assert_eq!(
                (check.outcome, &*check.found),
                (Outcome::Missing, NOT_BUILT)
            );
            let advice = format!("use a build of the server that has the runner for {kind} images");
            assert_eq!(check.advice, Some(advice));
        }
        let lacking = told(json!({"runners": {"oci": "runc is not installed"}}));
        let advice = runner(&lacking, "oci").advice.unwrap();
        assert!(advice.starts_with("install what is missing"), "{advice}");
    }

    #[test]
    fn what_the_machine_lacks_is_told_apart_from_what_to_do() {
        let told = |result: &str, text: &str| {
            let told = json!({"about": "cgroups", "result": result, "text": text});
            Check::told(&serde_json::from_value(told).unwrap())
        };
        let lacking = told(
            "unfit",
            "version 1 without pids; mount it; then start again",
        );
        assert_eq!(
            (lacking.outcome, &*lacking.found, lacking.advice.as_deref()),
            (
                Outcome::Missing,
                "version 1 without pids",
                Some("mount it; then start again")
            )
        );
        let fine = told("fine", "crun 1.8; ask its authors");
        assert_eq!(
            (fine.outcome, &*fine.found, fine.advice),
            (Outcome::Ok, "crun 1.8; ask its authors", None)
        );
        assert_eq!(told("warning", "old").outcome, Outcome::Warning);
        assert_eq!(
            told("cursed", "by a newer server").outcome,
            Outcome::Unknown
        );
    }

    #[test]
    fn checks_are_listed_in_columns() {
        let checks = [
            Check::ok("server", "up".to_owned()),
            Check::missing("runc", "not installed".to_owned(), "install it"),
            Check::unknown("database"),
        ];
        assert_eq!(
            table(&checks).render(true, false),
            "CHECK     RESULT   FOUND\nserver    ok       up\nrunc      missing  not installed\n\
             database  unknown  the server did not say\n"
        );
    }
}
