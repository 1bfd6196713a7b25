//! What the server is given.

use std::collections::BTreeMap;
use std::io::Read as _;

use serde_json::{Value, json};

use crate::content::{Content, digest};
use crate::fake::{Asked, Fake};
use crate::real::Registry;
use crate::{Person, environment, registry};

/// The parts of a form by their names.
fn parts(asked: &Asked) -> BTreeMap<String, Vec<u8>> {
    let kind = asked.header("content-type").unwrap();
    let boundary = format!("--{}", kind.split_once("boundary=").unwrap().1);
    let mut rest = asked.body.as_ref();
    let mut parts = BTreeMap::new();
    while let Some(start) = find(rest, boundary.as_bytes()) {
        rest = &rest[start + boundary.len()..];
        let Some(head_end) = find(rest, b"\r\n\r\n") else {
            break;
        };
        let head = String::from_utf8_lossy(&rest[..head_end]).into_owned();
        let name = head.split("name=\"").nth(1).unwrap();
        let name = name.split('"').next().unwrap().to_owned();
        rest = &rest[head_end + 4..];
        let end = find(rest, format!("\r\n{boundary}").as_bytes()).unwrap();
        parts.insert(name, rest[..end].to_vec());
    }
    parts
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

fn text(parts: &BTreeMap<String, Vec<u8>>, name: &str) -> String {
    String::from_utf8(parts[name].clone()).unwrap()
}

/// The files of an archive.
fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(archive);
    let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (name, bytes)
    };
    archive.entries().unwrap().map(read).collect()
}

fn upload(server: &Fake) -> BTreeMap<String, Vec<u8>> {
    let asked = server.asked();
    let uploads: Vec<_> = asked
        .iter()
        .filter(|asked| asked.method == "POST")
        .collect();
    assert_eq!(uploads.len(), 1);
    assert_eq!(uploads[0].target, "/api/v1/images/upload");
    parts(uploads[0])
}

#[tokio::test]
async fn what_a_registry_has_becomes_an_image_of_the_server() {
    let registry = Registry::start("", "");
    let content = Content::several();
    registry.fill(&content, "1", &[]);
    let server = environment().await;
    let reference = format!("{}/team/app:1", registry.address);
    let ran = Person::of(&server)
        .pull(&[
            "web",
            "--from",
            &reference,
            "--platform",
            "linux/arm64",
            "--description",
            "the web",
            "--kind",
            "oci",
            "--label",
            "team=shop",
            "--label",
            "a=b",
        ])
        .await;
    let digest_of_tag = content.tagged("1");
    let note = format!(
        "{}/team/app@{digest_of_tag} for linux/arm64/v8\n",
        registry.address
    );
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "4f3c\n"),
        "{ran:?}"
    );
    assert_eq!(ran.stderr, note);

    let parts = upload(&server);
    assert_eq!(text(&parts, "tenant_id"), "acme");
    assert_eq!(text(&parts, "name"), "web");
    assert_eq!(text(&parts, "description"), "the web");
    assert_eq!(text(&parts, "runner_type"), "oci");
    assert_eq!(text(&parts, "labels"), r#"{"a":"b","team":"shop"}"#);
    let files = files(&parts["binary"]);
    let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let manifest = index["manifests"][0]["digest"].as_str().unwrap();
    assert_eq!(index["manifests"][0]["platform"]["architecture"], "arm64");
    let metadata: Value = serde_json::from_slice(&parts["metadata"]).unwrap();
    assert_eq!(
        metadata,
        json!({"source": {
            "reference": reference, "digest": digest_of_tag, "manifest_digest": manifest, "platform": "linux/arm64/v8",
        }})
    );
    assert_eq!(files.len(), 5, "{:?}", files.keys());
    for (name, bytes) in files {
        if let Some(hex) = name.strip_prefix("blobs/sha256/") {
            assert_eq!(digest(&bytes), format!("sha256:{hex}"));
        }
    }
}

#[tokio::test]
async fn a_script_learns_what_was_pulled() {
    let (registry, reference) = registry().await;
    let server = environment().await;
    let ran = Person::of(&server)
        .pull(&["--json", "web", "--from", &reference])
        .await;
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    assert_eq!(told["image_id"], "4f3c");
    let pinned = told["source"]["digest"].as_str().unwrap();
    assert_eq!(told["source"]["manifest_digest"], pinned);
    assert_eq!(told["source"]["reference"], *reference);
    let pinned = format!("{}/team/app@{pinned}", registry.address);
    let ran = Person::of(&server).pull(&["web", "--from", &pinned]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[tokio::test]
async fn the_same_image_is_the_same_archive() {
    let (_registry, reference) = registry().await;
    let mut uploads = Vec::new();
    for _ in 0..2 {
        let server = environment().await;
        Person::of(&server)
            .pull(&["web", "--from", &reference])
            .await;
        uploads.push(upload(&server));
    }
    assert!(uploads[0]["binary"] == uploads[1]["binary"]);
}

#[tokio::test]
async fn credentials_stay_with_the_person() {
    let content = Content::simple();
    let registry = Fake::start(move |asked| match asked.header("authorization") {
        Some("Basic bWU6aHVudGVyMg==") => content.answer(asked),
        _ => crate::Reply::new(401, "").header("www-authenticate", "Basic realm=\"x\""),
    })
    .await;
    let reference = format!("{}/team/app:1", registry.address);
    let server = environment().await;
    let config =
        json!({"auths": {registry.address.to_string(): {"auth": "bWU6aHVudGVyMg=="}}}).to_string();
    let at_home = Person::of(&server);
    std::fs::write(at_home.docker_config(), &config).unwrap();
    let ran = at_home.pull(&["web", "--from", &reference]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");

    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("config.json"), &config).unwrap();
    let person = Person::of(&server).with("DOCKER_CONFIG", elsewhere.path().to_str().unwrap());
    let ran = person.pull(&["web", "--from", &reference]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");

    // A program that keeps them, found in PATH.
    let programs = tempfile::tempdir().unwrap();
    let program = programs.path().join("docker-credential-kept");
    let script = "#!/bin/sh\necho '{\"Username\": \"me\", \"Secret\": \"hunter2\"}'\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let path = format!(
        "{}:{}",
        programs.path().display(),
        std::env::var("PATH").unwrap()
    );
    let person = Person::of(&server).with("PATH", path);
    std::fs::write(
        person.docker_config(),
        json!({"credsStore": "kept"}).to_string(),
    )
    .unwrap();
    let ran = person.pull(&["web", "--from", &reference]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");

    let seen = server.asked();
    assert_eq!(
        seen.iter().filter(|asked| asked.method == "POST").count(),
        3
    );
    for asked in seen {
        let told = format!(
            "{:?} {}",
            asked.headers,
            String::from_utf8_lossy(&asked.body)
        );
        assert!(
            !told.contains("hunter2") && !told.contains("bWU6aHVudGVyMg"),
            "{told}"
        );
    }
}
