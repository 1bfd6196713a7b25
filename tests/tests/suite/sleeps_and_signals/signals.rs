//! Cancel, pause, resume and custom signals.

use std::time::Duration;

use nix::sys::signal::Signal;
use runtara_tests::http::Answer;
use runtara_tests::{
    Ground, Run, Server, Store, base64, eventually, from_base64, holds_for, in_both_kinds,
    in_every_kind, natively_and_in_guests, on_both_stores, processes,
};
use serde_json::{Value, json};

use super::puppet;

on_both_stores!(a_pause_that_was_answered_by_leaving_is_not_shown_again,);

natively_and_in_guests!(
    a_signal_that_was_read_and_lost_is_shown_to_the_next_run,
    whoever_has_no_process_is_cancelled_at_once,
);

in_both_kinds!(
    a_cancel_is_not_erased_by_a_later_pause,
    a_pause_is_followed_by_a_cancel,
    a_resume_withdraws_a_pause_that_nobody_has_seen,
    a_resume_comes_after_a_pause_that_was_seen,
    a_program_that_leaves_upon_a_cancel_is_cancelled,
    a_pause_of_a_program_that_dies_of_it_is_a_pause,
    payloads_of_signals_come_through_as_they_are,
);

in_every_kind!(
    a_pause_and_a_resume_bring_it_back,
    a_resume_that_is_sent_as_a_signal_resumes,
);

fn save(run: &Run<'_>, token: &str, id: &str) -> Value {
    run.say_with(
        token,
        "checkpoint",
        &json!({ "checkpoint_id": id, "state": base64("1") }),
    )
    .expect(200)
}

fn shown(answer: &Answer) -> Value {
    answer.expect(200)["signal"]["signal_type"].clone()
}

fn a_signal_that_was_read_and_lost_is_shown_to_the_next_run(ground: Ground) {
    let server = Server::start(ground);
    let run = server.follow(
        &server.scripted(),
        &json!([
            { "signal": "paid" },
            { "on_run": 1, "do": server.death() },
            { "checkpoint": "booked" },
            { "on_run": 2, "do": server.death() },
            { "take_signal": "paid" },
        ]),
    );
    run.wait_until_it_runs();
    run.custom_signal("paid", "12");
    run.wait_until("the first crash", |found| {
        found["status_reason"] == "crashed" || found["run_number"] != 1
    });
    // The second run sees it again and then saves: from there on it is used up, and the third waits for another.
    eventually("the checkpoint", || {
        if run.checkpoints() == ["booked"] {
            Ok(())
        } else {
            Err(run.story())
        }
    });
    run.wait_until("the third run", |found| {
        found["run_number"] == 3 && found["status"] == "running"
    });
    holds_for(Duration::from_millis(700), "waiting", || {
        let found = run.status();
        if found["status"] == "running" {
            Ok(())
        } else {
            Err(found)
        }
    });
    run.custom_signal("paid", "13");
    assert_eq!(run.output()["seen"]["booked"], 2);
}

fn a_cancel_is_not_erased_by_a_later_pause(ground: Ground) {
    let server = Server::start(ground);
    let (run, token) = puppet(&server);
    assert_eq!(run.signal("cancel").expect(200)["success"], true);
    assert_eq!(run.signal("pause").expect(200)["success"], true);
    assert_eq!(shown(&run.look_with(&token, "signals")), "cancel");
    // Acknowledging the pause, too, ends as cancelled: the cancel wins over everything.
    let ack = run.say_with(&token, "signals/ack", &json!({ "signal_type": "pause" }));
    assert_eq!(ack.expect(200)["success"], true);
    assert_eq!(run.wait_for("cancelled")["termination_reason"], "cancelled");
}

fn a_pause_is_followed_by_a_cancel(ground: Ground) {
    let server = Server::start(ground);
    let (run, token) = puppet(&server);
    assert_eq!(run.signal("pause").expect(200)["success"], true);
    assert_eq!(shown(&run.look_with(&token, "signals")), "pause");
    assert_eq!(run.signal("cancel").expect(200)["success"], true);
    assert_eq!(shown(&run.look_with(&token, "signals")), "cancel");
    assert_eq!(
        run.say_with(&token, "suspended", &json!({})).expect(200)["success"],
        true
    );
    run.wait_for("cancelled");
}

fn a_pause_that_was_answered_by_leaving_is_not_shown_again(store: Store) {
    let server = Server::start(store);
    let run = server.follow(&server.scripted(), &json!([
        { "on_run": 1, "do": [{ "touch": server.shared().path("ready") }, { "until_file": server.shared().path("sent") }, { "suspend": true }] },
        { "checkpoint": "a" },
        { "poll": true },
    ]));
    let _ready = server.shared().wait_for("ready");
    assert_eq!(run.signal("pause").expect(200)["success"], true);
    server.shared().touch("sent");
    run.wait_for_reason("paused");
    run.resume();
    assert_eq!(run.output()["run"], 2, "{}", run.story());
}

