//! What is too much, and what cannot be understood.

use runtara_oci_pull::PullError;
use serde_json::{Value, json};

use crate::content::{Content, INDEX, MANIFEST};
use crate::fake::{End, Fake, Reply};
use crate::{options, pulled};

/// Why an image with this manifest is not pulled, and how often the registry was asked.
async fn refused(manifest: &Value) -> (PullError, usize) {
    let mut content = Content::simple();
    let manifest = content.manifest(MANIFEST, manifest);
    content.tag("1", &manifest);
    let fake = Fake::start(move |asked| content.answer(asked)).await;
    let reference = format!("{}/team/app:1", fake.address);
    let error = pulled(&reference, &options()).await.unwrap_err();
    (error, fake.lines().len())
}

/// A manifest of layers of these sizes that nobody has.
fn manifest(sizes: &[u64]) -> Value {
    let name = |place: usize| format!("sha256:{place:064x}");
    let layers: Vec<Value> = sizes
        .iter()
        .enumerate()
        .map(|(place, size)| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": name(place), "size": size
            })
        })
        .collect();
    let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": name(999), "size": 10});
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
}

#[tokio::test]
async fn amounts_are_refused_before_anything_of_them_is_taken() {
    for (sizes, wanted) in [
        (
            vec![1; 128],
            "layers of the image: 128, at most 127 are taken",
        ),
        (
            vec![(16 << 30) + 1],
            "bytes of a layer: 17179869185, at most 17179869184 are taken",
        ),
        (vec![11 << 30; 3], "bytes of the image: "),
        (vec![16 << 30; 126], "bytes of the image: "),
    ] {
        let (error, asked) = refused(&manifest(&sizes)).await;
        let text = error.to_string();
        assert!(matches!(error, PullError::TooLarge { .. }), "{text}");
        assert!(text.starts_with(wanted), "{text}");
        assert_eq!(asked, 1);
    }
    let mut large = manifest(&[1]);
    large["config"]["size"] = json!(5 << 20);
    let (error, _) = refused(&large).await;
    assert!(
        error
            .to_string()
            .starts_with("bytes of the configuration: "),
        "{error}"
    );
}

#[tokio::test]
async fn documents_have_an_end() {
    let announced = Reply::new(200, "{}").header("content-length", "5000000");
    for reply in [
        Reply::new(200, "{").ending(End::Never, 1),
        announced.ending(End::Stall, 1),
    ] {
        let mut reply = reply;
        let lengths = reply
            .headers
            .iter()
            .filter(|(name, _)| *name == "content-length")
            .count();
        reply.headers.truncate(lengths.min(1));
        let fake = Fake::start(move |_| reply.clone()).await;
        let reference = format!("{}/team/app:1", fake.address);
        let error = pulled(&reference, &options()).await.unwrap_err();
        assert!(matches!(error, PullError::TooLarge { .. }), "{error}");
        assert_eq!(fake.lines().len(), 1, "it is not asked for again");
    }
    // An error that never ends is an error all the same.
    let fake = Fake::start(|_| Reply::new(400, "").ending(End::Never, 0)).await;
    let reference = format!("{}/team/app:1", fake.address);
    let error = pulled(&reference, &options()).await.unwrap_err();
    assert!(
        matches!(error, PullError::Answer { status: 400, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_no_image_is_refused_with_the_reason() {
    let mut artifact = manifest(&[1]);
    artifact["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    let mut both = manifest(&[1]);
    both["manifests"] = json!([]);
    let mut other = manifest(&[1]);
    other["layers"][0]["digest"] = json!(format!("sha512:{:0128x}", 1));
    let mut path = manifest(&[1]);
    path["layers"][0]["digest"] = json!("sha256:../../../etc/passwd");
    let mut negative = manifest(&[1]);
    negative["layers"][0]["size"] = json!(-1);
    let schema1 = json!({"schemaVersion": 1, "name": "a", "fsLayers": [{"blobSum": "sha256:0"}]});
    let mislabelled = json!({"schemaVersion": 2, "mediaType": INDEX, "config": {}, "layers": []});
    for (manifest, wanted) in [
        (
            artifact,
            "an artifact of the type \"application/vnd.cncf.helm.config.v1+json\"",
        ),
        (both, "and not the shape of it"),
        (other, "cannot be verified"),
        (path, "the manifest cannot be understood"),
        (negative, "the manifest cannot be understood"),
        (schema1, "schema 1"),
        (mislabelled, "and not the shape of it"),
        (json!([1]), "the manifest cannot be understood"),
        (json!({}), "is neither an index nor a manifest"),
    ] {
        let (error, asked) = refused(&manifest).await;
        let text = error.to_string();
        assert!(matches!(error, PullError::Malformed { .. }), "{text}");
        assert!(text.contains(wanted), "{text}");
        assert_eq!(asked, 1);
    }
}

#[tokio::test]
async fn an_index_names_images_and_nothing_deeper() {
    let mut content = Content::several();
    let tagged = content.tagged("1").to_owned();
    let inner = json!({
        "mediaType": MANIFEST, "digest": tagged, "size": content.bytes(&tagged).len(),
        "platform": {"os": "linux", "architecture": "amd64"},
    });
    let outer = json!({"schemaVersion": 2, "manifests": [inner]});
    let outer = content.manifest(INDEX, &outer);
    content.tag("1", &outer);
    let fake = Fake::start(move |asked| content.answer(asked)).await;
    let reference = format!("{}/team/app:1", fake.address);
    let error = pulled(&reference, &options())
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(error, "the index names another index");
}
