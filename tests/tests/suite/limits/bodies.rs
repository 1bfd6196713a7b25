//! Bodies that never end, come too slowly, or are no forms.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use runtara_tests::http::{Connection, Request};
use runtara_tests::{Server, Store, TENANT};

use super::MIB;

#[test]
fn a_form_without_parts_is_refused_before_it_fills_the_memory() {
    let server = Server::start(Store::Sqlite);
    let part = b"--b\r\nContent-Disposition: form-data; name=\"name\"\r\nX-Long: ";
    for begin in [&b""[..], part] {
        let mut connection = Connection::open(&server.environment()).expect("the port is served");
        let head = Request::new("POST", "/api/v1/images/upload")
            .header("Content-Type", "multipart/form-data; boundary=b")
            .header("Content-Length", "1000000000")
            .body(begin);
        connection.send(&head.bytes()).expect("the head is read");
        let piece = vec![b'x'; 16 * 1024];
        let before = most_memory(server.pid());
        let mut sent = 0;
        while sent < 192 * MIB && connection.send(&piece).is_ok() {
            sent += piece.len();
        }
        // Beside what is read of no part, 64 MiB are thrown away so that a client sees the answer.
        assert!(sent < 96 * MIB, "{sent} bytes of no part were read");
        let grown = most_memory(server.pid()).saturating_sub(before);
        assert!(grown < 32 * 1024, "the server grew by {grown} KiB");
        match connection.read() {
            Ok(answer) => {
                answer.refuses(400, "UPLOAD_ERROR");
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    let texts = [("tenant_id", TENANT), ("name", "a"), ("more", "b")];
    let unknown = vec![b'x'; MIB + 1];
    let form = Request::form("/api/v1/images/upload", &texts, &[("other", &unknown)]);
    server.ask(&form).refuses(400, "UPLOAD_ERROR");
}

#[test]
fn whoever_is_refused_while_he_sends_gets_to_know_why() {
    let server = Server::start(Store::Sqlite);
    let much = vec![b'x'; 24 * MIB];
    let form = |part| Request::form("/api/v1/images/upload", &[], &[(part, &much)]);
    let json = |path| Request::new("POST", path).body(much.clone());
    let core = server.core();
    let refusals = [
        (server.environment(), form("other"), 400, "UPLOAD_ERROR"),
        (
            server.environment(),
            form("binary").header("Origin", "http://elsewhere.example"),
            403,
            "FOREIGN_ORIGIN",
        ),
        (
            server.environment(),
            json("/api/v1/instances"),
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        (
            core,
            json("/api/v1/instances/own-1/checkpoint"),
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
    ];
    for (address, request, status, code) in refusals {
        let mut connection = Connection::open(&address).expect("the port is served");
        // As a client that looks at nothing before all is sent.
        connection
            .send(&request.bytes())
            .unwrap_or_else(|error| panic!("{code}: it was cut while it sent: {error}"));
        let answer = connection.read().expect("it was answered");
        answer.refuses(status, code);
    }
}

#[test]
fn an_upload_that_sends_nothing_takes_no_place() {
    let server = Server::start(Store::Sqlite);
    let form = "--b\r\nContent-Disposition: form-data; name=\"tenant_id\"\r\n\r\nt\r\n\
                --b\r\nContent-Disposition: form-data; name=\"binary\"; filename=\"binary\"\r\n\r\n";
    let silent: Vec<_> = (0..40)
        .map(|number| {
            let (path, kind, begin) = if number % 2 == 0 {
                (
                    "/api/v1/images/upload",
                    "multipart/form-data; boundary=b",
                    form,
                )
            } else {
                (
                    "/api/v1/images",
                    "application/json",
                    "{\"tenant_id\":\"t\",\"binary\":\"",
                )
            };
            let mut connection =
                Connection::open(&server.environment()).expect("the port is served");
            let head = Request::new("POST", path)
                .header("Content-Type", kind)
                .header("Content-Length", "1000000")
                .body(begin);
            connection.send(&head.bytes()).expect("the head is read");
            connection
        })
        .collect();
    let before = Instant::now();
    let _image = server.program("exits_with");
    assert!(
        before.elapsed() < Duration::from_secs(20),
        "an upload waited {:?} for clients that send nothing",
        before.elapsed()
    );
    drop(silent);
}

#[test]
fn a_body_that_drips_is_given_up() {
    // Half a minute, side by side: a byte each second is no silence, and not enough.
    let server = Server::start(Store::Sqlite);
    let ways = [
        (
            server.environment(),
            "/api/v1/instances",
            "application/json",
        ),
        (server.environment(), "/api/v1/images", "application/json"),
        (
            server.environment(),
            "/api/v1/images/upload",
            "multipart/form-data; boundary=b",
        ),
        (
            server.core(),
            "/api/v1/instances/own-1/checkpoint",
            "application/json",
        ),
    ];
    std::thread::scope(|scope| {
        for (address, path, kind) in ways {
            scope.spawn(move || {
                let mut connection = Connection::open(&address).expect("the port is served");
                let head = Request::new("POST", path)
                    .header("Content-Type", kind)
                    .header("Content-Length", "100000")
                    .body(" ");
                connection.send(&head.bytes()).expect("the head is read");
                let before = Instant::now();
                while before.elapsed() < Duration::from_secs(45) && connection.send(b" ").is_ok() {
                    std::thread::sleep(Duration::from_secs(1));
                }
                assert!(
                    before.elapsed() < Duration::from_secs(40),
                    "{path} was borne for {:?}",
                    before.elapsed()
                );
                if let Ok(answer) = connection.read() {
                    answer.refuses(408, "REQUEST_TIMEOUT");
                }
            });
        }
    });
}

/// The most memory that a process has had so far, in KiB.
fn most_memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let text = line.expect("the kernel says so").trim();
    let number = text.trim_end_matches("kB").trim();
    number.parse().expect("a number of KiB")
}

#[test]
fn an_input_of_very_many_values_costs_little_more_than_its_text() {
    let server = Server::start(Store::Sqlite);
    let image = server.program("exits_with");
    let input = format!("[{}0]", "0,".repeat(6 * MIB));
    let body = format!(
        r#"{{"image_id":"{}","tenant_id":"{TENANT}","delay_ms":3600000,"input":{input}}}"#,
        image.0
    );
    let before = most_memory(server.pid());
    let request = Request::new("POST", "/api/v1/instances")
        .header("Content-Type", "application/json")
        .body(body);
    let started = server.ask(&request).expect(201);
    assert_eq!(started["success"], true, "{started}");
    let grown = most_memory(server.pid()).saturating_sub(before);
    // Body, text and what the store writes are some 12 MiB each; a tree of values would be more than 192.
    assert!(grown < 160 * 1024, "the server grew by {grown} KiB");
}
