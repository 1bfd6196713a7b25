//! Durable sleeps, waits and signals: an instance that waits costs a row, and what is sent to it is not lost.

mod signals;

use std::thread::scope;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use runtara_tests::http::{Connection, Request};
use runtara_tests::{
    Ground, Run, Server, Setup, Store, TENANT, base64, eventually, holds_for, in_both_kinds,
    in_every_kind, on_both_stores, processes, tests_on,
};
use serde_json::{Value, json};

on_both_stores!(
    a_signal_that_is_there_already_is_not_waited_for,
    a_sleep_of_forty_seconds_by_a_client_that_waits_thirty_survives_a_restart,
    a_sleep_that_was_cut_is_gone_on_with,
);

in_both_kinds!(
    a_crash_in_a_held_sleep_owes_the_remainder_alone,
    a_program_with_other_work_is_not_parked,
    a_busy_branch_keeps_the_process_of_a_sleeping_one,
    a_program_that_asks_to_be_woken_is_woken,
);

in_every_kind!(
    a_far_sleep_frees_the_process_and_is_answered_at_once_after_the_wake,
    a_near_sleep_is_held,
    a_loop_sleeps_each_time_with_one_id,
    a_loop_of_held_sleeps_sleeps_each_time,
    a_sleeper_is_cancelled_paused_and_stopped_at_once,
    a_held_sleeper_is_cancelled_at_once,
    a_resumed_sleeper_runs_now_and_still_owes_the_remainder,
    sleeping_time_is_no_running_time,
    a_sleeper_tells_how_long_it_ran_and_how_long_it_slept,
    a_wait_for_a_signal_frees_the_process_and_the_signal_wakes_it,
    a_wait_for_a_signal_ends_with_its_time,
    a_held_sleep_goes_on_over_a_restart,
);

/// A server that lets a sleeper's process go when more than this is left of its sleep.
fn server_that_holds(ground: impl Into<Ground>, hold: Duration) -> Server {
    Setup::new(ground)
        .variable("RUNTARA_SLEEP_HOLD_MS", &hold.as_millis().to_string())
        .start()
}

/// A server that holds no sleep at all worth mentioning.
fn server_that_parks(ground: impl Into<Ground>) -> Server {
    server_that_holds(ground, Duration::from_millis(100))
}

/// An instance whose words the test says, registered.
fn puppet(server: &Server) -> (Run<'_>, String) {
    let run = server.launch(&server.program("sleeps_forever"), &json!({}));
    let token = run.token_path();
    let answer = run.say_with(&token, "register", &json!({ "tenant_id": TENANT }));
    assert_eq!(answer.expect(200)["success"], true);
    (run, token)
}

fn a_far_sleep_frees_the_process_and_is_answered_at_once_after_the_wake(ground: Ground) {
    let server = server_that_parks(ground);
    let image = server.scripted();
    let before = Instant::now();
    let run = server.follow(
        &image,
        &json!([
            { "checkpoint": "a" },
            { "sleep": { "id": "nap", "ms": 4_000 } },
            { "checkpoint": "b" },
        ]),
    );
    let found = run.wait_for_reason("sleeping");
    assert_eq!(found["status"], "suspended", "{found}");
    let due = found["due_at_ms"]
        .as_i64()
        .expect("a sleeper has a due time");
    run.wait_until_no_process();
    holds_for(
        Duration::from_secs(1),
        "that no process is alive meanwhile",
        || {
            if run.is_gone() {
                Ok(())
            } else {
                Err(run.processes())
            }
        },
    );
    let output = run.output();
    let took = before.elapsed();
    assert_eq!(output["run"], 2, "{output}");
    assert!(took >= Duration::from_secs(4), "it woke after {took:?}");
    assert!(
        took < Duration::from_secs(12),
        "the second run slept again: {took:?}"
    );
    let finished = run.status()["finished_at_ms"]
        .as_i64()
        .expect("it has ended");
    assert!(
        finished >= due,
        "it finished {} ms before it was due",
        due - finished
    );
    assert_eq!(run.checkpoints(), ["a", "nap", "b"]);
    assert_eq!(run.status()["retry_count"], 0);
}

