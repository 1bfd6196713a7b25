//! What can never run is refused when it is registered, with the whole reason, and leaves nothing.

use runtara_domain::{ImageDigest, RunnerKind};
use serde_json::json;

use crate::world::{World, container_image};

const SCRIPT: &[u8] = b"#!/bin/sh\n";

#[tokio::test]
async fn an_archive_that_can_never_run_is_refused_and_gone() {
    let world = World::new().await;
    let content = container_image("hostile");
    let text = world
        .refuses(&content, &[], 400, "IMAGE_NOT_RUNNABLE")
        .await;
    assert_eq!(text, "layer 1 has a member ../../etc/passwd");
    assert!(!world.has(&content).await);
    assert_eq!(world.get("/api/v1/images").await["total_count"], 0);
}

#[tokio::test]
async fn what_this_machine_lacks_is_not_the_fault_of_the_image() {
    let world = World::new().await;
    let full = container_image("crowded");
    let text = world.refuses(&full, &[], 503, "UNAVAILABLE").await;
    assert!(text.contains("no room"), "{text}");
    let denied = container_image("unlucky");
    world.refuses(&denied, &[], 500, "INTERNAL_ERROR").await;
    for content in [full, denied] {
        assert!(!world.has(&content).await);
    }
}

#[tokio::test]
async fn content_that_another_image_has_stays_when_it_is_refused() {
    let world = World::new().await;
    let base = world
        .image(&container_image("python"), &[("name", "python")])
        .await;
    // Once it is on a base, the same content may be what cannot be.
    let content = b"#!/bin/sh\n# hostile\n";
    world.image(content, &[("name", "native")]).await;
    world
        .refuses(content, &[("base", "python")], 400, "IMAGE_NOT_RUNNABLE")
        .await;
    assert!(world.has(content).await);
    let base = ImageDigest::from_hex(base["sha256"].as_str().unwrap()).unwrap();
    assert!(world.blobs.exists(&base).await.unwrap());
}

#[tokio::test]
async fn native_programs_are_not_tried_out() {
    let world = World::new().await;
    let image = world.image(SCRIPT, &[]).await;
    assert_eq!(image["runner_type"], "native");
    assert!(world.programs.prepared.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_program_that_needs_a_file_which_no_container_of_it_has_says_so() {
    let world = World::new().await;
    let declared = [("runner_type", "oci")];
    let text = world
        .refuses(SCRIPT, &declared, 400, "IMAGE_NOT_RUNNABLE")
        .await;
    assert!(text.contains("holds no /bin/sh"), "{text}");
    assert!(
        text.contains("name a base image") && text.contains("declare 'native'"),
        "{text}"
    );
}

#[tokio::test]
async fn where_there_are_no_containers_the_reason_is_told() {
    let reason = "no runc was found; install runc 1.2 or later";
    let missing = [(RunnerKind::Oci, reason)];
    let world = World::that_runs(&[RunnerKind::Native], &missing).await;
    let content = container_image("app");
    let text = world
        .refuses(&content, &[], 400, "IMAGE_NOT_RUNNABLE")
        .await;
    assert!(text.ends_with(reason), "{text}");
    let text = world
        .refuses(SCRIPT, &[("runner_type", "oci")], 400, "IMAGE_NOT_RUNNABLE")
        .await;
    assert!(
        text.contains(reason) && text.contains("declare 'native'"),
        "{text}"
    );
    let list = world.get("/api/v1/images").await;
    assert_eq!(list["images"], json!([]));
}
