//! Programs and their processes: what their end means, how they are ended, what they leave.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use runtara_tests::{
    Server, Setup, Store, TENANT, base64, eventually, from_base64, on_both_stores, processes,
};
use serde_json::{Value, json};

on_both_stores!(
    a_program_without_an_sdk_completes_with_what_it_gives,
    arguments_of_a_start_reach_the_program,
    an_error_of_a_silent_program_fails_at_once_and_shows_the_end_of_its_errors,
    a_silent_program_is_tried_again_if_the_start_says_so,
    a_program_that_keeps_crashing_is_given_three_launches_with_growing_pauses,
    a_crash_goes_on_from_the_checkpoints,
    a_run_that_spoke_and_left_without_its_word_has_crashed,
    a_failure_that_the_program_reports_is_its_last_word,
    the_last_checkpoint_is_named_to_the_next_run,
    a_run_over_its_time_is_ended_and_not_retried,
    the_time_limit_holds_for_every_run,
    stop_gives_time_to_leave,
    a_program_that_ignores_the_wish_is_killed_when_the_grace_is_over,
    a_completion_within_the_grace_wins,
    a_cancel_reaches_a_program_that_does_not_speak,
    what_a_program_leaves_behind_is_ended_with_it,
    what_runs_used_is_told,
    a_script_without_its_interpreter_fails_with_the_reason,
    a_program_that_only_listens_may_run_for_long_in_silence,
    output_that_is_no_text_does_no_harm,
);

fn a_program_without_an_sdk_completes_with_what_it_gives(store: Store) {
    let server = Server::start(store);
    let output = |script: &str| {
        server
            .launch(&server.shell(script), &json!({ "input": { "n": 1 } }))
            .output()
    };
    assert_eq!(
        output("echo '{\"a\": [1]}'"),
        json!({ "a": [1] }),
        "JSON is taken as it is"
    );
    assert_eq!(
        output("echo plain text"),
        json!("plain text\n"),
        "and text as a text"
    );
    assert_eq!(
        output("echo noise; echo '{\"b\":2}' > \"$RUNTARA_OUTPUT_FILE\""),
        json!({ "b": 2 }),
        "a file comes first"
    );
    assert_eq!(
        output("cat"),
        json!({ "n": 1 }),
        "the input is on standard input"
    );
    assert_eq!(
        output("cat \"$RUNTARA_INPUT_FILE\""),
        json!({ "n": 1 }),
        "and in a file"
    );
    assert_eq!(output("echo \"$RUNTARA_RUN_NUMBER\""), json!(1));
    let silent = server.launch(&server.shell("true"), &json!({}));
    silent.wait_for("completed");
}

fn arguments_of_a_start_reach_the_program(store: Store) {
    let server = Server::start(store);
    let run = server.launch(
        &server.shell("printf '\"%s|%s|%s\"' \"$#\" \"$1\" \"$2\""),
        &json!({ "args": ["a b", "$(id)"] }),
    );
    assert_eq!(run.output(), "2|a b|$(id)");
}

fn an_error_of_a_silent_program_fails_at_once_and_shows_the_end_of_its_errors(store: Store) {
    let server = Server::start(store);
    let script = "i=0; while [ $i -lt 3000 ]; do echo \"line $i of ünïcödé\" >&2; i=$((i+1)); done; echo 'the reason' >&2; exit 3";
    let run = server.launch(&server.shell(script), &json!({}));
    let found = run.wait_for("failed");
    assert_eq!(found["termination_reason"], "application_error", "{found}");
    assert_eq!(found["exit_code"], 3, "{found}");
    assert_eq!(
        (&found["run_number"], &found["retry_count"]),
        (&json!(1), &json!(0)),
        "{found}"
    );
    let error = found["error"].as_str().unwrap_or_default();
    assert!(
        error.contains("exit code 3") && error.trim_end().ends_with("the reason"),
        "{error}"
    );
    let stderr = found["stderr"].as_str().unwrap_or_default();
    assert!(
        stderr.trim_end().ends_with("the reason"),
        "the end is kept, not the beginning: {stderr}"
    );
    assert!(stderr.len() <= 16 * 1024, "{}", stderr.len());
}

