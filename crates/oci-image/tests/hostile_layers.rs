//! Layers that try to leave their place, or to take too much. Each is refused with its reason, or does no harm; and nothing beside
//! the store is touched.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

use common::layout::{Packed, image, image_of, pack};
use common::tar_writer::{Entry, archive, directory, file, hard_link, other, seal, symlink};
use common::{Ground, is_root, listing, told};
use runtara_oci_image::{EntryProblem, ImageError, Limit, Limits};
use serde_json::json;

fn problem(error: ImageError) -> (String, EntryProblem) {
    match error {
        ImageError::Layer { entry, problem, .. } => {
            (String::from_utf8_lossy(&entry.name).into_owned(), *problem)
        }
        other => panic!("{}", told(&other)),
    }
}

/// The layer is refused at this entry, and what is told has this in it.
fn refused(entries: &[Entry], at: &str, reason: &str) {
    refused_bytes(&archive(entries), at, reason);
}

fn refused_bytes(layer: &[u8], at: &str, reason: &str) {
    let ground = Ground::new();
    let error = ground.unpack_layer(layer).unwrap_err();
    let text = told(&error);
    assert!(text.contains(reason), "{text}");
    assert_eq!(problem(error).0, at, "{text}");
    ground.assert_untouched();
}

fn names(entries: &[Entry]) -> Vec<String> {
    let ground = Ground::new();
    let root = ground.unpack_layer(&archive(entries)).unwrap();
    ground.assert_untouched();
    listing(&root).into_keys().collect()
}

#[test]
fn paths_that_lead_up_are_refused() {
    for name in [
        "../sentinel/x",
        "a/../../sentinel/x",
        "/../x",
        "..",
        "a/..",
        "./../x",
    ] {
        refused(&[file(name, "x")], name, "has a `..` in its name");
        refused(&[directory(name)], name, "has a `..` in its name");
        refused(&[symlink(name, "x")], name, "has a `..` in its name");
    }
    refused(
        &[file("a", ""), hard_link("b", "../../sentinel/file")],
        "b",
        "has a `..` in its target",
    );
}

#[test]
fn absolute_paths_are_those_of_the_image() {
    assert_eq!(
        names(&[file("/etc/made", "x"), hard_link("/linked", "/etc/made")]),
        ["etc", "etc/made", "linked"]
    );
    assert!(!fs::exists("/etc/made").unwrap());
}

#[test]
fn what_is_written_through_a_link_stays_inside() {
    let ground = Ground::new();
    let sentinel = ground.path("sentinel");
    let outside = sentinel.as_os_str().as_bytes().to_vec();
    // The link's target does not exist in the image, so that there is nothing to write into.
    for target in [
        outside,
        b"../../../../sentinel".to_vec(),
        b"/proc/self/root".to_vec(),
        b"/proc/self/cwd".to_vec(),
    ] {
        let entries = [symlink("link", &target), file("link/file", "overwritten")];
        let error = ground.unpack_layer(&archive(&entries)).unwrap_err();
        let (at, problem) = problem(error);
        assert_eq!(at, "link/file");
        assert!(
            matches!(problem, EntryProblem::ParentNotDirectory { .. }),
            "{problem:?}"
        );
        ground.assert_untouched();
    }
    // Where it exists in the image, that is where it goes: the root is the image's.
    let entries = [
        directory("real"),
        symlink("up", "../../../../../real"),
        symlink("absolute", "/real"),
        symlink("chain", "up"),
        file("up/one", "1"),
        file("absolute/two", "2"),
        file("chain/three", "3"),
    ];
    let root = ground.unpack_layer(&archive(&entries)).unwrap();
    for name in ["one", "two", "three"] {
        assert!(root.join("real").join(name).is_file(), "{name}");
    }
    ground.assert_untouched();
}

