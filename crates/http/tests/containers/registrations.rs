//! Which of several registrations a name means, and what becomes of those that nobody waits for.

use std::time::Duration;

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
