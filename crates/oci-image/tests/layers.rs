//! What a store of layers promises: each once, whole or not there, kept while it is needed.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::layout::{Packed, docker, image, image_of};
use common::tar_writer::{Entry, archive, directory, file, symlink};
use common::{Ground, is_root, listing, told};
use runtara_domain::ImageDigest;
use runtara_oci_image::{
    ImageError, LayerStore, Limits, OverlayAttributes, OverlayForm, PROGRAM_PATH, Platform,
    StoreOptions, Watch, Whiteouts,
};
use serde_json::json;

fn big(seed: u8) -> Vec<u8> {
    let content: Vec<u8> = (0..300_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed)
        .collect();
    let entries: Vec<Entry> = (0..40)
        .map(|at| file(format!("d/{at}"), &content))
        .collect();
    archive(&entries)
}

#[test]
fn a_layer_that_two_images_have_is_unpacked_once() {
    let ground = Ground::new();
    let (shared, own) = (
        archive(&[file("shared", "1")]),
        archive(&[file("own", "2")]),
    );
    let one = ground.unpack(&image(&[&shared])).unwrap();
    let inode = fs::metadata(one.layers()[0].directory()).unwrap().ino();
    let packed = [
        (shared.as_slice(), Packed::Gzip),
        (own.as_slice(), Packed::Zstd),
    ];
    let two = ground.unpack(&image_of(&packed, &json!({}))).unwrap();
    assert_eq!(one.layers()[0].diff_id(), two.layers()[0].diff_id());
    assert_eq!(
        fs::metadata(two.layers()[0].directory()).unwrap().ino(),
        inode
    );
    // Its bytes count for each image.
    let mut limits = Limits::default();
    limits.image_bytes = 1;
    let error = ground
        .unpack_within(&image(&[&shared]), &limits)
        .unwrap_err();
    assert!(
        told(&error).contains("bytes of all layers of an image"),
        "{}",
        told(&error)
    );
}

#[test]
fn threads_that_need_the_same_layer_unpack_it_once() {
    let ground = Ground::new();
    let archive = ground.open(&image(&[&big(0)])).unwrap();
    let firsts = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // Progress within the layer is told only by who unpacks it.
                let told = AtomicUsize::new(0);
                let progress = |_| {
                    told.fetch_add(1, Ordering::Relaxed);
                };
                let watch = Watch::new(&|| false, &progress);
                ground
                    .store
                    .unpack(&archive, &Limits::default(), watch)
                    .unwrap();
                if told.into_inner() > 1 {
                    firsts.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(firsts.into_inner(), 1);
    ground.assert_untouched();
}

#[test]
fn unpacking_stops_when_it_is_told_to_and_leaves_nothing() {
    let ground = Ground::new();
    let archive = ground.open(&image(&[&big(0)])).unwrap();
    let asked = AtomicUsize::new(0);
    for after in [0, 1, 5, 50, 100] {
        asked.store(0, Ordering::Relaxed);
        let stop = || asked.fetch_add(1, Ordering::Relaxed) >= after;
        let ended = ground
            .store
            .unpack(&archive, &Limits::default(), Watch::new(&stop, &|_| ()));
        assert!(
            matches!(ended, Err(ImageError::Stopped)),
            "after {after}: {ended:?}"
        );
        ground.assert_untouched();
        assert!(
            ground
                .store
                .layer(archive.layers()[0].diff_id)
                .unwrap()
                .is_none()
        );
    }
}

#[test]
fn who_waits_for_another_unpacking_can_be_stopped_and_takes_over_when_it_fails() {
    let ground = Ground::new();
    let archive = ground.open(&image(&[&big(0)])).unwrap();
    let (started, fail) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let stop = || {
                started.store(true, Ordering::SeqCst);
                while !fail.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                true
            };
            // The first question is before anything is claimed.
            let asked = AtomicUsize::new(0);
            let stop = || asked.fetch_add(1, Ordering::Relaxed) > 0 && stop();
            ground
                .store
                .unpack(&archive, &Limits::default(), Watch::new(&stop, &|_| ()))
        });
        while !started.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let asked = AtomicUsize::new(0);
        let stop = || asked.fetch_add(1, Ordering::Relaxed) > 1;
        let stopped = ground
            .store
            .unpack(&archive, &Limits::default(), Watch::new(&stop, &|_| ()));
        assert!(matches!(stopped, Err(ImageError::Stopped)));
        let second = scope.spawn(|| {
            ground
                .store
                .unpack(&archive, &Limits::default(), Watch::none())
        });
        fail.store(true, Ordering::SeqCst);
        assert!(matches!(first.join().unwrap(), Err(ImageError::Stopped)));
        assert_eq!(second.join().unwrap().unwrap().layers().len(), 1);
    });
}

