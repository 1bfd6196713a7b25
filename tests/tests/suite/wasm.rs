//! WebAssembly guests: commands, durable programs, and what they may not do.

use std::time::{Duration, Instant};

use runtara_tests::{Image, Run, Server, Setup, Store, TENANT, guest, on_both_stores};
use serde_json::{Value, json};

on_both_stores!(
    a_command_is_told_by_its_content_and_its_code_decides,
    a_command_sees_its_arguments_and_variables_and_nothing_of_the_server,
    nothing_of_the_host_is_reached,
    what_cannot_run_is_refused_with_the_reason,
    settings_that_guests_do_not_have_are_refused,
    a_workflow_does_each_step_once,
    a_long_sleep_takes_no_guest,
    a_signal_wakes_whoever_waits_for_it,
    cancel_and_pause_are_obeyed,
    last_words_and_reports_are_those_of_the_protocol,
    calls_that_are_not_acceptable_are_answered,
    a_guest_that_computes_for_ever_is_ended_in_time,
    memory_beyond_the_limit_ends_a_guest,
    a_trap_is_told_with_the_way_to_it,
    outputs_are_capped,
    a_stop_ends_whoever_does_not_listen_at_once,
    a_killed_server_loses_nothing_and_repeats_no_saved_step,
    a_server_that_leaves_parks_its_guests,
    two_hundred_in_flight_survive_a_kill,
);

fn register(server: &Server, name: &str, content: &[u8]) -> Image {
    let texts = [("tenant_id", TENANT), ("name", name)];
    server.upload(&texts, content).image()
}

fn command(server: &Server, name: &str) -> Image {
    register(server, name, &guest::command(name))
}

fn component(server: &Server, name: &str) -> Image {
    register(server, name, &guest::component(name))
}

/// Launches the scripted guest.
fn script<'a>(server: &'a Server, image: &Image, lines: &[&str]) -> Run<'a> {
    server.launch(image, &json!({ "input": lines }))
}

fn error(found: &Value) -> &str {
    found["error"].as_str().unwrap_or_default()
}

fn a_command_is_told_by_its_content_and_its_code_decides(store: Store) {
    let server = Server::start(store);
    let image = command(&server, "exits_with");
    assert_eq!(server.image(&image)["runner_type"], "wasm");
    let done = server.launch(&image, &json!({}));
    assert_eq!(done.output(), json!({ "code": 0 }));
    assert!(done.processes().is_empty());
    let failed = server.launch(&image, &json!({ "args": ["3"] }));
    let found = failed.wait_for("failed");
    assert_eq!(found["termination_reason"], "application_error", "{found}");
    assert!(error(&found).contains("leaving with 3"), "{found}");
    assert_eq!(failed.logs("stream=stderr").text(), "leaving with 3\n");
    assert_eq!(failed.logs("stream=stdout").text(), "{\"code\":3}\n");
    assert!(
        found["memory_peak_bytes"].as_u64().unwrap_or_default() >= 65_536,
        "{found}"
    );
}

fn a_command_sees_its_arguments_and_variables_and_nothing_of_the_server(store: Store) {
    let setup = Setup::new(store).variable("PRIVATE_TO_THE_SERVER", "secret-value");
    let server = setup.start();
    let image = command(&server, "shows_environment");
    let more = json!({ "args": ["a b", "\"c\""], "env": { "GREETING": "hello" } });
    let run = server.launch(&image, &more);
    let output = run.output().to_string();
    for wanted in ["a b", "GREETING=hello", "RUNTARA_RUN_NUMBER=1"] {
        assert!(output.contains(wanted), "{wanted}: {output}");
    }
    for secret in [
        "secret-value",
        "postgres://",
        "sqlite:",
        "/r/",
        "RUNTARA_HTTP_URL",
    ] {
        assert!(!output.contains(secret), "{secret}: {output}");
    }
}

fn nothing_of_the_host_is_reached(store: Store) {
    let server = Server::start(store);
    let run = server.launch(&command(&server, "reaches_out"), &json!({}));
    assert_eq!(run.output(), json!([]));
}

fn what_cannot_run_is_refused_with_the_reason(store: Store) {
    let server = Server::start(store);
    for (name, reason) in [
        ("imports_the_unknown", "which is not offered"),
        (
            "imports_the_unknown_component",
            "imports what is not offered",
        ),
        ("has_no_start", "'_start'"),
    ] {
        let texts = [("tenant_id", TENANT), ("name", name)];
        let refused = server.upload(&texts, &guest::text(name)).expect(400);
        assert_eq!(refused["code"], "IMAGE_NOT_RUNNABLE", "{refused}");
        assert!(error(&refused).contains(reason), "{refused}");
    }
}

fn settings_that_guests_do_not_have_are_refused(store: Store) {
    let server = Server::start(store);
    let image = command(&server, "exits_with");
    for settings in [
        json!({ "limits": { "pids": 5 } }),
        json!({ "network": "egress" }),
        json!({ "limits": { "memory_bytes": 1_u64 << 40 } }),
    ] {
        let refused = server.try_launch(&image, &settings).expect(400);
        assert_eq!(refused["code"], "INVALID_SETTINGS", "{refused}");
    }
}