#[test]
fn a_file_takes_the_place_of_a_link_and_does_not_follow_it() {
    let ground = Ground::new();
    let target = ground.path("sentinel/file");
    let entries = [
        symlink("link", target.as_os_str().as_bytes()),
        file("link", "own"),
    ];
    let root = ground.unpack_layer(&archive(&entries)).unwrap();
    assert!(fs::symlink_metadata(root.join("link")).unwrap().is_file());
    ground.assert_untouched();
    // Nor does a second file write into what another name leads to.
    let entries = [file("a", "first"), hard_link("b", "a"), file("b", "second")];
    let root = ground.unpack_layer(&archive(&entries)).unwrap();
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "first");
}

#[test]
fn hard_links_lead_nowhere_but_into_the_layer() {
    let ground = Ground::new();
    let target = ground.path("sentinel/file");
    let target = target.as_os_str().as_bytes();
    let parent = ground.path("sentinel");
    for entries in [
        vec![hard_link("x", target)],
        vec![
            symlink("out", parent.as_os_str().as_bytes()),
            hard_link("x", "out/file"),
        ],
        vec![hard_link("x", "missing")],
        vec![hard_link("x", "x")],
        vec![file(".wh.gone", ""), hard_link("x", "gone")],
        vec![file(".wh.gone", ""), hard_link("x", ".wh.gone")],
        vec![
            directory("x"),
            file("x/inner", ""),
            hard_link("x", "x/inner"),
        ],
    ] {
        let error = ground.unpack_layer(&archive(&entries)).unwrap_err();
        let (at, problem) = problem(error);
        assert_eq!(at, "x");
        assert!(
            matches!(problem, EntryProblem::LinkTargetAbsent { .. }),
            "{problem:?}"
        );
        ground.assert_untouched();
    }
    refused(
        &[directory("d"), hard_link("x", "d")],
        "x",
        "which is a directory",
    );
    // A hard link to a symbolic link is one more name of the link itself.
    let entries = [
        symlink("link", target),
        hard_link("x", "link"),
        hard_link("link", "x"),
    ];
    let root = ground.unpack_layer(&archive(&entries)).unwrap();
    assert!(fs::symlink_metadata(root.join("x")).unwrap().is_symlink());
    ground.assert_untouched();
}

#[test]
fn whiteouts_of_nothing_are_refused_and_others_stay_inside() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.."] {
        refused(
            &[file(name, "")],
            name,
            "names nothing that could be removed",
        );
    }
    refused(
        &[file("../.wh.sentinel", "")],
        "../.wh.sentinel",
        "has a `..`",
    );
    refused(&[file(".wh.a/b", "")], ".wh.a/b", "has something in it");
    let ground = Ground::new();
    let outside = ground.path("sentinel");
    let entries = [
        symlink("out", outside.as_os_str().as_bytes()),
        file("out/.wh.file", ""),
        file("out/.wh..wh..opq", ""),
    ];
    // There is nothing there that a lower layer could have.
    let error = ground.unpack_layer(&archive(&entries)).unwrap_err();
    assert_eq!(problem(error).0, "out/.wh..wh..opq");
    ground.assert_untouched();
    assert_eq!(
        names(&[
            file(".wh..wh.plnk", ""),
            directory(".wh..wh.aufs"),
            file(".wh..wh.aufs/x", "")
        ]),
        [""; 0]
    );
}

#[test]
fn devices_and_pipes_are_left_out_and_counted() {
    let ground = Ground::new();
    let entries = [
        directory("dev"),
        other("dev/null", b'3'),
        other("dev/sda", b'4'),
        other("dev/initctl", b'6'),
        file("dev/file", ""),
    ];
    let image = ground.unpack(&image(&[&archive(&entries)])).unwrap();
    let layer = &image.layers()[0];
    assert_eq!(layer.skipped(), 3);
    assert_eq!(
        listing(layer.directory()).into_keys().collect::<Vec<_>>(),
        ["dev", "dev/file"]
    );
    for flag in [b'9', b'D', b'V', b'A', b'X'] {
        let reason = format!("is of the unknown type '{}'", char::from(flag));
        refused(&[other("odd", flag)], "odd", &reason);
    }
}