fn a_silent_program_is_tried_again_if_the_start_says_so(store: Store) {
    let server = Server::start(store);
    let script = "echo \"run $RUNTARA_RUN_NUMBER\" >&2; [ \"$RUNTARA_RUN_NUMBER\" = 2 ] && echo '\"second\"' || exit 1";
    let run = server.launch(&server.shell(script), &json!({ "max_attempts": 2 }));
    assert_eq!(run.output(), "second");
    let found = run.status();
    assert_eq!(found["run_number"], 2, "{found}");
    assert_eq!(found["max_retries"], 1, "{found}");
    assert_eq!(
        run.logs("stream=stderr&run=1").text(),
        "run 1\n",
        "each run has its own log"
    );
    assert_eq!(
        run.logs("stream=stderr").text(),
        "run 2\n",
        "the newest is shown unless another is asked for"
    );
}

fn a_program_that_keeps_crashing_is_given_three_launches_with_growing_pauses(store: Store) {
    let server = Server::start(store);
    let before = Instant::now();
    let run = server.launch(
        &server.shell("echo \"dying in run $RUNTARA_RUN_NUMBER\" >&2; kill -SEGV $$"),
        &json!({}),
    );
    let crashed = run.wait_for_reason("crashed");
    assert_eq!(crashed["status"], "suspended", "{crashed}");
    assert!(crashed["due_at_ms"].is_i64(), "{crashed}");
    let found = run.wait_for("failed");
    assert!(
        before.elapsed() >= Duration::from_secs(3),
        "pauses of 1 s and 2 s: {:?}",
        before.elapsed()
    );
    assert_eq!(found["termination_reason"], "crashed", "{found}");
    assert_eq!(
        (&found["run_number"], &found["retry_count"]),
        (&json!(3), &json!(3)),
        "{found}"
    );
    let error = found["error"].as_str().unwrap_or_default();
    assert!(
        error.contains("signal 11") && error.contains("dying in run 3"),
        "{error}"
    );
    let names = run.event_names();
    assert_eq!(
        names,
        ["custom/runtara.crashed", "custom/runtara.crashed", "failed"]
    );
}

fn a_crash_goes_on_from_the_checkpoints(store: Store) {
    let server = Server::start(store);
    let effects = server.shared().path("effects");
    let input = json!({ "effects_file": effects, "actions": [
        { "checkpoint": { "id": "a", "value": 1 } },
        { "checkpoint": { "id": "b", "value": 2 } },
        { "on_run": 1, "do": { "abort": true } },
        { "checkpoint": { "id": "c", "value": 3 } },
        { "on_run": 2, "do": { "die": 9 } },
    ]});
    let run = server.launch(&server.scripted(), &json!({ "input": input }));
    let output = run.output();
    assert_eq!(
        (&output["sum"], &output["run"]),
        (&json!(6), &json!(3)),
        "{output}"
    );
    assert_eq!(
        server.shared().lines("effects"),
        ["a 1", "b 1", "c 2"],
        "each step is done once"
    );
    assert_eq!(run.checkpoints(), ["a", "b", "c"]);
    assert_eq!(run.status()["retry_count"], 0, "progress resets the count");
}

fn a_run_that_spoke_and_left_without_its_word_has_crashed(store: Store) {
    let server = Server::start(store);
    let image = server.scripted();
    for code in [0, 7] {
        let run = server.follow(&image, &json!([{ "checkpoint": "a" }, { "on_run": 1, "do": { "exit": code } }, { "complete": code }]));
        assert_eq!(
            run.output(),
            code,
            "exit code {code} may hide a lost word, so it is run again"
        );
        assert_eq!(run.status()["run_number"], 2);
        assert!(
            run.event_names()
                .contains(&"custom/runtara.crashed".to_owned()),
            "{:?}",
            run.event_names()
        );
    }
    let run = server.launch(
        &image,
        &json!({ "input": { "actions": [{ "exit": 7 }] }, "max_attempts": 1 }),
    );
    let found = run.wait_for("failed");
    assert_eq!(
        (&found["termination_reason"], &found["exit_code"]),
        (&json!("crashed"), &json!(7)),
        "{found}"
    );
}

