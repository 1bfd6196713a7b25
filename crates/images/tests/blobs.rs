//! What becomes of content: stored whole or not at all, once, under its digest, until it is removed.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, TryStreamExt as _, stream};
use runtara_domain::ImageDigest;
use runtara_images::{
    Base64Error, Blob, BlobError, BlobOptions, BlobStore, Deletion, Detected, Stored,
};
use tempfile::TempDir;

/// What an upload hashes and writes at once.
const BATCH: usize = 1024 * 1024;

async fn open(directory: &Path) -> BlobStore {
    BlobStore::open(directory, BlobOptions::default())
        .await
        .unwrap()
}

async fn fresh() -> (TempDir, BlobStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).await;
    (directory, store)
}

async fn put(store: &BlobStore, content: &[u8]) -> Stored {
    let mut upload = store.upload().await.unwrap();
    upload.write(content).await.unwrap();
    upload.finish(None).await.unwrap()
}

/// Bytes that do not repeat within a batch.
fn content_of(size: usize) -> Vec<u8> {
    (0..size as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

fn uploads(directory: &Path) -> usize {
    fs::read_dir(directory.join("uploads")).unwrap().count()
}

async fn until_no_upload_is_left(directory: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while uploads(directory) > 0 {
        assert!(Instant::now() < deadline, "a temporary file stayed");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn read(store: &BlobStore, digest: &ImageDigest) -> Vec<u8> {
    let pieces: Vec<_> = store
        .open_content(digest)
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    pieces.concat()
}

#[tokio::test]
async fn content_of_any_size_comes_back_however_it_was_cut() {
    let (_directory, store) = fresh().await;
    for size in [0, 1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH + 17] {
        let content = content_of(size);
        for piece in [1_000, 64 * 1024, BATCH, usize::MAX] {
            let mut upload = store.upload().await.unwrap();
            for piece in content.chunks(piece.min(size.max(1))) {
                upload.write(piece).await.unwrap();
            }
            assert_eq!(upload.received(), size as u64);
            let stored = upload
                .finish(Some(ImageDigest::of(&content)))
                .await
                .unwrap();
            assert_eq!(
                (stored.digest, stored.size),
                (ImageDigest::of(&content), size as u64)
            );
        }
        let digest = ImageDigest::of(&content);
        assert!(
            read(&store, &digest).await == content,
            "{size} bytes came back changed"
        );
        assert_eq!(store.verify(&digest).await.unwrap(), size as u64);
        assert_eq!(store.size(&digest).await.unwrap(), Some(size as u64));
    }
}

#[tokio::test]
async fn stored_content_is_a_read_only_executable_under_its_digest() {
    let (directory, store) = fresh().await;
    let stored = put(&store, b"#!/bin/sh\n").await;
    let path = store.local_path(&stored.digest).await.unwrap();
    let hex = stored.digest.to_hex();
    let expected = directory
        .path()
        .canonicalize()
        .unwrap()
        .join("sha256")
        .join(&hex[..2]);
    assert_eq!(path, expected.join(&hex[2..]));
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o555
    );
    let root = fs::metadata(directory.path().join("sha256")).unwrap();
    assert_eq!(root.permissions().mode() & 0o7777, 0o700);
    assert_eq!(uploads(directory.path()), 0);
}

#[tokio::test]
async fn stored_content_can_be_run_where_it_lies() {
    let (_directory, store) = fresh().await;
    let stored = put(&store, b"#!/bin/sh\nexit 7\n").await;
    let path = store.local_path(&stored.digest).await.unwrap();
    // Linux refuses to run what is open for writing anywhere (ETXTBSY).
    assert_eq!(Command::new(path).status().unwrap().code(), Some(7));
}

#[tokio::test]
async fn the_same_content_is_stored_once() {
    let (_directory, store) = fresh().await;
    let first = put(&store, b"content").await;
    let path = store.local_path(&first.digest).await.unwrap();
    let inode = fs::metadata(&path).unwrap().ino();

    let second = put(&store, b"content").await;

    assert!(!first.already_there && second.already_there);
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(store.list(None, 10).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_content_may_arrive_many_times_at_once_and_at_two_servers() {
    let (directory, store) = fresh().await;
    let other = open(directory.path()).await;
    let content = content_of(2 * BATCH + 1);
    let uploads_at_once: Vec<_> = (0..12)
        .map(|index| {
            let store = if index % 2 == 0 {
                store.clone()
            } else {
                other.clone()
            };
            let content = content.clone();
            tokio::spawn(async move { put(&store, &content).await })
        })
        .collect();
    for upload in uploads_at_once {
        assert_eq!(upload.await.unwrap().digest, ImageDigest::of(&content));
    }
    let size = content.len() as u64;
    let digest = ImageDigest::of(&content);
    assert_eq!(store.list(None, 10).await.unwrap(), [Blob { digest, size }]);
    assert_eq!(other.verify(&digest).await.unwrap(), size);
    assert_eq!(uploads(directory.path()), 0);
}

#[tokio::test]
async fn content_that_is_not_what_was_announced_is_refused_and_removed() {
    let (directory, store) = fresh().await;
    let mut upload = store.upload().await.unwrap();
    upload.write(b"content").await.unwrap();
    let announced = ImageDigest::of(b"other content");

    let refused = upload.finish(Some(announced)).await;

    let found = ImageDigest::of(b"content");
    assert!(
        matches!(refused, Err(BlobError::ChecksumMismatch { expected, found: f }) if expected == announced && f == found),
        "{refused:?}"
    );
    assert_eq!(uploads(directory.path()), 0);
    assert!(!store.exists(&found).await.unwrap());
}

#[tokio::test]
async fn the_largest_size_is_taken_and_one_byte_more_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let options = BlobOptions {
        max_bytes: 1_000,
        ..BlobOptions::default()
    };
    let store = BlobStore::open(directory.path(), options).await.unwrap();
    let mut upload = store.upload().await.unwrap();
    upload.write(&[7; 999]).await.unwrap();
    upload.write(&[7]).await.unwrap();
    let refused = upload.write(&[7]).await;
    assert!(
        matches!(refused, Err(BlobError::TooLarge { limit: 1_000 })),
        "{refused:?}"
    );
    assert!(matches!(upload.write(b"").await, Err(BlobError::Gap)));
    assert!(matches!(upload.finish(None).await, Err(BlobError::Gap)));
    assert_eq!(uploads(directory.path()), 0);
    assert_eq!(put(&store, &[7; 1_000]).await.size, 1_000);
}

#[tokio::test]
async fn an_upload_that_is_dropped_leaves_nothing() {
    let (directory, store) = fresh().await;
    let mut upload = store.upload().await.unwrap();
    upload.write(&content_of(3 * BATCH)).await.unwrap();
    assert_eq!(uploads(directory.path()), 1);
    drop(upload);
    until_no_upload_is_left(directory.path()).await;
    assert_eq!(store.list(None, 10).await.unwrap(), []);
}

#[tokio::test]
async fn a_write_that_was_abandoned_spoils_the_upload() {
    let (_directory, store) = fresh().await;
    let mut upload = store.upload().await.unwrap();
    assert!(
        upload
            .write(&content_of(32 * BATCH))
            .now_or_never()
            .is_none()
    );
    assert!(matches!(upload.write(b"more").await, Err(BlobError::Gap)));
    assert!(matches!(upload.finish(None).await, Err(BlobError::Gap)));
}

#[tokio::test]
async fn base64_is_decoded_while_it_arrives() {
    let (directory, store) = fresh().await;
    let put = |pieces: Vec<Result<&'static str, &'static str>>| {
        store.put_base64(stream::iter(pieces), None)
    };
    let stored = put(vec![Ok("aGVs"), Ok("bG8gd2"), Ok("9ybGQ=")])
        .await
        .unwrap();
    assert_eq!(read(&store, &stored.digest).await, b"hello world");

    let bad = put(vec![Ok("aGVs"), Ok("bG8*")]).await;
    let at = Base64Error::BadCharacter {
        position: 7,
        found: b'*',
    };
    assert!(
        matches!(bad, Err(BlobError::Base64(error)) if error == at),
        "{bad:?}"
    );
    let cut = put(vec![Ok("aGVsbG8")]).await;
    assert!(
        matches!(
            cut,
            Err(BlobError::Base64(Base64Error::CutOff { length: 7 }))
        ),
        "{cut:?}"
    );
    let broken = put(vec![Ok("aGVs"), Err("connection reset")]).await;
    assert!(
        matches!(broken, Err(BlobError::Source { received: 3, .. })),
        "{broken:?}"
    );
    until_no_upload_is_left(directory.path()).await;
}

#[tokio::test]
async fn further_uploads_wait_their_turn_for_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let options = BlobOptions {
        uploads: 2,
        upload_wait: Duration::from_millis(30),
        ..BlobOptions::default()
    };
    let store = BlobStore::open(directory.path(), options).await.unwrap();
    let _first = store.upload().await.unwrap();
    let second = store.upload().await.unwrap();
    let refused = store.upload().await.unwrap_err();
    assert!(
        refused
            .to_string()
            .starts_with("2 uploads are under way, the most that this server takes"),
        "{refused}"
    );
    second.finish(None).await.unwrap();
    store.upload().await.unwrap();
}

#[tokio::test]
async fn content_is_pinned_while_it_is_being_registered() {
    let (directory, store) = fresh().await;
    let other_server = open(directory.path()).await;
    let stored = put(&store, b"content").await;
    let digest = stored.digest;

    assert_eq!(
        other_server.delete(&digest).await.unwrap(),
        Deletion::Pinned
    );
    drop(stored);
    assert_eq!(
        other_server.delete(&digest).await.unwrap(),
        Deletion::Removed
    );
    assert_eq!(store.delete(&digest).await.unwrap(), Deletion::Absent);
    assert!(matches!(
        store.local_path(&digest).await,
        Err(BlobError::Absent { .. })
    ));
    assert!(matches!(
        store.verify(&digest).await,
        Err(BlobError::Absent { .. })
    ));
    assert_eq!(store.size(&digest).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_is_removed_while_it_is_registered_again_is_there_in_the_end() {
    let (_directory, store) = fresh().await;
    let digest = put(&store, b"content").await.digest;
    let removal = store.removal(&digest).await.unwrap().unwrap();
    let mut registering = tokio::spawn({
        let store = store.clone();
        async move { put(&store, b"content").await }
    });
    let too_early = tokio::time::timeout(Duration::from_millis(100), &mut registering).await;
    assert!(
        too_early.is_err(),
        "a registration did not wait for a removal: {too_early:?}"
    );

    assert_eq!(removal.remove().await.unwrap(), Deletion::Removed);

    let stored = registering.await.unwrap();
    assert!(!stored.already_there);
    assert_eq!(store.verify(&digest).await.unwrap(), 7);
}

#[tokio::test]
async fn content_that_something_is_laid_on_stays_while_it_is_pinned() {
    let (_directory, store) = fresh().await;
    let absent = ImageDigest::of(b"nobody's");
    assert!(store.pin(&absent).await.unwrap().is_none());
    let stored = put(&store, b"base").await;
    let digest = stored.digest;
    drop(stored);
    let pin = store.pin(&digest).await.unwrap().expect("it is there");
    assert_eq!(store.delete(&digest).await.unwrap(), Deletion::Pinned);
    drop(pin);
    assert_eq!(store.delete(&digest).await.unwrap(), Deletion::Removed);
    assert!(store.pin(&digest).await.unwrap().is_none());
}

#[tokio::test]
async fn a_removal_that_is_dropped_removes_nothing_and_lets_registrations_go_on() {
    let (_directory, store) = fresh().await;
    let digest = put(&store, b"content").await.digest;
    drop(store.removal(&digest).await.unwrap().unwrap());
    assert!(put(&store, b"content").await.already_there);
}

#[tokio::test]
async fn content_that_rotted_is_found_and_can_be_registered_again() {
    let (_directory, store) = fresh().await;
    let digest = put(&store, b"content").await.digest;
    let path = store.local_path(&digest).await.unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&path, b"cOntent").unwrap();

    let found = store.verify(&digest).await;

    let rotten = ImageDigest::of(b"cOntent");
    assert!(
        matches!(found, Err(BlobError::Corrupt { found, .. }) if found == rotten),
        "{found:?}"
    );
    store.delete(&digest).await.unwrap();
    put(&store, b"content").await;
    assert_eq!(store.verify(&digest).await.unwrap(), 7);
}

#[tokio::test]
async fn pages_hold_everything_once_in_order() {
    let (directory, store) = fresh().await;
    let mut all = Vec::new();
    for index in 0..60_u32 {
        let stored = put(&store, &index.to_le_bytes()).await;
        all.push((stored.digest.0, stored.size));
    }
    // Many in one directory, so that pages end inside of it; and files that are not ours.
    let shard = directory.path().join("sha256/00");
    fs::create_dir_all(&shard).unwrap();
    for index in 0..9 {
        fs::write(shard.join(format!("{index:062x}")), b"x").unwrap();
        let mut digest = [0; 32];
        digest[31] = index;
        all.push((digest, 1));
    }
    fs::write(shard.join("lost"), b"x").unwrap();
    fs::write(directory.path().join("sha256/readme"), b"x").unwrap();
    all.sort_unstable();

    for limit in [1, 4, 69, 1_000] {
        let mut listed = Vec::new();
        let mut after = None;
        loop {
            let page = store.list(after, limit).await.unwrap();
            assert!(page.len() <= limit);
            after = page.last().map(|blob| blob.digest);
            listed.extend(page.iter().map(|blob| (blob.digest.0, blob.size)));
            if page.len() < limit {
                break;
            }
        }
        assert_eq!(listed, all);
    }
}

#[tokio::test]
async fn content_can_be_judged_before_it_is_stored_and_after() {
    let (_directory, store) = fresh().await;
    let mut upload = store.upload().await.unwrap();
    upload.write(b"#!/bin/sh\n").await.unwrap();
    let script = Detected::Script {
        interpreter: "/bin/sh".to_owned(),
    };
    assert_eq!(upload.detect().await.unwrap(), script);
    upload.write(&content_of(2 * BATCH)).await.unwrap();
    let stored = upload.finish(None).await.unwrap();
    assert_eq!(store.detect(&stored.digest).await.unwrap(), script);
    assert_eq!(
        store.verify(&stored.digest).await.unwrap(),
        10 + 2 * BATCH as u64
    );
}

const INTO: &str = "UPLOAD_INTO";

/// Not a test of its own: the process that the next test kills.
#[tokio::test]
#[ignore = "runs as the child of the test about killed servers"]
async fn uploads_until_it_is_killed() {
    let directory = std::env::var_os(INTO).expect("the directory is named by the parent");
    let store = open(Path::new(&directory)).await;
    let mut upload = store.upload().await.unwrap();
    upload.write(&content_of(3 * BATCH)).await.unwrap();
    upload.detect().await.unwrap();
    println!("\nuploading");
    let _ = std::io::stdin().read(&mut [0]);
}

#[tokio::test]
async fn what_a_killed_server_left_is_removed_and_what_a_living_one_writes_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "uploads_until_it_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(INTO, directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap() == "uploading"),
        "the child ended early"
    );

    let store = open(directory.path()).await;
    assert_eq!(
        uploads(directory.path()),
        1,
        "a living server's upload was removed"
    );
    child.kill().unwrap();
    child.wait().unwrap();

    let left = store.sweep(true).await.unwrap();
    assert_eq!((left.items, uploads(directory.path())), (1, 1));
    assert_eq!(store.sweep(false).await.unwrap(), left);
    assert_eq!(uploads(directory.path()), 0);
    assert_eq!(store.list(None, 10).await.unwrap(), []);
}

#[tokio::test]
async fn opening_removes_leftovers_and_nothing_else() {
    let (directory, store) = fresh().await;
    let stored = put(&store, b"content").await;
    let living = store.upload().await.unwrap();
    fs::write(directory.path().join("uploads/left.part"), b"x").unwrap();
    fs::write(directory.path().join("uploads/README"), b"x").unwrap();
    fs::create_dir(directory.path().join("uploads/not-a-file.part")).unwrap();

    let reopened = open(directory.path()).await;

    let mut left: Vec<_> = fs::read_dir(directory.path().join("uploads"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort_unstable_by_key(String::len);
    assert_eq!(left.len(), 3, "{left:?}");
    assert_eq!(left[..2], ["README", "not-a-file.part"]);
    assert!(reopened.exists(&stored.digest).await.unwrap());
    living.finish(None).await.unwrap();
}