#[test]
fn a_sweep_removes_what_is_not_needed_and_not_held() {
    let ground = Ground::new();
    let layers = [
        archive(&[file("a", "1")]),
        archive(&[file("b", "2")]),
        archive(&[file("c", "3")]),
    ];
    let held = ground.unpack(&image(&[&layers[0]])).unwrap();
    let needed = ground.unpack(&image(&[&layers[1]])).unwrap().layers()[0].diff_id();
    let idle = ground.unpack(&image(&[&layers[2]])).unwrap().layers()[0].diff_id();
    let swept = ground.store.sweep(&BTreeSet::from([needed])).unwrap();
    assert_eq!(swept.removed, [idle]);
    assert_eq!(swept.in_use, [held.layers()[0].diff_id()]);
    assert!(held.layers()[0].directory().join("a").is_file());
    assert!(ground.store.layer(needed).unwrap().is_some());
    assert!(ground.store.layer(idle).unwrap().is_none());
    drop(held);
    assert_eq!(
        ground.store.sweep(&BTreeSet::new()).unwrap().removed.len(),
        2
    );
    ground.assert_untouched();
}

#[test]
fn who_names_a_layer_of_others_must_have_its_content() {
    let ground = Ground::new();
    let (secret, other) = (
        archive(&[file("secret", "of another tenant")]),
        archive(&[file("other", "content")]),
    );
    let host = Platform::host();
    let honest = docker(&host, &[("a.tar", &secret)], &[]);
    // It says that it has that layer, and has something else, or less of it.
    for content in [other.as_slice(), &secret[..512], b""] {
        let claimed = docker(&host, &[("a.tar", &secret)], &[file("a.tar", content)]);
        for _ in 0..2 {
            let error = ground.unpack(&claimed).unwrap_err();
            assert!(
                matches!(
                    error,
                    ImageError::DigestMismatch { .. } | ImageError::Layer { .. }
                ),
                "{error:?}"
            );
            ground.unpack(&honest).unwrap();
        }
    }
    // Beyond its bound it is not read.
    let mut limits = Limits::default();
    limits.layer_bytes = 512;
    let error = ground.unpack_within(&honest, &limits).unwrap_err();
    assert!(told(&error).contains("bytes of one layer"), "{error:?}");
}

#[test]
fn nobody_gets_a_program_by_the_name_of_its_layer() {
    let ground = Ground::new();
    let busybox = fs::File::open("/bin/busybox").unwrap();
    let digest = ImageDigest::of(&fs::read("/bin/busybox").unwrap());
    let watch = Watch::none();
    let made = ground.store.program(&busybox, digest, None, watch).unwrap();
    // Layers of our own making are named by the digest of a text.
    let text = format!("layer of a program, version 1, alone, {digest}\n");
    let name = ImageDigest::of(text.as_bytes());
    assert_eq!(made.layers()[0].diff_id().0, name);
    let claimed = docker(&Platform::host(), &[("a.tar", text.as_bytes())], &[]);
    let error = ground.unpack(&claimed).unwrap_err();
    assert!(matches!(error, ImageError::Layer { .. }), "{error:?}");
}

#[test]
fn one_process_has_a_store_open_at_a_time_and_opening_it_cleans_it() {
    let ground = Ground::new();
    let root = ground.path("store");
    let again = LayerStore::open(&root, &StoreOptions::default());
    assert!(matches!(again, Err(ImageError::InUse { .. })), "{again:?}");
    let image = ground
        .unpack(&image(&[&archive(&[file("a", "1")])]))
        .unwrap();
    let diff_id = image.layers()[0].diff_id();
    let Ground { directory, store } = ground;
    fs::create_dir_all(store.scratch().join("half/root/tree")).unwrap();
    fs::write(store.scratch().join("file"), "x").unwrap();
    drop(store);
    let store = LayerStore::open(&root, &StoreOptions::default()).unwrap();
    assert_eq!(fs::read_dir(store.scratch()).unwrap().count(), 0);
    assert!(store.layer(diff_id).unwrap().is_some());
    assert!(directory.path().exists());
}

