//! Nodes: leases that last, and runs that are lost with them.

use runtara_domain::{NodeId, NodeKey, Reason, RunNumber, Status, limits};

use super::Harness;
use super::world::World;
use crate::{Claim, NodeLease, NodeRecord, NodeRemoval, NodeStanding};

async fn renew(world: &World<'_>, node: NodeId, lease_ms: u64) -> NodeStanding {
    let lease = NodeLease {
        guarded: true,
        ..NodeLease::new(node, format!("node {node}"), lease_ms)
    };
    world
        .store
        .renew_node(lease)
        .await
        .expect("a lease is renewed")
}

async fn claim_by(world: &World<'_>, node: NodeId, most: usize) -> Vec<String> {
    let claim = Claim {
        node,
        ..world.claim_of(most)
    };
    let claimed = world
        .store
        .claim_due(claim)
        .await
        .expect("a claim is answered");
    claimed
        .iter()
        .map(|run| run.instance_id.as_str().to_owned())
        .collect()
}

/// A node is told how many others there are, those whose lease is over included, until they are taken off.
pub async fn a_node_knows_how_many_others_there_are(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let other = NodeId::generate();
    let standing = renew(&world, world.node, 15_000).await;
    assert_eq!((standing.others, standing.next_end_in_ms), (0, None));
    world.advance(1_000).await;
    let standing = renew(&world, other, 15_000).await;
    assert_eq!(
        (standing.others, standing.next_end_in_ms),
        (1, Some(14_000))
    );
    world.advance(60_000).await;
    let standing = renew(&world, world.node, 15_000).await;
    assert_eq!((standing.others, standing.next_end_in_ms), (1, None));
    world.store.release_node(other).await.unwrap();
    assert_eq!(renew(&world, world.node, 15_000).await.others, 0);
    world.store.release_node(other).await.unwrap();
}

/// A node with a live run is not taken off.
pub async fn a_node_with_a_live_run_stays(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let other = NodeId::generate();
    renew(&world, other, 15_000).await;
    let id = world.start("order-1").await.instance_id;
    assert_eq!(claim_by(&world, other, 1).await, ["order-1"]);
    world.store.release_node(other).await.unwrap();
    assert_eq!(renew(&world, world.node, 15_000).await.others, 1);
    world.advance(15_000).await;
    assert_eq!(world.store.expire_nodes(world.node, 9).await.unwrap(), [id]);
    world.store.release_node(other).await.unwrap();
    assert_eq!(renew(&world, world.node, 15_000).await.others, 0);
}

/// A drained node that leaves is drained still when it comes back.
pub async fn a_drained_node_stays_drained(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let other = NodeId::generate();
    let standing = async |node| renew(&world, node, 15_000).await;
    standing(other).await;
    assert!(world.store.drain_node(other, Some(0)).await.unwrap());
    world.store.release_node(other).await.unwrap();
    let seen = standing(world.node).await;
    assert_eq!((seen.others, seen.next_end_in_ms), (1, None));
    world.advance(1_000).await;
    let back = standing(other).await;
    assert_eq!((back.drain_in_ms, back.lasted), (Some(0), false));
    assert!(world.store.drain_node(other, None).await.unwrap());
    world.store.release_node(other).await.unwrap();
    assert_eq!(standing(world.node).await.others, 0);
}

/// A node that died long ago is taken off, but not before its runs are.
pub async fn a_node_that_died_long_ago_is_forgotten(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let (dead, idle) = (NodeId::generate(), NodeId::generate());
    let expire = async |limit| {
        let lost = world.store.expire_nodes(world.node, limit).await;
        lost.expect("it is answered").len()
    };
    let others = async || renew(&world, world.node, 15_000).await.others;
    renew(&world, dead, 15_000).await;
    renew(&world, idle, 15_000).await;
    world.start("order-1").await;
    assert_eq!(claim_by(&world, dead, 1).await, ["order-1"]);
    world.advance(15_000 + limits::NODE_KEPT_MS - 1).await;
    assert_eq!((expire(0).await, others().await), (0, 2));
    renew(&world, idle, 15_000).await;
    world.advance(1).await;
    assert_eq!(
        (expire(0).await, others().await),
        (0, 2),
        "one has come back, the other has a live run"
    );
    assert_eq!((expire(9).await, others().await), (1, 1));
    world.advance(15_000 + limits::NODE_KEPT_MS).await;
    assert_eq!((expire(9).await, others().await), (0, 0));
    assert_eq!(
        renew(&world, idle, 15_000).await.others,
        1,
        "nobody takes himself off"
    );
}

