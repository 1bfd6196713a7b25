//! Which image of an archive is taken, and which archives are refused.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod common;

use common::layout::{Layout, Packed, docker, image, image_of, pack, sha256};
use common::tar_writer::{Entry, archive, directory, file, hard_link, symlink};
use common::{Ground, told};
use runtara_oci_image::{Archive, ConfigProblem, ImageError, Limit, Platform};
use serde_json::{Value, json};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

fn layer(name: &str) -> Vec<u8> {
    archive(&[file(name, name)])
}

fn open(archive: &[u8]) -> Result<Archive, ImageError> {
    let ground = Ground::new();
    let opened = ground.open(archive);
    ground.assert_untouched();
    opened
}

fn refused(archive: &[u8], reason: &str) -> ImageError {
    let error = open(archive).unwrap_err();
    let text = told(&error);
    assert!(text.contains(reason), "{text}");
    error
}

fn other() -> Platform {
    let mut platform = Platform::host();
    platform.architecture = "s390x".to_owned();
    platform.variant = None;
    platform
}

fn with_platform(mut descriptor: Value, platform: &Platform) -> Value {
    descriptor["platform"] = json!({"os": platform.os, "architecture": platform.architecture});
    if let Some(variant) = &platform.variant {
        descriptor["platform"]["variant"] = json!(variant);
    }
    descriptor
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    descriptor
}

#[test]
fn the_machines_platform_is_chosen_out_of_nested_indexes() {
    for media_type in [INDEX, DOCKER_INDEX] {
        let (mine, foreign) = (layer("mine"), layer("foreign"));
        let mut layout = Layout::default();
        let host = Platform::host();
        let one = layout.image(&other(), &[(&foreign, Packed::Plain)], &json!({}));
        let two = layout.image(&host, &[(&mine, Packed::Plain)], &json!({"Cmd": ["/mine"]}));
        // A tool may leave the other platforms' content out.
        let absent = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 7,
            "digest": format!("sha256:{}", "a".repeat(64)), "platform": {"os": "windows", "architecture": "amd64"}});
        let mut attestation = absent.clone();
        attestation["platform"] = json!({"os": host.os, "architecture": host.architecture});
        attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
        let manifests = json!([
            with_platform(one, &other()),
            absent,
            attestation,
            with_platform(two, &host)
        ]);
        let inner = layout.json(
            media_type,
            &json!({"schemaVersion": 2, "manifests": manifests}),
        );
        let outer = layout.json(INDEX, &json!({"schemaVersion": 2, "manifests": [inner]}));
        let archive = open(&layout.finish(&[outer])).unwrap();
        assert_eq!(archive.config().cmd, ["/mine"]);
        assert_eq!(archive.layers()[0].diff_id.0.to_hex(), sha256(&mine));
    }
}

#[test]
fn a_missing_platform_is_told_with_what_there_is() {
    let foreign = layer("foreign");
    let wanted = Platform::host().to_string();
    for declared in [true, false] {
        let mut layout = Layout::default();
        let mut manifest = layout.image(&other(), &[(&foreign, Packed::Plain)], &json!({}));
        if declared {
            manifest = with_platform(manifest, &other());
        }
        let error = refused(&layout.finish(&[manifest]), "only for linux/s390x");
        assert!(told(&error).contains(&wanted), "{}", told(&error));
    }
    // The descriptor says one thing, the configuration another: the configuration is what was built.
    let mut layout = Layout::default();
    let manifest = layout.image(&other(), &[(&foreign, Packed::Plain)], &json!({}));
    refused(
        &layout.finish(&[with_platform(manifest, &Platform::host())]),
        "only for linux/s390x",
    );
    refused(
        &docker(&other(), &[("a.tar", &foreign)], &[]),
        "only for linux/s390x",
    );
    refused(&Layout::default().finish(&[]), "only for nothing");
    let mut layout = Layout::default();
    let config = layout.json("application/vnd.oci.empty.v1+json", &json!({}));
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
    let manifest = layout.json("application/vnd.oci.image.manifest.v1+json", &manifest);
    refused(
        &layout.finish(&[manifest]),
        "an artifact of the type application/vnd.oci.empty.v1+json",
    );
}