#[test]
fn setuid_bits_go_and_stay_where_that_is_allowed() {
    let layer = archive(&[
        file("su", "x").mode(0o4755),
        file("sg", "x").mode(0o2755),
        directory("shared").mode(0o2775),
        directory("tmp").mode(0o1777),
    ]);
    let modes = |ground: &Ground| {
        let root = ground.unpack_layer(&layer).unwrap();
        ["su", "sg", "shared", "tmp"]
            .map(|name| fs::metadata(root.join(name)).unwrap().mode() & 0o7777)
    };
    assert_eq!(modes(&Ground::new()), [0o755, 0o755, 0o775, 0o1777]);
    let mut options = runtara_oci_image::StoreOptions::default();
    options.keep_setuid = true;
    assert_eq!(
        modes(&Ground::with(&options)),
        [0o4755, 0o2755, 0o2775, 0o1777]
    );
}

#[test]
fn of_two_entries_of_one_name_the_later_counts() {
    let ground = Ground::new();
    let entries = [
        file("file-file", "1"),
        file("file-file", "2"),
        file("file-directory", "1"),
        directory("file-directory"),
        file("file-directory/in", ""),
        directory("directory-file/deep"),
        file("directory-file/deep/in", ""),
        file("directory-file", "2"),
        directory("twice").mode(0o700),
        file("twice/in", ""),
        directory("twice").mode(0o750),
        symlink("link-directory", "twice"),
        directory("link-directory"),
        file("link-directory/in", ""),
        directory("directory-link"),
        symlink("directory-link", "twice"),
    ];
    let root = ground.unpack_layer(&archive(&entries)).unwrap();
    let found = listing(&root);
    assert_eq!(fs::read_to_string(root.join("file-file")).unwrap(), "2");
    assert!(found.contains_key("file-directory/in"));
    assert_eq!(
        fs::read_to_string(root.join("directory-file")).unwrap(),
        "2"
    );
    assert_eq!(
        fs::metadata(root.join("twice")).unwrap().mode() & 0o777,
        0o750
    );
    assert!(found.contains_key("twice/in"));
    assert!(
        fs::symlink_metadata(root.join("link-directory"))
            .unwrap()
            .is_dir()
    );
    assert!(
        fs::symlink_metadata(root.join("directory-link"))
            .unwrap()
            .is_symlink()
    );
    refused(
        &[file("a", ""), file("a/b", "")],
        "a/b",
        "lies in \"a\", which is not a directory",
    );
    refused(&[file("/", "")], "/", "the root of an image is a directory");
    refused(
        &[symlink("./", "x")],
        "./",
        "the root of an image is a directory",
    );
}

#[test]
fn names_are_bytes_within_the_bounds_of_linux() {
    let ground = Ground::new();
    let long = [b'n'; 255];
    let deep = vec!["d".repeat(50); 70].join("/");
    let entries = [
        file(b"caf\xe9", "latin"),
        file(long, "long"),
        file(&deep, "deep"),
        symlink("to", "t".repeat(4_095)),
        file("spaces and\nnewlines", ""),
    ];
    let root = ground.unpack_layer(&archive(&entries)).unwrap();
    assert!(root.join(std::ffi::OsStr::from_bytes(b"caf\xe9")).is_file());
    assert!(root.join(std::ffi::OsStr::from_bytes(&long)).is_file());
    assert!(root.join(&deep).is_file());
    let name = "n".repeat(256);
    refused(
        &[file(&name, "")],
        &name,
        "at most 255 bytes of one name in a path are allowed, and there are 256",
    );
    let path = vec!["d".repeat(40); 100].join("/");
    refused(
        &[file(&path, "")],
        &path,
        "at most 4095 bytes of one path are allowed",
    );
    refused(
        &[symlink("to", "t".repeat(4_096))],
        "to",
        "at most 4095 bytes of one path are allowed",
    );
    refused(&[file("a", "").record("path", b"a\0b")], "", "has a NUL");
    refused(&[symlink("to", "")], "to", "needs a target");
}