fn a_failure_that_the_program_reports_is_its_last_word(store: Store) {
    let server = Server::start(store);
    let run = server.follow(
        &server.scripted(),
        &json!([{ "checkpoint": "a" }, { "fail": "no money" }]),
    );
    let found = run.wait_for("failed");
    assert_eq!(
        (&found["error"], &found["termination_reason"]),
        (&json!("no money"), &json!("application_error")),
        "{found}"
    );
    assert_eq!(found["run_number"], 1, "{found}");
    run.resume();
    let again = run.wait_until("a second run", |found| found["run_number"] == 2);
    assert!(
        again.get("error").is_none_or(Value::is_null),
        "the error of an earlier life is gone: {again}"
    );
    let found = run.wait_until("its second end", |found| {
        found["run_number"] == 2 && found["status"] == "failed"
    });
    assert_eq!(found["error"], "no money");
}

fn the_last_checkpoint_is_named_to_the_next_run(store: Store) {
    let server = Server::start(store);
    let run = server.follow(
        &server.scripted(),
        &json!([{ "checkpoint": "here" }, { "hang": true }]),
    );
    eventually("the checkpoint", || {
        if run.checkpoints() == ["here"] {
            Ok(())
        } else {
            Err(run.story())
        }
    });
    let first = run.wait_for_process();
    assert_eq!(first.variable("RUNTARA_CHECKPOINT_ID"), None);
    processes::send(first.pid, Signal::SIGKILL);
    let second = eventually("the second run", || {
        run.processes()
            .into_iter()
            .find(|found| found.variable("RUNTARA_RUN_NUMBER").as_deref() == Some("2"))
            .ok_or("none")
    });
    assert_eq!(
        second.variable("RUNTARA_CHECKPOINT_ID").as_deref(),
        Some("here")
    );
}

fn a_run_over_its_time_is_ended_and_not_retried(store: Store) {
    let server = Server::start(store);
    for image in [
        server.program("sleeps_forever"),
        server.program("ignores_sigterm"),
    ] {
        let run = server.launch(&image, &json!({ "timeout_seconds": 1 }));
        let found = run.wait_for("failed");
        assert_eq!(found["termination_reason"], "timeout", "{found}");
        assert_eq!(found["run_number"], 1, "{found}");
        run.wait_until_no_process();
    }
}

fn the_time_limit_holds_for_every_run(store: Store) {
    let server = Server::start(store);
    let run = server.launch(
        &server.program("sleeps_forever"),
        &json!({ "timeout_seconds": 1 }),
    );
    run.wait_for("failed");
    run.resume();
    let found = run.wait_until("the second end", |found| {
        found["run_number"] == 2 && found["status"] == "failed"
    });
    assert_eq!(found["termination_reason"], "timeout", "{found}");
}

fn stop_gives_time_to_leave(store: Store) {
    let server = Server::start(store);
    let left = server.shared().path("left");
    let script =
        format!("trap 'echo bye > {left}; exit 0' TERM; echo ready; while :; do sleep 0.05; done");
    let run = server.launch(&server.shell(&script), &json!({}));
    eventually("the trap", || {
        if run.logs("stream=stdout").text() == "ready\n" {
            Ok(())
        } else {
            Err(())
        }
    });
    let before = Instant::now();
    let stopped = run.stop(20);
    assert_eq!(stopped["success"], true, "{stopped}");
    assert!(
        before.elapsed() < Duration::from_secs(15),
        "it need not wait for the whole grace: {:?}",
        before.elapsed()
    );
    assert_eq!(server.shared().wait_for("left"), "bye\n");
    assert!(run.processes().is_empty());
    let reason = run
        .events()
        .into_iter()
        .find(|event| event["subtype"] == "runtara.stop_requested")
        .expect("it is recorded");
    assert!(
        from_base64(&reason["payload"]).contains("the test says so"),
        "{reason}"
    );
}

fn a_program_that_ignores_the_wish_is_killed_when_the_grace_is_over(store: Store) {
    let server = Server::start(store);
    let run = server.launch(&server.program("ignores_sigterm"), &json!({}));
    eventually("its word", || {
        if run.logs("stream=stdout").text() == "ready\n" {
            Ok(())
        } else {
            Err(())
        }
    });
    let before = Instant::now();
    let stopped = run.stop(1);
    let took = before.elapsed();
    assert_eq!(
        (&stopped["success"], &stopped["status"]),
        (&json!(true), &json!("cancelled")),
        "{stopped}"
    );
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(10),
        "stop took {took:?}"
    );
    assert!(run.processes().is_empty());
    assert_eq!(run.wait_for("cancelled")["termination_reason"], "cancelled");
}

