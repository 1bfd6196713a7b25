//! The instance protocol, call by call, with good and bad input, as an instance sees it that registered itself.

mod scripts;
mod signals;

use runtara_tests::http::Request;
use runtara_tests::{Server, Store, TENANT, base64, from_base64, on_both_stores};
use serde_json::{Value, json};

on_both_stores!(
    health_answers,
    registration_makes_an_instance_that_runs,
    registration_says_what_is_wrong,
    an_instance_belongs_to_the_tenant_it_was_registered_for,
    a_finished_instance_cannot_register_again,
    a_checkpoint_is_saved_once_and_given_back,
    a_probe_saves_nothing,
    checkpoints_say_what_is_wrong,
    the_longest_checkpoint_id_is_taken,
    events_are_recorded,
    many_heartbeats_are_one_event,
    endings_say_why,
    suspension_needs_no_body,
    a_late_word_is_answered_and_changes_nothing,
    a_retry_is_recorded_and_is_no_checkpoint_that_could_be_found,
    status_never_has_a_null_status,
    a_parent_watches_a_child_of_its_tenant_and_no_other,
    input_of_an_instance_that_was_given_none_is_null,
    unknown_routes_and_methods_are_answered_in_json,
);

fn checkpoint(server: &Server, id: &str, checkpoint_id: &str, state: &str) -> Value {
    let body = json!({ "checkpoint_id": checkpoint_id, "state": base64(state) });
    server.say(id, "checkpoint", &body).expect(200)
}

fn register_again(server: &Server, id: &str, tenant: &str) -> runtara_tests::http::Answer {
    server.say(
        id,
        "register",
        &json!({ "tenant_id": tenant, "checkpoint_id": null }),
    )
}

fn health_answers(store: Store) {
    let server = Server::start(store);
    let body = server.ask_core(&Request::get("/health")).expect(200);
    assert_eq!(body["status"], "healthy");
    let ready = server.ask_core(&Request::get("/ready")).expect(200);
    assert_eq!(ready["runners"]["native"], true, "{ready}");
    assert_eq!(ready["ready"], true, "{ready}");
}

fn registration_makes_an_instance_that_runs(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let found = server.instance("own-1").status();
    assert_eq!(found["status"], "running", "{found}");
    assert_eq!(found["tenant_id"], TENANT, "{found}");
    assert!(found["started_at_ms"].is_i64(), "{found}");
    assert_eq!(server.instance("own-1").event_names(), ["started"]);
    // Again is fine: a program that comes anew.
    server.self_register("own-1");
}

fn registration_says_what_is_wrong(store: Store) {
    let server = Server::start(store);
    let say = |id: &str, body: Value| server.say(id, "register", &body);
    say("own-1", json!({ "tenant_id": "" })).refuses(400, "INVALID_ID");
    say("own-1", json!({ "tenant_id": "a/b" })).refuses(400, "INVALID_ID");
    say("own-1", json!({ "tenant_id": " " })).refuses(400, "INVALID_ID");
    say("%20", json!({ "tenant_id": TENANT })).refuses(400, "INVALID_ID");
    say("a%23b", json!({ "tenant_id": TENANT })).refuses(400, "INVALID_ID");
    say("own-1", json!({})).refuses(422, "INVALID_BODY");
    say(
        "own-1",
        json!({ "tenant_id": TENANT, "checkpoint_id": "never-saved" }),
    )
    .refuses(400, "CHECKPOINT_UNKNOWN");
    // Nothing of that has made an instance.
    assert_eq!(server.instance("own-1").status()["found"], false);
}

fn an_instance_belongs_to_the_tenant_it_was_registered_for(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    register_again(&server, "own-1", "stranger").refuses(403, "TENANT_MISMATCH");
    assert_eq!(server.instance("own-1").status()["tenant_id"], TENANT);
}

fn a_finished_instance_cannot_register_again(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let done = server.say("own-1", "completed", &json!({ "output": base64("42") }));
    assert_eq!(done.expect(200)["success"], true);
    register_again(&server, "own-1", TENANT).refuses(409, "INSTANCE_ENDED");
    let found = server.instance("own-1").status();
    assert_eq!(found["status"], "completed", "{found}");
    assert_eq!(from_base64(&found["output"]), "42");
}

