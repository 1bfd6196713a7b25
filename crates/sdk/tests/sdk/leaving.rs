//! Cancel and pause.

use std::process::ExitCode;
use std::time::Duration;

use runtara_sdk::{Error, Instance, drive_with};
use serde_json::json;

use crate::fake::Fake;

#[tokio::test]
async fn a_cancel_is_obeyed_before_the_next_step() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    fake.signal("cancel");
    let body = || async { panic!("the step must not run") };
    let error = instance
        .checkpoint::<(), _, _>("a", body)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(
        fake.calls("signals/ack"),
        [json!({"signal_type": "cancel"})]
    );
    assert!(fake.calls("suspended").is_empty());
}

#[tokio::test]
async fn a_pause_that_comes_during_a_step_waits_for_its_end() {
    let fake = Fake::start().await;
    let code = drive_with(fake.settings(), async |instance: Instance| {
        let done: u32 = instance
            .checkpoint("a", || async {
                fake.signal("pause");
                1
            })
            .await?;
        assert_eq!(done, 1);
        instance.checkpoint("b", || async { 2 }).await
    })
    .await;
    assert_eq!(code, ExitCode::SUCCESS);
    assert_eq!(fake.state().saved("a"), Some(json!(1)));
    assert_eq!(fake.state().saved("b"), None);
    let asked: Vec<_> = fake
        .state()
        .asked
        .iter()
        .map(|it| it.what.clone())
        .collect();
    assert_eq!(asked[asked.len() - 2..], ["signals/ack", "suspended"]);
    assert_eq!(fake.calls("signals/ack"), [json!({"signal_type": "pause"})]);
}

#[tokio::test]
async fn a_pause_reaches_a_sleeper_and_one_who_waits_for_a_signal() {
    for signal in [false, true] {
        let fake = Fake::start().await;
        let instance = fake.run().await;
        let wait = async {
            // Held, not parked: something else is at work.
            let mut branches = instance.branches::<(), Error>();
            let waiting = instance.clone();
            branches.add(async move {
                if signal {
                    return waiting.signal("go").await;
                }
                waiting.sleep("long", Duration::from_secs(3600)).await
            });
            branches.add(std::future::pending());
            branches.finish().await
        };
        let pause = async {
            let what = if signal { "signals/wait" } else { "sleep" };
            fake.until("the wait", |state| state.calls(what).len() == 1)
                .await;
            fake.signal("pause");
            let asked = |state: &crate::fake::State| !state.calls("signals").is_empty();
            fake.until("the look for the signal", asked).await;
        };
        tokio::select! {
            result = wait => panic!("a branch is still at work: {result:?}"),
            () = pause => {}
        }
        assert!(matches!(instance.poll().await, Err(Error::Suspended)));
        assert_eq!(fake.calls("suspended").len(), 1);
    }
}

#[tokio::test]
async fn who_swallows_the_error_gets_it_again_and_completes_nothing() {
    let fake = Fake::start().await;
    let code = drive_with(fake.settings(), async |instance: Instance| {
        fake.signal("cancel");
        assert!(instance.poll().await.is_err());
        assert!(instance.sleep("s", Duration::ZERO).await.is_err());
        Ok::<_, Error>("all is well")
    })
    .await;
    assert_eq!(code, ExitCode::SUCCESS);
    assert!(fake.calls("completed").is_empty());
    assert_eq!(fake.calls("signals/ack").len(), 1);
}
