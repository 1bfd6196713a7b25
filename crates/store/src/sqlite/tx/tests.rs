//! What becomes of batches that fail, are too large, or are cut off.

use std::path::Path;

use crate::ManualClock;
use bytes::Bytes;

use super::super::connect::WriterOptions;
use super::*;

fn options(path: &Path) -> WriterOptions {
    WriterOptions {
        path: path.to_owned(),
        max_pages: None,
    }
}

/// A database with the one table that is written here and that which is noted in.
fn opened(path: &Path) -> Tx {
    let connection = options(path).open().unwrap();
    let mut tables =
        Sql::new("create table if not exists runtara_meta (key text primary key, value text)");
    tables.then("create table if not exists rows (name text primary key, state blob)");
    tables.run_here(&connection, "making tables").unwrap();
    redo::recover(&connection, path).unwrap();
    let clock = Arc::new(ManualClock::at(Timestamp(0)));
    Tx::new(connection, Redo::open(path).unwrap(), clock)
}

fn insert(tx: &mut Tx, name: &str, bytes: usize) -> StoreResult<()> {
    let mut sql = Sql::new("insert into rows values (?, ?)");
    sql.bind(name).bind(Bytes::from(vec![7; bytes]));
    tx.execute(sql)
}

/// A batch with a request for each name, which is given this many bytes. Says why it was lost, if it was.
fn batch(tx: &mut Tx, names: &[&str], bytes: usize) -> Option<String> {
    if tx.connection.is_none() {
        tx.connection = Some(options(Path::new(&path(tx))).open().unwrap());
    }
    tx.begin();
    for (number, name) in names.iter().enumerate() {
        tx.next(number);
        if insert(tx, name, bytes).is_err() {
            tx.undo();
        }
    }
    tx.commit();
    tx.end().lost
}

fn path(tx: &Tx) -> String {
    let path = tx.redo.path().to_str().unwrap();
    path.strip_suffix(".redo").unwrap().to_owned()
}

fn names(connection: &Connection) -> Vec<String> {
    let rows = Sql::new("select name from rows order by name");
    let rows = rows.run_here(connection, "looking").unwrap();
    rows.iter()
        .map(|row| Columns::of(row).text().unwrap())
        .collect()
}

/// What is there after the process was killed now.
fn names_after_a_crash(tx: Tx) -> Vec<String> {
    let path = path(&tx);
    drop(tx);
    let tx = opened(Path::new(&path));
    names(tx.connection.as_ref().unwrap())
}

fn fresh() -> (tempfile::TempDir, Tx) {
    let directory = tempfile::tempdir().unwrap();
    let tx = opened(&directory.path().join("a.db"));
    (directory, tx)
}

#[test]
fn what_was_made_durable_and_not_committed_outlives_a_crash() {
    let (_directory, mut tx) = fresh();
    assert_eq!(batch(&mut tx, &["a", "b"], 1), None);
    tx.publish().unwrap();
    assert_eq!(batch(&mut tx, &["c", "a", "d"], 1), None);
    assert!(tx.is_ahead());
    let reader = options(Path::new(&path(&tx))).open().unwrap();
    assert_eq!(names(&reader), ["a", "b"]);
    drop(reader);
    assert_eq!(names_after_a_crash(tx), ["a", "b", "c", "d"]);
}

#[test]
fn a_closed_database_has_everything_and_needs_no_log() {
    let (directory, mut tx) = fresh();
    assert_eq!(batch(&mut tx, &["a"], 1), None);
    let path = path(&tx);
    tx.close().unwrap();
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    let connection = options(Path::new(&path)).open().unwrap();
    assert_eq!(names(&connection), ["a"]);
}

/// As after an error after which SQLite takes back the transaction by itself.
fn roll_back_behind_its_back(tx: &Tx) {
    let connection = tx.connection.as_ref().unwrap();
    let rollback = Sql::new("rollback");
    rollback.run_here(connection, "rolling back").unwrap();
    assert!(names(connection).is_empty());
}

