//! How much one tenant may have: instances that are pending, runs, images.

use runtara_domain::{NewInstance, NodeId, Refusal, TenantId, TokenHash};

use super::Harness;
use super::make::{KINDS, exit_code, new_image, refusal, tenant};
use super::world::{Run, World};
use crate::{Claim, ClaimedRun, ImageBytes, ImageDeletion, NextDue, Started};

fn within(world: &World<'_>, id: &str, pending_allowed: u64) -> NewInstance {
    NewInstance {
        pending_allowed: Some(pending_allowed),
        ..world.new_instance(id)
    }
}

/// No more instances of a tenant are pending than may be; what was started before is answered all the same.
pub async fn pending_instances_are_bounded(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let start = async |new| world.store.start_instance(new).await.expect("answered");
    for id in ["a", "b"] {
        let started = start(within(&world, id, 2)).await;
        assert!(matches!(started, Started::New(_)), "{started:?}");
    }
    let full = start(within(&world, "c", 2)).await;
    assert_eq!(full, Started::TooManyPending { pending: 2 });
    let again = start(within(&world, "a", 2)).await;
    assert!(matches!(again, Started::Same(_)), "{again:?}");
    let taken = NewInstance {
        input: "other".into(),
        ..within(&world, "a", 2)
    };
    assert_eq!(
        start(taken).await,
        Started::Taken { same_tenant: true },
        "it could never be started"
    );
    let other = tenant("other");
    let image = new_image(&other, "program", b"x");
    let image = world.store.register_image(image).await.expect("registered");
    let mut new = within(&world, "of another", 2);
    (new.tenant_id, new.image_id) = (other, image.image_id);
    assert!(matches!(start(new).await, Started::New(_)));
    assert_eq!(world.claim(1).await.len(), 1);
    let room = start(within(&world, "c", 2)).await;
    assert!(matches!(room, Started::New(_)), "one runs: {room:?}");
    world.cancel(&super::make::instance("b")).await;
    let room = start(within(&world, "d", 2)).await;
    assert!(
        matches!(room, Started::New(_)),
        "one is cancelled: {room:?}"
    );
    let full = start(within(&world, "e", 2)).await;
    assert_eq!(full, Started::TooManyPending { pending: 2 });
    assert!(matches!(
        start(within(&world, "e", 3)).await,
        Started::New(_)
    ));
}

async fn start_many(world: &World<'_>, name: &str, count: usize) {
    let owner = tenant(name);
    let image = new_image(&owner, "program", b"x");
    let image = world.store.register_image(image).await.expect("registered");
    for n in 0..count {
        let mut new = world.new_instance(&format!("{name}-{n:03}"));
        (new.tenant_id, new.image_id) = (owner.clone(), image.image_id.clone());
        world.start_as(new).await;
        world.advance(1).await;
    }
}

async fn claim_within(world: &World<'_>, most: usize, without: &[&str]) -> Vec<ClaimedRun> {
    let claim = Claim {
        running_allowed: Some(3),
        without_tenants: without.iter().map(|name| tenant(name)).collect(),
        ..world.claim_of(most)
    };
    world.store.claim_due(claim).await.expect("answered")
}

fn ids(claimed: &[ClaimedRun]) -> Vec<&str> {
    let ids = claimed.iter().map(|run| run.instance_id.as_str());
    ids.collect()
}

/// No more instances of a tenant run at once than may; what else it has due waits, and keeps nobody out, however much that is.
pub async fn runs_of_a_tenant_are_bounded(harness: &dyn Harness) {
    let world = World::new(harness).await;
    start_many(&world, "greedy", 40).await;
    start_many(&world, "small", 5).await;
    // Fewer than it looks at, and more.
    let first = claim_within(&world, 2, &[]).await;
    assert_eq!(ids(&first), ["greedy-000", "greedy-001"]);
    let second = claim_within(&world, 2, &[]).await;
    assert_eq!(ids(&second), ["greedy-002", "small-000"]);
    let third = claim_within(&world, 12, &[]).await;
    assert_eq!(ids(&third), ["small-001", "small-002"]);
    assert!(claim_within(&world, 12, &[]).await.is_empty());
    let due = world.store.next_due(&KINDS).await.expect("answered");
    assert_eq!(due, NextDue { in_ms: Some(0) }, "they are due, and wait");
    let later = world.store.next_due_later(&KINDS).await;
    assert_eq!(later.expect("answered"), NextDue { in_ms: None });
    let delayed = NewInstance {
        due: runtara_domain::Due::After(700),
        ..world.new_instance("later")
    };
    world.start_as(delayed).await;
    let later = world.store.next_due_later(&KINDS).await;
    assert_eq!(later.expect("answered"), NextDue { in_ms: Some(700) });
    Run::of(&world, &first[0]).complete(b"1").await;
    let next = claim_within(&world, 12, &[]).await;
    assert_eq!(ids(&next), ["greedy-003"]);
    for run in [&second[1], &third[0]] {
        Run::of(&world, run).exit(exit_code(0)).await;
    }
    Run::of(&world, &first[1]).exit(exit_code(0)).await;
    let next = claim_within(&world, 12, &["greedy", "nobody"]).await;
    assert_eq!(ids(&next), ["small-003", "small-004"]);
    let next = claim_within(&world, 12, &[]).await;
    assert_eq!(ids(&next), ["greedy-004"]);
}

