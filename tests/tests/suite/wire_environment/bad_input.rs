//! What cannot be read, route by route: each is refused with its code, in the form of every error.

use runtara_tests::http::Request;
use runtara_tests::{Server, Store, TENANT, base64, on_both_stores};
use serde_json::{Value, json};

on_both_stores!(
    pages_of_records_say_what_is_wrong,
    a_cursor_belongs_to_its_list,
    ancestors_say_what_is_wrong,
    a_test_of_an_agent_says_what_is_wrong,
    logs_say_what_is_wrong,
);

/// The lists of [`recorded`], and how long they are: it registered itself before all else, which is an event.
const LISTS: [(&str, usize); 3] = [("checkpoints", 3), ("events", 4), ("steps", 3)];

/// An instance that registered itself, with checkpoints, events and steps.
fn recorded(server: &Server) {
    server.self_register("own-1");
    for number in 1..=3 {
        let checkpoint = json!({ "checkpoint_id": format!("c-{number}"), "state": base64("1") });
        let saved = server.say("own-1", "checkpoint", &checkpoint).expect(200);
        assert_eq!(saved["found"], false, "{saved}");
        let payload = json!({ "step_id": format!("s-{number}"), "step_type": "call" });
        let event = json!({
            "event_type": "custom", "subtype": "step_debug_start", "payload": base64(payload.to_string()),
        });
        let told = server.say("own-1", "events", &event).expect(200);
        assert_eq!(told["success"], true, "{told}");
    }
}

fn pages_of_records_say_what_is_wrong(store: Store) {
    let server = Server::start(store);
    recorded(&server);
    let run = server.instance("own-1");
    for (list, length) in LISTS {
        let page = run.get(&format!("/{list}?limit=1")).expect(200);
        let cursor = page["next_cursor"].as_str().expect("there are more");
        for (query, code) in [
            ("limit=-1", "INVALID_QUERY"),
            ("limit=many", "INVALID_QUERY"),
            ("limit=1.5", "INVALID_QUERY"),
            ("offset=-1", "INVALID_QUERY"),
            ("offset=first", "INVALID_QUERY"),
            ("offset=9223372036854775808", "INVALID_QUERY"),
            ("cursor=nonsense", "INVALID_CURSOR"),
            ("cursor=%F0%9F%98%80", "INVALID_CURSOR"),
            (&format!("cursor={cursor}&offset=1"), "INVALID_QUERY"),
            (&format!("cursor={cursor}&offset=0"), "INVALID_QUERY"),
            ("limit=%FF", "INVALID_QUERY"),
        ] {
            let answer = run.get(&format!("/{list}?{query}"));
            let text = answer.refuses(400, code);
            assert!(!text.contains("not found"), "{list}?{query}: {text}");
        }
        // What is only too much is cut to what there is.
        for (query, rows) in [
            ("limit=0", 0),
            ("limit=4000000000", length),
            ("offset=7", 0),
        ] {
            let page = run.get(&format!("/{list}?{query}")).expect(200);
            let found = page[list].as_array().expect("it is a list");
            assert_eq!(found.len(), rows, "{list}?{query}: {page}");
            assert_eq!(page["total_count"], length, "{list}?{query}: {page}");
        }
        server
            .ask(&Request::get(&format!("/api/v1/instances/a%2Fb/{list}")))
            .refuses(400, "INVALID_ID");
        let path = format!("/api/v1/instances/own-1/{list}?tenant_id={TENANT}");
        server
            .ask(&Request::get(&path).header("X-Runtara-Tenant-Id", "other"))
            .refuses(403, "TENANT_MISMATCH");
    }
    for (list, query) in [
        ("checkpoints", "created_after_ms=yesterday"),
        ("checkpoints", "created_before_ms=1.5"),
        ("events", "created_after_ms=yesterday"),
        ("events", "created_before_ms="),
        ("events", "event_type=nonsense"),
    ] {
        let answer = run.get(&format!("/{list}?{query}"));
        // A key without a value is a key that is not given.
        match query.ends_with('=') {
            true => assert_eq!(answer.expect(200)["total_count"], 4, "{query}"),
            false => drop(answer.refuses(400, "INVALID_QUERY")),
        }
    }
}

fn a_cursor_belongs_to_its_list(store: Store) {
    let server = Server::start(store);
    recorded(&server);
    server.self_register("own-2");
    let get = |path: &str, query: &str| {
        let path = format!("/api/v1/instances{path}?{query}");
        server.ask(&Request::get(&path))
    };
    let cursor_of = |path: &str| {
        let page = get(path, "limit=1").expect(200);
        let cursor = page["next_cursor"].as_str();
        cursor.expect("there are more").to_owned()
    };
    let of_instances = cursor_of("");
    for (list, length) in LISTS {
        let path = format!("/own-1/{list}");
        let cursor = cursor_of(&path);
        let page = get(&path, &format!("cursor={cursor}")).expect(200);
        let rows = page[list].as_array().map(Vec::len);
        assert_eq!(rows, Some(length - 1), "its own leads on: {page}");
        get(&path, &format!("cursor={of_instances}")).refuses(400, "INVALID_CURSOR");
        get("", &format!("cursor={cursor}")).refuses(400, "INVALID_CURSOR");
    }
}