fn a_near_sleep_is_held(ground: Ground) {
    let server = server_that_holds(ground, Duration::from_secs(10));
    let run = server.follow(
        &server.scripted(),
        &json!([{ "sleep": { "id": "nap", "ms": 1_500 } }]),
    );
    let output = run.output();
    assert_eq!(output["run"], 1, "{output}");
    let names = run.event_names();
    assert!(!names.contains(&"suspended".to_owned()), "{names:?}");
    run.wait_until_no_process();
}

fn a_loop_sleeps_each_time_with_one_id(ground: Ground) {
    let server = server_that_parks(ground);
    let image = server.scripted();
    let before = Instant::now();
    let run = server.follow(
        &image,
        &json!([
            { "repeat": 3, "do": [{ "sleep": { "id": "tick", "ms": 1_000 } }] },
            { "checkpoint": "end" },
        ]),
    );
    let output = run.output();
    assert!(
        before.elapsed() >= Duration::from_secs(3),
        "three sleeps take {:?}",
        before.elapsed()
    );
    assert_eq!(output["run"], 4, "each sleep ends a run: {output}");
    assert_eq!(run.status()["retry_count"], 0);
}

fn a_loop_of_held_sleeps_sleeps_each_time(ground: Ground) {
    let server = server_that_holds(ground, Duration::from_secs(10));
    let image = server.scripted();
    let before = Instant::now();
    let run = server.follow(
        &image,
        &json!([{ "repeat": 3, "do": [{ "sleep": { "id": "tick", "ms": 500 } }] }]),
    );
    assert_eq!(run.output()["run"], 1);
    assert!(
        before.elapsed() >= Duration::from_millis(1_500),
        "{:?}",
        before.elapsed()
    );
}

fn a_crash_in_a_held_sleep_owes_the_remainder_alone(ground: Ground) {
    let server = server_that_holds(ground, Duration::from_secs(10));
    let run = server.follow(
        &server.scripted(),
        &json!([{ "sleep": { "id": "nap", "ms": 5_000 } }]),
    );
    let before = Instant::now();
    let process = run.wait_for_process();
    eventually("the sleep", || {
        if run.checkpoints() == ["nap"] {
            Ok(())
        } else {
            Err(run.story())
        }
    });
    processes::send(process.pid, Signal::SIGKILL);
    assert_eq!(run.output()["run"], 2);
    let took = before.elapsed();
    assert!(
        took >= Duration::from_millis(4_500) && took < Duration::from_secs(9),
        "the whole took {took:?}"
    );
}

fn a_sleeper_is_cancelled_paused_and_stopped_at_once(ground: Ground) {
    let server = server_that_parks(ground);
    let image = server.scripted();
    let sleeper = || {
        let run = server.follow(
            &image,
            &json!([{ "sleep": { "id": "night", "ms": 3_600_000 } }]),
        );
        run.wait_for_reason("sleeping");
        run
    };
    let cancelled = sleeper();
    assert_eq!(cancelled.signal("cancel").expect(200)["success"], true);
    let found = cancelled.status();
    assert_eq!(
        (&found["status"], &found["termination_reason"]),
        (&json!("cancelled"), &json!("cancelled")),
        "{found}"
    );
    let stopped = sleeper();
    assert_eq!(stopped.stop(5)["status"], "cancelled");
    let paused = sleeper();
    assert_eq!(paused.signal("pause").expect(200)["success"], true);
    let found = paused.status();
    assert_eq!(
        (&found["status"], &found["status_reason"]),
        (&json!("suspended"), &json!("paused")),
        "{found}"
    );
    assert!(
        found.get("due_at_ms").is_none_or(Value::is_null),
        "no old wake time undoes the pause: {found}"
    );
}