fn a_pause_and_a_resume_bring_it_back(ground: Ground) {
    let server = Server::start(ground);
    let run = server.follow(
        &server.scripted(),
        &json!([
            { "checkpoint": { "id": "a", "value": 1 } },
            { "on_run": 1, "do": { "await_order": true } },
            { "checkpoint": { "id": "b", "value": 2 } },
        ]),
    );
    eventually("its checkpoint", || {
        if run.checkpoints() == ["a"] {
            Ok(())
        } else {
            Err(run.story())
        }
    });
    assert_eq!(run.signal("pause").expect(200)["success"], true);
    let found = run.wait_for_reason("paused");
    assert!(
        found.get("finished_at_ms").is_none_or(Value::is_null),
        "a pause is no end: {found}"
    );
    run.resume();
    let output = run.output();
    assert_eq!(
        (&output["sum"], &output["run"]),
        (&json!(3), &json!(2)),
        "{output}"
    );
}

fn a_resume_withdraws_a_pause_that_nobody_has_seen(ground: Ground) {
    let server = Server::start(ground);
    let (run, token) = puppet(&server);
    assert_eq!(run.signal("pause").expect(200)["success"], true);
    run.resume();
    assert_eq!(shown(&run.look_with(&token, "signals")), Value::Null);
    assert_eq!(run.status()["run_number"], 1);
}

fn a_resume_comes_after_a_pause_that_was_seen(ground: Ground) {
    let server = Server::start(ground);
    let (run, token) = puppet(&server);
    assert_eq!(run.signal("pause").expect(200)["success"], true);
    assert_eq!(shown(&run.look_with(&token, "signals")), "pause");
    run.resume();
    let ack = run.say_with(&token, "signals/ack", &json!({ "signal_type": "pause" }));
    assert_eq!(ack.expect(200)["success"], true);
    let process = run.wait_for_process();
    processes::send(process.pid, Signal::SIGKILL);
    run.wait_until("the second run", |found| {
        found["run_number"] == 2 && found["status"] == "running"
    });
}

fn a_resume_that_is_sent_as_a_signal_resumes(ground: Ground) {
    let server = Server::start(ground);
    let run = server.follow(
        &server.scripted(),
        &json!([{ "on_run": 1, "do": { "suspend": true } }, { "complete": "back" }]),
    );
    run.wait_for_reason("paused");
    assert_eq!(run.signal("resume").expect(200)["success"], true);
    assert_eq!(run.output(), "back");
}

fn whoever_has_no_process_is_cancelled_at_once(ground: Ground) {
    let server = Server::start(ground);
    let image = server.scripted();
    let pending = server.launch(&image, &json!({ "delay_ms": 3_600_000 }));
    let suspended = server.follow(&image, &json!([{ "suspend": true }]));
    let dies = json!({ "input": { "actions": [server.death()] }, "max_attempts": 50 });
    let crashing = server.launch(&image, &dies);
    suspended.wait_for_reason("paused");
    suspended.wait_until_no_process();
    crashing.wait_for_reason("crashed");
    for run in [&pending, &suspended, &crashing] {
        assert_eq!(run.signal("cancel").expect(200)["success"], true);
        let found = run.wait_for("cancelled");
        assert!(found["finished_at_ms"].is_i64(), "{found}");
    }
    holds_for(Duration::from_secs(3), "that none comes back", || {
        let runs = [&pending, &suspended, &crashing].map(|run| run.status()["status"].clone());
        if runs.iter().all(|status| status == "cancelled") {
            Ok(())
        } else {
            Err(runs)
        }
    });
}

fn a_program_that_leaves_upon_a_cancel_is_cancelled(ground: Ground) {
    let server = Server::start(ground);
    let image = server.scripted();
    let speaks = server.follow(&image, &json!([{ "await_order": true }]));
    let (silent, token) = puppet(&server);
    let _running = speaks.wait_for_process();
    for run in [&speaks, &silent] {
        assert_eq!(run.signal("cancel").expect(200)["success"], true);
    }
    speaks.wait_for("cancelled");
    // Shown to it, and it dies without acknowledging.
    assert_eq!(shown(&silent.look_with(&token, "signals")), "cancel");
    processes::send(silent.wait_for_process().pid, Signal::SIGKILL);
    silent.wait_for("cancelled");
}

fn a_pause_of_a_program_that_dies_of_it_is_a_pause(ground: Ground) {
    let server = Server::start(ground);
    let (run, token) = puppet(&server);
    assert_eq!(run.signal("pause").expect(200)["success"], true);
    assert_eq!(save(&run, &token, "a")["signal"]["signal_type"], "pause");
    processes::send(run.wait_for_process().pid, Signal::SIGKILL);
    run.wait_for_reason("paused");
}

fn payloads_of_signals_come_through_as_they_are(ground: Ground) {
    let server = Server::start(ground);
    let (run, token) = puppet(&server);
    let body = json!({ "signal_type": "pause", "payload": "ünï \"quoted\"\n" });
    assert_eq!(run.post("/signals", &body).expect(200)["success"], true);
    let polled = run.look_with(&token, "signals").expect(200);
    assert_eq!(
        from_base64(&polled["signal"]["payload"]),
        "ünï \"quoted\"\n"
    );
    run.custom_signal("empty", "");
    let taken = run.look_with(&token, "signals/empty").expect(200);
    assert_eq!(taken["custom_signal"]["checkpoint_id"], "empty", "{taken}");
    assert!(
        taken["custom_signal"]
            .get("payload")
            .is_none_or(Value::is_null),
        "{taken}"
    );
}