fn a_checkpoint_is_saved_once_and_given_back(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let first = checkpoint(&server, "own-1", "step 1", "\"one\"");
    assert_eq!(first["found"], false, "{first}");
    let second = checkpoint(&server, "own-1", "step 1", "\"two\"");
    assert_eq!(second["found"], true, "{second}");
    assert_eq!(
        from_base64(&second["state"]),
        "\"one\"",
        "the state that was saved first stands"
    );
    assert_eq!(server.instance("own-1").status()["checkpoint_id"], "step 1");
}

fn a_probe_saves_nothing(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    for body in [
        json!({ "checkpoint_id": "durable::f::1", "state": "" }),
        json!({ "checkpoint_id": "durable::f::1", "state": null }),
        json!({ "checkpoint_id": "durable::f::1" }),
    ] {
        let probe = server.say("own-1", "checkpoint", &body).expect(200);
        assert_eq!(probe["found"], false, "{probe}");
    }
    assert!(server.instance("own-1").checkpoints().is_empty());
    assert_eq!(
        checkpoint(&server, "own-1", "durable::f::1", "7")["found"],
        false
    );
    let probe = server.say(
        "own-1",
        "checkpoint",
        &json!({ "checkpoint_id": "durable::f::1", "state": "" }),
    );
    let probe = probe.expect(200);
    assert_eq!(probe["found"], true, "{probe}");
    assert_eq!(from_base64(&probe["state"]), "7");
}

fn checkpoints_say_what_is_wrong(store: Store) {
    let server = Server::start(store);
    let say = |id: &str, body: Value| server.say(id, "checkpoint", &body);
    say(
        "nobody",
        json!({ "checkpoint_id": "a", "state": base64("1") }),
    )
    .refuses(404, "INSTANCE_NOT_FOUND");
    server.self_register("own-1");
    say("own-1", json!({ "checkpoint_id": "a", "state": "%%%" })).refuses(400, "INVALID_STATE");
    say(
        "own-1",
        json!({ "checkpoint_id": "", "state": base64("1") }),
    )
    .refuses(400, "INVALID_ID");
    say(
        "own-1",
        json!({ "checkpoint_id": "a\u{0}b", "state": base64("1") }),
    )
    .refuses(400, "INVALID_ID");
    say(
        "own-1",
        json!({ "checkpoint_id": "x".repeat(2_049), "state": base64("1") }),
    )
    .refuses(400, "INVALID_ID");
    say("own-1", json!({ "state": base64("1") })).refuses(422, "INVALID_BODY");
    let done = server.say("own-1", "completed", &json!({}));
    assert_eq!(done.expect(200)["success"], true);
    say(
        "own-1",
        json!({ "checkpoint_id": "a", "state": base64("1") }),
    )
    .refuses(409, "INSTANCE_ENDED");
    assert!(server.instance("own-1").checkpoints().is_empty());
}

fn the_longest_checkpoint_id_is_taken(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let id = "ä".repeat(1_024);
    assert_eq!(checkpoint(&server, "own-1", &id, "1")["found"], false);
    assert_eq!(checkpoint(&server, "own-1", &id, "2")["found"], true);
}

