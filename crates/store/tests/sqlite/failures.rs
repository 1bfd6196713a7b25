//! What fails, fails alone, and the store goes on.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use runtara_store::sqlite::{SqliteOptions, SqliteStore};
use runtara_store::{CheckpointFilter, ClaimedRun, PageRequest, Store, StoreError};

use super::support::{caller, claim, image, open, save, start};

async fn runs(store: &SqliteStore, how_many: usize) -> Vec<ClaimedRun> {
    store.register_image(image()).await.unwrap();
    for number in 0..how_many {
        store
            .start_instance(start(&format!("i-{number}")))
            .await
            .unwrap();
    }
    claim(store, how_many).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_and_ends_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let options = SqliteOptions::at(&path).max_pages(600);
    let store = Arc::new(SqliteStore::open(options).await.unwrap());
    let runs = runs(&store, 8).await;
    let savers: Vec<_> = runs
        .iter()
        .map(|run| {
            let (store, me) = (Arc::clone(&store), caller(run));
            tokio::spawn(async move {
                for number in 0..1_000_usize {
                    let state = Bytes::from(vec![7; 64 * 1024]);
                    match store
                        .save_checkpoint(&me, save(&format!("c-{number}"), state))
                        .await
                    {
                        Ok(_) => {}
                        Err(StoreError::Unavailable { .. }) => return number,
                        Err(other) => panic!("{other:?}"),
                    }
                }
                panic!("60 MiB were stored in 600 pages");
            })
        })
        .collect();
    let mut saved = Vec::new();
    for saver in savers {
        saved.push(saver.await.unwrap());
    }
    assert!(saved.iter().sum::<usize>() > 10, "{saved:?}");
    for run in &runs {
        store.heartbeat(&caller(run)).await.unwrap_or_else(|error| {
            assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
        });
        store.poll_signal(&caller(run)).await.unwrap();
    }
    let listed = |store: Arc<SqliteStore>| async move {
        let mut listed = Vec::new();
        for number in 0..8 {
            let id = start(&format!("i-{number}")).instance_id;
            let page = store
                .list_checkpoints(&id, &CheckpointFilter::default(), &PageRequest::first(0))
                .await
                .unwrap();
            listed.push(page.total.count as usize);
        }
        listed
    };
    let by_id = {
        let mut pairs: Vec<_> = runs.iter().zip(&saved).collect();
        pairs.sort_by_key(|(run, _)| run.instance_id.clone());
        pairs
            .into_iter()
            .map(|(_, saved)| *saved)
            .collect::<Vec<_>>()
    };
    assert_eq!(listed(Arc::clone(&store)).await, by_id);
    store.close().await;
    let store = Arc::new(open(&path).await);
    assert_eq!(listed(Arc::clone(&store)).await, by_id);
    let me = caller(&runs[0]);
    store
        .save_checkpoint(&me, save("room", "again"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_request_that_is_refused_takes_no_other_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&directory.path().join("a.db")).await);
    let runs = runs(&store, 1).await;
    let (me, mut stranger) = (caller(&runs[0]), caller(&runs[0]));
    stranger.instance_id = start("nobody").instance_id;
    let (first, refused, second) = tokio::join!(
        store.save_checkpoint(&me, save("one", "1")),
        store.save_checkpoint(&stranger, save("two", "2")),
        store.save_checkpoint(&me, save("three", "3")),
    );
    assert!(first.is_ok() && second.is_ok());
    assert!(
        matches!(refused, Err(StoreError::Refused(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn what_was_queued_is_carried_out_though_nobody_waits() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory.path().join("a.db")).await;
    let runs = runs(&store, 1).await;
    let me = caller(&runs[0]);
    for number in 0..50 {
        let saving = store.save_checkpoint(&me, save(&format!("c-{number}"), "x"));
        tokio::select! {
            biased;
            _ = saving => {}
            // Polled once, so it is queued; then nobody waits for it.
            () = std::future::ready(()) => {}
        }
    }
    let id = &runs[0].instance_id;
    store.close().await;
    let store = open(&directory.path().join("a.db")).await;
    let page = PageRequest::first(0);
    let kept = store
        .list_checkpoints(id, &CheckpointFilter::default(), &page)
        .await
        .unwrap();
    assert_eq!(kept.total.count, 50);
}

#[tokio::test]
async fn a_damaged_file_is_called_broken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let store = open(&path).await;
    let _runs = runs(&store, 3).await;
    store.close().await;
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(4096)).unwrap();
    file.write_all(&vec![0xa5; (length - 4096) as usize])
        .unwrap();
    let opened = SqliteStore::open(SqliteOptions::at(&path)).await;
    let answer = match opened {
        Err(error) => error,
        Ok(store) => store.start_instance(start("i-9")).await.unwrap_err(),
    };
    assert!(matches!(answer, StoreError::Broken { .. }), "{answer:?}");
}
