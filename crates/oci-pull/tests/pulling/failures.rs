//! What a registry may do wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use runtara_oci_image::{LayerStore, Limits, StoreOptions, Watch};
use runtara_oci_pull::{PullError, Pulled};
use serde_json::json;

use crate::content::{Content, digest};
use crate::fake::{Asked, End, Fake, Reply};
use crate::{opened, options, pulled};

/// A registry with this content, but for what `special` answers. It is told how often the thing was asked for before.
pub(crate) async fn registry(
    content: &Content,
    special: impl Fn(&Asked, usize) -> Option<Reply> + Send + Sync + 'static,
) -> (Fake, String) {
    let content = content.clone();
    let seen = std::sync::Mutex::new(std::collections::HashMap::new());
    let fake = Fake::start(move |asked| {
        let mut seen = seen.lock().unwrap();
        let count: &mut usize = seen.entry(asked.target.clone()).or_default();
        *count += 1;
        special(asked, *count - 1).unwrap_or_else(|| content.answer(asked))
    })
    .await;
    let reference = format!("{}/team/app:1", fake.address);
    (fake, reference)
}

/// Pulls the simple content where the first layer is answered as the test says.
pub(crate) async fn with_layer(
    special: impl Fn(Reply, usize) -> Reply + Send + Sync + 'static,
) -> (Result<Pulled, PullError>, Vec<Asked>) {
    let content = Content::simple();
    let (layer, original) = (content.layer(0), content.clone());
    let (fake, reference) = registry(&content, move |asked, before| {
        let is_layer = asked.target.ends_with(&layer);
        is_layer.then(|| special(original.answer(asked), before))
    })
    .await;
    let result = pulled(&reference, &options()).await;
    let layer = content.layer(0);
    let asked = fake.asked();
    let asked = asked
        .into_iter()
        .filter(|asked| asked.target.ends_with(&layer));
    (result, asked.collect())
}

