//! Claims: what is due, oldest first, each instance once.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use runtara_domain::{
    Change, Due, NodeId, RunExit, RunNumber, RunnerKind, Status, Timestamp, Word,
};

use super::Harness;
use super::make::{KINDS, exit_code, new_image, settings, sleep, tenant};
use super::world::World;
use crate::{CLAIMED_INPUT_BYTES, Claim, NextDue};

/// A claim sets everything that a run begins with, and brings what its launch needs.
pub async fn a_claim_brings_what_a_launch_needs(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let mut new = world.new_instance("order-1");
    new.env = BTreeMap::from([("MODE".to_owned(), "täglich".to_owned())]);
    new.args = vec!["--fast".to_owned(), String::new()];
    new.settings = settings(7);
    new.timeout_ms = 1_234;
    let started = world.start_as(new.clone()).await;
    let claim = world.claim_of(1);
    let token = claim.tokens[0];
    let claimed = world.store.claim_due(claim).await.unwrap();
    let run = &claimed[0];
    assert_eq!((run.token, run.run_number), (token, RunNumber(1)));
    assert_eq!(
        (&run.instance_id, &run.tenant_id),
        (&new.instance_id, &new.tenant_id)
    );
    assert_eq!(Some(run.due_at), started.due_at);
    assert_eq!(run.image, world.image);
    assert_eq!(run.input, Some(new.input));
    assert_eq!(
        (&run.env, &run.args, run.timeout_ms),
        (&new.env, &new.args, 1_234)
    );
    assert_eq!(run.settings, new.settings);
    assert_eq!(run.checkpoint_id, None);
    let change = Change::Claim {
        node: world.node,
        token,
    };
    let expected = runtara_domain::transition(&started, &change, started.created_at);
    let expected = expected.expect("it is due").state;
    assert_eq!(world.state(&new.instance_id).await, expected);
    assert_eq!(expected.status, Status::Running);
}

/// The instance that was due first is claimed first, and no more are claimed than there are tokens.
pub async fn claims_go_by_due_time_and_are_bounded_by_tokens(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for (id, due_at) in [("c", 300), ("a", 100), ("e", 500), ("d", 400), ("b", 200)] {
        let mut new = world.new_instance(id);
        new.due = Due::At(Timestamp(due_at));
        world.start_as(new).await;
    }
    let ids = |claimed: Vec<crate::ClaimedRun>| {
        let ids = claimed
            .iter()
            .map(|run| run.instance_id.as_str().to_owned());
        ids.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ids(world.claim(0).await), "");
    assert_eq!(ids(world.claim(2).await), "a b");
    assert_eq!(ids(world.claim(9).await), "c d e");
    assert_eq!(ids(world.claim(9).await), "");
}

/// Only instances of the kinds that are asked for are claimed, and only they count as due.
pub async fn claims_are_of_the_kinds_that_are_asked_for(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for kind in KINDS {
        let mut image = new_image(&world.tenant, kind.as_str(), b"x");
        image.kind = kind;
        let image = world.store.register_image(image).await.unwrap();
        let mut new = world.new_instance(kind.as_str());
        new.image_id = image.image_id;
        world.start_as(new).await;
    }
    let of = |kinds: &[RunnerKind]| Claim {
        kinds: kinds.to_vec(),
        ..world.claim_of(9)
    };
    assert!(world.store.claim_due(of(&[])).await.unwrap().is_empty());
    let wasm = world
        .store
        .claim_due(of(&[RunnerKind::Wasm]))
        .await
        .unwrap();
    assert_eq!(wasm.len(), 1);
    assert_eq!(wasm[0].image.kind, RunnerKind::Wasm);
    let next = |kinds: Vec<RunnerKind>| {
        let store = world.store.clone();
        async move { store.next_due(&kinds).await.unwrap().in_ms }
    };
    assert_eq!(next(vec![RunnerKind::Wasm]).await, None);
    assert_eq!(next(vec![RunnerKind::Wasm, RunnerKind::Oci]).await, Some(0));
    let two = of(&[RunnerKind::Oci, RunnerKind::Native]);
    assert_eq!(world.store.claim_due(two).await.unwrap().len(), 2);
    assert_eq!(next(KINDS.to_vec()).await, None);
}

/// Tenants over their share are left out.
pub async fn claims_leave_out_tenants(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for name in ["greedy", "modest", "small"] {
        let owner = tenant(name);
        let image = new_image(&owner, "program", b"x");
        let image = world.store.register_image(image).await.unwrap();
        for n in 0..3 {
            let mut new = world.new_instance(&format!("{name}-{n}"));
            (new.tenant_id, new.image_id) = (owner.clone(), image.image_id.clone());
            world.start_as(new).await;
        }
    }
    let claim = Claim {
        without_tenants: vec![tenant("greedy"), tenant("small"), tenant("nobody")],
        ..world.claim_of(9)
    };
    let claimed = world.store.claim_due(claim).await.unwrap();
    let owners: BTreeSet<_> = claimed.iter().map(|run| run.tenant_id.as_str()).collect();
    assert_eq!((claimed.len(), owners), (3, BTreeSet::from(["modest"])));
    assert_eq!(world.claim(9).await.len(), 6);
}

