//! The two doors that people use, against the real server: the command line and the client library, from the registration of a
//! program to its removal.

use std::fs;
use std::time::Duration;

use runtara_management_sdk::{
    Client, EventFilter, ImageRegistration, InstanceFilter, LogQuery, StartRequest, Status,
    StatusReason,
};
use runtara_tests::{Ran, Server, Store, TENANT, eventually, on_both_stores, program};
use serde_json::{Value, json};

on_both_stores!(
    the_command_line_leads_through_a_whole_life,
    the_command_line_waits_signals_and_pauses,
    the_command_line_tells_how_a_stop_ended,
    the_client_library_leads_through_a_whole_life,
);

/// Registers the program that does what its input says, by the command line, under the name of a file.
fn push(server: &Server) -> String {
    let file = server.place().join("work-1.2");
    fs::copy(program("speaks_the_protocol"), &file).expect("the directory is ours");
    let path = file.to_str().expect("it is plain");
    let pushed = server.runtara(&["image", "push", path]).expect(0);
    pushed.stdout.trim().to_owned()
}

fn input(actions: &Value) -> String {
    json!({ "actions": actions }).to_string()
}

/// The rows of a table, each by its words.
fn rows(ran: &Ran) -> Vec<Vec<&str>> {
    let lines = ran.stdout.lines().skip(1);
    lines
        .map(|line| line.split_whitespace().collect())
        .collect()
}

/// Waits until `ps` shows an instance so.
fn wait_for(server: &Server, id: &str, standing: &str) {
    eventually(&format!("{id} to be {standing}"), || {
        let ran = server.runtara(&["ps"]).expect(0);
        let line = ran.stdout.lines().find(|line| line.starts_with(id));
        match line {
            Some(line) if line.contains(standing) => Ok(()),
            other => Err(other.map(str::to_owned)),
        }
    });
}