fn a_completion_within_the_grace_wins(store: Store) {
    let server = Server::start(store);
    let script = "trap 'echo \"\\\"in time\\\"\" > \"$RUNTARA_OUTPUT_FILE\"; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let run = server.launch(&server.shell(script), &json!({}));
    eventually("the trap", || {
        if run.logs("stream=stdout").text() == "ready\n" {
            Ok(())
        } else {
            Err(())
        }
    });
    let stopped = run.stop(20);
    assert_eq!(stopped["status"], "completed", "stop says so: {stopped}");
    assert_eq!(run.output(), "in time");
}

fn a_cancel_reaches_a_program_that_does_not_speak(store: Store) {
    let server = Server::start(store);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    let _running = run.wait_for_process();
    assert_eq!(run.signal("cancel").expect(200)["success"], true);
    assert_eq!(run.wait_for("cancelled")["termination_reason"], "cancelled");
    run.wait_until_no_process();
}

fn what_a_program_leaves_behind_is_ended_with_it(store: Store) {
    let server = Server::start(store);
    let image = server.program("leaves_grandchildren");
    let file = server.shared().path("heartbeat");
    let run = server.launch(&image, &json!({ "input": { "heartbeat_file": file } }));
    run.wait_for("completed");
    run.wait_until_no_process();
    let stays = server.launch(
        &image,
        &json!({ "input": { "heartbeat_file": server.shared().path("second"), "stay": true } }),
    );
    let _beats = server.shared().wait_for("second");
    assert!(stays.processes().len() >= 2, "{:?}", stays.processes());
    assert_eq!(stays.stop(1)["success"], true);
    stays.wait_until_no_process();
    let remains: Vec<_> = server
        .processes()
        .into_iter()
        .filter(|process| process.words().contains("generation"))
        .collect();
    assert!(remains.is_empty(), "{remains:?}");
}

fn what_runs_used_is_told(store: Store) {
    let server = Server::start(store);
    let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; [ \"$RUNTARA_RUN_NUMBER\" = 2 ] || kill -9 $$";
    let run = server.launch(&server.shell(script), &json!({}));
    let crashed = run.wait_for_reason("crashed");
    let first = crashed["cpu_usage_usec"].as_u64().expect("a figure");
    let found = run.wait_for("completed");
    let both = found["cpu_usage_usec"].as_u64().expect("a figure");
    assert!(first > 1_000, "{crashed}");
    assert!(both > first, "the runs are summed: {first} and then {both}");
    assert!(
        found["memory_peak_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 100_000),
        "{found}"
    );
}

fn a_script_without_its_interpreter_fails_with_the_reason(store: Store) {
    let server = Server::start(store);
    let image = server.register("odd", b"#!/no/such/interpreter\n");
    let run = server.launch(&image, &json!({}));
    let found = run.wait_for("failed");
    let error = found["error"].as_str().unwrap_or_default();
    assert!(
        error.contains("No such file") || error.contains("/no/such/interpreter"),
        "{found}"
    );
    assert!(
        found["run_number"].as_u64() <= Some(3),
        "it is not tried for ever: {found}"
    );
}

fn a_program_that_only_listens_may_run_for_long_in_silence(store: Store) {
    // Far below any limit of silence that would make sense; what matters is that nothing but the time limit ends a quiet run.
    let server = Server::start(store);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    let token = run.token_path();
    assert_eq!(
        run.say_with(&token, "register", &json!({ "tenant_id": TENANT }))
            .expect(200)["success"],
        true
    );
    runtara_tests::holds_for(Duration::from_secs(3), "the silent run", || {
        let found = run.status();
        if found["status"] == "running" {
            Ok(())
        } else {
            Err(found)
        }
    });
}

fn output_that_is_no_text_does_no_harm(store: Store) {
    let server = Server::start(store);
    let run = server.launch(
        &server.shell("printf '\\377\\376\\000\\n' ; printf '\\377\\000bad\\n' >&2; exit 4"),
        &json!({}),
    );
    let found = run.wait_for("failed");
    assert!(
        found["error"]
            .as_str()
            .unwrap_or_default()
            .contains("exit code 4"),
        "{found}"
    );
    let done = server.launch(&server.shell("printf 'a\\377\\000b'"), &json!({}));
    let _some_text = done.output();
}

#[test]
fn logs_are_bounded_and_keep_the_newest() {
    let server = Setup::new(Store::Sqlite)
        .variable("RUNTARA_LOG_BYTES", "65536")
        .start();
    let run = server.launch(
        &server.program("writes_endless_output"),
        &json!({ "input": { "stream": "both" } }),
    );
    let offset = || {
        let answer = run.logs("stream=stdout");
        let offset = answer
            .header("X-Runtara-Log-Offset")
            .and_then(|text| text.parse::<u64>().ok());
        (offset.unwrap_or_default(), answer.body)
    };
    let (first, body) = eventually("that the oldest is dropped", || {
        let found = offset();
        if found.0 > 1_000_000 {
            Ok(found)
        } else {
            Err(found.0)
        }
    });
    assert!(body.len() <= 2 * 65_536, "{} bytes were shown", body.len());
    // The program writes without end: the newest text is later than what was the newest a moment ago.
    let (later, body) = eventually("newer text", || {
        let found = offset();
        if found.0 > first {
            Ok(found)
        } else {
            Err(found.0)
        }
    });
    let text = String::from_utf8_lossy(&body);
    let line = text.lines().nth(1).expect("there are lines");
    assert!(
        line.starts_with("line ") && line.ends_with("to its end"),
        "whole lines stand in it: {line}"
    );
    assert!(later > 0);
    let kept: u64 = walk(&server.data_dir().join("runs")).into_iter().sum();
    assert!(
        kept <= 1024 * 1024,
        "{kept} bytes are kept of two streams of 64 KiB"
    );
    assert_eq!(run.stop(0)["success"], true);
}

fn walk(directory: &std::path::Path) -> Vec<u64> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(facts) = entry.metadata() else {
            continue;
        };
        if facts.is_dir() {
            sizes.extend(walk(&entry.path()));
        } else {
            sizes.push(facts.len());
        }
    }
    sizes
}

