//! All that a script can say, as a process says it over HTTP and a guest by calls of the host: what comes of it is the same.

use runtara_tests::{Ground, Server, from_base64, natively_and_in_guests};
use serde_json::{Value, json};

natively_and_in_guests!(a_script_is_played_alike, a_short_script_is_played_alike,);

fn a_script_is_played_alike(ground: Ground) {
    const ODD: &str = "ünï \"quoted\" \\ 😀\n";
    let server = Server::start(ground);
    let value = json!({ "a": [1, { "b": "é\t" }, []], "c": {}, "n": null, "x": -1.5e3 });
    let run = server.follow(
        &server.scripted(),
        &json!([
            { "checkpoint": "plain" },
            { "checkpoint": { "id": ODD, "value": value } },
            { "repeat": 2, "do": [{ "checkpoint": { "id": "step-{i}", "value": 10 } }] },
            { "on_run": 2, "do": { "fail": "there is no second run" } },
            { "from_run": 1, "do": [{ "event": { "subtype": "up", "payload": { "to": ODD } } }, []] },
            { "progress": { "message": "half", "percent": 50.5 } },
            { "heartbeat": true },
            { "retry": { "id": "charge", "attempt": 2, "error": "declined" } },
            { "take_signal": "nothing" },
            { "wait_signal": { "id": "late", "timeout_ms": 50 } },
            { "sleep": { "id": "nap", "ms": 50 } },
            { "poll": true },
            { "work": 1 },
            { "print": ODD },
            { "print_error": "to stderr" },
        ]),
    );
    assert_eq!(
        run.output(),
        json!({
            "sum": 21, "run": 1,
            "seen": { "plain": 1, (ODD): value, "step-1": 10, "step-2": 10, "nothing": null, "late": null },
        })
    );
    assert_eq!(
        run.checkpoints(),
        ["plain", ODD, "step-1", "step-2", "charge::retry::2", "nap"]
    );
    assert_eq!(
        run.event_names(),
        [
            "started",
            "custom/up",
            "custom/progress",
            "heartbeat",
            "custom/runtara.retry",
            "completed"
        ]
    );
    let payload = |subtype: &str| -> Value {
        let events = run.events();
        let event = events.iter().find(|event| event["subtype"] == subtype);
        let text = from_base64(&event.expect("it is there")["payload"]);
        serde_json::from_str(&text).expect("it is JSON")
    };
    assert_eq!(payload("up"), json!({ "to": ODD }));
    assert_eq!(
        payload("progress"),
        json!({ "message": "half", "percent": 50.5 })
    );
    run.wait_until_no_process();
    assert_eq!(run.logs("stream=stdout").text(), format!("{ODD}\n"));
    assert_eq!(run.logs("stream=stderr").text(), "to stderr\n");
}

fn a_short_script_is_played_alike(ground: Ground) {
    let server = Server::start(ground);
    let image = server.scripted();
    let input = json!({ "steps": 3, "step_ms": 1, "sleep_at": 1, "sleep_ms": 50, "crash_at": 3, "signal": "go" });
    let run = server.launch(&image, &json!({ "input": input }));
    run.custom_signal("go", "now");
    assert_eq!(
        run.output(),
        json!({
            "sum": 6, "run": 2,
            "seen": { "step-1": 1, "step-2": 2, "step-3": 3, "go": "now" },
        })
    );
    let fails = json!({ "input": { "steps": 2, "fail_at": 2 } });
    let found = server.launch(&image, &fails).wait_for("failed");
    assert_eq!(found["error"], "failed before step 2, as told", "{found}");
    let unknown = server.follow(&image, &json!([{ "dance": true }]));
    let error = unknown.wait_for("failed")["error"].to_string();
    assert!(error.contains("dance"), "{error}");
}
