//! A tenant sees its own, an instance speaks for itself, secrets stay where they belong.

mod callers;
mod secrets;

use runtara_tests::http::{Request, exchange};
use runtara_tests::{
    Ground, Server, Store, TENANT, base64, in_both_kinds, in_every_kind, on_both_stores,
};
use serde_json::{Value, json};

on_both_stores!(web_pages_are_turned_away,);

in_both_kinds!(
    a_token_speaks_for_its_own_instance_alone,
    a_token_does_not_show_other_tenants,
    invented_tokens_open_nothing,
    the_token_of_an_earlier_run_is_refused,
    after_its_last_word_a_run_writes_nothing,
    the_socket_serves_runs_alone,
);

in_every_kind!(
    a_launched_instance_is_never_served_without_its_token,
    a_named_tenant_sees_its_own_alone,
);

/// Every call that an instance can make, with a body that is well-formed.
fn calls() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("POST", "register", json!({ "tenant_id": TENANT })),
        (
            "POST",
            "checkpoint",
            json!({ "checkpoint_id": "a", "state": base64("1") }),
        ),
        (
            "POST",
            "checkpoint",
            json!({ "checkpoint_id": "a", "state": "" }),
        ),
        ("GET", "signals", Value::Null),
        ("GET", "signals/a", Value::Null),
        ("POST", "signals/ack", json!({ "signal_type": "cancel" })),
        (
            "POST",
            "signals/wait",
            json!({ "signal_id": "a", "timeout_ms": 1 }),
        ),
        ("POST", "events", json!({ "event_type": "heartbeat" })),
        (
            "POST",
            "events",
            json!({ "event_type": "custom", "subtype": "a" }),
        ),
        ("POST", "completed", json!({})),
        ("POST", "failed", json!({ "error": "a" })),
        ("POST", "suspended", json!({})),
        (
            "POST",
            "retry",
            json!({ "checkpoint_id": "a", "attempt": 2 }),
        ),
        ("GET", "input", Value::Null),
        (
            "POST",
            "sleep",
            json!({ "duration_ms": 1, "checkpoint_id": "a", "state": "" }),
        ),
    ]
}

fn request(method: &str, path: &str, body: &Value) -> Request {
    if method == "GET" {
        Request::get(path)
    } else {
        Request::post(path, body)
    }
}

fn a_launched_instance_is_never_served_without_its_token(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    run.wait_until_it_runs();
    for (method, call, body) in calls() {
        let path = format!("/api/v1/instances/{}/{call}", run.id);
        let answer = server.ask_core(&request(method, &path, &body));
        if call == "signals" && answer.status == 200 {
            panic!("a poll without the token was answered: {answer}");
        }
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (401, &json!("TOKEN_REQUIRED")),
            "{method} {call}: {answer}"
        );
    }
    server
        .look(&run.id, "status")
        .refuses(401, "TOKEN_REQUIRED");
    assert_eq!(run.status()["status"], "running");
    assert!(run.event_names().is_empty(), "{:?}", run.event_names());
    assert_eq!(run.stop(0)["success"], true);
    let ended = server.say(&run.id, "register", &json!({ "tenant_id": TENANT }));
    assert!(
        matches!(ended.status, 401 | 409),
        "nor when it has ended: {ended}"
    );
}

fn a_token_speaks_for_its_own_instance_alone(ground: Ground) {
    let server = Server::start(ground);
    let image = server.program("sleeps_forever");
    let (mine, other) = (
        server.launch(&image, &json!({})),
        server.launch(&image, &json!({})),
    );
    let _running = other.wait_for_process();
    let token = mine.token_path();
    for (method, call, body) in calls() {
        let path = format!("{token}/api/v1/instances/{}/{call}", other.id);
        let answer = server.ask_core(&request(method, &path, &body));
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (403, &json!("INSTANCE_FORBIDDEN")),
            "{method} {call}: {answer}"
        );
    }
    assert_eq!(other.status()["status"], "running");
    assert!(other.event_names().is_empty());
    // Reading where another of the same tenant stands is how a parent watches a child.
    let watched = other.look_with(&token, "status").expect(200);
    assert_eq!(watched["status"], "running", "{watched}");
    let headers = Request::get(&format!("{token}/api/v1/instances/{}/input", mine.id))
        .header("X-Runtara-Instance-Id", &other.id);
    server.ask_core(&headers).refuses(403, "INSTANCE_FORBIDDEN");
}

