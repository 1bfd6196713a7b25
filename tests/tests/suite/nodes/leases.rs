//! A node that dies, hangs or is cut off: its runs are ended before others have them.

use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use runtara_tests::{Proxy, Server, Store, eventually, eventually_within, holds_for, processes};
use serde_json::json;

use super::{
    LEASE, TAKEN_OVER, alone, beside, drain, first, node, second, undrain, wait_until_guarded,
};

/// A program that tells every tenth of a second that it lives, for as long as there is no file `go`, and of each run its number.
fn telling(server: &Server) -> String {
    let shared = server.shared();
    format!(
        "while [ ! -e {} ]; do echo \"$(date +%s%N) $RUNTARA_RUN_NUMBER\" >> {}; sleep 0.1; done; echo '\"done\"'",
        shared.path("go"),
        shared.path("alive"),
    )
}

/// Checks that of all that the runs of an instance have told, none of a run comes after one of a later run.
fn never_two_at_once(server: &Server) -> usize {
    let mut told: Vec<(u128, u32)> = server
        .shared()
        .lines("alive")
        .iter()
        .map(|line| {
            let (at, run) = line.split_once(' ').expect("a time and a number");
            (at.parse().expect("a time"), run.parse().expect("a number"))
        })
        .collect();
    told.sort_unstable();
    assert!(
        told.is_sorted_by_key(|(_, run)| *run),
        "an earlier run still lived while a later one did: {told:?}"
    );
    told.dedup_by_key(|(_, run)| *run);
    told.len()
}

/// The two servers, and an instance that runs on the first.
fn running_on_the_first(first: &Server, second: &Server) -> (String, i32) {
    wait_until_guarded(second, "first");
    wait_until_guarded(second, "second");
    drain(second, "second", 0);
    let image = first.shell(&telling(first));
    let id = first.launch(&image, &json!({})).id;
    let process = first.instance(&id).wait_for_process();
    undrain(second, "second");
    (id, process.pid)
}

/// Waits until its second run lives, and has told so.
fn runs_again_on(server: &Server, shared: &Server, id: &str) {
    let _status = server
        .instance(id)
        .wait_until_within(TAKEN_OVER, "its second run", |status| {
            status["run_number"] == 2 && status["status"] == "running"
        });
    eventually("a word of its second run", || {
        let lines = shared.shared().lines("alive");
        match lines.last() {
            Some(line) if line.ends_with(" 2") => Ok(()),
            other => Err(other.cloned()),
        }
    });
}

fn completes(server: &Server, shared: &Server, id: &str) {
    shared.shared().touch("go");
    let run = server.instance(id);
    run.wait_within(Duration::from_secs(30), "completed");
    assert_eq!(run.status()["retry_count"], 0, "{}", run.story());
}

#[test]
fn what_ran_on_a_killed_node_runs_elsewhere() {
    let mut one = first();
    let two = second(&one);
    let (id, pid) = running_on_the_first(&one, &two);
    let killed = Instant::now();
    one.kill_9();
    assert!(processes::lives(pid), "its program outlives the server");
    runs_again_on(&two, &one, &id);
    let took = killed.elapsed();
    assert!(took < LEASE + Duration::from_secs(5), "it took {took:?}");
    assert!(!processes::lives(pid), "its guard has ended it before");
    completes(&two, &one, &id);
    assert_eq!(never_two_at_once(&one), 2);
    one.start_again();
    let told = one.log();
    let ended = "the guard of this node ended what still ran";
    assert!(told.contains(ended), "{told}");
}

#[test]
fn a_node_that_comes_back_too_late_ends_what_it_had() {
    let mut one = first();
    let id = one.launch(&one.shell(&telling(&one)), &json!({})).id;
    let process = one.instance(&id).wait_for_process();
    // It was alone, so its program has no guard.
    one.kill_9();
    let two = second(&one);
    runs_again_on(&two, &one, &id);
    assert!(processes::lives(process.pid));
    one.start_again();
    eventually("the end of its program", || {
        match processes::lives(process.pid) {
            true => Err(()),
            false => Ok(()),
        }
    });
    completes(&two, &one, &id);
}

#[test]
fn a_node_that_comes_back_in_time_keeps_its_runs() {
    let mut one = first();
    let two = second(&one);
    let (id, pid) = running_on_the_first(&one, &two);
    for _ in 0..3 {
        one.kill_9_and_restart();
        holds_for(
            Duration::from_secs(6),
            "its program",
            || match processes::lives(pid) {
                true => Ok(()),
                false => Err("it was ended"),
            },
        );
    }
    assert_eq!(two.instance(&id).status()["run_number"], 1);
    completes(&two, &one, &id);
}