#[test]
fn extended_headers_are_read_within_bounds() {
    let ground = Ground::new();
    let long = "pax/".to_owned() + &"p".repeat(150);
    let entries = [
        file("short", "content")
            .record("path", &long)
            .record("mtime", "-1.5")
            .record("uid", "7"),
        symlink("to", "x").record("linkpath", "l".repeat(200)),
        file("attributed", "x")
            .record("SCHILY.xattr.user.mime", "text/plain")
            .record("SCHILY.xattr.user.overlay.opaque", "y")
            .record("SCHILY.xattr.trusted.overlay.redirect", "/etc")
            .record("SCHILY.xattr.security.capability", "\x01\0\0\x02"),
        file("future", "").record("mtime", "99999999999999999999.9"),
        file("past", "").record("mtime", "-99999999999999999999"),
        file("global", ""),
    ];
    let root = ground.unpack_layer(&archive(&entries)).unwrap();
    let stat = fs::metadata(root.join(&long)).unwrap();
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (-2, 500_000_000));
    if is_root() {
        assert_eq!(stat.uid(), 7);
    }
    assert_eq!(
        fs::read_link(root.join("to")).unwrap().as_os_str().len(),
        200
    );
    let mut names = [0; 4_096];
    let attributed = fs::File::open(root.join("attributed")).unwrap();
    let length = rustix::fs::flistxattr(&attributed, &mut names).unwrap();
    assert_eq!(&names[..length], b"user.mime\0");

    let huge = other("x", b'x').size(1 << 40);
    refused(&[huge], "", "bytes of the extended header of one entry");
    let many: Vec<u8> = (0..9).flat_map(|_| other("x", b'x').bytes()).collect();
    refused_bytes(&many, "", "extended headers of one entry");
    for (records, reason) in [
        ("7 a=b\n", "wrong length"),
        ("99 path=x\n", "wrong length"),
        ("x path=x\n", "wrong length"),
        ("6 path\n", "wrong length"),
        ("7 path\n", "has no `=`"),
        ("10 size=x\n", "a number in its extended header is none"),
        ("11 size=-1\n", "its size is negative"),
        ("15 mtime=never\n", "a time in its extended header is none"),
    ] {
        let mut header = other("x", b'x');
        header.content = records.as_bytes().to_vec();
        let layer = [header.bytes(), file("f", "").bytes(), vec![0; 1024]].concat();
        let error = told(&Ground::new().unpack_layer(&layer).unwrap_err());
        assert!(error.contains(reason), "{records:?}: {error}");
    }
}

#[test]
fn owners_that_cannot_be_are_refused() {
    if !is_root() {
        // Owners are of no interest to who cannot set them.
        let ground = Ground::new();
        ground
            .unpack_layer(&archive(&[file("a", "").owner(u64::MAX >> 1, 0)]))
            .unwrap();
        return;
    }
    refused(
        &[file("a", "").owner(u64::from(u32::MAX), 0)],
        "a",
        "belongs to user 4294967295; at most 4294967294",
    );
    refused(
        &[file("a", "").owner(0, 1 << 40)],
        "a",
        "belongs to group 1099511627776",
    );
    refused(
        &[file("a", "").record("uid", "-1")],
        "a",
        "belongs to user -1",
    );
    let ground = Ground::new();
    let root = ground
        .unpack_layer(&archive(&[file("a", "").owner(4_294_967_294, 3_000_000)]))
        .unwrap();
    let stat = fs::metadata(root.join("a")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (4_294_967_294, 3_000_000));
}

