//! The server may die, leave and come again: runs go on, and two servers never work on one thing.

mod orderly_ends;
mod other_circumstances;
mod passed_sockets;
mod second_servers;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use runtara_tests::{
    Ground, Kind, Server, Store, base64, eventually, in_both_kinds, in_every_kind, on_both_stores,
    processes,
};
use serde_json::json;

on_both_stores!(
    a_program_is_cut_off_and_brought_back,
    an_end_while_no_server_lived_is_recorded,
    a_program_that_failed_because_no_server_lived_is_run_again,
    an_orderly_restart_hands_over,
    a_quiet_run_does_not_notice_an_orderly_restart,
    a_program_with_the_sdk_does_not_notice_a_restart,
    a_server_that_dies_between_claim_and_launch_loses_nothing,
);

in_both_kinds!(
    a_killed_server_finds_its_runs_again,
    a_killed_shim_is_noticed_and_its_program_ended,
    a_run_whose_files_were_removed_does_not_live_beside_the_next,
    the_time_limit_holds_while_no_server_lives,
);

in_every_kind!(
    a_run_that_died_with_the_server_is_run_again_uncounted,
    what_was_due_while_no_server_lived_runs_at_its_start,
    a_stop_reaches_a_run_that_was_found_again,
);

fn a_killed_server_finds_its_runs_again(ground: Ground) {
    let mut server = Server::start(ground);
    let script = "while :; do sleep 0.05; done";
    let id = server.launch(&server.shell(script), &json!({})).id;
    let process = server.instance(&id).wait_for_process();
    let token = server.instance(&id).token_path();
    server.kill_9();
    assert!(
        processes::lives(process.pid),
        "the program outlives the server"
    );
    server.start_again();
    let run = server.instance(&id);
    let body = json!({ "checkpoint_id": "a", "state": base64("1") });
    let saved = run.say_with(&token, "checkpoint", &body).expect(200);
    assert_eq!(saved["found"], false, "its token still speaks for it");
    assert_eq!(run.wait_for_process().pid, process.pid);
    assert_eq!(run.stop(5)["status"], "cancelled");
    assert!(!processes::lives(process.pid));
}

