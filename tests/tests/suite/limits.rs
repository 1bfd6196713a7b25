//! Every input has a limit, every wait an end, and whoever is over it is told so.

mod bodies;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use runtara_tests::http::{Address, Connection, Request};
use runtara_tests::{
    Ground, Server, Setup, Store, TENANT, base64, eventually, holds_for, in_every_kind,
    natively_and_in_guests, on_both_stores,
};
use serde_json::{Value, json};

const MIB: usize = 1024 * 1024;

on_both_stores!(
    what_is_too_large_is_refused_and_changes_nothing,
    an_oversize_body_is_refused_before_it_is_read,
    a_page_is_bounded,
    many_callers_at_once_are_all_answered,
);

natively_and_in_guests!(runs_at_once_are_bounded,);

in_every_kind!(large_states_inputs_and_outputs_fit,);

fn large_states_inputs_and_outputs_fit(ground: Ground) {
    let server = Server::start(ground);
    server.self_register("own-1");
    let state = format!("\"{}\"", "x".repeat(5 * MIB));
    let body = json!({ "checkpoint_id": "large", "state": base64(&state) });
    assert_eq!(
        server.say("own-1", "checkpoint", &body).expect(200)["found"],
        false
    );
    let again = server
        .say(
            "own-1",
            "checkpoint",
            &json!({ "checkpoint_id": "large", "state": "" }),
        )
        .expect(200);
    assert_eq!(
        again["state"].as_str().map(str::len),
        body["state"].as_str().map(str::len)
    );
    let listed = server.instance("own-1").get("/checkpoints").expect(200);
    assert_eq!(
        listed["checkpoints"][0]["data_size_bytes"],
        state.len(),
        "{listed}"
    );
    let input = json!({ "text": "y".repeat(5 * MIB) });
    let run = server.launch(&server.program("echoes_input"), &json!({ "input": input }));
    assert_eq!(run.output(), input);
}

fn what_is_too_large_is_refused_and_changes_nothing(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let event =
        json!({ "event_type": "custom", "subtype": "a", "payload": base64(vec![b'x'; MIB + 1]) });
    server
        .say("own-1", "events", &event)
        .refuses(400, "INVALID_REQUEST");
    let subtype = json!({ "event_type": "custom", "subtype": "x".repeat(256) });
    server
        .say("own-1", "events", &subtype)
        .refuses(400, "INVALID_REQUEST");
    let run = server.instance("own-1");
    let large = "x".repeat(256 * 1024 + 1);
    run.post(
        "/signals",
        &json!({ "signal_type": "pause", "payload": large }),
    )
    .refuses(400, "PAYLOAD_TOO_LARGE");
    run.post(
        "/signals/custom",
        &json!({ "checkpoint_id": "a", "payload": large }),
    )
    .refuses(400, "PAYLOAD_TOO_LARGE");
    run.post(
        "/signals/custom",
        &json!({ "checkpoint_id": "x".repeat(2_049), "payload": "" }),
    )
    .refuses(400, "INVALID_REQUEST");
    assert_eq!(run.event_names(), ["started"]);
    assert_eq!(
        server.look("own-1", "signals").expect(200).get("signal"),
        None
    );
    let image = server.program("exits_with");
    for (more, code) in [
        (
            json!({ "args": ["x".repeat(128 * 1024 + 1)] }),
            "INVALID_ARGS",
        ),
        (
            json!({ "env": { "A": "x".repeat(256 * 1024) } }),
            "INVALID_ENV",
        ),
        (
            json!({ "labels": { "a": "x".repeat(256) } }),
            "INVALID_LABEL",
        ),
        (json!({ "max_attempts": 1_001 }), "INVALID_MAX_ATTEMPTS"),
        (json!({ "delay_ms": u64::MAX }), "INVALID_START_TIME"),
        (json!({ "start_at_ms": i64::MAX }), "INVALID_START_TIME"),
    ] {
        server.try_launch(&image, &more).refuses(400, code);
    }
}