#[test]
fn a_layer_without_its_record_is_made_anew() {
    let ground = Ground::new();
    let archive = image(&[&archive(&[file("a", "1")])]);
    let directory = ground.unpack(&archive).unwrap().layers()[0]
        .directory()
        .to_owned();
    let record = directory.with_file_name("layer.json");
    for damage in [&b"{"[..], b"{\"version\":2}"] {
        fs::write(&record, damage).unwrap();
        fs::write(directory.join("b"), "left over").unwrap();
        ground.unpack(&archive).unwrap();
        assert!(!directory.join("b").exists());
    }
    ground.assert_untouched();
}

#[test]
fn the_wrong_layer_is_not_kept() {
    let ground = Ground::new();
    let layer = archive(&[file("a", "1")]);
    let mut whole = image(&[&layer]);
    let at = whole
        .windows(layer.len())
        .position(|window| window == layer)
        .unwrap();
    whole[at + 512] = b'2';
    let error = ground.unpack(&whole).unwrap_err();
    assert!(
        matches!(error, ImageError::DigestMismatch { .. }),
        "{}",
        told(&error)
    );
    assert_eq!(
        fs::read_dir(ground.path("store/layers")).unwrap().count(),
        0
    );
    ground.assert_untouched();
}

/// What removes, in all forms that a store can record it in.
#[test]
fn removed_files_are_recorded_for_overlayfs() {
    let lower = archive(&[
        file("gone", ""),
        file("kept", ""),
        directory("opaque"),
        file("opaque/lower", ""),
        directory("anew"),
        file("anew/lower", ""),
        directory("becomes"),
        file("becomes/lower", ""),
    ]);
    let upper = archive(&[
        file(".wh.gone", ""),
        directory("opaque"),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/upper", ""),
        file(".wh.anew", ""),
        directory("anew"),
        file("anew/upper", ""),
        directory("becomes"),
        file("becomes/upper", ""),
        file(".wh.becomes", ""),
        // Of what the layer itself has, a whiteout says nothing.
        file("same", ""),
        file(".wh.same", ""),
    ]);
    let attributes = if is_root() {
        vec![OverlayAttributes::Trusted, OverlayAttributes::User]
    } else {
        vec![OverlayAttributes::User]
    };
    for attributes in attributes {
        for whiteouts in [Whiteouts::Device, Whiteouts::Attribute] {
            let mut options = StoreOptions::default();
            options.form = Some(OverlayForm {
                attributes,
                whiteouts,
            });
            let ground = Ground::with(&options);
            let image = ground.unpack(&image(&[&lower, &upper])).unwrap();
            let root = image.layers()[1].directory();
            let stat = fs::symlink_metadata(root.join("gone")).unwrap();
            match whiteouts {
                Whiteouts::Device => {
                    assert_eq!((stat.mode() & 0o170_000, stat.rdev()), (0o020_000, 0));
                }
                Whiteouts::Attribute => {
                    assert_eq!((stat.mode() & 0o170_000, stat.size()), (0o100_000, 0));
                }
            }
            let prefix = if attributes == OverlayAttributes::Trusted {
                "trusted"
            } else {
                "user"
            };
            for name in ["opaque", "anew", "becomes"] {
                let mut value = [0; 4];
                let name = rustix::fs::getxattr(
                    root.join(name),
                    format!("{prefix}.overlay.opaque"),
                    &mut value,
                );
                assert_eq!(&value[..name.unwrap()], b"y");
            }
            let expected = [
                "anew",
                "anew/upper",
                "becomes",
                "becomes/upper",
                "kept",
                "opaque",
                "opaque/upper",
                "same",
            ];
            let flat = ground.flatten(&image);
            assert_eq!(
                listing(&flat).into_keys().collect::<Vec<_>>(),
                expected,
                "{attributes:?} {whiteouts:?}"
            );
            let merged = image.merged().unwrap();
            for (path, there) in [
                ("gone", false),
                ("kept", true),
                ("opaque/lower", false),
                ("opaque/upper", true),
                ("anew/lower", false),
            ] {
                assert_eq!(merged.has_file(path).unwrap(), there, "{path}");
            }
            ground.assert_untouched();
        }
    }
}