/// An instance whose process has not left is not claimed, whatever is due; once it has left, it is.
pub async fn an_instance_with_a_live_process_is_not_claimed(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.register().await;
    run.say(Word::Failed { error: "no".into() }).await;
    world.resume(run.id()).await;
    let state = world.state(run.id()).await;
    assert_eq!(
        (state.status, state.live_node),
        (Status::Suspended, Some(world.node))
    );
    assert!(state.due_at.is_some());
    assert!(world.claim(9).await.is_empty());
    let next = world.store.next_due(&KINDS).await.unwrap();
    assert_eq!(next, NextDue { in_ms: None });
    run.exit(exit_code(1)).await;
    let again = world.claim_only(run.id()).await;
    assert_eq!(again.run_number, RunNumber(2));
}

/// A relaunch brings the checkpoint that was saved last.
pub async fn a_relaunch_brings_the_last_checkpoint(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.save("one", b"1").await;
    run.save("two", b"2").await;
    run.save("one", b"ignored").await;
    run.exit(RunExit::lost()).await;
    let claimed = world.claim(1).await;
    let last = claimed[0].checkpoint_id.clone();
    assert_eq!(last, Some(super::make::checkpoint("two")));
}

/// A large input is not brought along, and can be asked for.
pub async fn a_large_input_is_asked_for(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for (id, size) in [
        ("fits", CLAIMED_INPUT_BYTES),
        ("large", CLAIMED_INPUT_BYTES + 1),
    ] {
        let mut new = world.new_instance(id);
        new.input = Bytes::from(vec![b'7'; size]);
        world.start_as(new.clone()).await;
        let claimed = world.claim(1).await;
        let brought = claimed[0].input.clone();
        assert_eq!(brought.is_some(), id == "fits");
        let asked = world.store.instance_input(&new.instance_id).await.unwrap();
        assert_eq!(asked, Some(Some(new.input)));
    }
}

/// An instance that registered itself is never claimed, even if it said when it wants to wake.
pub async fn a_self_registered_instance_is_never_claimed(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.self_registered("outside").await;
    let now = world.now();
    run.say(Word::SuspendedUntil {
        wake_at: now,
        checkpoint_id: super::make::checkpoint("c"),
        state: Bytes::from_static(b"s"),
    })
    .await;
    world.advance(60_000).await;
    assert!(world.claim(9).await.is_empty());
    let next = world.store.next_due(&KINDS).await.unwrap();
    assert_eq!(next, NextDue { in_ms: None });
}

/// A sleeper is claimed when it is due.
pub async fn a_sleeper_is_claimed_at_its_time(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.register().await;
    run.wait(sleep(None, 60_000, b"s")).await;
    run.exit(RunExit::lost()).await;
    world.advance(59_999).await;
    assert!(world.claim(1).await.is_empty());
    world.advance(1).await;
    world.claim_only(run.id()).await;
}

/// Eight claimers at once get a thousand instances: none twice, all once, each for the claimer it was told.
pub async fn no_instance_is_claimed_twice(harness: &dyn Harness) {
    const INSTANCES: usize = 1_000;
    let world = World::new(harness).await;
    let starters: Vec<_> = (0..8)
        .map(|part| {
            let store = world.store.clone();
            let new: Vec<_> = (0..INSTANCES / 8)
                .map(|n| world.new_instance(&format!("i-{part}-{n}")))
                .collect();
            tokio::spawn(async move {
                for new in new {
                    store
                        .start_instance(new)
                        .await
                        .expect("a start is answered");
                }
            })
        })
        .collect();
    for starter in starters {
        starter.await.expect("no starter panics");
    }
    let mut claimers = Vec::new();
    for _ in 0..8 {
        let node = NodeId::generate();
        world.join(node).await;
        let store = world.store.clone();
        let claims: Vec<_> = (0..200)
            .map(|_| Claim {
                node,
                ..world.claim_of(17)
            })
            .collect();
        claimers.push(tokio::spawn(async move {
            let mut mine = Vec::new();
            for claim in claims {
                let claimed = store.claim_due(claim).await.expect("a claim is answered");
                // With rows locked by others a claim may come back short; empty twice means that nothing is left.
                let nothing = claimed.is_empty();
                mine.extend(claimed);
                if nothing && store.next_due(&KINDS).await.expect("asked").in_ms.is_none() {
                    break;
                }
            }
            (node, mine)
        }));
    }
    let mut seen = BTreeSet::new();
    for claimer in claimers {
        let (node, mine) = claimer.await.expect("no claimer panics");
        for run in mine {
            assert_eq!(run.run_number, RunNumber(1));
            assert!(
                seen.insert(run.instance_id.clone()),
                "{} came twice",
                run.instance_id
            );
            let live = world.store.live_run(&run.instance_id).await.unwrap();
            let live = live.expect("a claimed instance has a live run");
            assert_eq!((live.node, live.token), (node, run.token));
        }
    }
    assert_eq!(seen.len(), INSTANCES);
}
