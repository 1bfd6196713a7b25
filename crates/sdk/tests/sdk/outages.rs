//! A server that is away, overloaded, or gone over to another run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use runtara_sdk::{Error, Instance, drive_with};
use serde_json::{Value, json};

use crate::fake::{Fake, Fault, SECRET};

#[tokio::test]
async fn calls_get_through_cut_connections_and_a_server_that_is_away() {
    let fake = Fake::start().await;
    let away = || Fault::Answer(503, None, json!({"error": "starting"}));
    fake.fault("register", Fault::Cut);
    fake.fault("register", away());
    let instance = fake.run().await;
    fake.fault("checkpoint", Fault::Cut);
    for status in [502, 503, 504] {
        fake.fault("checkpoint", Fault::Answer(status, None, Value::Null));
    }
    let value: u32 = instance.checkpoint("a", || async { 1 }).await.unwrap();
    assert_eq!(value, 1);
    assert_eq!(fake.calls("register").len(), 3);
}

#[tokio::test]
async fn a_call_whose_answer_was_lost_is_repeated_with_the_same_id() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let _: u32 = instance
        .checkpoint("a", || async {
            fake.fault("checkpoint", Fault::CutAfter);
            1
        })
        .await
        .unwrap();
    let calls = fake.calls("checkpoint");
    // The look, the save, the save again.
    assert_eq!(calls.len(), 3);
    assert_eq!(calls[1], calls[2]);
    assert!(
        calls[1]["request_id"]
            .as_str()
            .is_some_and(|id| id.len() == 32)
    );
}

#[tokio::test]
async fn a_pause_that_the_server_asks_for_is_kept() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    fake.fault("events", Fault::Answer(429, Some("1"), Value::Null));
    let begun = Instant::now();
    instance.heartbeat().await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn it_gives_up_at_the_deadline_and_keeps_the_secret() {
    let fake = Fake::start().await;
    let settings = fake.settings().retry_deadline(Duration::from_millis(300));
    drop(fake);
    let error = Instance::connect(settings).await.unwrap_err();
    let Error::Unreachable { tried_for, .. } = &error else {
        panic!("{error}");
    };
    assert!(*tried_for < Duration::from_secs(10), "{tried_for:?}");
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(text.contains("/r/<redacted>"), "{text}");
        assert!(!text.contains(SECRET), "{text}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_asked_again_after_the_time_out() {
    let fake = Fake::start().await;
    let settings = fake.settings().request_timeout(Duration::from_millis(100));
    let instance = Instance::connect(settings).await.unwrap();
    // A held sleep outlasts the time-out of one attempt: asked again, it is the same sleep.
    instance
        .sleep("nap", Duration::from_millis(250))
        .await
        .unwrap();
    let calls = fake.calls("sleep");
    assert!(calls.len() >= 2, "{calls:?}");
    assert_eq!(calls[0]["request_id"], calls[1]["request_id"]);
}

#[tokio::test]
async fn an_endless_answer_is_not_read_to_its_end() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    fake.fault("input", Fault::Endless);
    let error = instance.input::<Value>().await.unwrap_err();
    assert!(matches!(error, Error::Answer { .. }), "{error}");
}

#[tokio::test]
async fn a_refusal_says_what_the_server_said_without_the_secret() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let body = json!({"error": format!("/r/{SECRET}/api is wrong"), "code": "INVALID"});
    fake.fault("input", Fault::Answer(400, None, body));
    let error = instance.input::<Value>().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "GET /api/v1/instances/order-17/input was refused with 400 INVALID: /r/<redacted>/api is wrong"
    );
    assert!(!format!("{instance:?}").contains(SECRET));
}

#[tokio::test]
async fn a_run_that_was_superseded_touches_nothing_any_more() {
    for (code, quiet) in [
        ("RUN_SUPERSEDED", "Superseded"),
        ("INSTANCE_ENDED", "Ended"),
    ] {
        let fake = Fake::start().await;
        let instance = fake.run().await;
        fake.fault(
            "checkpoint",
            Fault::Answer(409, None, json!({"code": code})),
        );
        let body = || async { panic!("the step must not run") };
        let error = instance
            .checkpoint::<(), _, _>("a", body)
            .await
            .unwrap_err();
        assert!(error.ends_run());
        assert_eq!(format!("{error:?}"), quiet);
        let asked = fake.state().asked.len();
        assert!(
            instance
                .checkpoint("b", || async {})
                .await
                .unwrap_err()
                .ends_run()
        );
        assert!(instance.complete(&1).await.unwrap_err().ends_run());
        assert_eq!(fake.state().asked.len(), asked);
    }
}

#[tokio::test]
async fn a_program_leaves_quietly_when_another_run_took_over() {
    let fake = Fake::start().await;
    let taken = Fault::Answer(409, None, json!({"code": "RUN_SUPERSEDED"}));
    fake.fault("checkpoint", taken);
    let code = drive_with(fake.settings(), |instance: Instance| async move {
        instance.checkpoint("a", || async {}).await
    })
    .await;
    assert_eq!(code, ExitCode::SUCCESS);
    assert!(fake.calls("failed").is_empty());
}

#[tokio::test]
async fn a_fault_of_the_server_is_no_failure_of_the_instance() {
    let fake = Fake::start().await;
    let broken = Fault::Answer(500, None, json!({"error": "internal error"}));
    fake.fault("checkpoint", broken);
    let code = drive_with(fake.settings(), |instance: Instance| async move {
        // Wrapped beyond recognition, as applications do.
        let result = instance.checkpoint("a", || async {}).await;
        result.map_err(|error| std::io::Error::other(error.to_string()))
    })
    .await;
    assert_eq!(code, ExitCode::from(75));
    assert!(fake.calls("failed").is_empty());
}
