//! Which of several registrations a name means, and what becomes of those that nobody waits for.

use std::time::Duration;

use runtara_domain::ImageDigest;
use serde_json::Value;
use tokio::time::timeout;

use crate::world::{TENANT, World, container_image};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// The id of the image that a name means.
async fn named(world: &World, name: &str) -> Option<String> {
    let list = world
        .get(&format!("/api/v1/images?tenant_id={TENANT}&name={name}"))
        .await;
    let images = list["images"].as_array().unwrap();
    assert!(images.len() <= 1, "{list}");
    let id = images.first()?["image_id"].as_str().unwrap();
    Some(id.to_owned())
}

fn id(image: &Value) -> String {
    image["image_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_name_means_what_arrived_last_though_it_was_ready_first() {
    let world = World::new().await;
    let older = container_image("held");
    let registration = world.image(&older, &[]);
    tokio::pin!(registration);
    tokio::select! {
        image = &mut registration => panic!("it was not held: {image}"),
        () = world.programs.reached.notified() => {}
    }
    let newer = world.image(&container_image("newer"), &[]).await;
    world.programs.held.add_permits(1);
    let older = timeout(PATIENCE, registration).await.unwrap();
    assert_eq!(
        older["current"], false,
        "it was replaced meanwhile: {older}"
    );
    assert_eq!(named(&world, "program").await, Some(id(&newer)));
    let newest = world.image(&container_image("newest"), &[]).await;
    assert_eq!(named(&world, "program").await, Some(id(&newest)));
}

#[tokio::test]
async fn what_was_made_of_refused_content_is_forgotten() {
    let world = World::new().await;
    let content = container_image("hostile");
    world
        .refuses(&content, &[], 400, "IMAGE_NOT_RUNNABLE")
        .await;
    let forgotten = std::mem::take(&mut *world.programs.forgotten.lock().unwrap());
    assert_eq!(forgotten, [ImageDigest::of(&content)]);
    // Once it is on a base, the same content may be what cannot be.
    world
        .image(&container_image("python"), &[("name", "python")])
        .await;
    let content = b"#!/bin/sh\n# hostile\n";
    world.image(content, &[("name", "native")]).await;
    world
        .refuses(content, &[("base", "python")], 400, "IMAGE_NOT_RUNNABLE")
        .await;
    let forgotten = world.programs.forgotten.lock().unwrap();
    assert_eq!(*forgotten, [], "an image has it");
}

/// Content whose lock is the same as that of other content.
fn content_beside(other: &[u8]) -> Vec<u8> {
    let shard = ImageDigest::of(other).0[0];
    let mut contents = (0..100_000).map(|number| container_image(&format!("beside-{number}")));
    let beside = contents.find(|content| ImageDigest::of(content).0[0] == shard);
    beside.expect("one in 256 has the same")
}

#[tokio::test]
async fn a_registration_waits_for_no_room_that_is_given_back() {
    let world = World::new().await;
    let programs = &world.programs;
    programs.room.forget_permits(usize::MAX);
    let refused = container_image("hostile");
    let registration = world.upload(&refused, &[]);
    tokio::pin!(registration);
    tokio::select! {
        answer = &mut registration => panic!("it gave back room before: {answer:?}"),
        () = programs.reclaiming.notified() => {}
    }
    assert!(
        !world
            .blobs
            .exists(&ImageDigest::of(&refused))
            .await
            .unwrap()
    );
    let beside = content_beside(&refused);
    let (status, body) = timeout(PATIENCE, world.upload(&beside, &[("name", "beside")]))
        .await
        .unwrap();
    assert_eq!(status.as_u16(), 201, "{body}");
    programs.room.add_permits(1);
    let (status, body) = timeout(PATIENCE, registration).await.unwrap();
    assert_eq!(status.as_u16(), 400, "{body}");
}
