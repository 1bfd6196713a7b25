//! Memory while a large image is uploaded. Alone in its file, so that it has a process of its own.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

use runtara_images::{BlobOptions, BlobStore};

/// The most memory that was resident at once, in bytes (proc_pid_status(5)).
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_does_not_grow_with_the_size_of_an_upload() {
    let directory = tempfile::tempdir().unwrap();
    let store = BlobStore::open(directory.path(), BlobOptions::default())
        .await
        .unwrap();
    let piece = vec![42; 64 * 1024];
    let before = peak();

    let mut upload = store.upload().await.unwrap();
    for _ in 0..128 * 16 {
        upload.write(&piece).await.unwrap();
    }
    let stored = upload.finish(None).await.unwrap();

    assert_eq!(stored.size, 128 * 1024 * 1024);
    let growth = peak() - before;
    assert!(growth <= 8 * 1024 * 1024, "memory grew by {growth} bytes");
}
