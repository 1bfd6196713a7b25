//! Uploads content into a directory and prints the rate and the growth of memory.
//!
//! `cargo run --release -p runtara-images --example upload_rate -- <directory> <MiB>`

use std::time::Instant;

use runtara_images::{BlobError, BlobOptions, BlobStore};

fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[tokio::main]
async fn main() -> Result<(), BlobError> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().unwrap_or_else(|| "blobs".to_owned());
    let mib: u64 = arguments
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1_024);
    let store = BlobStore::open(directory, BlobOptions::default()).await?;
    let piece: Vec<u8> = (0..1 << 16_u32)
        .map(|at: u32| (at.wrapping_mul(at) >> 7) as u8)
        .collect();
    let before = peak_kib();

    let started = Instant::now();
    let mut upload = store.upload().await?;
    for _ in 0..mib * 16 {
        upload.write(&piece).await?;
    }
    let taken = started.elapsed();
    let stored = upload.finish(None).await?;
    let durable = started.elapsed();

    println!(
        "{mib} MiB taken in {taken:.2?}, durable in {durable:.2?}: {:.0} MiB/s; peak memory grew by {} KiB; {}",
        mib as f64 / durable.as_secs_f64(),
        peak_kib().unwrap_or(0) - before.unwrap_or(0),
        stored.digest
    );
    drop(stored.pin);
    store.delete(&stored.digest).await?;
    Ok(())
}
