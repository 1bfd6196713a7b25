//! A server that is asked to leave does so soon, whatever its clients are about, and leaves behind what it should.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use runtara_tests::http::{Connection, Request};
use runtara_tests::{Server, Setup, Store, eventually, on_both_stores, processes};
use serde_json::json;

on_both_stores!(a_server_leaves_soon_although_clients_wait_and_follow);

/// Clients who wait for the end of an instance and follow what it writes, each over a connection of its own.
struct Patient {
    waiting: Vec<Connection>,
    following: Vec<Connection>,
}

impl Patient {
    fn of(server: &Server, ids: &[String]) -> Self {
        let open = |rest: &str| {
            let ask = |id: &String| {
                let path = format!("/api/v1/instances/{id}{rest}");
                let mut connection =
                    Connection::open(&server.environment()).expect("the port is served");
                let request = Request::get(&path).bytes();
                connection.send(&request).expect("the server reads");
                connection
            };
            ids.iter().map(ask).collect()
        };
        let patient = Self {
            waiting: open("?wait_ms=60000"),
            following: open("/logs?follow=true"),
        };
        // Nobody tells when the server has read them all. It may close a connection whose request it has not begun to read.
        std::thread::sleep(Duration::from_millis(500));
        patient
    }

    /// Those who wait are told where the instance stands, and outputs break off: an end would say that the run has ended.
    fn are_answered(self) {
        for mut connection in self.waiting {
            let answer = connection.read().expect("an answer, not a cut");
            assert_eq!(answer.expect(200)["found"], true, "{answer}");
        }
        for mut connection in self.following {
            let ended = connection.read();
            assert!(ended.is_err(), "the output seems to have ended: {ended:?}");
        }
    }
}

fn launch_sleepers(server: &Server, count: usize) -> Vec<String> {
    let image = server.program("sleeps_forever");
    let ids: Vec<_> = (0..count)
        .map(|_| server.launch(&image, &json!({})).id)
        .collect();
    for id in &ids {
        let _runs = server.instance(id).wait_for_process();
    }
    ids
}

fn a_server_leaves_soon_although_clients_wait_and_follow(store: Store) {
    let mut server = Server::start(store);
    let ids = launch_sleepers(&server, 4);
    let pids = ids
        .iter()
        .map(|id| server.instance(id).wait_for_process().pid);
    let pids: Vec<_> = pids.collect();
    let patient = Patient::of(&server, &ids);
    let before = Instant::now();
    let status = server.sigterm();
    let took = before.elapsed();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(3), "it took {took:?} to leave");
    patient.are_answered();
    for pid in pids {
        assert!(processes::lives(pid), "the next server adopts its programs");
    }
}

#[test]
fn dev_ends_every_run_although_clients_wait_and_follow() {
    let mut server = Setup::dev().without("RUNTARA_NATIVE_USER").start();
    let ids = launch_sleepers(&server, 12);
    let patient = Patient::of(&server, &ids);
    server.signal(Signal::SIGINT);
    let status = server.wait_for_its_end();
    assert!(status.success(), "{status}");
    patient.are_answered();
    let left: Vec<_> = ids.iter().flat_map(|id| server.processes_of(id)).collect();
    assert!(left.is_empty(), "programs are left behind: {left:?}");
}

/// An upload that comes no further spends what requests may take of the grace, and nothing of what the end of the runs needs.
#[test]
fn dev_ends_every_run_although_a_request_never_ends() {
    let mut server = Setup::dev()
        .without("RUNTARA_NATIVE_USER")
        .variable("RUNTARA_SHUTDOWN_GRACE_MS", "4000")
        .start();
    let image = server.program("ignores_sigterm");
    let id = server.launch(&image, &json!({})).id;
    let process = server.instance(&id).wait_for_process();
    let mut stuck = Connection::open(&server.environment()).expect("the port is served");
    let head = "POST /api/v1/instances HTTP/1.1\r\nHost: localhost\r\n\
                Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{";
    stuck.send(head.as_bytes()).expect("the server reads");
    server.signal(Signal::SIGINT);
    let _status = server.wait_for_its_end();
    assert!(
        !processes::lives(process.pid),
        "dev leaves no program behind"
    );
    server.start_again();
    assert_eq!(
        server.instance(&id).status()["retry_count"],
        0,
        "an end of dev counts for nothing"
    );
}

/// The directory of the first run of the only instance.
fn only_run(data_dir: &Path) -> PathBuf {
    let mut runs = fs::read_dir(data_dir.join("runs")).expect("there were runs");
    let instance = runs.next().expect("there is one").expect("it can be read");
    instance.path().join("1")
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    let mut server = Setup::new(Store::Sqlite)
        .variable("RUNTARA_SHUTDOWN_GRACE_MS", "60000")
        .start();
    let run = server.launch(&server.shell("echo written"), &json!({}));
    let path = format!("/api/v1/instances/{}/logs", run.id);
    let _ended = run.wait_for("completed");
    // A pipe that nobody writes to: whoever opens it to read waits for ever, and cannot be cut off.
    let output = only_run(&server.data_dir()).join("stdout.0");
    fs::remove_file(&output).expect("the output is kept");
    mkfifo(&output, Mode::S_IRUSR | Mode::S_IWUSR).expect("the directory is ours");
    let mut stuck = Connection::open(&server.environment()).expect("the port is served");
    let request = Request::get(&path).bytes();
    stuck.send(&request).expect("the server reads");
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