fn a_workflow_does_each_step_once(store: Store) {
    let server = Server::start(store);
    let run = server.launch(&component(&server, "workflow"), &json!({ "args": ["5"] }));
    assert_eq!(run.output(), json!({ "sum": 15, "run": 1, "bodies": 5 }));
    assert_eq!(run.checkpoints().len(), 5);
}

fn a_long_sleep_takes_no_guest(store: Store) {
    let server = Setup::new(store)
        .variable("RUNTARA_SLEEP_HOLD_MS", "0")
        .start();
    let image = component(&server, "scripted");
    let far = script(
        &server,
        &image,
        &["checkpoint a 1", "sleep 86400000", "checkpoint b 2"],
    );
    let found = far.wait_for_reason("sleeping");
    assert_eq!(found["status"], "suspended", "{found}");
    assert!(found["due_at_ms"].is_i64(), "{found}");
    let near = script(
        &server,
        &image,
        &["checkpoint a 1", "sleep 300", "checkpoint b 2"],
    );
    let output = near.output();
    assert_eq!(output["run"], 2, "{output}");
    assert_eq!(output["seen"], json!({ "a": 1, "b": 2 }));
    let bodies = near
        .event_names()
        .iter()
        .filter(|name| *name == "custom/body")
        .count();
    assert_eq!(bodies, 2, "{:?}", near.event_names());
    assert_eq!(far.status()["status"], "suspended");
}

fn a_signal_wakes_whoever_waits_for_it(store: Store) {
    let server = Setup::new(store)
        .variable("RUNTARA_SLEEP_HOLD_MS", "0")
        .start();
    let image = component(&server, "scripted");
    let run = script(&server, &image, &["wait approval 600000"]);
    run.wait_for_reason("waiting_signal");
    run.custom_signal("approval", "{\"by\":\"me\"}");
    let output = run.output();
    assert_eq!(
        output["seen"]["approval"],
        json!({ "by": "me" }),
        "{output}"
    );
    let late = script(&server, &image, &["wait approval 100"]);
    assert_eq!(late.output()["seen"]["approval"], "timed out");
}

fn cancel_and_pause_are_obeyed(store: Store) {
    let server = Server::start(store);
    let image = component(&server, "steps_until_told");
    let cancelled = server.launch(&image, &json!({}));
    cancelled.wait_for("running");
    assert_eq!(cancelled.signal("cancel").expect(200)["success"], true);
    cancelled.wait_for("cancelled");
    let paused = server.launch(&image, &json!({}));
    paused.wait_for("running");
    assert_eq!(paused.signal("pause").expect(200)["success"], true);
    let found = paused.wait_for_reason("paused");
    assert_eq!(found["status"], "suspended", "{found}");
    paused.resume();
    paused.wait_for("running");
    assert_eq!(paused.signal("cancel").expect(200)["success"], true);
    assert_eq!(paused.wait_for("cancelled")["run_number"], 2);
}

fn last_words_and_reports_are_those_of_the_protocol(store: Store) {
    let server = Server::start(store);
    let image = component(&server, "scripted");
    let failed = script(&server, &image, &["fail out of paper"]);
    assert_eq!(error(&failed.wait_for("failed")), "out of paper");
    let lines = [
        "heartbeat",
        "event order.read {\"n\":1}",
        "retry pay 2 busy",
        "log warn careful",
        "complete {\"ok\":true}",
    ];
    let done = script(&server, &image, &lines);
    assert_eq!(done.output(), json!({ "ok": true }));
    let names = done.event_names();
    for name in ["heartbeat", "custom/order.read", "completed"] {
        assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
    }
    assert!(
        done.logs("stream=stderr")
            .text()
            .contains("warn: careful\n")
    );
    let suspended = script(&server, &image, &["on 1 suspend", "complete 7"]);
    suspended.wait_for("suspended");
    suspended.resume();
    assert_eq!(suspended.output(), 7);
}

fn calls_that_are_not_acceptable_are_answered(store: Store) {
    let server = Server::start(store);
    let image = component(&server, "scripted");
    let run = script(
        &server,
        &image,
        &["tolerate event runtara.mine 1", "complete 1"],
    );
    assert_eq!(run.output(), 1);
    let run = script(&server, &image, &["tolerate event runtara.mine 1"]);
    let output = run.output();
    let error = output["seen"]["error"].as_str().unwrap_or_default();
    assert!(error.contains("which only the server writes"), "{output}");
    // The server is as well as before.
    let absurd = component(&server, "calls_absurdly");
    let runs = ["long-name", "long-state", "claimed-state", "invalid-utf8"]
        .map(|way| server.launch(&absurd, &json!({ "args": [way], "max_attempts": 1 })));
    for run in runs {
        run.wait_until("its end", |found| {
            ["completed", "failed"].contains(&found["status"].as_str().unwrap_or_default())
        });
    }
    assert_eq!(script(&server, &image, &["complete 2"]).output(), 2);
}