fn a_token_does_not_show_other_tenants(ground: Ground) {
    let server = Server::start(ground);
    let mine = server.launch(&server.program("sleeps_forever"), &json!({}));
    let token = mine.token_path();
    let answer = server.say("theirs", "register", &json!({ "tenant_id": "stranger" }));
    assert_eq!(answer.expect(200)["success"], true);
    let watched = server
        .instance("theirs")
        .look_with(&token, "status")
        .expect(200);
    assert_eq!(watched["found"], false, "{watched}");
    let register = mine.say_with(&token, "register", &json!({ "tenant_id": "stranger" }));
    register.refuses(403, "TENANT_MISMATCH");
}

fn invented_tokens_open_nothing(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    let token = run.token_path();
    for invented in [
        "/r/",
        "/r/x",
        "/r/%00",
        &format!("{token}x"),
        &format!("{token}{token}"),
    ] {
        let answer = run.look_with(invented, "input");
        assert!((400..500).contains(&answer.status), "{invented}: {answer}");
        assert_eq!(answer.json()["success"], false, "{answer}");
    }
    // One of the right form that nobody was given.
    let mut letters: Vec<char> = token.chars().collect();
    let last = letters.last_mut().expect("a token has letters");
    *last = if *last == 'a' { 'b' } else { 'a' };
    let answer = run.look_with(&letters.into_iter().collect::<String>(), "input");
    assert!(matches!(answer.status, 401 | 409), "{answer}");
    assert_eq!(run.look_with(&token, "input").status, 200);
}

fn the_token_of_an_earlier_run_is_refused(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    let first = run.wait_for_process();
    let old = run.token_path();
    assert_eq!(
        run.say_with(&old, "register", &json!({ "tenant_id": TENANT }))
            .expect(200)["success"],
        true
    );
    runtara_tests::processes::send(first.pid, nix::sys::signal::Signal::SIGKILL);
    run.wait_until("the second run", |found| {
        found["run_number"] == 2 && found["status"] == "running"
    });
    for (method, call, body) in calls() {
        let path = format!("{old}/api/v1/instances/{}/{call}", run.id);
        let answer = server.ask_core(&request(method, &path, &body));
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (409, &json!("RUN_SUPERSEDED")),
            "{method} {call}: {answer}"
        );
    }
    assert!(run.checkpoints().is_empty());
    let new = run.token_path();
    assert_ne!(new, old);
    assert_eq!(run.look_with(&new, "input").status, 200);
}

fn after_its_last_word_a_run_writes_nothing(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    let token = run.token_path();
    let word = run.say_with(&token, "completed", &json!({ "output": base64("1") }));
    assert_eq!(word.expect(200)["success"], true);
    run.say_with(
        &token,
        "checkpoint",
        &json!({ "checkpoint_id": "a", "state": base64("1") }),
    )
    .refuses(409, "INSTANCE_ENDED");
    run.say_with(
        &token,
        "events",
        &json!({ "event_type": "custom", "subtype": "a" }),
    )
    .refuses(409, "INSTANCE_ENDED");
    run.say_with(
        &token,
        "sleep",
        &json!({ "duration_ms": 1, "checkpoint_id": "a", "state": "" }),
    )
    .refuses(409, "INSTANCE_ENDED");
    let late = run.say_with(&token, "failed", &json!({ "error": "late" }));
    assert_eq!(late.expect(200)["success"], true, "a late word is answered");
    assert_eq!(run.output(), 1);
    assert_eq!(run.event_names(), ["completed"]);
}