#[test]
fn owners_are_shifted_into_the_range_of_a_user_namespace() {
    let mut options = runtara_oci_image::StoreOptions::default();
    if !is_root() {
        options.ownership = runtara_oci_image::Ownership::Discarded;
        let ground = Ground::with(&options);
        let root = ground
            .unpack_layer(&archive(&[file("a", "").owner(1000, 50).mode(0)]))
            .unwrap();
        let stat = fs::metadata(root.join("a")).unwrap();
        assert_eq!(
            (stat.uid(), stat.mode() & 0o777),
            (rustix::process::geteuid().as_raw(), 0o400)
        );
        return;
    }
    options.ownership = runtara_oci_image::Ownership::Shifted {
        by: 100_000,
        count: 65_536,
    };
    let ground = Ground::with(&options);
    let entries = [
        directory("d").owner(0, 0),
        file("d/a", "").owner(1000, 65_535),
        symlink("l", "a").owner(1, 2),
    ];
    let root = ground.unpack_layer(&archive(&entries)).unwrap();
    let owner = |name: &str| {
        let stat = fs::symlink_metadata(root.join(name)).unwrap();
        (stat.uid(), stat.gid())
    };
    assert_eq!(owner(""), (100_000, 100_000));
    assert_eq!(owner("d"), (100_000, 100_000));
    assert_eq!(owner("d/a"), (101_000, 165_535));
    assert_eq!(owner("l"), (100_001, 100_002));
    let error = ground
        .unpack_layer(&archive(&[file("a", "").owner(65_536, 0)]))
        .unwrap_err();
    assert!(
        told(&error).contains("belongs to user 65536; at most 65535 is possible here"),
        "{}",
        told(&error)
    );
}

#[test]
fn broken_archives_are_refused_where_they_break() {
    let whole = archive(&[file("a", "x".repeat(2_000)), file("b", "y")]);
    refused_bytes(&whole[..1_000], "a", "is cut off");
    refused_bytes(&whole[..2_600], "", "is cut off");
    let mut changed = whole.clone();
    changed[2_560] ^= 1;
    refused_bytes(&changed, "", "wrong checksum");
    refused(&[file("a", "x").size(1 << 33)], "a", "is cut off");
    refused(
        &[file("a", "x").size(u64::MAX)],
        "",
        "its size is not a number",
    );
    let lone = [file("a", "").bytes(), vec![0; 512], file("b", "").bytes()].concat();
    refused_bytes(&lone, "", "a block of zeroes");
    refused_bytes(b"not a tar archive at all", "", "is cut off");
    // Without its end, with trailing zeroes or other bytes, an archive is as it was.
    let ground = Ground::new();
    for tail in [
        vec![],
        vec![0; 512],
        vec![0; 10_240],
        [vec![0; 1024], b"trailing garbage".to_vec()].concat(),
    ] {
        let layer = [file("a", "x").bytes(), tail].concat();
        let root = ground.unpack_layer(&layer).unwrap();
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "x");
    }
    // An empty layer is one.
    assert_eq!(listing(&ground.unpack_layer(&[]).unwrap()).len(), 0);
}

#[test]
fn hostile_sparse_maps_are_refused() {
    let pax = |map: &str, size: &str, content: &str| {
        file("s", content)
            .record("GNU.sparse.map", map)
            .record("GNU.sparse.size", size)
    };
    refused(
        &[pax("0,4,2,4", "100", "12345678")],
        "s",
        "overlap or lie outside",
    );
    refused(
        &[pax("90,20", "100", "x".repeat(20).as_str())],
        "s",
        "overlap or lie outside",
    );
    refused(&[pax("0,-4", "100", "1234")], "s", "a negative number");
    refused(&[pax("0,4", "-1", "1234")], "s", "has no size");
    refused(&[pax("0,9", "100", "1234")], "s", "of another size");
    refused(
        &[pax("0,9,3", "100", "1234")],
        "s",
        "an offset without a length",
    );
    refused(
        &[pax(
            "9223372036854775807,9223372036854775807",
            "9223372036854775807",
            "1234",
        )],
        "s",
        "overlap or lie outside",
    );
    refused(
        &[pax("0,4", "9223372036854775807", "1234")],
        "s",
        "bytes of one file",
    );
    let many = vec!["1,0"; 70_000].join(",");
    refused(&[pax(&many, "100", "")], "", "pieces of one sparse file");
    let before = |content: &str| {
        file("s", content)
            .record("GNU.sparse.major", "1")
            .record("GNU.sparse.minor", "0")
            .record("GNU.sparse.realsize", "9")
    };
    refused(
        &[before(&format!("{:\n<512}", "999999999\n"))],
        "s",
        "pieces of one sparse file",
    );
    refused(&[before(&"1".repeat(512))], "s", "not made of numbers");
    refused(&[before("1\n0\n")], "s", "is cut off");
    // GNU's own form that goes on for ever: its blocks end with the archive.
    let mut gnu = other("s", b'S').bytes();
    gnu[482] = 1;
    gnu[483..495].copy_from_slice(b"00000000144\0");
    seal(&mut gnu);
    let mut block = vec![0; 512];
    block[504] = 1;
    refused_bytes(&[gnu, block.repeat(100)].concat(), "s", "is cut off");
}

