//! Each way to fail has its exit status.

use serde_json::{Value, json};

use crate::fake::{Fake, Reply};
use crate::{run, shapes};

fn status(word: &str) -> Value {
    shapes::status(word, &json!({"error": "no stock"}))
}

#[tokio::test]
async fn every_verb_tells_a_script_how_it_went() {
    let fine = json!({"success": true});
    let refused = json!({"success": false, "error": "it is completed"});
    let unknown = json!({"found": false, "instance_id": "o-1"});
    let not_found = json!({"success": false, "error": "Instance 'o-1' not found"});
    for (arguments, reply, code) in [
        ("stop o-1", Reply::json(200, &fine), 0),
        (
            "stop o-1",
            Reply::json(
                200,
                &json!({"success": true, "status": "cancelled", "process_gone": true}),
            ),
            0,
        ),
        ("stop o-1", Reply::json(200, &refused), 1),
        ("stop o-1", Reply::json(200, &not_found), 3),
        ("pause o-1", Reply::json(200, &fine), 0),
        ("pause o-1", Reply::json(409, &refused), 1),
        ("cancel o-1", Reply::json(404, &not_found), 3),
        ("resume o-1", Reply::json(200, &refused), 1),
        ("resume o-1 o-2", Reply::json(200, &not_found), 3),
        ("signal o-1 go", Reply::json(404, &json!({})), 3),
        ("rm o-1", Reply::json(200, &fine), 0),
        (
            "rm o-1",
            Reply::json(409, &json!({"error": "it has not ended"})),
            1,
        ),
        ("rm o-1", Reply::json(404, &json!({})), 3),
        ("show o-1", Reply::json(200, &status("failed")), 0),
        ("show o-1", Reply::json(200, &unknown), 3),
        ("show o-1", Reply::text(200, "<html>"), 1),
        ("show o-1", Reply::cut(), 4),
        ("events o-1", Reply::json(200, &unknown), 3),
        ("checkpoints o-1", Reply::json(200, &unknown), 3),
        ("logs o-1", Reply::json(404, &json!({})), 3),
        ("wait o-1", Reply::json(200, &status("completed")), 0),
        ("wait o-1", Reply::json(200, &status("failed")), 1),
        ("wait o-1", Reply::json(200, &status("cancelled")), 1),
        ("wait o-1", Reply::json(200, &unknown), 3),
        (
            "wait o-1 --timeout 10ms",
            Reply::json(200, &status("running")),
            124,
        ),
        ("image show x", Reply::json(404, &json!({})), 1),
        ("ps", Reply::json(503, &json!({"error": "no database"})), 1),
    ] {
        let fake = Fake::replies([reply]).await;
        let arguments: Vec<_> = arguments.split(' ').collect();
        let ran = run(&fake.url(), &arguments).await;
        assert_eq!(ran.code, Some(code), "{arguments:?}: {ran:?}");
        assert_eq!(
            ran.stderr.contains("error: "),
            code != 0,
            "{arguments:?}: {ran:?}"
        );
    }
}

#[tokio::test]
async fn usage_is_status_2() {
    for arguments in [
        &["start"][..],
        &["ps", "--status", "asleep"],
        &["--server", "https://x", "ps"],
        &["start", "--image", "x", "--input", "{"],
        &["image", "push", "/does/not/exist"],
        &["show", ""],
    ] {
        let ran = run("127.0.0.1:1", arguments).await;
        assert_eq!(ran.code, Some(2), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.starts_with("error: "), "{arguments:?}: {ran:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_away_is_status_4_and_says_what_to_do() {
    // Bound and dropped: nothing listens there now.
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    for arguments in [
        &["ps"][..],
        &["wait", "o-1"],
        &["logs", "-f", "o-1"],
        &["rm", "a", "b"],
        &["start", "--image", "x"],
    ] {
        let ran = run(&address, arguments).await;
        assert_eq!(ran.code, Some(4), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains("Connection refused"), "{ran:?}");
        assert!(
            ran.stderr
                .contains("hint: `runtara-environment dev` starts a server here"),
            "{ran:?}"
        );
    }
    let ran = run(&address, &["doctor"]).await;
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(
        ran.stdout.contains("server")
            && ran.stdout.contains("missing")
            && ran.stdout.contains("runtara-environment doctor"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn for_scripts_errors_are_json_too() {
    let fake = Fake::replies([Reply::json(
        409,
        &json!({"error": "it runs", "code": "NOT_ENDED"}),
    )])
    .await;
    let ran = run(&fake.url(), &["--json", "rm", "o-1"]).await;
    let told: Value = serde_json::from_str(&ran.stderr).expect("JSON on standard error");
    assert_eq!(
        told,
        json!({"error": "it runs (NOT_ENDED)", "code": "NOT_ENDED"})
    );
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
}

#[tokio::test]
async fn one_of_several_that_fails_does_not_hold_the_others() {
    let fake = Fake::start(|asked| match asked.target.as_str() {
        "/api/v1/instances/b" => Reply::json(409, &json!({"error": "it runs"})),
        _ => Reply::json(200, &json!({"success": true})),
    })
    .await;
    let ran = run(&fake.url(), &["rm", "a", "b", "c"]).await;
    assert_eq!(ran.stdout, "a removed\nc removed\n");
    assert_eq!(
        ran.stderr,
        "error: b: it runs (409)\nerror: 1 of 3 failed\n"
    );
    assert_eq!(ran.code, Some(1));
    let ran = run(&fake.url(), &["--json", "rm", "a", "b", "c"]).await;
    let told: Vec<Value> = ran
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON on standard error"))
        .collect();
    assert_eq!(
        told,
        [
            json!({"id": "b", "error": "it runs (409)", "code": "409"}),
            json!({"error": "1 of 3 failed", "code": "SEVERAL"})
        ]
    );
}
