//! What was answered with success is durable, and whatever is killed, every instance comes to its right end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::scope;
use std::time::{Duration, Instant};

use runtara_tests::http::{Request, exchange};
use runtara_tests::{
    Ground, PrivatePostgres, Server, Setup, Store, TENANT, base64, eventually, eventually_within,
    from_base64, in_every_kind, on_both_stores,
};
use serde_json::{Value, json};

on_both_stores!(
    an_answered_checkpoint_survives_the_server,
    an_answered_word_and_signal_survive_the_server,
    input_and_environment_are_given_to_every_run,
    an_instance_that_registered_itself_goes_on_after_a_restart,
);

in_every_kind!(an_answered_start_survives_the_server,);

fn an_answered_start_survives_the_server(ground: Ground) {
    let mut server = Server::start(ground);
    let image = server.program("echoes_input");
    let id = server
        .launch(&image, &json!({ "input": { "kept": true } }))
        .id;
    server.kill_9_and_restart();
    assert_eq!(server.instance(&id).output(), json!({ "kept": true }));
}

fn an_answered_checkpoint_survives_the_server(store: Store) {
    let mut server = Server::start(store);
    server.self_register("own-1");
    for n in 0..10 {
        let body = json!({ "checkpoint_id": format!("c{n}"), "state": base64(n.to_string()) });
        assert_eq!(
            server.say("own-1", "checkpoint", &body).expect(200)["found"],
            false
        );
        if n % 4 == 3 {
            server.kill_9_and_restart();
        }
    }
    let ids: Vec<_> = (0..10).map(|n| format!("c{n}")).collect();
    assert_eq!(
        server.instance("own-1").checkpoints(),
        ids,
        "all of them, in their order"
    );
    let ninth = server
        .say(
            "own-1",
            "checkpoint",
            &json!({ "checkpoint_id": "c9", "state": "" }),
        )
        .expect(200);
    assert_eq!(from_base64(&ninth["state"]), "9");
}

fn an_answered_word_and_signal_survive_the_server(store: Store) {
    let mut server = Server::start(store);
    for id in ["done", "told", "asked"] {
        server.self_register(id);
    }
    assert_eq!(
        server
            .say("done", "completed", &json!({ "output": base64("[7]") }))
            .expect(200)["success"],
        true
    );
    server.instance("told").custom_signal("news", "good");
    assert_eq!(
        server.instance("asked").signal("cancel").expect(200)["success"],
        true
    );
    server.kill_9_and_restart();
    assert_eq!(server.instance("done").output(), json!([7]));
    let told = server.look("told", "signals/news").expect(200);
    assert_eq!(from_base64(&told["custom_signal"]["payload"]), "good");
    assert_eq!(
        server.look("asked", "signals").expect(200)["signal"]["signal_type"],
        "cancel"
    );
}

fn input_and_environment_are_given_to_every_run(store: Store) {
    let server = Server::start(store);
    let script = "[ \"$RUNTARA_RUN_NUMBER\" = 3 ] || kill -9 $$; printf '{\"input\": %s, \"env\": \"%s\"}' \"$(cat)\" \"$MINE\"";
    let run = server.launch(
        &server.shell(script),
        &json!({ "input": { "a": 1 }, "env": { "MINE": "kept" } }),
    );
    assert_eq!(run.output(), json!({ "input": { "a": 1 }, "env": "kept" }));
}

fn an_instance_that_registered_itself_goes_on_after_a_restart(store: Store) {
    let mut server = Server::start(store);
    server.self_register("own-1");
    server.kill_9_and_restart();
    let body = json!({ "checkpoint_id": "a", "state": base64("1") });
    assert_eq!(
        server.say("own-1", "checkpoint", &body).expect(200)["found"],
        false
    );
    assert_eq!(
        server.instance("own-1").status()["status"],
        "running",
        "nobody declared it lost"
    );
}

/// What a fault test does to the world while instances run.
#[derive(Debug, Clone, Copy)]
enum Fault {
    KillServer,
    CrashDatabase,
}

const INSTANCES: usize = 200;
const STEPS: u64 = 10;

