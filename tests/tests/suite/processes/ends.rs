//! What the end of a program means.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use runtara_tests::{
    Ground, Kind, Server, Store, eventually, in_both_kinds, in_every_kind, natively_and_in_guests,
    on_both_stores, processes,
};
use serde_json::{Value, json};

on_both_stores!(
    a_program_that_keeps_crashing_is_given_three_launches_with_growing_pauses,
    a_script_without_its_interpreter_fails_with_the_reason,
);

natively_and_in_guests!(a_crash_goes_on_from_the_checkpoints,);

in_both_kinds!(
    a_program_without_an_sdk_completes_with_what_it_gives,
    arguments_of_a_start_reach_the_program,
    an_error_of_a_silent_program_fails_at_once_and_shows_the_end_of_its_errors,
    a_silent_program_is_tried_again_if_the_start_says_so,
    the_last_checkpoint_is_named_to_the_next_run,
    output_that_is_no_text_does_no_harm,
);

in_every_kind!(
    a_run_that_spoke_and_left_without_its_word_has_crashed,
    a_failure_that_the_program_reports_is_its_last_word,
);

fn a_program_without_an_sdk_completes_with_what_it_gives(ground: Ground) {
    let server = Server::start(ground);
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
        json!("plain text"),
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

fn arguments_of_a_start_reach_the_program(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(
        &server.shell("printf '\"%s|%s|%s\"' \"$#\" \"$1\" \"$2\""),
        &json!({ "args": ["a b", "$(id)"] }),
    );
    assert_eq!(run.output(), "2|a b|$(id)");
}

fn an_error_of_a_silent_program_fails_at_once_and_shows_the_end_of_its_errors(ground: Ground) {
    let server = Server::start(ground);
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

fn a_silent_program_is_tried_again_if_the_start_says_so(ground: Ground) {
    let server = Server::start(ground);
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
    let retries = crashed["retry_count"].as_u64().unwrap_or_default();
    assert!(
        (1..=2).contains(&retries),
        "the one it waits for: {crashed}"
    );
    let found = run.wait_for("failed");
    assert!(
        before.elapsed() >= Duration::from_secs(3),
        "pauses of 1 s and 2 s: {:?}",
        before.elapsed()
    );
    assert_eq!(found["termination_reason"], "crashed", "{found}");
    assert_eq!(
        (
            &found["run_number"],
            &found["retry_count"],
            &found["max_retries"]
        ),
        (&json!(3), &json!(2), &json!(2)),
        "the last crash was followed by no relaunch: {found}"
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

fn a_crash_goes_on_from_the_checkpoints(ground: Ground) {
    let server = Server::start(ground);
    let input = server.noting_effects(json!({ "actions": [
        { "checkpoint": { "id": "a", "value": 1 } },
        { "checkpoint": { "id": "b", "value": 2 } },
        { "on_run": 1, "do": { "abort": true } },
        { "checkpoint": { "id": "c", "value": 3 } },
        { "on_run": 2, "do": server.death() },
    ]}));
    let run = server.launch(&server.scripted(), &json!({ "input": input }));
    let output = run.output();
    assert_eq!(
        (&output["sum"], &output["run"]),
        (&json!(6), &json!(3)),
        "{output}"
    );
    assert_eq!(
        run.effects(),
        ["a 1", "b 1", "c 2"],
        "each step is done once"
    );
    assert_eq!(run.checkpoints(), ["a", "b", "c"]);
    assert_eq!(
        run.status()["retry_count"],
        1,
        "progress resets the count: only the crash after the last checkpoint is left"
    );
}

fn a_run_that_spoke_and_left_without_its_word_has_crashed(ground: Ground) {
    let server = Server::start(ground);
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
    let code = match ground.kind {
        Kind::Native | Kind::Containers => 7,
        // An exit of WASI 0.2 knows success and failure alone.
        Kind::Wasm => 1,
    };
    assert_eq!(
        (&found["termination_reason"], &found["exit_code"]),
        (&json!("crashed"), &json!(code)),
        "{found}"
    );
}

fn a_failure_that_the_program_reports_is_its_last_word(ground: Ground) {
    let server = Server::start(ground);
    let run = server.follow(
        &server.scripted(),
        &json!([
            { "checkpoint": "a" },
            { "on_run": 2, "do": { "signal": "seen" } },
            { "fail": "no money" }
        ]),
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
    run.custom_signal("seen", "");
    let found = run.wait_until("its second end", |found| {
        found["run_number"] == 2 && found["status"] == "failed"
    });
    assert_eq!(found["error"], "no money");
}

fn the_last_checkpoint_is_named_to_the_next_run(ground: Ground) {
    let server = Server::start(ground);
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

fn output_that_is_no_text_does_no_harm(ground: Ground) {
    let server = Server::start(ground);
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
