//! What the fuzz targets start from, and what they found, again.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod common;

use std::fs;
use std::path::Path;

use common::{layout, replay, tar_writer};
use proptest::prelude::*;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut paths: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn the_corpus_of_layers_does_no_harm() {
    for layer in corpus("layer") {
        replay::layer(&layer);
    }
}

#[test]
fn the_corpus_of_archives_does_no_harm() {
    for archive in corpus("archive") {
        replay::archive(&archive);
    }
}

/// Entries out of few names, so that they meet one another.
fn entries() -> impl Strategy<Value = Vec<tar_writer::Entry>> {
    let names = prop::sample::select(vec![
        "a",
        "b",
        "a/b",
        "a/b/c",
        "b/a",
        "../a",
        "/a",
        ".wh.a",
        "a/.wh.b",
        "a/.wh..wh..opq",
        ".wh..wh..opq",
        "./",
        ".wh..",
        "a/b/../c",
        ".wh.a/b",
        "c",
    ]);
    let targets = prop::sample::select(vec![
        "a",
        "/a",
        "../../sentinel",
        "../../../sentinel/file",
        "b/a",
        ".",
        "/",
        "..",
        "a/b",
        "",
    ]);
    let entry = (
        names,
        targets,
        prop::sample::select(b"0125367LKxgS".to_vec()),
    )
        .prop_map(|(name, target, flag)| {
            let mut entry = tar_writer::other(name, flag);
            entry.target = target.as_bytes().to_vec();
            entry
        });
    prop::collection::vec(entry, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn entries_in_any_order_do_no_harm(entries in entries()) {
        replay::layer(&tar_writer::archive(&entries));
    }

    #[test]
    fn damaged_archives_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let layer = tar_writer::archive(&[tar_writer::file("a", "content")]);
        let mut archive = layout::image(&[&layer]);
        for (at, byte) in changes {
            let at = at.index(archive.len());
            archive[at] = byte;
            // So that damage to a header reaches the code behind its checksum.
            let header = at / 512 * 512;
            if archive[header + 257..header + 262] == *b"ustar" {
                tar_writer::seal(&mut archive[header..header + 512]);
            }
        }
        replay::archive(&archive);
    }
}

/// Names that are sound and do not meet: what becomes of those that do is a rule of images, not of the format.
fn sound() -> impl Strategy<Value = Vec<(String, Vec<u8>, u32, u64)>> {
    let name = prop::collection::vec("[a-zé ]{1,60}", 1..5).prop_map(|parts| parts.join("/"));
    let content = prop::collection::vec(any::<u8>(), 0..1_500);
    let mode = prop::sample::select(vec![0o644, 0o600, 0o755, 0o444]);
    prop::collection::vec((name, content, mode, 0..1_u64 << 34), 1..8).prop_map(|mut entries| {
        for (at, (name, ..)) in entries.iter_mut().enumerate() {
            *name = format!("{at}/{name}");
        }
        entries
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn what_another_writer_writes_is_what_another_reader_reads(entries in sound()) {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content, mode, modified) in &entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(*mode);
            header.set_mtime(*modified);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content.as_slice()).unwrap();
        }
        let layer = builder.into_inner().unwrap();
        let ground = common::Ground::in_memory();
        let ours = ground.unpack_layer(&layer).unwrap();
        let theirs = ground.path("flat-theirs");
        tar::Archive::new(layer.as_slice()).unpack(&theirs).unwrap();
        let files = |root: &Path| {
            let mut found = common::listing(root);
            found.retain(|_, what| !what.ends_with("directory"));
            found
        };
        prop_assert_eq!(files(&ours), files(&theirs));
    }
}
