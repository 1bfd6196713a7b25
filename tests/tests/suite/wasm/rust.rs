//! One program in Rust, written with the SDK: a process and a component do the same.

use std::fs;
use std::path::Path;
use std::time::Duration;

use runtara_tests::{Image, Server, Setup, Store, eventually, guest, holds_for, on_both_stores};
use serde_json::json;

use super::{error_of, server_that_parks, try_register};

on_both_stores!(
    an_order_is_the_same_as_a_process_and_as_a_component,
    each_kind_of_call_does_the_same,
);

/// One server for all of these: a component of this size is compiled for some seconds.
#[test]
fn a_component_branches_obeys_and_fails_as_a_process_does() {
    let server = server_that_parks(Store::Sqlite);
    let images = both(&server, "uses_the_sdk");
    sleeps_side_by_side_wait_for_the_busy_one_and_not_for_each_other(&server, &images);
    let [_, component] = &images;
    of_two_signals_each_goes_to_its_branch(&server, component);
    a_cancel_and_a_pause_are_obeyed(&server, component);
    what_goes_wrong_is_told_or_run_again(&server, component);
}

#[test]
fn the_component_of_the_readme_sleeps_for_a_day() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |file: &str| fs::read_to_string(repository.join(file)).unwrap();
    let example = format!("```rust\n{}```", read("crates/sdk/examples/greet.rs"));
    assert!(
        read("README.md").contains(&example),
        "the README must show crates/sdk/examples/greet.rs as it is"
    );
    let server = server_that_parks(Store::Sqlite);
    let image = try_register(&server, "readme", &guest::of_rust("examples/greet")).image();
    let run = server.launch(&image, &json!({}));
    run.wait_for_reason("sleeping");
    assert_eq!(run.checkpoints(), ["greet", "a day"]);
}

/// The images of one program: that of a process, and that of a component.
fn both(server: &Server, program: &str) -> [Image; 2] {
    let name = format!("{program}-component");
    [
        server.program(program),
        try_register(server, &name, &guest::of_rust(program)).image(),
    ]
}

fn wait_for_checkpoint(server: &Server, id: &str, name: &str) {
    eventually(&format!("checkpoint {name}"), || {
        let saved = server.instance(id).checkpoints();
        if saved.iter().any(|saved| saved == name) {
            Ok(())
        } else {
            Err(saved)
        }
    });
}