#[test]
fn several_images_are_refused_unless_they_are_one() {
    let (one, two) = (layer("one"), layer("two"));
    let mut layout = Layout::default();
    let a = layout.image(&Platform::host(), &[(&one, Packed::Plain)], &json!({}));
    let b = layout.image(&Platform::host(), &[(&two, Packed::Plain)], &json!({}));
    refused(
        &layout.finish(&[named(a, "first"), named(b, "second")]),
        "holds 2 images for this machine (\"first\", \"second\")",
    );
    let mut layout = Layout::default();
    let a = layout.image(&Platform::host(), &[(&one, Packed::Plain)], &json!({}));
    open(&layout.finish(&[named(a.clone(), "first"), named(a, "second")])).unwrap();
    let manifest = json!([
        {"Config": "x.json", "RepoTags": ["x:1"], "Layers": []}, {"Config": "y.json", "RepoTags": null, "Layers": []},
    ]);
    refused(
        &archive(&[file("manifest.json", manifest.to_string())]),
        "holds 2 images for this machine (\"x:1\", \"y.json\")",
    );
    refused(
        &archive(&[file("manifest.json", "[]")]),
        "the manifest names no image",
    );
}

#[test]
fn docker_archives_of_all_ages_are_read() {
    let (one, two) = (layer("one"), layer("two"));
    let host = Platform::host();
    let old: [(&str, &[u8]); 3] = [
        ("1a/layer.tar", &one),
        ("2b/layer.tar", &two),
        ("3c/layer.tar", &one),
    ];
    let again = [
        directory("3c/"),
        symlink("3c/layer.tar", "../1a/layer.tar"),
        file("3c/VERSION", "1.0"),
        file("repositories", "{}"),
    ];
    let linked = [hard_link("3c/layer.tar", "1a/layer.tar")];
    for more in [&[][..], &again, &linked] {
        let ground = Ground::new();
        let image = ground.unpack(&docker(&host, &old, more)).unwrap();
        assert_eq!(image.layers().len(), 3);
        assert_eq!(image.layers()[0].diff_id(), image.layers()[2].diff_id());
        assert_eq!(image.lower_directories().len(), 2);
    }
    let ground = Ground::new();
    let whole = docker(&host, &[("a.tar", &one)], &[]);
    for packed in [Packed::Gzip, Packed::Zstd] {
        let archive = ground.open(&pack(&whole, packed)).unwrap();
        assert_eq!(archive.config().cmd, ["/bin/true"]);
        let image = ground.store.unpack(
            &archive,
            &runtara_oci_image::Limits::default(),
            runtara_oci_image::Watch::none(),
        );
        assert_eq!(image.unwrap().layers().len(), 1);
    }
    // Links that lead out, or round in circles, lead to nothing.
    for target in ["../../a.tar", "/etc/passwd", "x.tar"] {
        let more = [symlink("x.tar", target)];
        let error = refused(
            &docker(&host, &[("x.tar", &one)], &more),
            "lacks a layer, \"x.tar\"",
        );
        assert!(matches!(error, ImageError::PartAbsent { .. }));
    }
}

