//! What is secret stays where it belongs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use nix::unistd::geteuid;
use runtara_tests::http::Request;
use runtara_tests::{
    Ground, Server, Setup, Store, TENANT, base64, eventually, in_both_kinds, in_every_kind,
    on_both_stores,
};
use serde_json::json;

on_both_stores!(
    a_start_cannot_say_who_the_program_is_or_how_it_is_loaded,
    secrets_of_a_start_stay_with_its_program,
);

in_both_kinds!(tokens_are_taken_out_of_what_programs_report,);

in_every_kind!(ids_never_become_paths,);

fn a_start_cannot_say_who_the_program_is_or_how_it_is_loaded(store: Store) {
    let server = Server::start(store);
    let image = server.program("exits_with");
    for name in [
        "RUNTARA_INSTANCE_ID",
        "RUNTARA_TENANT_ID",
        "RUNTARA_HTTP_URL",
        "RUNTARA_SERVER_ADDR",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "LD_AUDIT",
    ] {
        server
            .try_launch(&image, &json!({ "env": { name: "x" } }))
            .refuses(400, "INVALID_ENV");
    }
}

fn ids_never_become_paths(ground: Ground) {
    let server = Server::start(ground);
    let image = server.program("prints_and_exits");
    let long = "ü".repeat(127);
    for id in [
        "-rf",
        "...",
        "a b",
        "äöü",
        "~root",
        "a\\b",
        "runs",
        "core.sock",
        &long,
    ] {
        let run = server.launch(
            &image,
            &json!({ "instance_id": id, "input": { "stdout": "1" } }),
        );
        assert_eq!(run.id, id);
    }
    let list = server.ask(&Request::get("/api/v1/instances?limit=100"));
    assert_eq!(list.expect(200)["total_count"], 9);
    eventually("the end of all", || {
        let body = server
            .ask(&Request::get("/api/v1/instances?status=completed"))
            .expect(200);
        if body["total_count"] == 9 {
            Ok(())
        } else {
            Err(body)
        }
    });
    for entry in fs::read_dir(server.data_dir().join("runs")).expect("runs have directories") {
        let name = entry
            .expect("it can be read")
            .file_name()
            .to_string_lossy()
            .into_owned();
        let plain = name.len() == 26
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        assert!(plain, "a directory of a run is called {name:?}");
    }
}

fn secrets_of_a_start_stay_with_its_program(store: Store) {
    let server = Server::start(store);
    let image = server.program("speaks_the_protocol");
    let secret = "s3cr3t-of-the-start";
    let run = server.launch(&image, &json!({
        "input": { "actions": [{ "event": { "subtype": "up" } }, { "until_file": server.shared().path("go") }, { "fail": "no" }] },
        "env": { "API_KEY": secret },
    }));
    eventually("the program's event", || {
        let names = run.event_names();
        if names.contains(&"custom/up".to_owned()) {
            Ok(())
        } else {
            Err(names)
        }
    });
    for process in server.processes() {
        let line = process.command_line.join(" ");
        assert!(
            !line.contains(secret),
            "on the command line of {}: {line}",
            process.pid
        );
        let is_the_program = process.variable("RUNTARA_INSTANCE_ID").is_some();
        assert!(
            is_the_program || !process.words().contains(secret),
            "in the environment of {line}"
        );
    }
    server.shared().touch("go");
    run.wait_for("failed");
    for text in [
        server.log(),
        run.get("").text(),
        run.get("/events?limit=1000").text(),
        server.ask(&Request::get("/api/v1/instances")).text(),
        run.logs("stream=stderr").text(),
    ] {
        assert!(!text.contains(secret), "{text}");
    }
}