pub(crate) fn check_whole(result: Result<Pulled, PullError>) {
    let (program, archive) = opened(result.unwrap(), "linux/amd64");
    assert_eq!(program, "/app");
    // Verifies every layer.
    let root = tempfile::tempdir().unwrap();
    let store = LayerStore::open(root.path(), &StoreOptions::default()).unwrap();
    store
        .unpack(&archive, &Limits::default(), Watch::none())
        .unwrap();
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_by_digest() {
    let content = Content::simple();
    let (fake, reference) = registry(&content, |_, _| None).await;
    let by_tag = pulled(&reference, &options()).await.unwrap();
    let wanted = content.tagged("1").to_owned();
    assert_eq!(by_tag.digest.to_string(), wanted);
    assert_eq!(by_tag.manifest_digest, by_tag.digest);
    let pinned = by_tag.pinned.to_string();
    assert_eq!(pinned, format!("{}/team/app@{wanted}", fake.address));
    check_whole(Ok(by_tag));
    check_whole(pulled(&pinned, &options()).await);
    let lines = fake.lines();
    assert_eq!(lines[0], "GET /v2/team/app/manifests/1");
    assert_eq!(lines.len(), 8, "{lines:?}");
    let accept = fake.asked()[0].header("accept").unwrap().to_owned();
    assert!(accept.contains("vnd.oci.image.index.v1") && accept.contains("manifest.list.v2"));
}

#[tokio::test]
async fn of_several_platforms_the_one_that_is_wanted_is_pulled_and_nothing_else() {
    let content = Content::several();
    for (wanted, found) in [
        ("linux/amd64", "/app-linux-amd64"),
        ("linux/amd64/v3", "/app-linux-amd64"),
        ("linux/arm64", "/app-linux-arm64-v8"),
        ("linux/arm", "/app-linux-arm-v7"),
        ("linux/arm/v6", "/app-linux-arm-v6"),
    ] {
        let (fake, reference) = registry(&content, |_, _| None).await;
        let mut options = options();
        options.platform = wanted.parse().unwrap();
        let pulled = pulled(&reference, &options).await.unwrap();
        assert_eq!(pulled.digest.to_string(), content.tagged("1"));
        assert_ne!(pulled.manifest_digest, pulled.digest);
        assert_eq!(opened(pulled, wanted).0, found);
        assert_eq!(fake.lines().len(), 4, "{:?}", fake.lines());
    }
}

#[tokio::test]
async fn a_platform_that_is_missing_is_refused_with_those_that_are_there() {
    let mut options = options();
    options.platform = "linux/s390x".parse().unwrap();
    let (_fake, reference) = registry(&Content::several(), |_, _| None).await;
    let error = pulled(&reference, &options).await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(
        error.to_string(),
        format!(
            "{reference} is not there for linux/s390x, but for linux/amd64, linux/arm/v6, linux/arm/v7, linux/arm64/v8; --platform chooses"
        )
    );
    let (fake, reference) = registry(&Content::simple(), |_, _| None).await;
    let error = pulled(&reference, &options).await.unwrap_err().to_string();
    assert!(
        error.contains("for linux/s390x, but for linux/amd64"),
        "{error}"
    );
    assert_eq!(fake.lines().len(), 2, "no layer was asked for");
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let (fake, reference) = registry(&Content::simple(), |_, _| None).await;
    let error = pulled(&reference.replace(":1", ":2"), &options())
        .await
        .unwrap_err();
    let wanted = format!(
        "{0} has no image {0}/team/app:2: MANIFEST_UNKNOWN: manifest unknown",
        fake.address
    );
    assert_eq!(error.to_string(), wanted);
    assert!(error.is_not_found());
    assert_eq!(fake.lines().len(), 1, "it is not asked for again");
    let (result, asked) = with_layer(|_, _| Reply::new(404, "")).await;
    let error = result.unwrap_err();
    assert!(
        matches!(error, PullError::Answer { status: 404, .. }),
        "{error}"
    );
    assert_eq!(asked.len(), 1);
}

#[tokio::test]
async fn content_of_another_digest_is_refused() {
    let (result, asked) = with_layer(|mut reply, _| {
        reply.body[20] ^= 1;
        reply
    })
    .await;
    let error = result.unwrap_err();
    assert!(matches!(error, PullError::DigestMismatch { .. }), "{error}");
    assert!(error.to_string().contains("the layer sha256:"), "{error}");
    assert_eq!(asked.len(), 1, "it is not asked for again");

    // A manifest that was asked for by its digest, and the same for a tag, where the registry itself says what it is.
    let content = Content::simple();
    let (_fake, reference) = registry(&content, |asked, _| {
        let digest = digest(b"{}");
        let is_manifest = asked.target.contains("/manifests/");
        is_manifest.then(|| Reply::new(200, "{ }").header("docker-content-digest", digest))
    })
    .await;
    let by_digest = reference.replace(":1", &format!("@{}", content.tagged("1")));
    for reference in [reference, by_digest] {
        let error = pulled(&reference, &options()).await.unwrap_err();
        assert!(matches!(error, PullError::DigestMismatch { .. }), "{error}");
    }
    let config = content.document("1")["config"]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let original = content.bytes(&config).to_vec();
    let (_fake, reference) = registry(&content, move |asked, _| {
        let mut changed = original.clone();
        changed[0] = b' ';
        asked
            .target
            .ends_with(&config)
            .then(|| Reply::new(200, changed))
    })
    .await;
    let error = pulled(&reference, &options())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("the configuration sha256:"), "{error}");
}

#[tokio::test]
async fn content_of_another_size_is_refused() {
    let longer = |mut reply: Reply, _| {
        reply.body.push(0);
        reply
    };
    let shorter = |mut reply: Reply, _| {
        reply.body.pop();
        reply
    };
    // Without a length: it only shows when it is read.
    let endless = |reply: Reply, _| reply.ending(End::Never, usize::MAX);
    for (result, asked) in [
        with_layer(longer).await,
        with_layer(shorter).await,
        with_layer(endless).await,
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, PullError::SizeMismatch { .. }), "{error}");
        assert_eq!(asked.len(), 1, "it is not asked for again");
    }
}

