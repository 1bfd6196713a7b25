//! Several nodes with a directory each, that share their content: through a directory, and through a server that speaks S3.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use std::fs;
use std::sync::Arc;

use object_store::path::Path as Location;
use object_store::{ObjectStore, ObjectStoreExt as _};
use runtara_domain::{DatabaseId, ImageDigest};
use runtara_images::{
    BlobError, BlobOptions, BlobStore, Deletion, ImageStoreUrl, SharedStore, Stored,
};
use tempfile::TempDir;

/// More than two pieces, and no whole number of them.
const LARGE: usize = 20 * 1024 * 1024 + 17;

/// One node.
struct Node {
    directory: TempDir,
    blobs: BlobStore,
}

impl Node {
    async fn with(shared: SharedStore) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(directory.path(), BlobOptions::default())
            .await
            .unwrap();
        let blobs = blobs.with_shared(shared);
        Self { directory, blobs }
    }

    async fn register(&self, content: &[u8]) -> Stored {
        let mut upload = self.blobs.upload().await.unwrap();
        upload.write(content).await.unwrap();
        let mut stored = upload.finish(None).await.unwrap();
        self.blobs.share(&mut stored).await.unwrap();
        stored
    }

    /// Files of content and of uploads.
    fn files(&self) -> usize {
        let root = self.directory.path();
        let shards = fs::read_dir(root.join("sha256")).unwrap().flatten();
        let content: usize = shards
            .map(|shard| fs::read_dir(shard.path()).unwrap().count())
            .sum();
        content + fs::read_dir(root.join("uploads")).unwrap().count()
    }
}

