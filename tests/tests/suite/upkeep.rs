//! What is not needed any more goes: by itself, and when somebody asks for it.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use runtara_tests::http::Request;
use runtara_tests::{
    Ran, Run, Server, Setup, Store, TENANT, base64, eventually, from_base64, on_both_stores,
};
use serde_json::{Value, json};

on_both_stores!(
    an_ended_instance_goes_with_all_that_is_of_it,
    a_dry_run_removes_nothing_and_says_what_it_would,
    without_a_server_it_is_done_by_the_command_itself,
    the_figures_of_a_server_are_told,
    the_events_of_a_long_instance_are_bounded,
);

/// Carries out `maintain` as the user of this server would.
#[track_caller]
fn maintain(server: &Server, arguments: &[&str]) -> Ran {
    let mut command = server.command("maintain");
    command.args(arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ran::of(command.spawn().expect("the command can be started"))
}

/// What one reconciler says of itself as JSON.
#[track_caller]
fn report(server: &Server, name: &str, more: &[&str]) -> Value {
    let ran = maintain(server, &[&["--only", name, "--json"], more].concat()).expect(0);
    let said: Value = serde_json::from_str(&ran.stdout).expect("it is JSON");
    let reports = said["reconcilers"].as_array().expect("a list").clone();
    assert_eq!(reports.len(), 1, "{said}");
    assert_eq!(reports[0]["name"], name, "{said}");
    assert_eq!(reports[0]["error"], Value::Null, "{said}");
    reports[0].clone()
}

/// An instance that has printed something and ended.
fn ended<'a>(server: &'a Server, id: &str) -> Run<'a> {
    let image = server.shell("echo something");
    let run = server.launch(&image, &json!({ "instance_id": id }));
    run.wait_for("completed");
    run.wait_until_no_process();
    run
}

fn is_there(run: &Run<'_>) -> bool {
    run.status()["found"] == true
}

fn an_ended_instance_goes_with_all_that_is_of_it(store: Store) {
    let server = Setup::new(store)
        .variable(
            "RUNTARA_RETENTION",
            &format!("1s, completed@{TENANT}=2s, failed=forever"),
        )
        .start();
    let (first, lives) = (
        ended(&server, "first"),
        server.launch(&server.program("sleeps_forever"), &json!({})),
    );
    lives.wait_until_it_runs();
    eventually("the removal", || {
        report(&server, "instances", &[]);
        match is_there(&first) {
            false => Ok(()),
            true => Err("it is still there".to_owned()),
        }
    });
    for list in ["events", "checkpoints", "steps"] {
        let path = format!("/api/v1/instances/first/{list}");
        let answer = server.ask(&Request::get(&path)).expect(200);
        assert_eq!(answer["total_count"], 0, "{list}: {answer}");
    }
    assert_eq!(first.logs("").status, 404);
    // Its files go with it, and its id is free.
    report(&server, "run-files", &[]);
    assert!(is_there(&lives));
    let again = ended(&server, "first");
    let names = again.event_names();
    let ends = names.iter().filter(|name| *name == "completed").count();
    assert_eq!(ends, 1, "{names:?}");
}

fn a_dry_run_removes_nothing_and_says_what_it_would(store: Store) {
    let server = Setup::new(store)
        .variable("RUNTARA_RETENTION", "1s")
        .start();
    let run = ended(&server, "old");
    let said = eventually("the end of its time", || {
        let said = report(&server, "instances", &["--dry-run"]);
        match said["items"].as_u64() {
            Some(1) => Ok(said),
            _ => Err(said.to_string()),
        }
    });
    assert_eq!(
        said["names"],
        json!([format!("old of {TENANT}, completed")])
    );
    assert!(is_there(&run));
    let told = maintain(&server, &["--dry-run"]).expect(0).stdout;
    for name in [
        "instances",
        "events",
        "run-files",
        "logs",
        "images",
        "contents",
    ] {
        assert!(told.contains(name), "{told}");
    }
    assert!(told.contains("1 would be removed"), "{told}");
    assert!(is_there(&run));
    let mode = std::fs::metadata(server.data_dir().join("maintain.sock"));
    let mode = mode.expect("it listens").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let refused = maintain(&server, &["--only", "everything"]).expect(2);
    assert!(refused.stderr.contains("run-files"), "{}", refused.stderr);
}

