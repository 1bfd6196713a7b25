//! Unpacks an image archive into a new store and prints the rate.
//!
//! `cargo run --release -p runtara-oci-image --example unpack_rate -- <archive> <directory>`

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use runtara_oci_image::{Archive, ArchiveOptions, LayerStore, Limits, StoreOptions, Watch};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(path), Some(directory)) = (arguments.next(), arguments.next()) else {
        return Err("wanted: an archive and a directory".into());
    };
    let store = LayerStore::open(&directory, &StoreOptions::default())?;
    let started = Instant::now();
    let archive = Archive::open_path(&path, &ArchiveOptions::new(store.scratch()), Watch::none())?;
    println!(
        "{} layers, found in {:.2?}",
        archive.layers().len(),
        started.elapsed()
    );
    let started = Instant::now();
    let image = store.unpack(&archive, &Limits::default(), Watch::none())?;
    let durable = started.elapsed();
    let bytes: u64 = image
        .layers()
        .iter()
        .map(runtara_oci_image::Layer::bytes)
        .sum();
    let entries: u64 = image
        .layers()
        .iter()
        .map(runtara_oci_image::Layer::entries)
        .sum();
    println!(
        "{entries} entries, {} MiB, durable in {durable:.2?}: {:.0} MiB/s",
        bytes >> 20,
        bytes as f64 / f64::from(1 << 20) / durable.as_secs_f64()
    );
    let started = Instant::now();
    store.unpack(&archive, &Limits::default(), Watch::none())?;
    println!("again in {:.2?}", started.elapsed());
    Ok(())
}
