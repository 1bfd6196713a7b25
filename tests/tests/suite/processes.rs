//! Programs and their processes: what their end means, how they are ended, what they leave.

mod ends;

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use runtara_tests::{
    Ground, Server, Setup, Store, TENANT, base64, eventually, from_base64, in_both_kinds,
    in_every_kind, on_both_stores,
};
use serde_json::json;

on_both_stores!(
    stop_gives_time_to_leave,
    a_stop_with_a_long_grace_says_that_the_process_is_still_leaving,
    what_a_program_leaves_behind_is_ended_with_it,
    what_runs_used_is_told,
    a_program_that_only_listens_may_run_for_long_in_silence,
);

in_both_kinds!(a_completion_within_the_grace_wins,);

in_every_kind!(
    a_run_over_its_time_is_ended_and_not_retried,
    the_time_limit_holds_for_every_run,
    a_program_that_ignores_the_wish_is_killed_when_the_grace_is_over,
    a_cancel_reaches_a_program_that_does_not_speak,
);

fn a_run_over_its_time_is_ended_and_not_retried(ground: Ground) {
    let server = Server::start(ground);
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

fn the_time_limit_holds_for_every_run(ground: Ground) {
    let server = Server::start(ground);
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

fn a_program_that_ignores_the_wish_is_killed_when_the_grace_is_over(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(&server.program("ignores_sigterm"), &json!({}));
    eventually("its word", || {
        if run.logs("stream=stdout").text() == "ready\n" {
            Ok(())
        } else {
            Err(())
        }
    });
    assert!(!run.is_gone());
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
    assert!(run.is_gone());
    assert_eq!(run.wait_for("cancelled")["termination_reason"], "cancelled");
}

fn a_stop_with_a_long_grace_says_that_the_process_is_still_leaving(store: Store) {
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
    let stopped = run.stop(30);
    let took = before.elapsed();
    assert_eq!(
        stopped,
        json!({ "success": true, "status": "running", "process_gone": false })
    );
    // Published clients give up after 30 s.
    assert!(
        took >= Duration::from_secs(24) && took < Duration::from_secs(29),
        "stop took {took:?}"
    );
    assert_eq!(run.wait_for("cancelled")["termination_reason"], "cancelled");
    assert!(
        before.elapsed() >= Duration::from_secs(30),
        "it had its grace: {:?}",
        before.elapsed()
    );
    run.wait_until_no_process();
}

fn a_completion_within_the_grace_wins(ground: Ground) {
    let server = Server::start(ground);
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
    assert_eq!(
        stopped,
        json!({ "success": true, "status": "completed", "process_gone": true }),
        "stop says so"
    );
    assert_eq!(run.output(), "in time");
}

fn a_cancel_reaches_a_program_that_does_not_speak(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    run.wait_until_it_runs();
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
        // What there was may be gone before it is read: the program writes faster than anybody reads.
        if found.0 > first && found.1.len() > 1_000 {
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
    assert!(
        core.to_string().contains('1'),
        "1 is too little for a file, and forbids pipes: {shown:#}"
    );
    assert_eq!(shown["oom_score_adj"], "500", "{shown:#}");
}

#[test]
fn a_program_can_start_itself_again() {
    let server = Server::start(Store::Sqlite);
    let shell = fs::read("/bin/sh").expect("every machine has one");
    let script = "exec \"$(readlink /proc/$$/exe)\" -c 'echo \"\\\"again\\\"\"'";
    let run = server.launch(
        &server.register("itself", &shell),
        &json!({ "args": ["-c", script] }),
    );
    assert_eq!(run.output(), "again");
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

#[test]
fn the_server_takes_all_descriptors_that_it_can_and_programs_keep_the_usual_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("it can be asked");
    let usual = hard.min(1_000);
    // What the server inherits.
    setrlimit(Resource::RLIMIT_NOFILE, usual, hard).expect("less is always allowed");
    let server = Server::start(Store::Sqlite);
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid()));
    let limits = limits.expect("it runs");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let mut numbers = line.expect("the kernel says so").split_whitespace().skip(3);
    assert_eq!(numbers.next(), numbers.next(), "soft and hard: {limits}");
    let run = server.launch(&server.shell("ulimit -Sn; ulimit -Hn"), &json!({}));
    run.wait_for("completed");
    assert_eq!(
        run.logs("stream=stdout").text(),
        format!("{usual}\n{hard}\n")
    );
}
