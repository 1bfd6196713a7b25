//! Sleeps and waits for signals.

use std::time::{Duration, Instant};

use runtara_sdk::{Error, Settings};
use serde_json::{Value, json};

use crate::fake::Fake;

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn a_short_sleep_is_held_to_its_end() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let begun = Instant::now();
    instance
        .sleep("nap", Duration::from_millis(50))
        .await
        .unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(49));
    let call = &fake.calls("sleep")[0];
    assert_eq!(call["checkpoint_id"], "nap");
    assert_eq!(call["park"], true);
    assert!(call["duration_ms"].as_u64().unwrap() <= 50);
}

#[tokio::test]
async fn a_later_run_owes_the_remainder_only() {
    let fake = Fake::start().await;
    {
        let instance = fake.run().await;
        let asleep = instance.sleep("parcel", LONG);
        tokio::select! {
            _ = asleep => panic!("it must be parked"),
            () = fake.until("the sleep", |state| state.calls("sleep").len() == 1) => {}
        }
    }
    let until = fake.state().saved("parcel").unwrap();
    // As if most of an hour had passed.
    let nearly = until["until_ms"].as_i64().unwrap() - 3_600_000 + 40;
    let state = json!({"until_ms": nearly}).to_string().into_bytes();
    fake.state()
        .checkpoints
        .insert("parcel".to_owned(), (state, None));
    let instance = fake.run().await;
    instance.sleep("parcel", LONG).await.unwrap();
    assert!(fake.calls("sleep")[1]["duration_ms"].as_u64().unwrap() <= 40);
}

#[tokio::test]
async fn each_use_of_a_name_is_a_sleep_of_its_own_and_replays_as_such() {
    let fake = Fake::start().await;
    for uses in [2, 3] {
        let instance = fake.run().await;
        for _ in 0..uses {
            instance
                .sleep("poll", Duration::from_millis(1))
                .await
                .unwrap();
        }
    }
    let ids: Vec<_> = fake.calls("sleep");
    let ids: Vec<_> = ids
        .iter()
        .map(|call| call["checkpoint_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["poll", "poll::2", "poll", "poll::2", "poll::3"]);
}

#[tokio::test]
async fn a_moment_that_has_passed_is_no_sleep() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let past = time::OffsetDateTime::now_utc() - LONG;
    instance.sleep_until("past", past).await.unwrap();
    assert_eq!(fake.calls("sleep")[0]["duration_ms"], 0);
}

#[tokio::test]
async fn a_signal_is_waited_for_once_and_replayed_after_that() {
    let fake = Fake::start().await;
    fake.custom("delivered", br#"{"by": "Ann"}"#);
    for _ in 0..2 {
        let instance = fake.run().await;
        let got: Value = instance.signal("delivered").await.unwrap();
        assert_eq!(got, json!({"by": "Ann"}));
    }
    let waits = fake.calls("signals/wait");
    assert_eq!(waits.len(), 1);
    assert_eq!(waits[0]["signal_id"], "delivered");
    assert_eq!(waits[0]["timeout_ms"], Value::Null);
    assert_eq!(
        fake.state().saved("signal::delivered"),
        Some(json!({"text": r#"{"by": "Ann"}"#}))
    );
}

#[tokio::test]
async fn a_second_wait_is_for_a_second_signal() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    for word in ["one", "two"] {
        fake.custom("word", word.as_bytes());
        assert_eq!(instance.signal::<String>("word").await.unwrap(), word);
    }
}

#[tokio::test]
async fn bytes_that_are_no_text_and_no_payload_at_all_arrive_too() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    fake.custom("raw", &[0xff, 0xfe]);
    assert_eq!(instance.signal::<String>("raw").await.unwrap(), "//4=");
    fake.custom("bare", b"");
    instance.signal::<()>("bare").await.unwrap();
}

#[tokio::test]
async fn a_signal_that_does_not_come_in_time_stays_away_in_the_replay() {
    let fake = Fake::start().await;
    let limit = Duration::from_millis(40);
    let instance = fake.run().await;
    let got: Option<String> = instance.signal_within("late", limit).await.unwrap();
    assert_eq!(got, None);
    fake.custom("late", b"too late");
    let instance = fake.run().await;
    let got: Option<String> = instance.signal_within("late", limit).await.unwrap();
    assert_eq!(got, None);
}

#[tokio::test]
async fn the_time_for_a_signal_counts_from_the_first_run() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    tokio::select! {
        _ = instance.signal_within::<()>("go", LONG) => panic!("it must be parked"),
        () = fake.until("the wait", |state| state.calls("signals/wait").len() == 1) => {}
    }
    let id = "signal::go::until";
    let until = fake.state().saved(id).unwrap()["until_ms"]
        .as_i64()
        .unwrap();
    let state = json!({"until_ms": until - 3_600_000 + 40})
        .to_string()
        .into_bytes();
    fake.state()
        .checkpoints
        .insert(id.to_owned(), (state, None));
    let got = fake
        .run()
        .await
        .signal_within::<()>("go", LONG)
        .await
        .unwrap();
    assert_eq!(got, None);
}

#[tokio::test]
async fn a_signal_that_came_with_a_checkpoint_of_its_name_is_not_lost() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    instance.checkpoint("same", || async {}).await.unwrap();
    fake.custom("same", b"hello");
    instance.checkpoint("same", || async {}).await.unwrap();
    assert_eq!(instance.signal::<String>("same").await.unwrap(), "hello");
}

#[tokio::test]
async fn a_server_that_answers_too_early_is_asked_again_but_not_at_full_speed() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let early = || crate::fake::Fault::Answer(200, None, json!({"success": true}));
    for _ in 0..3 {
        fake.fault("sleep", early());
    }
    let begun = Instant::now();
    instance
        .sleep("nap", Duration::from_millis(120))
        .await
        .unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(119));
    let calls = fake.calls("sleep");
    assert_eq!(calls.len(), 4);
    assert_ne!(calls[0]["request_id"], calls[1]["request_id"]);
}

#[tokio::test]
async fn names_that_cannot_work_are_refused_before_any_call() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let asked = fake.state().asked.len();
    let refused = |result: Result<(), Error>| assert!(matches!(result, Err(Error::Name { .. })));
    refused(instance.sleep("", LONG).await);
    refused(instance.signal("a\0b").await);
    refused(instance.checkpoint("signal::x", || async {}).await);
    assert_eq!(fake.state().asked.len(), asked);
    assert!(Settings::new("i", "t", "https://h").is_err());
}
