//! Cancel, pause and resume, as guests see them: the order in which they are sent and seen decides.

use runtara_tests::{Run, Server, Store, eventually, on_both_stores};
use serde_json::{Value, json};

use super::follow;

on_both_stores!(
    a_cancel_is_not_erased_by_a_later_pause,
    a_pause_is_followed_by_a_cancel,
    a_resume_withdraws_a_pause_that_nobody_has_seen,
    a_resume_comes_after_a_pause_that_was_seen,
    a_guest_that_traps_upon_a_cancel_is_cancelled_and_upon_a_pause_is_paused,
    a_completion_within_the_grace_wins,
);

fn send(run: &Run<'_>, signal: &str) {
    assert_eq!(run.signal(signal).expect(200)["success"], true);
}

/// Waits until the guest has left an event of this subtype.
fn wait_for_event(run: &Run<'_>, subtype: &str) {
    let name = format!("custom/{subtype}");
    eventually(&format!("its event {subtype}"), || {
        let names = run.event_names();
        match names.contains(&name) {
            true => Ok(()),
            false => Err(names),
        }
    });
}

fn a_cancel_is_not_erased_by_a_later_pause(store: Store) {
    let server = Server::start(store);
    // It acknowledges the pause, too, and ends as cancelled: the cancel wins over everything.
    let script = ["event up", "until go", "acknowledge pause", "leave 0"];
    let run = follow(&server, &script);
    wait_for_event(&run, "up");
    send(&run, "cancel");
    send(&run, "pause");
    run.custom_signal("go", "1");
    assert_eq!(run.wait_for("cancelled")["termination_reason"], "cancelled");
}

fn a_pause_is_followed_by_a_cancel(store: Store) {
    let server = Server::start(store);
    let script = [
        "event up",
        "until first",
        "poll",
        "event polled",
        "until second",
        "poll",
        "suspend",
    ];
    let run = follow(&server, &script);
    // One that is paused before it runs does not run at all.
    wait_for_event(&run, "up");
    send(&run, "pause");
    run.custom_signal("first", "1");
    wait_for_event(&run, "polled");
    send(&run, "cancel");
    run.custom_signal("second", "1");
    run.wait_for("cancelled");
}

fn a_resume_withdraws_a_pause_that_nobody_has_seen(store: Store) {
    let server = Server::start(store);
    let run = follow(&server, &["event up", "until go", "poll"]);
    wait_for_event(&run, "up");
    send(&run, "pause");
    run.resume();
    run.custom_signal("go", "1");
    let output = run.output();
    assert_eq!(
        (&output["seen"]["poll"], &output["run"]),
        (&Value::Null, &json!(1)),
        "{output}"
    );
}

fn a_resume_comes_after_a_pause_that_was_seen(store: Store) {
    let server = Server::start(store);
    let script = [
        "on 2 complete \"back\"",
        "on 2 leave 0",
        "event up",
        "until first",
        "poll",
        "event polled",
        "until second",
        "acknowledge pause",
        "leave 0",
    ];
    let run = follow(&server, &script);
    wait_for_event(&run, "up");
    send(&run, "pause");
    run.custom_signal("first", "1");
    wait_for_event(&run, "polled");
    run.resume();
    run.custom_signal("second", "1");
    assert_eq!(run.output(), "back");
    assert_eq!(run.status()["run_number"], 2);
}

fn a_guest_that_traps_upon_a_cancel_is_cancelled_and_upon_a_pause_is_paused(store: Store) {
    let server = Server::start(store);
    let script = ["event up", "until go", "poll", "trap"];
    let [cancelled, paused] =
        [("cancel", "cancelled"), ("pause", "suspended")].map(|(signal, end)| {
            let run = follow(&server, &script);
            wait_for_event(&run, "up");
            send(&run, signal);
            run.custom_signal("go", "1");
            run.wait_for(end);
            run
        });
    assert_eq!(cancelled.status()["termination_reason"], "cancelled");
    let found = paused.wait_for_reason("paused");
    assert_eq!(found["retry_count"], 0, "{found}");
}

fn a_completion_within_the_grace_wins(store: Store) {
    let server = Server::start(store);
    // It hears of the stop, and has the grace to bring its work to an end.
    let run = follow(
        &server,
        &["event up", "listen", "complete \"in time\"", "leave 0"],
    );
    wait_for_event(&run, "up");
    assert_eq!(
        run.stop(20),
        json!({ "success": true, "status": "completed", "process_gone": true }),
        "stop says so"
    );
    assert_eq!(run.output(), "in time");
}