#[test]
fn a_database_that_has_lost_its_transaction_is_closed_with_everything() {
    let (_directory, mut tx) = fresh();
    assert_eq!(batch(&mut tx, &["a"], 1), None);
    let path = path(&tx);
    roll_back_behind_its_back(&tx);
    assert!(tx.publish().is_err());
    tx.close().unwrap();
    let connection = options(Path::new(&path)).open().unwrap();
    assert_eq!(names(&connection), ["a"]);
}

#[test]
fn a_batch_that_is_too_large_for_the_log_is_committed_at_once() {
    let (_directory, mut tx) = fresh();
    assert_eq!(batch(&mut tx, &["a"], 1), None);
    assert_eq!(batch(&mut tx, &["large"], 3 * 1024 * 1024), None);
    assert!(!tx.is_ahead());
    assert_eq!(batch(&mut tx, &["z"], 1), None);
    assert_eq!(names_after_a_crash(tx), ["a", "large", "z"]);
}

#[test]
fn laps_follow_one_another() {
    let (_directory, mut tx) = fresh();
    let all: Vec<_> = (0..100).map(|number| format!("row {number:03}")).collect();
    for (number, name) in all.iter().enumerate() {
        // 25 MiB in laps of 8.
        assert_eq!(batch(&mut tx, &[name], 256 * 1024), None);
        if number % 7 == 0 {
            tx.publish().unwrap();
        }
    }
    assert_eq!(names_after_a_crash(tx), all);
}

#[test]
fn a_batch_that_cannot_be_logged_is_lost_alone() {
    let (_directory, mut tx) = fresh();
    assert_eq!(batch(&mut tx, &["a"], 1), None);
    let whole = tx.redo.forbid_writing();
    let lost = batch(&mut tx, &["b"], 1).expect("nothing can be written");
    assert!(lost.contains("redo"), "{lost}");
    tx.redo.write_to(whole);
    assert_eq!(batch(&mut tx, &["c"], 1), None);
    assert_eq!(names(tx.connection.as_ref().unwrap()), ["a", "c"]);
    assert_eq!(names_after_a_crash(tx), ["a", "c"]);
}

#[test]
fn a_request_that_fails_after_it_has_written_takes_back_what_is_its_own() {
    let (_directory, mut tx) = fresh();
    assert_eq!(batch(&mut tx, &["a"], 1), None);
    tx.begin();
    tx.next(0);
    insert(&mut tx, "b", 1).unwrap();
    tx.next(1);
    let mut both = Sql::new("insert into rows values ('c', null)");
    both.then("insert into rows values ('a', null)");
    assert!(tx.execute(both).is_err());
    tx.undo();
    tx.next(2);
    insert(&mut tx, "d", 1).unwrap();
    tx.commit();
    assert_eq!(tx.end().lost, None);
    assert_eq!(names(tx.connection.as_ref().unwrap()), ["a", "b", "d"]);
    assert_eq!(names_after_a_crash(tx), ["a", "b", "d"]);
}

#[test]
fn what_was_answered_is_taken_over_again_after_a_rollback() {
    let (_directory, mut tx) = fresh();
    assert_eq!(batch(&mut tx, &["a"], 1), None);
    assert_eq!(batch(&mut tx, &["b"], 1), None);
    roll_back_behind_its_back(&tx);
    assert!(batch(&mut tx, &["c"], 1).is_some());
    assert!(tx.is_ahead());
    tx.publish().unwrap();
    assert_eq!(names(tx.connection.as_ref().unwrap()), ["a", "b"]);
    assert_eq!(batch(&mut tx, &["d"], 1), None);
    assert_eq!(names_after_a_crash(tx), ["a", "b", "d"]);
}

#[test]
fn a_log_of_another_database_is_not_taken_over() {
    let (_directory, mut tx) = fresh();
    assert_eq!(batch(&mut tx, &["a"], 1), None);
    let (_other_directory, mut other) = fresh();
    assert_eq!(batch(&mut other, &["b"], 1), None);
    other.publish().unwrap();
    std::fs::copy(tx.redo.path(), other.redo.path()).unwrap();
    assert_eq!(names_after_a_crash(other), ["b"]);
}
