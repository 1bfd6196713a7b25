//! Ended instances are removed when their time is over.

use std::sync::Arc;

use runtara_domain::{Change, InstanceId, Refusal, Status, Word, limits};

use super::Harness;
use super::make::{checkpoint, exit_code, instance, refusal, signal, sleep, tenant};
use super::world::World;
use crate::{
    EndedInstance, Expired, ExpiredPage, InstanceFilter, InstanceOrder, Owners, PageRequest, Purge,
    Started, StepFilter,
};

const DAY: u64 = 86_400_000;

/// A demand for all that ended at least a day ago.
fn a_day_old() -> Expired {
    Expired {
        owners: Owners::AllBut(Vec::new()),
        statuses: vec![Status::Completed, Status::Failed, Status::Cancelled],
        ended_ms: DAY,
        after: None,
        limit: 100,
    }
}

async fn expired(world: &World<'_>, demand: &Expired) -> ExpiredPage {
    let answer = world.store.expired_instances(demand).await;
    answer.expect("expired instances are found")
}

fn ids(ended: &[EndedInstance]) -> Vec<&str> {
    ended.iter().map(|one| one.instance_id.as_str()).collect()
}

async fn remove(world: &World<'_>, ended: &[EndedInstance]) -> Vec<InstanceId> {
    let answer = world.store.remove_ended(ended).await;
    answer.expect("ended instances are removed")
}

/// Starts an instance and ends it.
async fn end(world: &World<'_>, id: &str, status: Status) {
    let run = world.launch(id).await;
    match status {
        Status::Completed => drop(run.complete(b"1").await),
        Status::Cancelled => {
            world.cancel(run.id()).await;
            run.poll().await;
            run.say(Word::Acknowledged(runtara_domain::SignalKind::Cancel))
                .await;
        }
        _ => drop(run.say(Word::Failed { error: "no".into() }).await),
    }
    run.exit(exit_code(0)).await;
    assert_eq!(world.state(run.id()).await.status, status, "{id}");
}