#[test]
fn every_part_is_verified() {
    let one = layer("one");
    let whole = image(&[&one]);
    let change = |find: &str, replace: &str| {
        assert_eq!(find.len(), replace.len());
        let at = whole
            .windows(find.len())
            .position(|window| window == find.as_bytes())
            .unwrap();
        let mut changed = whole.clone();
        changed[at..at + find.len()].copy_from_slice(replace.as_bytes());
        changed
    };
    let error = refused(
        &change("\"os\":\"linux\"", "\"os\":\"linuX\""),
        "the configuration that should have the sha256 digest",
    );
    assert!(matches!(error, ImageError::DigestMismatch { .. }));
    refused(
        &change("\"layers\":[{\"digest\"", "\"layerz\":[{\"digest\""),
        "the manifest that should have the sha256 digest",
    );

    let digest = format!("sha256:{}", sha256(b"x"));
    let index = |descriptor: Value| Layout::default().finish(&[descriptor]);
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    refused(
        &index(json!({"mediaType": manifest, "digest": digest, "size": 1})),
        "lacks the manifest",
    );
    let text = format!("sha512:{}", "a".repeat(128));
    refused(
        &index(json!({"mediaType": manifest, "digest": text, "size": 1})),
        "only `sha256:`",
    );
    let mut layout = Layout::default();
    let mut descriptor = layout.image(&Platform::host(), &[(&one, Packed::Plain)], &json!({}));
    descriptor["size"] = json!(3);
    refused(&layout.finish(&[descriptor]), "its descriptor says 3");

    for (layers, reason) in [
        (0, "names 1 layers and the manifest 0"),
        (2, "names 1 layers and the manifest 2"),
    ] {
        let mut layout = Layout::default();
        let config = json!({"architecture": Platform::host().architecture, "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&one))]}});
        let config = layout.json("application/vnd.oci.image.config.v1+json", &config);
        let blob = layout.blob("application/vnd.oci.image.layer.v1.tar", one.clone());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": vec![blob; layers]});
        let manifest = layout.json("application/vnd.oci.image.manifest.v1+json", &manifest);
        refused(&layout.finish(&[manifest]), reason);
    }
    refused(&image(&[]), "names no layers");
    let mut entries = Layout::default().entries(&[]);
    entries[3] = file("index.json", "{");
    refused(
        &archive(&entries),
        "the index is not what the specification of images says",
    );
    entries[2] = file("oci-layout", r#"{"imageLayoutVersion":"2.0"}"#);
    refused(&archive(&entries), "is \"2.0\"; 1.0.0 is understood");
}

#[test]
fn other_content_is_no_image() {
    for (content, reason) in [
        (b"hello".to_vec(), "no tar archive"),
        (vec![], "neither `oci-layout` nor"),
        (
            archive(&[file("etc/passwd", "")]),
            "neither `oci-layout` nor",
        ),
        (pack(b"hello", Packed::Gzip), "no tar archive"),
        (pack(&[0; 100_000], Packed::Zstd)[..9].to_vec(), "damaged"),
    ] {
        let error = refused(&content, reason);
        assert!(matches!(error, ImageError::NotAnImage { .. }));
    }
    let whole = image(&[&layer("one")]);
    let error = refused(&whole[..whole.len() - 1_200], "is cut off");
    assert!(matches!(error, ImageError::Archive { .. }));
}

#[test]
fn archives_are_bounded() {
    let limit = |archive: &[u8], limit: Limit| {
        let error = open(archive).unwrap_err();
        let found = match &error {
            ImageError::Limit(exceeded) => exceeded.limit,
            other => panic!("{}", told(other)),
        };
        assert_eq!(found, limit);
    };
    let entries: Vec<Entry> = (0..16_385).map(|at| file(format!("{at}"), "")).collect();
    limit(&archive(&entries), Limit::ArchiveEntries);
    let mut entries = Layout::default().entries(&[]);
    entries[3] = file("index.json", vec![b' '; (4 << 20) + 1]);
    limit(&archive(&entries), Limit::DocumentBytes);
    let one = layer("one");
    let layers: Vec<&[u8]> = vec![&one; 128];
    limit(&image(&layers), Limit::Layers);
    assert_eq!(open(&image(&layers[..127])).unwrap().layers().len(), 127);
    let mut layout = Layout::default();
    let mut index = layout.image(&Platform::host(), &[(&one, Packed::Plain)], &json!({}));
    for _ in 0..4 {
        index = layout.json(INDEX, &json!({"schemaVersion": 2, "manifests": [index]}));
    }
    limit(&layout.finish(&[index]), Limit::IndexDepth);
    // An index that names another twice, and so on: many manifests from few.
    let absent = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 7,
        "digest": format!("sha256:{}", "a".repeat(64)), "platform": {"os": "plan9", "architecture": "amd64"}});
    let mut layout = Layout::default();
    let inner = layout.json(
        INDEX,
        &json!({"schemaVersion": 2, "manifests": vec![absent; 600]}),
    );
    limit(&layout.finish(&[inner.clone(), inner]), Limit::Manifests);

    let ground = Ground::new();
    let path = ground.path("archive");
    std::fs::write(&path, pack(&vec![0; 8 << 20], Packed::Gzip)).unwrap();
    let mut options = runtara_oci_image::ArchiveOptions::new(ground.store.scratch());
    options.limits.image_bytes = 4 << 20;
    let error = Archive::open_path(&path, &options, runtara_oci_image::Watch::none()).unwrap_err();
    assert!(
        matches!(&error, ImageError::Limit(exceeded) if exceeded.limit == Limit::ArchiveBytes),
        "{error:?}"
    );
    ground.assert_untouched();
}

#[test]
fn configurations_that_reach_out_are_refused() {
    let one = layer("one");
    let error = open(&image_of(
        &[(&one, Packed::Plain)],
        &json!({"WorkingDir": "/a/../proc/self/fd/8"}),
    ))
    .unwrap_err();
    let forbidden = match error {
        ImageError::Config(ConfigProblem::WorkingDirectory { forbidden, .. }) => forbidden,
        other => panic!("{}", told(&other)),
    };
    assert_eq!(forbidden, "/proc");
}

#[test]
fn layers_of_other_kinds_are_refused() {
    let mut layout = Layout::default();
    let config = json!({"architecture": Platform::host().architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", "b".repeat(64))]}});
    let config = layout.json("application/vnd.oci.image.config.v1+json", &config);
    let blob = layout.blob(
        "application/vnd.oci.image.layer.v1.tar+encrypted",
        b"secret".to_vec(),
    );
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [blob]});
    let manifest = layout.json("application/vnd.oci.image.manifest.v1+json", &manifest);
    refused(
        &layout.finish(&[manifest]),
        "tar+encrypted\"; only tar archives",
    );
}
