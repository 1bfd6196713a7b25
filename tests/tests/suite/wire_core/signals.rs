//! Signals, sleeps and waits.

use std::time::{Duration, Instant};

use runtara_tests::{Server, Store, base64, from_base64, milliseconds, on_both_stores};
use serde_json::{Value, json};

use super::checkpoint;

on_both_stores!(
    a_pending_signal_is_shown_by_every_call_until_it_is_acknowledged,
    polling_an_unknown_instance_finds_nothing,
    acknowledging_a_cancel_cancels,
    a_custom_signal_is_given_to_the_run_that_asks_for_it_and_once,
    custom_signals_may_have_any_name,
    a_custom_signal_comes_with_the_checkpoint_of_its_name,
    the_second_custom_signal_of_a_name_replaces_the_first,
    a_self_registered_sleeper_is_held_to_the_end,
    sleeps_say_what_is_wrong,
    a_wait_for_a_signal_is_answered_by_the_signal_or_the_time,
    a_suspension_with_a_wake_time_is_kept,
);

fn a_pending_signal_is_shown_by_every_call_until_it_is_acknowledged(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let body = json!({ "signal_type": "pause", "payload": "because" });
    let sent = server.instance("own-1").post("/signals", &body);
    assert_eq!(sent.expect(200)["success"], true);
    for _ in 0..2 {
        let polled = server.look("own-1", "signals").expect(200);
        assert_eq!(polled["signal"]["signal_type"], "pause", "{polled}");
        assert_eq!(from_base64(&polled["signal"]["payload"]), "because");
        let saved = checkpoint(&server, "own-1", "a", "1");
        assert_eq!(saved["signal"]["signal_type"], "pause", "{saved}");
    }
    let ack = server.say("own-1", "signals/ack", &json!({ "signal_type": "pause" }));
    assert_eq!(ack.expect(200)["success"], true);
    let found = server.instance("own-1").status();
    assert_eq!(found["status"], "suspended", "{found}");
    assert_eq!(found["termination_reason"], "paused", "{found}");
    let polled = server.look("own-1", "signals").expect(200);
    assert!(polled.get("signal").is_none_or(Value::is_null), "{polled}");
}

fn polling_an_unknown_instance_finds_nothing(store: Store) {
    let server = Server::start(store);
    let polled = server.look("nobody", "signals").expect(200);
    assert!(polled.get("signal").is_none_or(Value::is_null), "{polled}");
}

fn acknowledging_a_cancel_cancels(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    assert_eq!(
        server.instance("own-1").signal("cancel").expect(200)["success"],
        true
    );
    server
        .say(
            "own-1",
            "signals/ack",
            &json!({ "signal_type": "shutdown" }),
        )
        .refuses(400, "INVALID_SIGNAL_TYPE");
    let ack = server.say("own-1", "signals/ack", &json!({ "signal_type": "cancel" }));
    assert_eq!(ack.expect(200)["success"], true);
    let found = server.instance("own-1").status();
    assert_eq!(found["status"], "cancelled", "{found}");
    assert_eq!(found["termination_reason"], "cancelled", "{found}");
    assert!(found["finished_at_ms"].is_i64(), "{found}");
}

fn a_custom_signal_is_given_to_the_run_that_asks_for_it_and_once(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let run = server.instance("own-1");
    assert_eq!(
        server
            .look("own-1", "signals/paid")
            .expect(200)
            .get("custom_signal"),
        None
    );
    run.custom_signal("paid", "12 EUR");
    let taken = server.look("own-1", "signals/paid").expect(200);
    assert_eq!(taken["custom_signal"]["checkpoint_id"], "paid", "{taken}");
    assert_eq!(from_base64(&taken["custom_signal"]["payload"]), "12 EUR");
    assert_eq!(
        server
            .look("own-1", "signals/paid")
            .expect(200)
            .get("custom_signal"),
        None
    );
}

fn custom_signals_may_have_any_name(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let run = server.instance("own-1");
    // Two are called like routes; one needs percent-encoding, one holds what looks encoded.
    for (name, in_path) in [
        ("ack", "ack"),
        ("wait", "wait"),
        ("a/b ?", "a%2Fb%20%3F"),
        ("100%41", "100%2541"),
    ] {
        run.custom_signal(name, name);
        let taken = server
            .look("own-1", &format!("signals/{in_path}"))
            .expect(200);
        assert_eq!(
            from_base64(&taken["custom_signal"]["payload"]),
            name,
            "{taken}"
        );
    }
}

