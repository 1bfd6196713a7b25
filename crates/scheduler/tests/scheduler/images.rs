//! What becomes of content that no image has.

use std::time::Duration;

use runtara_domain::ImageDigest;
use runtara_images::Stored;
use tokio::time::timeout;

use crate::soon;
use crate::world::World;

async fn store(world: &World, content: &[u8]) -> Stored {
    let mut upload = world.blobs.upload().await.unwrap();
    upload.write(content).await.unwrap();
    upload.finish(None).await.unwrap()
}

#[tokio::test]
async fn content_is_unlocked_before_its_room_is_given_back() {
    let world = World::new().await;
    let orphans = [&b"#!/bin/sh\n# first\n"[..], b"#!/bin/sh\n# second\n"];
    let digests = orphans.map(ImageDigest::of);
    for content in orphans {
        // Its registration ends here, without a row.
        drop(store(&world, content).await);
    }
    world.runner.reclaims_slowly.send_replace(true);
    let scheduler = world.scheduler(1);
    let mut forgotten = Vec::new();
    let mut reclaims = world.runner.reclaims.subscribe();
    while forgotten.len() < 2 {
        let begun = timeout(Duration::from_secs(10), reclaims.changed()).await;
        begun.expect("room is given back").unwrap();
        forgotten = world.runner.forgotten.lock().unwrap().clone();
    }
    forgotten.sort_unstable();
    let mut expected = digests.to_vec();
    expected.sort_unstable();
    assert_eq!(forgotten, expected);
    for (content, digest) in orphans.iter().zip(digests) {
        assert!(!world.blobs.exists(&digest).await.unwrap());
        let again = timeout(Duration::from_secs(9), store(&world, content)).await;
        assert_eq!(again.expect("nothing is locked").digest, digest);
    }
    world.runner.reclaims_slowly.send_replace(false);
    scheduler.shutdown(soon()).await;
}
