//! Runs that live and are silent, instances that outlive their deadline, and how much of either one tenant may have.

use std::thread::sleep;
use std::time::{Duration, Instant};

use runtara_tests::{
    Ground, PrivatePostgres, Run, Server, Setup, Store, eventually, holds_for, in_every_kind,
    milliseconds, on_both_stores, processes,
};
use serde_json::{Value, json};

/// The shortest heartbeat timeout there is, in seconds.
const SHORTEST: u64 = 10;
/// As long as silence lasts until it is judged: signs of life are noted only each five seconds. A little longer.
const JUDGED: Duration = Duration::from_secs(SHORTEST + 6);

on_both_stores!(
    a_silent_run_is_ended_and_brought_back,
    a_program_that_never_speaks_is_silent_too,
    a_server_that_is_away_makes_no_run_silent,
    a_deadline_holds_while_no_server_lives,
    what_cannot_be_a_limit_of_time_is_refused,
    what_registered_itself_lapses_by_its_own_silence,
);

in_every_kind!(an_instance_ends_by_its_deadline_wherever_it_stands,);

fn watched(actions: &Value) -> Value {
    json!({ "input": { "actions": actions }, "heartbeat_timeout_seconds": SHORTEST })
}

fn lives(process: &processes::Process) -> Result<(), &'static str> {
    match processes::lives(process.pid) {
        true => Ok(()),
        false => Err("its process is gone"),
    }
}

fn until_it_saved<'a>(server: &'a Server, id: &str, name: &str) -> Run<'a> {
    eventually("its checkpoint", || {
        match server
            .instance(id)
            .checkpoints()
            .iter()
            .any(|saved| saved == name)
        {
            true => Ok(()),
            false => Err(()),
        }
    });
    server.instance(id)
}

fn a_silent_run_is_ended_and_brought_back(store: Store) {
    let server = Server::start(store);
    let began = Instant::now();
    let run = server.launch(
        &server.scripted(),
        &watched(&json!([
            { "checkpoint": { "id": "a", "value": 1 } },
            { "on_run": 1, "do": { "hang": true } },
            { "checkpoint": { "id": "b", "value": 2 } },
        ])),
    );
    let process = run.wait_for_process();
    let found = run.wait_within(Duration::from_secs(60), "completed");
    assert!(began.elapsed() >= Duration::from_secs(SHORTEST));
    assert!(!processes::lives(process.pid));
    assert_eq!(
        (&found["run_number"], &found["heartbeat_timeout_ms"]),
        (&json!(2), &json!(SHORTEST * 1_000)),
        "{found}"
    );
    let crash = run
        .events()
        .into_iter()
        .find(|event| event["subtype"] == "runtara.crashed");
    let crash = crash.expect("it is told that it crashed");
    let told = runtara_tests::from_base64(&crash["payload"]);
    let told: Value = serde_json::from_str(&told).expect("it is JSON");
    assert_eq!(told["reason"], "heartbeat_timeout", "{told}");
    assert!(
        told["silent_ms"].as_u64() >= Some(SHORTEST * 1_000),
        "{told}"
    );
}

fn a_program_that_never_speaks_is_silent_too(store: Store) {
    let server = Server::start(store);
    let run = server.launch(
        &server.shell("sleep 600"),
        &json!({ "heartbeat_timeout_seconds": SHORTEST, "max_attempts": 1 }),
    );
    let found = run.wait_within(Duration::from_secs(60), "failed");
    assert_eq!(found["termination_reason"], "heartbeat_timeout", "{found}");
    let error = found["error"].as_str().unwrap_or_default();
    assert!(error.contains("never spoke"), "{error}");
    run.wait_until_no_process();
}

/// It makes no call for longer than it may be silent, and nobody could have heard one.
fn a_server_that_is_away_makes_no_run_silent(store: Store) {
    let mut server = Server::start(store);
    let actions = json!([
        { "checkpoint": { "id": "a", "value": 1 } },
        { "until_file": server.shared().path("go") },
        { "checkpoint": { "id": "b", "value": 2 } },
    ]);
    let id = server.launch(&server.scripted(), &watched(&actions)).id;
    let process = until_it_saved(&server, &id, "a").wait_for_process();
    server.kill_9();
    sleep(JUDGED);
    server.start_again();
    holds_for(Duration::from_secs(5), "it runs", || lives(&process));
    server.shared().touch("go");
    let run = server.instance(&id);
    let found = run.wait_within(Duration::from_secs(60), "completed");
    assert_eq!(found["retry_count"], 0, "{found}");
    let names = run.event_names();
    assert!(
        !names.iter().any(|name| name == "runtara.crashed"),
        "{names:?}"
    );
}