/// However many claim at once.
pub async fn runs_of_a_tenant_are_bounded_over_all_nodes(harness: &dyn Harness) {
    let world = World::new(harness).await;
    start_many(&world, "greedy", 30).await;
    start_many(&world, "grabby", 30).await;
    let mut claimers = Vec::new();
    for _ in 0..4 {
        let node = NodeId::generate();
        world.join(node).await;
        let store = world.store.clone();
        let claims: Vec<_> = (0..10)
            .map(|_| Claim {
                node,
                running_allowed: Some(7),
                ..world.claim_of(2)
            })
            .collect();
        claimers.push(tokio::spawn(async move {
            let mut mine: Vec<(TenantId, TokenHash)> = Vec::new();
            for claim in claims {
                let claimed = store.claim_due(claim).await.expect("answered");
                mine.extend(claimed.into_iter().map(|run| (run.tenant_id, run.token)));
            }
            mine
        }));
    }
    let mut all = Vec::new();
    for claimer in claimers {
        all.extend(claimer.await.expect("no claimer panics"));
    }
    for name in ["greedy", "grabby"] {
        let of = all.iter().filter(|(owner, _)| *owner == tenant(name));
        assert_eq!(of.count(), 7, "{name}");
    }
}

/// What a tenant's images have together is bounded; content counts once, for as long as it is kept.
pub async fn bytes_of_images_are_bounded(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let owner = tenant("owner");
    let register = async |owner: &TenantId, name: &str, content: &[u8]| {
        let mut image = new_image(owner, name, content);
        image.tenant_bytes_allowed = Some(10);
        image.size = content.len() as u64;
        (
            image.image_id.clone(),
            world.store.register_image(image).await,
        )
    };
    let bytes = async |sizes| world.store.image_bytes(&owner, sizes).await.expect("read");
    let nothing = ImageBytes::default();
    assert_eq!(bytes((0, u64::MAX)).await, nothing);
    let (first, registered) = register(&owner, "a", b"123456").await;
    registered.expect("there is room");
    let (_, registered) = register(&owner, "b", b"123456").await;
    registered.expect("it is the same content");
    let (_, over) = register(&owner, "c", b"12345").await;
    assert_eq!(
        refusal(over),
        Some(Refusal::TooManyImageBytes {
            kept: 6,
            size: 5,
            allowed: 10
        })
    );
    let (_, registered) = register(&owner, "c", b"1234").await;
    registered.expect("it just fits");
    let (_, registered) = register(&owner, "d", b"123456").await;
    registered.expect("what it has already adds nothing");
    let (_, registered) = register(&tenant("another"), "a", b"1234567890").await;
    registered.expect("another has room of its own");
    let kept = |has_size| ImageBytes {
        bytes: 10,
        has_size,
    };
    assert_eq!(bytes((4, 4)).await, kept(true));
    assert_eq!(bytes((5, 5)).await, kept(false));
    assert_eq!(bytes((5, 6)).await, kept(true));
    let (_, registered) = register(&owner, "c", b"123456").await;
    registered.expect("it replaces one, which is still kept");
    assert_eq!(bytes((4, 4)).await, kept(true));
    world
        .store
        .remove_unneeded_images(9)
        .await
        .expect("removed");
    let less = ImageBytes {
        bytes: 6,
        has_size: false,
    };
    assert_eq!(bytes((4, 4)).await, less);
    let deleted = world.store.delete_image(&first).await.expect("answered");
    assert_eq!(deleted, ImageDeletion::Deleted);
    assert_eq!(bytes((6, 6)).await.bytes, 6, "others have its content");
}
