//! Whatever is killed, containers are found again or ended, never run twice at once, and leave nothing.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use runtara_tests::processes::Process;
use runtara_tests::{
    Server, Setup, Store, eventually, eventually_within, holds_for, on_both_stores, processes,
};
use serde_json::{Value, json};

on_both_stores!(
    containers_outlive_their_server_and_end_well,
    an_end_while_no_server_lived_is_told_by_the_next,
    a_container_whose_shim_is_killed_is_ended_and_run_again,
    a_container_that_outlives_server_and_shim_is_ended_before_it_runs_again,
    a_machine_that_loses_power_leaves_nothing,
    an_orderly_restart_disturbs_no_container,
);

/// How long many containers may take.
const LONG: Duration = Duration::from_secs(120);

/// The shim of a process: it is the one of the server's processes that is the parent of a container's first.
fn shim_of(server: &Server, process: &Process) -> i32 {
    let shim = parent(process.pid).expect("it lives");
    let known = server.processes();
    assert!(
        known.iter().any(|known| known.pid == shim),
        "its parent is not the shim"
    );
    shim
}

/// The process that a living one has for its parent.
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
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
    holds_for(Duration::from_millis(300), "the first run", || {
        let found = run.status();
        if found["status"] == "running" && found["run_number"] == 1 {
            Ok(())
        } else {
            Err(found)
        }
    });
    processes::send(first.pid, Signal::SIGUSR1);
    assert_eq!(run.output(), 1);
    server.wait_until_nothing_remains();
}

/// This has the machine for itself: it fills it with containers.
mod alone {
    use super::*;

    const INSTANCES: usize = 24;
    const STEPS: usize = 6;

    fn id(number: usize) -> String {
        format!("work-{number}")
    }

    /// How many steps all have made.
    fn progress(server: &Server) -> usize {
        let made = |number| server.instance(&id(number)).checkpoints().len();
        (0..INSTANCES).map(made).sum()
    }

    /// The shims of half of the containers that live.
    fn some_shims(server: &Server) -> Vec<i32> {
        let programs = server.remains().processes;
        let first = |process: &&Process| {
            process
                .command_line
                .first()
                .is_some_and(|word| word == "/program")
        };
        let programs: Vec<_> = programs.iter().filter(first).step_by(2).collect();
        programs
            .iter()
            .filter_map(|process| parent(process.pid))
            .collect()
    }

    #[test]
    fn workflows_in_containers_survive_kills_of_the_server_and_of_shims() {
        let mut server = Setup::new(Store::Postgres.in_containers())
            .variable("RUNTARA_SLEEP_HOLD_MS", "300")
            .start();
        let image = server.scripted();
        let input = json!({ "steps": STEPS, "step_ms": 250, "sleep_at": 3, "sleep_ms": 1_200 });
        for number in 0..INSTANCES {
            let start = json!({ "instance_id": id(number), "input": input });
            let answer = server.try_launch(&image, &start);
            assert_eq!(answer.status, 201, "{answer}");
        }
        for share in 1..=4 {
            // By their progress and not by the clock.
            let wanted = INSTANCES * STEPS * share / 6;
            eventually_within(LONG, &format!("{wanted} steps"), || {
                let made = progress(&server);
                if made >= wanted { Ok(()) } else { Err(made) }
            });
            let shims = some_shims(&server);
            server.kill_9();
            if share % 2 == 0 {
                for shim in shims {
                    processes::send(shim, Signal::SIGKILL);
                }
            }
            server.start_again();
        }
        let mut steps: Vec<_> = (1..=STEPS).map(|step| format!("step-{step}")).collect();
        steps.insert(3, "sleep".to_owned());
        let mut runs = 0;
        for number in 0..INSTANCES {
            let run = server.instance(&id(number));
            let found = run.wait_within(LONG, "completed");
            runs += found["run_number"].as_u64().unwrap_or_default();
            assert_eq!(run.output()["sum"], STEPS * (STEPS + 1) / 2);
            assert_eq!(run.checkpoints(), steps, "each step once: {}", run.story());
            let names = run.event_names();
            let count = |name: &str| names.iter().filter(|found| *found == name).count();
            assert_eq!(count("completed"), 1, "{names:?}");
            assert_eq!(
                count("custom/runtara.crashed"),
                0,
                "it was our fault: {names:?}"
            );
        }
        assert!(
            runs > 2 * INSTANCES as u64,
            "the kills met nobody: this proves nothing"
        );
        server.wait_until_nothing_remains();
    }
}
