//! The environment protocol, route by route, with good and bad input.

use std::thread::scope;
use std::time::{Duration, Instant};

use runtara_tests::http::{Answer, Request};
use runtara_tests::{
    Image, Server, Store, TENANT, base64, eventually, from_base64, milliseconds, on_both_stores,
};
use serde_json::{Value, json};

fn start(server: &Server, body: &Value) -> Answer {
    server.ask(&Request::post("/api/v1/instances", body))
}

fn list(server: &Server, query: &str) -> Value {
    server
        .ask(&Request::get(&format!("/api/v1/instances?{query}")))
        .expect(200)
}

fn ids(page: &Value) -> Vec<&str> {
    let rows = page["instances"].as_array().expect("it is a list");
    rows.iter()
        .map(|row| row["instance_id"].as_str().expect("an id is a text"))
        .collect()
}

/// Makes ended and unended instances that registered themselves: quick, and all that lists need.
fn some_instances(server: &Server) {
    for number in 1..=7 {
        let id = format!("own-{number}");
        server.self_register(&id);
        let answer = match number {
            1 => server.say(&id, "completed", &json!({ "output": base64("1") })),
            2 => server.say(&id, "failed", &json!({ "error": "no" })),
            3 => server.say(&id, "suspended", &json!({})),
            _ => continue,
        };
        assert_eq!(answer.expect(200)["success"], true);
    }
}

on_both_stores!(
    health_says_version_and_uptime,
    a_started_instance_is_told_with_all_that_clients_read,
    a_start_needs_image_and_tenant_alone,
    a_start_says_what_is_wrong,
    an_unknown_instance_is_not_found,
    a_status_can_be_waited_for,
    instances_are_listed_and_counted,
    bounds_of_time_are_inclusive_below_and_exclusive_above,
    a_list_is_walked_by_cursor,
    names_and_labels_find_instances,
    stop_and_resume_answer_as_clients_read_them,
    a_completed_instance_is_not_resumed,
    signals_say_what_is_wrong,
    checkpoints_are_listed_and_read,
    events_are_filtered_in_every_way,
    steps_are_told_with_their_true_durations,
    ancestors_lead_from_a_scope_outward,
    metrics_have_every_bucket,
    agents_are_answered_in_the_form_that_clients_read,
    every_error_is_json,
    errors_do_not_show_the_inside,
    a_delayed_start_waits_for_its_time,
    an_ended_instance_can_be_purged,
    variables_of_the_image_fill_in_what_the_input_leaves_out,
    logs_are_read_by_stream_run_and_offset,
    logs_can_be_followed_to_the_end_of_the_run,
);

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

fn a_started_instance_is_told_with_all_that_clients_read(store: Store) {
    let server = Server::start(store);
    let image = server.program("echoes_input");
    let run = server.launch(&image, &json!({ "input": { "a": [1, "zwei"] }, "env": {} }));
    assert_eq!(run.output(), json!({ "a": [1, "zwei"] }));
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
    assert!(
        found["created_at_ms"].as_i64() <= found["started_at_ms"].as_i64(),
        "{found}"
    );
    assert!(
        found["started_at_ms"].as_i64() <= found["finished_at_ms"].as_i64(),
        "{found}"
    );
}