fn a_custom_signal_comes_with_the_checkpoint_of_its_name(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let run = server.instance("own-1");
    run.custom_signal("approve", "yes");
    let probe = server.say(
        "own-1",
        "checkpoint",
        &json!({ "checkpoint_id": "approve", "state": "" }),
    );
    assert_eq!(
        probe.expect(200).get("custom_signal"),
        None,
        "a probe does not take it"
    );
    let saved = checkpoint(&server, "own-1", "approve", "1");
    assert_eq!(
        from_base64(&saved["custom_signal"]["payload"]),
        "yes",
        "{saved}"
    );
    assert_eq!(
        checkpoint(&server, "own-1", "approve", "1").get("custom_signal"),
        None
    );
}

fn the_second_custom_signal_of_a_name_replaces_the_first(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let run = server.instance("own-1");
    run.custom_signal("price", "1");
    run.custom_signal("price", "2");
    let taken = server.look("own-1", "signals/price").expect(200);
    assert_eq!(
        from_base64(&taken["custom_signal"]["payload"]),
        "2",
        "{taken}"
    );
    assert_eq!(
        server
            .look("own-1", "signals/price")
            .expect(200)
            .get("custom_signal"),
        None
    );
}

fn a_self_registered_sleeper_is_held_to_the_end(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let before = Instant::now();
    let body = json!({ "duration_ms": 700, "checkpoint_id": "nap", "state": base64("1") });
    let slept = server.say("own-1", "sleep", &body);
    assert_eq!(slept.expect(200)["success"], true);
    let took = before.elapsed();
    assert!(
        took >= Duration::from_millis(700),
        "answered after {took:?}"
    );
    assert_eq!(server.instance("own-1").checkpoints(), ["nap"]);
    assert_eq!(server.instance("own-1").status()["status"], "running");
}

fn sleeps_say_what_is_wrong(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let say = |body: Value| server.say("own-1", "sleep", &body);
    say(json!({ "duration_ms": 1, "checkpoint_id": "a", "state": "%" }))
        .refuses(400, "INVALID_STATE");
    say(json!({ "duration_ms": -1, "checkpoint_id": "a", "state": "" }))
        .refuses(422, "INVALID_BODY");
    say(json!({ "duration_ms": u64::MAX, "checkpoint_id": "a", "state": "" }))
        .refuses(400, "INVALID_REQUEST");
    say(json!({ "checkpoint_id": "a" })).refuses(422, "INVALID_BODY");
    server
        .say(
            "nobody",
            "sleep",
            &json!({ "duration_ms": 1, "checkpoint_id": "a", "state": "" }),
        )
        .refuses(404, "INSTANCE_NOT_FOUND");
}

fn a_wait_for_a_signal_is_answered_by_the_signal_or_the_time(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let wait = |timeout: u64| {
        server
            .say(
                "own-1",
                "signals/wait",
                &json!({ "signal_id": "go", "timeout_ms": timeout }),
            )
            .expect(200)
    };
    let missed = wait(100);
    assert_eq!(missed["timed_out"], true, "{missed}");
    assert_eq!(missed["signal"], Value::Null, "{missed}");
    let met = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(30_000));
        server.instance("own-1").custom_signal("go", "now");
        waiting.join().expect("the wait is answered")
    });
    assert_eq!(met["timed_out"], false, "{met}");
    assert_eq!(from_base64(&met["signal"]["payload"]), "now", "{met}");
}

fn a_suspension_with_a_wake_time_is_kept(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let wake = milliseconds() + 3_600_000;
    let payload = json!({ "wake_at_ms": wake, "state": base64("7") });
    let body = json!({
        "event_type": "suspended", "checkpoint_id": "night", "payload": base64(payload.to_string()),
    });
    assert_eq!(
        server.say("own-1", "events", &body).expect(200)["success"],
        true
    );
    let found = server.instance("own-1").status();
    assert_eq!(found["status"], "suspended", "{found}");
    assert_eq!(found["termination_reason"], "sleeping", "{found}");
    assert_eq!(server.instance("own-1").checkpoints(), ["night"]);
}
