//! What is printed, and what is asked of the server for it.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::fake::{Asked, Fake, Reply};
use crate::shapes::{image, list, summary};
use crate::{command, finish, run, run_with_input};

/// Two pages of instances.
fn pages(asked: &Asked) -> Reply {
    if asked.target.contains("cursor=next") {
        return list("instances", &[summary("c", "failed")], 3, None);
    }
    let rows = [summary("a", "running"), summary("b", "completed")];
    Reply::json(
        200,
        &json!({"instances": rows, "total_count": 3, "total_is_exact": false, "next_cursor": "next"}),
    )
}

#[tokio::test]
async fn ps_prints_a_page_and_says_that_there_is_more() {
    let fake = Fake::start(pages).await;
    let ran = run(&fake.url(), &["ps", "--label", "team=shop", "--limit", "2"]).await;
    let words: Vec<Vec<_>> = ran
        .stdout
        .lines()
        .map(|line| line.split_whitespace().take(3).collect())
        .collect();
    assert_eq!(
        words,
        [
            ["INSTANCE", "STATUS", "IMAGE"],
            ["a", "running", "orders"],
            ["b", "completed", "orders"]
        ]
    );
    assert_eq!(
        ran.stderr,
        "2 of about 3; --all for the rest, or --cursor next\n"
    );
    assert_eq!(
        fake.lines(),
        ["GET /api/v1/instances?tenant_id=acme&label=team%3Dshop&limit=2"]
    );
}

#[tokio::test]
async fn ps_walks_over_all_pages() {
    let fake = Fake::start(pages).await;
    let ran = run(&fake.url(), &["ps", "--all", "--quiet"]).await;
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("a\nb\nc\n", "")
    );
    let ran = run(&fake.url(), &["ps", "--all", "--json"]).await;
    let ids: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["instance_id"].clone())
        .collect();
    assert_eq!(ids, ["a", "b", "c"]);
    let ran = run(&fake.url(), &["ps", "--json"]).await;
    let page: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (&page["items"][1]["status"], &page["next_cursor"]),
        (&json!("completed"), &json!("next"))
    );
}

#[tokio::test]
async fn colours_are_for_terminals_and_for_who_asks() {
    let fake = Fake::start(pages).await;
    for (arguments, coloured) in [
        (&["ps"][..], false),
        (&["ps", "--color", "always"], true),
        (&["ps", "--color", "never"], false),
    ] {
        let ran = run(&fake.url(), arguments).await;
        assert_eq!(
            ran.stdout.contains("\u{1b}[36mrunning\u{1b}[0m"),
            coloured,
            "{arguments:?}: {ran:?}"
        );
        assert_eq!(
            ran.stdout.contains('\u{1b}'),
            coloured,
            "{arguments:?}: {ran:?}"
        );
    }
}

#[tokio::test]
async fn a_reader_that_has_enough_is_no_failure() {
    let rows: Vec<_> = (0..1000)
        .map(|n| summary(&format!("instance-{n}"), "running"))
        .collect();
    let page = std::sync::atomic::AtomicUsize::new(0);
    let fake = Fake::start(move |_| {
        let cursor = page.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let next = (cursor < 50).then(|| cursor.to_string());
        Reply::json(
            200,
            &json!({"instances": rows, "total_count": 50_000, "next_cursor": next}),
        )
    })
    .await;
    let mut child = command(&fake.url(), &["ps", "--all"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut reader = child.stdout.take().unwrap();
    reader.read_exact(&mut [0; 100]).await.unwrap();
    drop(reader);
    let ran = finish(child).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(
        fake.lines().len() < 50,
        "it stopped when nobody read any more"
    );
}

#[tokio::test]
async fn a_start_sends_what_was_typed_and_prints_the_id() {
    let fake = Fake::start(|asked| match asked.method.as_str() {
        "GET" => list("images", &[image()], 1, None),
        _ => Reply::json(201, &json!({"success": true, "instance_id": "o-1"})),
    })
    .await;
    let mut child = command(
        &fake.url(),
        &[
            "start",
            "--image",
            "orders",
            "--input",
            "-",
            "--env",
            "SECRET",
            "--label",
            "a=b",
            "--delay",
            "2m",
            "--idempotency-key",
            "k",
        ],
    );
    let mut child = child
        .env("SECRET", "hidden")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut child.stdin.take().unwrap(), br#"{"order": 17}"#)
        .await
        .unwrap();
    let ran = finish(child).await;
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(0), "o-1\n", "")
    );
    let asked = &fake.asked()[1];
    assert_eq!(
        asked.json(),
        json!({"image_id": "4f3c", "tenant_id": "acme", "instance_id": null, "input": {"order": 17}, "timeout_seconds": null,
               "env": {"SECRET": "hidden"}, "labels": {"a": "b"}, "delay_ms": 120_000})
    );
    assert_eq!(asked.header("idempotency-key"), Some("k"));
    assert_eq!(asked.header("x-runtara-tenant-id"), Some("acme"));
}

