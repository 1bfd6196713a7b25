//! One process at a time, and nobody else's file.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use runtara_store::Store as _;
use runtara_store::sqlite::{SqliteOptions, SqliteStore};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use super::support::{image, open, start, tenant};

const PATH: &str = "RUNTARA_TEST_LOCKED_DATABASE";

/// What a second process does; it says how that ended.
#[tokio::test]
#[ignore = "run in a process of its own by the test below"]
async fn second_process() {
    let Some(path) = std::env::var_os(PATH) else {
        return;
    };
    match SqliteStore::open(SqliteOptions::at(path)).await {
        Ok(_) => println!("opened"),
        Err(error) => println!("refused: {error}"),
    }
}

fn open_in_second_process(path: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "sqlite::lock::second_process",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(PATH, path)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_second_process_is_told_who_has_the_database() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let store = open(&path).await;
    let said = open_in_second_process(&path);
    assert!(said.contains("refused: "), "{said}");
    assert!(
        said.contains(&format!("process {}", std::process::id())),
        "{said}"
    );
    assert!(said.contains(&format!("{}.lock", path.display())), "{said}");
    assert!(
        SqliteStore::open(SqliteOptions::at(&path)).await.is_err(),
        "the same process too"
    );
    store.close().await;
    let said = open_in_second_process(&path);
    assert!(said.contains("opened"), "{said}");
}

#[tokio::test]
async fn a_database_of_another_program_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("other.db");
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true);
    let mut other = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("create table instances (id text)")
        .execute(&mut other)
        .await
        .unwrap();
    let refused = SqliteStore::open(SqliteOptions::at(&path)).await;
    let refused = refused.err().unwrap().to_string();
    assert!(
        refused.contains("another program") && refused.contains("instances"),
        "{refused}"
    );
    let tables: i64 = sqlx::query_scalar("select count(*) from sqlite_schema")
        .fetch_one(&mut other)
        .await
        .unwrap();
    assert_eq!(tables, 1);
}

#[tokio::test]
async fn nobody_else_may_read_the_files() {
    let directory = tempfile::tempdir().unwrap();
    let parent = directory.path().join("made");
    let store = open(&parent.join("a.db")).await;
    store.register_image(image()).await.unwrap();
    assert!(
        store
            .image_by_name(&tenant(), &image().name)
            .await
            .unwrap()
            .is_some()
    );
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&parent), 0o700);
    for name in ["a.db", "a.db-wal", "a.db-shm", "a.db.lock"] {
        assert_eq!(mode(&parent.join(name)), 0o600, "{name}");
    }
}

#[tokio::test]
async fn a_database_is_the_same_when_it_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let store = open(&path).await;
    let id = store.database_id().await.unwrap();
    store.register_image(image()).await.unwrap();
    store.start_instance(start("one")).await.unwrap();
    store.close().await;
    assert!(
        !directory.path().join("a.db-wal").exists(),
        "the log is carried over"
    );
    let store = open(&path).await;
    assert_eq!(store.database_id().await.unwrap(), id);
    let one = start("one").instance_id;
    assert!(store.instance(&one).await.unwrap().is_some());
}