fn a_program_is_cut_off_and_brought_back(store: Store) {
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
    server.kill_9_and_restart();
    // Its connection is dead, and it repeats nothing: it reports a failure that is not its own.
    server.shared().touch("go");
    let run = server.instance(&id);
    assert_eq!(run.output()["sum"], 3);
    assert_eq!(server.shared().lines("effects")[0], "a 1");
    assert_eq!(run.checkpoints(), ["a", "b"]);
    assert_eq!(
        run.status()["retry_count"],
        0,
        "our fault is not counted: {}",
        run.story()
    );
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

fn a_run_that_died_with_the_server_is_run_again_uncounted(ground: Ground) {
    let mut server = Server::start(ground);
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

fn a_killed_shim_is_noticed_and_its_program_ended(ground: Ground) {
    let server = Server::start(ground);
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
    let parent = parent_of(first.pid);
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

fn a_run_whose_files_were_removed_does_not_live_beside_the_next(ground: Ground) {
    let mut server = Server::start(ground);
    let id = server.launch(&server.shell("sleep 600"), &json!({})).id;
    let first = server.instance(&id).wait_for_process();
    let shim = parent_of(first.pid);
    server.kill_9();
    fs::remove_dir_all(server.data_dir().join("runs")).expect("the directory is ours");
    server.start_again();
    let run = server.instance(&id);
    run.wait_until("its next run", |found| found["run_number"] == 2);
    let second = run.wait_for_process();
    for pid in [first.pid, shim] {
        assert!(!processes::lives(pid), "two runs live: {}", run.story());
    }
    assert!(processes::lives(second.pid));
    assert_eq!(run.stop(0)["status"], "cancelled");
}

fn an_orderly_restart_hands_over(store: Store) {
    let mut server = Server::start(store);
    // Nobody listens between two servers, so what a program that calls just then does is not the server's to decide. This one is at
    // work meanwhile, and calls before and after.
    let input = json!({ "effects_file": server.shared().path("effects"), "actions": [
        { "repeat": 4, "do": [{ "checkpoint": { "id": "before-{i}", "value": 1 } }] },
        { "until_file": server.shared().path("go") },
        { "repeat": 4, "do": [{ "checkpoint": { "id": "after-{i}", "value": 10 } }] },
    ]});
    let id = server
        .launch(&server.scripted(), &json!({ "input": input }))
        .id;
    eventually("its first steps", || {
        let saved = server.instance(&id).checkpoints();
        if saved.len() == 4 { Ok(()) } else { Err(saved) }
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
        processes::lives(process.pid),
        "the server has ended a program that was at work"
    );
    server.start_again();
    let run = server.instance(&id);
    assert_eq!(run.wait_for_process().pid, process.pid);
    let found = run.status();
    assert_eq!(
        (&found["status"], &found["run_number"]),
        (&json!("running"), &json!(1)),
        "it was not launched again: {found}"
    );
    assert_eq!(run.event_names(), ["started"]);
    // Its connection is closed, and its client repeats nothing: that may cost it the run, but nothing that was done.
    server.shared().touch("go");
    let output = run.output();
    assert_eq!(output["sum"], 44, "{output}");
    let effects = server.shared().lines("effects");
    let steps: Vec<_> = effects
        .iter()
        .map(|line| line.split(' ').next().unwrap_or_default())
        .collect();
    let each = |when| (1..=4).map(move |step| format!("{when}-{step}"));
    let once: Vec<_> = each("before").chain(each("after")).collect();
    assert_eq!(steps, once, "each step is done once");
    assert_eq!(run.status()["retry_count"], 0);
}

fn a_quiet_run_does_not_notice_an_orderly_restart(store: Store) {
    let mut server = Server::start(store);
    let go = server.shared().path("go");
    let script = format!("while [ ! -e {go} ]; do sleep 0.05; done; echo $RUNTARA_RUN_NUMBER");
    let id = server.launch(&server.shell(&script), &json!({})).id;
    let process = server.instance(&id).wait_for_process();
    let before = Instant::now();
    let _left = server.sigterm();
    let took = before.elapsed();
    assert!(
        took < Duration::from_secs(5),
        "nothing was under way, and it took {took:?} to leave"
    );
    assert!(processes::lives(process.pid));
    server.start_again();
    server.shared().touch("go");
    assert_eq!(server.instance(&id).output(), 1);
}

fn a_program_with_the_sdk_does_not_notice_a_restart(store: Store) {
    let mut server = Server::start(store);
    let image = server.program("uses_the_sdk");
    let effects = server.shared().path("effects");
    let input = json!({ "effects_file": effects, "steps": 30, "step_ms": 100 });
    let id = server.launch(&image, &json!({ "input": input })).id;
    let _some = server.shared().wait_for_lines("effects", 5);
    server.kill_9_and_restart();
    let _more = server.shared().wait_for_lines("effects", 15);
    let _left = server.sigterm();
    server.start_again();
    let output = server.instance(&id).output();
    assert_eq!(output["sum"], 465, "{output}");
    assert_eq!(
        output["run"], 1,
        "its calls were repeated until they got through: {output}"
    );
    assert_eq!(
        server.shared().lines("effects").len(),
        30,
        "each step is done once"
    );
}

fn the_time_limit_holds_while_no_server_lives(ground: Ground) {
    let mut server = Server::start(ground);
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

fn what_was_due_while_no_server_lived_runs_at_its_start(ground: Ground) {
    let mut server = Server::start(ground);
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

fn a_stop_reaches_a_run_that_was_found_again(ground: Ground) {
    let mut server = Server::start(ground);
    let id = server
        .launch(&server.program("ignores_sigterm"), &json!({}))
        .id;
    let process = match ground.kind {
        Kind::Native | Kind::Containers => Some(server.instance(&id).wait_for_process()),
        Kind::Wasm => None,
    };
    server.instance(&id).wait_for_line("ready");
    server.kill_9_and_restart();
    let run = server.instance(&id);
    let run_number = match &process {
        Some(process) => {
            assert!(processes::lives(process.pid));
            1
        }
        // A guest ends with its server, and is run again.
        None => 2,
    };
    run.wait_until("its run", |found| {
        found["status"] == "running" && found["run_number"] == run_number
    });
    assert_eq!(
        run.stop(1),
        json!({ "success": true, "status": "cancelled", "process_gone": true })
    );
    assert_eq!(run.status()["run_number"], run_number);
    assert!(run.is_gone());
    if let Some(process) = process {
        assert!(!processes::lives(process.pid));
    }
}

/// The process that a living one has for its parent.
fn parent_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    stat.rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok())
        .expect("proc(5)")
}

/// The only file below a directory.
fn only_file(directory: &Path) -> PathBuf {
    let mut found = Vec::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).expect("it is ours") {
            let path = entry.expect("it can be read").path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.push(path);
            }
        }
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn a_server_that_dies_between_claim_and_launch_loses_nothing(store: Store) {
    let mut server = Server::start(store);
    let image = server.shell("echo $RUNTARA_RUN_NUMBER");
    // A pipe that nobody writes to stands in for the program: the launch waits for it, with the claim made and nothing written yet.
    let content = only_file(&server.data_dir().join("blobs/sha256"));
    let aside = server.place().join("aside");
    fs::rename(&content, &aside).expect("the directory is ours");
    mkfifo(&content, Mode::S_IRUSR).expect("the directory is ours");
    let id = server.launch(&image, &json!({})).id;
    server.instance(&id).wait_for("running");
    server.kill_9();
    let runs = server.data_dir().join("runs");
    let written = fs::read_dir(&runs).map_or(0, Iterator::count);
    assert_eq!(written, 0, "the run was launched already");
    fs::rename(&aside, &content).expect("the directory is ours");
    server.start_again();
    let run = server.instance(&id);
    assert_eq!(run.output(), 2, "the run that was claimed never was");
    assert_eq!(run.status()["retry_count"], 0, "it is not counted");
}