#[tokio::test]
async fn images_are_pushed_listed_shown_and_removed() {
    let file = tempfile::Builder::new()
        .prefix("orders")
        .suffix(".sh")
        .tempfile()
        .unwrap();
    std::fs::write(file.path(), "#!/bin/sh\n").unwrap();
    let fake = Fake::start(|asked| match asked.method.as_str() {
        "POST" => Reply::json(201, &json!({"success": true, "image_id": "4f3c"})),
        "DELETE" => Reply::json(200, &json!({"success": true})),
        _ => list("images", &[image()], 1, None),
    })
    .await;
    let path = file.path().to_str().unwrap();
    let ran = run(
        &fake.url(),
        &[
            "image", "push", path, "--name", "orders", "--kind", "native", "--label", "a=b",
        ],
    )
    .await;
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(0), "4f3c\n", "")
    );
    let form = String::from_utf8(fake.asked()[0].body.to_vec()).unwrap();
    for part in [
        "name=\"tenant_id\"\r\n\r\nacme",
        "name=\"name\"\r\n\r\norders",
        "name=\"labels\"\r\n\r\n{\"a\":\"b\"}",
    ] {
        assert!(form.contains(part), "{part:?} in {form}");
    }
    let ran = run(&fake.url(), &["image", "ls"]).await;
    assert!(ran.stdout.starts_with("NAME    KIND    CREATED"), "{ran:?}");
    let ran = run(&fake.url(), &["image", "show", "orders"]).await;
    assert!(ran.stdout.contains("id             4f3c\n"), "{ran:?}");
    let ran = run(&fake.url(), &["image", "rm", "orders"]).await;
    assert_eq!(ran.stdout, "orders deleted\n");
    assert_eq!(
        fake.lines().last().unwrap(),
        "DELETE /api/v1/images/4f3c?tenant_id=acme"
    );
}

#[tokio::test]
async fn a_signal_takes_its_payload_from_standard_input() {
    let fake = Fake::replies([Reply::json(200, &json!({"success": true}))]).await;
    let ran = run_with_input(&fake.url(), &["signal", "o-1", "approved", "-"], "yes").await;
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "o-1 signalled\n")
    );
    assert_eq!(
        fake.asked()[0].json(),
        json!({"checkpoint_id": "approved", "payload": "yes"})
    );
}

#[tokio::test]
async fn what_programs_wrote_cannot_steer_the_terminal_by_a_table() {
    let fake = Fake::replies([Reply::json(
        200,
        &json!({"found": true, "instance_id": "o-1", "status": "failed", "error": "a\u{1b}]0;b\u{7}"}),
    )])
    .await;
    for arguments in [&["show", "o-1"][..], &["wait", "o-1"]] {
        let ran = run(&fake.url(), arguments).await;
        assert!(
            !ran.stdout.contains('\u{1b}') && !ran.stderr.contains('\u{1b}'),
            "{ran:?}"
        );
    }
}

#[tokio::test]
async fn events_and_checkpoints_are_printed_oldest_first_and_newest_first() {
    let fake = Fake::start(|asked| {
        let event = |id: i64| json!({"id": id, "instance_id": "o", "event_type": "heartbeat", "created_at_ms": id});
        let checkpoint = json!({"checkpoint_id": "charge", "instance_id": "o", "created_at_ms": 0, "data_size_bytes": 10});
        match asked.target.split('?').next().unwrap() {
            "/api/v1/instances/o/events" => {
                list("events", &[event(2), event(1)], 2, None)
            }
            "/api/v1/instances/o/checkpoints" => {
                list("checkpoints", &[checkpoint], 1, None)
            }
            "/api/v1/instances/o/checkpoints/charge" => Reply::json(
                200,
                &json!({"found": true, "checkpoint_id": "charge", "instance_id": "o", "created_at_ms": 0, "data": "eyJhIjoxfQ=="}),
            ),
            _ => Reply::json(200, &json!({"found": true, "instance_id": "o", "status": "running"})),
        }
    })
    .await;
    let ran = run(&fake.url(), &["events", "o"]).await;
    let ids: Vec<_> = ran
        .stdout
        .lines()
        .map(|line| line.split_whitespace().nth(2).unwrap())
        .collect();
    assert_eq!(ids, ["1", "2"]);
    let ran = run(&fake.url(), &["checkpoints", "o"]).await;
    assert_eq!(
        ran.stdout,
        "CHECKPOINT  SAVED                 SIZE\ncharge      1970-01-01 00:00:00Z  10 B\n"
    );
    let ran = run(&fake.url(), &["checkpoints", "o", "charge"]).await;
    assert_eq!(ran.stdout, "{\n  \"a\": 1\n}\n");
}

#[tokio::test]
async fn completions_are_scripts_that_name_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        // A shell that starts with settings that no client can have has its completions all the same.
        let child = command("https://nowhere", &["completions", shell])
            .env("RUNTARA_REQUEST_TIMEOUT_MS", "soon")
            .spawn()
            .expect("the command starts");
        let ran = finish(child).await;
        assert_eq!(ran.code, Some(0), "{shell}: {ran:?}");
        assert!(
            ran.stdout.contains("checkpoints") && ran.stdout.contains("doctor"),
            "{shell}"
        );
    }
}
