//! What the doctor tells of a server and of its machine.

use serde_json::{Value, json};

use crate::fake::{Fake, Reply};
use crate::run;
use crate::shapes::{machine, readiness};

/// What the doctor found: name, result and advice of each check.
fn checks(stdout: &str) -> Vec<(String, String, Option<String>)> {
    let told: Value = serde_json::from_str(stdout).expect("JSON on standard output");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let word = |value: &Value| text(value).expect("every check has it");
    let checks = told["checks"].as_array().expect("a list of checks");
    checks
        .iter()
        .map(|check| {
            let (name, result) = (word(&check["name"]), word(&check["result"]));
            assert_eq!(check["ok"], result == "ok", "{check}");
            (name, result, text(&check["advice"]))
        })
        .collect()
}

fn results(stdout: &str) -> Vec<(String, String)> {
    let all = checks(stdout).into_iter();
    all.map(|(name, result, _)| (name, result)).collect()
}

fn pairs(wanted: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, result): &(&str, &str)| ((*name).to_owned(), (*result).to_owned());
    wanted.iter().map(owned).collect()
}

/// A server that answers what the doctor asks.
async fn doctored(is_ready: bool, machine: Reply) -> Fake {
    let health =
        json!({"active_instances": 0, "healthy": is_ready, "uptime_ms": 5000, "version": "0.1.0"});
    let status = if is_ready { 200 } else { 503 };
    let replies = [
        Reply::json(200, &health),
        Reply::json(status, &readiness(is_ready)),
        machine,
    ];
    Fake::replies(replies).await
}

#[tokio::test]
async fn the_doctor_tells_what_a_server_has() {
    for (is_ready, database, code) in [(true, "ok", Some(0)), (false, "missing", Some(1))] {
        let fake = doctored(is_ready, Reply::json(200, &machine())).await;
        let ran = run(&fake.url(), &["doctor", "--json"]).await;
        assert_eq!(
            results(&ran.stdout),
            pairs(&[
                ("server", "ok"),
                ("database", database),
                ("native images", "ok"),
                ("oci images", "missing"),
                ("wasm images", "missing"),
                ("processes", "ok"),
                ("OCI runtime", "missing"),
                ("network mode isolated", "ok"),
                ("network mode egress", "warning"),
            ])
        );
        let advice = |at: usize| checks(&ran.stdout)[at].2.clone().unwrap_or_default();
        assert_eq!(
            advice(3),
            "use a build of the server that has the runner for oci images"
        );
        assert_eq!(
            advice(6),
            "install it (Debian: apt install runc), or name another"
        );
        assert_eq!(advice(7), "");
        assert_eq!(ran.code, code, "{ran:?}");
        assert_eq!(fake.lines()[2], "GET /api/v1/machine");
    }
}

#[tokio::test]
async fn the_doctor_shows_a_person_what_to_install_below_the_table() {
    let fake = doctored(true, Reply::json(200, &machine())).await;
    let ran = run(&fake.url(), &["doctor"]).await;
    let (table, advice) = ran.stdout.split_once("\n\n").expect("advice is below");
    let row = table
        .lines()
        .find(|row| row.starts_with("network mode egress"));
    let words: Vec<_> = row.unwrap_or_default().split_whitespace().collect();
    assert_eq!(
        words,
        ["network", "mode", "egress", "warning", "no", "slirp4netns"]
    );
    for line in [
        "OCI runtime: install it (Debian: apt install runc), or name another",
        "network mode egress: Debian: apt install slirp4netns",
    ] {
        assert!(
            advice.lines().any(|told| told == line),
            "{line:?} in {advice}"
        );
    }
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[tokio::test]
async fn of_a_machine_that_the_server_does_not_tell_of_the_doctor_says_where_to_ask() {
    let unknown_route =
        json!({"error": "there is no GET /api/v1/machine", "code": "UNKNOWN_ROUTE"});
    for machine in [
        Reply::json(404, &unknown_route),
        Reply::json(500, &json!({"error": "it is broken"})),
        Reply::text(200, "<html>"),
    ] {
        let fake = doctored(true, machine).await;
        let ran = run(&fake.url(), &["doctor", "--json"]).await;
        let (name, result, advice) = checks(&ran.stdout).pop().expect("there are checks");
        assert_eq!((&*name, &*result), ("machine", "unknown"));
        let advice = advice.unwrap_or_default();
        assert!(advice.contains("`runtara-environment doctor`"), "{advice}");
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
}

#[tokio::test]
async fn the_doctor_tells_what_it_cannot_know_without_a_server() {
    // Bound and dropped: nothing listens there now.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let unknown = [
        ("database", "unknown"),
        ("native images", "unknown"),
        ("oci images", "unknown"),
        ("wasm images", "unknown"),
        ("machine", "unknown"),
    ];
    let ran = run(&address, &["doctor", "--json"]).await;
    let found = results(&ran.stdout);
    assert_eq!(found[..1], pairs(&[("server", "missing")]));
    assert_eq!(found[1..], pairs(&unknown));
    assert!(
        ran.stdout
            .contains("`runtara-environment doctor` on the machine of the server"),
        "{ran:?}"
    );
    assert_eq!(ran.code, Some(4), "{ran:?}");

    let fake = Fake::replies([
        Reply::json(200, &json!({"healthy": true, "version": "0.1.0"})),
        Reply::text(200, "<html>"),
    ])
    .await;
    let ran = run(&fake.url(), &["doctor", "--json"]).await;
    let found = results(&ran.stdout);
    assert_eq!(found[..2], pairs(&[("server", "ok"), ("ready", "missing")]));
    assert_eq!(found[2..], pairs(&unknown));
    assert_eq!(ran.code, Some(1), "{ran:?}");
}