fn a_guest_that_computes_for_ever_is_ended_in_time(store: Store) {
    let server = Server::start(store);
    let spins = command(&server, "spins");
    let runs: Vec<_> = (0..4)
        .map(|_| server.launch(&spins, &json!({ "timeout_seconds": 2 })))
        .collect();
    // The server and other guests have their turn meanwhile.
    let before = Instant::now();
    let other = server.launch(&command(&server, "exits_with"), &json!({}));
    assert_eq!(other.output(), json!({ "code": 0 }));
    assert!(
        before.elapsed() < Duration::from_secs(20),
        "{:?}",
        before.elapsed()
    );
    for run in runs {
        let found = run.wait_for("failed");
        assert_eq!(found["termination_reason"], "timeout", "{found}");
    }
}

fn memory_beyond_the_limit_ends_a_guest(store: Store) {
    let server = Server::start(store);
    let image = command(&server, "allocates_without_end");
    let more = json!({ "limits": { "memory_bytes": 8 << 20 }, "max_attempts": 1 });
    let found = server.launch(&image, &more).wait_for("failed");
    assert!(
        error(&found).contains("memory limit of 8 MiB exceeded"),
        "{found}"
    );
}

fn a_trap_is_told_with_the_way_to_it(store: Store) {
    let server = Server::start(store);
    let image = command(&server, "traps");
    let more = json!({ "args": ["unreachable"], "max_attempts": 1 });
    let found = server.launch(&image, &more).wait_for("failed");
    assert_eq!(found["termination_reason"], "crashed", "{found}");
    assert!(error(&found).contains("unreachable"), "{found}");
    assert!(error(&found).contains("innermost_function"), "{found}");
    let recursion = register(&server, "recursion", &guest::text("recurses_without_end"));
    let found = server
        .launch(&recursion, &json!({ "max_attempts": 1 }))
        .wait_for("failed");
    assert!(error(&found).contains("stack"), "{found}");
}

fn outputs_are_capped(store: Store) {
    let server = Setup::new(store)
        .variable("RUNTARA_LOG_BYTES", "131072")
        .start();
    let run = server.launch(&command(&server, "writes_much"), &json!({ "args": ["64"] }));
    let found = run.wait_for("completed");
    assert!(found["output"].is_null(), "{found}");
    let kept = run.logs("stream=stdout").text().len();
    assert!((1..=131_072).contains(&kept), "{kept}");
}

fn a_stop_ends_whoever_does_not_listen_at_once(store: Store) {
    let server = Server::start(store);
    let run = server.launch(&command(&server, "spins"), &json!({}));
    run.wait_for("running");
    let before = Instant::now();
    let _stopped = run.stop(20);
    assert_eq!(run.wait_for("cancelled")["run_number"], 1);
    assert!(
        before.elapsed() < Duration::from_secs(10),
        "{:?}",
        before.elapsed()
    );
}

fn a_killed_server_loses_nothing_and_repeats_no_saved_step(store: Store) {
    let mut server = Server::start(store);
    let image = component(&server, "workflow");
    let id = {
        let run = server.launch(&image, &json!({ "args": ["40", "20"] }));
        run.wait_until("some steps", |_| run.checkpoints().len() >= 5);
        run.id.clone()
    };
    server.kill_9_and_restart();
    let run = server.instance(&id);
    let output = run.output();
    assert_eq!(
        (&output["sum"], &output["run"]),
        (&json!(820), &json!(2)),
        "{output}"
    );
    // The one that was being done may have been done twice; none that was saved.
    let bodies = run
        .events()
        .iter()
        .filter(|event| event["subtype"] == "body")
        .count();
    assert!((40..=41).contains(&bodies), "{bodies}");
    assert_eq!(run.status()["retry_count"], 0);
}

fn a_server_that_leaves_parks_its_guests(store: Store) {
    let mut server = Server::start(store);
    let image = component(&server, "workflow");
    let ids: Vec<_> = (0..10)
        .map(|_| {
            let run = server.launch(&image, &json!({ "args": ["40", "20"] }));
            run.wait_until("some steps", |_| run.checkpoints().len() >= 2);
            run.id.clone()
        })
        .collect();
    assert!(server.sigterm().success());
    server.start_again();
    for id in ids {
        let run = server.instance(&id);
        assert_eq!(run.output()["sum"], 820);
        assert_eq!(run.status()["retry_count"], 0);
    }
}

fn two_hundred_in_flight_survive_a_kill(store: Store) {
    let mut server = Server::start(store);
    let image = component(&server, "workflow");
    let ids: Vec<_> = (0..200)
        .map(|_| {
            let run = server.launch(&image, &json!({ "args": ["5", "200"] }));
            run.id.clone()
        })
        .collect();
    server.kill_9_and_restart();
    for id in ids {
        let run = server.instance(&id);
        let found = run.wait_within(Duration::from_secs(120), "completed");
        assert_eq!(found["retry_count"], 0, "{found}");
        assert_eq!(run.output()["sum"], 15);
    }
}
