//! What was answered is there, however the process ends.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;

use runtara_domain::{CheckpointId, InstanceId};
use runtara_store::sqlite::SqliteStore;
use runtara_store::{CheckpointFilter, PageRequest, Store};

use super::support::{caller, claim, image, open, save, start};

const PATH: &str = "RUNTARA_TEST_CRASHING_DATABASE";
const WRITERS: usize = 16;

/// What the process does that is killed: it saves and says what was answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run in a process of its own by the test below"]
async fn writes_until_killed() {
    let Some(path) = std::env::var_os(PATH) else {
        return;
    };
    let store = Arc::new(open(path.as_ref()).await);
    store.register_image(image()).await.unwrap();
    let life = store.database_id().await.unwrap();
    for number in 0..WRITERS {
        let id = format!("{}-{number}-{life}", std::process::id());
        store.start_instance(start(&id)).await.unwrap();
    }
    let writers = claim(&*store, WRITERS).await.into_iter().map(|run| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for number in 0.. {
                let name = format!("c-{number}");
                store
                    .save_checkpoint(&caller(&run), save(&name, name.clone()))
                    .await
                    .unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "saved {} {name}", run.instance_id).unwrap();
                out.flush().unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

/// Lets a process write, kills it in the middle, and gives what it was answered: how many checkpoints of each instance.
fn write_and_kill(path: &std::path::Path, after: usize) -> BTreeMap<String, u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "sqlite::crash::writes_until_killed",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(PATH, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut saved = BTreeMap::new();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = 0;
    for line in lines {
        let Ok(line) = line else { break };
        let mut words = line.split(' ');
        if words.next() == Some("saved") && line.contains(" c-") {
            *saved.entry(words.next().unwrap().to_owned()).or_insert(0) += 1;
            seen += 1;
            if seen == after {
                child.kill().unwrap();
            }
        }
    }
    child.wait().unwrap();
    saved
}

async fn check(store: &SqliteStore, saved: &BTreeMap<String, u64>) {
    for (id, answered) in saved {
        let id = InstanceId::new(id).unwrap();
        let page = PageRequest::first(1);
        let kept = store
            .list_checkpoints(&id, &CheckpointFilter::default(), &page)
            .await
            .unwrap();
        let kept = kept.total.count;
        // The last line may have been cut off, and one more may have been durable but not answered.
        assert!(kept >= *answered, "{id}: {kept} of {answered} are there");
        for number in 0..kept {
            let name = CheckpointId::new(format!("c-{number}")).unwrap();
            let found = store.checkpoint(&id, &name).await.unwrap().unwrap();
            assert_eq!(&found.state[..], name.as_str().as_bytes(), "{id}");
        }
    }
}

#[tokio::test]
async fn a_killed_process_leaves_all_that_was_answered() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let mut saved = BTreeMap::new();
    for after in [50, 333, 700] {
        saved.extend(write_and_kill(&path, after));
    }
    assert!(saved.values().sum::<u64>() >= 1_083, "{saved:?}");
    let store = open(&path).await;
    check(&store, &saved).await;
    let sound: String = {
        store.close().await;
        use sqlx::Connection as _;
        let url = format!("sqlite:{}", path.display());
        let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
        sqlx::query_scalar("pragma integrity_check")
            .fetch_one(&mut connection)
            .await
            .unwrap()
    };
    assert_eq!(sound, "ok");
}
