//! What commands are given, how they end, and how that is told.

use std::time::{Duration, Instant};

use runtara_tests::{Server, Setup, Store, on_both_stores};
use serde_json::{Value, json};

use super::{command, error_of, text};

const MIB: u64 = 1024 * 1024;

on_both_stores!(
    what_a_command_writes_is_its_output_and_its_code_decides,
    a_command_is_given_its_arguments_and_nothing_of_the_server,
    a_busy_loop_is_ended_when_its_time_is_over,
    a_busy_loop_is_stopped_and_cancelled_at_once,
    busy_loops_hold_up_nobody,
    who_sleeps_beside_busy_loops_is_woken_in_time,
    a_guest_that_wants_more_memory_than_it_may_have_is_ended,
    a_stack_that_is_used_up_is_told_with_the_way_to_it,
    a_trap_is_a_crash_and_tells_where,
    a_command_is_tried_again_if_the_start_says_so,
);

fn what_a_command_writes_is_its_output_and_its_code_decides(store: Store) {
    let server = Server::start(store);
    let image = command(&server, "exits_with");
    let run = server.launch(&image, &json!({ "args": ["0"] }));
    assert_eq!(run.output(), json!({ "code": 0 }));
    let found = run.status();
    assert_eq!(found["termination_reason"], "completed", "{found}");
    assert_eq!(run.logs("stream=stdout").text(), "{\"code\":0}\n");
    let run = server.launch(&image, &json!({ "args": ["3"] }));
    let found = run.wait_for("failed");
    // An exit of WASI 0.2 knows success and failure alone, and the standard adapter makes all codes but 0 a failure.
    assert_eq!(
        (&found["termination_reason"], &found["exit_code"]),
        (&json!("application_error"), &json!(1)),
        "{found}"
    );
    assert_eq!(found["run_number"], 1, "{found}");
    assert_eq!(
        error_of(&found).trim_end(),
        "process ended with exit code 1\nleaving with 3"
    );
    assert_eq!(run.logs("stream=stderr").text(), "leaving with 3\n");
}

fn a_command_is_given_its_arguments_and_nothing_of_the_server(store: Store) {
    let server = Setup::new(store)
        .variable("PRIVATE_TO_THE_SERVER", "secret-value")
        .start();
    let image = command(&server, "shows_environment");
    let start =
        json!({ "args": ["a b", "$(id)"], "env": { "COLOUR": "red" }, "input": { "n": 1 } });
    let run = server.launch(&image, &start);
    let output = run.output();
    let args: Vec<_> = output["args"]
        .as_array()
        .expect("a list")
        .iter()
        .skip(1)
        .collect();
    assert_eq!(args, ["a b", "$(id)"]);
    assert_eq!(output["stdin_bytes"], 0, "{output}");
    let env = output["env"].as_array().expect("a list");
    let env: Vec<_> = env.iter().filter_map(Value::as_str).collect();
    assert!(env.contains(&"COLOUR=red"), "{env:?}");
    assert!(
        env.contains(&format!("RUNTARA_INSTANCE_ID={}", run.id).as_str()),
        "{env:?}"
    );
    let told = env.join("\n");
    for secret in [
        "secret-value",
        "DATABASE_URL",
        "RUNTARA_HTTP_URL",
        "/r/",
        "DATA_DIR",
        &server.database_url(),
    ] {
        assert!(!told.contains(secret), "{secret}: {told}");
    }
}

fn a_busy_loop_is_ended_when_its_time_is_over(store: Store) {
    let server = Server::start(store);
    let image = command(&server, "spins");
    let before = Instant::now();
    let run = server.launch(&image, &json!({ "timeout_seconds": 1 }));
    let found = run.wait_for("failed");
    assert_eq!(found["termination_reason"], "timeout", "{found}");
    assert_eq!(found["run_number"], 1, "{found}");
    let took = before.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(10),
        "{took:?}"
    );
    assert_eq!(run.logs("stream=stdout").text(), "ready\n");
}

fn a_busy_loop_is_stopped_and_cancelled_at_once(store: Store) {
    let server = Server::start(store);
    let image = command(&server, "spins");
    let [stopped, cancelled] = [(); 2].map(|()| {
        let run = server.launch(&image, &json!({}));
        let _ready = run.wait_for_line("ready");
        run
    });
    let before = Instant::now();
    assert_eq!(
        stopped.stop(20),
        json!({ "success": true, "status": "cancelled", "process_gone": true })
    );
    assert_eq!(cancelled.signal("cancel").expect(200)["success"], true);
    for run in [&stopped, &cancelled] {
        let found = run.wait_for("cancelled");
        assert_eq!(found["termination_reason"], "cancelled", "{found}");
    }
    let took = before.elapsed();
    assert!(
        took < Duration::from_secs(8),
        "nobody there could hear of it, so nobody is waited for: {took:?}"
    );
}