/// Starts many instances of ten steps each, lets faults happen, and checks the promises from the outside.
fn all_complete_while(server: &mut Server, postgres: Option<&PrivatePostgres>, faults: &[Fault]) {
    let image = server.scripted();
    let effects = server.shared().path("effects");
    let input = json!({
        "effects_file": effects, "steps": STEPS, "step_ms": 300, "sleep_at": 5, "sleep_ms": 1_500,
    });
    let all = |act: &(dyn Fn(usize) + Sync)| {
        scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || (thread..INSTANCES).step_by(8).for_each(act));
            }
        });
    };
    all(&|number| {
        let start = json!({ "instance_id": format!("work-{number}"), "input": input, "labels": { "work": "yes" } });
        let answer = server.try_launch(&image, &start);
        assert_eq!(answer.status, 201, "{answer}");
    });
    for fault in faults {
        // Spread over the work, by its progress and not by the clock.
        let before = server.shared().lines("effects").len();
        let share = (before + 120).min(INSTANCES * 9);
        eventually_within(
            Duration::from_secs(120),
            &format!("{share} effects before {fault:?}"),
            || {
                let done = server.shared().lines("effects").len();
                if done >= share { Ok(()) } else { Err(done) }
            },
        );
        match fault {
            Fault::KillServer => server.kill_9_and_restart(),
            Fault::CrashDatabase => postgres.expect("this test has one").crash_and_restart(),
        }
    }
    eventually_within(Duration::from_secs(180), "the completion of all", || {
        let request = Request::get("/api/v1/instances?status=completed&limit=1&label=work");
        match exchange(&server.environment(), &request) {
            Ok(answer) if answer.status == 200 && answer.json()["total_count"] == INSTANCES => {
                Ok(())
            }
            Ok(answer) => Err(format!("{answer}\n{}", unfinished(server))),
            Err(error) => Err(error.to_string()),
        }
    });
    let mut done: BTreeMap<String, usize> = BTreeMap::new();
    for line in server.shared().lines("effects") {
        *done
            .entry(line.split(' ').next().unwrap_or_default().to_owned())
            .or_default() += 1;
    }
    for step in 1..=STEPS {
        let times = done
            .get(&format!("step-{step}"))
            .copied()
            .unwrap_or_default();
        assert!(
            times >= INSTANCES,
            "step {step} was done {times} times for {INSTANCES} instances"
        );
    }
    let mut wanted: Vec<_> = (1..=STEPS).map(|step| format!("step-{step}")).collect();
    wanted.insert(5, "sleep".to_owned());
    let runs = AtomicU64::new(0);
    let all_checked = |number: usize| {
        let again = check_one(server, &format!("work-{number}"), &wanted);
        runs.fetch_add(again, Ordering::Relaxed);
    };
    all(&all_checked);
    let interruptions = runs.into_inner();
    assert!(
        interruptions > 0,
        "the faults met nobody: this proves nothing"
    );
}

/// Checks one instance, and gives how often it was interrupted.
fn check_one(server: &Server, id: &str, wanted: &[String]) -> u64 {
    let run = server.instance(id);
    let output = run.output();
    assert_eq!(output["sum"], STEPS * (STEPS + 1) / 2, "{id}: {output}");
    assert_eq!(
        run.checkpoints(),
        wanted,
        "{id}: each step once, in its order; {}",
        run.story()
    );
    let names = run.event_names();
    let ends = names
        .iter()
        .filter(|name| ["completed", "failed"].contains(&name.as_str()))
        .count();
    assert_eq!(ends, 1, "{id}: one end is recorded: {names:?}");
    let counted: Vec<_> = names
        .iter()
        .filter(|name| *name == "custom/runtara.crashed")
        .collect();
    assert!(
        counted.is_empty(),
        "{id}: our faults count for nothing: {names:?}"
    );
    assert_eq!(run.status()["retry_count"], 0, "{id}");
    let interrupted = names
        .iter()
        .filter(|name| *name == "custom/runtara.interrupted");
    u64::try_from(interrupted.count()).expect("counts fit")
}

fn unfinished(server: &Server) -> String {
    let mut text = String::new();
    for status in ["failed", "suspended", "running", "pending", "cancelled"] {
        let request = Request::get(&format!("/api/v1/instances?status={status}&limit=1"));
        let Ok(answer) = exchange(&server.environment(), &request) else {
            continue;
        };
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if let Some(id) = body["instances"][0]["instance_id"].as_str() {
            let run = server.instance(id);
            text.push_str(&format!(
                "{status} {}: {:#}\n{}\n",
                body["total_count"],
                run.status(),
                run.story()
            ));
        }
    }
    text
}

/// These have the machine for themselves: two hundred programs and a database that is restarted are no good neighbours.
mod alone {
    use super::*;

