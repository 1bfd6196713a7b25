//! What was answered is there after a power failure, which takes what was not flushed.

use std::path::Path;

use bytes::Bytes;
use runtara_domain::{Change, InstanceId, NewEvent, SignalId, Word};
use runtara_store::sqlite::SqliteStore;
use runtara_store::{
    CheckpointFilter, EventFilter, InstanceFilter, InstanceOrder, PageRequest, Purge, Store,
};

use super::support::{caller, claim, image, open, save, start, tenant};

const INSTANCES: usize = 12;

/// Copies what SQLite has written: of the files of a database those that it may lose the end of.
fn copy_what_sqlite_has(from: &Path, to: &Path) {
    for name in ["a.db", "a.db-wal"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

/// Writes of all kinds, by twelve instances.
async fn work(store: &SqliteStore, round: usize) {
    for number in 0..INSTANCES {
        let id = format!("i-{round}-{number}");
        store.start_instance(start(&id)).await.unwrap();
    }
    for (number, run) in claim(store, INSTANCES).await.iter().enumerate() {
        let me = caller(run);
        store.register_instance(&me, &tenant(), None).await.unwrap();
        for step in 0..=number {
            let name = format!("c-{step}");
            let state = Bytes::from(name.clone());
            store
                .save_checkpoint(&me, save(&name, state))
                .await
                .unwrap();
        }
        let event = NewEvent::custom(Some("noted".to_owned()), None, Some(Bytes::from("x")));
        store.record_event(&me, event, None).await.unwrap();
        let signal = SignalId::new("go").unwrap();
        let id = &run.instance_id;
        store.send_signal(id, &signal, None).await.unwrap();
        if number % 3 == 0 {
            store.take_signal(&me, &signal, None).await.unwrap();
        }
        if number % 2 == 0 {
            let output = Some(Bytes::from("1"));
            store
                .say(&me, Word::Completed { output }, false)
                .await
                .unwrap();
            let exit = Change::Exit {
                run_number: run.run_number,
                exit: runtara_domain::RunExit::lost(),
                our_fault: false,
            };
            store.change(id, exit).await.unwrap();
        }
        if number % 4 == 0 {
            assert_eq!(store.purge_instance(id).await.unwrap(), Purge::Purged);
        }
    }
}

/// All that a store tells of the instances.
async fn told(store: &SqliteStore, rounds: usize) -> Vec<String> {
    let mut told = Vec::new();
    let first = PageRequest::first(100);
    let filter = InstanceFilter::default();
    let (of_checkpoints, of_events) = (CheckpointFilter::default(), EventFilter::default());
    let list = store.list_instances(&filter, InstanceOrder::CreatedAscending, &first);
    told.push(format!("{:?}", list.await.unwrap()));
    for number in (0..rounds).flat_map(|round| (0..INSTANCES).map(move |at| (round, at))) {
        let id = InstanceId::new(format!("i-{}-{}", number.0, number.1)).unwrap();
        let record = store.instance(&id).await.unwrap().map(|it| it.state);
        told.push(format!("{record:?}"));
        let checkpoints = store.list_checkpoints(&id, &of_checkpoints, &first);
        told.push(format!("{:?}", checkpoints.await.unwrap()));
        let events = store.list_events(&id, &of_events, &first);
        told.push(format!("{:?}", events.await.unwrap()));
        told.push(format!("{:?}", store.instance_values(&id).await.unwrap()));
    }
    told
}

/// The worst that may come: of what SQLite has written since it flushed last nothing is there, or a part; the redo log is whole.
#[tokio::test]
async fn what_sqlite_has_not_flushed_comes_back_from_the_redo_log() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory.path().join("a.db")).await;
    store.register_image(image()).await.unwrap();
    let mut snapshots = Vec::new();
    for round in 0..4 {
        // Whoever looks has SQLite commit; its commits are not flushed.
        let _looked = told(&store, round).await;
        let snapshot = tempfile::tempdir().unwrap();
        copy_what_sqlite_has(directory.path(), snapshot.path());
        snapshots.push(snapshot);
        work(&store, round).await;
    }
    let before = told(&store, 4).await;
    assert!(before[0].contains("i-3-11"), "{}", before[0]);
    for (number, snapshot) in snapshots.iter().enumerate() {
        std::fs::copy(
            directory.path().join("a.db.redo"),
            snapshot.path().join("a.db.redo"),
        )
        .unwrap();
        let restored = open(&snapshot.path().join("a.db")).await;
        assert_eq!(told(&restored, 4).await, before, "snapshot {number}");
        // And it goes on.
        work(&restored, 4).await;
        restored.close().await;
        assert!(!snapshot.path().join("a.db.redo").exists());
        let again = open(&snapshot.path().join("a.db")).await;
        assert!(
            again
                .instance(&InstanceId::new("i-4-11").unwrap())
                .await
                .unwrap()
                .is_some()
        );
    }
}