#[test]
fn each_limit_is_told_with_what_was_found() {
    let unpack = |layers: &[&[u8]], set: &dyn Fn(&mut Limits)| {
        let mut limits = Limits::default();
        set(&mut limits);
        let ground = Ground::new();
        let error = ground.unpack_within(&image(layers), &limits).unwrap_err();
        ground.assert_untouched();
        problem(error)
    };
    let exceeded = |(at, problem): (String, EntryProblem)| match problem {
        EntryProblem::Limit(exceeded) => (at, exceeded.limit, exceeded.allowed, exceeded.found),
        other => panic!("{other:?}"),
    };
    let small = archive(&[file("a", "x".repeat(3_000)), file("b", "y".repeat(3_000))]);
    let found = exceeded(unpack(&[&small], &|limits| limits.file_bytes = 2_999));
    assert_eq!(found, ("a".into(), Limit::FileBytes, 2_999, 3_000));
    let found = exceeded(unpack(&[&small], &|limits| limits.layer_bytes = 5_999));
    assert_eq!(found, ("b".into(), Limit::LayerBytes, 5_999, 6_000));
    let other = archive(&[file("c", "z".repeat(3_000))]);
    let found = exceeded(unpack(&[&small, &other], &|limits| {
        limits.image_bytes = 10_000;
    }));
    assert_eq!((found.0.as_str(), found.1), ("c", Limit::ImageBytes));
    let found = exceeded(unpack(&[&small, &other], &|limits| {
        limits.image_entries = 2;
    }));
    assert_eq!(found, ("c".into(), Limit::ImageEntries, 2, 3));
    let deep = archive(&[directory(["d"; 11].join("/"))]);
    let found = exceeded(unpack(&[&deep], &|limits| limits.depth = 10));
    assert_eq!((found.1, found.2, found.3), (Limit::Depth, 10, 11));
    // Directories that nobody described take room as well.
    let implied: Vec<Entry> = (0..5)
        .map(|at| file(format!("{at}/a/b/c/d/e/f"), ""))
        .collect();
    let found = exceeded(unpack(&[&archive(&implied)], &|limits| {
        limits.image_entries = 20;
    }));
    assert_eq!(found.1, Limit::ImageEntries);
}

#[test]
fn depth_cannot_be_won_through_links() {
    let mut entries = vec![directory(["d"; 8].join("/"))];
    let mut top = ["d"; 8].join("/");
    for round in 0..5 {
        let link = format!("link{round}");
        entries.push(symlink(&link, format!("/{top}")));
        entries.push(directory(format!("{link}/{}", ["e"; 7].join("/"))));
        top = format!("{link}/{}", ["e"; 7].join("/"));
    }
    let mut limits = Limits::default();
    limits.depth = 20;
    let error = Ground::new()
        .unpack_within(&image(&[&archive(&entries)]), &limits)
        .unwrap_err();
    let (at, problem) = problem(error);
    assert_eq!(at, "link1/e/e/e/e/e/e/e");
    assert!(
        matches!(problem, EntryProblem::Limit(exceeded) if exceeded.limit == Limit::Depth),
        "{problem:?}"
    );
}