#[test]
fn an_opaque_root_hides_all_below() {
    let ground = Ground::new();
    let image = ground
        .unpack(&image(&[
            &archive(&[file("lower", "")]),
            &archive(&[file(".wh..wh..opq", ""), file("upper", "")]),
        ]))
        .unwrap();
    assert_eq!(image.lower_directories(), [image.layers()[1].directory()]);
    assert_eq!(
        listing(&ground.flatten(&image))
            .into_keys()
            .collect::<Vec<_>>(),
        ["upper"]
    );
    assert!(!image.merged().unwrap().has_file("lower").unwrap());
}

/// A layer that puts a file into a directory which it does not describe must not change the directory.
#[test]
fn directories_are_as_the_layer_says_that_describes_them() {
    let ground = Ground::new();
    let lower = archive(&[
        directory("tmp").mode(0o1777),
        directory("srv").mode(0o750).owner(7, 8),
        directory("srv/a").mode(0o711),
    ]);
    let upper = archive(&[file("tmp/x", ""), file("srv/a/y", ""), file("new/z", "")]);
    let image = ground.unpack(&image(&[&lower, &upper])).unwrap();
    assert_eq!(image.layers().len(), 3);
    let restored = image.layers()[2].clone();
    assert_eq!(image.lower_directories()[0], restored.directory());
    let mode = |root: &std::path::Path, name: &str| {
        let stat = fs::metadata(root.join(name)).unwrap();
        (stat.mode() & 0o7777, if is_root() { stat.uid() } else { 0 })
    };
    let flat = ground.flatten(&image);
    for (name, uid, expected) in [("tmp", 0, 0o1777), ("srv", 7, 0o750), ("srv/a", 0, 0o711)] {
        let uid = if is_root() { uid } else { 0 };
        assert_eq!(mode(restored.directory(), name), (expected, uid), "{name}");
        assert_eq!(mode(&flat, name), (expected, uid), "{name}");
    }
    assert_eq!(mode(&flat, "new").0, 0o755);
    assert!(!restored.directory().join("new").exists());
    // The same again is the same layer.
    let again = ground
        .unpack(&common::layout::image(&[&lower, &upper]))
        .unwrap();
    assert_eq!(again.layers()[2].diff_id(), restored.diff_id());
}

#[test]
fn users_and_working_directories_are_those_of_the_image() {
    let ground = Ground::new();
    let lower = archive(&[
        file("etc/passwd", "old:x:1:1::/:\n"),
        symlink("etc/group", "/../../usr/group"),
        file("usr/group", "web:x:33:app\n"),
        symlink("var/escape", "/proc/self/fd"),
        symlink("var/fine", "../srv/./www"),
        symlink("loop", "loop"),
        symlink("up", "../../../.."),
    ]);
    let upper = archive(&[file("etc/passwd", "app:x:1000:1000::/srv:\n")]);
    let image = ground.unpack(&image(&[&lower, &upper])).unwrap();
    let merged = image.merged().unwrap();
    let user = merged.user("app").unwrap();
    assert_eq!((user.uid, user.gid, user.groups), (1000, 1000, vec![33]));
    assert!(matches!(merged.user("old"), Err(ImageError::User(_))));
    assert_eq!(
        merged.working_directory("/var/fine/x").unwrap().to_str(),
        Some("/srv/www/x")
    );
    assert_eq!(
        merged.working_directory("/up/etc").unwrap().to_str(),
        Some("/etc")
    );
    for path in ["/var/escape/7", "/up/proc/1", "/loop/x"] {
        let refused = merged.working_directory(path);
        assert!(
            matches!(refused, Err(ImageError::Config(_))),
            "{path}: {refused:?}"
        );
    }
    // A list that is a device or a directory, or that leads out, is none; a huge one is refused.
    let odd = ground
        .unpack(&common::layout::image(&[&archive(&[
            directory("etc/passwd"),
            symlink("etc/group", "/etc/group"),
        ])]))
        .unwrap();
    assert_eq!(odd.merged().unwrap().user("12").unwrap().uid, 12);
    let huge = ground
        .unpack(&common::layout::image(&[&archive(&[file(
            "etc/passwd",
            vec![b'x'; 5 << 20],
        )])]))
        .unwrap();
    let error = huge.merged().unwrap().user("12").unwrap_err();
    assert!(
        told(&error).contains("larger than 4194304 bytes"),
        "{}",
        told(&error)
    );
}