fn a_held_sleeper_is_cancelled_at_once(ground: Ground) {
    let server = server_that_holds(ground, Duration::from_secs(10));
    let run = server.follow(
        &server.scripted(),
        &json!([{ "sleep": { "id": "nap", "ms": 9_000 } }]),
    );
    eventually("the sleep", || {
        if run.checkpoints() == ["nap"] {
            Ok(())
        } else {
            Err(run.story())
        }
    });
    let before = Instant::now();
    assert_eq!(run.signal("cancel").expect(200)["success"], true);
    run.wait_for("cancelled");
    run.wait_until_no_process();
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "{:?}",
        before.elapsed()
    );
}

fn a_resumed_sleeper_runs_now_and_still_owes_the_remainder(ground: Ground) {
    let server = server_that_parks(ground);
    let image = server.scripted();
    let before = Instant::now();
    let run = server.follow(&image, &json!([{ "sleep": { "id": "nap", "ms": 5_000 } }]));
    let first = run.wait_for_reason("sleeping");
    run.resume();
    let again = run.wait_until("its second sleep", |found| {
        found["run_number"] == 2 && found["status_reason"] == "sleeping"
    });
    let due = |found: &Value| {
        found["due_at_ms"]
            .as_i64()
            .expect("a sleeper has a due time")
    };
    assert!(
        (due(&again) - due(&first)).abs() <= 5,
        "the due time stands: {first} and {again}"
    );
    assert_eq!(run.output()["run"], 3);
    let took = before.elapsed();
    assert!(
        took >= Duration::from_millis(4_900) && took < Duration::from_secs(12),
        "{took:?}"
    );
}

fn a_program_with_other_work_is_not_parked(ground: Ground) {
    let server = server_that_parks(ground);
    let (run, token) = puppet(&server);
    let body = json!({ "duration_ms": 1_500, "checkpoint_id": "nap", "state": base64("1"), "park": false });
    let before = Instant::now();
    let answer = run.say_with(&token, "sleep", &body);
    assert_eq!(answer.expect(200)["success"], true);
    assert!(
        before.elapsed() >= Duration::from_millis(1_500),
        "{:?}",
        before.elapsed()
    );
    assert_eq!(run.processes().len(), 1);
    assert_eq!(run.status()["run_number"], 1);
}

fn a_busy_branch_keeps_the_process_of_a_sleeping_one(ground: Ground) {
    let server = server_that_parks(ground);
    let image = server.program("uses_the_sdk");
    let actions = json!([{ "branches": [
        [{ "sleep": { "id": "nap", "ms": 1_000 } }],
        [{ "work": 2_000 }, { "checkpoint": "worked" }],
    ] }, { "sleep": { "id": "end", "ms": 1_000 } }]);
    let run = server.follow(&image, &actions);
    let output = run.output();
    assert_eq!(
        output["seen"]["worked"], 1,
        "the work was not cut: {output}"
    );
    assert_eq!(
        output["run"], 2,
        "the last sleep, when nothing is at work, frees it: {output}"
    );
}

fn sleeping_time_is_no_running_time(ground: Ground) {
    let server = server_that_holds(ground, Duration::from_secs(10));
    let image = server.scripted();
    let actions = json!([{ "sleep": { "id": "nap", "ms": 4_000 } }]);
    let run = server.launch(
        &image,
        &json!({ "input": { "actions": actions }, "timeout_seconds": 2 }),
    );
    assert_eq!(run.output()["run"], 1);
}

/// Milliseconds that an instance has been pending, running and suspended.
fn time_in_states(found: &Value) -> [i64; 3] {
    ["pending", "running", "suspended"].map(|status| {
        let time = found["time_in_states_ms"][status].as_i64();
        time.unwrap_or_else(|| panic!("no time {status} in {found}"))
    })
}