fn the_command_line_leads_through_a_whole_life(store: Store) {
    let mut server = Server::start(store);
    let doctor = server.runtara(&["doctor"]).expect(0);
    let found: Vec<_> = rows(&doctor);
    assert_eq!(found[0][..2], ["server", "ok"], "{doctor:#?}");
    assert_eq!(found[1], ["database", "ok", "reachable"], "{doctor:#?}");
    assert_eq!(found[2][..3], ["native", "images", "ok"], "{doctor:#?}");
    assert_eq!(found[4][..3], ["wasm", "images", "ok"], "{doctor:#?}");
    let mode = found.iter().find(|row| row.first() == Some(&"network"));
    let isolated = ["network", "mode", "isolated", "ok", "needs", "nothing"];
    assert_eq!(mode.map(Vec::as_slice), Some(&isolated[..]), "{doctor:#?}");

    let image = push(&server);
    let listed = server.runtara(&["image", "ls"]).expect(0);
    assert_eq!(rows(&listed)[0][..2], ["work-1.2", "native"], "{listed:#?}");
    let shown = server.runtara(&["image", "show", "work-1.2"]).expect(0);
    assert!(shown.stdout.contains(&image), "{shown:#?}");
    server.runtara(&["image", "show", "nothing"]).expect(3);

    let actions = json!([
        { "print": "to standard output" }, { "print_error": "to standard error" }, { "checkpoint": "charge" },
        { "progress": { "message": "half", "percent": 50 } }, { "complete": { "total": 3 } },
    ]);
    let start = ["start", "--image", "work-1.2", "--label", "team=shop"];
    let fine = ["--id", "fine", "--input", &input(&actions), "--wait"];
    let ran = server.runtara(&[&start[..], &fine].concat()).expect(0);
    assert_eq!(ran.stdout, "{\n  \"total\": 3\n}\n", "{ran:#?}");
    assert!(ran.stderr.starts_with("started fine\n"), "{ran:#?}");
    let again = server.runtara(&[&start[..], &fine].concat()).expect(0);
    assert!(
        again.stderr.contains("fine had been started before"),
        "{again:#?}"
    );
    let failing = input(&json!([{ "fail": "no stock" }]));
    let failing = ["--id", "bad", "--input", &failing, "--wait"];
    let ran = server.runtara(&[&start[..], &failing].concat()).expect(1);
    assert!(
        ran.stderr
            .ends_with("error: instance \"bad\" failed: no stock\n"),
        "{ran:#?}"
    );
    server.runtara(&["start", "--image", "nothing"]).expect(3);

    let listed = server.runtara(&["ps"]).expect(0);
    let all: Vec<_> = rows(&listed).iter().map(|row| row[..3].to_vec()).collect();
    assert_eq!(
        all,
        [
            ["bad", "failed", "work-1.2"],
            ["fine", "completed", "work-1.2"]
        ]
    );
    let quiet = ["ps", "--status", "completed", "--label", "team=shop", "-q"];
    assert_eq!(server.runtara(&quiet).expect(0).stdout, "fine\n");
    let shown = server.runtara(&["show", "fine"]).expect(0);
    for line in ["status       completed\n", "run          1\n"] {
        assert!(shown.stdout.contains(line), "{line:?} in {shown:#?}");
    }
    server.runtara(&["show", "nobody"]).expect(3);

    for follow in [&[][..], &["-f"]] {
        let logs = |more: &[&str]| {
            let arguments = [&["logs", "fine"], follow, more].concat();
            server.runtara(&arguments).expect(0).stdout
        };
        assert_eq!(logs(&[]), "to standard output\n");
        assert_eq!(logs(&["--stderr"]), "to standard error\n");
        let told: Value = serde_json::from_str(&logs(&["--json"])).expect("it is JSON");
        let wanted = json!({ "run": 1, "offset": 0, "text": "to standard output\n" });
        assert_eq!(told, wanted);
        let events = [&["events", "fine"], follow].concat();
        let events = server.runtara(&events).expect(0).stdout;
        let last = events.lines().last().unwrap_or_default();
        assert!(
            events.contains("progress") && last.contains("completed"),
            "{events}"
        );
    }
    let logs = ["logs", "fine", "--run", "7"];
    server.runtara(&logs).expect(3);
    let saved = server.runtara(&["checkpoints", "fine"]).expect(0);
    assert_eq!(rows(&saved)[0][0], "charge", "{saved:#?}");
    let saved = server.runtara(&["checkpoints", "fine", "charge"]).expect(0);
    assert_eq!(saved.stdout, "1\n");

    let removed = server
        .runtara(&["--json", "rm", "fine", "nobody"])
        .expect(3);
    assert_eq!(removed.stdout, "{\"done\":\"removed\",\"id\":\"fine\"}\n");
    let told: Vec<Value> = removed
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON on standard error"))
        .collect();
    assert_eq!(
        (&told[0]["id"], &told[0]["code"], &told[1]["code"]),
        (&json!("nobody"), &json!("NOT_FOUND"), &json!("SEVERAL"))
    );
    server.runtara(&["logs", "fine"]).expect(3);
    let deleted = server.runtara(&["image", "rm", "work-1.2"]).expect(0);
    assert_eq!(deleted.stdout, "work-1.2 deleted\n");
    assert_eq!(server.sigterm().code(), Some(0));
    server.runtara(&["ps"]).expect(4);
    server.runtara(&["doctor"]).expect(4);
}