/// The server is killed during its steps, during its sleep, and while it waits for somebody.
fn an_order_is_the_same_as_a_process_and_as_a_component(store: Store) {
    let mut server = Setup::new(store)
        .variable("RUNTARA_SLEEP_HOLD_MS", "100")
        .start();
    let input = json!({
        "order": "A-7", "items": ["teapot", "cups"], "step_ms": 800, "sleep_ms": 3_000,
    });
    let receipts = both(&server, "order-workflow").map(|image| {
        let id = server.launch(&image, &json!({ "input": input })).id;
        wait_for_checkpoint(&server, &id, "reserve_stock");
        server.kill_9_and_restart();
        server.instance(&id).wait_for_reason("sleeping");
        server.kill_9_and_restart();
        server.instance(&id).wait_for_reason("waiting_signal");
        server.kill_9_and_restart();
        let run = server.instance(&id);
        run.custom_signal("delivered", r#"{"signed_by": "Ann"}"#);
        let mut receipt = run.output();
        let steps = receipt["steps"].as_array_mut().expect("it lists them");
        let runs: Vec<_> = steps
            .iter_mut()
            .map(|step| step["run"].take().as_u64().unwrap_or_default())
            .collect();
        assert!(runs.is_sorted(), "each is of the run that did it: {runs:?}");
        assert!(runs[0] < runs[3], "{runs:?}: {}", run.story());
        let names: Vec<_> = run
            .checkpoints()
            .into_iter()
            .filter(|name| !name.contains("::"))
            .collect();
        let wanted = [
            "reserve_stock",
            "charge_card",
            "pack_parcel",
            "parcel_on_its_way",
            "send_receipt",
        ];
        assert_eq!(names, wanted, "{}", run.story());
        receipt
    });
    assert_eq!(receipts[0], receipts[1]);
    assert_eq!(receipts[1]["signed_by"], "Ann");
}

fn each_kind_of_call_does_the_same(store: Store) {
    let server = server_that_parks(store);
    let actions = json!([
        { "checkpoint": { "id": "a", "value": { "n": 1 } } },
        { "event": { "subtype": "order.paid", "payload": { "n": 1 } } },
        { "progress": { "message": "half", "percent": 50.0 } },
        { "heartbeat": true },
        { "retry": { "id": "charge", "attempt": 2, "error": "card declined" } },
        { "poll": true },
        { "print": "to stdout" },
        { "sleep": { "id": "nap", "ms": 50 } },
        { "sleep": { "id": "nap", "ms": 1_500 } },
        { "wait_signal": { "id": "never", "timeout_ms": 700 } },
        { "checkpoint": "b" },
    ]);
    let told = both(&server, "uses_the_sdk").map(|image| {
        let run = server.follow(&image, &actions);
        let output = run.output();
        let events: Vec<_> = run
            .events()
            .into_iter()
            .filter(|event| !event["payload"].is_null() && event["event_type"] == "custom")
            .map(|event| (event["subtype"].clone(), event["payload"].clone()))
            .filter(|(subtype, _)| {
                !subtype
                    .as_str()
                    .is_some_and(|name| name.starts_with("runtara."))
                    || subtype == "runtara.retry"
            })
            .collect();
        // That of the last run.
        assert_eq!(run.logs("stream=stdout").text(), "to stdout\n");
        (output, events, run.checkpoints())
    });
    assert_eq!(told[0], told[1]);
    assert_eq!(
        told[1].0["seen"],
        json!({ "a": { "n": 1 }, "never": null, "b": 3 })
    );
}

fn sleeps_side_by_side_wait_for_the_busy_one_and_not_for_each_other(
    server: &Server,
    images: &[Image; 2],
) {
    let actions = json!([{ "branches": [
        [{ "sleep": { "id": "nap", "ms": 700 } }, { "checkpoint": "after-nap" }],
        [{ "work": 1_500 }, { "checkpoint": "worked" }],
        [{ "sleep": { "id": "long", "ms": 4_000 } }, { "checkpoint": "after-long" }],
    ] }]);
    for image in images {
        let run = server.follow(image, &actions);
        assert_eq!(
            run.output()["seen"],
            json!({ "after-nap": 1, "worked": 1, "after-long": 2 }),
            "work is not cut, a sleep beside it ends in time, and the last one frees what it ran in: {}",
            run.story()
        );
    }
}

fn of_two_signals_each_goes_to_its_branch(server: &Server, image: &Image) {
    let actions = json!([
        { "branches": [
            [{ "wait_signal": { "id": "left" } }, { "checkpoint": "after-left" }],
            [{ "wait_signal": { "id": "right" } }, { "checkpoint": "after-right" }],
        ] },
        { "wait_signal": { "id": "end" } },
    ]);
    let run = server.follow(image, &actions);
    run.wait_for("running");
    holds_for(Duration::from_millis(500), "both waits are held", || {
        let found = run.status();
        if found["status"] == "running" {
            Ok(())
        } else {
            Err(found)
        }
    });
    run.custom_signal("right", "2");
    wait_for_checkpoint(server, &run.id, "after-right");
    assert!(!run.checkpoints().contains(&"after-left".to_owned()));
    run.wait_for_reason("waiting_signal");
    run.custom_signal("left", "1");
    wait_for_checkpoint(server, &run.id, "after-left");
    run.wait_for_reason("waiting_signal");
    run.custom_signal("end", "3");
    let seen = &run.output()["seen"];
    assert_eq!(
        (&seen["left"], &seen["right"], &seen["end"]),
        (&json!(1), &json!(2), &json!(3)),
        "{}",
        run.story()
    );
}

fn a_cancel_and_a_pause_are_obeyed(server: &Server, image: &Image) {
    let busy = json!([{ "checkpoint": "a" }, { "await_order": true }, { "checkpoint": "b" }]);
    let cancelled = server.follow(image, &busy);
    wait_for_checkpoint(server, &cancelled.id, "a");
    assert_eq!(cancelled.signal("cancel").expect(200)["success"], true);
    let found = cancelled.wait_for("cancelled");
    assert_eq!(found["termination_reason"], "cancelled", "{found}");
    let once = json!([
        { "checkpoint": "a" }, { "on_run": 1, "do": { "await_order": true } }, { "checkpoint": "b" },
    ]);
    let paused = server.follow(image, &once);
    wait_for_checkpoint(server, &paused.id, "a");
    assert_eq!(paused.signal("pause").expect(200)["success"], true);
    paused.wait_for_reason("paused");
    paused.resume();
    assert_eq!(paused.output()["seen"], json!({ "a": 1, "b": 2 }));
    // A branch that works, and one that sleeps beside it: both come to the end of their step.
    let beside = server.follow(image,
        &json!([{ "branches": [
            [{ "sleep": { "id": "nap", "ms": 60_000 } }],
            [{ "checkpoint": "c" }, { "checkpoint": { "id": "work", "work_ms": 3_000 } }, { "checkpoint": "never" }],
        ] }]),
    );
    wait_for_checkpoint(server, &beside.id, "c");
    assert_eq!(beside.signal("cancel").expect(200)["success"], true);
    beside.wait_for("cancelled");
    let saved = beside.checkpoints();
    assert!(saved.contains(&"work".to_owned()), "{saved:?}");
    assert!(!saved.contains(&"never".to_owned()), "{saved:?}");
}

fn what_goes_wrong_is_told_or_run_again(server: &Server, image: &Image) {
    let failed = server.follow(
        image,
        &json!([{ "checkpoint": "a" }, { "fail": "no money" }]),
    );
    let found = failed.wait_for("failed");
    assert_eq!(error_of(&found), "no money", "{found}");
    let crashed = server.follow(image,
        &json!([{ "checkpoint": "a" }, { "on_run": 1, "do": { "abort": true } }, { "checkpoint": "b" }]),
    );
    assert_eq!(crashed.output()["seen"], json!({ "a": 1, "b": 2 }));
    // Longer than an event may be: the program is told so, and says so.
    let large = "x".repeat(2 * 1024 * 1024);
    let refused = server.follow(
        image,
        &json!([{ "event": { "subtype": large, "payload": 1 } }]),
    );
    let found = refused.wait_for("failed");
    assert!(
        error_of(&found).contains("runtara:durable/report.event was refused"),
        "{found}"
    );
}