/// Runs of a node whose lease is over are lost, uncounted, and due at once; a renewed lease lasts.
pub async fn runs_are_lost_with_the_lease_of_their_node(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let other = NodeId::generate();
    renew(&world, other, 15_000).await;
    let id = world.start("order-1").await.instance_id;
    assert_eq!(claim_by(&world, other, 1).await.len(), 1);
    let expire = || world.store.expire_nodes(world.node, 9);
    world.advance(14_999).await;
    assert!(expire().await.unwrap().is_empty());
    renew(&world, other, 15_000).await;
    world.advance(14_999).await;
    assert!(expire().await.unwrap().is_empty());
    world.advance(1).await;
    assert_eq!(expire().await.unwrap(), std::slice::from_ref(&id));
    assert!(expire().await.unwrap().is_empty());
    let state = world.state(&id).await;
    assert_eq!(
        (state.status, state.reason),
        (Status::Suspended, Some(Reason::Interrupted))
    );
    assert_eq!((state.live_node, state.due_at), (None, Some(world.now())));
    assert_eq!(
        (state.attempts.crash_count, state.attempts.interruptions),
        (0, 1)
    );
    assert_eq!(world.history(&id).await, ["runtara.interrupted"]);
    let run = world.claim_only(&id).await;
    assert_eq!(run.run_number, RunNumber(2));
}

/// The own runs of who asks are not lost, even if its lease is over.
pub async fn nobody_loses_its_own_runs(harness: &dyn Harness) {
    let world = World::new(harness).await;
    renew(&world, world.node, 15_000).await;
    let run = world.launch("order-1").await;
    world.advance(60_000).await;
    assert!(
        world
            .store
            .expire_nodes(world.node, 9)
            .await
            .unwrap()
            .is_empty()
    );
    let lost = world
        .store
        .expire_nodes(NodeId::generate(), 9)
        .await
        .unwrap();
    assert_eq!(lost, [run.id().clone()]);
}

/// A node that thought that it was alone is given the time to learn that it is not; one that nobody knows takes nothing.
pub async fn a_node_that_was_alone_is_waited_for(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let (alone, late) = (NodeId::generate(), NodeId::generate());
    let unguarded = NodeLease::new(alone, "alone", 15_000);
    world.store.renew_node(unguarded).await.unwrap();
    let id = world.start("order-1").await.instance_id;
    assert_eq!(claim_by(&world, alone, 1).await.len(), 1);
    world.advance(60_000).await;
    renew(&world, late, 15_000).await;
    let expire = |me| world.store.expire_nodes(me, 9);
    assert!(expire(late).await.unwrap().is_empty());
    assert!(expire(NodeId::generate()).await.unwrap().is_empty());
    world.advance(limits::NODE_LEASE_MS - 1).await;
    assert!(expire(late).await.unwrap().is_empty());
    world.advance(1).await;
    assert_eq!(expire(late).await.unwrap(), [id]);
}

/// A node whose lease is over gets nothing, whatever is due, until it has renewed it; and is told that it had lost it.
pub async fn a_node_without_a_lease_claims_nothing(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let node = NodeId::generate();
    world.start("order-1").await;
    assert!(claim_by(&world, node, 1).await.is_empty(), "it is unknown");
    assert!(!renew(&world, node, 15_000).await.lasted);
    world.advance(14_999).await;
    assert!(renew(&world, node, 15_000).await.lasted);
    world.advance(15_000).await;
    assert!(claim_by(&world, node, 1).await.is_empty(), "it is over");
    assert!(!renew(&world, node, 15_000).await.lasted);
    assert_eq!(claim_by(&world, node, 1).await, ["order-1"]);
}