fn a_sleeper_tells_how_long_it_ran_and_how_long_it_slept(ground: Ground) {
    let server = server_that_parks(ground);
    let run = server.follow(
        &server.scripted(),
        &json!([
            { "work": 700 }, { "sleep": { "id": "nap", "ms": 2_000 } }, { "wait_signal": { "id": "go" } }, { "work": 500 },
        ]),
    );
    let waits = time_in_states(&run.wait_for_reason("waiting_signal"));
    assert!(waits[1] >= 700 && waits[2] >= 2_000, "{waits:?}");
    let later = eventually("that the time of its wait goes on", || {
        let time = time_in_states(&run.status());
        if time[2] > waits[2] + 500 {
            Ok(time)
        } else {
            Err(time)
        }
    });
    assert_eq!(later[..2], waits[..2], "who waits does not run");
    run.custom_signal("go", "1");
    let found = run.wait_for("completed");
    let [pending, running, suspended] = time_in_states(&found);
    assert!(running >= later[1] + 500, "{later:?} and then {found}");
    assert!(suspended >= later[2], "{later:?} and then {found}");
    let at = |time: &str| found[time].as_i64().expect("a time");
    let life = at("finished_at_ms") - at("created_at_ms");
    let counted = pending + running + suspended;
    assert!((counted - life).abs() < 100, "{counted} of {life}: {found}");
    assert_eq!(
        time_in_states(&run.status()),
        [pending, running, suspended],
        "what has ended counts no more"
    );
}

// The clock of PostgreSQL is a function of the schema, which a test can replace.
tests_on! { a_sleep_of_a_day_ends_with_the_day {
    postgres: runtara_tests::Store::Postgres.into(),
    guests_on_postgres: runtara_tests::Store::Postgres.in_guests(),
}}

fn a_sleep_of_a_day_ends_with_the_day(ground: Ground) {
    const DAY_MS: i64 = 86_400_000;
    const MINUTE_MS: i64 = 60_000;
    let server = Server::start(ground);
    let image = server.scripted();
    let run = server.follow(
        &image,
        &json!([
            { "checkpoint": "before" },
            { "sleep": { "id": "night", "ms": DAY_MS } },
            { "checkpoint": "after" },
        ]),
    );
    let found = run.wait_for_reason("sleeping");
    let at = |time: &str| found[time].as_i64().expect("a time");
    let owed = at("due_at_ms") - at("created_at_ms");
    assert!((DAY_MS..DAY_MS + MINUTE_MS).contains(&owed), "{found}");
    run.wait_until_no_process();
    // The dispatcher waits by its own clock for some seconds at a time. A start has it look, and what is due is taken in its order.
    let later_by = |milliseconds: i64, id: &str| {
        let _done = server.psql(&format!(
            "create or replace function runtara_now() returns bigint language sql stable as \
             'select floor(date_part(''epoch'', statement_timestamp()) * 1000)::bigint + {milliseconds}'"
        ));
        let looks = server.follow_as(&image, id, &json!([{ "complete": 1 }]));
        assert_eq!(looks.output(), 1);
    };
    later_by(DAY_MS - MINUTE_MS, "almost-a-day-later");
    let found = run.status();
    assert_eq!(
        (&found["status_reason"], &found["run_number"]),
        (&json!("sleeping"), &json!(1)),
        "it was woken before its time: {found}"
    );
    later_by(DAY_MS, "a-day-later");
    let output = run.output();
    assert_eq!(
        (&output["run"], &output["seen"]),
        (&json!(2), &json!({ "before": 1, "after": 2 })),
        "{output}"
    );
    assert_eq!(run.checkpoints(), ["before", "night", "after"]);
    let found = run.status();
    assert_eq!(found["retry_count"], 0, "{found}");
    let [_, _, suspended] = time_in_states(&found);
    assert!(suspended >= DAY_MS - MINUTE_MS, "{found}");
}

