//! The protocol as a real registry speaks it.

use std::process::Command;

use runtara_oci_pull::{Credentials, PullError};
use serde_json::json;

use crate::content::Content;
use crate::real::Registry;
use crate::{opened, options, pulled, pulled_as};

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_by_digest() {
    let registry = Registry::start("", "");
    let content = Content::simple();
    registry.fill(&content, "1", &[]);
    let reference = format!("{}/team/app:1", registry.address);
    let by_tag = pulled(&reference, &options()).await.unwrap();
    assert_eq!(by_tag.digest.to_string(), content.tagged("1"));
    let pinned = by_tag.pinned.to_string();
    let (program, archive) = opened(by_tag, "linux/amd64");
    assert_eq!((program.as_str(), archive.layers().len()), ("/app", 2));
    let by_digest = pulled(&pinned, &options()).await.unwrap();
    assert_eq!(opened(by_digest, "linux/amd64").0, "/app");
    let error = pulled(&reference.replace(":1", ":2"), &options())
        .await
        .unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(
        error.to_string().contains("team/app:2: MANIFEST_UNKNOWN"),
        "{error}"
    );
}

#[tokio::test]
async fn of_an_index_the_image_for_the_platform_is_pulled() {
    let registry = Registry::start("", "");
    let content = Content::several();
    registry.fill(&content, "1", &[]);
    let reference = format!("{}/team/app:1", registry.address);
    for (platform, program) in [
        ("linux/amd64", "/app-linux-amd64"),
        ("linux/arm64", "/app-linux-arm64-v8"),
    ] {
        let mut options = options();
        options.platform = platform.parse().unwrap();
        let pulled = pulled(&reference, &options).await.unwrap();
        assert_eq!(pulled.digest.to_string(), content.tagged("1"));
        assert_eq!(opened(pulled, platform).0, program);
    }
    let mut options = options();
    options.platform = "windows/amd64".parse().unwrap();
    let error = pulled(&reference, &options).await.unwrap_err();
    assert!(
        matches!(error, PullError::PlatformMissing { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn docker_s_own_formats_are_understood() {
    let registry = Registry::start("", "");
    registry.fill(
        &Content::several(),
        "1",
        &["--format=v2s2", "--preserve-digests=false"],
    );
    let reference = format!("{}/team/app:1", registry.address);
    let pulled = pulled(&reference, &options()).await.unwrap();
    assert_eq!(opened(pulled, "linux/amd64").0, "/app-linux-amd64");
}

#[tokio::test]
async fn user_and_password_are_checked() {
    // `me` and `open sesame`, by bcrypt with the smallest number of rounds.
    let line = "me:$2b$04$dBpSwSWiNqnszKDF9dcFeuIwx5r8gFYZ9HJna7wjMkgGsPw0ieiqq\n";
    let users = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(users.path(), line).unwrap();
    let auth = format!(
        "auth:\n  htpasswd:\n    realm: test\n    path: {}",
        users.path().display()
    );
    let registry = Registry::start("", &auth);
    registry.fill(&Content::simple(), "1", &["--dest-creds=me:open sesame"]);
    let reference = format!("{}/team/app:1", registry.address);
    let file = registry.directory().join("config.json");
    for (auth, is_right) in [("bWU6b3BlbiBzZXNhbWU=", true), ("bWU6d3Jvbmc=", false)] {
        let config = json!({"auths": {registry.address.to_string(): {"auth": auth}}});
        std::fs::write(&file, config.to_string()).unwrap();
        let parsed = reference.parse().unwrap();
        let credentials = Credentials::from_file(&file, &parsed).await.unwrap();
        match pulled_as(&reference, &credentials, &options()).await {
            Ok(pulled) if is_right => assert_eq!(opened(pulled, "linux/amd64").0, "/app"),
            Err(PullError::Denied { status: 401, .. }) if !is_right => {}
            other => panic!("{auth}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn other_tools_read_what_was_pulled() {
    let registry = Registry::start("", "");
    registry.fill(&Content::simple(), "1", &[]);
    let reference = format!("{}/team/app:1", registry.address);
    let pulled = pulled(&reference, &options()).await.unwrap();
    let path = registry.directory().join("pulled.tar");
    let mut archive = pulled.archive;
    let mut file = std::fs::File::create(&path).unwrap();
    std::io::copy(&mut archive, &mut file).unwrap();
    let copy = format!("oci-archive:{}:1", path.display());
    let there = format!("dir:{}", registry.directory().join("copy").display());
    let arguments = ["--insecure-policy", "copy", &copy, &there];
    let output = Command::new("skopeo").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
