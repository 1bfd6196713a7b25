//! The server may die, leave and come again: runs go on, and two servers never work on one thing.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use runtara_tests::http::Request;
use runtara_tests::{
    Server, Setup, Store, eventually, free_ports, holds_for, on_both_stores, processes, program,
};
use serde_json::json;

on_both_stores!(
    a_killed_server_finds_its_runs_again,
    an_end_while_no_server_lived_is_recorded,
    a_program_that_failed_because_no_server_lived_is_run_again,
    a_run_that_died_with_the_server_is_run_again_uncounted,
    a_killed_shim_is_noticed_and_its_program_ended,
    an_orderly_restart_hands_over,
    a_quiet_run_does_not_notice_an_orderly_restart,
    the_time_limit_holds_while_no_server_lives,
    what_was_due_while_no_server_lived_runs_at_its_start,
    a_stop_reaches_a_run_that_was_found_again,
    a_second_server_on_the_same_data_directory_is_refused,
    a_second_server_on_the_same_ports_is_refused,
    a_core_address_that_a_stranger_holds_is_refused,
);

fn a_killed_server_finds_its_runs_again(store: Store) {
    let mut server = Server::start(store);
    let effects = server.shared().path("effects");
    let input = json!({ "effects_file": effects, "actions": [
        { "checkpoint": { "id": "a", "value": 1 } },
        { "until_file": server.shared().path("go") },
        { "checkpoint": { "id": "b", "value": 2 } },
    ]});
    let id = server
        .launch(&server.scripted(), &json!({ "input": input }))
        .id;
    eventually("its checkpoint", || {
        if server.instance(&id).checkpoints() == ["a"] {
            Ok(())
        } else {
            Err(())
        }
    });
    let process = server.instance(&id).wait_for_process();
    server.kill_9();
    assert!(
        processes::lives(process.pid),
        "the program outlives the server"
    );
    server.start_again();
    server.shared().touch("go");
    let output = server.instance(&id).output();
    assert_eq!(
        (&output["sum"], &output["run"]),
        (&json!(3), &json!(1)),
        "the same process went on: {output}"
    );
    assert_eq!(server.shared().lines("effects"), ["a 1", "b 1"]);
}

fn an_end_while_no_server_lived_is_recorded(store: Store) {
    let mut server = Server::start(store);
    let go = server.shared().path("go");
    let script = format!("while [ ! -e {go} ]; do sleep 0.05; done; echo '\"finished alone\"'");
    let id = server.launch(&server.shell(&script), &json!({})).id;
    let process = server.instance(&id).wait_for_process();
    server.kill_9();
    server.shared().touch("go");
    eventually("the end of the program", || {
        if processes::lives(process.pid) {
            Err(())
        } else {
            Ok(())
        }
    });
    server.start_again();
    let run = server.instance(&id);
    assert_eq!(run.output(), "finished alone");
    assert_eq!(run.status()["run_number"], 1);
}

fn a_program_that_failed_because_no_server_lived_is_run_again(store: Store) {
    let mut server = Server::start(store);
    let go = server.shared().path("go");
    let id = server
        .follow(
            &server.scripted(),
            &json!([
                { "checkpoint": { "id": "a", "value": 1 } },
                { "until_file": go },
                { "checkpoint": { "id": "b", "value": 2 } },
            ]),
        )
        .id;
    eventually("its checkpoint", || {
        if server.instance(&id).checkpoints() == ["a"] {
            Ok(())
        } else {
            Err(())
        }
    });
    let process = server.instance(&id).wait_for_process();
    server.kill_9();
    // It calls a server that is not there, and leaves with 1 as published programs do.
    server.shared().touch("go");
    eventually("the end of the program", || {
        if processes::lives(process.pid) {
            Err(())
        } else {
            Ok(())
        }
    });
    server.start_again();
    let run = server.instance(&id);
    let output = run.output();
    assert_eq!(
        (&output["sum"], &output["run"]),
        (&json!(3), &json!(2)),
        "{output}"
    );
    assert_eq!(run.status()["retry_count"], 0, "our fault is not counted");
    assert!(
        run.event_names()
            .contains(&"custom/runtara.interrupted".to_owned()),
        "{:?}",
        run.event_names()
    );
}