fn the_socket_serves_runs_alone(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    let token = run.token_path();
    let socket = server.core_socket();
    let ask = |request: Request| exchange(&socket, &request).expect("the socket is served");
    for path in [
        "/health",
        "/ready",
        "/api/v1/instances/a/status",
        "/",
        "/r",
        "/api/v1/health",
    ] {
        let answer = ask(Request::get(path));
        assert!(matches!(answer.status, 401 | 404), "{path}: {answer}");
    }
    ask(Request::post(
        "/api/v1/instances/own-1/register",
        &json!({ "tenant_id": TENANT }),
    ))
    .refuses(401, "TOKEN_REQUIRED");
    assert_eq!(
        ask(Request::get(&format!(
            "{token}/api/v1/instances/{}/input",
            run.id
        )))
        .status,
        200
    );
    assert_eq!(ask(Request::get(&format!("{token}/health"))).status, 200);
}

fn web_pages_are_turned_away(store: Store) {
    let server = Server::start(store);
    let ports = [server.environment(), server.core()];
    for address in &ports {
        let ask = |header: &str, value: &str| {
            exchange(address, &Request::get("/health").header(header, value))
                .expect("the port is served")
        };
        ask("Origin", "http://127.0.0.1:8002").refuses(403, "FOREIGN_ORIGIN");
        ask("Origin", "null").refuses(403, "FOREIGN_ORIGIN");
        for host in [
            "evil.example",
            "evil.example:8002",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
        ] {
            ask("Host", host).refuses(403, "FOREIGN_HOST");
        }
        for host in ["localhost", "127.0.0.1:8002", "[::1]:8002"] {
            assert_eq!(ask("Host", host).status, 200, "{host}");
        }
    }
    let start = Request::post(
        "/api/v1/instances",
        &json!({ "image_id": "a", "tenant_id": "b" }),
    );
    server
        .ask(&start.header("Origin", "http://evil.example"))
        .refuses(403, "FOREIGN_ORIGIN");
}

fn a_named_tenant_sees_its_own_alone(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    run.wait_until_it_runs();
    let path = format!("/api/v1/instances/{}", run.id);
    let stop = json!({ "reason": "", "grace_period_seconds": 0 });
    let signal = json!({ "signal_type": "cancel" });
    let custom = json!({ "checkpoint_id": "a", "payload": "b" });
    let attempts = [
        ("", Request::get(&path)),
        ("", Request::delete(&path)),
        ("/stop", Request::post(&format!("{path}/stop"), &stop)),
        ("/resume", Request::new("POST", &format!("{path}/resume"))),
        (
            "/signals",
            Request::post(&format!("{path}/signals"), &signal),
        ),
        (
            "/signals/custom",
            Request::post(&format!("{path}/signals/custom"), &custom),
        ),
        ("/logs", Request::get(&format!("{path}/logs?stream=stdout"))),
    ];
    for (what, request) in attempts {
        let answer = server.ask(&request.header("X-Runtara-Tenant-Id", "stranger"));
        let body = answer.json();
        let hidden = answer.status == 404
            || body["found"] == false
            || body["error"]
                .as_str()
                .is_some_and(|error| error.contains("not found"));
        assert!(hidden, "{what} of another tenant's instance: {answer}");
    }
    for list in ["checkpoints", "events", "steps"] {
        let answer = server
            .ask(&Request::get(&format!("{path}/{list}?tenant_id=stranger")))
            .expect(200);
        assert_eq!(answer["total_count"], 0, "{list}: {answer}");
    }
    assert_eq!(run.status()["status"], "running");
    let own = server
        .ask(&Request::get(&path).header("X-Runtara-Tenant-Id", TENANT))
        .expect(200);
    assert_eq!(own["found"], true, "{own}");
    let both = Request::get(&format!("{path}?tenant_id={TENANT}"))
        .header("X-Runtara-Tenant-Id", "stranger");
    server.ask(&both).refuses(403, "TENANT_MISMATCH");
    let body = json!({ "image_id": "a", "tenant_id": TENANT });
    let start = Request::post("/api/v1/instances", &body).header("X-Runtara-Tenant-Id", "stranger");
    server.ask(&start).refuses(403, "TENANT_MISMATCH");
    let metrics = Request::get(&format!("/api/v1/tenants/{TENANT}/metrics"))
        .header("X-Runtara-Tenant-Id", "stranger");
    server.ask(&metrics).refuses(403, "TENANT_MISMATCH");
}