fn an_instance_ends_by_its_deadline_wherever_it_stands(ground: Ground) {
    let server = Server::start(ground);
    let limited = |actions: Value, more: &[(&str, Value)]| {
        let mut body = json!({ "input": { "actions": actions }, "expires_in_seconds": 6 });
        for (name, value) in more {
            body[name] = value.clone();
        }
        server.launch(&server.scripted(), &body)
    };
    let hang = json!([{ "checkpoint": "a" }, { "hang": true }]);
    let asleep = json!([{ "checkpoint": "a" }, { "sleep": { "id": "s", "ms": 3_600_000 } }]);
    let began = Instant::now();
    let runs = [
        limited(hang.clone(), &[]),
        limited(asleep, &[]),
        limited(hang, &[("delay_ms", json!(3_600_000))]),
    ];
    let by = milliseconds() + 6_500;
    for run in &runs {
        let found = run.wait_within(Duration::from_secs(60), "failed");
        assert_eq!(found["termination_reason"], "timeout", "{found}");
        let error = found["error"].as_str().unwrap_or_default();
        assert!(error.contains("overall deadline"), "{error}");
        assert!(found["expires_at_ms"].as_i64() <= Some(by), "{found}");
        let refused = run.post("/resume", &json!({}));
        assert!(refused.text().contains("overall deadline"), "{refused}");
        assert_eq!(run.status()["status"], "failed");
        if found["run_number"] != 0 {
            run.wait_until_no_process();
        }
    }
    assert!(began.elapsed() >= Duration::from_secs(6));
}

fn a_deadline_holds_while_no_server_lives(store: Store) {
    let mut server = Server::start(store);
    let id = server
        .launch(
            &server.program("ignores_sigterm"),
            &json!({ "expires_in_seconds": 3 }),
        )
        .id;
    let process = server.instance(&id).wait_for_process();
    server.kill_9();
    eventually("the end of the program", || {
        match processes::lives(process.pid) {
            true => Err(()),
            false => Ok(()),
        }
    });
    server.start_again();
    let found = server.instance(&id).wait_for("failed");
    assert_eq!(found["termination_reason"], "timeout", "{found}");
    let error = found["error"].as_str().unwrap_or_default();
    assert!(error.contains("overall deadline"), "{error}");
    assert_eq!(found["run_number"], 1, "{found}");
}

fn what_cannot_be_a_limit_of_time_is_refused(store: Store) {
    let server = Server::start(store);
    let image = server.program("exits_with");
    for (more, code) in [
        (
            json!({ "heartbeat_timeout_seconds": SHORTEST - 1 }),
            "INVALID_HEARTBEAT_TIMEOUT",
        ),
        (
            json!({ "heartbeat_timeout_seconds": u64::MAX }),
            "INVALID_HEARTBEAT_TIMEOUT",
        ),
        (json!({ "expires_at": "tomorrow" }), "INVALID_EXPIRY"),
        (
            json!({ "expires_at": "9999-01-01T00:00:00Z" }),
            "INVALID_EXPIRY",
        ),
        (json!({ "expires_in_seconds": 0 }), "INVALID_EXPIRY"),
        (
            json!({ "expires_in_seconds": 5, "expires_at": "2030-01-01T00:00:00Z" }),
            "INVALID_EXPIRY",
        ),
    ] {
        server.try_launch(&image, &more).refuses(400, code);
    }
    let start = json!({ "instance_id": "late", "expires_at": "2020-01-01T00:00:00.000Z" });
    let run = server.launch(&image, &start);
    let found = run.wait_for("failed");
    assert_eq!(found["expires_at_ms"], 1_577_836_800_000_i64, "{found}");
    let again = server.try_launch(&image, &start).expect(200);
    assert_eq!(again["deduplicated"], true, "{again}");
}

fn what_registered_itself_lapses_by_its_own_silence(store: Store) {
    let mut server = Setup::new(store)
        .variable("RUNTARA_SELF_REGISTERED_TIMEOUT", "10")
        .start();
    server.self_register("own-1");
    // However long it was not there itself.
    server.kill_9_and_restart();
    holds_for(Duration::from_secs(5), "it runs", || {
        let found = server.instance("own-1").status();
        if found["status"] == "running" {
            Ok(())
        } else {
            Err(found)
        }
    });
    let found = server
        .instance("own-1")
        .wait_within(Duration::from_secs(60), "failed");
    assert_eq!(found["termination_reason"], "heartbeat_timeout", "{found}");
}

/// What happens while the database is away, with a PostgreSQL of its own.
mod heavy {
    use super::*;

    #[test]
    fn a_database_that_is_away_makes_no_run_silent() {
        let postgres = PrivatePostgres::start();
        let server = Setup::in_postgres(&postgres.url()).start();
        let actions = json!([
            { "checkpoint": { "id": "a", "value": 1 } },
            { "until_file": server.shared().path("go") },
            { "checkpoint": { "id": "b", "value": 2 } },
        ]);
        let id = server.launch(&server.scripted(), &watched(&actions)).id;
        let process = until_it_saved(&server, &id, "a").wait_for_process();
        postgres.crash();
        sleep(JUDGED);
        postgres.start_again();
        holds_for(Duration::from_secs(5), "it runs", || lives(&process));
        server.shared().touch("go");
        let run = server.instance(&id);
        let found = run.wait_within(Duration::from_secs(60), "completed");
        assert_eq!(
            (&found["run_number"], &found["retry_count"]),
            (&json!(1), &json!(0)),
            "{found}"
        );
    }
}