fn a_program_that_asks_to_be_woken_is_woken(ground: Ground) {
    let server = Server::start(ground);
    let run = server.follow(
        &server.scripted(),
        &json!([
            { "on_run": 1, "do": { "suspend_until": { "id": "later", "ms": 1_500 } } },
            { "complete": "woken" },
        ]),
    );
    run.wait_for_reason("sleeping");
    assert_eq!(run.output(), "woken");
    assert_eq!(run.checkpoints(), ["later"]);
}

fn a_wait_for_a_signal_frees_the_process_and_the_signal_wakes_it(ground: Ground) {
    let server = server_that_parks(ground);
    let run = server.follow(
        &server.scripted(),
        &json!([{ "wait_signal": { "id": "go" } }]),
    );
    let found = run.wait_for_reason("waiting_signal");
    assert!(found.get("due_at_ms").is_none_or(Value::is_null), "{found}");
    run.wait_until_no_process();
    run.custom_signal("other", "\"not this\"");
    holds_for(
        Duration::from_millis(500),
        "waiting for its own signal",
        || {
            let found = run.status();
            if found["status_reason"] == "waiting_signal" {
                Ok(())
            } else {
                Err(found)
            }
        },
    );
    run.custom_signal("go", "\"now\"");
    assert_eq!(run.output()["seen"]["go"], "now");
}

fn a_wait_for_a_signal_ends_with_its_time(ground: Ground) {
    let server = server_that_parks(ground);
    let run = server.follow(
        &server.scripted(),
        &json!([{ "wait_signal": { "id": "go", "timeout_ms": 1_500 } }]),
    );
    run.wait_for_reason("waiting_signal");
    assert_eq!(run.output()["seen"]["go"], Value::Null);
}

fn a_signal_that_is_there_already_is_not_waited_for(store: Store) {
    let server = server_that_parks(store);
    let run = server.follow(
        &server.scripted(),
        &json!([
            { "until_file": server.shared().path("sent") }, { "wait_signal": { "id": "go" } },
        ]),
    );
    run.custom_signal("go", "1");
    server.shared().touch("sent");
    let output = run.output();
    assert_eq!(
        (&output["seen"]["go"], &output["run"]),
        (&json!(1), &json!(1)),
        "{output}"
    );
}

fn a_sleep_of_forty_seconds_by_a_client_that_waits_thirty_survives_a_restart(store: Store) {
    // The default hold of ten seconds, the published client's default time-out: exactly what fails with a server that holds
    // the request open.
    let mut server = Server::start(store);
    let image = server.scripted();
    let actions = json!([
        { "checkpoint": { "id": "before", "value": 1 } },
        { "sleep": { "id": "long", "ms": 40_000 } },
        { "checkpoint": { "id": "after", "value": 2 } },
    ]);
    let before = Instant::now();
    let id = server
        .launch(
            &image,
            &json!({
                "input": { "actions": actions, "effects_file": server.shared().path("effects") },
                "env": { "RUNTARA_REQUEST_TIMEOUT_MS": "30000" },
            }),
        )
        .id;
    server.instance(&id).wait_for_reason("sleeping");
    server.kill_9_and_restart();
    let run = server.instance(&id);
    run.wait_until_no_process();
    assert_eq!(run.status()["status_reason"], "sleeping");
    run.wait_within(Duration::from_secs(60), "completed");
    let took = before.elapsed();
    assert!(
        took >= Duration::from_secs(40) && took < Duration::from_secs(50),
        "the whole took {took:?}"
    );
    assert_eq!(run.output()["sum"], 3);
    assert_eq!(server.shared().lines("effects"), ["before 1", "after 2"]);
    assert_eq!(run.status()["retry_count"], 0);
}