fn a_run_that_died_with_the_server_is_run_again_uncounted(store: Store) {
    let mut server = Server::start(store);
    let id = server
        .follow(
            &server.scripted(),
            &json!([
                { "checkpoint": { "id": "a", "value": 1 } },
                { "on_run": 1, "do": { "hang": true } },
                { "checkpoint": { "id": "b", "value": 2 } },
            ]),
        )
        .id;
    eventually("its checkpoint", || {
        if server.instance(&id).checkpoints() == ["a"] {
            Ok(())
        } else {
            Err(())
        }
    });
    server.kill_9();
    // As a machine that loses power: the shim and the program are gone, too.
    for process in server.processes() {
        processes::send(process.pid, Signal::SIGKILL);
    }
    eventually("the end of all processes", || {
        if server.processes().is_empty() {
            Ok(())
        } else {
            Err(server.processes())
        }
    });
    server.start_again();
    let output = server.instance(&id).output();
    assert_eq!(
        (&output["sum"], &output["run"]),
        (&json!(3), &json!(2)),
        "{output}"
    );
    assert_eq!(server.instance(&id).status()["retry_count"], 0);
}

fn a_killed_shim_is_noticed_and_its_program_ended(store: Store) {
    let server = Server::start(store);
    let run = server.follow(
        &server.scripted(),
        &json!([{ "checkpoint": "a" }, { "on_run": 1, "do": { "hang": true } }]),
    );
    eventually("its checkpoint", || {
        if run.checkpoints() == ["a"] {
            Ok(())
        } else {
            Err(run.story())
        }
    });
    let first = run.wait_for_process();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", first.pid)).expect("it lives");
    let parent = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok())
        .expect("proc(5)");
    assert!(
        server
            .processes()
            .iter()
            .any(|process| process.pid == parent),
        "its parent is not the shim"
    );
    processes::send(parent, Signal::SIGKILL);
    let output = run.output();
    assert_eq!(output["run"], 2, "{output}");
    assert!(
        !processes::lives(first.pid),
        "never two processes of one instance"
    );
}

fn an_orderly_restart_hands_over(store: Store) {
    let mut server = Server::start(store);
    let image = server.scripted();
    let steps =
        json!({ "effects_file": server.shared().path("effects"), "steps": 40, "step_ms": 100 });
    let id = server.launch(&image, &json!({ "input": steps })).id;
    eventually("its first steps", || {
        if server.instance(&id).checkpoints().len() > 3 {
            Ok(())
        } else {
            Err(())
        }
    });
    let process = server.instance(&id).wait_for_process();
    let before = Instant::now();
    let status = server.sigterm();
    assert!(status.success(), "the server left with {status}");
    assert!(
        before.elapsed() < Duration::from_secs(15),
        "it took {:?}",
        before.elapsed()
    );
    assert!(
        processes::lives(process.pid) || server.shared().lines("effects").len() < 40,
        "the program was not ended by us"
    );
    server.start_again();
    let output = server.instance(&id).output();
    assert_eq!(output["sum"], 820, "{output}");
    let mut effects: Vec<_> = server
        .shared()
        .lines("effects")
        .iter()
        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    effects.dedup();
    assert!(
        effects.len() <= 41,
        "at most the step in which it was cut was done again: {effects:?}"
    );
    assert_eq!(server.instance(&id).status()["retry_count"], 0);
}

fn a_quiet_run_does_not_notice_an_orderly_restart(store: Store) {
    let mut server = Server::start(store);
    let id = server.follow(&server.scripted(), &json!([
        { "checkpoint": "a" }, { "until_file": server.shared().path("go") }, { "checkpoint": "b" },
    ])).id;
    let process = server.instance(&id).wait_for_process();
    eventually("its checkpoint", || {
        if server.instance(&id).checkpoints() == ["a"] {
            Ok(())
        } else {
            Err(())
        }
    });
    let _left = server.sigterm();
    assert!(processes::lives(process.pid));
    server.start_again();
    server.shared().touch("go");
    assert_eq!(server.instance(&id).output()["run"], 1);
}

