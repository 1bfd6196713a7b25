//! Guests that speak the published contract, through `wasi:http`: they reach the core, as themselves, and nothing else.

use std::net::TcpListener;
use std::time::Duration;

use runtara_tests::{Image, Run, Server, Store, eventually, guest, on_both_stores};
use serde_json::{Value, json};

use super::{error_of, server_that_parks, try_register};

on_both_stores!(
    it_checkpoints_sleeps_and_completes,
    it_speaks_for_itself_alone,
    nothing_but_the_core_is_reached,
    what_its_end_means_depends_on_whether_it_spoke,
    sleeping_time_is_no_running_time_of_it,
    a_pause_and_a_cancel_reach_it,
    a_server_that_is_asked_to_leave_parks_it,
    it_goes_on_after_a_kill,
);

/// Registers the program that speaks HTTP.
pub(super) fn speaker(server: &Server) -> Image {
    try_register(server, "speaker", &guest::requester("speaks_http")).image()
}

/// Starts it with these commands.
pub(super) fn speak<'a>(server: &'a Server, image: &Image, script: &[&str]) -> Run<'a> {
    server.launch(image, &json!({ "args": script }))
}

/// What it saw until it completed.
pub(super) fn seen(run: &Run<'_>) -> Vec<String> {
    let output = run.output();
    let seen = output["seen"].as_array();
    let seen = seen.unwrap_or_else(|| panic!("{output}: {}", run.story()));
    seen.iter()
        .map(|text| text.as_str().unwrap_or_default().to_owned())
        .collect()
}

fn it_checkpoints_sleeps_and_completes(store: Store) {
    let server = server_that_parks(store);
    let image = speaker(&server);
    let script = [
        "register",
        "save a one",
        "sleep 50 short",
        "sleep 2000 long",
        "save b two",
        "save a three",
    ];
    let run = speak(&server, &image, &script);
    let found = run.wait_for_reason("sleeping");
    assert_eq!(found["status"], "suspended", "{found}");
    // The first is what an earlier run has saved.
    assert_eq!(
        seen(&run),
        ["a b25l", "b dHdv", "a b25l"],
        "{}",
        run.story()
    );
    assert_eq!(run.output()["run"], 2, "{}", run.story());
    assert_eq!(run.checkpoints(), ["a", "short", "long", "b"]);
    let found = run.status();
    assert_eq!(found["retry_count"], 0, "{found}");
    assert_eq!(found["termination_reason"], "completed", "{found}");
}

fn it_speaks_for_itself_alone(store: Store) {
    let server = Server::start(store);
    let image = speaker(&server);
    let other = speak(&server, &image, &["register", "pause 600000"]);
    eventually("the other", || match other.event_names().is_empty() {
        true => Err("nothing was said"),
        false => Ok(()),
    });
    let save = |of: &str| {
        let path = format!("/api/v1/instances/{of}/checkpoint");
        format!("call POST {path} {{\"checkpoint_id\":\"stolen\",\"state\":\"eA==\"}}")
    };
    let token = "0".repeat(43);
    let script = [
        save(&other.id),
        format!("call POST /api/v1/instances/{}/completed {{}}", other.id),
        format!("call GET /api/v1/instances/{}/status", other.id),
        format!("call GET /r/{token}/api/v1/instances/{}/input", other.id),
        "call GET /ready".to_owned(),
        "call GET /health".to_owned(),
        "header x-runtara-instance-id someone-else".to_owned(),
        save("@"),
        "header x-runtara-tenant-id strangers".to_owned(),
        save("@"),
    ];
    let script: Vec<_> = script.iter().map(String::as_str).collect();
    let run = speak(&server, &image, &script);
    let seen = seen(&run);
    let expected = [
        ("403", "INSTANCE_FORBIDDEN"),
        ("403", "INSTANCE_FORBIDDEN"),
        ("200", "\"running\""),
        ("404", ""),
        ("404", ""),
        ("200", "healthy"),
        ("403", "INSTANCE_FORBIDDEN"),
        ("403", "TENANT_FORBIDDEN"),
    ];
    assert_eq!(seen.len(), expected.len(), "{seen:?}");
    for (seen, (status, word)) in seen.iter().zip(expected) {
        assert!(seen.starts_with(status) && seen.contains(word), "{seen}");
    }
    assert!(other.checkpoints().is_empty());
    assert_eq!(other.stop(0)["status"], "cancelled");
}

fn nothing_but_the_core_is_reached(store: Store) {
    let server = Server::start(store);
    let image = speaker(&server);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.set_nonblocking(true).expect("it is ours");
    let port = listener.local_addr().expect("it is bound").port();
    let runtara_tests::http::Address::Port(environment) = server.environment() else {
        panic!("it has a port")
    };
    let targets = [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("http://127.0.0.1:{environment}/api/v1/health"),
        format!("http://127.0.0.1:{}/health", core_port(&server)),
        "https://127.0.0.1:8001/health".to_owned(),
        "http://127.0.0.2:8001/health".to_owned(),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "https://example.com/".to_owned(),
    ];
    let script: Vec<_> = targets
        .iter()
        .map(|url| format!("fetch GET {url}"))
        .collect();
    let script: Vec<_> = script.iter().map(String::as_str).collect();
    // It never spoke: what it prints is its result.
    let seen = seen(&speak(&server, &image, &script));
    assert_eq!(seen, vec!["HTTP-request-denied"; targets.len()]);
    assert!(listener.accept().is_err(), "somebody has connected");
}

