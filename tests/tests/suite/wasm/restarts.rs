//! Guests live and die with their server: what they have saved does not.

use std::time::Duration;

use runtara_tests::{
    Run, Server, Setup, Store, eventually, eventually_within, milliseconds, on_both_stores,
};
use serde_json::json;

use super::{bodies, component, server_that_parks};

on_both_stores!(
    a_workflow_goes_on_after_each_kill_and_repeats_no_saved_step,
    a_server_that_is_asked_to_leave_parks_its_guests,
    a_sleep_goes_on_over_a_kill,
    a_signal_that_is_sent_while_no_guest_runs_reaches_it,
);

/// How long many guests may take.
const LONG: Duration = Duration::from_secs(120);

/// Checks that each step was saved once, and that no body of it was begun in a run after the one that saved it.
fn no_saved_step_is_repeated(run: &Run<'_>, steps: usize) {
    let names: Vec<_> = (1..=steps).map(|n| format!("step-{n}")).collect();
    assert_eq!(run.checkpoints(), names, "{}", run.story());
    let begun = bodies(run);
    // Steps are done one after the other: whoever begins the next has saved the one before.
    let mut numbers = begun.iter().map(|(name, _)| {
        let number = name.rsplit_once('-').map(|(_, number)| number.parse());
        number.and_then(Result::ok).unwrap_or(0_usize)
    });
    let mut reached = numbers.next().unwrap_or_default();
    assert_eq!(reached, 1, "{begun:?}");
    for number in numbers {
        assert!(
            number == reached || number == reached + 1,
            "a step that was saved was done again: {begun:?}"
        );
        reached = number;
    }
    assert_eq!(reached, steps, "{begun:?}");
    // A body that is begun twice was cut before its step was saved: by the end of a run.
    for pair in begun.windows(2) {
        assert!(
            pair[0].0 != pair[1].0 || pair[0].1 < pair[1].1,
            "twice in one run: {begun:?}"
        );
    }
    let names = run.event_names();
    let count = |wanted: &str| names.iter().filter(|name| *name == wanted).count();
    assert_eq!(count("completed"), 1, "{names:?}");
    assert_eq!(
        count("custom/runtara.crashed"),
        0,
        "it was not the program's fault: {names:?}"
    );
}

fn wait_for_steps(server: &Server, id: &str, wanted: usize) {
    eventually(&format!("{wanted} steps"), || {
        let made = server.instance(id).checkpoints().len();
        if made >= wanted { Ok(()) } else { Err(made) }
    });
}

fn a_workflow_goes_on_after_each_kill_and_repeats_no_saved_step(store: Store) {
    const STEPS: usize = 20;
    let mut server = Server::start(store);
    let image = component(&server, "workflow");
    let start = json!({ "args": [STEPS.to_string(), "60"] });
    let id = server.launch(&image, &start).id;
    for wanted in [4, 9, 14] {
        wait_for_steps(&server, &id, wanted);
        server.kill_9_and_restart();
    }
    let run = server.instance(&id);
    let output = run.output();
    assert_eq!(
        (&output["sum"], &output["run"]),
        (&json!(STEPS * (STEPS + 1) / 2), &json!(4)),
        "{}",
        run.story()
    );
    no_saved_step_is_repeated(&run, STEPS);
}

fn a_server_that_is_asked_to_leave_parks_its_guests(store: Store) {
    const STEPS: usize = 40;
    let mut server = Server::start(store);
    let image = component(&server, "workflow");
    let spins = super::command(&server, "spins");
    let ids: Vec<_> = (0..6)
        .map(|_| {
            let start = json!({ "args": [STEPS.to_string(), "50"] });
            server.launch(&image, &start).id
        })
        .collect();
    let busy = server.launch(&spins, &json!({ "timeout_seconds": 600 })).id;
    let _ready = server.instance(&busy).wait_for_line("ready");
    for id in &ids {
        wait_for_steps(&server, id, 3);
    }
    let status = server.sigterm();
    assert!(status.success(), "{status}");
    server.start_again();
    for id in &ids {
        let run = server.instance(id);
        let output = run.output();
        assert_eq!(
            (&output["sum"], &output["run"]),
            (&json!(STEPS * (STEPS + 1) / 2), &json!(2)),
            "{}",
            run.story()
        );
        no_saved_step_is_repeated(&run, STEPS);
        // It was parked at a durable call, of which there are two in a step: one body may have been cut by it.
        assert!(bodies(&run).len() <= STEPS + 1, "{:?}", bodies(&run));
    }
    let run = server.instance(&busy);
    let found = run.wait_until("its second run", |found| {
        found["status"] == "running" && found["run_number"] == 2
    });
    assert_eq!(found["retry_count"], 0, "{found}");
    assert_eq!(run.stop(0)["status"], "cancelled");
}

