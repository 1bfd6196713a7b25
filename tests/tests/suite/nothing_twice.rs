//! A start with the same id is one start, a checkpoint id is saved once, an instance has one live run.

use std::sync::Barrier;
use std::thread::scope;

use nix::sys::signal::Signal;
use runtara_tests::http::{Answer, Request};
use runtara_tests::{
    Ground, Kind, Server, Store, TENANT, base64, eventually, from_base64, in_both_kinds,
    in_every_kind, natively_and_in_guests, on_both_stores, processes,
};
use serde_json::{Value, json};

fn at_once<T: Send>(count: usize, act: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(count);
    let one = |number| {
        barrier.wait();
        act(number)
    };
    scope(|scope| {
        let one = &one;
        let threads: Vec<_> = (0..count)
            .map(|number| scope.spawn(move || one(number)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"))
            .collect()
    })
}

on_both_stores!(
    a_start_is_repeated_after_its_image_is_deleted,
    an_idempotency_key_stands_for_an_id,
    of_many_savers_of_a_checkpoint_one_saves,
    events_are_in_the_order_in_which_they_came,
    repeated_requests_of_programs_count_once,
);

natively_and_in_guests!(
    the_same_start_twice_is_one_instance,
    equal_starts_at_the_same_moment_are_one_instance,
);

in_both_kinds!(
    an_old_process_that_exits_late_does_not_touch_the_new_run,
    a_finished_instance_keeps_its_end_whatever_is_said_to_it,
);

in_every_kind!(
    an_instance_that_ends_at_once_stays_ended,
    two_instances_with_a_common_prefix_do_not_share_a_process,
    many_resumes_are_one_run,
);

fn the_same_start_twice_is_one_instance(ground: Ground) {
    let server = Server::start(ground);
    let image = server.scripted();
    let input = server.noting_effects(json!({ "actions": [{ "checkpoint": "a" }] }));
    let body = json!({ "instance_id": "order-1", "input": input });
    let first = server.launch(&image, &body);
    let again = server.try_launch(&image, &body).expect(200);
    assert_eq!(
        (&again["instance_id"], &again["deduplicated"]),
        (&json!("order-1"), &json!(true)),
        "{again}"
    );
    first.wait_for("completed");
    let ended = server.try_launch(&image, &body).expect(200);
    assert_eq!(
        ended["deduplicated"], true,
        "also when it has ended: {ended}"
    );
    assert_eq!(first.effects(), ["a 1"]);
    let other = server.try_launch(
        &image,
        &json!({ "instance_id": "order-1", "input": { "actions": [] } }),
    );
    let text = other.refuses(400, "INSTANCE_EXISTS");
    assert!(!text.contains("not found"), "{text}");
    let theirs = server.program_for("stranger", "sleeps_forever");
    let body = json!({ "image_id": theirs.0, "tenant_id": "stranger", "instance_id": "order-1" });
    server
        .ask(&Request::post("/api/v1/instances", &body))
        .refuses(400, "INSTANCE_EXISTS");
    assert_eq!(first.status()["tenant_id"], TENANT);
}

fn a_start_is_repeated_after_its_image_is_deleted(store: Store) {
    let server = Server::start(store);
    let texts = [
        ("tenant_id", TENANT),
        ("name", "ends"),
        ("runner_type", "native"),
        ("metadata", r#"{"variables":{"region":"eu"}}"#),
    ];
    let files: [(&str, &[u8]); 1] = [("binary", b"#!/bin/sh\nexit 0\n")];
    let form = Request::form("/api/v1/images/upload", &texts, &files);
    let image = server.ask(&form).expect(201)["image_id"].clone();
    let start = |more: &Value| {
        let mut body =
            json!({ "image_id": image, "tenant_id": TENANT, "input": { "variables": { "n": 1 } } });
        for (key, value) in more.as_object().into_iter().flatten() {
            body[key] = value.clone();
        }
        Request::post("/api/v1/instances", &body)
    };
    let by_id = start(&json!({ "instance_id": "order-1" }));
    let by_key = start(&json!({})).header("Idempotency-Key", "order-2");
    for request in [&by_id, &by_key] {
        let started = server.ask(request).expect(201);
        let id = started["instance_id"].as_str().expect("an id is a text");
        server.instance(id).wait_for("completed");
    }
    let path = format!(
        "/api/v1/images/{}",
        image.as_str().expect("an id is a text")
    );
    let deleted = server.ask(&Request::delete(&path)).expect(200);
    assert_eq!(deleted["success"], true, "{deleted}");
    for request in [&by_id, &by_key] {
        let again = server.ask(request).expect(200);
        assert_eq!(again["deduplicated"], true, "{again}");
    }
    let other = start(&json!({ "instance_id": "order-1", "input": {} }));
    server.ask(&other).refuses(400, "INSTANCE_EXISTS");
    let new = start(&json!({ "instance_id": "order-3" }));
    server.ask(&new).refuses(400, "IMAGE_NOT_FOUND");
}

fn equal_starts_at_the_same_moment_are_one_instance(ground: Ground) {
    let server = Server::start(ground);
    let image = server.scripted();
    let input = server.noting_effects(json!({ "actions": [{ "checkpoint": "a" }] }));
    let body = json!({ "instance_id": "rush", "input": input });
    let answers = at_once(16, |_| server.try_launch(&image, &body));
    let created = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(
        created,
        1,
        "{:?}",
        answers.iter().map(Answer::text).collect::<Vec<_>>()
    );
    assert!(
        answers
            .iter()
            .all(|answer| answer.json()["instance_id"] == "rush")
    );
    let run = server.instance("rush");
    run.wait_for("completed");
    assert_eq!(run.effects(), ["a 1"]);
}

fn an_idempotency_key_stands_for_an_id(store: Store) {
    let server = Server::start(store);
    let image = server.program("exits_with");
    let start = |key: &str, tenant: &str, image: &str| {
        let body = json!({ "image_id": image, "tenant_id": tenant, "input": { "n": 1 } });
        server.ask(&Request::post("/api/v1/instances", &body).header("Idempotency-Key", key))
    };
    let first = start("key-1", TENANT, &image.0).expect(201);
    let again = start("key-1", TENANT, &image.0).expect(200);
    assert_eq!(first["instance_id"], again["instance_id"]);
    assert_ne!(
        start("key-2", TENANT, &image.0).expect(201)["instance_id"],
        first["instance_id"]
    );
    let theirs = server.register_for("stranger", "same", b"#!/bin/sh\n");
    let other = start("key-1", "stranger", &theirs.0).expect(201);
    assert_ne!(
        other["instance_id"], first["instance_id"],
        "keys belong to tenants"
    );
    start(&"k".repeat(256), TENANT, &image.0).refuses(400, "INVALID_IDEMPOTENCY_KEY");
}

fn of_many_savers_of_a_checkpoint_one_saves(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    for round in 0..5 {
        let answers = at_once(12, |number| {
            let body = json!({ "checkpoint_id": format!("step-{round}"), "state": base64(number.to_string()) });
            (number, server.say("own-1", "checkpoint", &body).expect(200))
        });
        let savers: Vec<_> = answers
            .iter()
            .filter(|(_, answer)| answer["found"] == false)
            .collect();
        assert_eq!(savers.len(), 1, "{answers:?}");
        let saved = savers[0].0.to_string();
        for (_, answer) in answers.iter().filter(|(_, answer)| answer["found"] == true) {
            assert_eq!(
                from_base64(&answer["state"]),
                saved,
                "every other is told what was saved"
            );
        }
    }
    assert_eq!(server.instance("own-1").checkpoints().len(), 5);
}

fn an_instance_that_ends_at_once_stays_ended(ground: Ground) {
    let server = Server::start(ground);
    let image = server.program("echoes_input");
    // A guest cannot be given its input without asking for it, and so is a program that speaks.
    let events: &[&str] = match ground.kind {
        Kind::Native | Kind::Containers => &["completed"],
        Kind::Wasm => &["started", "completed"],
    };
    let runs = at_once(8, |thread| {
        (0..5)
            .map(|n| {
                server
                    .launch(&image, &json!({ "input": { "n": thread * 5 + n } }))
                    .id
            })
            .collect::<Vec<_>>()
    });
    for (number, id) in runs.concat().iter().enumerate() {
        let run = server.instance(id);
        assert_eq!(run.output(), json!({ "n": number }));
        run.wait_until_no_process();
        assert_eq!(run.status()["status"], "completed");
        assert_eq!(run.event_names(), events, "one end, recorded once");
        assert_eq!(run.status()["run_number"], 1);
    }
}

fn two_instances_with_a_common_prefix_do_not_share_a_process(ground: Ground) {
    let server = Server::start(ground);
    let image = server.program("sleeps_forever");
    let start = |id: &str| server.launch(&image, &json!({ "instance_id": id }));
    let (first, second) = (start("order-2024-1"), start("order-2024-2"));
    let umlaut = start("ordér-ü-2024-3");
    for run in [&first, &second, &umlaut] {
        run.wait_until_it_runs();
    }
    assert_eq!(first.stop(1)["success"], true);
    first.wait_for("cancelled");
    first.wait_until_no_process();
    assert!(
        !second.is_gone() && !umlaut.is_gone(),
        "stopping one leaves the others alone"
    );
    for run in [&second, &umlaut] {
        let found = run.status();
        assert_eq!(
            (&found["status"], &found["run_number"]),
            (&json!("running"), &json!(1)),
            "{found}"
        );
    }
}

fn many_resumes_are_one_run(ground: Ground) {
    let server = Server::start(ground);
    let image = server.scripted();
    let run = server.follow(
        &image,
        &json!([
            { "on_run": 1, "do": { "suspend": true } },
            { "signal": "go" },
        ]),
    );
    run.wait_for_reason("paused");
    at_once(8, |_| {
        server
            .ask(&Request::new(
                "POST",
                &format!("/api/v1/instances/{}/resume", run.id),
            ))
            .status
    });
    run.wait_until("the second run", |found| {
        found["status"] == "running" && found["run_number"] == 2
    });
    run.wait_until_it_runs();
    run.custom_signal("go", "1");
    assert_eq!(run.output()["run"], 2, "the program was told so");
    assert_eq!(run.status()["run_number"], 2);
}

fn an_old_process_that_exits_late_does_not_touch_the_new_run(ground: Ground) {
    let server = Server::start(ground);
    let image = server.program("sleeps_forever");
    let run = server.launch(&image, &json!({}));
    let first = run.wait_for_process();
    let token = run.token_path();
    // It says that it is suspended and stays: it has ten seconds to leave. The resume comes meanwhile.
    assert_eq!(
        run.say_with(&token, "suspended", &json!({})).expect(200)["success"],
        true
    );
    run.resume();
    assert!(processes::lives(first.pid));
    assert_eq!(
        run.processes().len(),
        1,
        "no second process beside a dying one"
    );
    assert_eq!(run.status()["run_number"], 1, "{}", run.status());
    processes::send(first.pid, Signal::SIGKILL);
    run.wait_until("the second run", |found| {
        found["status"] == "running" && found["run_number"] == 2
    });
    let second = run.wait_for_process();
    assert_ne!(second.pid, first.pid);
    assert_eq!(
        run.status()["retry_count"],
        0,
        "the exit of the first counts for nothing"
    );
}

fn a_finished_instance_keeps_its_end_whatever_is_said_to_it(ground: Ground) {
    let server = Server::start(ground);
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    let token = run.token_path();
    let word = run.say_with(
        &token,
        "completed",
        &json!({ "output": base64("\"done\"") }),
    );
    assert_eq!(word.expect(200)["success"], true);
    let before = run.wait_for("completed");
    run.say_with(&token, "register", &json!({ "tenant_id": TENANT }))
        .refuses(409, "INSTANCE_ENDED");
    for signal in ["cancel", "pause"] {
        let ack = run.say_with(&token, "signals/ack", &json!({ "signal_type": signal }));
        assert_eq!(ack.expect(200)["success"], true);
        run.signal(signal).refuses(409, "WRONG_STATE");
    }
    assert_eq!(run.stop(0)["success"], false);
    let after = run.status();
    for key in [
        "status",
        "output",
        "finished_at_ms",
        "termination_reason",
        "error",
    ] {
        assert_eq!(after.get(key), before.get(key), "{key}");
    }
    run.wait_until_no_process();
    assert_eq!(
        run.status()["status"],
        "completed",
        "nor does the exit of its process change it"
    );
}

fn events_are_in_the_order_in_which_they_came(store: Store) {
    let server = Server::start(store);
    for round in 0..5 {
        let id = format!("own-{round}");
        server.self_register(&id);
        for n in 0..10 {
            let body = json!({ "event_type": "custom", "subtype": format!("n{n}") });
            assert_eq!(
                server.say(&id, "events", &body).expect(200)["success"],
                true
            );
        }
        let names = server.instance(&id).event_names();
        let wanted: Vec<_> = std::iter::once("started".to_owned())
            .chain((0..10).map(|n| format!("custom/n{n}")))
            .collect();
        assert_eq!(names, wanted);
    }
}

fn repeated_requests_of_programs_count_once(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let body = json!({ "event_type": "custom", "subtype": "paid", "request_id": "r-1" });
    for _ in 0..3 {
        assert_eq!(
            server.say("own-1", "events", &body).expect(200)["success"],
            true
        );
    }
    let save = json!({ "checkpoint_id": "a", "state": base64("1"), "request_id": "r-2" });
    let answers: Vec<Value> = (0..2)
        .map(|_| server.say("own-1", "checkpoint", &save).expect(200))
        .collect();
    assert_eq!(answers[0]["found"], false);
    assert_eq!(
        server.instance("own-1").event_names(),
        ["started", "custom/paid"]
    );
    eventually("the one checkpoint", || {
        let found = server.instance("own-1").checkpoints();
        if found == ["a"] { Ok(()) } else { Err(found) }
    });
}