/// A layer that is small while it is compressed: 1 GiB of zeroes in some MiB, or much less.
#[test]
fn compressed_bombs_end_at_the_limit() {
    let header = file("bomb", "").size(1 << 30).bytes();
    for (packed, by_header) in [
        (Packed::Gzip, true),
        (Packed::Zstd, true),
        (Packed::Gzip, false),
        (Packed::Zstd, false),
    ] {
        let zeroes = vec![0; 1 << 20];
        // An honest header is refused at once. What comes after the end of the archive has none.
        let head = if by_header {
            header.clone()
        } else {
            [file("bomb", "").bytes(), vec![0; 1024]].concat()
        };
        let mut bomb = pack(&head, packed);
        let piece = pack(&zeroes, packed);
        for _ in 0..1 << 10 {
            bomb.extend(&piece);
        }
        assert!(bomb.len() < 16 << 20, "{}", bomb.len());
        let mut limits = Limits::default();
        limits.layer_bytes = 16 << 20;
        if by_header {
            limits.file_bytes = 16 << 20;
            limits.layer_bytes = u64::MAX;
        }
        let ground = Ground::new();
        let error = ground
            .unpack_within(&bomb_image(&bomb), &limits)
            .unwrap_err();
        let (at, problem) = problem(error);
        assert_eq!(at, if by_header { "bomb" } else { "" });
        let limit = match problem {
            EntryProblem::Limit(exceeded) => exceeded.limit,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            limit,
            if by_header {
                Limit::FileBytes
            } else {
                Limit::LayerBytes
            }
        );
        ground.assert_untouched();
    }
}

/// An image with a blob for its layer whose content nobody has computed the digest of.
fn bomb_image(blob: &[u8]) -> Vec<u8> {
    let mut layout = common::layout::Layout::default();
    let platform = runtara_oci_image::Platform::host();
    let config = json!({
        "architecture": platform.architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", "0".repeat(64))]},
    });
    let config = layout.json("application/vnd.oci.image.config.v1+json", &config);
    let layer = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", blob.to_vec());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = layout.json("application/vnd.oci.image.manifest.v1+json", &manifest);
    layout.finish(&[manifest])
}

#[test]
fn damaged_compression_is_refused() {
    let layer = archive(&[file("a", "content".repeat(1_000))]);
    for packed in [Packed::Gzip, Packed::Zstd] {
        let whole = pack(&layer, packed);
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0xff;
        for blob in [
            &whole[..whole.len() - 3],
            &flipped,
            &[&whole, b"garbage".as_slice()].concat(),
        ] {
            let ground = Ground::new();
            let error = ground.unpack(&bomb_image(blob)).unwrap_err();
            assert!(
                matches!(
                    error,
                    ImageError::Layer { .. } | ImageError::DigestMismatch { .. }
                ),
                "{packed:?}: {}",
                told(&error)
            );
            ground.assert_untouched();
        }
    }
}

#[test]
fn several_members_and_frames_are_one_stream() {
    let layer = archive(&[file("a", "content".repeat(1_000))]);
    let (first, second) = layer.split_at(700);
    for packed in [Packed::Gzip, Packed::Zstd] {
        let mut blob = pack(first, packed);
        if packed == Packed::Zstd {
            blob.extend([0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4]);
        }
        blob.extend(pack(second, packed));
        let ground = Ground::new();
        let error = ground.unpack(&bomb_image(&blob)).unwrap_err();
        let ImageError::DigestMismatch { found, .. } = error else {
            panic!("{}", told(&error))
        };
        assert_eq!(found.to_hex(), common::layout::sha256(&layer), "{packed:?}");
    }
    let packed = [
        (layer.as_slice(), Packed::Gzip),
        (layer.as_slice(), Packed::Zstd),
    ];
    let image = Ground::new()
        .unpack(&image_of(&packed, &json!({})))
        .unwrap();
    assert_eq!(image.layers().len(), 2);
    assert_eq!(image.lower_directories().len(), 1);
}