fn ancestors_say_what_is_wrong(store: Store) {
    let server = Server::start(store);
    recorded(&server);
    let ancestors = |instance: &str, scope: &str| {
        let path = format!("/api/v1/instances/{instance}/scopes/{scope}/ancestors");
        server.ask(&Request::get(&path))
    };
    for (instance, scope, code) in [
        ("a%2Fb", "s", "INVALID_ID"),
        ("a%00b", "s", "INVALID_ID"),
        ("%FF", "s", "INVALID_PATH"),
        ("own-1", "%FF", "INVALID_PATH"),
    ] {
        ancestors(instance, scope).refuses(400, code);
    }
    // Neither a scope nor an instance that is not there is an error, however odd its name.
    for (instance, scope) in [
        ("own-1", "nowhere"),
        ("own-1", "a%00b"),
        ("own-1", "a%2Fb%27%3B--"),
        ("own-1", &"x".repeat(2_000)),
        ("nobody", "s"),
    ] {
        let answer = ancestors(instance, scope);
        assert_eq!(answer.expect(200), json!({ "ancestors": [] }), "{scope}");
    }
}

fn a_test_of_an_agent_says_what_is_wrong(store: Store) {
    let server = Server::start(store);
    let whole = json!({
        "tenant_id": TENANT, "agent_id": "a", "capability_id": "c", "input": {}, "connection": null, "timeout_ms": null,
    });
    let with = |key: &str, value: Value| {
        let mut body = whole.clone();
        body[key] = value;
        body.to_string()
    };
    let without = |key: &str| {
        let mut body = whole.clone();
        body.as_object_mut().expect("it is one").remove(key);
        body.to_string()
    };
    let post = |kind: &str, body: &str| {
        Request::new("POST", "/api/v1/agents/test")
            .header("Content-Type", kind)
            .body(body)
    };
    for (body, status, code) in [
        (String::new(), 400, "INVALID_JSON"),
        ("{".to_owned(), 400, "INVALID_JSON"),
        ("[]".to_owned(), 422, "INVALID_BODY"),
        ("7".to_owned(), 422, "INVALID_BODY"),
        ("{}".to_owned(), 422, "INVALID_BODY"),
        (without("tenant_id"), 422, "INVALID_BODY"),
        (without("agent_id"), 422, "INVALID_BODY"),
        (without("capability_id"), 422, "INVALID_BODY"),
        (with("agent_id", 7.into()), 422, "INVALID_BODY"),
        (with("tenant_id", "a/b".into()), 400, "INVALID_ID"),
    ] {
        server
            .ask(&post("application/json", &body))
            .refuses(status, code);
    }
    server
        .ask(&post("text/plain", &whole.to_string()))
        .refuses(415, "UNSUPPORTED_MEDIA_TYPE");
    let other = post("application/json", &whole.to_string()).header("X-Runtara-Tenant-Id", "other");
    server.ask(&other).refuses(403, "TENANT_MISMATCH");
    server
        .ask(&Request::get("/api/v1/agents/test"))
        .refuses(405, "METHOD_NOT_ALLOWED");
}

fn logs_say_what_is_wrong(store: Store) {
    let server = Server::start(store);
    let run = server.launch(&server.shell("echo hello"), &json!({}));
    run.wait_for("completed");
    for query in [
        "run=last",
        "run=-1",
        "run=1.5",
        "run=4294967296",
        "offset=-1",
        "offset=end",
        "offset=18446744073709551616",
        "stream=both",
        "stream=STDOUT",
        "follow=yes",
    ] {
        let text = run.logs(query).refuses(400, "INVALID_QUERY");
        let key = query.split('=').next().unwrap_or_default();
        assert!(text.contains(key), "{query}: the key is named: {text}");
    }
    for query in ["run=0", "run=2", "run=4294967295", "run=2&follow=true"] {
        run.logs(query).refuses(404, "LOG_NOT_FOUND");
    }
    server
        .instance("nobody")
        .logs("")
        .refuses(404, "INSTANCE_NOT_FOUND");
    server
        .ask(&Request::get("/api/v1/instances/a%2Fb/logs"))
        .refuses(400, "INVALID_ID");
    // Behind the end there is nothing, and that is no mistake.
    let behind = run.logs("offset=18446744073709551615");
    assert_eq!((behind.status, behind.text().as_str()), (200, ""));
    let whole = run.logs("");
    assert_eq!(whole.text(), "hello\n");
    assert_eq!(whole.header("X-Runtara-Run"), Some("1"));
}