#[test]
fn each_run_has_a_fresh_directory_of_its_own() {
    let server = Server::start(Store::Sqlite);
    let script = "[ -e left ] && exit 9; touch left; pwd > \"$RUNTARA_OUTPUT_FILE\"; [ \"$RUNTARA_RUN_NUMBER\" = 2 ] || kill -9 $$";
    let run = server.launch(&server.shell(script), &json!({}));
    let place = run.output();
    let place = place.as_str().expect("a path is a text").trim();
    assert!(
        place.starts_with(server.data_dir().to_str().expect("it is plain")),
        "{place}"
    );
}

#[test]
fn programs_have_a_session_of_their_own_and_leave_no_core() {
    let server = Server::start(Store::Sqlite);
    let shown = server
        .launch(&server.program("shows_environment"), &json!({}))
        .output();
    assert_eq!(
        (&shown["pgid"], &shown["sid"]),
        (&shown["pid"], &shown["pid"]),
        "{shown:#}"
    );
    let core = &shown["limits"]["Max core file size"];
    assert!(core.to_string().contains('0'), "{shown:#}");
    assert_eq!(shown["oom_score_adj"], "500", "{shown:#}");
}

#[test]
fn the_newest_errors_replace_the_older() {
    let server = Server::start(Store::Sqlite);
    let run = server.launch(
        &server.shell("echo \"run $RUNTARA_RUN_NUMBER says so\" >&2; exit 1"),
        &json!({}),
    );
    assert_eq!(run.wait_for("failed")["stderr"], "run 1 says so\n");
    run.resume();
    let found = run.wait_until("its second end", |found| {
        found["run_number"] == 2 && found["status"] == "failed"
    });
    assert_eq!(found["stderr"], "run 2 says so\n", "{found}");
}

#[test]
fn a_run_may_not_stay_after_its_last_word() {
    let server = Server::start(Store::Sqlite);
    let run = server.launch(&server.program("ignores_sigterm"), &json!({}));
    let token = run.token_path();
    assert_eq!(
        run.say_with(&token, "completed", &json!({ "output": base64("1") }))
            .expect(200)["success"],
        true
    );
    let said = Instant::now();
    run.wait_until_no_process();
    let took = said.elapsed();
    assert!(
        took >= Duration::from_secs(5) && took < Duration::from_secs(20),
        "it has ten seconds to leave and took {took:?}"
    );
    assert_eq!(run.output(), 1);
}
