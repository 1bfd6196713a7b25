//! Commands that stay until something happens.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Child;
use tokio::time::Instant;

use crate::fake::{Fake, Reply};
use crate::{DEADLINE, command, finish, run, shapes};

fn status(word: &str, more: &Value) -> Reply {
    Reply::json(200, &shapes::status(word, more))
}

/// Waits until the server has been asked something that contains `text`.
async fn until_asked(fake: &Fake, text: &str) {
    let deadline = Instant::now() + DEADLINE;
    while !fake.lines().iter().any(|line| line.contains(text)) {
        assert!(
            Instant::now() < deadline,
            "{text} was not asked for, only {:?}",
            fake.lines()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Sends what Ctrl-C sends.
async fn interrupt(child: &Child) {
    let id = child.id().expect("the command runs").to_string();
    let sent = tokio::process::Command::new("kill")
        .args(["-INT", &id])
        .status()
        .await;
    assert!(sent.expect("kill can be run").success());
}

#[tokio::test]
async fn start_and_wait_shows_progress_and_prints_the_result() {
    let looks = AtomicUsize::new(0);
    let fake = Fake::start(move |asked| match asked.line().split('?').next().expect("a line") {
        "POST /api/v1/instances" => Reply::json(201, &json!({"success": true, "instance_id": "o-1"})),
        "GET /api/v1/images" => Reply::json(
            200,
            &json!({"images": [{"image_id": "4f3c", "tenant_id": "acme", "name": "orders", "runner_type": "native",
                                "created_at_ms": 0}], "total_count": 1}),
        ),
        // {"message":"half","percent":50}
        "GET /api/v1/instances/o-1/events" => Reply::json(
            200,
            &json!({"events": [{"id": 1, "instance_id": "o-1", "event_type": "custom", "subtype": "progress", "created_at_ms": 0,
                                "payload": "eyJtZXNzYWdlIjoiaGFsZiIsInBlcmNlbnQiOjUwfQ=="}],
                    "total_count": 1, "limit": 1, "offset": 0}),
        ),
        // A server that is away for a moment in the middle.
        _ => match looks.fetch_add(1, Ordering::Relaxed) {
            0 => status("running", &json!({"run_number": 1})),
            1 => Reply::json(503, &json!({"error": "no database"})),
            2 => status("suspended", &json!({"status_reason": "sleeping", "run_number": 1, "due_at_ms": 0})),
            _ => status("completed", &json!({"output": "eyJ0b3RhbCI6M30="})),
        },
    })
    .await;
    let ran = run(&fake.url(), &["start", "--image", "orders", "--wait"]).await;
    assert_eq!(ran.stdout, "{\n  \"total\": 3\n}\n");
    assert_eq!(
        ran.stderr.lines().collect::<Vec<_>>(),
        [
            "started o-1",
            "o-1  running  50 % half",
            "o-1  the server is away, waiting for it",
            "o-1  suspended (sleeping)  until 1970-01-01 00:00:00Z  50 % half",
        ]
    );
    assert_eq!(ran.code, Some(0));
}

#[tokio::test]
async fn a_failed_instance_shows_its_standard_error_and_why() {
    let fake = Fake::replies([status(
        "failed",
        &json!({"error": "no stock", "stderr": "panicked at 3\n"}),
    )])
    .await;
    let ran = run(&fake.url(), &["wait", "o-1"]).await;
    assert_eq!(
        ran.stderr,
        "panicked at 3\nerror: instance \"o-1\" failed: no stock\n"
    );
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));

    let ran = run(&fake.url(), &["wait", "o-1", "--json"]).await;
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (&told["status"], &told["stderr"]),
        (&json!("failed"), &json!("panicked at 3\n"))
    );
    assert_eq!(
        serde_json::from_str::<Value>(&ran.stderr).unwrap()["code"],
        "INSTANCE_ENDED"
    );
}

#[tokio::test]
async fn leaving_with_ctrl_c_says_that_the_instance_goes_on() {
    for (arguments, sign) in [
        (&["wait", "o-1"][..], "wait_ms"),
        (&["events", "-f", "o-1"], "wait_ms"),
        (&["logs", "-f", "o-1"], "wait_ms"),
    ] {
        let fake = Fake::start(|asked| {
            if asked.target.contains("/events") {
                Reply::json(
                    200,
                    &json!({"events": [], "total_count": 0, "limit": 1, "offset": 0}),
                )
            } else {
                status("running", &json!({}))
            }
        })
        .await;
        let child = command(&fake.url(), arguments).spawn().unwrap();
        until_asked(&fake, sign).await;
        interrupt(&child).await;
        let ran = finish(child).await;
        assert_eq!(ran.code, Some(130), "{arguments:?}: {ran:?}");
        let goes_on =
            "error: interrupted; instance \"o-1\" goes on, `runtara wait o-1` waits for it again\n";
        assert!(ran.stderr.ends_with(goes_on), "{arguments:?}: {ran:?}");
    }
}