#[tokio::test]
async fn errors_of_the_server_pass_or_are_told() {
    let (fake, reference) = registry(&Content::simple(), |_, before| {
        (before < 2).then(|| Reply::new(503, "busy"))
    })
    .await;
    check_whole(pulled(&reference, &options()).await);
    assert_eq!(fake.lines().len(), 12);
    let (fake, reference) = registry(&Content::simple(), |_, _| {
        let told =
            json!({"errors": [{"code": "UNAVAILABLE", "message": "the disk\u{1b}[2J is full"}]});
        Some(Reply::new(503, told.to_string()))
    })
    .await;
    let error = pulled(&reference, &options())
        .await
        .unwrap_err()
        .to_string();
    let wanted = "answers 503 when asked for the manifest 1: UNAVAILABLE: the disk [2J is full";
    assert!(error.ends_with(wanted), "{error}");
    assert_eq!(fake.lines().len(), 4);
}

#[tokio::test]
async fn a_registry_that_asks_for_patience_gets_some() {
    let began = Instant::now();
    let (fake, reference) = registry(&Content::simple(), |asked, before| {
        let is_first = asked.target.ends_with("/manifests/1") && before == 0;
        is_first.then(|| Reply::new(429, "").header("retry-after", "1"))
    })
    .await;
    check_whole(pulled(&reference, &options()).await);
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(fake.lines().len(), 5);
    let began = Instant::now();
    let (fake, reference) = registry(&Content::simple(), |_, _| {
        Some(Reply::new(429, "").header("retry-after", "3600"))
    })
    .await;
    let error = pulled(&reference, &options())
        .await
        .unwrap_err()
        .to_string();
    let wanted = "asks to come back later (429), after 3600 s";
    assert!(error.ends_with(wanted), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(fake.lines().len(), 1);
}

#[tokio::test]
async fn content_may_be_kept_elsewhere_but_not_in_circles() {
    let content = Content::simple();
    let elsewhere = content.clone();
    let store = Fake::start(move |asked| {
        let mut asked = asked.clone();
        let target = asked.target.split('?').next().unwrap();
        asked.target = target.replace("/store/", "/v2/team/app/blobs/");
        elsewhere.answer(&asked)
    })
    .await;
    let target = format!("http://{}/store/", store.address);
    let (_fake, reference) = registry(&content, move |asked, _| {
        let name = asked.target.strip_prefix("/v2/team/app/blobs/")?;
        Some(Reply::new(307, "").header("location", format!("{target}{name}?signature=s3cret")))
    })
    .await;
    check_whole(pulled(&reference, &options()).await);
    assert_eq!(store.lines().len(), 3);

    let (fake, reference) = registry(&content, |_, _| {
        Some(Reply::new(307, "").header("location", "/v2/round?signature=s3cret"))
    })
    .await;
    let error = pulled(&reference, &options()).await.unwrap_err();
    assert!(
        matches!(error, PullError::Answer { status: 307, .. }),
        "{error}"
    );
    assert!(!format!("{error:?}").contains("s3cret"));
    assert_eq!(fake.lines().len(), 6);

    for target in [
        "http://example.com/a",
        "ftp://127.0.0.1/a",
        "file:///etc/passwd",
    ] {
        let (fake, reference) = registry(&content, move |_, _| {
            Some(Reply::new(302, "").header("location", target))
        })
        .await;
        let error = pulled(&reference, &options()).await.unwrap_err();
        let is_refused = matches!(
            error,
            PullError::PlainHttp { .. } | PullError::Malformed { .. }
        );
        assert!(is_refused, "{target}: {error}");
        assert_eq!(fake.lines().len(), 1);
    }
}

#[tokio::test]
async fn nobody_there_is_told_after_some_attempts() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = pulled(&format!("{address}/a"), &options())
        .await
        .unwrap_err();
    assert!(error.is_unreachable());
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("no answer from {address}: ")),
        "{text}"
    );
    assert!(text.contains("Connection refused"), "{text}");

    // One that takes connections and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/a", listener.local_addr().unwrap());
    let error = pulled(&reference, &options()).await.unwrap_err();
    assert!(matches!(error, PullError::Stalled { .. }), "{error}");
}

#[tokio::test]
async fn the_whole_has_a_deadline() {
    let mut options = options();
    options.deadlines.total = Duration::from_millis(300);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let (_fake, reference) = registry(&Content::simple(), move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        Some(Reply::new(200, "{}").ending(End::Stall, 1))
    })
    .await;
    let error = pulled(&reference, &options).await.unwrap_err();
    assert!(matches!(error, PullError::TooSlow { .. }), "{error}");
    assert_eq!(count.load(Ordering::Relaxed), 1);
}