/// An instance that has ended a day ago, with this many checkpoints and events of its own, and some waits and signals.
async fn an_old_instance(world: &World<'_>, id: &str, each: usize) -> InstanceId {
    let run = world.launch(id).await;
    run.register().await;
    for n in 0..each {
        run.save(&format!("step-{n}"), b"state").await;
        run.event(
            "step_debug_start",
            format!(r#"{{"step_id":"{n}"}}"#).as_bytes(),
        )
        .await;
        run.event("scope_enter", br#"{"scope_id":"s"}"#).await;
        run.wait(sleep(Some(&format!("nap-{n}")), 1, b"s")).await;
        world.advance(1).await;
    }
    run.complete(b"[1]").await;
    run.exit(exit_code(0)).await;
    world.advance(DAY).await;
    run.id().clone()
}

/// Instances are expired by their owner, by how they ended, and from the very millisecond on at which their time is over.
pub async fn instances_are_expired_by_how_and_when_they_ended(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for (id, status) in [
        ("z-completed", Status::Completed),
        ("y-failed", Status::Failed),
        ("x-cancelled", Status::Cancelled),
    ] {
        end(&world, id, status).await;
        world.advance(10).await;
    }
    let _runs = world.launch("runs").await;
    world.advance(DAY - 31).await;
    assert_eq!(expired(&world, &a_day_old()).await, ExpiredPage::default());
    world.advance(1).await;
    assert_eq!(
        ids(&expired(&world, &a_day_old()).await.instances),
        ["z-completed"]
    );
    world.advance(20).await;
    let all = expired(&world, &a_day_old()).await;
    assert_eq!(
        ids(&all.instances),
        ["z-completed", "y-failed", "x-cancelled"]
    );
    assert!(!all.more && !all.leaving);
    assert_eq!(all.instances[1].status, Status::Failed);
    assert_eq!(all.instances[1].tenant_id, world.tenant);
    for (owners, statuses, wanted) in [
        (
            Owners::Only(world.tenant.clone()),
            vec![Status::Failed],
            vec!["y-failed"],
        ),
        (
            Owners::Only(tenant("another")),
            vec![Status::Failed],
            vec![],
        ),
        (
            Owners::AllBut(vec![world.tenant.clone()]),
            vec![Status::Failed],
            vec![],
        ),
        (
            Owners::AllBut(vec![tenant("another")]),
            vec![Status::Cancelled, Status::Completed],
            vec!["z-completed", "x-cancelled"],
        ),
    ] {
        let demand = Expired {
            owners,
            statuses,
            ..a_day_old()
        };
        let found = expired(&world, &demand).await;
        assert_eq!(ids(&found.instances), wanted, "{demand:?}");
    }
}

/// So many ended instances are looked at and no more, and the search goes on where it has stopped.
pub async fn the_search_for_expired_instances_is_bounded(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for id in ["a", "b", "c", "d", "e"] {
        let status = if id == "d" {
            Status::Failed
        } else {
            Status::Completed
        };
        // All of them at one time: ids settle the order.
        end(&world, id, status).await;
    }
    world.advance(DAY).await;
    let mut demand = Expired {
        limit: 2,
        statuses: vec![Status::Failed],
        ..a_day_old()
    };
    let mut pages = Vec::new();
    loop {
        let page = expired(&world, &demand).await;
        pages.push(ids(&page.instances).join(","));
        if !page.more {
            assert_eq!(page.reached.map(|at| at.instance_id), Some(instance("e")));
            break;
        }
        demand.after = page.reached;
    }
    assert_eq!(pages, ["", "d", ""]);
}

/// What was resumed since it was found, and what ended again, is not removed.
pub async fn what_has_changed_since_stays(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for id in ["resumed", "ended-again", "as-it-was"] {
        end(&world, id, Status::Failed).await;
    }
    world.advance(DAY).await;
    let found = expired(&world, &a_day_old()).await.instances;
    assert_eq!(found.len(), 3);
    let (resumed, again) = (instance("resumed"), instance("ended-again"));
    world.resume(&again).await;
    let run = world.claim_only(&again).await;
    run.complete(b"1").await;
    run.exit(exit_code(0)).await;
    world.resume(&resumed).await;
    assert_eq!(remove(&world, &found).await, [instance("as-it-was")]);
    assert_eq!(remove(&world, &found).await, []);
    assert_eq!(world.state(&again).await.status, Status::Completed);
    assert_eq!(
        world.values(&again).await.output.as_deref(),
        Some(&b"1"[..])
    );
    let run = world.claim_only(&resumed).await;
    run.complete(b"1").await;
}

/// An instance whose process may still live stays, and whoever looks is told that there was one.
pub async fn a_process_that_may_live_keeps_its_instance(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("leaving").await;
    run.complete(b"1").await;
    let ended = world.state(run.id()).await;
    world.advance(DAY).await;
    let page = expired(&world, &a_day_old()).await;
    assert!(page.instances.is_empty() && page.leaving, "{page:?}");
    let leaving = EndedInstance {
        instance_id: run.id().clone(),
        tenant_id: world.tenant.clone(),
        status: ended.status,
        finished_at: ended.finished_at.unwrap(),
    };
    assert_eq!(remove(&world, std::slice::from_ref(&leaving)).await, []);
    run.exit(exit_code(0)).await;
    let page = expired(&world, &a_day_old()).await;
    assert_eq!(page.instances, std::slice::from_ref(&leaving));
    assert_eq!(remove(&world, &[leaving]).await, [run.id().clone()]);
}

async fn is_gone(world: &World<'_>, id: &InstanceId) {
    let store = &world.store;
    let page = PageRequest::first(limits::PAGE_ROWS);
    assert_eq!(store.instance(id).await.unwrap(), None);
    assert_eq!(store.instance_at_its_end(id).await.unwrap(), None);
    assert_eq!(store.instance_values(id).await.unwrap(), None);
    assert_eq!(store.instance_input(id).await.unwrap(), None);
    assert!(world.events(id).await.is_empty() && world.saved(id).await.is_empty());
    let steps = store.list_steps(id, &StepFilter::default(), &page).await;
    assert!(steps.unwrap().rows.is_empty());
    assert!(store.scope_ancestors(id, "s").await.unwrap().is_empty());
    let newest = store.checkpoint(id, &checkpoint("step-0")).await;
    assert_eq!(newest.unwrap(), None);
    let all = InstanceFilter::default();
    let listed = store
        .list_instances(&all, InstanceOrder::default(), &page)
        .await;
    assert_eq!(listed.unwrap().total.count, 0);
    assert_eq!(
        world.refused(id, Change::Resume).await,
        Refusal::InstanceUnknown
    );
    let sent = store.send_signal(id, &signal("go"), None).await;
    assert_eq!(refusal(sent), Some(Refusal::InstanceUnknown));
    assert_eq!(store.purge_instance(id).await.unwrap(), Purge::NotFound);
}

/// An instance that is taken away is gone for everybody at once, whole; what belonged to it goes in pieces that are bounded.
pub async fn a_large_instance_goes_in_pieces(harness: &dyn Harness) {
    const PIECE: u32 = 7;
    let world = World::new(harness).await;
    let id = an_old_instance(&world, "large", 10).await;
    let found = expired(&world, &a_day_old()).await.instances;
    assert_eq!(remove(&world, &found).await, std::slice::from_ref(&id));
    is_gone(&world, &id).await;
    assert!(expired(&world, &a_day_old()).await.instances.is_empty());
    let mut rows = 0;
    for _ in 0..100 {
        let removed = world.store.remove_remains(PIECE).await.unwrap();
        assert!(removed.rows <= u64::from(PIECE), "{removed:?}");
        rows += removed.rows;
        is_gone(&world, &id).await;
        if !removed.more {
            // The reference model has nothing left by then.
            assert!(rows == 0 || rows > 40, "{rows}");
            return;
        }
    }
    panic!("it does not end; {rows} rows were removed");
}

/// An id may be used again although something is left of the instance that had it, and nothing of that is met again.
pub async fn an_id_may_be_used_while_something_is_left_of_it(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for id in ["started", "registered"] {
        an_old_instance(&world, id, 5).await;
    }
    let found = expired(&world, &a_day_old()).await.instances;
    assert_eq!(remove(&world, &found).await.len(), 2);
    let started = world.launch("started").await;
    let registered = world.self_registered("registered").await;
    for run in [&started, &registered] {
        assert_eq!(world.saved(run.id()).await, []);
        assert_eq!(run.save("step-0", b"").await.found, None);
        assert_eq!(run.save("step-0", b"new").await.found, None);
        run.event("mine", b"1").await;
    }
    while world.store.remove_remains(3).await.unwrap().more {}
    for run in [&started, &registered] {
        assert_eq!(world.saved(run.id()).await, [("step-0".to_owned(), 3)]);
        let history = world.history(run.id()).await;
        assert_eq!(
            history.last().map(String::as_str),
            Some("mine"),
            "{history:?}"
        );
        assert!(history.len() <= 2, "{history:?}");
    }
}

/// What is left of one instance is never taken for that of another, in whatever order they come and go.
pub async fn a_number_is_not_given_twice(harness: &dyn Harness) {
    let world = World::new(harness).await;
    an_old_instance(&world, "old", 4).await;
    let found = expired(&world, &a_day_old()).await.instances;
    remove(&world, &found).await;
    let new = world.launch("new").await;
    assert_eq!(world.saved(new.id()).await, []);
    assert_eq!(new.save("step-0", b"mine").await.found, None);
    while world.store.remove_remains(2).await.unwrap().more {}
    assert_eq!(world.saved(new.id()).await, [("step-0".to_owned(), 4)]);
    assert_eq!(new.save("step-1", b"").await.found, None);
    new.complete(b"1").await;
    new.exit(exit_code(0)).await;
    let purged = world.store.purge_instance(new.id()).await;
    assert_eq!(purged.unwrap(), Purge::Purged);
    let last = world.launch("last").await;
    assert_eq!(world.saved(last.id()).await, []);
}

/// Of a removal and a resume that come at once one wins, and the other is told so.
pub async fn a_purge_and_a_resume_do_not_cross(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for round in 0..20 {
        let id = format!("racer-{round}");
        end(&world, &id, Status::Failed).await;
        let ended = world.state(&instance(&id)).await;
        let ended = [EndedInstance {
            instance_id: instance(&id),
            tenant_id: world.tenant.clone(),
            status: ended.status,
            finished_at: ended.finished_at.unwrap(),
        }];
        let (remover, resumer) = (Arc::clone(&world.store), Arc::clone(&world.store));
        let id = instance(&id);
        let resumed_id = id.clone();
        let removed = tokio::spawn(async move { remover.remove_ended(&ended).await.unwrap() });
        let resumed =
            tokio::spawn(async move { resumer.change(&resumed_id, Change::Resume).await });
        let (removed, resumed) = (removed.await.unwrap(), resumed.await.unwrap());
        let there = world.store.instance(&id).await.unwrap();
        match resumed {
            Ok(changed) => {
                assert!(changed.applied && removed.is_empty());
                assert_eq!(there.map(|it| it.state.status), Some(Status::Suspended));
                world.cancel(&id).await;
                let purged = world.store.purge_instance(&id).await;
                assert_eq!(purged.unwrap(), Purge::Purged);
            }
            refused => {
                assert_eq!(refusal(refused), Some(Refusal::InstanceUnknown));
                assert_eq!(removed, std::slice::from_ref(&id));
                assert_eq!(there, None);
                let new = world.new_instance(id.as_str());
                let started = world.store.start_instance(new).await.unwrap();
                assert!(matches!(started, Started::New(_)), "{started:?}");
                world.cancel(&id).await;
            }
        }
    }
}
