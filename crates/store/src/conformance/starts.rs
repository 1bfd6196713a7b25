//! Starts: once for each id, only of one's own images, now or later.

use runtara_domain::{Change, Due, InstanceState, RunNumber, Status, Timestamp, limits};

use super::Harness;
use super::make::{instance, labels, new_image, tenant};
use super::world::World;
use crate::{NextDue, Started};

/// A started instance is pending, due at once, and is read back as it was given.
pub async fn a_start_is_pending_and_due(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let new = runtara_domain::NewInstance {
        labels: labels(&[("team", "billing")]),
        max_attempts: Some(5),
        request_timeout_ms: Some(9_000),
        heartbeat_timeout_ms: Some(30_000),
        expires: Some(Due::After(60_000)),
        timeout_ms: 77_000,
        ..world.new_instance("order-1")
    };
    let started = world.start_as(new.clone()).await;
    assert_eq!(started, InstanceState::started(&new, started.created_at));
    assert_eq!(started.due_at, Some(started.created_at));
    let record = world.record(&new.instance_id).await;
    assert_eq!(record.state, started);
    assert_eq!(record.image_name.as_deref(), Some("program"));
    assert_eq!(record.labels, new.labels);
    let values = world.values(&new.instance_id).await;
    assert_eq!(values.input, Some(new.input.clone()));
    assert_eq!(
        (values.output, values.error, values.stderr),
        (None, None, None)
    );
    let input = world.store.instance_input(&new.instance_id).await;
    assert_eq!(input.expect("an input is read"), Some(Some(new.input)));
    assert!(world.events(&new.instance_id).await.is_empty());
}

/// The same start again is the same instance, wherever it stands by then.
pub async fn the_same_start_again_is_the_same_instance(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.register().await;
    run.complete(b"1").await;
    let image = new_image(&world.tenant, "program", b"newer");
    world
        .store
        .register_image(image)
        .await
        .expect("the image is replaced");
    let again = world
        .store
        .start_instance(world.new_instance("order-1"))
        .await;
    let Ok(Started::Same(state)) = again else {
        panic!("not the same: {again:?}");
    };
    assert_eq!(*state, world.state(run.id()).await);
    assert_eq!(state.status, Status::Completed);
    assert_eq!(state.run_number, RunNumber(1));
    let image = &world.image.image_id;
    world.store.delete_image(image).await.unwrap();
    assert_eq!(world.store.image(image).await.unwrap(), None);
    let kept = world.store.image_even_deleted(image).await.unwrap();
    assert_eq!(kept.map(|kept| kept.image_id).as_ref(), Some(image));
    let again = world
        .store
        .start_instance(world.new_instance("order-1"))
        .await;
    assert!(matches!(again, Ok(Started::Same(_))), "{again:?}");
}

/// Another start under a taken id is refused, and says whether the other is the tenant's own.
pub async fn another_start_with_a_taken_id_is_refused(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let first = world.start("order-1").await;
    let mut other_input = world.new_instance("order-1");
    other_input.input = bytes::Bytes::from_static(b"2");
    let mut other_image = world.new_instance("order-1");
    let image = new_image(&world.tenant, "other", b"other");
    other_image.image_id = world.store.register_image(image).await.unwrap().image_id;
    let mut other_tenant = world.new_instance("order-1");
    other_tenant.tenant_id = tenant("else");
    for (new, same_tenant) in [
        (other_input, true),
        (other_image, true),
        (other_tenant, false),
    ] {
        let answer = world.store.start_instance(new).await.unwrap();
        assert_eq!(answer, Started::Taken { same_tenant });
    }
    assert_eq!(world.state(&first.instance_id).await, first);
}

/// An instance that registered itself has its id for itself.
pub async fn a_self_registered_id_cannot_be_started(harness: &dyn Harness) {
    let world = World::new(harness).await;
    world.self_registered("order-1").await;
    let answer = world
        .store
        .start_instance(world.new_instance("order-1"))
        .await
        .unwrap();
    assert_eq!(answer, Started::Taken { same_tenant: true });
}

/// The image must exist and be the tenant's own; it need not be the current one of its name.
pub async fn a_start_needs_an_image_of_its_tenant(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let mut unknown = world.new_instance("a");
    unknown.image_id = runtara_domain::ImageId::generate();
    let mut foreign = world.new_instance("b");
    foreign.tenant_id = tenant("else");
    let mut deleted = world.new_instance("c");
    let image = new_image(&world.tenant, "gone", b"gone");
    deleted.image_id = world.store.register_image(image).await.unwrap().image_id;
    world.store.delete_image(&deleted.image_id).await.unwrap();
    for new in [unknown, foreign, deleted] {
        let id = new.instance_id.clone();
        let answer = world.store.start_instance(new).await.unwrap();
        assert_eq!(answer, Started::ImageNotFound, "{id}");
        assert_eq!(world.store.instance(&id).await.unwrap(), None);
    }
    let newer = new_image(&world.tenant, "program", b"newer");
    world.store.register_image(newer).await.unwrap();
    world.start("of-the-replaced").await;
}

