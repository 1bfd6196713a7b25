//! The environment protocol, route by route, with good and bad input.

mod bad_input;
mod lists;
mod records;

use std::time::{Duration, Instant};

use runtara_tests::http::{Answer, Request};
use runtara_tests::{
    Ground, Image, Server, Store, TENANT, eventually, from_base64, in_every_kind, milliseconds,
    on_both_stores,
};
use serde_json::{Value, json};

on_both_stores!(
    health_says_version_and_uptime,
    a_start_says_what_is_wrong,
    an_unknown_instance_is_not_found,
    signals_say_what_is_wrong,
    agents_are_answered_in_the_form_that_clients_read,
    every_error_is_json,
    errors_do_not_show_the_inside,
    variables_of_the_image_fill_in_what_the_input_leaves_out,
);

in_every_kind!(
    a_started_instance_is_told_with_all_that_clients_read,
    a_start_needs_image_and_tenant_alone,
    a_status_can_be_waited_for,
    stop_and_resume_answer_as_clients_read_them,
    a_completed_instance_is_not_resumed,
    a_delayed_start_waits_for_its_time,
    an_ended_instance_can_be_purged,
);

fn start(server: &Server, body: &Value) -> Answer {
    server.ask(&Request::post("/api/v1/instances", body))
}

fn health_says_version_and_uptime(store: Store) {
    let server = Server::start(store);
    let body = server.ask(&Request::get("/api/v1/health")).expect(200);
    assert_eq!(body["healthy"], true, "{body}");
    assert!(
        body["version"].is_string() && body["uptime_ms"].is_i64(),
        "{body}"
    );
    assert_eq!(server.ask(&Request::get("/health")).status, 200);
    let ready = server.ask(&Request::get("/ready")).expect(200);
    assert_eq!(ready["ready"], true, "{ready}");
    assert_eq!(ready["database"], true, "{ready}");
}