/// A node that is drained claims nothing, and is told when to hand over what still runs on it, until somebody has it go on.
pub async fn a_drained_node_claims_nothing(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let node = NodeId::generate();
    let standing = async || renew(&world, node, 15_000).await.drain_in_ms;
    assert_eq!(standing().await, None);
    world.start("order-1").await;
    let drain = |ms| world.store.drain_node(node, ms);
    assert!(drain(Some(10_000)).await.unwrap());
    assert!(claim_by(&world, node, 1).await.is_empty());
    assert_eq!(standing().await, Some(10_000));
    world.advance(4_000).await;
    assert_eq!(standing().await, Some(6_000));
    world.advance(7_000).await;
    assert_eq!(standing().await, Some(0));
    assert!(drain(None).await.unwrap());
    assert_eq!(standing().await, None);
    assert_eq!(claim_by(&world, node, 1).await, ["order-1"]);
    let unknown = NodeId::generate();
    assert!(!world.store.drain_node(unknown, Some(1)).await.unwrap());
}

/// Nodes are listed with what they say of themselves, and with what is known of them.
pub async fn nodes_are_listed(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let (node, key) = (NodeId::generate(), NodeKey::generate());
    let lease = NodeLease {
        guarded: true,
        address: Some("10.0.0.5:8004".to_owned()),
        key: Some(key.clone()),
        capacity: 40,
        used: 3,
        ..NodeLease::new(node, "a first node", 15_000)
    };
    world.store.renew_node(lease.clone()).await.unwrap();
    world.start("order-1").await;
    assert_eq!(claim_by(&world, node, 1).await.len(), 1);
    let joined = world.now();
    world.advance(1_000).await;
    world.store.drain_node(node, Some(500)).await.unwrap();
    let listed = world.store.nodes().await.unwrap();
    let names: Vec<_> = listed.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["a first node", "node"]);
    let mut expected = NodeRecord {
        node,
        name: "a first node".to_owned(),
        address: lease.address.clone(),
        key: Some(key),
        capacity: 40,
        used: 3,
        live_runs: 1,
        registered_at: joined,
        lease_in_ms: 14_000,
        drain_in_ms: Some(500),
        removed: false,
    };
    assert_eq!(listed[0], expected);
    world.advance(20_000).await;
    let renewed = NodeLease {
        used: 4,
        address: None,
        ..lease
    };
    world.store.renew_node(renewed).await.unwrap();
    // It had no lease in between, so it has joined anew.
    expected.registered_at = world.now();
    world.advance(16_000).await;
    (expected.used, expected.address) = (4, None);
    (expected.lease_in_ms, expected.drain_in_ms) = (-1_000, Some(0));
    assert_eq!(world.store.nodes().await.unwrap()[0], expected);
}

/// A dead node that is removed is waited for no longer; one that lives is not removed.
pub async fn a_dead_node_is_removed(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let node = NodeId::generate();
    let remove = || world.store.remove_node(node);
    assert_eq!(remove().await.unwrap(), NodeRemoval::NotFound);
    let unguarded = NodeLease::new(node, "gone", 15_000);
    world.store.renew_node(unguarded.clone()).await.unwrap();
    let id = world.start("order-1").await.instance_id;
    assert_eq!(claim_by(&world, node, 1).await.len(), 1);
    let alive = NodeRemoval::Alive {
        lease_in_ms: 15_000,
    };
    assert_eq!(remove().await.unwrap(), alive);
    world.advance(15_000).await;
    for _ in 0..2 {
        let removed = NodeRemoval::Removed { live_runs: 1 };
        assert_eq!(remove().await.unwrap(), removed);
    }
    assert!(world.store.nodes().await.unwrap()[0].removed);
    let me = NodeId::generate();
    assert_eq!(world.store.expire_nodes(me, 9).await.unwrap(), [id]);
    let names: Vec<_> = world.store.nodes().await.unwrap();
    assert_eq!(names.len(), 1, "it is off the list: {names:?}");
    assert_eq!(remove().await.unwrap(), NodeRemoval::NotFound);
    assert!(!world.store.renew_node(unguarded).await.unwrap().lasted);
    assert_eq!(claim_by(&world, node, 1).await, ["order-1"]);
}

