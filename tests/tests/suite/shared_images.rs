//! Several nodes that share their images: what is registered with one runs on the others, copies stay within their bound, and what is deleted
//! is gone everywhere.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use runtara_tests::http::Request;
use runtara_tests::s3::S3Server;
use runtara_tests::{
    Ground, Image, Server, Setup, Store, TENANT, eventually, eventually_within, guest, tests_on,
};
use serde_json::json;
use tempfile::TempDir;

/// Large enough that two of them are more than the bound of the test.
const LARGE: usize = 60_000;

tests_on! { a_native_image_of_one_node_runs_on_another {
    in_a_directory: super::Storage::in_a_directory(),
    in_s3: super::Storage::in_s3(),
}}

tests_on! { an_image_that_is_deleted_is_gone_from_the_storage_and_from_all_copies {
    in_a_directory: super::Storage::in_a_directory(),
    in_s3: super::Storage::in_s3(),
}}

tests_on! { while_the_storage_is_away_nothing_is_registered_and_nothing_fails_for_good {
    in_a_directory: super::Storage::in_a_directory(),
    in_s3: super::Storage::in_s3(),
}}

/// What several servers share.
enum Storage {
    Directory(TempDir),
    S3(S3Server),
}

/// Where in the bucket the images are.
const PREFIX: &str = "some/prefix";

impl Storage {
    fn in_a_directory() -> Self {
        Self::Directory(tempfile::tempdir().expect("a directory can be made"))
    }

    fn in_s3() -> Self {
        Self::S3(S3Server::start())
    }

    fn url(&self) -> String {
        match self {
            Self::Directory(directory) => format!("file://{}", directory.path().display()),
            Self::S3(_) => format!("s3://bucket/{PREFIX}"),
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Directory(directory) => directory.path().to_owned(),
            Self::S3(server) => server.path(PREFIX),
        }
    }

    /// The content in it, by the digits of its digest.
    fn content(&self) -> Vec<PathBuf> {
        files(&self.path().join("sha256"))
    }

    fn of(&self, setup: Setup) -> Setup {
        let setup = setup.variable("RUNTARA_IMAGE_STORE_URL", &self.url());
        match self {
            Self::Directory(_) => setup,
            Self::S3(server) => {
                let variables = server.variables().into_iter();
                variables.fold(setup, |setup, (name, value)| setup.variable(name, &value))
            }
        }
    }

    /// Cannot be reached from here on.
    fn goes_away(&mut self) {
        match self {
            // Not even root reads or writes anything below a file.
            Self::Directory(directory) => {
                let path = directory.path();
                fs::rename(path, path.with_extension("away")).expect("it is ours");
                fs::write(path, "").expect("the name is free");
            }
            Self::S3(server) => server.stop(),
        }
    }

    fn comes_back(&mut self) {
        match self {
            Self::Directory(directory) => {
                let path = directory.path();
                fs::remove_file(path).expect("it is there");
                fs::rename(path.with_extension("away"), path).expect("it is ours");
            }
            Self::S3(server) => server.start_again(),
        }
    }

    fn pair(&self, ground: impl Into<Ground>) -> [Server; 2] {
        let first = self.of(Setup::new(ground)).start();
        let second = self.of(Setup::beside(&first)).start();
        // Dropped in the other order: the database goes with the first.
        [first, second]
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(directory).into_iter().flatten().flatten();
    let entries =
        shards.flat_map(|shard| fs::read_dir(shard.path()).into_iter().flatten().flatten());
    entries.map(|entry| entry.path()).collect()
}

/// The content that a server has itself.
fn copies(server: &Server) -> Vec<PathBuf> {
    files(&server.data_dir().join("blobs/sha256"))
}

fn script(text: &str) -> Vec<u8> {
    let mut script = format!("#!/bin/sh\necho '\"{text}\"'\nexit 0\n").into_bytes();
    script.resize(LARGE, b'#');
    script
}

fn runs(server: &Server, image: &Image, output: &str) {
    let run = server.launch(image, &json!({}));
    run.wait_for("completed");
    assert_eq!(run.output(), json!(output), "{}", run.story());
}

fn a_native_image_of_one_node_runs_on_another(storage: Storage) {
    let [mut first, second] = storage.pair(Store::Postgres);
    let image = first.register("program", &script("hello"));
    assert_eq!(storage.content().len(), 1, "it is there before the answer");
    first.sigterm();
    runs(&second, &image, "hello");
    assert_eq!(copies(&second).len(), 1);
    assert!(
        second.log().contains("fetched content"),
        "it did not come from elsewhere"
    );
}

#[test]
fn a_container_image_with_a_base_runs_on_another_node() {
    let storage = Storage::in_a_directory();
    let [mut first, second] = storage.pair(Store::Postgres.in_containers());
    let image = first.register("program", &script("in a container"));
    assert_eq!(
        storage.content().len(),
        2,
        "the base and what is laid on it"
    );
    first.sigterm();
    runs(&second, &image, "in a container");
    // A registration finds a base that this node has no copy of, either.
    let third = storage.of(Setup::beside(&second)).start();
    let texts = [("tenant_id", TENANT), ("name", "other"), ("base", "base")];
    let other = third.upload(&texts, &script("on another base")).image();
    assert_eq!(copies(&third).len(), 2);
    runs(&third, &other, "on another base");
}

#[test]
fn a_guest_of_one_node_runs_on_another() {
    let storage = Storage::in_a_directory();
    let [mut first, second] = storage.pair(Store::Postgres.in_guests());
    let image = first.upload(
        &[("tenant_id", TENANT), ("name", "guest")],
        &guest::component("prints_and_exits"),
    );
    let image = image.image();
    first.sigterm();
    let run = second.launch(&image, &json!({ "input": {} }));
    run.wait_for("completed");
    assert!(
        second.log().contains("fetched content"),
        "it did not come from elsewhere"
    );
}

#[test]
fn copies_that_are_not_used_leave_when_there_are_too_many() {
    let storage = Storage::in_a_directory();
    let mut first = storage.of(Setup::new(Store::Postgres)).start();
    let [one, two] = ["one", "two"].map(|name| first.register(name, &script(name)));
    let bound = (LARGE + LARGE / 2).to_string();
    let setup = storage.of(Setup::beside(&first));
    let second = setup.variable("RUNTARA_IMAGE_CACHE_BYTES", &bound).start();
    first.sigterm();
    runs(&second, &one, "one");
    let copy = copies(&second).pop().expect("it was fetched");
    // As if it had not been used for a while.
    let file = File::open(&copy).expect("it is there");
    let before = SystemTime::now() - Duration::from_secs(3_600);
    file.set_modified(before).expect("the test is its owner");
    drop(file);
    runs(&second, &two, "two");
    eventually("the copy that was used least recently is gone", || {
        let left = copies(&second);
        if left.len() == 1 && !copy.exists() {
            Ok(())
        } else {
            Err(left)
        }
    });
    assert_eq!(storage.content().len(), 2, "nothing of it is lost");
    let prepared = second.data_dir().join("cache/native");
    eventually("what was made of it is gone", || {
        let left = count(&prepared, LARGE as u64);
        if left <= 1 { Ok(()) } else { Err(left) }
    });
    runs(&second, &one, "one");
    assert_eq!(
        copies(&second).len(),
        2,
        "what was used in the last minutes stays"
    );
}

/// How many files below a directory have at least this size.
fn count(directory: &Path, bytes: u64) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let counts = entries.map(|entry| match entry.metadata() {
        Ok(facts) if facts.is_dir() => count(&entry.path(), bytes),
        Ok(facts) => usize::from(facts.len() >= bytes),
        Err(_) => 0,
    });
    counts.sum()
}

