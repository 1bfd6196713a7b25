//! Two servers never work on one thing, and a server that cannot work says why.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use runtara_tests::http::Request;
use runtara_tests::{
    Server, Setup, Store, eventually, free_ports, holds_for, on_both_stores, program,
};
use serde_json::json;

on_both_stores!(
    a_second_server_on_the_same_data_directory_is_refused,
    a_second_server_on_the_same_ports_is_refused,
    a_core_address_that_a_stranger_holds_is_refused,
);

fn a_second_server_on_the_same_data_directory_is_refused(store: Store) {
    let server = Server::start(store);
    let [port, core] = free_ports();
    let output = server
        .command("serve")
        .env("RUNTARA_ENV_HTTP_PORT", port.to_string())
        .env("RUNTARA_CORE_ADDR", format!("127.0.0.1:{core}"))
        .output()
        .expect("the program can be started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(
        text.contains("in use by process") && text.contains(&server.pid().to_string()),
        "the holder is named: {text}"
    );
    assert!(text.contains("DATA_DIR"), "and the way out: {text}");
    assert_eq!(
        server.ask(&Request::get("/ready")).status,
        200,
        "the first serves on"
    );
}

fn a_second_server_on_the_same_ports_is_refused(store: Store) {
    let server = Server::start(store);
    let elsewhere = Server::start(Store::Sqlite);
    let port = match server.environment() {
        runtara_tests::http::Address::Port(port) => port.to_string(),
        other => panic!("{other:?}"),
    };
    let place = tempfile_in(&elsewhere);
    let output = elsewhere
        .command("dev")
        .env("DATA_DIR", &place)
        .env_remove("RUNTARA_ENVIRONMENT_DATABASE_URL")
        .env("RUNTARA_ENV_HTTP_PORT", &port)
        .output()
        .expect("the program can be started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(
        text.contains(&port) && text.contains("RUNTARA_ENV_HTTP_PORT"),
        "{text}"
    );
}