fn core_port(server: &Server) -> u16 {
    match server.core() {
        runtara_tests::http::Address::Port(port) => port,
        socket => panic!("{socket:?}"),
    }
}

fn what_its_end_means_depends_on_whether_it_spoke(store: Store) {
    let server = Server::start(store);
    let image = speaker(&server);
    let quiet = speak(&server, &image, &["leave 3"]);
    let found = quiet.wait_for("failed");
    assert_eq!(found["termination_reason"], "application_error", "{found}");
    let spoke = speak(&server, &image, &["register", "on 1 leave 0", "save a one"]);
    assert_eq!(seen(&spoke), ["a b25l"], "{}", spoke.story());
    let found = spoke.status();
    assert_eq!(found["run_number"], 2, "{found}");
    let names = spoke.event_names();
    let crashes = names
        .iter()
        .filter(|name| *name == "custom/runtara.crashed");
    assert_eq!(crashes.count(), 1, "{names:?}");
}

fn sleeping_time_is_no_running_time_of_it(store: Store) {
    let server = Server::start(store);
    let image = speaker(&server);
    let start =
        json!({ "args": ["register", "sleep 4000 nap", "save a one"], "timeout_seconds": 3 });
    let run = server.launch(&image, &start);
    assert_eq!(seen(&run), ["a b25l"], "{}", run.story());
    assert_eq!(run.output()["run"], 1, "it was held");
}

fn a_pause_and_a_cancel_reach_it(store: Store) {
    let server = Server::start(store);
    let image = speaker(&server);
    for (signal, status) in [("pause", "suspended"), ("cancel", "cancelled")] {
        let run = speak(&server, &image, &["register", "save begun 1", "on 1 obey"]);
        eventually("its first step", || match run.checkpoints().is_empty() {
            true => Err("nothing is saved"),
            false => Ok(()),
        });
        let sent = run.signal(signal);
        assert_eq!(sent.status, 200, "{sent}");
        let found = run.wait_for(status);
        assert_eq!(found["retry_count"], 0, "{found}");
        if signal == "pause" {
            run.resume();
            assert_eq!(run.output()["run"], 2);
        }
    }
}

/// As many steps as this, with pauses between them.
fn steps(count: usize) -> Vec<String> {
    let steps = (1..=count).flat_map(|n| [format!("save step-{n} {n}"), "pause 50".to_owned()]);
    std::iter::once("register".to_owned())
        .chain(steps)
        .collect()
}

fn wait_for_steps(server: &Server, id: &str, wanted: usize) {
    eventually(&format!("{wanted} steps"), || {
        let made = server.instance(id).checkpoints().len();
        if made >= wanted { Ok(()) } else { Err(made) }
    });
}

fn completes_in_its_second_run(run: &Run<'_>, steps: usize) {
    let output = run.output();
    assert_eq!(output["run"], 2, "{}", run.story());
    assert_eq!(output["seen"].as_array().map(Vec::len), Some(steps));
    let found: Value = run.status();
    assert_eq!(found["retry_count"], 0, "{found}: {}", error_of(&found));
    let names = run.event_names();
    let crashed = names.iter().any(|name| name == "custom/runtara.crashed");
    assert!(!crashed, "it was not the program's fault: {names:?}");
    assert_eq!(run.checkpoints().len(), steps);
}

fn a_server_that_is_asked_to_leave_parks_it(store: Store) {
    const STEPS: usize = 40;
    let mut server = Server::start(store);
    let image = speaker(&server);
    let script = json!({ "args": steps(STEPS) });
    let ids: Vec<_> = (0..4).map(|_| server.launch(&image, &script).id).collect();
    for id in &ids {
        wait_for_steps(&server, id, 3);
    }
    let begun = std::time::Instant::now();
    let status = server.sigterm();
    assert!(status.success(), "{status}");
    let took = begun.elapsed();
    assert!(
        took < Duration::from_secs(5),
        "they were waited for: {took:?}"
    );
    server.start_again();
    for id in &ids {
        completes_in_its_second_run(&server.instance(id), STEPS);
    }
}

fn it_goes_on_after_a_kill(store: Store) {
    const STEPS: usize = 20;
    let mut server = Server::start(store);
    let image = speaker(&server);
    let id = server.launch(&image, &json!({ "args": steps(STEPS) })).id;
    wait_for_steps(&server, &id, 5);
    server.kill_9_and_restart();
    completes_in_its_second_run(&server.instance(&id), STEPS);
}