fn the_command_line_waits_signals_and_pauses(store: Store) {
    let server = Server::start(store);
    let _image = push(&server);
    let start = |id: &str, actions: Value| {
        let input = input(&actions);
        let start = [
            "start", "--image", "work-1.2", "--id", id, "--input", &input,
        ];
        assert_eq!(server.runtara(&start).expect(0).stdout, format!("{id}\n"));
    };

    start(
        "waits",
        json!([{ "print": "before" }, { "wait_signal": { "id": "go" } }, { "print": "after" }]),
    );
    wait_for(&server, "waits", "suspended (waiting signal)");
    let refused = server.runtara(&["image", "rm", "work-1.2"]).expect(1);
    assert!(refused.stderr.contains("in use"), "{refused:#?}");
    server.runtara(&["rm", "waits"]).expect(1);
    let late = server
        .runtara(&["wait", "waits", "--timeout", "300ms"])
        .expect(124);
    assert!(late.stderr.contains("it is suspended"), "{late:#?}");
    let log = server.begin(&["logs", "-f", "waits"]);
    let wait = server.begin(&["wait", "waits"]);
    let sent = server
        .runtara(&["signal", "waits", "go", r#"{"by": "me"}"#])
        .expect(0);
    assert_eq!(sent.stdout, "waits signalled\n");
    let result: Value =
        serde_json::from_str(&Ran::of(wait).expect(0).stdout).expect("the result is JSON");
    assert!(
        result["seen"]["go"].to_string().contains("by"),
        "it saw the signal: {result}"
    );
    // The second run begins anew, as a program that is no SDK's does.
    assert_eq!(Ran::of(log).expect(0).stdout, "before\nbefore\nafter\n");

    start(
        "pauses",
        json!([{ "checkpoint": "a" }, { "on_run": 1, "do": { "await_order": true } }, { "complete": "resumed" }]),
    );
    wait_for(&server, "pauses", "running");
    let paused = server.runtara(&["pause", "pauses"]).expect(0);
    assert_eq!(paused.stdout, "pauses asked to pause\n");
    wait_for(&server, "pauses", "suspended (paused)");
    let resumed = server.runtara(&["resume", "pauses"]).expect(0);
    assert_eq!(resumed.stdout, "pauses resumed\n");
    let result = server.runtara(&["wait", "pauses"]).expect(0);
    assert_eq!(result.stdout, "resumed\n");

    start("cancelled", json!([{ "await_order": true }]));
    wait_for(&server, "cancelled", "running");
    let cancelled = server.runtara(&["cancel", "cancelled"]).expect(0);
    assert_eq!(cancelled.stdout, "cancelled asked to end\n");
    let end = server.runtara(&["wait", "cancelled"]).expect(1);
    assert!(end.stderr.contains("was cancelled"), "{end:#?}");
}

fn the_command_line_tells_how_a_stop_ended(store: Store) {
    let server = Server::start(store);
    let stubborn = program("ignores_sigterm");
    let stubborn = stubborn.to_str().expect("it is plain");
    server.runtara(&["image", "push", stubborn]).expect(0);
    let polite = server.place().join("polite.sh");
    let script = "#!/bin/sh\ntrap 'exit 0' TERM\necho ready\nwhile :; do sleep 0.05; done\n";
    fs::write(&polite, script).expect("the directory is ours");
    let polite = polite.to_str().expect("it is plain");
    server.runtara(&["image", "push", polite]).expect(0);
    let start = |image: &str, id: &str| {
        let start = ["start", "--image", image, "--id", id];
        server.runtara(&start).expect(0);
        eventually("its word", || {
            let ran = server.runtara(&["logs", id]);
            (ran.stdout == "ready\n").then_some(()).ok_or(ran)
        });
    };
    start("ignores_sigterm", "stubborn");
    start("polite", "polite");

    let stopped = server
        .runtara(&["stop", "polite", "--grace", "20s"])
        .expect(0);
    assert_eq!(stopped.stdout, "polite completed\n");
    server.runtara(&["stop", "polite"]).expect(1);
    // Longer than the server lets its longest answer take.
    let before = std::time::Instant::now();
    let stop = ["--json", "stop", "stubborn", "--grace", "26s"];
    let stopped = server.runtara(&stop).expect(0);
    let took = before.elapsed();
    let told: Value = serde_json::from_str(&stopped.stdout).expect("it is JSON");
    assert_eq!(
        told,
        json!({ "id": "stubborn", "done": "stopped", "status": "cancelled", "process_gone": true })
    );
    assert!(took >= Duration::from_secs(26), "it took {took:?}");
    assert!(server.processes_of("stubborn").is_empty());
}

fn the_client_library_leads_through_a_whole_life(store: Store) {
    let server = Server::start(store);
    let client = Client::builder(server.address()).tenant(TENANT);
    let client = client.build().expect("the address is one");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.expect("a runtime can be made");
    runtime.block_on(async {
        let whole = whole_life(&client);
        if let Err(error) = whole.await {
            panic!("{error:?}");
        }
    });
}

async fn whole_life(client: &Client) -> Result<(), runtara_management_sdk::Error> {
    assert!(client.health().await?.healthy && client.ready().await?.ready);
    let registration = ImageRegistration::new("work").label("team", "shop");
    let path = program("speaks_the_protocol");
    let pushed = client
        .upload_image_file(&registration, &path, |_| {})
        .await?;
    let image = client.find_image("work").await?;
    assert_eq!(image.image_id, pushed.image_id);

    let actions = json!([
        { "print": "hello" }, { "checkpoint": "a" }, { "wait_signal": { "id": "go" } }, { "complete": "done" },
    ]);
    let start = StartRequest::new(&image.image_id)
        .instance_id("waits")
        .input(json!({ "actions": actions }))
        .timeout(Duration::from_millis(59_500));
    assert!(!client.start(&start).await?.deduplicated);
    assert!(client.start(&start).await?.deduplicated);
    until(client, "waits", |it| {
        it.status_reason == Some(StatusReason::WaitingSignal)
    })
    .await?;
    let listed = client.instances(&InstanceFilter::new()).await?.items;
    assert_eq!(listed[0].image_name.as_deref(), Some("work"));
    assert!(
        client
            .delete_image(&image.image_id)
            .await
            .is_err_and(|error| !error.is_not_found())
    );
    client.custom_signal("waits", "go", Some("1")).await?;
    let ended = client.wait("waits", Some(Duration::from_secs(30))).await?;
    assert_eq!(ended.status, Status::Completed);
    let output: Option<String> = ended.output.map(|output| output.json()).transpose()?;
    assert_eq!(output.as_deref(), Some("done"));
    let mut log = client.logs("waits", &LogQuery::new().run(1)).await?;
    assert_eq!((log.run(), log.offset()), (Some(1), 0));
    assert_eq!(log.chunk().await?.as_deref(), Some(&b"hello\n"[..]));
    assert_eq!(client.logs("waits", &LogQuery::new()).await?.run(), Some(2));
    let mut events = client.follow_events("waits", EventFilter::new());
    let mut last = None;
    while let Some(event) = events.next().await? {
        last = Some(event.event_type.to_string());
    }
    assert_eq!(last.as_deref(), Some("completed"));
    let saved = client.checkpoint("waits", "a").await?;
    assert_eq!(saved.checkpoint_id, "a");

    let actions = json!([{ "on_run": 1, "do": { "await_order": true } }, { "await_order": true }]);
    let start = StartRequest::new(&image.image_id)
        .instance_id("pauses")
        .input(json!({ "actions": actions }));
    client.start(&start).await?;
    until(client, "pauses", |it| it.status == Status::Running).await?;
    client.pause("pauses").await?;
    until(client, "pauses", |it| {
        it.status_reason == Some(StatusReason::Paused)
    })
    .await?;
    client.resume("pauses").await?;
    until(client, "pauses", |it| it.run_number == Some(2)).await?;
    let grace = Duration::from_millis(9_500);
    let stopped = client.stop("pauses", grace, "enough").await?;
    assert_eq!(
        (stopped.status, stopped.process_gone),
        (Status::Cancelled, true)
    );
    let again = client.stop("pauses", grace, "enough").await;
    assert!(again.is_err_and(|error| !error.is_not_found()));

    for id in ["waits", "pauses"] {
        client.purge(id).await?;
        let gone = client.instance(id).await;
        assert!(gone.is_err_and(|error| error.is_not_found()), "{id}");
    }
    client.delete_image(&image.image_id).await?;
    assert!(client.agents().await?.is_empty());
    Ok(())
}

/// Looks at an instance until it stands as wanted.
async fn until(
    client: &Client,
    id: &str,
    is_wanted: impl Fn(&runtara_management_sdk::Instance) -> bool,
) -> Result<(), runtara_management_sdk::Error> {
    let end = tokio::time::Instant::now() + runtara_tests::DEADLINE;
    loop {
        let instance = client.instance(id).await?;
        if is_wanted(&instance) {
            return Ok(());
        }
        let now = tokio::time::Instant::now();
        assert!(now < end, "{id} did not come there: {instance:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