fn a_sleep_goes_on_over_a_kill(store: Store) {
    let mut server = server_that_parks(store);
    let image = component(&server, "scripted");
    let begun = milliseconds();
    let far = json!({ "input": ["sleep 4000 nap 1", "checkpoint after"] });
    let far = server.launch(&image, &far).id;
    server.instance(&far).wait_for_reason("sleeping");
    server.kill_9();
    server.set_variable("RUNTARA_SLEEP_HOLD_MS", "10000");
    server.start_again();
    let held = json!({ "input": ["checkpoint before", "sleep 3000 nap 1", "checkpoint after"] });
    let held = server.launch(&image, &held).id;
    eventually("its sleep", || {
        let saved = server.instance(&held).checkpoints();
        if saved.iter().any(|name| name == "nap") {
            Ok(())
        } else {
            Err(saved)
        }
    });
    server.kill_9_and_restart();
    for (id, runs) in [(&far, 2..=3), (&held, 2..=2)] {
        let run = server.instance(id);
        let output = run.output();
        let number = output["run"].as_u64().unwrap_or_default();
        assert!(runs.contains(&number), "{}", run.story());
    }
    let took = milliseconds() - begun;
    assert!(took >= 4_000, "it slept for {took} ms");
}

fn a_signal_that_is_sent_while_no_guest_runs_reaches_it(store: Store) {
    let mut server = server_that_parks(store);
    let image = component(&server, "scripted");
    let input = json!({ "input": ["checkpoint a", "wait go", "checkpoint b"] });
    let id = server.launch(&image, &input).id;
    server.instance(&id).wait_for_reason("waiting_signal");
    server.kill_9_and_restart();
    server.instance(&id).custom_signal("go", "7");
    let run = server.instance(&id);
    assert_eq!(run.output()["seen"], json!({ "a": 1, "go": 7, "b": 2 }));
}

/// This has the machine for itself: it fills the server with guests.
mod alone {
    use super::*;

    const INSTANCES: usize = 1_000;
    const STEPS: usize = 4;

    on_both_stores!(everything_in_flight_completes_after_a_kill_and_nothing_twice);

    fn everything_in_flight_completes_after_a_kill_and_nothing_twice(store: Store) {
        let mut server = Setup::new(store)
            .variable("RUNTARA_WASM_MAX_INSTANCES", "1000")
            .variable("RUNTARA_WASM_MAX_MEMORY_BYTES", "67108864")
            .start();
        let image = component(&server, "workflow");
        let ids: Vec<_> = (0..INSTANCES).map(|n| format!("work-{n}")).collect();
        for id in &ids {
            // Its bodies take long enough for most to be in flight when the server is killed.
            let start = json!({ "instance_id": id, "args": [STEPS.to_string(), "1500"] });
            let answer = server.try_launch(&image, &start);
            assert_eq!(answer.status, 201, "{answer}");
        }
        let in_flight = || {
            let list = server.ask(&runtara_tests::http::Request::get(&format!(
                "/api/v1/instances?tenant_id={}&status=running&limit=1",
                runtara_tests::TENANT
            )));
            list.expect(200)["total_count"].as_u64().unwrap_or_default()
        };
        let running = eventually_within(LONG, "guests in flight", || {
            let running = in_flight();
            if running >= 100 {
                Ok(running)
            } else {
                Err(running)
            }
        });
        server.kill_9_and_restart();
        let mut relaunched = 0;
        for id in &ids {
            let run = server.instance(id);
            let found = run.wait_within(LONG, "completed");
            relaunched += u64::from(found["run_number"] != 1);
            assert_eq!(run.output()["sum"], STEPS * (STEPS + 1) / 2);
            no_saved_step_is_repeated(&run, STEPS);
        }
        assert!(
            relaunched >= running / 2,
            "{running} were in flight, and {relaunched} were run again: this proves nothing"
        );
    }
}
