//! A process that unpacks is killed at random moments. Afterwards the store has whole layers and nothing else, and unpacks.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::layout::{Packed, image_of};
use common::tar_writer::{Entry, archive, directory, file, hard_link};
use common::{listing, memory};
use runtara_oci_image::{
    Archive, ArchiveOptions, LayerStore, Limits, StoreOptions, UnpackedImage, Watch,
};
use serde_json::json;

const ROUNDS: u32 = 15;
const CHILD: &str = "RUNTARA_TEST_UNPACK_IN";

fn unpack(directory: &Path) -> (LayerStore, UnpackedImage) {
    let store = LayerStore::open(&directory.join("store"), &StoreOptions::default()).unwrap();
    let options = ArchiveOptions::new(store.scratch());
    let archive = Archive::open_path(&directory.join("archive"), &options, Watch::none()).unwrap();
    let image = store
        .unpack(&archive, &Limits::default(), Watch::none())
        .unwrap();
    (store, image)
}

/// What the killed process does; in an ordinary run of the tests, nothing.
#[test]
fn child() {
    if let Some(directory) = std::env::var_os(CHILD) {
        unpack(Path::new(&directory));
    }
}

fn layer(seed: u8) -> Vec<u8> {
    let mut entries: Vec<Entry> = vec![directory("d").mode(0o555)];
    for at in 0..100 {
        entries.push(file(format!("d/{at}"), vec![seed ^ at; 20_000]));
        entries.push(hard_link(format!("link{at}"), format!("d/{at}")));
        entries.push(file(format!("{at}/.wh.{at}"), ""));
    }
    archive(&entries)
}

fn whole(image: &UnpackedImage) -> Vec<BTreeMap<String, String>> {
    image
        .layers()
        .iter()
        .map(|layer| listing(layer.directory()))
        .collect()
}

#[test]
fn a_store_survives_being_killed_at_any_moment() {
    let layers = [layer(0), layer(1), layer(2)];
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| (layer.as_slice(), Packed::Plain))
        .collect();
    let content = image_of(&layers, &json!({}));

    let reference = memory();
    fs::write(reference.path().join("archive"), &content).unwrap();
    let started = std::time::Instant::now();
    let (_store, image) = unpack(reference.path());
    let (taken, expected) = (started.elapsed(), whole(&image));

    let mut killed = 0;
    for round in 0..ROUNDS {
        let ground = memory();
        fs::write(ground.path().join("archive"), &content).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child"])
            .env(CHILD, ground.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over the time that it takes, with a little more for starting the process.
        std::thread::sleep((taken + Duration::from_millis(20)) * round / ROUNDS);
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());

        let (store, image) = unpack(ground.path());
        assert_eq!(fs::read_dir(store.scratch()).unwrap().count(), 0);
        assert!(
            whole(&image) == expected,
            "round {round}: a layer is not whole"
        );
    }
    assert!(
        killed > ROUNDS / 2,
        "only {killed} of {ROUNDS} were killed before they were done"
    );
}
