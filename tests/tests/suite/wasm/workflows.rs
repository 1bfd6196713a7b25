//! Durable programs: their steps, sleeps, waits and last words.

use std::time::Duration;

use runtara_tests::{Server, Store, eventually, guest, holds_for, on_both_stores};
use serde_json::{Value, json};

use super::{bodies, component, error_of, follow, server_that_parks, try_register};

on_both_stores!(
    a_workflow_completes_with_what_it_says,
    a_failure_is_the_last_word_and_a_resume_repeats_no_step,
    a_trap_goes_on_from_the_checkpoints,
    a_run_that_leaves_without_its_word_has_crashed,
    a_short_sleep_is_held,
    a_long_sleep_costs_a_row_and_is_woken,
    sleepers_are_cancelled_paused_and_resumed,
    a_wait_ends_with_the_signal_or_with_its_time,
    a_signal_that_is_there_is_taken,
    a_signal_comes_with_the_checkpoint_of_its_name,
    a_cancel_or_a_pause_reaches_a_program_between_steps,
    a_program_that_suspends_itself_is_resumed,
    what_it_reports_is_kept,
    late_words_are_answered_and_change_nothing,
    sleeping_time_is_no_running_time,
    a_stop_reaches_a_program_that_waits,
);

fn a_workflow_completes_with_what_it_says(store: Store) {
    let server = Server::start(store);
    let image = component(&server, "workflow");
    let run = server.launch(&image, &json!({ "args": ["10"] }));
    assert_eq!(run.output(), json!({ "sum": 55, "run": 1, "bodies": 10 }));
    let names: Vec<_> = (1..=10).map(|n| format!("step-{n}")).collect();
    assert_eq!(run.checkpoints(), names);
    let done: Vec<_> = names.into_iter().map(|name| (name, 1)).collect();
    assert_eq!(bodies(&run), done);
    assert!(run.processes().is_empty(), "it is in the server's own");
    let found = run.status();
    assert_eq!(found["termination_reason"], "completed", "{found}");
}