fn events_are_recorded(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let say = |body: Value| server.say("own-1", "events", &body);
    let accepted = [
        json!({ "event_type": "heartbeat" }),
        json!({ "event_type": "custom", "subtype": "progress", "payload": base64("{\"done\":1}") }),
        json!({ "event_type": "custom", "subtype": "empty", "payload": "" }),
        json!({ "event_type": "who-knows", "subtype": "odd", "payload": null, "checkpoint_id": null }),
    ];
    for body in accepted {
        assert_eq!(say(body).expect(200)["success"], true);
    }
    let run = server.instance("own-1");
    assert_eq!(
        run.event_names(),
        [
            "started",
            "heartbeat",
            "custom/progress",
            "custom/empty",
            "custom/odd"
        ]
    );
    let events = run.events();
    assert_eq!(from_base64(&events[2]["payload"]), "{\"done\":1}");
    assert_eq!(events[3].get("payload"), None, "an empty payload is none");
    say(json!({ "event_type": "custom", "payload": "%" })).refuses(400, "INVALID_PAYLOAD");
    say(json!({ "event_type": "custom", "subtype": "a\u{0}" })).refuses(400, "INVALID_SUBTYPE");
    say(json!({ "subtype": "x" })).refuses(422, "INVALID_BODY");
    say(json!({ "event_type": "custom", "subtype": "runtara.crashed" }))
        .refuses(400, "INVALID_REQUEST");
    server
        .say("nobody", "events", &json!({ "event_type": "custom" }))
        .refuses(404, "INSTANCE_NOT_FOUND");
}

fn many_heartbeats_are_one_event(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    for _ in 0..10 {
        let beat = server.say("own-1", "events", &json!({ "event_type": "heartbeat" }));
        assert_eq!(beat.expect(200)["success"], true);
    }
    let run = server.instance("own-1");
    assert_eq!(run.event_names(), ["started", "heartbeat"]);
    assert!(run.status()["heartbeat_at_ms"].is_i64(), "{}", run.status());
}

fn endings_say_why(store: Store) {
    let server = Server::start(store);
    for (id, call, body, status, reason) in [
        (
            "own-1",
            "completed",
            json!({ "output": base64("[1]") }),
            "completed",
            "completed",
        ),
        ("own-2", "completed", json!({}), "completed", "completed"),
        (
            "own-3",
            "failed",
            json!({ "error": "no money" }),
            "failed",
            "application_error",
        ),
        ("own-4", "failed", json!({}), "failed", "application_error"),
        ("own-5", "suspended", json!({}), "suspended", "paused"),
        (
            "own-6",
            "events",
            json!({ "event_type": "completed", "payload": base64("2") }),
            "completed",
            "completed",
        ),
        (
            "own-7",
            "events",
            json!({ "event_type": "failed", "payload": base64("bad") }),
            "failed",
            "application_error",
        ),
        (
            "own-8",
            "events",
            json!({ "event_type": "suspended" }),
            "suspended",
            "paused",
        ),
    ] {
        server.self_register(id);
        assert_eq!(server.say(id, call, &body).expect(200)["success"], true);
        let found = server.instance(id).status();
        assert_eq!(found["status"], status, "{found}");
        assert_eq!(found["termination_reason"], reason, "{found}");
        assert_eq!(
            found["finished_at_ms"].is_i64(),
            status != "suspended",
            "{found}"
        );
    }
    let status = |id: &str| server.instance(id).status();
    assert_eq!(from_base64(&status("own-1")["output"]), "[1]");
    assert_eq!(status("own-2").get("output"), None);
    assert_eq!(status("own-3")["error"], "no money");
    assert_eq!(status("own-4")["error"], "Unknown error");
    assert_eq!(status("own-7")["error"], "bad");
    server.self_register("own-9");
    server
        .say("own-9", "completed", &json!({ "output": "%" }))
        .refuses(400, "INVALID_OUTPUT");
    server
        .say("nobody", "completed", &json!({}))
        .refuses(404, "INSTANCE_NOT_FOUND");
    server
        .say("nobody", "failed", &json!({}))
        .refuses(404, "INSTANCE_NOT_FOUND");
}

fn suspension_needs_no_body(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let answer = server.ask_core(&Request::new("POST", "/api/v1/instances/own-1/suspended"));
    assert_eq!(answer.expect(200)["success"], true);
}

fn a_late_word_is_answered_and_changes_nothing(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let run = server.instance("own-1");
    assert_eq!(
        server
            .say("own-1", "completed", &json!({ "output": base64("1") }))
            .expect(200)["success"],
        true
    );
    let before = (run.status(), run.event_names());
    for (call, body) in [
        ("completed", json!({ "output": base64("2") })),
        ("failed", json!({ "error": "late" })),
        ("suspended", json!({})),
        ("signals/ack", json!({ "signal_type": "cancel" })),
        ("signals/ack", json!({ "signal_type": "pause" })),
    ] {
        assert_eq!(
            server.say("own-1", call, &body).expect(200)["success"],
            true
        );
    }
    assert_eq!((run.status(), run.event_names()), before);
    server
        .say(
            "own-1",
            "events",
            &json!({ "event_type": "custom", "subtype": "late" }),
        )
        .refuses(409, "INSTANCE_ENDED");
}

