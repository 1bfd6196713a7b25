//! Whatever is asked of one node reaches the run on another.

use std::time::{Duration, Instant};

use runtara_tests::http::Request;
use runtara_tests::{Server, eventually, eventually_within, processes};
use serde_json::json;

use super::{drain, first, node, second, undrain, wait_until_guarded};

/// How long an order may take to reach another node: far less than anybody looks by himself.
const TOLD: Duration = Duration::from_secs(4);

/// Two nodes of which the second takes nothing: what is started on either runs on the first.
fn all_runs_on_the_first() -> (Server, Server) {
    let one = first();
    let two = second(&one);
    wait_until_guarded(&two, "first");
    wait_until_guarded(&two, "second");
    drain(&two, "second", 0);
    (one, two)
}

#[test]
fn a_start_on_one_node_runs_on_another() {
    let (one, two) = all_runs_on_the_first();
    let began = Instant::now();
    let run = two.launch(&two.shell("echo 42"), &json!({}));
    assert_eq!(run.output(), 42);
    let took = began.elapsed();
    assert!(took < TOLD, "nobody told the other node: {took:?}");
    assert_eq!(node(&two, "first")["is_this"], false);
    assert_eq!(node(&one, "first")["is_this"], true);
}

#[test]
fn signals_reach_a_run_on_another_node() {
    let (one, two) = all_runs_on_the_first();
    let image = two.scripted();
    // A short wait is held with its process, a long one is not.
    for timeout_ms in [9_000, 600_000] {
        let waiting = two.follow(
            &image,
            &json!([{ "checkpoint": "a" }, { "wait_signal": { "id": "go", "timeout_ms": timeout_ms } }]),
        );
        eventually("its wait", || {
            let status = waiting.status();
            let parked = status["status"] == "suspended" && waiting.checkpoints() == ["a"];
            match parked || one.instance(&waiting.id).processes().len() == 1 {
                true => Ok(()),
                false => Err(status),
            }
        });
        let began = Instant::now();
        waiting.custom_signal("go", "now");
        waiting.wait_for("completed");
        assert!(began.elapsed() < TOLD, "it took {:?}", began.elapsed());
    }

    let asked = two.follow(&image, &json!([{ "await_order": true }]));
    let id = asked.id.clone();
    one.instance(&id).wait_until_it_runs();
    let _sent = asked.signal("cancel").expect(200);
    assert_eq!(
        one.instance(&id).wait_for("cancelled")["status"],
        "cancelled"
    );
}

#[test]
fn a_stop_reaches_a_run_on_another_node() {
    let (one, two) = all_runs_on_the_first();
    let id = two.launch(&two.shell("sleep 600"), &json!({})).id;
    let process = one.instance(&id).wait_for_process();
    let began = Instant::now();
    let stopped = two.instance(&id).stop(1);
    assert_eq!(stopped["status"], "cancelled", "{stopped}");
    assert_eq!(stopped["process_gone"], true, "{stopped}");
    assert!(began.elapsed() < TOLD, "it took {:?}", began.elapsed());
    assert!(!processes::lives(process.pid));
}

#[test]
fn an_order_whose_notification_was_lost_is_found() {
    let (one, two) = all_runs_on_the_first();
    let id = two.launch(&two.shell("sleep 600"), &json!({})).id;
    let process = one.instance(&id).wait_for_process();
    // Nobody listens at the moment: the connections of those who do are ended in the same transaction in which the order comes.
    let listeners = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                     where query like 'LISTEN%' and datname = current_database()";
    let ended = one.psql(listeners);
    assert_ne!(ended.trim(), "0", "somebody listens");
    let answer = two
        .instance(&id)
        .post("/stop", &json!({ "grace_period_seconds": 0, "reason": "" }));
    let _answered = answer.expect(200);
    eventually_within(
        Duration::from_secs(45),
        "the end of its process",
        || match processes::lives(process.pid) {
            true => Err(()),
            false => Ok(()),
        },
    );
}

#[test]
fn a_drained_node_hands_over() {
    let one = first();
    let two = second(&one);
    wait_until_guarded(&two, "first");
    wait_until_guarded(&two, "second");
    drain(&two, "second", 0);
    let run = two.follow(
        &two.scripted(),
        &json!([{ "checkpoint": "a" }, { "on_run": 1, "do": { "hang": true } }, { "checkpoint": "b" }]),
    );
    let id = run.id.clone();
    eventually("its checkpoint", || match run.checkpoints() {
        found if found == ["a"] => Ok(()),
        found => Err(found),
    });
    let hung = one.instance(&id).wait_for_process();
    undrain(&two, "second");
    drain(&two, "first", 2);
    let run = two.instance(&id);
    run.wait_within(Duration::from_secs(20), "completed");
    assert_eq!(run.checkpoints(), ["a", "b"]);
    assert_eq!(run.status()["run_number"], 2);
    assert_eq!(
        run.status()["retry_count"],
        0,
        "nothing is counted against it"
    );
    assert!(!processes::lives(hung.pid));
    // It takes nothing new, also what is started on it, until it is let.
    let elsewhere = one.launch(&one.shell("sleep 600"), &json!({})).id;
    let _process = two.instance(&elsewhere).wait_for_process();
    assert_eq!(node(&one, "first")["live_runs"], 0);
    let _stopped = one.instance(&elsewhere).stop(0);
    undrain(&two, "first");
    drain(&two, "second", 600);
    let back = two.launch(&two.shell("echo 1"), &json!({}));
    assert_eq!(back.output(), 1);
}

#[test]
fn a_drained_node_stays_drained_over_its_restart() {
    let one = first();
    let mut two = second(&one);
    drain(&one, "second", 0);
    assert!(two.sigterm().success());
    two.start_again();
    wait_until_guarded(&one, "second");
    assert_eq!(node(&one, "second")["state"], "draining");
    undrain(&one, "second");
    assert_eq!(node(&one, "second")["state"], "alive");
}

#[test]
fn nodes_are_listed_drained_and_removed_from_the_command_line() {
    let one = first();
    let mut two = second(&one);
    wait_until_guarded(&one, "second");
    let listed = one.runtara(&["node", "ls"]);
    let listed = listed.expect(0);
    for text in ["first", "second", "alive", "0 of 1000", "127.0.0.1:"] {
        assert!(listed.stdout.contains(text), "{text}: {listed:?}");
    }
    let drained = one.runtara(&["node", "drain", "second", "--hand-over-after", "0s"]);
    assert_eq!(drained.expect(0).stdout.trim(), "second is being drained");
    assert_eq!(node(&one, "second")["state"], "draining");
    let undrained = one.runtara(&["node", "undrain", "second"]);
    assert_eq!(undrained.expect(0).stdout.trim(), "second works again");
    let refused = one.runtara(&["node", "remove", "second"]).expect(1);
    assert!(refused.stderr.contains("lives"), "{refused:?}");
    let _unknown = one.runtara(&["node", "drain", "third"]).expect(3);

    two.kill_9();
    eventually_within(super::TAKEN_OVER, "the end of its lease", || {
        match node(&one, "second") {
            node if node["state"] == "dead" => Ok(()),
            node => Err(node),
        }
    });
    let removed = one.runtara(&["node", "remove", "second"]);
    assert_eq!(removed.expect(0).stdout.trim(), "second removed");
    let nodes = one.ask(&Request::get("/api/v1/nodes")).expect(200);
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 1, "{nodes}");
}
