//! Which of several registrations a name means, and what becomes of those that nobody waits for.

use std::fmt::Debug;
use std::pin::Pin;
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

/// Carries a registration on until its image is about to be made ready, where it is held.
async fn until_held<T: Debug>(world: &World, mut registration: Pin<&mut impl Future<Output = T>>) {
    tokio::select! {
        answer = &mut registration => panic!("it was not held: {answer:?}"),
        () = world.programs.reached.notified() => {}
    }
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
    until_held(&world, registration.as_mut()).await;
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
    assert!(!world.has(&refused).await);
    let beside = content_beside(&refused);
    let (status, body) = timeout(PATIENCE, world.upload(&beside, &[("name", "beside")]))
        .await
        .unwrap();
    assert_eq!(status.as_u16(), 201, "{body}");
    programs.room.add_permits(1);
    let (status, body) = timeout(PATIENCE, registration).await.unwrap();
    assert_eq!(status.as_u16(), 400, "{body}");
}

#[tokio::test]
async fn an_image_that_nobody_waits_for_is_discarded() {
    let world = World::new().await;
    let programs = &world.programs;
    let content = container_image("held");
    {
        let registration = world.upload(&content, &[]);
        tokio::pin!(registration);
        until_held(&world, registration.as_mut()).await;
        // Here its client goes away.
    }
    let newer = world.image(&container_image("newer"), &[]).await;
    programs.held.add_permits(1);
    let removed = timeout(PATIENCE, programs.reclaiming.notified()).await;
    removed.expect("what was made of it is removed");
    let digest = ImageDigest::of(&content);
    assert_eq!(*programs.forgotten.lock().unwrap(), [digest]);
    assert!(!world.blobs.exists(&digest).await.unwrap());
    assert_eq!(world.get("/api/v1/images").await["total_count"], 1);
    assert_eq!(named(&world, "program").await, Some(id(&newer)));
    // Who comes back later finds nothing in the way.
    programs.held.add_permits(1);
    let again = world.image(&content, &[]).await;
    assert_eq!(named(&world, "program").await, Some(id(&again)));
}

#[tokio::test]
async fn who_goes_away_before_its_turn_is_not_waited_for() {
    let world = World::new().await;
    let programs = &world.programs;
    let mut at_work = Vec::new();
    for number in 0..4 {
        let content = container_image(&format!("held {number}"));
        let name = format!("at-work-{number}");
        let mut registration = Box::pin({
            let world = &world;
            async move { world.upload(&content, &[("name", &name)]).await }
        });
        until_held(&world, registration.as_mut()).await;
        at_work.push(registration);
    }
    let content = container_image("fifth");
    let digest = ImageDigest::of(&content);
    {
        let registration = world.upload(&content, &[]);
        tokio::pin!(registration);
        let stored = async {
            while !world.blobs.exists(&digest).await.unwrap() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            answer = &mut registration => panic!("it had a turn: {answer:?}"),
            stored = timeout(PATIENCE, stored) => stored.unwrap(),
        }
    }
    let removed = timeout(PATIENCE, programs.reclaiming.notified()).await;
    removed.expect("it is removed while the others are at work");
    assert!(!world.blobs.exists(&digest).await.unwrap());
    assert!(programs.prepared.lock().unwrap().is_empty());
    programs.held.add_permits(4);
    for registration in at_work {
        let (status, body) = timeout(PATIENCE, registration).await.unwrap();
        assert_eq!(status.as_u16(), 201, "{body}");
    }
}

#[tokio::test]
async fn the_same_content_stays_for_another_that_still_waits() {
    let world = World::new().await;
    let programs = &world.programs;
    let content = container_image("held");
    let waits = world.upload(&content, &[("name", "waits")]);
    tokio::pin!(waits);
    {
        let goes = world.upload(&content, &[("name", "goes")]);
        tokio::pin!(goes);
        until_held(&world, goes.as_mut()).await;
        until_held(&world, waits.as_mut()).await;
    }
    // Whichever is ready first.
    programs.held.add_permits(2);
    let (status, body) = timeout(PATIENCE, waits).await.unwrap();
    assert_eq!(status.as_u16(), 201, "{body}");
    timeout(PATIENCE, programs.until_prepared(2)).await.unwrap();
    assert_eq!(named(&world, "goes").await, None);
    assert!(world.has(&content).await);
    assert_eq!(*programs.forgotten.lock().unwrap(), []);
}

#[tokio::test]
async fn who_comes_back_soon_finds_what_was_made() {
    let world = World::that_keeps(Duration::from_secs(3_600)).await;
    let programs = &world.programs;
    let content = container_image("held");
    {
        let registration = world.upload(&content, &[("name", "first")]);
        tokio::pin!(registration);
        until_held(&world, registration.as_mut()).await;
    }
    programs.held.add_permits(2);
    timeout(PATIENCE, programs.until_prepared(1)).await.unwrap();
    let again = world.image(&content, &[("name", "second")]).await;
    assert_eq!(named(&world, "second").await, Some(id(&again)));
    assert_eq!(named(&world, "first").await, None);
    assert_eq!(*programs.forgotten.lock().unwrap(), []);
}