fn a_started_instance_is_told_with_all_that_clients_read(ground: Ground) {
    let server = Server::start(ground);
    let image = server.program("echoes_input");
    let run = server.launch(&image, &json!({ "input": { "a": [1, "zwei"] }, "env": {} }));
    assert_eq!(run.output(), json!({ "a": [1, "zwei"] }));
    // One that speaks is completed before it has left.
    run.wait_until_no_process();
    let found = run.status();
    assert_eq!(found["found"], true, "{found}");
    assert_eq!(found["instance_id"], run.id);
    assert_eq!(found["status"], "completed");
    assert_eq!(found["termination_reason"], "completed");
    assert_eq!(found["tenant_id"], TENANT);
    assert_eq!(found["image_id"], image.0);
    assert_eq!(found["image_name"], "echoes_input");
    assert_eq!(from_base64(&found["input"]), r#"{"a":[1,"zwei"]}"#);
    assert_eq!(found["exit_code"], 0, "{found}");
    assert_eq!(found["retry_count"], 0);
    assert_eq!(
        found["max_retries"], 2,
        "three launches are two retries: {found}"
    );
    for time in ["created_at_ms", "started_at_ms", "finished_at_ms"] {
        assert!(found[time].is_i64(), "{time} in {found}");
    }
    for figure in ["memory_peak_bytes", "cpu_usage_usec"] {
        assert!(found[figure].is_u64(), "{figure} in {found}");
    }
    let time = found["time_in_states_ms"].as_object().expect("an object");
    let statuses: Vec<_> = time.keys().map(String::as_str).collect();
    assert_eq!(statuses, ["pending", "running", "suspended"], "{found}");
    assert!(time.values().all(Value::is_u64), "{found}");
    assert!(
        found["created_at_ms"].as_i64() <= found["started_at_ms"].as_i64(),
        "{found}"
    );
    assert!(
        found["started_at_ms"].as_i64() <= found["finished_at_ms"].as_i64(),
        "{found}"
    );
}

fn a_start_needs_image_and_tenant_alone(ground: Ground) {
    let server = Server::start(ground);
    let image = server.program("echoes_input");
    let run = server.launch(&image, &json!({}));
    assert_eq!(
        run.id.len(),
        36,
        "an id that is not given is a UUID: {}",
        run.id
    );
    assert_eq!(
        run.output(),
        json!({}),
        "an input that is not given is an empty object"
    );
    let nulls = json!({ "instance_id": null, "input": null, "timeout_seconds": null, "env": null });
    assert_eq!(server.launch(&image, &nulls).output(), json!({}));
    let empty = server.launch(&image, &json!({ "instance_id": "" }));
    assert_eq!(empty.id.len(), 36);
    // What people write for no limit.
    let unlimited = server.launch(&image, &json!({ "timeout_seconds": u32::MAX }));
    assert_eq!(unlimited.output(), json!({}));
}

fn a_start_says_what_is_wrong(store: Store) {
    let server = Server::start(store);
    let image = server.program("exits_with");
    let refused = |body: Value| {
        let answer = start(&server, &body);
        assert_eq!(answer.status, 400, "{answer}");
        let body = answer.json();
        assert_eq!(body["success"], false, "{body}");
        (
            body["code"].as_str().unwrap_or_default().to_owned(),
            body["error"].as_str().unwrap_or_default().to_owned(),
        )
    };
    // Published clients look for the words "not found", here and nowhere else.
    for unknown in ["no-such-image", "00000000-0000-4000-8000-000000000000"] {
        let (_, error) = refused(json!({ "image_id": unknown, "tenant_id": TENANT }));
        assert_eq!(error, format!("Image '{unknown}' not found"));
    }
    let (_, error) = refused(json!({ "image_id": image.0, "tenant_id": "stranger" }));
    assert_eq!(error, format!("Image '{}' not found", image.0));
    for (more, code) in [
        (json!({ "instance_id": "a/b" }), "INVALID_ID"),
        (json!({ "instance_id": "a%b" }), "INVALID_ID"),
        (json!({ "instance_id": "a\u{0}b" }), "INVALID_ID"),
        (json!({ "instance_id": ".." }), "INVALID_ID"),
        (json!({ "instance_id": " " }), "INVALID_ID"),
        (json!({ "instance_id": "order-1 " }), "INVALID_ID"),
        (json!({ "instance_id": "x".repeat(256) }), "INVALID_ID"),
        (json!({ "tenant_id": "a#b" }), "INVALID_ID"),
        (json!({ "timeout_seconds": 0 }), "INVALID_TIMEOUT"),
        (json!({ "timeout_seconds": u64::MAX }), "INVALID_TIMEOUT"),
        (json!({ "max_attempts": 0 }), "INVALID_MAX_ATTEMPTS"),
        (
            json!({ "start_at_ms": 1, "delay_ms": 1 }),
            "INVALID_START_TIME",
        ),
        (json!({ "env": { "A=B": "1" } }), "INVALID_ENV"),
        (json!({ "env": { "A": "1\u{0}" } }), "INVALID_ENV"),
        (json!({ "labels": { "a b": "1" } }), "INVALID_LABEL"),
        (json!({ "args": ["a\u{0}"] }), "INVALID_ARGS"),
    ] {
        let mut body = json!({ "image_id": image.0, "tenant_id": TENANT });
        body.as_object_mut()
            .expect("it is one")
            .extend(more.as_object().cloned().unwrap_or_default());
        let (found, error) = refused(body);
        assert_eq!(found, code, "{more}: {error}");
        assert!(!error.contains("not found"), "{more}: {error}");
    }
    start(&server, &json!({ "tenant_id": TENANT })).refuses(422, "INVALID_BODY");
    start(
        &server,
        &json!({ "image_id": image.0, "tenant_id": TENANT, "timeout_seconds": -1 }),
    )
    .refuses(422, "INVALID_BODY");
}

fn an_unknown_instance_is_not_found(store: Store) {
    let server = Server::start(store);
    let found = server.instance("nobody").status();
    assert_eq!(found, json!({ "found": false, "instance_id": "nobody" }));
    let stop = server.instance("nobody").stop(0);
    assert_eq!(stop["success"], false, "{stop}");
    assert_eq!(stop["error"], "Instance 'nobody' not found");
    let resume = server
        .ask(&Request::new("POST", "/api/v1/instances/nobody/resume"))
        .expect(200);
    assert_eq!(resume["error"], "Instance 'nobody' not found", "{resume}");
    server
        .instance("nobody")
        .signal("cancel")
        .refuses(404, "INSTANCE_NOT_FOUND");
    let body = json!({ "checkpoint_id": "a", "payload": null });
    server
        .instance("nobody")
        .post("/signals/custom", &body)
        .refuses(404, "INSTANCE_NOT_FOUND");
}

fn a_status_can_be_waited_for(ground: Ground) {
    let server = Server::start(ground);
    let run = server.follow(&server.scripted(), &json!([{ "work": 1_000 }]));
    let before = Instant::now();
    let found = run.get("?wait_ms=30000").expect(200);
    assert_eq!(found["status"], "completed", "{found}");
    assert!(
        before.elapsed() < Duration::from_secs(15),
        "it was answered late: {:?}",
        before.elapsed()
    );
    let slow = server.launch(&server.program("sleeps_forever"), &json!({}));
    let before = Instant::now();
    let found = slow.get("?wait_ms=300").expect(200);
    assert!(
        before.elapsed() >= Duration::from_millis(300),
        "{:?}",
        before.elapsed()
    );
    assert_ne!(found["status"], "completed");
    slow.get("?wait_ms=soon").refuses(400, "INVALID_QUERY");
}

fn stop_and_resume_answer_as_clients_read_them(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    run.wait_until_it_runs();
    let stopped = run.stop(1);
    assert_eq!(
        stopped,
        json!({ "success": true, "status": "cancelled", "process_gone": true })
    );
    assert!(run.is_gone(), "stop answers when the process is gone");
    let again = run.stop(1);
    assert_eq!(again["success"], false, "{again}");
    assert!(
        !again["error"]
            .as_str()
            .unwrap_or_default()
            .contains("not found"),
        "{again}"
    );
    run.resume();
    run.wait_until_it_runs();
    assert_eq!(run.stop(0)["success"], true);
    let stop_without_json = Request::new("POST", &format!("/api/v1/instances/{}/stop", run.id));
    server
        .ask(&stop_without_json)
        .refuses(415, "UNSUPPORTED_MEDIA_TYPE");
}

fn a_completed_instance_is_not_resumed(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(&server.program("echoes_input"), &json!({}));
    run.wait_for("completed");
    let answer = server
        .ask(&Request::new(
            "POST",
            &format!("/api/v1/instances/{}/resume", run.id),
        ))
        .expect(200);
    assert_eq!(answer["success"], false, "{answer}");
    assert!(
        !answer["error"]
            .as_str()
            .unwrap_or_default()
            .contains("not found"),
        "{answer}"
    );
    assert_eq!(run.status()["status"], "completed");
}

fn signals_say_what_is_wrong(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let run = server.instance("own-1");
    run.signal("shutdown").refuses(400, "INVALID_SIGNAL_TYPE");
    run.post("/signals", &json!({}))
        .refuses(422, "INVALID_BODY");
    run.post(
        "/signals/custom",
        &json!({ "checkpoint_id": "", "payload": null }),
    )
    .refuses(400, "INVALID_REQUEST");
    run.post("/signals/custom", &json!({ "payload": "x" }))
        .refuses(422, "INVALID_BODY");
    assert_eq!(
        server.say("own-1", "completed", &json!({})).expect(200)["success"],
        true
    );
    let text = run.signal("cancel").refuses(409, "WRONG_STATE");
    assert_eq!(text, "Cannot send signal to instance in 'completed' state");
}

fn agents_are_answered_in_the_form_that_clients_read(store: Store) {
    let server = Server::start(store);
    assert_eq!(
        server.ask(&Request::get("/api/v1/agents")).expect(200),
        json!({ "agents": [] })
    );
    let capability = server
        .ask(&Request::get("/api/v1/agents/a/capabilities/c"))
        .expect(404);
    assert_eq!(capability["found"], false, "{capability}");
    let body = json!({
        "tenant_id": TENANT, "agent_id": "a", "capability_id": "c", "input": {}, "connection": null, "timeout_ms": null,
    });
    let test = server
        .ask(&Request::post("/api/v1/agents/test", &body))
        .expect(200);
    assert_eq!(test["success"], false, "{test}");
    assert!(test["execution_time_ms"].is_u64(), "{test}");
}

fn every_error_is_json(store: Store) {
    let server = Server::start(store);
    let ask = |request: Request| server.ask(&request);
    ask(Request::get("/nowhere")).refuses(404, "UNKNOWN_ROUTE");
    ask(Request::get("/api/v1/nowhere")).refuses(404, "UNKNOWN_ROUTE");
    ask(Request::new("PUT", "/api/v1/instances")).refuses(405, "METHOD_NOT_ALLOWED");
    ask(Request::new("POST", "/api/v1/instances").body("{}"))
        .refuses(415, "UNSUPPORTED_MEDIA_TYPE");
    let json = |body: &str| {
        Request::new("POST", "/api/v1/instances")
            .header("Content-Type", "application/json; charset=utf-8")
            .body(body)
    };
    ask(json("{")).refuses(400, "INVALID_JSON");
    ask(json("[]")).refuses(422, "INVALID_BODY");
    ask(json(r#"{"image_id": 7, "tenant_id": "a"}"#)).refuses(422, "INVALID_BODY");
    ask(Request::get("/api/v1/instances/%FF")).refuses(400, "INVALID_PATH");
    ask(Request::get("/api/v1/instances/a%2Fb")).refuses(400, "INVALID_ID");
    ask(Request::get("/api/v1/instances/a%00b")).refuses(400, "INVALID_ID");
}

fn errors_do_not_show_the_inside(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let answers = [
        start(&server, &json!({ "image_id": "x", "tenant_id": TENANT })),
        server.say("own-1", "register", &json!({ "tenant_id": "other" })),
        server.say(
            "own-1",
            "checkpoint",
            &json!({ "checkpoint_id": "a\u{0}", "state": "" }),
        ),
        server.ask(&Request::delete("/api/v1/images/x")),
        server.ask(&Request::get("/api/v1/instances?cursor=AAAA")),
    ];
    for answer in answers {
        let text = answer.text().to_lowercase();
        for word in [
            "select",
            "insert",
            "constraint",
            "sqlx",
            "sqlite",
            "postgres",
            "panicked",
            "/tmp/",
        ] {
            assert!(!text.contains(word), "{word:?} in {answer}");
        }
    }
}

fn a_delayed_start_waits_for_its_time(ground: Ground) {
    let server = Server::start(ground);
    let image = server.program("echoes_input");
    let far = server.launch(
        &image,
        &json!({ "start_at_ms": milliseconds() + 3_600_000 }),
    );
    let near = server.launch(&image, &json!({ "delay_ms": 1_000 }));
    let asked = milliseconds();
    let found = near.wait_for("completed");
    let started = found["started_at_ms"].as_i64().expect("a time");
    assert!(
        started >= asked + 800,
        "started {} ms after it was asked for",
        started - asked
    );
    let found = far.status();
    assert_eq!(found["status"], "pending", "{found}");
    assert!(found["due_at_ms"].is_i64(), "{found}");
    assert_eq!(
        far.stop(0)["status"],
        "cancelled",
        "one that waits for its time can be stopped"
    );
}

fn an_ended_instance_can_be_purged(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(&server.program("echoes_input"), &json!({}));
    run.wait_for("completed");
    run.wait_until_no_process();
    let path = format!("/api/v1/instances/{}", run.id);
    let purged = eventually("the purge", || {
        let answer = server.ask(&Request::delete(&path));
        if answer.status == 200 {
            Ok(answer)
        } else {
            Err(answer.text())
        }
    });
    assert_eq!(purged.expect(200)["success"], true);
    assert_eq!(run.status()["found"], false);
    server
        .ask(&Request::delete(&path))
        .refuses(404, "INSTANCE_NOT_FOUND");
    let live = server.launch(&server.program("sleeps_forever"), &json!({}));
    live.wait_until_it_runs();
    server
        .ask(&Request::delete(&format!("/api/v1/instances/{}", live.id)))
        .refuses(409, "NOT_ENDED");
}

fn variables_of_the_image_fill_in_what_the_input_leaves_out(store: Store) {
    let server = Server::start(store);
    let content = std::fs::read(runtara_tests::program("echoes_input")).expect("it was built");
    let metadata = r#"{"variables":{"a":1,"_token":"t"}}"#;
    let form = Request::form(
        "/api/v1/images/upload",
        &[
            ("tenant_id", TENANT),
            ("name", "defaults"),
            ("runner_type", "native"),
            ("metadata", metadata),
        ],
        &[("binary", &content)],
    );
    let image = Image(
        server.ask(&form).expect(201)["image_id"]
            .as_str()
            .expect("a text")
            .to_owned(),
    );
    let run = server.launch(
        &image,
        &json!({ "input": { "variables": { "a": 7, "_mine": 2 }, "b": 1 } }),
    );
    // The program is given all; people are not shown what begins with an underscore.
    assert_eq!(
        run.output(),
        json!({ "variables": { "a": 7, "_mine": 2, "_token": "t" }, "b": 1 })
    );
    assert_eq!(
        from_base64(&run.status()["input"]),
        r#"{"b":1,"variables":{"a":7}}"#
    );
    for input in [json!([1, 2]), json!("text"), json!(7)] {
        assert_eq!(
            server.launch(&image, &json!({ "input": input })).output(),
            input,
            "any JSON is an input"
        );
    }
}