#[test]
fn a_node_that_was_stopped_longer_than_its_lease_does_no_harm() {
    let mut one = first();
    let two = second(&one);
    let (id, pid) = running_on_the_first(&one, &two);
    one.signal(Signal::SIGSTOP);
    runs_again_on(&two, &one, &id);
    assert!(!processes::lives(pid), "its guard has ended it before");
    one.signal(Signal::SIGCONT);
    // A server that hangs could launch something when it goes on: its guard has killed it too.
    let status = one.wait_for_its_end();
    assert!(!status.success(), "{status}");
    completes(&two, &one, &id);
    assert_eq!(never_two_at_once(&one), 2);
    one.start_again();
    let told = one.log();
    let killed = "the guard of this node killed the server before this one";
    assert!(told.contains(killed), "{told}");
    eventually("the node is back", || match node(&two, "first") {
        node if node["state"] == "alive" => Ok(()),
        node => Err(node),
    });
}

#[test]
fn a_node_without_its_database_ends_its_runs_and_goes_on_afterwards() {
    let setup = alone(Store::Postgres);
    let database = setup.database_url();
    let wire = Proxy::to_database(&database);
    let one = setup
        .variable("RUNTARA_ENVIRONMENT_DATABASE_URL", &wire.url(&database))
        .start();
    let two = second(&one);
    let (id, pid) = running_on_the_first(&one, &two);
    let cut = Instant::now();
    wire.cut();
    eventually_within(LEASE, "the end of its program", || {
        match processes::lives(pid) {
            true => Err(()),
            false => Ok(()),
        }
    });
    let took = cut.elapsed();
    assert!(took > Duration::from_secs(4), "it took only {took:?}");
    runs_again_on(&two, &one, &id);
    wire.mend();
    eventually_within(Duration::from_secs(30), "the node is back", || {
        match node(&two, "first") {
            node if node["state"] == "alive" => Ok(()),
            node => Err(node),
        }
    });
    completes(&two, &one, &id);
    assert_eq!(never_two_at_once(&one), 2);
    drain(&two, "second", 0);
    let again = one.launch(&one.shell("echo 7"), &json!({}));
    assert_eq!(again.output(), 7, "it works again");
}

#[test]
fn a_node_that_is_alone_ends_nothing_however_long_its_database_is_away() {
    let setup = alone(Store::Postgres);
    let database = setup.database_url();
    let wire = Proxy::to_database(&database);
    let one = setup
        .variable("RUNTARA_ENVIRONMENT_DATABASE_URL", &wire.url(&database))
        .start();
    let id = one.launch(&one.shell(&telling(&one)), &json!({})).id;
    let process = one.instance(&id).wait_for_process();
    wire.cut();
    holds_for(
        LEASE + Duration::from_secs(5),
        "its program",
        || match processes::lives(process.pid) {
            true => Ok(()),
            false => Err("it was ended"),
        },
    );
    wire.mend();
    one.shared().touch("go");
    let run = one.instance(&id);
    run.wait_within(Duration::from_secs(60), "completed");
    assert_eq!(run.status()["run_number"], 1);
}

#[test]
fn guests_of_a_stopped_node_end_with_it() {
    let mut one = alone(Store::Postgres.in_guests()).start();
    let two = second(&one);
    wait_until_guarded(&two, "first");
    drain(&two, "second", 0);
    let run = one.follow(
        &one.scripted(),
        &json!([{ "checkpoint": "a" }, { "on_run": 1, "do": { "hang": true } }, { "checkpoint": "b" }]),
    );
    eventually("its checkpoint", || match run.checkpoints() {
        found if found == ["a"] => Ok(()),
        found => Err(found),
    });
    let id = run.id.clone();
    undrain(&two, "second");
    one.signal(Signal::SIGSTOP);
    two.instance(&id).wait_within(TAKEN_OVER, "completed");
    assert_eq!(two.instance(&id).checkpoints(), ["a", "b"]);
    let gone = one.wait_for_its_end();
    assert!(!gone.success(), "its guard has killed the server: {gone}");
}

#[test]
fn a_clock_that_is_wrong_by_minutes_makes_no_difference() {
    let one = first();
    let two = beside(&one, "second")
        .with_clock_ahead_by(Duration::from_secs(600))
        .start();
    wait_until_guarded(&one, "second");
    drain(&one, "first", 0);
    let asked = Instant::now();
    let run = two.follow(
        &two.scripted(),
        &json!([{ "checkpoint": "a" }, { "sleep": { "id": "s", "ms": 12_000 } }, { "checkpoint": "b" }]),
    );
    run.wait_within(Duration::from_secs(60), "completed");
    let took = asked.elapsed();
    assert!(took >= Duration::from_secs(12), "it slept only {took:?}");
    assert!(took < Duration::from_secs(40), "it slept for {took:?}");
    // Whoever judged a lease by its own clock would take the other's runs for lost.
    undrain(&one, "first");
    drain(&one, "second", 600);
    let id = one.launch(&one.shell(&telling(&one)), &json!({})).id;
    let _process = one.instance(&id).wait_for_process();
    sleep(LEASE + Duration::from_secs(3));
    assert_eq!(one.instance(&id).status()["run_number"], 1);
    completes(&two, &one, &id);
}
