//! Whatever is killed, containers are found again or ended, never run twice at once, and leave nothing.

use std::fs;

use nix::sys::signal::Signal;
use runtara_tests::processes::Process;
use runtara_tests::{Server, Store, eventually, holds_for, on_both_stores, processes};
use serde_json::{Value, json};

on_both_stores!(
    containers_outlive_their_server_and_end_well,
    an_end_while_no_server_lived_is_told_by_the_next,
    a_container_whose_shim_is_killed_is_ended_and_run_again,
    a_container_that_outlives_server_and_shim_is_ended_before_it_runs_again,
    a_machine_that_loses_power_leaves_nothing,
    an_orderly_restart_disturbs_no_container,
);

/// The shim of a process: it is the one of the server's processes that is the parent of a container's first.
fn shim_of(server: &Server, process: &Process) -> i32 {
    let parent = |pid: i32| -> Option<i32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let shim = parent(process.pid).expect("it lives");
    let known = server.processes();
    assert!(
        known.iter().any(|known| known.pid == shim),
        "its parent is not the shim"
    );
    shim
}

/// Steps with a hang in the first run after the first of them.
fn hangs_once() -> Value {
    json!([
        { "checkpoint": { "id": "a", "value": 1 } },
        { "on_run": 1, "do": { "hang": true } },
        { "checkpoint": { "id": "b", "value": 2 } },
    ])
}

fn wait_for_checkpoint(server: &Server, id: &str) {
    eventually("its checkpoint", || {
        let saved = server.instance(id).checkpoints();
        if saved == ["a"] { Ok(()) } else { Err(saved) }
    });
}

/// Checks that an instance that hung was run once more, and that this was nobody's fault but ours.
fn ends_in_its_second_run(server: &Server, id: &str, crashes: u64) {
    let run = server.instance(id);
    let output = run.output();
    assert_eq!(
        (&output["sum"], &output["run"]),
        (&json!(3), &json!(2)),
        "{}",
        run.story()
    );
    assert_eq!(run.checkpoints(), ["a", "b"]);
    // Progress resets the count: what was counted is in the events.
    let names = run.event_names();
    let counted = names
        .iter()
        .filter(|name| *name == "custom/runtara.crashed")
        .count();
    assert_eq!(counted as u64, crashes, "{names:?}");
    server.wait_until_nothing_remains();
}

fn containers_outlive_their_server_and_end_well(store: Store) {
    let mut server = Server::start(store.in_containers());
    let actions = json!([
        { "checkpoint": { "id": "a", "value": 1 } },
        { "work": 3_000 },
        { "checkpoint": { "id": "b", "value": 2 } },
    ]);
    let image = server.program("uses_the_sdk");
    let id = server.follow(&image, &actions).id;
    wait_for_checkpoint(&server, &id);
    let first = server.instance(&id).wait_for_process();
    for _ in 0..2 {
        server.kill_9();
        assert!(processes::lives(first.pid));
        server.start_again();
    }
    let run = server.instance(&id);
    assert_eq!(run.wait_for_process().pid, first.pid, "the same process");
    let found = run.status();
    assert_eq!(
        (&found["status"], &found["run_number"]),
        (&json!("running"), &json!(1)),
        "{found}"
    );
    let output = run.output();
    assert_eq!(output["run"], 1, "{}", run.story());
    assert_eq!(run.checkpoints(), ["a", "b"]);
    server.wait_until_nothing_remains();
}

fn an_end_while_no_server_lived_is_told_by_the_next(store: Store) {
    let mut server = Server::start(store.in_containers());
    let ids = ["echo '\"alone\"'", "exit 3"].map(|end| {
        let image = server.shell(&format!("echo ready; sleep 1; {end}"));
        let run = server.launch(&image, &json!({}));
        let _ready = run.wait_for_process();
        run.id
    });
    server.kill_9();
    eventually("the end of both", || {
        let left = server.remains().processes;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    server.start_again();
    assert_eq!(server.instance(&ids[0]).stdout(), "ready\n\"alone\"\n");
    // It may have failed because it could not reach us, so it is run again.
    let failed = server.instance(&ids[1]).wait_for("failed");
    assert_eq!(
        (&failed["exit_code"], &failed["run_number"]),
        (&json!(3), &json!(2)),
        "{failed}"
    );
    server.wait_until_nothing_remains();
}

fn a_container_whose_shim_is_killed_is_ended_and_run_again(store: Store) {
    let server = Server::start(store.in_containers());
    let id = server.follow(&server.scripted(), &hangs_once()).id;
    wait_for_checkpoint(&server, &id);
    let first = server.instance(&id).wait_for_process();
    processes::send(shim_of(&server, &first), Signal::SIGKILL);
    server
        .instance(&id)
        .wait_until("a second run", |found| found["run_number"] == 2);
    assert!(
        !processes::lives(first.pid),
        "never two processes of one instance"
    );
    ends_in_its_second_run(&server, &id, 0);
}

fn a_container_that_outlives_server_and_shim_is_ended_before_it_runs_again(store: Store) {
    let mut server = Server::start(store.in_containers());
    let id = server.follow(&server.scripted(), &hangs_once()).id;
    wait_for_checkpoint(&server, &id);
    let first = server.instance(&id).wait_for_process();
    let shim = shim_of(&server, &first);
    server.kill_9();
    processes::send(shim, Signal::SIGKILL);
    server.start_again();
    server
        .instance(&id)
        .wait_until("a second run", |found| found["run_number"] == 2);
    assert!(
        !processes::lives(first.pid),
        "never two processes of one instance"
    );
    ends_in_its_second_run(&server, &id, 0);
}

fn a_machine_that_loses_power_leaves_nothing(store: Store) {
    let mut server = Server::start(store.in_containers());
    let image = server.scripted();
    let ids = ["one", "two", "three"].map(|id| server.follow_as(&image, id, &hangs_once()).id);
    for id in &ids {
        wait_for_checkpoint(&server, id);
    }
    server.kill_9();
    eventually("the end of all processes", || {
        let found = server.processes();
        for process in &found {
            processes::send(process.pid, Signal::SIGKILL);
        }
        if found.is_empty() { Ok(()) } else { Err(found) }
    });
    let remains = server.remains();
    assert_eq!(
        remains.places.len(),
        3,
        "what a server finds that comes after: {remains:?}"
    );
    server.start_again();
    for id in &ids {
        ends_in_its_second_run(&server, id, 0);
    }
}

fn an_orderly_restart_disturbs_no_container(store: Store) {
    let mut server = Server::start(store.in_containers());
    let script = "trap go=yes USR1; echo ready; while [ -z \"$go\" ]; do sleep 0.05; done; echo $RUNTARA_RUN_NUMBER > $RUNTARA_OUTPUT_FILE";
    let id = server.launch(&server.shell(script), &json!({})).id;
    let _ready = server.instance(&id).wait_for_line("ready");
    let first = server.instance(&id).wait_for_process();
    let status = server.sigterm();
    assert!(status.success(), "{status}");
    assert!(processes::lives(first.pid));
    server.start_again();
    let run = server.instance(&id);
    holds_for(
        std::time::Duration::from_millis(300),
        "the first run",
        || {
            let found = run.status();
            if found["status"] == "running" && found["run_number"] == 1 {
                Ok(())
            } else {
                Err(found)
            }
        },
    );
    processes::send(first.pid, Signal::SIGUSR1);
    assert_eq!(run.output(), 1);
    server.wait_until_nothing_remains();
}