fn an_oversize_body_is_refused_before_it_is_read(store: Store) {
    let server = Server::start(store);
    for (address, path, begin, piece) in [
        (server.environment(), "/api/v1/instances", "", b' '),
        (
            server.environment(),
            "/api/v1/images",
            "{\"binary\":\"",
            b'A',
        ),
        (
            server.core(),
            "/api/v1/instances/own-1/checkpoint",
            "",
            b' ',
        ),
    ] {
        let mut connection = Connection::open(&address).expect("the port is served");
        let head = Request::new("POST", path)
            .header("Content-Type", "application/json")
            .header("Content-Length", "1000000000000")
            .body(begin);
        connection.send(&head.bytes()).expect("the head is read");
        let piece = vec![piece; MIB];
        // It may answer at once, or when the limit of 64 MiB is passed; it must not read for ever.
        for _ in 0..70 {
            if connection.send(&piece).is_err() {
                break;
            }
        }
        match connection.read() {
            Ok(answer) => {
                answer.refuses(413, "BODY_TOO_LARGE");
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{path}"),
        }
    }
    assert_eq!(server.ask(&Request::get("/ready")).status, 200);
}

fn a_page_is_bounded(store: Store) {
    let server = Server::start(store);
    for number in 0..3 {
        server.self_register(&format!("own-{number}"));
    }
    for limit in ["1000000", "4294967296", "18446744073709551615"] {
        let page = server
            .ask(&Request::get(&format!("/api/v1/instances?limit={limit}")))
            .expect(200);
        assert_eq!(
            (&page["limit"], &page["total_count"]),
            (&json!(1_000), &json!(3)),
            "{page}"
        );
    }
    let far = server
        .ask(&Request::get(
            "/api/v1/instances?offset=9223372036854775807",
        ))
        .expect(200);
    assert_eq!(
        (&far["instances"], &far["total_count"]),
        (&json!([]), &json!(3)),
        "{far}"
    );
    server
        .ask(&Request::get(
            "/api/v1/instances?offset=9223372036854775808",
        ))
        .refuses(400, "INVALID_QUERY");
}

fn runs_at_once_are_bounded(ground: Ground) {
    let server = Setup::new(ground).variable("RUNTARA_MAX_RUNS", "2").start();
    let image = server.scripted();
    let waits = json!([{ "signal": "go" }]);
    let runs: Vec<_> = (0..6).map(|_| server.follow(&image, &waits)).collect();
    let live = || {
        runs.iter()
            .filter(|run| run.status()["status"] == "running")
            .count()
    };
    eventually("that the places are taken", || {
        if live() == 2 { Ok(()) } else { Err(live()) }
    });
    holds_for(Duration::from_millis(700), "two runs at once", || {
        if live() <= 2 { Ok(()) } else { Err(live()) }
    });
    for run in &runs {
        run.custom_signal("go", "1");
    }
    for run in &runs {
        run.wait_for("completed");
    }
}

fn many_callers_at_once_are_all_answered(store: Store) {
    let server = Server::start(store);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let server = &server;
            scope.spawn(move || {
                let id = format!("own-{thread}");
                server.self_register(&id);
                let mut connection = Connection::open(&server.core()).expect("the port is served");
                for n in 0..30 {
                    let body = json!({ "checkpoint_id": format!("c{n}"), "state": base64("1") });
                    let request =
                        Request::post(&format!("/api/v1/instances/{id}/checkpoint"), &body);
                    let answer = connection.exchange(&request).expect("it is answered");
                    assert_eq!(answer.expect(200)["found"], false);
                }
            });
        }
    });
    for thread in 0..16 {
        assert_eq!(
            server
                .instance(&format!("own-{thread}"))
                .checkpoints()
                .len(),
            30
        );
    }
}

#[test]
fn what_is_no_http_is_refused() {
    let server = Server::start(Store::Sqlite);
    for address in [server.environment(), server.core(), server.core_socket()] {
        for bytes in [
            &b"hello\r\n\r\n"[..],
            b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"GET /health HTTP/1.1\r\nBad Header: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        ] {
            let mut connection = Connection::open(&address).expect("it is served");
            connection
                .set_patience(Duration::from_secs(10))
                .expect("a time can be set");
            connection.send(bytes).expect("it is read");
            match connection.read() {
                Ok(answer) => assert_eq!(answer.status, 400, "{answer}"),
                Err(error) => assert!(
                    matches!(
                        error.kind(),
                        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                    ),
                    "{error} for {}",
                    String::from_utf8_lossy(bytes)
                ),
            }
        }
    }
    assert_eq!(server.ask(&Request::get("/ready")).status, 200);
}

