//! Images that are laid on container images.

use std::time::Duration;

use runtara_domain::{ImageDigest, ImageId, RunnerKind};
use runtara_images::Deletion;
use runtara_store::{ImageDeletion, Store as _};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::world::{World, container_image};

const SCRIPT: &[u8] = b"#!/usr/bin/python3\n";

fn digest(image: &Value) -> ImageDigest {
    ImageDigest::from_hex(image["sha256"].as_str().unwrap()).unwrap()
}

fn id(image: &Value) -> ImageId {
    ImageId::new(image["image_id"].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn a_program_is_laid_on_an_image_that_is_named_or_known_by_its_id() {
    let world = World::new().await;
    let base = world
        .image(&container_image("python"), &[("name", "python")])
        .await;
    for named in ["python", base["image_id"].as_str().unwrap()] {
        let laid = world.image(SCRIPT, &[("base", named)]).await;
        assert_eq!(laid["base"], base["sha256"]);
        assert_eq!(laid["runner_type"], "oci", "without a declaration");
        assert_eq!(laid.get("container"), None);
        let prepared = world.programs.prepared.lock().unwrap();
        let (kind, files) = prepared.last().unwrap();
        assert_eq!(*kind, RunnerKind::Oci);
        assert_eq!(
            (files.content.digest, files.content.base),
            (digest(&laid), Some(digest(&base)))
        );
        assert!(files.base.as_ref().is_some_and(|path| path.exists()));
    }
    let (status, body) = world.start(&base, &json!({})).await;
    assert_eq!(status.as_u16(), 201, "{body}");
}

#[tokio::test]
async fn what_is_no_container_image_of_the_tenant_is_no_base() {
    let world = World::new().await;
    let base = world
        .image(&container_image("python"), &[("name", "python")])
        .await;
    world
        .image(SCRIPT, &[("name", "native"), ("runner_type", "native")])
        .await;
    world
        .image(SCRIPT, &[("name", "laid"), ("base", "python")])
        .await;
    world
        .image(
            &container_image("theirs"),
            &[("name", "theirs"), ("tenant_id", "other")],
        )
        .await;
    let replaced = world
        .image(&container_image("old"), &[("name", "node")])
        .await;
    world
        .image(&container_image("new"), &[("name", "node")])
        .await;
    let replaced = replaced["image_id"].as_str().unwrap();
    for (named, word) in [
        ("nothing", "neither the name nor the id"),
        ("theirs", "neither the name nor the id"),
        ("a/b\\c", "neither the name nor the id"),
        (replaced, "neither the name nor the id"),
        (
            "native",
            "is a script for /usr/bin/python3; a base is a container image",
        ),
        ("laid", "itself laid on a base"),
    ] {
        let text = world
            .refuses(SCRIPT, &[("base", named)], 400, "INVALID_BASE")
            .await;
        assert!(
            text.contains(word) && text.contains("base"),
            "{named}: {text}"
        );
    }
    let declared = [("base", "python"), ("runner_type", "native")];
    let text = world
        .refuses(SCRIPT, &declared, 400, "IMAGE_NOT_RUNNABLE")
        .await;
    assert!(text.contains("knows no base"), "{text}");
    let content = container_image("another");
    let text = world
        .refuses(&content, &[("base", "python")], 400, "IMAGE_NOT_RUNNABLE")
        .await;
    assert!(text.contains("register it without one"), "{text}");
    assert!(!world.has(&content).await);
    assert!(world.blobs.exists(&digest(&base)).await.unwrap());
}

#[tokio::test]
async fn a_base_that_is_deleted_meanwhile_keeps_its_content() {
    let world = World::new().await;
    let base = world
        .image(&container_image("python"), &[("name", "python")])
        .await;
    let content = digest(&base);
    let programs = &world.programs;
    programs.gate.forget_permits(usize::MAX);
    let made_ready_before = programs.reached.notified();
    made_ready_before.await;
    let texts = [("name", "laid"), ("base", "python")];
    let registration = world.upload(SCRIPT, &texts);
    tokio::pin!(registration);
    tokio::select! {
        answer = &mut registration => panic!("it was not made ready before: {answer:?}"),
        () = programs.reached.notified() => {}
    }
    let deleted = world.store.delete_image(&id(&base)).await.unwrap();
    assert_eq!(deleted, ImageDeletion::Deleted);
    assert_eq!(
        world.store.remove_unneeded_images(9).await.unwrap(),
        [content]
    );
    assert_eq!(
        world.blobs.delete(&content).await.unwrap(),
        Deletion::Pinned
    );
    programs.gate.add_permits(1);
    let (status, body) = timeout(Duration::from_secs(10), registration)
        .await
        .unwrap();
    assert_eq!(status.as_u16(), 201, "{body}");
    assert!(world.store.is_content_needed(&content).await.unwrap());
    assert!(world.blobs.exists(&content).await.unwrap());
}
