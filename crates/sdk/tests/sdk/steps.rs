//! Steps, input, words, events.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use runtara_sdk::{Error, Instance, Retries, drive_with};
use serde_json::{Value, json};

use crate::fake::Fake;

fn text(value: &Value) -> Value {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().expect("base64"));
    serde_json::from_slice(&bytes.expect("base64")).expect("JSON")
}

#[tokio::test]
async fn a_step_is_done_once_and_replayed_after_that() {
    let fake = Fake::start().await;
    let bodies = AtomicU32::new(0);
    let step = || async {
        bodies.fetch_add(1, Ordering::Relaxed);
        "stocked".to_owned()
    };
    for run in 1..=2 {
        let instance = fake.run().await;
        let value: String = instance.checkpoint("reserve", step).await.unwrap();
        assert_eq!(value, "stocked", "run {run}");
    }
    assert_eq!(bodies.load(Ordering::Relaxed), 1);
    let register = &fake.calls("register")[0];
    assert_eq!(
        register,
        &json!({"tenant_id": "acme", "checkpoint_id": null})
    );
    let asked = fake.state().asked[0].clone();
    assert_eq!(asked.instance_header.as_deref(), Some("order-17"));
    assert!(asked.target.starts_with("/r/"), "{}", asked.target);
}

#[tokio::test]
async fn who_saves_second_gets_what_was_saved_first() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let value: u32 = instance
        .checkpoint("dice", || async {
            let other = fake.run().await;
            other.checkpoint("dice", || async { 6 }).await.unwrap();
            1
        })
        .await
        .unwrap();
    assert_eq!(value, 6);
    assert_eq!(fake.state().saved("dice"), Some(json!(6)));
}

#[tokio::test]
async fn a_failed_step_saves_nothing_and_says_why() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let result: Result<u32, Error> = instance
        .try_checkpoint("parse", || async { "x".parse::<u32>() })
        .await;
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "step 'parse' failed");
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(fake.state().saved("parse"), None);
}

#[tokio::test]
async fn a_step_is_tried_again_and_each_attempt_recorded() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let mut attempts = 0;
    let retries = Retries::new(3)
        .first_pause(Duration::from_millis(1))
        .longest_pause(Duration::from_millis(1));
    let value: u32 = instance
        .retry("charge", retries, || {
            attempts += 1;
            let text = if attempts < 3 { "declined" } else { "7" };
            async move { text.parse::<u32>() }
        })
        .await
        .unwrap();
    assert_eq!((value, attempts), (7, 3));
    let recorded: Vec<_> = fake
        .calls("retry")
        .iter()
        .map(|call| (call["checkpoint_id"].clone(), call["attempt"].clone()))
        .collect();
    assert_eq!(
        recorded,
        [(json!("charge"), json!(2)), (json!("charge"), json!(3))]
    );

    let result: Result<u32, _> = instance
        .retry("again", retries, || async { "declined".parse::<u32>() })
        .await;
    assert!(matches!(result, Err(Error::Step { .. })), "{result:?}");
    assert_eq!(fake.calls("retry").len(), 4);
}

#[tokio::test]
async fn what_was_saved_as_another_type_is_named() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let _: String = instance
        .checkpoint("n", || async { "text".to_owned() })
        .await
        .unwrap();
    let error = instance.checkpoint("n", || async { 1 }).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "what is saved as 'n' is not of the wanted type"
    );
}

#[tokio::test]
async fn the_input_is_read_and_none_is_null() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    assert_eq!(instance.input::<Option<u32>>().await.unwrap(), None);
    fake.state().input = Some(json!({"order": 17}));
    let input: Value = instance.input().await.unwrap();
    assert_eq!(input, json!({"order": 17}));
    let error = instance.input::<u32>().await.unwrap_err();
    assert!(matches!(error, Error::Decode { .. }), "{error}");
}

#[tokio::test]
async fn events_carry_their_payload_and_an_id_of_their_own() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    instance.progress("half way", 50.0).await.unwrap();
    instance.event("mailed", &json!({"to": "x"})).await.unwrap();
    instance.heartbeat().await.unwrap();
    let events = fake.calls("events");
    assert_eq!(events[0]["subtype"], "progress");
    assert_eq!(
        text(&events[0]["payload"]),
        json!({"message": "half way", "percent": 50.0})
    );
    assert_eq!(text(&events[1]["payload"]), json!({"to": "x"}));
    assert_eq!(events[2]["event_type"], "heartbeat");
    assert_ne!(events[0]["request_id"], events[1]["request_id"]);
}

#[tokio::test]
async fn progress_does_not_go_back_while_steps_are_replayed() {
    let fake = Fake::start().await;
    for run in 1..=2 {
        let instance = fake.run().await;
        for step in 1..=run {
            let name = format!("step {step}");
            instance.checkpoint(&name, || async {}).await.unwrap();
            let percent = f64::from(step) * 10.0;
            instance.progress(&name, percent).await.unwrap();
        }
    }
    let told: Vec<_> = fake.calls("events");
    let told: Vec<_> = told
        .iter()
        .map(|event| text(&event["payload"])["percent"].clone())
        .collect();
    // The second run holds "step 1" back until it is past the replay, and then tells where it stands.
    assert_eq!(told, [json!(10.0), json!(10.0), json!(20.0)]);
}

#[tokio::test]
async fn how_a_workflow_ended_is_said_and_the_exit_code_follows() {
    let fake = Fake::start().await;
    let code = drive_with(fake.settings(), |instance: Instance| async move {
        instance.checkpoint("a", || async { 1 }).await
    })
    .await;
    assert_eq!(code, ExitCode::SUCCESS);
    assert_eq!(text(&fake.calls("completed")[0]["output"]), json!(1));

    let url = fake.url();
    let code = drive_with(fake.settings(), |_| async move {
        Err::<(), _>(std::io::Error::other(format!("no route to {url}")))
    })
    .await;
    assert_eq!(code, ExitCode::FAILURE);
    let said = fake.calls("failed")[0]["error"].clone();
    let said = said.as_str().expect("a text");
    assert!(said.ends_with("/r/<redacted>"), "{said}");
    assert_eq!(fake.calls("completed").len(), 1);
}

#[tokio::test]
async fn a_word_that_was_said_is_not_said_again() {
    let fake = Fake::start().await;
    let code = drive_with(fake.settings(), |instance: Instance| async move {
        instance.complete(&"early").await?;
        Ok::<_, Error>("late")
    })
    .await;
    assert_eq!(code, ExitCode::SUCCESS);
    assert_eq!(fake.calls("completed").len(), 1);
}