    #[test]
    fn two_hundred_workflows_survive_five_kills_of_the_server_and_two_crashes_of_postgresql() {
        let postgres = PrivatePostgres::start();
        let mut server = Setup::in_postgres(&postgres.url()).start();
        let faults = [
            Fault::KillServer,
            Fault::CrashDatabase,
            Fault::KillServer,
            Fault::KillServer,
            Fault::CrashDatabase,
            Fault::KillServer,
            Fault::KillServer,
        ];
        all_complete_while(&mut server, Some(&postgres), &faults);
    }

    #[test]
    fn two_hundred_workflows_survive_five_kills_of_the_server_on_sqlite() {
        // Sleeps are let go here, and held in the other test.
        let mut server = Setup::new(Store::Sqlite)
            .variable("RUNTARA_SLEEP_HOLD_MS", "500")
            .start();
        all_complete_while(&mut server, None, &[Fault::KillServer; 5]);
    }
}

/// What happens while the database is away, each with a PostgreSQL of its own.
mod heavy {
    use super::*;

    #[test]
    fn a_launched_run_waits_for_a_database_that_is_away() {
        let postgres = PrivatePostgres::start();
        let server = Setup::in_postgres(&postgres.url()).start();
        let input =
            json!({ "effects_file": server.shared().path("effects"), "steps": 30, "step_ms": 100 });
        let run = server.launch(&server.scripted(), &json!({ "input": input }));
        let _some = server.shared().wait_for_lines("effects", 5);
        postgres.crash();
        // Its next call is parked, and not refused: the program must not notice.
        let away = Instant::now();
        let answer = eventually("a refusal on the management side", || {
            let answer = server.ask(&Request::get("/api/v1/instances"));
            if answer.status == 503 {
                Ok(answer)
            } else {
                Err(answer.text())
            }
        });
        answer.refuses(503, "UNAVAILABLE");
        assert!(
            answer.header("Retry-After").is_some(),
            "{:?}",
            answer.headers
        );
        assert_eq!(
            server.ask(&Request::get("/health")).status,
            200,
            "it is alive"
        );
        assert_eq!(
            server.ask(&Request::get("/ready")).status,
            503,
            "and not ready"
        );
        let health = server.ask(&Request::get("/api/v1/health"));
        assert_eq!(health.json()["healthy"], false, "{health}");
        assert_eq!(server.ask_core(&Request::get("/health")).status, 503);
        // Programs begin by asking whether we live, and give up if not.
        let late = run.token_path();
        let path = format!("{late}/health");
        assert_eq!(server.ask_core(&Request::get(&path)).status, 200);
        let done = server.shared().lines("effects").len();
        assert!(
            away.elapsed() < Duration::from_secs(20),
            "{:?}",
            away.elapsed()
        );
        postgres.start_again();
        let output = run.wait_within(Duration::from_secs(60), "completed");
        assert_eq!(
            output["run_number"],
            1,
            "the program did not notice: {}",
            run.story()
        );
        assert_eq!(
            server.shared().lines("effects").len(),
            30,
            "{done} were done before"
        );
    }

    #[test]
    fn an_exit_while_the_database_is_away_is_recorded_later() {
        let postgres = PrivatePostgres::start();
        let server = Setup::in_postgres(&postgres.url()).start();
        let go = server.shared().path("go");
        let script = format!("while [ ! -e {go} ]; do sleep 0.05; done; echo '\"kept\"'");
        let run = server.launch(&server.shell(&script), &json!({}));
        let process = run.wait_for_process();
        postgres.crash();
        server.shared().touch("go");
        eventually("the end of the program", || {
            if runtara_tests::processes::lives(process.pid) {
                Err(())
            } else {
                Ok(())
            }
        });
        postgres.start_again();
        run.wait_within(Duration::from_secs(60), "completed");
        assert_eq!(run.output(), "kept");
        assert_eq!(run.status()["run_number"], 1);
    }

    #[test]
    fn server_and_database_may_both_be_gone() {
        let postgres = PrivatePostgres::start();
        let mut server = Setup::in_postgres(&postgres.url()).start();
        let input =
            json!({ "effects_file": server.shared().path("effects"), "steps": 20, "step_ms": 100 });
        let id = server
            .launch(&server.scripted(), &json!({ "input": input }))
            .id;
        let _some = server.shared().wait_for_lines("effects", 5);
        postgres.crash();
        server.kill_9();
        postgres.start_again();
        server.start_again();
        let run = server.instance(&id);
        run.wait_within(Duration::from_secs(60), "completed");
        assert_eq!(run.output()["sum"], 210);
        assert_eq!(run.checkpoints().len(), 20);
        assert_eq!(run.status()["tenant_id"], TENANT);
    }
}