fn the_time_limit_holds_while_no_server_lives(store: Store) {
    let mut server = Server::start(store);
    let id = server
        .launch(
            &server.program("ignores_sigterm"),
            &json!({ "timeout_seconds": 3 }),
        )
        .id;
    let process = server.instance(&id).wait_for_process();
    server.kill_9();
    eventually("the end of the program", || {
        if processes::lives(process.pid) {
            Err(())
        } else {
            Ok(())
        }
    });
    server.start_again();
    let found = server.instance(&id).wait_for("failed");
    assert_eq!(found["termination_reason"], "timeout", "{found}");
}

fn what_was_due_while_no_server_lived_runs_at_its_start(store: Store) {
    let mut server = Server::start(store);
    let image = server.program("echoes_input");
    let id = server
        .launch(&image, &json!({ "delay_ms": 1_500, "input": 7 }))
        .id;
    server.kill_9();
    // Longer than the delay: what is shown is that nobody need have been there when it ran out.
    std::thread::sleep(Duration::from_millis(2_000));
    server.start_again();
    assert_eq!(server.instance(&id).output(), 7);
}

fn a_stop_reaches_a_run_that_was_found_again(store: Store) {
    let mut server = Server::start(store);
    let id = server
        .launch(&server.program("ignores_sigterm"), &json!({}))
        .id;
    let process = server.instance(&id).wait_for_process();
    server.kill_9_and_restart();
    let run = server.instance(&id);
    assert_eq!(run.stop(1)["status"], "cancelled");
    assert!(!processes::lives(process.pid));
}

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
fn a_second_signal_ends_the_server_at_once() {
    let mut server = Server::start(Store::Sqlite);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    let path = format!("/api/v1/instances/{}?wait_ms=60000", run.id);
    let _running = run.wait_for_process();
    let mut waiting =
        runtara_tests::http::Connection::open(&server.environment()).expect("the port is served");
    waiting
        .send(&Request::get(&path).bytes())
        .expect("it is read");
    server.signal(Signal::SIGTERM);
    eventually("its word that it leaves", || {
        if server.log().contains("leaving") {
            Ok(())
        } else {
            Err(())
        }
    });
    let before = Instant::now();
    server.signal(Signal::SIGTERM);
    let _status = server.wait_for_its_end();
    assert!(
        before.elapsed() < Duration::from_secs(3),
        "it took {:?}",
        before.elapsed()
    );
}

#[test]
fn dev_needs_no_settings_and_ends_its_runs() {
    let mut server = Setup::dev().without("RUNTARA_NATIVE_USER").start();
    let id = server
        .follow(
            &server.scripted(),
            &json!([{ "checkpoint": "a" }, { "on_run": 1, "do": { "hang": true } }]),
        )
        .id;
    let process = server.instance(&id).wait_for_process();
    eventually("its checkpoint", || {
        if server.instance(&id).checkpoints() == ["a"] {
            Ok(())
        } else {
            Err(())
        }
    });
    server.signal(Signal::SIGINT);
    let status = server.wait_for_its_end();
    assert!(status.success(), "{status}");
    assert!(
        !processes::lives(process.pid),
        "dev leaves no program behind"
    );
    eventually("that nothing is left", || {
        let found = server.processes();
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
    server.start_again();
    let run = server.instance(&id);
    assert_eq!(run.output()["run"], 2);
    assert_eq!(
        run.status()["retry_count"],
        0,
        "an end of dev counts for nothing"
    );
}

#[test]
fn an_orderly_end_leaves_no_process_when_nothing_runs() {
    let mut server = Server::start(Store::Sqlite);
    server
        .launch(&server.program("echoes_input"), &json!({}))
        .wait_for("completed");
    let _left = server.sigterm();
    eventually("that nothing is left", || {
        let found = server.processes();
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
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