fn program(bytes: &[u8]) -> (fs::File, ImageDigest) {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    (file, ImageDigest::of(bytes))
}

#[test]
fn a_static_program_is_an_image_by_itself() {
    let ground = Ground::new();
    let busybox = fs::read("/bin/busybox").unwrap_or_else(|error| {
        panic!("cannot read /bin/busybox ({error}); install the package busybox-static")
    });
    let (file, digest) = program(&busybox);
    let image = ground
        .store
        .program(&file, digest, None, Watch::none())
        .unwrap();
    let root = image.layers()[0].directory();
    assert!(fs::read(root.join(PROGRAM_PATH.trim_start_matches('/'))).unwrap() == busybox);
    for (name, mode) in [
        ("proc", 0o555),
        ("tmp", 0o1777),
        ("data", 0o755),
        ("etc/passwd", 0o644),
        ("program", 0o555),
    ] {
        assert_eq!(
            fs::metadata(root.join(name)).unwrap().mode() & 0o7777,
            if is_root() { mode } else { mode | 0o400 },
            "{name}"
        );
    }
    assert_eq!(image.merged().unwrap().user("nobody").unwrap().uid, 65_534);
    let wrong = ground
        .store
        .program(&file, ImageDigest([7; 32]), None, Watch::none());
    assert!(
        matches!(wrong, Err(ImageError::DigestMismatch { .. })),
        "{wrong:?}"
    );
    ground.assert_untouched();
}

#[test]
fn a_dynamic_program_needs_a_base_that_has_its_loader() {
    let ground = Ground::new();
    let this = fs::read(std::env::current_exe().unwrap()).unwrap();
    let (file, digest) = program(&this);
    let Some(loader) = runtara_images::detect(&mut &file)
        .ok()
        .and_then(|found| match found {
            runtara_images::Detected::Elf(elf) => elf.interpreter,
            _ => None,
        })
    else {
        panic!("this test program should be linked dynamically");
    };
    let alone = ground
        .store
        .program(&file, digest, None, Watch::none())
        .unwrap_err();
    assert!(
        told(&alone).contains(&format!("it needs {loader}, and would be alone")),
        "{}",
        told(&alone)
    );
    let without = ground
        .unpack(&image(&[&archive(&[common::tar_writer::file(
            "etc/x", "",
        )])]))
        .unwrap();
    let missing = ground
        .store
        .program(&file, digest, Some(&without), Watch::none())
        .unwrap_err();
    assert!(
        told(&missing).contains(&format!("it needs {loader}, which the base")),
        "{}",
        told(&missing)
    );
    let with = ground
        .unpack(&image(&[&archive(&[common::tar_writer::file(
            &loader, "loader",
        )])]))
        .unwrap();
    let on_base = ground
        .store
        .program(&file, digest, Some(&with), Watch::none())
        .unwrap();
    assert_eq!(on_base.layers().len(), 2);
    assert_eq!(
        listing(on_base.layers()[1].directory())
            .into_keys()
            .collect::<Vec<_>>(),
        ["program"]
    );
    let (script, digest) = program(b"#!/bin/sh\n");
    let refused = ground
        .store
        .program(&script, digest, None, Watch::none())
        .unwrap_err();
    assert!(
        told(&refused).contains("it needs /bin/sh"),
        "{}",
        told(&refused)
    );
    let (text, digest) = program(b"hello");
    let refused = ground
        .store
        .program(&text, digest, None, Watch::none())
        .unwrap_err();
    assert!(
        matches!(refused, ImageError::Program { .. }),
        "{}",
        told(&refused)
    );
}