/// A delayed start is claimed when it is due, not before.
pub async fn a_delayed_start_waits_for_its_time(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let now = world.now();
    let mut new = world.new_instance("later");
    new.due = Due::At(now.plus_millis(5_000));
    let state = world.start_as(new).await;
    assert_eq!(state.due_at, Some(now.plus_millis(5_000)));
    assert!(world.claim(1).await.is_empty());
    let next = world.store.next_due(&super::make::KINDS).await.unwrap();
    assert_eq!(next, NextDue { in_ms: Some(5_000) });
    world.advance(4_999).await;
    assert!(world.claim(1).await.is_empty());
    world.advance(1).await;
    let next = world.store.next_due(&super::make::KINDS).await.unwrap();
    assert_eq!(next, NextDue { in_ms: Some(0) });
    let claimed = world.claim(1).await;
    assert_eq!(claimed[0].due_at, now.plus_millis(5_000));
}

/// A delay is counted by the clock by which claims are made, from the moment at which the instance is made.
pub async fn a_delay_is_counted_by_the_stores_clock(harness: &dyn Harness) {
    let world = World::new(harness).await;
    world.advance(1_000_000).await;
    let mut new = world.new_instance("later");
    new.due = Due::After(5_000);
    let state = world.start_as(new.clone()).await;
    assert_eq!(state.due_at, Some(state.created_at.plus_millis(5_000)));
    assert_eq!(world.record(&new.instance_id).await.state, state);
    world.advance(4_999).await;
    assert!(world.claim(1).await.is_empty());
    world.advance(1).await;
    world.claim_only(&new.instance_id).await;
    let mut never = world.new_instance("hardly ever");
    never.due = Due::After(u64::MAX);
    let state = world.start_as(never).await;
    let longest = state.created_at.plus_millis(limits::SLEEP_MAX_MS);
    assert_eq!(state.due_at, Some(longest));
}

/// A time before now is a due time like any other.
pub async fn a_start_may_be_overdue(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let mut new = world.new_instance("overdue");
    new.due = Due::At(Timestamp(-1));
    let state = world.start_as(new).await;
    assert_eq!(state.due_at, Some(Timestamp(-1)));
    world.claim_only(&instance("overdue")).await;
}

/// Sixteen of the same start at once make one instance, and all are told of it.
pub async fn the_same_start_at_once_is_one_instance(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for round in 0..10 {
        let id = format!("order-{round}");
        let tasks: Vec<_> = (0..16)
            .map(|_| {
                let (store, new) = (world.store.clone(), world.new_instance(&id));
                tokio::spawn(async move { store.start_instance(new).await })
            })
            .collect();
        let (mut new, mut same) = (0, 0);
        for task in tasks {
            match task
                .await
                .expect("no task panics")
                .expect("a start is answered")
            {
                Started::New(_) => new += 1,
                Started::Same(_) => same += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((new, same), (1, 15), "round {round}");
    }
    assert_eq!(world.claim(100).await.len(), 10);
}

/// A change of an instance that does not exist says so.
pub async fn an_unknown_instance_is_named_unknown(harness: &dyn Harness) {
    use runtara_domain::Refusal::InstanceUnknown;
    let world = World::new(harness).await;
    let id = instance("nobody");
    for change in [
        Change::Cancel { payload: None },
        Change::Pause { payload: None },
        Change::Resume,
        Change::Stop {
            grace_ms: 0,
            reason: String::new(),
        },
        Change::Exit {
            run_number: RunNumber(1),
            exit: super::make::exit_code(0),
            our_fault: false,
        },
    ] {
        assert_eq!(world.refused(&id, change).await, InstanceUnknown);
    }
    let sent = world
        .store
        .send_signal(&id, &super::make::signal("s"), None)
        .await;
    assert_eq!(super::make::refusal(sent), Some(InstanceUnknown));
    assert_eq!(world.store.instance(&id).await.unwrap(), None);
    assert_eq!(world.store.instance_values(&id).await.unwrap(), None);
    assert_eq!(world.store.instance_input(&id).await.unwrap(), None);
    assert_eq!(world.store.live_run(&id).await.unwrap(), None);
}