#[test]
fn heads_are_bounded() {
    let server = Server::start(Store::Sqlite);
    let long_header = Request::get("/health").header("X-Long", &"x".repeat(4 * MIB));
    let long_target = Request::get(&format!("/health?{}", "x".repeat(4 * MIB)));
    let mut many_headers = Request::get("/health");
    for number in 0..10_000 {
        many_headers = many_headers.header(&format!("X-{number}"), "1");
    }
    for request in [long_header, long_target, many_headers] {
        let mut connection = Connection::open(&server.environment()).expect("the port is served");
        match connection.exchange(&request) {
            Ok(answer) => assert!(matches!(answer.status, 414 | 431), "{answer}"),
            Err(error) => assert!(
                matches!(
                    error.kind(),
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof
                ),
                "{error}"
            ),
        }
    }
    assert_eq!(server.ask(&Request::get("/health")).status, 200);
}

/// Waits until the server has had enough of a client, and says how long that took and what it answered.
fn until_given_up(address: &Address, first: &[u8]) -> (Duration, Option<Value>) {
    let mut connection = Connection::open(address).expect("the port is served");
    connection
        .set_patience(Duration::from_secs(60))
        .expect("a time can be set");
    let before = Instant::now();
    connection.send(first).expect("it is read");
    match connection.read() {
        Ok(answer) => (
            before.elapsed(),
            Some(json!({ "status": answer.status, "body": answer.text() })),
        ),
        Err(error) => {
            assert!(
                matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                ),
                "{error}"
            );
            (before.elapsed(), None)
        }
    }
}

#[test]
fn slow_clients_are_given_up() {
    // Each takes as long as the server's patience lasts: half a minute, side by side.
    let server = Server::start(Store::Sqlite);
    let head = b"POST /api/v1/instances HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    let ways: [&[u8]; 3] = [b"", b"GET /health HTTP/1.1\r\nHost: loc", head];
    std::thread::scope(|scope| {
        for way in ways {
            let address = server.environment();
            scope.spawn(move || {
                let (took, answer) = until_given_up(&address, way);
                let shown = String::from_utf8_lossy(way);
                assert!(
                    took < Duration::from_secs(50),
                    "{shown:?} was borne for {took:?}"
                );
                assert!(
                    took > Duration::from_secs(5),
                    "{shown:?} was cut after {took:?}: {answer:?}"
                );
                if let Some(answer) = answer {
                    assert_eq!(answer["status"], 408, "{shown:?}: {answer}");
                }
            });
        }
    });
}

#[test]
fn an_idle_connection_stays_open_for_a_hundred_seconds() {
    // Published clients keep connections for 90 s and do not repeat what fails on one that was just closed. This test is about time
    // itself: it takes as long as it says.
    let server = Server::start(Store::Sqlite);
    let addresses = [server.environment(), server.core()];
    std::thread::scope(|scope| {
        for address in &addresses {
            scope.spawn(move || {
                let mut connection = Connection::open(address).expect("the port is served");
                assert_eq!(
                    connection
                        .exchange(&Request::get("/health"))
                        .expect("an answer")
                        .status,
                    200
                );
                std::thread::sleep(Duration::from_secs(100));
                let answer = connection
                    .exchange(&Request::get("/health"))
                    .expect("the connection is still open");
                assert_eq!(answer.status, 200);
            });
        }
    });
}

#[test]
fn connections_carry_many_requests() {
    let server = Server::start(Store::Sqlite);
    let mut connection = Connection::open(&server.environment()).expect("the port is served");
    for _ in 0..100 {
        let answer = connection
            .exchange(&Request::get("/api/v1/health"))
            .expect("an answer");
        assert_eq!(answer.status, 200);
    }
    // An error does not cost the connection.
    let refused = connection
        .exchange(&Request::get("/nowhere"))
        .expect("an answer");
    refused.refuses(404, "UNKNOWN_ROUTE");
    let body = json!({ "image_id": "x", "tenant_id": TENANT });
    let refused = connection
        .exchange(&Request::post("/api/v1/instances", &body))
        .expect("an answer");
    assert_eq!(refused.status, 400);
    assert_eq!(
        connection
            .exchange(&Request::get("/health"))
            .expect("an answer")
            .status,
        200
    );
}