fn a_failure_is_the_last_word_and_a_resume_repeats_no_step(store: Store) {
    let server = Server::start(store);
    let run = follow(
        &server,
        &[
            "checkpoint a 1",
            "on 1 fail no money",
            "on 1 leave 0",
            "checkpoint b 2",
        ],
    );
    let found = run.wait_for("failed");
    assert_eq!(
        (
            &found["error"],
            &found["termination_reason"],
            &found["run_number"]
        ),
        (&json!("no money"), &json!("application_error"), &json!(1)),
        "{found}"
    );
    run.resume();
    assert_eq!(
        run.output(),
        json!({ "run": 2, "seen": { "a": 1, "b": 2 } })
    );
    assert_eq!(bodies(&run), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
}

fn a_trap_goes_on_from_the_checkpoints(store: Store) {
    let server = Server::start(store);
    let run = follow(
        &server,
        &[
            "checkpoint a",
            "on 1 trap",
            "checkpoint b",
            "on 2 trap",
            "checkpoint c",
        ],
    );
    assert_eq!(
        run.output(),
        json!({ "run": 3, "seen": { "a": 1, "b": 2, "c": 3 } }),
        "each step gives what the run saved that did it"
    );
    let done = [("a", 1), ("b", 2), ("c", 3)].map(|(name, run)| (name.to_owned(), run));
    assert_eq!(bodies(&run), done);
    let names = run.event_names();
    let crashes = names
        .iter()
        .filter(|name| *name == "custom/runtara.crashed");
    assert_eq!(crashes.count(), 2, "{names:?}");
}

fn a_run_that_leaves_without_its_word_has_crashed(store: Store) {
    let server = Server::start(store);
    for code in [0, 7] {
        let leave = format!("on 1 leave {code}");
        let run = follow(
            &server,
            &["checkpoint a", &leave, "complete true", "leave 0"],
        );
        assert_eq!(run.output(), true, "{}", run.story());
        assert_eq!(run.status()["run_number"], 2);
    }
}

fn a_short_sleep_is_held(store: Store) {
    let server = Server::start(store);
    let run = follow(
        &server,
        &["sleep 700 nap \"zz\"", "sleep 50", "checkpoint a"],
    );
    let output = run.output();
    assert_eq!(output["run"], 1, "{}", run.story());
    assert_eq!(run.checkpoints().first().map(String::as_str), Some("nap"));
}

fn a_long_sleep_costs_a_row_and_is_woken(store: Store) {
    let server = server_that_parks(store);
    let run = follow(
        &server,
        &[
            "checkpoint a",
            "sleep 3000 nap \"zz\"",
            "checkpoint b",
            "sleep 2000",
            "checkpoint c",
        ],
    );
    let found = run.wait_for_reason("sleeping");
    assert_eq!(found["status"], "suspended", "{found}");
    assert!(found["due_at_ms"].is_i64(), "{found}");
    let output = run.output();
    assert_eq!(
        output,
        json!({ "run": 3, "seen": { "a": 1, "b": 2, "c": 3 } }),
        "{}",
        run.story()
    );
    let done = [("a", 1), ("b", 2), ("c", 3)].map(|(name, run)| (name.to_owned(), run));
    assert_eq!(bodies(&run), done);
    let found = run.status();
    let slept = found["time_in_states_ms"]["suspended"]
        .as_u64()
        .unwrap_or_default();
    assert!(slept >= 4_000, "{found}");
}

fn sleepers_are_cancelled_paused_and_resumed(store: Store) {
    let server = server_that_parks(store);
    let image = component(&server, "scripted");
    let start = || {
        let input = json!({ "input": ["sleep 86400000 nap 1", "checkpoint after"] });
        let run = server.launch(&image, &input);
        run.wait_for_reason("sleeping");
        run
    };
    let cancelled = start();
    assert_eq!(cancelled.signal("cancel").expect(200)["success"], true);
    assert_eq!(cancelled.wait_for("cancelled")["run_number"], 1);
    let stopped = start();
    assert_eq!(stopped.stop(5)["status"], "cancelled");
    let paused = start();
    assert_eq!(paused.signal("pause").expect(200)["success"], true);
    paused.wait_for_reason("paused");
    paused.resume();
    let again = paused.wait_until("its second sleep", |found| {
        found["status_reason"] == "sleeping" && found["run_number"] == 2
    });
    assert!(
        again["due_at_ms"].is_i64(),
        "it still owes the remainder: {again}"
    );
    assert!(bodies(&paused).is_empty());
}

fn a_wait_ends_with_the_signal_or_with_its_time(store: Store) {
    let server = server_that_parks(store);
    let run = follow(&server, &["wait go", "checkpoint a"]);
    let found = run.wait_for_reason("waiting_signal");
    assert!(found["due_at_ms"].is_null(), "{found}");
    run.custom_signal("go", "{\"n\":5}");
    assert_eq!(
        run.output(),
        json!({ "run": 2, "seen": { "go": { "n": 5 }, "a": 2 } }),
        "{}",
        run.story()
    );
    let timed = follow(&server, &["wait go 1500", "checkpoint a"]);
    timed.wait_for_reason("waiting_signal");
    assert_eq!(timed.output()["seen"]["go"], "timed out");
    let held = Server::start(store);
    let run = follow(&held, &["print ready", "wait go 8000"]);
    let _ready = run.wait_for_line("ready");
    run.custom_signal("go", "1");
    assert_eq!(run.output(), json!({ "run": 1, "seen": { "go": 1 } }));
}

fn a_signal_that_is_there_is_taken(store: Store) {
    let server = Server::start(store);
    let run = follow(
        &server,
        &[
            "take early",
            "print ready",
            "wait go 8000",
            "take early",
            "checkpoint a",
            "take early",
        ],
    );
    let _ready = run.wait_for_line("ready");
    run.custom_signal("early", "12");
    run.custom_signal("go", "1");
    let text = runtara_tests::from_base64(&run.wait_for("completed")["output"]);
    assert_eq!(
        text,
        "{\"run\":1,\"seen\":{\"early\":\"nothing\",\"go\":1,\"early\":12,\"a\":1,\"early\":\"nothing\"}}"
    );
}

fn a_signal_comes_with_the_checkpoint_of_its_name(store: Store) {
    let server = Server::start(store);
    let script = [
        "checkpoint a",
        "print ready",
        "wait go 8000",
        "checkpoint a",
    ];
    let run = follow(&server, &script);
    let _ready = run.wait_for_line("ready");
    run.custom_signal("a", "5");
    run.custom_signal("go", "1");
    assert_eq!(run.output()["seen"]["signal of a"], 5, "{}", run.story());
}

fn a_cancel_or_a_pause_reaches_a_program_between_steps(store: Store) {
    let server = Server::start(store);
    let image = component(&server, "steps_until_told");
    let start = || {
        let run = server.launch(&image, &json!({}));
        eventually("a few steps", || {
            let made = run.checkpoints().len();
            if made >= 3 { Ok(()) } else { Err(made) }
        });
        run
    };
    let cancelled = start();
    assert_eq!(cancelled.signal("cancel").expect(200)["success"], true);
    let found = cancelled.wait_for("cancelled");
    assert_eq!(found["termination_reason"], "cancelled", "{found}");
    let made = cancelled.checkpoints();
    holds_for(Duration::from_millis(300), "silence", || {
        let now = cancelled.checkpoints();
        if now == made { Ok(()) } else { Err(now) }
    });
    let paused = start();
    assert_eq!(paused.signal("pause").expect(200)["success"], true);
    paused.wait_for_reason("paused");
    let before = paused.checkpoints().len();
    paused.resume();
    eventually("further steps", || {
        let made = paused.checkpoints().len();
        if made > before { Ok(()) } else { Err(made) }
    });
    assert_eq!(paused.status()["run_number"], 2);
    assert_eq!(paused.stop(10)["status"], "cancelled");
    let polled = follow(&server, &["poll", "print ready", "obey"]);
    let _ready = polled.wait_for_line("ready");
    assert_eq!(polled.signal("cancel").expect(200)["success"], true);
    polled.wait_for("cancelled");
}

fn a_program_that_suspends_itself_is_resumed(store: Store) {
    let server = Server::start(store);
    let run = follow(&server, &["checkpoint a", "on 1 suspend", "checkpoint b"]);
    let found = run.wait_until("its suspension", |found| found["status"] == "suspended");
    assert!(found["due_at_ms"].is_null(), "{found}");
    run.resume();
    assert_eq!(
        run.output(),
        json!({ "run": 2, "seen": { "a": 1, "b": 2 } })
    );
}

fn what_it_reports_is_kept(store: Store) {
    let server = Server::start(store);
    let script = [
        "heartbeat",
        "event order.paid {\"n\":1}",
        "event plain",
        "retry charge 2 card declined",
        "log warn low on paper",
        "print to stdout",
        "tolerate event runtara.crashed 1",
    ];
    let run = follow(&server, &script);
    let seen = run.output()["seen"]["error"].clone();
    let refused = seen.as_str().unwrap_or_default();
    assert!(refused.starts_with("invalid: "), "the server's own: {seen}");
    let events = run.events();
    let of = |subtype: &str| {
        let found = events.iter().find(|event| event["subtype"] == subtype);
        found
            .unwrap_or_else(|| panic!("no {subtype}: {events:#?}"))
            .clone()
    };
    assert_eq!(
        runtara_tests::from_base64(&of("order.paid")["payload"]),
        "{\"n\":1}"
    );
    assert!(of("plain")["payload"].is_null());
    let names = run.event_names();
    assert!(
        names.iter().any(|name| name.contains("retry")),
        "the retry is recorded: {names:?}"
    );
    assert!(
        !names.contains(&"custom/runtara.crashed".to_owned()),
        "{names:?}"
    );
    assert_eq!(run.logs("stream=stderr").text(), "warn: low on paper\n");
    assert_eq!(run.logs("stream=stdout").text(), "to stdout\n");
}

fn late_words_are_answered_and_change_nothing(store: Store) {
    let server = Server::start(store);
    let script = [
        "complete 1",
        "fail too late",
        "complete 2",
        "tolerate checkpoint a",
        "leave 3",
    ];
    let run = follow(&server, &script);
    assert_eq!(run.output(), 1);
    let found = run.status();
    assert_eq!(error_of(&found), "", "{found}");
    assert!(run.checkpoints().is_empty(), "its other writes are refused");
}

fn sleeping_time_is_no_running_time(store: Store) {
    let server = Server::start(store);
    let image = component(&server, "scripted");
    let start = json!({ "input": ["sleep 2500", "checkpoint a"], "timeout_seconds": 2 });
    let run = server.launch(&image, &start);
    assert_eq!(run.output()["run"], 1, "{}", run.story());
}

fn a_stop_reaches_a_program_that_waits(store: Store) {
    let server = Server::start(store);
    let run = follow(&server, &["print ready", "wait never 8000"]);
    let _ready = run.wait_for_line("ready");
    let stopped: Value = run.stop(10);
    assert_eq!(
        (&stopped["status"], &stopped["process_gone"]),
        (&json!("cancelled"), &json!(true)),
        "{stopped}"
    );
}

#[test]
fn the_guest_of_the_readme_sleeps_for_a_day() {
    let server = server_that_parks(Store::Sqlite);
    let image = try_register(&server, "readme", &guest::of_the_readme()).image();
    let run = server.launch(&image, &json!({}));
    run.wait_for_reason("sleeping");
    assert_eq!(run.checkpoints(), ["greet"]);
}