fn a_held_sleep_goes_on_over_a_restart(ground: Ground) {
    let mut server = server_that_holds(ground, Duration::from_secs(10));
    let id = server
        .follow(
            &server.scripted(),
            &json!([
                { "sleep": { "id": "nap", "ms": 6_000 } }, { "checkpoint": "after" },
            ]),
        )
        .id;
    let before = Instant::now();
    eventually("the sleep", || {
        if server.instance(&id).checkpoints() == ["nap"] {
            Ok(())
        } else {
            Err(())
        }
    });
    let _left = server.sigterm();
    server.start_again();
    let run = server.instance(&id);
    assert_eq!(run.output()["seen"]["after"], 2);
    let took = before.elapsed();
    assert!(
        took >= Duration::from_millis(5_900) && took < Duration::from_secs(14),
        "{took:?}"
    );
    assert_eq!(run.status()["retry_count"], 0, "{}", run.story());
}

fn a_sleep_that_was_cut_is_gone_on_with(store: Store) {
    const NAP: Duration = Duration::from_secs(20);
    let mut server = Server::start(store);
    server.self_register("own-1");
    let body = json!({ "duration_ms": 20_000, "checkpoint_id": "nap", "state": base64("1") });
    let nap = Request::post("/api/v1/instances/own-1/sleep", &body);
    let begin = |server: &Server| {
        let mut connection = Connection::open(&server.core()).expect("the core listens");
        connection.send(&nap.bytes()).expect("the core listens");
        connection
    };
    let began = Instant::now();
    let first = begin(&server);
    eventually("the sleep", || {
        let saved = server.instance("own-1").checkpoints();
        if saved == ["nap"] { Ok(()) } else { Err(saved) }
    });
    // As a client does that has waited long enough.
    drop(first);
    let step = json!({ "checkpoint_id": "meanwhile", "state": base64("2") });
    let saved = server.say("own-1", "checkpoint", &step).expect(200);
    assert_eq!(saved["found"], false);
    let _second = begin(&server);
    server.kill_9_and_restart();
    assert_eq!(server.ask_core(&nap).expect(200)["success"], true);
    assert!(
        began.elapsed() >= NAP,
        "it ended {:?} after its first call",
        began.elapsed()
    );
    let saved = server.instance("own-1").checkpoints();
    assert_eq!(
        saved,
        ["nap", "meanwhile"],
        "a second sleep would be saved, too"
    );
}

tests_on! { many_sleepers_cost_no_process {
    sqlite: runtara_tests::Store::Sqlite.into(),
    guests_on_sqlite: runtara_tests::Store::Sqlite.in_guests(),
}}

fn many_sleepers_cost_no_process(ground: Ground) {
    let server = server_that_parks(ground);
    let image = server.scripted();
    let count = 100;
    scope(|scope| {
        let (server, image) = (&server, &image);
        for thread in 0..4 {
            scope.spawn(move || {
                for number in (thread..count).step_by(4) {
                    let actions = json!([{ "sleep": { "id": "night", "ms": 3_600_000 } }]);
                    let _sleeper = server.follow_as(image, &format!("sleeper-{number}"), &actions);
                }
            });
        }
    });
    eventually("that all sleep", || {
        let request = Request::get("/api/v1/instances?status=suspended&limit=1");
        let body = server.ask(&request).expect(200);
        if body["total_count"] == count {
            Ok(())
        } else {
            Err(body)
        }
    });
    eventually("that no run is left", || {
        let health = server.ask(&Request::get("/api/v1/health")).expect(200);
        match health["active_instances"].as_u64() {
            Some(0) => Ok(()),
            _ => Err(health),
        }
    });
    let programs = eventually("the end of their processes", || {
        let mut found = server.processes();
        found.retain(|process| process.variable("RUNTARA_INSTANCE_ID").is_some());
        if found.is_empty() {
            Ok(server.processes().len())
        } else {
            Err(found.len())
        }
    });
    assert!(
        programs <= 3,
        "beside the server and its launcher there are {programs} processes"
    );
}
