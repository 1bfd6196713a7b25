//! Guests that want out, or that want the server to do too much.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use runtara_tests::http::Request;
use runtara_tests::{Server, Setup, Store, on_both_stores};
use serde_json::json;

use super::{command, component, error_of, text};

const MIB: u64 = 1024 * 1024;

on_both_stores!(
    nothing_of_the_host_can_be_reached,
    absurd_calls_are_refused_and_harm_nobody,
    absurd_growth_is_counted_and_harms_nobody,
    random_calls_are_all_answered_or_end_their_guest_alone,
);

fn nothing_of_the_host_can_be_reached(store: Store) {
    let server = Server::start(store);
    let image = command(&server, "reaches_out");
    assert_eq!(server.launch(&image, &json!({})).output(), json!([]));
}

/// What this process holds in memory, in bytes.
fn resident(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid()));
    let status = status.expect("the server lives");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let words = line.expect("proc(5) has it").split_whitespace();
    let kibibytes: u64 = words
        .clone()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect("a number");
    kibibytes * 1024
}

fn absurd_calls_are_refused_and_harm_nobody(store: Store) {
    let server = Server::start(store);
    let image = component(&server, "calls_absurdly");
    let start = |way: &str| {
        let start = json!({ "args": [way], "max_attempts": 1 });
        server.launch(&image, &start)
    };
    // What is only claimed, or is no text, breaks the rules of the component model.
    for way in ["claimed-name", "claimed-state", "claimed-error", "odd-name"] {
        let found = start(way).wait_for("failed");
        assert_eq!(found["termination_reason"], "crashed", "{way}: {found}");
        assert!(!error_of(&found).is_empty(), "{way}: {found}");
    }
    for way in [
        "long-name",
        "empty-name",
        "empty-state",
        "long-subtype",
        "servers-subtype",
        "long-signal",
        "empty-signal",
    ] {
        let run = start(way);
        let output = run.output();
        let told = output.as_str().unwrap_or_default();
        assert!(told.starts_with("invalid: "), "{way}: {told}");
        assert!(
            told.len() < 2_000,
            "{way} is told at length: {}",
            told.len()
        );
        assert!(run.checkpoints().is_empty(), "{way}");
    }
    for way in ["odd-payload", "odd-output", "long-log"] {
        let run = start(way);
        // Bytes are kept as they are, and whatever is made of a line that is too long, it is not kept whole.
        run.wait_for("completed");
        assert!(run.logs("stream=stderr").body.len() < 1 << 20, "{way}");
    }
    let sleeper = start("endless-sleep");
    // However it is answered: nothing overflows, and it can be stopped.
    sleeper.wait_until("its end or its sleep", |found| {
        found["status_reason"] == "sleeping" || found["status"] == "completed"
    });
    assert!(resident(&server) < 600 * MIB, "{}", resident(&server));
    let quick = command(&server, "exits_with");
    server.launch(&quick, &json!({})).wait_for("completed");
}

fn absurd_growth_is_counted_and_harms_nobody(store: Store) {
    let server = Server::start(store);
    let image = text(&server, "grows_absurdly");
    let limits = json!({ "limits": { "memory_bytes": 8 * MIB }, "max_attempts": 1 });
    let found = server.launch(&image, &limits).wait_for("failed");
    assert_eq!(found["termination_reason"], "crashed", "{found}");
    assert!(
        error_of(&found).contains("memory limit of 8 MiB exceeded"),
        "{found}"
    );
    let peak = found["memory_peak_bytes"].as_u64().unwrap_or_default();
    assert!(peak <= 8 * MIB, "{found}");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

fn random_calls_are_all_answered_or_end_their_guest_alone(store: Store) {
    const GUESTS: u64 = 80;
    const CALLS: &str = "60";
    let server = Server::start(store);
    let image = component(&server, "calls_at_random");
    // What is random follows from the number of a guest: whatever goes wrong goes wrong again.
    let ids: Vec<_> = (0..GUESTS)
        .map(|seed| {
            let words = if seed % 2 == 0 { "words" } else { "" };
            let start = json!({
                "instance_id": format!("random-{seed}"), "args": [seed.to_string(), CALLS, words], "max_attempts": 1,
            });
            server.launch(&image, &start).id
        })
        .collect();
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    for id in &ids {
        let run = server.instance(id);
        let found = run.wait_until("any end, or a wait", |found| {
            let waits = ["sleeping", "waiting_signal", "paused"];
            let reason = found["status_reason"].as_str().unwrap_or_default();
            found["finished_at_ms"].is_i64() || waits.contains(&reason)
        });
        run.wait_until_no_process();
        let names = ["status_reason", "termination_reason", "status"];
        let end = names.iter().find_map(|name| found[*name].as_str());
        *ends.entry(end.unwrap_or("?").to_owned()).or_default() += 1;
        if found["termination_reason"] == "crashed" {
            assert!(!error_of(&found).is_empty(), "{found}");
        }
        // Whatever was written can be read.
        assert!(run.checkpoints().iter().all(|name| !name.is_empty()));
        assert!(!run.event_names().is_empty(), "{found}");
    }
    let count = |end: &str| ends.get(end).copied().unwrap_or_default();
    assert!(
        count("completed") >= GUESTS / 20 && count("crashed") >= GUESTS / 5,
        "they were too sane, or too mad: {ends:?}"
    );
    let health = server.ask(&Request::get("/api/v1/health")).expect(200);
    assert_eq!(health["active_instances"], 0, "{health}");
    assert!(!server.log().contains("panicked"), "{}", server.log());
    assert!(resident(&server) < 600 * MIB, "{}", resident(&server));
    let quick = component(&server, "workflow");
    assert_eq!(server.launch(&quick, &json!({})).output()["sum"], 6);
}

#[test]
fn output_is_kept_up_to_a_limit_and_the_guest_comes_to_its_end() {
    let server = Setup::new(Store::Sqlite)
        .variable("RUNTARA_LOG_BYTES", &MIB.to_string())
        .start();
    let image = command(&server, "writes_much");
    let run = server.launch(&image, &json!({ "args": ["256"] }));
    let looked = run.wait_until_within(Duration::from_secs(120), "its end", |found| {
        found["status"] == "completed" || found["status"] == "failed"
    });
    // Its output is no JSON and too much of it: what becomes of that is as for all other programs.
    assert_eq!(
        run.logs("stream=stderr").text(),
        "all written\n",
        "{looked}"
    );
    assert!(looked["output"].is_null(), "{looked}");
    let kept = run.logs("stream=stdout").body.len() as u64;
    assert!(kept <= 2 * MIB, "{kept}");
    assert!(resident(&server) < 600 * MIB, "{}", resident(&server));
}
