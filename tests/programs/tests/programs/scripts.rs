//! The two programs that speak the protocol, against a small server.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Output;

use runtara_test_programs::fake_core::FakeCore;
use serde_json::{Value, json};

const BLOCKING: &str = env!("CARGO_BIN_EXE_speaks_the_protocol");
const SDK: &str = env!("CARGO_BIN_EXE_uses_the_sdk");

fn core(input: Value) -> FakeCore {
    FakeCore::start(input).expect("a free port")
}

fn run(core: &FakeCore, program: &str, run: u32) -> Output {
    core.command(program, run)
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_script_goes_on_where_it_was_aborted() {
    for program in [BLOCKING, SDK] {
        let directory = tempfile::tempdir().unwrap();
        let effects = directory.path().join("effects");
        let core = core(json!({"steps": 4, "crash_at": 3, "effects_file": effects}));
        let crashed = run(&core, program, 1);
        assert_eq!(
            crashed.status.signal(),
            Some(6),
            "{}",
            text(&crashed.stderr)
        );
        let ended = run(&core, program, 2);
        assert!(ended.status.success(), "{program}: {}", text(&ended.stderr));
        let output = core.state().output().unwrap();
        assert_eq!((&output["sum"], &output["run"]), (&json!(10), &json!(2)));
        let effects = fs::read_to_string(effects).unwrap();
        assert_eq!(effects, "step-1 1\nstep-2 1\nstep-3 2\nstep-4 2\n");
    }
}

#[test]
fn the_blocking_program_uses_one_connection_and_never_repeats() {
    let core = core(json!({"steps": 3}));
    assert!(run(&core, BLOCKING, 1).status.success());
    assert_eq!(core.state().connections, 1);
    let calls = core.state().calls.len();
    core.change(|state| {
        state.checkpoints.clear();
        // The save of the second step, after health, register, input, and three calls about steps.
        state.cut_at = Some(calls + 7);
    });
    let failed = run(&core, BLOCKING, 2);
    assert_eq!(failed.status.code(), Some(1));
    let state = core.state();
    let said = state.called("failed");
    let said = said[0]["error"].as_str().unwrap();
    assert!(said.contains("HTTP request failed: POST http://"), "{said}");
    assert!(
        said.contains("/r/s3cr3t/"),
        "such programs print the whole URL: {said}"
    );
    assert_eq!(state.called("completed").len(), 1);
}

#[test]
fn the_sdk_does_not_notice_a_lost_answer() {
    let core = core(json!({"steps": 3}));
    core.change(|state| state.cut_at = Some(4));
    let ended = run(&core, SDK, 1);
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert_eq!(core.state().output().unwrap()["sum"], 6);
    assert!(core.state().connections > 1);
}

#[test]
fn a_time_out_of_the_blocking_program_is_one_for_the_whole_request() {
    let core = core(json!({"actions": [{"sleep": {"id": "s", "ms": 60_000}}]}));
    let failed = core
        .command(BLOCKING, 1)
        .env("RUNTARA_REQUEST_TIMEOUT_MS", "300")
        .output()
        .unwrap();
    assert_eq!(failed.status.code(), Some(1));
    let state = core.state();
    let said = state.called("failed")[0]["error"].to_string();
    assert!(said.contains("/sleep: timed out"), "{said}");
}

#[test]
fn a_long_sleep_is_left_and_met_again() {
    for program in [BLOCKING, SDK] {
        // The SDK keeps the end of the sleep by the clock, so that the second run has to find it in the past.
        let core = core(json!({"actions": [
            {"checkpoint": "a"},
            {"on_run": 1, "do": {"sleep": {"id": "s", "ms": 600}}},
            {"from_run": 2, "do": {"sleep": {"id": "s", "ms": 600}}},
        ]}));
        let mut asleep = core.command(program, 1).spawn().unwrap();
        core.until("the sleep", |state| !state.called("sleep").is_empty());
        asleep.kill().unwrap();
        asleep.wait().unwrap();
        core.pass_time();
        let woken = run(&core, program, 2);
        assert!(woken.status.success(), "{}", text(&woken.stderr));
        assert_eq!(core.state().output().unwrap()["seen"], json!({"a": 1}));
    }
}

#[test]
fn cancel_and_pause_are_obeyed_as_published_programs_do() {
    for (program, signal, code) in [
        (BLOCKING, "cancel", 1),
        (BLOCKING, "pause", 0),
        (SDK, "cancel", 0),
        (SDK, "pause", 0),
    ] {
        let core = core(json!({"actions": [{"checkpoint": "a"}, {"await_order": true}]}));
        let child = core.command(program, 1).spawn().unwrap();
        core.until("the first step", |state| {
            state.checkpoints.contains_key("a")
        });
        core.change(|state| state.pending = Some(signal));
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(code), "{program} {signal}");
        let state = core.state();
        assert_eq!(
            state.called("signals/ack"),
            [&json!({"signal_type": signal})]
        );
        assert_eq!(
            state.called("suspended").len(),
            usize::from(signal == "pause")
        );
        assert!(state.called("completed").is_empty() && state.called("failed").is_empty());
    }
}