fn tokens_are_taken_out_of_what_programs_report(ground: Ground) {
    let server = Server::start(ground);
    let script = "#!/bin/sh\necho \"out $RUNTARA_HTTP_URL\"\necho \"cannot reach $RUNTARA_HTTP_URL/api\" >&2\nexit 3\n";
    let run = server.launch(&server.register("tells", script.as_bytes()), &json!({}));
    let found = run.wait_for("failed");
    let error = found["error"].as_str().unwrap_or_default();
    assert!(error.contains("cannot reach http://"), "{found}");
    let talker = server.launch(&server.program("sleeps_forever"), &json!({}));
    let token = talker.token_path();
    let secret = token.trim_start_matches("/r/").to_owned();
    let text = format!("HTTP request failed: http://127.0.0.1:1{token}/api/v1");
    let event = json!({ "event_type": "custom", "subtype": "note", "payload": base64(&text) });
    assert_eq!(
        talker.say_with(&token, "events", &event).expect(200)["success"],
        true
    );
    assert_eq!(
        talker
            .say_with(&token, "failed", &json!({ "error": text }))
            .expect(200)["success"],
        true
    );
    let shown = [
        run.get("").text(),
        run.logs("stream=stdout").text(),
        run.logs("stream=stderr").text(),
        talker.status()["error"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        talker
            .events()
            .iter()
            .filter_map(|event| event["payload"].as_str())
            .map(|payload| runtara_tests::from_base64(&json!(payload)))
            .collect(),
        server.log(),
    ];
    for text in shown {
        assert!(!text.contains(&secret), "{text}");
        let (_, after) = text.split_once("/r/").unwrap_or_default();
        let letters = after
            .chars()
            .take_while(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_'))
            .count();
        assert!(letters < 16, "what looks like a token is in: {text}");
    }
}

#[test]
fn programs_are_not_given_the_servers_environment() {
    let server = Setup::new(Store::Sqlite)
        .variable("AWS_SECRET_ACCESS_KEY", "secret-of-the-server")
        .variable("RUNTARA_CONNECTION_SERVICE_URL", "http://connections")
        .start();
    let run = server.launch(
        &server.program("shows_environment"),
        &json!({ "env": { "MINE": "yes" } }),
    );
    let shown = run.output();
    let text = shown.to_string();
    assert!(!text.contains("secret-of-the-server"), "{shown:#}");
    let env = &shown["env"];
    for absent in [
        "RUNTARA_ENVIRONMENT_DATABASE_URL",
        "RUNTARA_DATABASE_URL",
        "DATA_DIR",
        "CARGO_PKG_NAME",
        "HOSTNAME_OF_SERVER",
    ] {
        assert_eq!(env.get(absent), None, "{absent} in {env:#}");
    }
    assert_eq!(env["RUNTARA_INSTANCE_ID"], run.id);
    assert_eq!(env["RUNTARA_TENANT_ID"], TENANT);
    assert_eq!(env["RUNTARA_RUN_NUMBER"], "1");
    assert_eq!(env["RUNTARA_REQUEST_TIMEOUT_MS"], "600000");
    assert_eq!(env["CONNECTION_SERVICE_URL"], "http://connections");
    assert_eq!(env["MINE"], "yes");
    for given in [
        "RUNTARA_HTTP_URL",
        "RUNTARA_SERVER_ADDR",
        "RUNTARA_INPUT_FILE",
        "RUNTARA_OUTPUT_FILE",
        "RUNTARA_RUN_DIR",
    ] {
        assert!(env[given].is_string(), "{given} in {env:#}");
    }
    let descriptors = shown["descriptors"].as_object().expect("it is an object");
    assert!(
        descriptors
            .keys()
            .all(|number| ["0", "1", "2"].contains(&number.as_str())),
        "{descriptors:?}"
    );
    if geteuid().is_root() {
        assert_ne!(
            shown["status"]["Uid"], "0",
            "programs of a root server run as another user: {shown:#}"
        );
    }
}

#[test]
fn the_data_directory_is_its_owners_alone() {
    let server = Server::start(Store::Sqlite);
    let mode = fs::metadata(server.data_dir())
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700, "found mode {mode:o}");
}

#[test]
fn listening_to_the_world_must_be_allowed() {
    let (status, log) = Setup::new(Store::Sqlite)
        .variable("RUNTARA_ENV_HTTP_BIND", "0.0.0.0")
        .run_to_its_end();
    assert!(!status.success(), "{log}");
    assert!(
        log.contains("RUNTARA_ALLOW_UNAUTHENTICATED"),
        "the way out is named: {log}"
    );
}

#[test]
fn a_root_server_without_a_user_for_them_refuses_native_programs() {
    if !geteuid().is_root() {
        return;
    }
    let server = Setup::new(Store::Sqlite)
        .without("RUNTARA_NATIVE_USER")
        .start();
    let form = Request::form(
        "/api/v1/images/upload",
        &[
            ("tenant_id", TENANT),
            ("name", "a"),
            ("runner_type", "native"),
        ],
        &[("binary", b"#!/bin/sh\n")],
    );
    server.ask(&form).refuses(400, "IMAGE_NOT_RUNNABLE");
    let ready = server.ask(&Request::get("/ready")).expect(200);
    assert!(
        ready.to_string().contains("RUNTARA_NATIVE_USER"),
        "the way out is named: {ready}"
    );
}

#[test]
fn secrets_of_a_run_go_with_it_although_the_server_was_killed() {
    let mut server = Server::start(Store::Sqlite);
    let script = "[ \"$RUNTARA_RUN_NUMBER\" = 2 ] && while :; do sleep 0.1; done; kill -9 $$";
    let run = server.launch(
        &server.shell(script),
        &json!({ "env": { "KEY": "s3cret" } }),
    );
    run.wait_until("its second run", |found| found["run_number"] == 2);
    let id = run.id;
    let live = server.instance(&id).wait_for_process();
    let instance = fs::read_dir(server.data_dir().join("runs"))
        .expect("there are runs")
        .next()
        .expect("there is one")
        .expect("it can be read")
        .path();
    server.kill_9();
    // As if it had been killed between the record of the first exit and the removal of what it left.
    let first = instance.join("1");
    fs::create_dir_all(first.join("work")).expect("it is ours");
    for name in ["run.json", "input.json", "work/left", "stderr.0"] {
        fs::write(first.join(name), "{}").expect("it is ours");
    }
    server.start_again();
    eventually("that only the log is left of the first run", || {
        let left = fs::read_dir(&first).expect("its log stays");
        let names: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
        if names == ["stderr.0"] {
            Ok(())
        } else {
            Err(names)
        }
    });
    assert!(instance.join("2/run.json").exists(), "the second run lives");
    assert_eq!(server.instance(&id).wait_for_process().pid, live.pid);
}
