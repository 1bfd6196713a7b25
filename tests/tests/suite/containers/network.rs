//! What a program in a container reaches over the network: the core alone, for itself alone, unless it is given more.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use runtara_tests::http::{Address, Request, exchange};
use runtara_tests::{Run, Server, Setup, Store, base64, on_both_stores};
use serde_json::{Value, json};

on_both_stores!(an_isolated_program_reaches_the_core_alone_and_for_itself_alone);

/// A listener of the machine that greets whoever comes, and its port.
fn stranger(address: &str) -> u16 {
    let listener = TcpListener::bind((address, 0)).expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut request = [0; 1_024];
            let _gone = (&stream).read(&mut request);
            let _gone =
                (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nstranger");
        }
    });
    port
}

/// What a script in a container prints.
fn printed(server: &Server, script: &str, start: &Value) -> String {
    server.launch(&server.shell(script), start).stdout()
}

/// What a call of a program got: its status, and the code of its refusal.
fn told(run: &Run<'_>, path: &str) -> (u64, Value) {
    let output = run.output();
    let call = &output["seen"][path];
    let body = match &call["body"] {
        Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
        body => body.clone(),
    };
    (
        call["status"].as_u64().unwrap_or_default(),
        body["code"].clone(),
    )
}

fn an_isolated_program_reaches_the_core_alone_and_for_itself_alone(store: Store) {
    let server = Server::start(store.in_containers());
    let (environment, core) = (server.address(), server.core_address());
    let (near, wide) = (stranger("127.0.0.1"), stranger("0.0.0.0"));
    let script = format!(
        "ls /sys/class/net; for to in {environment}/health {core}/health 127.0.0.1:{near}/ 127.0.0.1:{wide}/ 10.0.0.1/ 169.254.169.254/; do \
           wget -q -O - http://$to && echo \"reached $to\"; done 2>/dev/null; \
         wget -q -O - http://127.0.0.1:8001/health && echo 'served without a token'; \
         wget -q -O - $RUNTARA_HTTP_URL/health > /dev/null && echo 'served with its own'; echo end"
    );
    for port in [near, wide] {
        let greeting = exchange(&Address::Port(port), &Request::get("/"));
        assert_eq!(greeting.expect("it listens").text(), "stranger");
    }
    let seen = printed(&server, &script, &json!({}));
    assert_eq!(seen, "lo\nserved with its own\nend\n");
    // Its own token opens its own instance, and not another's.
    let other = server.launch(
        &server.program("sleeps_forever"),
        &json!({ "instance_id": "other" }),
    );
    let _running = other.wait_for_process();
    let calls = [
        (
            "POST",
            "/api/v1/instances/other/checkpoint",
            json!({ "checkpoint_id": "a", "state": base64("1") }),
        ),
        ("POST", "/api/v1/instances/other/completed", json!({})),
        ("GET", "/api/v1/instances/other/input", Value::Null),
    ];
    for (method, path, body) in calls {
        let actions = json!([{ "call": { "method": method, "path": path, "body": body } }]);
        let run = server.follow(&server.scripted(), &actions);
        assert_eq!(
            told(&run, path),
            (403, json!("INSTANCE_FORBIDDEN")),
            "{path}: {}",
            run.output()
        );
    }
    assert_eq!(other.status()["status"], "running");
    assert!(other.event_names().is_empty() && other.checkpoints().is_empty());
}

#[test]
fn the_network_of_the_host_is_for_the_operator_to_allow() {
    let port = stranger("127.0.0.1");
    let script = format!(
        "wget -q -O - http://127.0.0.1:{port}/ 2>/dev/null; echo; wget -q -O - $RUNTARA_HTTP_URL/health > /dev/null && echo core"
    );
    let server = Server::start(Store::Sqlite.in_containers());
    let image = server.shell(&script);
    let host = json!({ "network": "host" });
    let text = server
        .try_launch(&image, &host)
        .refuses(400, "INVALID_SETTINGS");
    assert!(
        text.contains("'host' is not allowed") && text.contains("'isolated'"),
        "{text}"
    );
    let none = server.launch(&image, &json!({ "network": "none" }));
    assert_eq!(none.stdout(), "\ncore\n", "the name that isolation had");
    let server = Setup::new(Store::Sqlite.in_containers())
        .variable("RUNTARA_ALLOWED_NETWORK_MODES", "isolated,host")
        .start();
    let image = server.shell(&script);
    assert_eq!(server.launch(&image, &host).stdout(), "stranger\ncore\n");
    assert_eq!(server.launch(&image, &json!({})).stdout(), "\ncore\n");
    let egress = json!({ "network": "egress" });
    let text = server
        .try_launch(&image, &egress)
        .refuses(400, "INVALID_SETTINGS");
    assert!(text.contains("'egress' is not allowed"), "{text}");
}

#[test]
fn a_program_does_not_notice_that_its_server_restarts() {
    let mut server = Server::start(Store::Sqlite.in_containers());
    let script = "while :; do wget -q -O - $RUNTARA_HTTP_URL/health > /dev/null || exit 7; echo called; sleep 0.05; done";
    let id = server.launch(&server.shell(script), &json!({})).id;
    let calls = |server: &Server| {
        server
            .instance(&id)
            .logs("stream=stdout")
            .text()
            .lines()
            .count()
    };
    let _first = server.instance(&id).wait_for_line("called");
    let before = calls(&server);
    let _left = server.sigterm();
    // It calls while nobody listens: the call waits.
    thread::sleep(Duration::from_millis(500));
    server.start_again();
    runtara_tests::eventually("more calls", || {
        let now = calls(&server);
        if now > before + 5 { Ok(()) } else { Err(now) }
    });
    let run = server.instance(&id);
    let found = run.status();
    assert_eq!(
        (&found["status"], &found["run_number"]),
        (&json!("running"), &json!(1)),
        "{}",
        run.story()
    );
}

#[test]
fn a_program_that_may_reach_the_internet_does_not_reach_the_host() {
    let server = Server::start(Store::Sqlite.in_containers());
    let port = stranger("0.0.0.0");
    let addresses = addresses_of_the_host();
    let tries: Vec<_> = addresses
        .iter()
        .map(|address| format!("{address}:{port}/"))
        .chain([format!("{}/health", server.address())])
        .collect();
    for address in &addresses {
        let reached = TcpStream::connect((address.as_str(), port));
        assert!(reached.is_ok(), "{address} is no address of the host");
    }
    let script = format!(
        "ls /sys/class/net | wc -l; for to in {}; do wget -q -O - http://$to 2>/dev/null && echo \"reached $to\"; done; \
         wget -q -O - $RUNTARA_HTTP_URL/health > /dev/null && echo core",
        tries.join(" ")
    );
    let egress = json!({ "network": "egress" });
    assert_eq!(printed(&server, &script, &egress), "2\ncore\n");
    server.wait_until_nothing_remains();
}

/// The addresses by which the host is known to itself, the loopback's among them.
fn addresses_of_the_host() -> Vec<String> {
    let listed = std::process::Command::new("hostname").arg("-I").output();
    let listed = listed.expect("every machine has it").stdout;
    let listed = String::from_utf8_lossy(&listed);
    let old = |address: &&str| !address.contains(':');
    let others = listed.split_whitespace().filter(old);
    ["127.0.0.1"]
        .into_iter()
        .chain(others)
        .map(str::to_owned)
        .collect()
}