fn busy_loops_hold_up_nobody(store: Store) {
    let server = Server::start(store);
    let image = command(&server, "spins");
    let spinning: Vec<_> = (0..8).map(|_| server.launch(&image, &json!({}))).collect();
    for run in &spinning {
        let _ready = run.wait_for_line("ready");
    }
    let quick = command(&server, "exits_with");
    assert_eq!(
        server.launch(&quick, &json!({})).output(),
        json!({ "code": 0 })
    );
    let asked = Instant::now();
    let _status = spinning[0].status();
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(5), "a question took {took:?}");
    for run in &spinning {
        assert_eq!(run.stop(0)["status"], "cancelled");
    }
}

fn who_sleeps_beside_busy_loops_is_woken_in_time(store: Store) {
    let server = Server::start(store);
    let image = command(&server, "spins");
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for _ in 0..threads {
        let run = server.launch(&image, &json!({}));
        let _ready = run.wait_for_line("ready");
    }
    let sleeps = command(&server, "sleeps_briefly");
    let run = server.launch(&sleeps, &json!({}));
    // Each of its hundred sleeps waits for the slice of another guest, which are 10 ms.
    let _ended = run.wait_within(Duration::from_secs(15), "completed");
}

fn a_guest_that_wants_more_memory_than_it_may_have_is_ended(store: Store) {
    let server = Server::start(store);
    let image = command(&server, "allocates_without_end");
    let limits = json!({ "limits": { "memory_bytes": 32 * MIB }, "max_attempts": 1 });
    let found = server.launch(&image, &limits).wait_for("failed");
    assert_eq!(found["termination_reason"], "crashed", "{found}");
    assert!(
        error_of(&found).contains("out of memory: memory limit of 32 MiB exceeded; peak "),
        "{found}"
    );
    let peak = found["memory_peak_bytes"].as_u64().unwrap_or_default();
    assert!((16 * MIB..=32 * MIB).contains(&peak), "{found}");
    let found = server
        .launch(&image, &json!({ "max_attempts": 1 }))
        .wait_for("failed");
    assert!(
        error_of(&found).contains("out of memory"),
        "without a limit of its own: {found}"
    );
}

fn a_stack_that_is_used_up_is_told_with_the_way_to_it(store: Store) {
    let server = Server::start(store);
    let image = text(&server, "recurses_without_end");
    let found = server
        .launch(&image, &json!({ "max_attempts": 1 }))
        .wait_for("failed");
    assert_eq!(found["termination_reason"], "crashed", "{found}");
    let error = error_of(&found);
    assert!(
        error.contains("call stack exhausted") && error.contains("deeper"),
        "{error}"
    );
    assert!(error.len() <= 32 * 1024, "{}", error.len());
}

fn a_trap_is_a_crash_and_tells_where(store: Store) {
    let server = Server::start(store);
    let image = command(&server, "traps");
    for (way, told) in [
        ("unreachable", "unreachable"),
        ("out-of-bounds", "out of bounds memory access"),
        ("division", "integer divide by zero"),
    ] {
        let start = json!({ "args": [way], "max_attempts": 1 });
        let found = server.launch(&image, &start).wait_for("failed");
        assert_eq!(found["termination_reason"], "crashed", "{found}");
        let error = error_of(&found);
        for word in [told, "innermost_function", "about to trap"] {
            assert!(error.contains(word), "{way}, {word}: {error}");
        }
        assert!(
            !error.contains("/src/") && !error.contains(".rs:"),
            "it tells of the server's insides: {error}"
        );
    }
    // As any crash it is tried three times.
    let run = server.launch(&image, &json!({}));
    let found = run.wait_for("failed");
    assert_eq!(
        (&found["run_number"], &found["retry_count"]),
        (&json!(3), &json!(2)),
        "{found}"
    );
}

fn a_command_is_tried_again_if_the_start_says_so(store: Store) {
    let server = Server::start(store);
    let image = command(&server, "exits_with");
    let start = json!({ "args": ["4"], "max_attempts": 2 });
    let found = server.launch(&image, &start).wait_for("failed");
    assert_eq!(
        (&found["run_number"], &found["exit_code"]),
        (&json!(2), &json!(1)),
        "{found}"
    );
}