fn an_image_that_is_deleted_is_gone_from_the_storage_and_from_all_copies(storage: Storage) {
    let [mut first, mut second] = storage.pair(Store::Postgres);
    let image = first.register("program", &script("hello"));
    first.sigterm();
    runs(&second, &image, "hello");
    first.start_again();
    let path = format!("/api/v1/images/{}?tenant_id={TENANT}", image.0);
    assert_eq!(
        second.ask(&Request::delete(&path)).expect(200)["success"],
        true
    );
    assert_eq!(
        storage.content().len(),
        1,
        "instances that could be resumed need it"
    );
    let _deleted = first.psql("delete from runtara_instances");
    // The chores of a node begin with its start.
    second.kill_9_and_restart();
    eventually("the content is gone from the storage", || {
        let left = storage.content();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    first.kill_9_and_restart();
    for server in [&first, &second] {
        eventually("the copy is gone", || {
            let left = copies(server);
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
    }
}

fn while_the_storage_is_away_nothing_is_registered_and_nothing_fails_for_good(
    mut storage: Storage,
) {
    let [mut first, second] = storage.pair(Store::Postgres);
    let image = first.register("program", &script("hello"));
    first.sigterm();
    storage.goes_away();
    let texts = [
        ("tenant_id", TENANT),
        ("name", "other"),
        ("runner_type", "native"),
    ];
    let refused = second.upload(&texts, &script("other"));
    assert_eq!(refused.status, 503, "{refused}");
    let run = second.launch(&image, &json!({}));
    eventually("the launch was tried", || {
        let log = second.log();
        if log.contains("not launched") {
            Ok(())
        } else {
            Err(())
        }
    });
    assert_ne!(run.status()["status"], "failed");
    storage.comes_back();
    let _same_content = second.upload(&texts, &script("other")).image();
    run.wait_within(Duration::from_secs(120), "completed");
}

#[test]
fn without_shared_storage_a_node_says_which_variable_is_missing() {
    let mut first = Server::start(Store::Postgres);
    let image = first.register("program", &script("hello"));
    let second = Setup::beside(&first).start();
    first.kill_9();
    let run = second.launch(&image, &json!({}));
    eventually_within(Duration::from_secs(60), "it says what is missing", || {
        let log = second.log();
        if log.contains("RUNTARA_IMAGE_STORE_URL is not set") {
            Ok(())
        } else {
            Err(())
        }
    });
    assert_ne!(run.status()["status"], "failed");
}

#[test]
fn a_storage_that_cannot_be_used_is_refused_at_the_start() {
    let storage = Storage::in_a_directory();
    let missing = format!("{}/missing", storage.url());
    let setup = Setup::new(Store::Postgres).variable("RUNTARA_IMAGE_STORE_URL", &missing);
    let (status, log) = setup.run_to_its_end();
    assert!(!status.success(), "{log}");
    for said in ["RUNTARA_IMAGE_STORE_URL", "mount or create it"] {
        assert!(log.contains(said), "{log}");
    }
    // One server's orphans are the other's images.
    let _owner = storage.of(Setup::new(Store::Postgres)).start();
    let (status, log) = storage.of(Setup::new(Store::Postgres)).run_to_its_end();
    assert!(
        !status.success() && log.contains("belongs to the database"),
        "{log}"
    );
}