fn without_a_server_it_is_done_by_the_command_itself(store: Store) {
    let mut server = Setup::new(store)
        .variable("RUNTARA_RETENTION", "1s")
        .start();
    let run = ended(&server, "old");
    let lives = server.launch(&server.program("sleeps_forever"), &json!({}));
    lives.wait_until_it_runs();
    let (old, living) = (run.id.clone(), lives.id.clone());
    server.kill_9();
    eventually("the end of its time", || {
        let said = report(&server, "instances", &[]);
        match said["items"].as_u64() {
            Some(1) => Ok(()),
            _ => Err(said.to_string()),
        }
    });
    // The run that lives on without its server keeps its files.
    let said = maintain(&server, &["--json"]).expect(0).stdout;
    assert!(!said.contains(&living), "{said}");
    server.start_again();
    assert!(!is_there(&server.instance(&old)));
    let lives = server.instance(&living);
    lives.wait_until_it_runs();
    assert_eq!(lives.stop(0)["status"], "cancelled");
}

fn the_figures_of_a_server_are_told(store: Store) {
    let server = Setup::new(store)
        .variable("RUNTARA_RETENTION", "1s")
        .start();
    let run = ended(&server, "old");
    eventually("the removal", || {
        report(&server, "instances", &[]);
        match is_there(&run) {
            false => Ok(()),
            true => Err("it is still there".to_owned()),
        }
    });
    let lives = server.launch(&server.program("sleeps_forever"), &json!({}));
    lives.wait_until_it_runs();
    let told = server.ask(&Request::get("/metrics"));
    assert_eq!(told.status, 200);
    let text = told.text();
    let figure = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.trim().parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("there is no {name} in\n{text}"))
    };
    assert!(figure("runtara_live_runs ") >= 1.0, "{text}");
    assert!(figure("runtara_claims_total ") >= 2.0, "{text}");
    assert!(
        figure("runtara_exits_total{outcome=\"completed\"} ") >= 1.0,
        "{text}"
    );
    let removed = figure("runtara_upkeep_removed_items_total{reconciler=\"instances\"} ");
    assert!(removed >= 1.0, "{text}");
    assert!(
        figure("runtara_upkeep_runs_total{reconciler=\"logs\"} ") >= 1.0,
        "{text}"
    );
    assert!(text.contains("runtara_build{version="), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert_eq!(lives.stop(0)["status"], "cancelled");
}

fn the_events_of_a_long_instance_are_bounded(store: Store) {
    let server = Server::start(store);
    let image = server.program("sleeps_forever");
    let body = json!({ "image_id": image.0, "tenant_id": TENANT, "max_events": 99 });
    server
        .ask(&Request::post("/api/v1/instances", &body))
        .refuses(400, "INVALID_MAX_EVENTS");
    let run = server.launch(&image, &json!({ "max_events": 100 }));
    run.wait_until_it_runs();
    let token = run.token_path();
    for n in 0..150 {
        let event = json!({ "event_type": "custom", "subtype": "progress", "payload": base64(n.to_string()) });
        let answer = run.say_with(&token, "events", &event);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    eventually("the folding", || {
        report(&server, "events", &[]);
        let events = run.events().len();
        match events <= 100 {
            true => Ok(()),
            false => Err(format!("{events} events")),
        }
    });
    let list = run.get("/events?sort_order=asc&limit=1000").expect(200);
    let events = list["events"].as_array().expect("a list").clone();
    assert_eq!(list["total_count"], events.len());
    let folded = events
        .iter()
        .find(|event| event["subtype"] == "runtara.folded")
        .unwrap_or_else(|| panic!("nothing stands for the others: {list}"));
    let said: Value = serde_json::from_str(&from_base64(&folded["payload"])).expect("it is JSON");
    let kept = events
        .iter()
        .filter(|event| event["subtype"] == "progress")
        .count();
    assert_eq!(said["count"], 150 - kept, "{said}");
    let newest = events.last().expect("there are some");
    assert_eq!(from_base64(&newest["payload"]), "149");
    assert_eq!(run.stop(0)["status"], "cancelled");
}