fn a_core_address_that_a_stranger_holds_is_refused(store: Store) {
    let stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = stranger.local_addr().expect("it is bound").to_string();
    let server = Server::start(store);
    let [port] = free_ports();
    let output = server
        .command("serve")
        .env("DATA_DIR", tempfile_in(&server))
        .env("RUNTARA_ENV_HTTP_PORT", port.to_string())
        .env("RUNTARA_CORE_ADDR", &address)
        .env(
            "RUNTARA_ENVIRONMENT_DATABASE_URL",
            match store {
                Store::Sqlite => format!("sqlite:{}/other.db", server.place().display()),
                Store::Postgres => server.database_url(),
            },
        )
        .output()
        .expect("the program can be started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains(&address), "{text}");
}

/// A directory for another server, below that of this one.
fn tempfile_in(server: &Server) -> std::path::PathBuf {
    let path = server.place().join("other-data");
    std::fs::create_dir_all(&path).expect("the directory is ours");
    path
}

#[test]
fn a_sqlite_database_has_one_server() {
    let server = Server::start(Store::Sqlite);
    let [port, core] = free_ports();
    let output = server
        .command("serve")
        .env("DATA_DIR", tempfile_in(&server))
        .env("RUNTARA_ENV_HTTP_PORT", port.to_string())
        .env("RUNTARA_CORE_ADDR", format!("127.0.0.1:{core}"))
        .output()
        .expect("the program can be started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(
        text.contains("runtara.db") || text.contains("in use"),
        "{text}"
    );
    assert_eq!(
        server.ask(&Request::get("/ready")).status,
        200,
        "the first serves on"
    );
}

#[test]
fn every_mistake_of_the_configuration_is_told_at_once() {
    let (status, log) = Setup::new(Store::Sqlite)
        .variable("RUNTARA_ENV_HTTP_PORT", "99999")
        .variable("RUNTARA_CORE_ADDR", "nowhere")
        .variable("RUNTARA_MAX_RUNS", "many")
        .variable(
            "RUNTARA_ENVIRONMENT_DATABASE_URL",
            "mysql://user:hunter2@host/db",
        )
        .run_to_its_end();
    assert!(!status.success(), "{log}");
    for variable in [
        "RUNTARA_ENV_HTTP_PORT",
        "RUNTARA_CORE_ADDR",
        "RUNTARA_MAX_RUNS",
        "RUNTARA_ENVIRONMENT_DATABASE_URL",
    ] {
        assert!(log.contains(variable), "{variable} is not named: {log}");
    }
    assert!(!log.contains("hunter2"), "a password is shown: {log}");
}

#[test]
fn serve_demands_a_database() {
    let (status, log) = Setup::new(Store::Sqlite)
        .variable("RUNTARA_ENVIRONMENT_DATABASE_URL", "")
        .run_to_its_end();
    assert!(!status.success(), "{log}");
    assert!(
        log.contains("RUNTARA_ENVIRONMENT_DATABASE_URL") && log.contains("RUNTARA_DATABASE_URL"),
        "{log}"
    );
}

#[test]
fn the_other_verbs_answer() {
    let server = Server::start(Store::Sqlite);
    let run = |verb: &str| {
        let output = server
            .command(verb)
            .env("DATA_DIR", tempfile_in(&server))
            .output();
        let output = output.expect("the program can be started");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (
            output.status.success(),
            text + &String::from_utf8_lossy(&output.stderr),
        )
    };
    let (good, text) = run("--version");
    assert!(good && text.contains("runtara-environment "), "{text}");
    let (good, text) = run("--help");
    assert!(
        good && text.contains("serve") && text.contains("RUNTARA_CORE_ADDR"),
        "{text}"
    );
    let (good, text) = run("check-config");
    assert!(good, "{text}");
    let (good, text) = run("migrate");
    assert!(
        !good || text.contains("up to date"),
        "a database in use is either refused or up to date: {text}"
    );
    let (good, _) = run("dance");
    assert!(!good);
    let help = std::process::Command::new(program("runtara-environment"))
        .output()
        .expect("it can be started");
    assert!(
        !help.status.success(),
        "without a verb there is nothing to do"
    );
}

#[test]
fn several_servers_may_start_at_once_on_one_postgresql() {
    let first = Setup::new(Store::Postgres);
    let server = first.start();
    let [a, b, c, d] = free_ports();
    let spawn = |name: &str, port: u16, core: u16| {
        let place = server.place().join(name);
        std::fs::create_dir_all(&place).expect("the directory is ours");
        let log =
            std::fs::File::create(server.place().join(format!("{name}.log"))).expect("it is ours");
        server
            .command("serve")
            .env("DATA_DIR", place)
            .env("RUNTARA_ENV_HTTP_PORT", port.to_string())
            .env("RUNTARA_CORE_ADDR", format!("127.0.0.1:{core}"))
            .stderr(log)
            .spawn()
            .expect("the program can be started")
    };
    let mut others = [spawn("second", a, b), spawn("third", c, d)];
    for port in [a, c] {
        eventually("the other nodes", || {
            let address = runtara_tests::http::Address::Port(port);
            runtara_tests::http::exchange(&address, &Request::get("/ready"))
                .map_err(|error| error.to_string())
                .and_then(|answer| {
                    if answer.status == 200 {
                        Ok(())
                    } else {
                        Err(answer.text())
                    }
                })
        });
    }
    // Whoever claims, each start is one run.
    let image = server.scripted();
    let effects = server.shared().path("effects");
    let input = json!({ "effects_file": effects, "actions": [{ "checkpoint": "a" }] });
    // Only this node has the content of its images: the others cannot launch them, and must not lose them.
    let ids: Vec<_> = (0..10)
        .map(|_| server.launch(&image, &json!({ "input": input })).id)
        .collect();
    for id in &ids {
        server
            .instance(id)
            .wait_within(Duration::from_secs(60), "completed");
    }
    assert_eq!(server.shared().lines("effects").len(), 10);
    holds_for(Duration::from_millis(500), "ten effects", || {
        let count = server.shared().lines("effects").len();
        if count == 10 { Ok(()) } else { Err(count) }
    });
    for other in &mut others {
        other.kill().expect("it is our child");
        other.wait().expect("it is our child");
    }
}