fn a_retry_is_recorded_and_is_no_checkpoint_that_could_be_found(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let body = json!({ "checkpoint_id": "pay", "attempt": 2, "error_message": "timeout" });
    assert_eq!(
        server.say("own-1", "retry", &body).expect(200)["success"],
        true
    );
    let probe = server.say(
        "own-1",
        "checkpoint",
        &json!({ "checkpoint_id": "pay", "state": "" }),
    );
    assert_eq!(probe.expect(200)["found"], false);
    let listed = server.instance("own-1").get("/checkpoints").expect(200);
    assert_eq!(
        listed["checkpoints"][0]["checkpoint_id"], "pay::retry::2",
        "{listed}"
    );
    assert_eq!(listed["checkpoints"][0]["data_size_bytes"], 0, "{listed}");
    server
        .say(
            "own-1",
            "retry",
            &json!({ "checkpoint_id": "pay", "attempt": -1 }),
        )
        .refuses(422, "INVALID_BODY");
}

fn status_never_has_a_null_status(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let found = server.look("own-1", "status").expect(200);
    assert_eq!(found["found"], true, "{found}");
    assert_eq!(found["instance_id"], "own-1");
    assert_eq!(found["status"], "running");
    let request = Request::get("/api/v1/instances/nobody/status")
        .header("X-Runtara-Instance-Id", "own-1")
        .header("X-Runtara-Tenant-Id", TENANT);
    let unknown = server.ask_core(&request).expect(200);
    assert_eq!(unknown["found"], false, "{unknown}");
    assert_eq!(unknown["status"], "unknown", "{unknown}");
}

fn a_parent_watches_a_child_of_its_tenant_and_no_other(store: Store) {
    let server = Server::start(store);
    server.self_register("parent");
    server.self_register("child");
    let answer = server.say("stranger", "register", &json!({ "tenant_id": "other" }));
    assert_eq!(answer.expect(200)["success"], true);
    assert_eq!(
        server
            .say("child", "completed", &json!({ "output": base64("5") }))
            .expect(200)["success"],
        true
    );
    let watch = |id: &str| {
        let request = Request::get(&format!("/api/v1/instances/{id}/status"));
        server
            .ask_core(&request.header("X-Runtara-Instance-Id", "parent"))
            .expect(200)
    };
    let child = watch("child");
    assert_eq!(child["status"], "completed", "{child}");
    assert_eq!(from_base64(&child["output"]), "5");
    assert_eq!(
        watch("stranger")["found"],
        false,
        "another tenant's instance is not shown"
    );
}

fn input_of_an_instance_that_was_given_none_is_null(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let input = server.look("own-1", "input").expect(200);
    assert_eq!(input["found"], true, "{input}");
    assert_eq!(input["input"], Value::Null, "{input}");
    server
        .look("nobody", "input")
        .refuses(404, "INSTANCE_NOT_FOUND");
}

fn unknown_routes_and_methods_are_answered_in_json(store: Store) {
    let server = Server::start(store);
    server
        .ask_core(&Request::get("/api/v1/nothing"))
        .refuses(404, "UNKNOWN_ROUTE");
    server
        .ask_core(&Request::get("/api/v1/instances/a/register"))
        .refuses(405, "METHOD_NOT_ALLOWED");
    let no_json = Request::new("POST", "/api/v1/instances/a/register").body("tenant_id=a");
    server
        .ask_core(&no_json)
        .refuses(415, "UNSUPPORTED_MEDIA_TYPE");
    let broken = no_json.header("Content-Type", "application/json");
    server.ask_core(&broken).refuses(400, "INVALID_JSON");
}
