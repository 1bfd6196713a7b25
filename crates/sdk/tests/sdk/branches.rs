//! Branches side by side.

use std::time::Duration;

use runtara_sdk::Error;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::fake::{Fake, State};

const LONG: Duration = Duration::from_secs(3600);
const LONGER: Duration = Duration::from_secs(7200);

/// What the last call about this checkpoint or signal said about parking.
fn parks(state: &State, name: &str) -> Value {
    let calls = state.asked.iter().rev();
    let mut of_name = calls.filter(|asked| {
        asked.body["park"].is_boolean()
            && (asked.body["checkpoint_id"] == name || asked.body["signal_id"] == name)
    });
    of_name
        .next()
        .map_or(Value::Null, |asked| asked.body["park"].clone())
}

#[tokio::test]
async fn results_come_in_the_order_of_the_branches() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let mut branches = instance.branches();
    for (name, millis) in [("a", 60), ("b", 1), ("c", 30)] {
        let instance = &instance;
        branches.add(async move {
            instance.sleep(name, Duration::from_millis(millis)).await?;
            Ok(name)
        });
    }
    let results: Result<Vec<_>, Error> = branches.finish().await;
    assert_eq!(results.unwrap(), ["a", "b", "c"]);
    let none: Result<Vec<()>, Error> = instance.branches().finish().await;
    assert!(none.unwrap().is_empty());
}

#[tokio::test]
async fn a_busy_branch_keeps_the_process_and_a_waiting_one_lets_it_go() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let enough = Notify::new();
    let mut branches = instance.branches::<(), Error>();
    branches.add(instance.sleep("pause", LONG));
    branches.add(async {
        enough.notified().await;
        Ok(())
    });
    let watch = async {
        fake.until("a held sleep", |state| parks(state, "pause") == false)
            .await;
        enough.notify_one();
        fake.until("a parked sleep", |state| parks(state, "pause") == true)
            .await;
    };
    tokio::select! {
        result = branches.finish() => panic!("it must be parked: {result:?}"),
        () = watch => {}
    }
    let calls = fake.calls("sleep");
    assert_eq!(
        calls[0]["request_id"], calls[1]["request_id"],
        "it is the same sleep"
    );
}

#[tokio::test]
async fn when_all_sleep_the_first_to_wake_is_parked() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let mut branches = instance.branches::<(), Error>();
    branches.add(instance.sleep("longer", LONGER));
    branches.add(instance.sleep("long", LONG));
    let watch = fake.until("the order", |state| {
        parks(state, "long") == true && parks(state, "longer") == false
    });
    tokio::select! {
        result = branches.finish() => panic!("it must be parked: {result:?}"),
        () = watch => {}
    }
}

#[tokio::test]
async fn a_signal_is_waited_for_no_longer_than_the_first_sleep() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let mut branches = instance.branches::<(), Error>();
    branches.add(instance.signal("go"));
    branches.add(instance.sleep("long", LONG));
    let watch = fake.until("the order", |state| parks(state, "go") == true);
    tokio::select! {
        result = branches.finish() => panic!("it must be parked: {result:?}"),
        () = watch => {}
    }
    let waits = fake.calls("signals/wait");
    let limit = waits.last().unwrap()["timeout_ms"].as_u64().unwrap();
    assert!((3_590_000..=3_600_000).contains(&limit), "{limit}");
}

#[tokio::test]
async fn a_race_without_branches_waits_for_both() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let race = async {
        tokio::select! {
            result = instance.signal::<()>("go") => result,
            result = instance.sleep("long", LONG) => result,
        }
    };
    let watch = fake.until("the order", |state| {
        let waits = state.calls("signals/wait");
        let limited = waits.last().is_some_and(|wait| wait["timeout_ms"].is_u64());
        limited && parks(state, "go") == true
    });
    tokio::select! {
        result = race => panic!("it must be parked: {result:?}"),
        () = watch => {}
    }
}

#[tokio::test]
async fn a_pause_lets_every_branch_finish_its_step() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let (begun, enough) = (Notify::new(), Notify::new());
    let mut branches = instance.branches::<(), Error>();
    branches.add(async {
        let step = || async {
            begun.notify_one();
            enough.notified().await;
            "done"
        };
        let done: String = instance
            .checkpoint("slow", || async { step().await.to_owned() })
            .await?;
        assert_eq!(done, "done");
        instance.checkpoint("never", || async {}).await
    });
    branches.add(async {
        begun.notified().await;
        fake.signal("pause");
        let result = instance.poll().await;
        assert!(matches!(result, Err(Error::Suspended)));
        assert!(
            fake.calls("signals/ack").is_empty(),
            "too early: nothing is saved after it"
        );
        enough.notify_one();
        result
    });
    let result = branches.finish().await;
    assert!(matches!(result, Err(Error::Suspended)), "{result:?}");
    assert_eq!(fake.state().saved("slow"), Some(json!("done")));
    assert_eq!(fake.state().saved("never"), None);
    assert_eq!(fake.calls("signals/ack").len(), 1);
    assert_eq!(fake.calls("suspended").len(), 1);
}

#[tokio::test]
async fn an_error_ends_the_others() {
    let fake = Fake::start().await;
    let instance = fake.run().await;
    let mut branches = instance.branches::<(), Error>();
    branches.add(instance.sleep("long", LONG));
    branches.add(async {
        instance
            .try_checkpoint("bad", || async { "x".parse::<u8>() })
            .await?;
        Ok(())
    });
    let result = branches.finish().await;
    assert!(matches!(result, Err(Error::Step { .. })), "{result:?}");
    // What was left behind does not hold the next wait.
    tokio::select! {
        result = instance.sleep("after", LONG) => panic!("it must be parked: {result:?}"),
        () = fake.until("the sleep", |state| parks(state, "after") == true) => {}
    }
}