/// What had been asked of a lost run is done: a cancel cancels, a pause pauses, an end stands.
pub async fn what_was_asked_of_a_lost_run_is_done(harness: &dyn Harness) {
    let world = World::new(harness).await;
    renew(&world, world.node, 15_000).await;
    let cancelled = world.launch("a").await;
    cancelled.register().await;
    world.cancel(cancelled.id()).await;
    let paused = world.launch("b").await;
    paused.register().await;
    world.pause(paused.id()).await;
    let completed = world.launch("c").await;
    completed.complete(b"1").await;
    world.advance(60_000).await;
    let lost = world
        .store
        .expire_nodes(NodeId::generate(), 9)
        .await
        .unwrap();
    assert_eq!(lost.len(), 3);
    for (run, status) in [
        (&cancelled, Status::Cancelled),
        (&paused, Status::Suspended),
        (&completed, Status::Completed),
    ] {
        let state = world.state(run.id()).await;
        assert_eq!(
            (state.status, state.live_node, state.due_at),
            (status, None, None)
        );
    }
}

/// No more are lost at once than was asked for, and asking again finds the rest.
pub async fn losing_is_bounded(harness: &dyn Harness) {
    let world = World::new(harness).await;
    renew(&world, world.node, 1_000).await;
    for n in 0..5 {
        world.start(&format!("i-{n}")).await;
    }
    assert_eq!(world.claim(9).await.len(), 5);
    world.advance(1_000).await;
    let me = NodeId::generate();
    let mut counts = Vec::new();
    for _ in 0..4 {
        counts.push(world.store.expire_nodes(me, 2).await.unwrap().len());
    }
    assert_eq!(counts, [2, 2, 1, 0]);
}

/// Several nodes that look at once lose each run once.
pub async fn a_run_is_lost_once(harness: &dyn Harness) {
    let world = World::new(harness).await;
    renew(&world, world.node, 1_000).await;
    for n in 0..40 {
        world.start(&format!("i-{n}")).await;
    }
    assert_eq!(world.claim(40).await.len(), 40);
    world.advance(1_000).await;
    let lookers: Vec<_> = (0..4)
        .map(|_| {
            let store = world.store.clone();
            tokio::spawn(async move { store.expire_nodes(NodeId::generate(), 100).await })
        })
        .collect();
    let mut lost = Vec::new();
    for looker in lookers {
        lost.extend(
            looker
                .await
                .expect("no looker panics")
                .expect("it is answered"),
        );
    }
    lost.sort();
    let before = lost.len();
    lost.dedup();
    assert_eq!((before, lost.len()), (40, 40));
    for id in lost {
        assert_eq!(world.state(&id).await.attempts.interruptions, 1, "{id}");
    }
}

/// A database has an id of its own, which stays.
pub async fn a_database_has_an_id(harness: &dyn Harness) {
    let world = World::new(harness).await;
    world.store.ping().await.unwrap();
    let first = world.store.database_id().await.unwrap();
    assert_eq!(world.store.database_id().await.unwrap(), first);
}

/// A store that was closed says that it is away.
pub async fn a_closed_store_is_away(harness: &dyn Harness) {
    let world = World::new(harness).await;
    world.store.close().await;
    let away = |error: crate::StoreError| matches!(error, crate::StoreError::Unavailable { .. });
    assert!(world.store.ping().await.is_err_and(away));
    let start = world.store.start_instance(world.new_instance("late")).await;
    assert!(start.is_err_and(away));
}