fn content_of(size: usize) -> Vec<u8> {
    (0..size as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

fn directory() -> (TempDir, SharedStore) {
    let directory = tempfile::tempdir().unwrap();
    let url: ImageStoreUrl = format!("file://{}", directory.path().display())
        .parse()
        .unwrap();
    let shared = SharedStore::at(&url).unwrap();
    (directory, shared)
}

async fn remove(shared: &SharedStore, digest: &ImageDigest, needed: bool) -> Deletion {
    let is_needed = || async { Ok::<_, BlobError>(needed) };
    shared.remove(digest, is_needed).await.unwrap()
}

/// Waits until dropped pins are gone: they go in their own time.
async fn unpinned(shared: &SharedStore, digest: &ImageDigest) -> Deletion {
    for _ in 0..1_000 {
        match remove(shared, digest, false).await {
            Deletion::Pinned => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            other => return other,
        }
    }
    panic!("a pin stayed");
}

/// The whole life of shared content.
async fn content_is_shared(shared: SharedStore) {
    shared.claim(DatabaseId::generate()).await.unwrap();
    let one = Node::with(shared.clone()).await;
    let other = Node::with(shared.clone()).await;
    for size in [0, 1, 8 * 1024 * 1024, LARGE] {
        let content = content_of(size);
        let stored = one.register(&content).await;
        let digest = stored.digest;
        assert_eq!(other.blobs.size(&digest).await.unwrap(), Some(size as u64));
        // All who ask at once are given the one copy.
        let paths =
            futures_util::future::try_join_all((0..4).map(|_| other.blobs.local_path(&digest)));
        for path in paths.await.unwrap() {
            assert!(
                fs::read(path).unwrap() == content,
                "{size} bytes came changed"
            );
        }
        assert_eq!(
            remove(&shared, &digest, false).await,
            Deletion::Pinned,
            "its row is not written yet"
        );
        drop(stored);
        assert_eq!(unpinned(&shared, &digest).await, Deletion::Removed);
        assert_eq!(remove(&shared, &digest, false).await, Deletion::Absent);
        // It comes back from any node that has it.
        other.blobs.share_again(&digest).await.unwrap();
        assert_eq!(
            remove(&shared, &digest, true).await,
            Deletion::Pinned,
            "a row needs it"
        );
        let third = Node::with(shared.clone()).await;
        third.blobs.local_path(&digest).await.unwrap();
        assert_eq!(third.files(), 1);
    }
    let digests: Vec<_> = shared.list(None, 100).await.unwrap();
    assert_eq!(digests.len(), 4);
    assert!(digests.is_sorted_by_key(|it| it.digest.0));
    assert_eq!(
        shared.list(Some(digests[1].digest), 1).await.unwrap(),
        [digests[2]]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_is_shared_through_a_directory() {
    let (_directory, shared) = directory();
    content_is_shared(shared).await;
}

#[tokio::test]
async fn corrupt_content_is_refused_and_nothing_of_it_is_kept() {
    let (directory, shared) = directory();
    let one = Node::with(shared.clone()).await;
    let stored = one.register(b"#!/bin/sh\n").await;
    let hex = stored.digest.to_hex();
    let path = directory
        .path()
        .join("sha256")
        .join(&hex[..2])
        .join(&hex[2..]);
    fs::write(path, "#!/bin/no\n").unwrap();
    let other = Node::with(shared).await;
    let error = other.blobs.local_path(&stored.digest).await.unwrap_err();
    assert!(matches!(error, BlobError::Corrupt { .. }), "{error}");
    assert_eq!(other.files(), 0);
    let absent = other.blobs.local_path(&ImageDigest::of(b"nothing")).await;
    assert!(matches!(absent, Err(BlobError::Absent { .. })));
}

#[tokio::test]
async fn a_directory_is_that_of_one_database_and_must_be_there() {
    let (directory, shared) = directory();
    let ours = DatabaseId::generate();
    shared.claim(ours).await.unwrap();
    shared.claim(ours).await.unwrap();
    let theirs = shared.claim(DatabaseId::generate()).await;
    assert!(
        matches!(theirs, Err(BlobError::OtherDatabase { .. })),
        "{theirs:?}"
    );
    // As it is when it is not mounted any more.
    let node = Node::with(shared).await;
    fs::remove_file(directory.path().join("database")).unwrap();
    let mut upload = node.blobs.upload().await.unwrap();
    upload.write(b"#!/bin/sh\n").await.unwrap();
    let mut stored = upload.finish(None).await.unwrap();
    let shared = node.blobs.share(&mut stored).await;
    assert!(
        matches!(shared, Err(BlobError::Shared { .. })),
        "{shared:?}"
    );
    let missing = directory.path().join("missing");
    let url: ImageStoreUrl = format!("file://{}", missing.display()).parse().unwrap();
    assert!(matches!(
        SharedStore::at(&url),
        Err(BlobError::Shared { .. })
    ));
    assert!(!missing.exists());
}

#[tokio::test]
async fn content_that_is_too_large_to_be_copied_at_once_is_copied_piece_by_piece() {
    let objects: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    let shared = SharedStore::of(Arc::clone(&objects), "memory").copying_at_once(1);
    let node = Node::with(shared.clone()).await;
    let content = content_of(LARGE);
    let digest = node.register(&content).await.digest;
    let mut kept = Deletion::Absent;
    for _ in 0..2 {
        kept = remove(&shared, &digest, true).await;
    }
    assert_eq!(kept, Deletion::Pinned);
    let hex = digest.to_hex();
    let at = Location::from(format!("sha256/{}/{}", &hex[..2], &hex[2..]));
    let found = objects.get(&at).await.unwrap().bytes().await.unwrap();
    assert!(found == content);
}

#[cfg(feature = "s3")]
mod s3 {
    use runtara_tests::s3::{KEY, S3Server};

    use super::*;

    /// Runs this test again in a process that has these variables: they are those of the whole process.
    fn again_with(name: &str, variables: &[(&str, String)]) {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", name, "--nocapture"])
            .envs(variables.iter().map(|(name, value)| (name, value)));
        let status = command.status().unwrap();
        assert!(status.success(), "{status}");
    }

    fn in_a_runtime<T>(act: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime.unwrap().block_on(act)
    }

    #[test]
    fn content_is_shared_through_s3() {
        if std::env::var_os("AWS_ENDPOINT").is_some() {
            let url: ImageStoreUrl = "s3://bucket/some/prefix".parse().unwrap();
            return in_a_runtime(content_is_shared(SharedStore::at(&url).unwrap()));
        }
        let server = S3Server::start();
        again_with("s3::content_is_shared_through_s3", &server.variables());
        assert!(server.path("some/prefix/database").is_file());
    }

    #[test]
    fn a_wrong_secret_is_told_and_not_repeated() {
        const WRONG: &str = "wrong-secret";
        if std::env::var_os("AWS_ENDPOINT").is_some() {
            let url: ImageStoreUrl = "s3://bucket".parse().unwrap();
            let store = SharedStore::at(&url).unwrap();
            let claimed = in_a_runtime(store.claim(DatabaseId::generate()));
            let told = claimed.unwrap_err().to_string();
            assert!(
                told.contains("cannot write to the shared image store"),
                "{told}"
            );
            assert!(told.contains("403"), "{told}");
            assert!(!told.contains(KEY[0]) && !told.contains(WRONG), "{told}");
            return;
        }
        let server = S3Server::start();
        let mut variables = server.variables();
        for (name, value) in &mut variables {
            if *name == "AWS_SECRET_ACCESS_KEY" {
                WRONG.clone_into(value);
            }
        }
        again_with("s3::a_wrong_secret_is_told_and_not_repeated", &variables);
    }
}