fn a_start_needs_image_and_tenant_alone(store: Store) {
    let server = Server::start(store);
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

fn a_status_can_be_waited_for(store: Store) {
    let server = Server::start(store);
    let image = server.shell("sleep 1");
    let run = server.launch(&image, &json!({}));
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

fn instances_are_listed_and_counted(store: Store) {
    let server = Server::start(store);
    some_instances(&server);
    let all = list(&server, "");
    assert_eq!(all["total_count"], 7, "{all}");
    assert_eq!(
        ids(&all),
        [
            "own-7", "own-6", "own-5", "own-4", "own-3", "own-2", "own-1"
        ]
    );
    assert_eq!(
        ids(&list(&server, "order_by=created_at_asc&limit=2")),
        ["own-1", "own-2"]
    );
    assert_eq!(ids(&list(&server, "order_by=nonsense&limit=1")), ["own-7"]);
    let page = list(&server, "limit=2&offset=1&order_by=created_at_asc");
    assert_eq!(
        (ids(&page), &page["total_count"]),
        (vec!["own-2", "own-3"], &json!(7))
    );
    assert!(ids(&list(&server, "limit=0")).is_empty());
    assert_eq!(ids(&list(&server, "status=failed")), ["own-2"]);
    assert_eq!(list(&server, "status=running")["total_count"], 4);
    assert_eq!(
        ids(&list(&server, "order_by=finished_at_desc&limit=2")),
        ["own-2", "own-1"]
    );
    assert_eq!(
        ids(&list(&server, "order_by=finished_at_asc&limit=2")),
        ["own-1", "own-2"]
    );
    assert_eq!(list(&server, "tenant_id=stranger")["total_count"], 0);
    let failed = list(&server, "status=failed");
    assert_eq!(failed["instances"][0]["has_error"], true, "{failed}");
    for required in ["instance_id", "tenant_id", "status", "created_at_ms"] {
        assert!(
            !failed["instances"][0][required].is_null(),
            "{required} in {failed}"
        );
    }
    for bad in [
        "limit=-1",
        "limit=x",
        "offset=-1",
        "created_after_ms=now",
        "status=odd",
    ] {
        server
            .ask(&Request::get(&format!("/api/v1/instances?{bad}")))
            .refuses(400, "INVALID_QUERY");
    }
}

fn bounds_of_time_are_inclusive_below_and_exclusive_above(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let at = server.instance("own-1").status()["created_at_ms"]
        .as_i64()
        .expect("a time");
    for (query, count) in [
        (format!("created_after_ms={at}"), 1),
        (format!("created_after_ms={}", at + 1), 0),
        (format!("created_before_ms={}", at + 1), 1),
        (format!("created_before_ms={at}"), 0),
    ] {
        assert_eq!(list(&server, &query)["total_count"], count, "{query}");
    }
}

fn a_list_is_walked_by_cursor(store: Store) {
    let server = Server::start(store);
    some_instances(&server);
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    for _ in 0..5 {
        let query = if cursor.is_empty() {
            "limit=3".to_owned()
        } else {
            format!("limit=3&cursor={cursor}")
        };
        let page = list(&server, &query);
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        // One that is made meanwhile is newer than the first page, and moves nothing.
        server.self_register(&format!("late-{}", seen.len()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(
        seen,
        [
            "own-7", "own-6", "own-5", "own-4", "own-3", "own-2", "own-1"
        ]
    );
    server
        .ask(&Request::get(&format!(
            "/api/v1/instances?cursor={cursor}x&limit=1"
        )))
        .refuses(400, "INVALID_CURSOR");
    let both = format!("/api/v1/instances?offset=0&cursor={cursor}");
    server
        .ask(&Request::get(&both))
        .refuses(400, "INVALID_QUERY");
}

fn names_and_labels_find_instances(store: Store) {
    let server = Server::start(store);
    let named = |name: &str| server.register(name, b"#!/bin/sh\nexit 0\n");
    let (plain, percent) = (named("report"), named("re%ort"));
    let run = server.launch(
        &plain,
        &json!({ "instance_id": "a", "labels": { "team": "billing", "env": "test" } }),
    );
    run.wait_for("completed");
    server
        .launch(
            &percent,
            &json!({ "instance_id": "b", "labels": { "team": "sales" } }),
        )
        .wait_for("completed");
    assert_eq!(
        ids(&list(&server, "image_name_prefix=re%25")),
        ["b"],
        "a prefix is text, not a pattern"
    );
    assert_eq!(
        ids(&list(&server, "image_name_prefix=re_")),
        Vec::<&str>::new()
    );
    assert_eq!(ids(&list(&server, "image_name_prefix=rep")), ["a"]);
    assert_eq!(
        ids(&list(&server, &format!("image_id={}", percent.0))),
        ["b"]
    );
    assert_eq!(ids(&list(&server, "label=team")), ["b", "a"]);
    assert_eq!(ids(&list(&server, "label=team=billing")), ["a"]);
    assert_eq!(ids(&list(&server, "label=team&label=env=test")), ["a"]);
    assert_eq!(run.status()["labels"]["team"], "billing");
    server
        .ask(&Request::get("/api/v1/instances?label=a%20b"))
        .refuses(400, "INVALID_LABEL");
}

fn stop_and_resume_answer_as_clients_read_them(store: Store) {
    let server = Server::start(store);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    let _running = run.wait_for_process();
    let stopped = run.stop(1);
    assert_eq!(stopped["success"], true, "{stopped}");
    assert_eq!(stopped["status"], "cancelled", "{stopped}");
    assert!(
        run.processes().is_empty(),
        "stop answers when the process is gone"
    );
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
    let _running = run.wait_for_process();
    assert_eq!(run.stop(0)["success"], true);
    let stop_without_json = Request::new("POST", &format!("/api/v1/instances/{}/stop", run.id));
    server
        .ask(&stop_without_json)
        .refuses(415, "UNSUPPORTED_MEDIA_TYPE");
}

fn a_completed_instance_is_not_resumed(store: Store) {
    let server = Server::start(store);
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

fn checkpoints_are_listed_and_read(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    for (id, state) in [("a", "[1]"), ("100%41", "\"zwei\""), ("x/y?z#", "3")] {
        let body = json!({ "checkpoint_id": id, "state": base64(state) });
        assert_eq!(
            server.say("own-1", "checkpoint", &body).expect(200)["found"],
            false
        );
    }
    let run = server.instance("own-1");
    let page = run.get("/checkpoints?limit=2").expect(200);
    assert_eq!(page["total_count"], 3, "{page}");
    assert_eq!(
        (&page["limit"], &page["offset"]),
        (&json!(2), &json!(0)),
        "{page}"
    );
    let rows = page["checkpoints"].as_array().expect("it is a list");
    assert_eq!(rows.len(), 2);
    assert_eq!(
        rows[0]["checkpoint_id"], "x/y?z#",
        "the newest comes first: {page}"
    );
    assert_eq!(rows[1]["data_size_bytes"], 6, "{page}");
    for required in [
        "checkpoint_id",
        "instance_id",
        "created_at_ms",
        "data_size_bytes",
    ] {
        assert!(!rows[0][required].is_null(), "{required} in {page}");
    }
    let filtered = run.get("/checkpoints?checkpoint_id=100%2541").expect(200);
    assert_eq!(filtered["total_count"], 1, "{filtered}");
    for (in_path, id, state) in [
        ("a", "a", "[1]"),
        ("100%2541", "100%41", "\"zwei\""),
        ("x%2Fy%3Fz%23", "x/y?z#", "3"),
    ] {
        let one = run.get(&format!("/checkpoints/{in_path}")).expect(200);
        assert_eq!(one["found"], true, "{one}");
        assert_eq!(one["checkpoint_id"], id);
        assert_eq!(from_base64(&one["data"]), state);
    }
    let missing = run.get("/checkpoints/none").expect(200);
    assert_eq!(missing["found"], false, "{missing}");
    assert_eq!(
        (&missing["checkpoint_id"], &missing["instance_id"]),
        (&json!("none"), &json!("own-1"))
    );
    assert_eq!(missing["created_at_ms"], 0, "{missing}");
    let empty = server.instance("nobody").get("/checkpoints").expect(200);
    assert_eq!(empty["checkpoints"], json!([]), "{empty}");
}

fn events_are_filtered_in_every_way(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let emit = |subtype: &str, payload: &str| {
        let body =
            json!({ "event_type": "custom", "subtype": subtype, "payload": base64(payload) });
        assert_eq!(
            server.say("own-1", "events", &body).expect(200)["success"],
            true
        );
    };
    emit("plain", "no JSON at all");
    emit("root", r#"{"scope_id":"s1","note":"Alpha"}"#);
    emit(
        "child",
        r#"{"scope_id":"s2","parent_scope_id":"s1","note":"beta"}"#,
    );
    emit("list", "[1,2]");
    let binary = json!({ "event_type": "custom", "subtype": "binary", "payload": "//79" });
    assert_eq!(
        server.say("own-1", "events", &binary).expect(200)["success"],
        true
    );
    let run = server.instance("own-1");
    let subtypes = |query: &str| {
        let page = run
            .get(&format!("/events?sort_order=asc&{query}"))
            .expect(200);
        let rows = page["events"].as_array().expect("it is a list").clone();
        rows.iter()
            .map(|row| row["subtype"].as_str().unwrap_or("-").to_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(subtypes(""), "- plain root child list binary");
    assert_eq!(subtypes("event_type=started"), "-");
    assert_eq!(subtypes("event_type=custom&subtype=list"), "list");
    assert_eq!(
        subtypes("payload_contains=ALPHA"),
        "root",
        "case does not matter"
    );
    assert_eq!(
        subtypes("payload_contains=%25"),
        "",
        "a search is text, not a pattern"
    );
    assert_eq!(subtypes("scope_id=s2"), "child");
    assert_eq!(subtypes("parent_scope_id=s1"), "child");
    assert_eq!(
        subtypes("root_scopes_only=true"),
        "- plain root list binary"
    );
    assert_eq!(subtypes("limit=2&offset=1"), "plain root");
    let newest = run.get("/events?limit=1").expect(200);
    assert_eq!(
        newest["events"][0]["subtype"], "binary",
        "the newest comes first: {newest}"
    );
    assert_eq!(newest["total_count"], 6, "{newest}");
    for required in ["id", "instance_id", "event_type", "created_at_ms"] {
        assert!(
            !newest["events"][0][required].is_null(),
            "{required} in {newest}"
        );
    }
    assert_eq!(
        server.instance("nobody").get("/events").expect(200)["total_count"],
        0
    );
}

fn steps_are_told_with_their_true_durations(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let emit = |subtype: &str, payload: Value| {
        let body = json!({ "event_type": "custom", "subtype": subtype, "payload": base64(payload.to_string()) });
        assert_eq!(
            server.say("own-1", "events", &body).expect(200)["success"],
            true
        );
    };
    emit(
        "step_debug_start",
        json!({ "step_id": "fetch", "step_name": "Fetch", "step_type": "http", "inputs": { "u": 1 } }),
    );
    emit(
        "step_debug_end",
        json!({ "step_id": "fetch", "outputs": [1] }),
    );
    emit(
        "step_debug_start",
        json!({ "step_id": "pay", "step_type": "http", "scope_id": "s1" }),
    );
    emit(
        "step_debug_end",
        json!({ "step_id": "pay", "scope_id": "s1", "error": "declined" }),
    );
    emit(
        "step_debug_start",
        json!({ "step_id": "ship", "step_type": "mail", "scope_id": "s2", "parent_scope_id": "s1" }),
    );
    // The same step once more: the second turn of a loop.
    emit(
        "step_debug_start",
        json!({ "step_id": "fetch", "step_type": "http" }),
    );
    emit(
        "step_debug_end",
        json!({ "step_id": "fetch", "outputs": [2] }),
    );
    let run = server.instance("own-1");
    let steps = |query: &str| {
        let page = run
            .get(&format!("/steps?sort_order=asc&{query}"))
            .expect(200);
        for required in ["steps", "total_count", "limit", "offset"] {
            assert!(!page[required].is_null(), "{required} in {page}");
        }
        page["steps"].as_array().expect("it is a list").clone()
    };
    let all = steps("");
    let told: Vec<_> = all
        .iter()
        .map(|step| (step["step_id"].clone(), step["status"].clone()))
        .collect();
    assert_eq!(
        told,
        [
            ("fetch", "completed"),
            ("pay", "failed"),
            ("ship", "running"),
            ("fetch", "completed")
        ]
        .map(|(id, status)| (json!(id), json!(status))),
        "a repeated step is told twice, not four times"
    );
    assert_eq!(
        (&all[0]["inputs"], &all[0]["outputs"]),
        (&json!({ "u": 1 }), &json!([1]))
    );
    assert_eq!(all[3]["outputs"], json!([2]), "each turn has its own end");
    assert_eq!(all[1]["error"], "declined");
    assert_eq!(all[0]["step_name"], "Fetch");
    let (begun, ended) = (
        all[0]["started_at_ms"].as_i64(),
        all[0]["completed_at_ms"].as_i64(),
    );
    assert_eq!(
        all[0]["duration_ms"].as_i64(),
        ended.zip(begun).map(|(end, begin)| end - begin)
    );
    assert_eq!(steps("status=failed").len(), 1);
    assert_eq!(
        steps("status=odd").len(),
        4,
        "an unknown status is no filter"
    );
    assert_eq!(steps("step_type=mail")[0]["step_id"], "ship");
    assert_eq!(steps("scope_id=s1")[0]["step_id"], "pay");
    assert_eq!(steps("parent_scope_id=s1")[0]["step_id"], "ship");
    assert_eq!(steps("root_scopes_only=true").len(), 3);
}

fn ancestors_lead_from_a_scope_outward(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    for (scope, parent, index) in [
        ("outer", None, None),
        ("middle", Some("outer"), Some(3)),
        ("inner", Some("middle"), None),
    ] {
        let payload = json!({
            "scope_id": scope, "parent_scope_id": parent, "step_id": format!("step of {scope}"),
            "step_type": "loop", "index": index,
        });
        let body = json!({ "event_type": "custom", "subtype": "scope_enter", "payload": base64(payload.to_string()) });
        assert_eq!(
            server.say("own-1", "events", &body).expect(200)["success"],
            true
        );
    }
    let run = server.instance("own-1");
    let body = run.get("/scopes/inner/ancestors").expect(200);
    let ancestors = body["ancestors"].as_array().expect("it is a list");
    let names: Vec<_> = ancestors
        .iter()
        .map(|scope| scope["scope_id"].as_str().unwrap_or("?"))
        .collect();
    assert_eq!(names, ["inner", "middle", "outer"]);
    assert_eq!(ancestors[1]["index"], 3, "{body}");
    assert_eq!(ancestors[1]["step_id"], "step of middle", "{body}");
    assert_eq!(ancestors[2].get("parent_scope_id"), None, "{body}");
    assert_eq!(
        run.get("/scopes/none/ancestors").expect(200)["ancestors"],
        json!([])
    );
}

fn metrics_have_every_bucket(store: Store) {
    let server = Server::start(store);
    some_instances(&server);
    let path = format!("/api/v1/tenants/{TENANT}/metrics");
    let body = server.ask(&Request::get(&path)).expect(200);
    for required in [
        "tenant_id",
        "start_time_ms",
        "end_time_ms",
        "granularity",
        "buckets",
    ] {
        assert!(!body[required].is_null(), "{required} in {body}");
    }
    assert_eq!(body["granularity"], "hourly");
    let buckets = body["buckets"].as_array().expect("it is a list");
    assert!(
        (24..=25).contains(&buckets.len()),
        "a day of hours, ends included: {}",
        buckets.len()
    );
    let sum = |key: &str| {
        buckets
            .iter()
            .filter_map(|bucket| bucket[key].as_i64())
            .sum::<i64>()
    };
    assert_eq!(
        (
            sum("invocation_count"),
            sum("success_count"),
            sum("failure_count")
        ),
        (2, 1, 1),
        "{body}"
    );
    let empty = buckets
        .iter()
        .find(|bucket| bucket["invocation_count"] == 0)
        .expect("an hour without");
    assert!(
        empty.get("success_rate_percent").is_none_or(Value::is_null),
        "{empty}"
    );
    let end = milliseconds();
    let daily = format!(
        "{path}?granularity=daily&start_time_ms={}&end_time_ms={end}",
        end - 3 * 86_400_000
    );
    let daily = server.ask(&Request::get(&daily)).expect(200);
    assert_eq!(
        daily["buckets"].as_array().map(Vec::len),
        Some(4),
        "{daily}"
    );
    let huge = format!("{path}?start_time_ms=0&end_time_ms={end}");
    server
        .ask(&Request::get(&huge))
        .refuses(400, "INVALID_RANGE");
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

fn a_delayed_start_waits_for_its_time(store: Store) {
    let server = Server::start(store);
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

fn an_ended_instance_can_be_purged(store: Store) {
    let server = Server::start(store);
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
    let _running = live.wait_for_process();
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

fn logs_are_read_by_stream_run_and_offset(store: Store) {
    let server = Server::start(store);
    let image = server.program("prints_and_exits");
    let run = server.launch(
        &image,
        &json!({ "input": { "stdout": "one\ntwo\n", "stderr": "oh\n" } }),
    );
    run.wait_for("completed");
    let out = run.logs("stream=stdout");
    assert_eq!((out.status, out.text().as_str()), (200, "one\ntwo\n"));
    assert_eq!(
        out.header("X-Runtara-Log-Offset"),
        Some("0"),
        "{:?}",
        out.headers
    );
    assert_eq!(run.logs("stream=stdout&offset=4").text(), "two\n");
    assert_eq!(run.logs("stream=stderr").text(), "oh\n");
    assert_eq!(run.logs("stream=stderr&run=1").text(), "oh\n");
    assert_eq!(run.logs("stream=stdin").status, 400);
    let unknown = server.instance("nobody").logs("stream=stdout");
    assert_eq!(unknown.status, 404, "{unknown}");
}

fn logs_can_be_followed_to_the_end_of_the_run(store: Store) {
    let server = Server::start(store);
    let go = server.shared().path("go");
    let image = server.shell(&format!(
        "echo first; while [ ! -e {go} ]; do sleep 0.05; done; echo last"
    ));
    let run = server.launch(&image, &json!({}));
    let text = scope(|scope| {
        let following = scope.spawn(|| {
            let _running = run.wait_for_process();
            run.logs("stream=stdout&follow=true").text()
        });
        eventually("the first line", || {
            let found = run.logs("stream=stdout");
            if found.text().contains("first") {
                Ok(())
            } else {
                Err(found.text())
            }
        });
        server.shared().touch("go");
        following.join().expect("following ends with the run")
    });
    assert_eq!(text, "first\nlast\n");
}