#[tokio::test]
async fn a_log_is_followed_over_runs_and_a_broken_connection() {
    let looks = AtomicUsize::new(0);
    let reads = AtomicUsize::new(0);
    let fake = Fake::start(move |asked| {
        if !asked.target.contains("/logs") {
            let word = match looks.fetch_add(1, Ordering::Relaxed) {
                0 => return status("pending", &json!({"run_number": 0})),
                1 => ("running", 1),
                2 => ("running", 1),
                3 => ("running", 2),
                _ => ("completed", 2),
            };
            return status(word.0, &json!({"run_number": word.1}));
        }
        let kept = if asked.target.contains("run=1") {
            "first\n"
        } else {
            "second\n"
        };
        let offset: usize = asked
            .target
            .split("offset=")
            .nth(1)
            .map_or(0, |rest| rest.split('&').next().unwrap().parse().unwrap());
        // The very first read comes before anything was written.
        if reads.fetch_add(1, Ordering::Relaxed) == 0 {
            return Reply::json(404, &json!({"error": "nothing yet"}));
        }
        Reply::text(200, &kept[offset..]).header("X-Runtara-Log-Offset", offset.to_string())
    })
    .await;
    let ran = run(&fake.url(), &["logs", "-f", "o-1"]).await;
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(0), "first\nsecond\n", ""),
        "{:?}",
        fake.lines()
    );
}

#[tokio::test]
async fn a_log_that_lost_its_beginning_says_so() {
    let fake =
        Fake::replies([Reply::text(200, "end\n").header("X-Runtara-Log-Offset", "1000")]).await;
    let ran = run(&fake.url(), &["logs", "o-1", "--stderr", "--run", "2"]).await;
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("end\n", "the first 1000 bytes are no longer kept\n")
    );
    assert_eq!(
        fake.lines(),
        ["GET /api/v1/instances/o-1/logs?stream=stderr&run=2&follow=false"]
    );
}

#[tokio::test]
async fn a_log_for_scripts_names_the_run_that_was_served() {
    let fake = Fake::replies([Reply::text(200, "end\n")
        .header("X-Runtara-Log-Offset", "7")
        .header("X-Runtara-Run", "3")])
    .await;
    let ran = run(&fake.url(), &["logs", "o-1", "--json"]).await;
    let told: Value = serde_json::from_str(&ran.stdout).expect("JSON on standard output");
    assert_eq!(told, json!({"run": 3, "offset": 7, "text": "end\n"}));
}

#[tokio::test]
async fn a_log_that_is_gone_is_missing_whether_or_not_it_is_followed() {
    for run_number in [0, 2] {
        let fake = Fake::start(move |asked| {
            if asked.target.contains("/logs") {
                return Reply::json(404, &json!({"error": "Log 'o-1/2' not found"}));
            }
            status("cancelled", &json!({"run_number": run_number}))
        })
        .await;
        for arguments in [&["logs", "o-1"][..], &["logs", "-f", "o-1"]] {
            let ran = run(&fake.url(), arguments).await;
            assert_eq!(
                (ran.code, ran.stderr.as_str()),
                (
                    Some(3),
                    "error: nothing is kept of what instance \"o-1\" wrote\n"
                ),
                "{arguments:?}"
            );
        }
    }
}

#[tokio::test]
async fn events_are_followed_until_the_end() {
    let fake = Fake::start(|asked| {
        if !asked.target.contains("/events") {
            return status("completed", &json!({}));
        }
        let event =
            json!({"id": 1, "instance_id": "o-1", "event_type": "completed", "created_at_ms": 0});
        Reply::json(
            200,
            &json!({"events": [event], "total_count": 1, "limit": 500, "offset": 0}),
        )
    })
    .await;
    let ran = run(&fake.url(), &["events", "-f", "o-1"]).await;
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "1970-01-01 00:00:00Z      1  completed\n")
    );
    let ran = run(&fake.url(), &["events", "-f", "o-1", "--json"]).await;
    assert_eq!(
        serde_json::from_str::<Value>(&ran.stdout).unwrap()["event_type"],
        "completed"
    );
}

#[tokio::test]
async fn a_stop_waits_for_a_long_grace_and_tells_how_it_ended() {
    let leaving = json!({"success": true, "status": "running", "process_gone": false});
    for (end, told) in [
        ("cancelled", "stopped"),
        ("completed", "completed"),
        ("failed", "failed"),
    ] {
        let looks = AtomicUsize::new(0);
        let leaving = leaving.clone();
        let fake = Fake::start(move |asked| {
            if asked.method == "POST" {
                return Reply::json(200, &leaving);
            }
            match looks.fetch_add(1, Ordering::Relaxed) {
                0 => status("running", &json!({})),
                1 => Reply::json(503, &json!({"error": "no database"})),
                _ => status(end, &json!({})),
            }
        })
        .await;
        let ran = run(&fake.url(), &["stop", "o-1", "--grace", "1m"]).await;
        assert_eq!(
            (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
            (Some(0), format!("o-1 {told}\n").as_str(), "")
        );
        assert_eq!(fake.lines().len(), 4, "{:?}", fake.lines());
    }
}

#[tokio::test]
async fn a_stop_whose_process_does_not_leave_says_so() {
    let fake = Fake::start(|asked| match asked.method.as_str() {
        "POST" => Reply::json(
            200,
            &json!({"success": true, "status": "running", "process_gone": false}),
        ),
        _ => status("running", &json!({})),
    })
    .await;
    let ran = run(&fake.url(), &["stop", "o-1", "--grace", "0"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(124), ""), "{ran:?}");
    assert!(
        ran.stderr
            .contains("instance \"o-1\" had not ended after 8s, it is running"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn a_stop_tells_a_script_what_the_server_said() {
    let fake = Fake::replies([Reply::json(
        200,
        &json!({"success": true, "status": "completed", "process_gone": true}),
    )])
    .await;
    let ran = run(&fake.url(), &["stop", "o-1", "--grace", "500ms", "--json"]).await;
    let told: Value = serde_json::from_str(&ran.stdout).expect("JSON on standard output");
    assert_eq!(
        told,
        json!({"id": "o-1", "done": "completed", "status": "completed", "process_gone": true})
    );
    assert_eq!(fake.asked()[0].json()["grace_period_seconds"], 1);
}