#[test]
fn signals_bring_what_they_carry() {
    for program in [BLOCKING, SDK] {
        let core = core(json!({"actions": [{"signal": "one"}, {"wait_signal": {"id": "two"}}]}));
        core.change(|state| {
            state
                .custom
                .insert("one".to_owned(), r#"{"n": 1}"#.to_owned());
            state.custom.insert("two".to_owned(), "plain".to_owned());
        });
        let ended = run(&core, program, 1);
        assert!(ended.status.success(), "{}", text(&ended.stderr));
        let seen = &core.state().output().unwrap()["seen"];
        assert_eq!(seen, &json!({"one": {"n": 1}, "two": "plain"}));
    }
}

#[test]
fn every_way_to_end_is_there() {
    let ways = [
        (json!({"exit": 3}), Some(3), ""),
        (json!({"die": 9}), None, ""),
        (json!({"fail": "no luck"}), Some(1), "failed"),
        (json!({"complete": "early"}), Some(0), "completed"),
    ];
    for (action, code, word) in ways {
        for program in [BLOCKING, SDK] {
            let core = core(json!({"actions": [action, {"checkpoint": "never"}]}));
            let ended = run(&core, program, 1);
            assert_eq!(ended.status.code(), code, "{program} {action}");
            let state = core.state();
            assert!(state.checkpoints.is_empty());
            let last = state.calls.last().map(|(what, _)| what.as_str());
            assert_eq!(last, Some(if word.is_empty() { "input" } else { word }));
        }
    }
    let suspended = core(json!({"actions": [
        {"suspend_until": {"id": "w", "ms": 1_000, "state": "x"}},
    ]}));
    assert!(run(&suspended, BLOCKING, 1).status.success());
    assert_eq!(
        suspended.state().called("events")[0]["event_type"],
        "suspended"
    );
}

#[test]
fn the_other_calls_are_made() {
    let core = core(json!({"actions": [
        {"event": {"subtype": "mailed", "payload": {"to": "x"}}}, {"heartbeat": true},
        {"progress": {"message": "half", "percent": 50.0}},
        {"retry": {"id": "a", "attempt": 2, "error": "declined"}}, {"poll": true},
        {"take_signal": "nothing"}, {"status_of": "i-2"},
        {"call": {"method": "GET", "path": "/api/v1/instances/{id}/status"}},
        {"print": "to stdout"}, {"print_error": "to stderr"}, {"work": 1},
    ]}));
    let ended = run(&core, BLOCKING, 1);
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert_eq!(
        (text(&ended.stdout), text(&ended.stderr)),
        ("to stdout\n".into(), "to stderr\n".into())
    );
    let state = core.state();
    assert_eq!(state.called("events").len(), 3);
    assert_eq!(state.called("retry").len(), 1);
    let seen = &state.output().unwrap()["seen"];
    assert_eq!(seen["nothing"], Value::Null);
    assert_eq!(seen["/api/v1/instances/{id}/status"]["status"], 200);
}

#[test]
fn branches_run_side_by_side() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ready");
    let core = core(json!({"actions": [{"branches": [
        [{"sleep": {"id": "s", "ms": 1}}, {"checkpoint": "a"}, {"touch": file}],
        [{"work": 1}, {"checkpoint": "b"}],
    ]}, {"until_file": file}]}));
    let ended = run(&core, SDK, 1);
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert_eq!(
        core.state().output().unwrap()["seen"],
        json!({"a": 1, "b": 1})
    );
}
