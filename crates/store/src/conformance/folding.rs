//! The events of a long instance are bounded.

use runtara_domain::{RunExit, subtype};
use serde_json::Value;

use super::Harness;
use super::make::{exit_code, instance};
use super::world::{Run, World};
use crate::{EventFilter, Folded, PageRequest, PageStart, StepFilter, StoredEvent};

/// An instance that keeps this many events, under way.
async fn bounded<'a>(world: &'a World<'a>, id: &str, max_events: Option<u32>) -> Run<'a> {
    let mut new = world.new_instance(id);
    new.max_events = max_events;
    world.start_as(new).await;
    let run = world.claim_only(&instance(id)).await;
    run.register().await;
    run
}

async fn report(world: &World<'_>, run: &Run<'_>, numbers: std::ops::Range<u32>) {
    for n in numbers {
        run.event("progress", n.to_string().as_bytes()).await;
        world.advance(1).await;
    }
}

async fn fold(world: &World<'_>, run: &Run<'_>, limit: u32) -> Folded {
    let answer = world.store.fold_events(run.id(), limit).await;
    answer.expect("events are folded")
}

async fn is_overfull(world: &World<'_>, run: &Run<'_>) -> bool {
    let asked = [run.id().clone(), instance("unknown")];
    let overfull = world.store.overfull_instances(&asked).await;
    let overfull = overfull.expect("instances are asked about");
    assert!(overfull.iter().all(|id| id == run.id()), "{overfull:?}");
    !overfull.is_empty()
}

/// What an event says that stands for others.
fn said(event: &StoredEvent) -> Value {
    assert_eq!(event.subtype.as_deref(), Some(subtype::FOLDED), "{event:?}");
    serde_json::from_slice(event.payload.as_deref().unwrap()).unwrap()
}

fn payloads(events: &[StoredEvent]) -> Vec<String> {
    let payload = |event: &StoredEvent| event.payload.clone().unwrap_or_default();
    let text = |event| String::from_utf8_lossy(&payload(event)).into_owned();
    events.iter().map(text).collect()
}

/// The oldest events of a program become one that says how many they were, which numbers they had and when they came; what the server
/// has recorded stays, and so do the newest.
pub async fn the_oldest_events_are_folded(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = bounded(&world, "long", Some(8)).await;
    let began = world.now();
    report(&world, &run, 0..7).await;
    assert!(!is_overfull(&world, &run).await);
    assert_eq!(fold(&world, &run, 100).await, Folded::default());
    report(&world, &run, 7..10).await;
    assert!(is_overfull(&world, &run).await);
    // Eleven, of which six are to be left: six of the oldest become one.
    let folded = fold(&world, &run, 100).await;
    assert_eq!((folded.events, folded.more), (5, false));
    assert!(!is_overfull(&world, &run).await);
    let events = world.events(run.id()).await;
    let numbers: Vec<_> = events.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, [1, 7, 8, 9, 10, 11]);
    assert_eq!(payloads(&events)[2..], ["6", "7", "8", "9"]);
    let stands = &events[1];
    let wanted = serde_json::json!({
        "count": 6, "first_seq": 2, "last_seq": 7,
        "first_at_ms": began.0, "last_at_ms": began.0 + 5,
    });
    assert_eq!(said(stands), wanted);
    assert_eq!(stands.created_at, began.plus_millis(5));
    assert_eq!(stands.run_number, run.run_number);
    assert_eq!(stands.checkpoint_id, None);
    assert_eq!(fold(&world, &run, 100).await, Folded::default());
}

/// Folding again takes the event with it that stands for others. Numbers go on, and history is never folded.
pub async fn folding_goes_on(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = bounded(&world, "long", Some(8)).await;
    report(&world, &run, 0..12).await;
    fold(&world, &run, 100).await;
    run.exit(RunExit::lost()).await;
    let run = world.claim_only(&instance("long")).await;
    run.register().await;
    report(&world, &run, 12..20).await;
    let folded = fold(&world, &run, 100).await;
    assert!(folded.events > 0 && !folded.more, "{folded:?}");
    let events = world.events(run.id()).await;
    assert!(events.len() <= 8, "{events:?}");
    let history = world.history(run.id()).await;
    let of_server = |name: &&String| *name != "progress" && *name != subtype::FOLDED;
    let kept: Vec<_> = history.iter().filter(of_server).collect();
    assert_eq!(kept, ["started", subtype::INTERRUPTED, "started"]);
    let stands: Vec<_> = events
        .iter()
        .filter(|event| event.subtype.as_deref() == Some(subtype::FOLDED))
        .collect();
    assert_eq!(stands.len(), 1, "{events:?}");
    let (stands, told) = (stands[0].seq, said(stands[0]));
    assert_eq!(told["first_seq"], 2);
    assert_eq!(told["last_seq"], stands);
    let left = history.iter().filter(|name| *name == "progress").count();
    assert_eq!(told["count"], 20 - left);
    assert_eq!(events.last().map(|last| last.seq), Some(23));
    report(&world, &run, 20..21).await;
    let events = world.events(run.id()).await;
    assert_eq!(events.last().map(|last| last.seq), Some(24));
}

/// So many events are folded at once and no more, until a quarter of the bound is free.
pub async fn folding_is_bounded(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = bounded(&world, "long", Some(8)).await;
    report(&world, &run, 0..30).await;
    let mut turns = 0;
    loop {
        let folded = fold(&world, &run, 5).await;
        turns += 1;
        assert!(folded.events <= 4, "{folded:?}");
        if !folded.more {
            break;
        }
        assert!(turns < 20, "it does not end");
    }
    let events = world.events(run.id()).await;
    assert!(events.len() <= 8 && turns > 4, "{turns}: {events:?}");
    assert_eq!(payloads(&events).last().map(String::as_str), Some("29"));
}

/// An instance whose start does not bound its events keeps them all, and so does one that registered itself.
pub async fn who_is_not_bounded_keeps_all(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let unbounded = bounded(&world, "unbounded", None).await;
    let own = world.self_registered("own").await;
    for run in [&unbounded, &own] {
        report(&world, run, 0..20).await;
        assert!(!is_overfull(&world, run).await);
        assert_eq!(fold(&world, run, 100).await, Folded::default());
        let numbers: Vec<_> = world.events(run.id()).await;
        let numbers: Vec<_> = numbers.iter().map(|event| event.seq).collect();
        assert_eq!(numbers, Vec::from_iter(1..=21));
    }
    let unknown = world.store.fold_events(&instance("unknown"), 9).await;
    assert_eq!(unknown.unwrap(), Folded::default());
}

/// Whoever reads on by number from any place meets every event that is there, and the one that stands for those that are not.
pub async fn pages_tell_what_was_folded(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = bounded(&world, "long", Some(12)).await;
    report(&world, &run, 0..5).await;
    let ascending = EventFilter {
        ascending: true,
        ..EventFilter::default()
    };
    let ask = async |page: PageRequest| {
        let page = world.store.list_events(run.id(), &ascending, &page).await;
        page.expect("events are listed")
    };
    let early = ask(PageRequest::first(3))
        .await
        .next
        .expect("there are more");
    report(&world, &run, 5..20).await;
    fold(&world, &run, 100).await;
    let all = world.events(run.id()).await;
    let rest = ask(PageRequest {
        start: PageStart::After(early),
        limit: 100,
    })
    .await;
    assert_eq!(rest.rows, all[1..], "all but the first, which it has read");
    assert_eq!(said(&rest.rows[0])["first_seq"], 2);
    for limit in [1, 2, 4] {
        let (mut walked, mut page) = (Vec::new(), PageRequest::first(limit));
        loop {
            let found = ask(page).await;
            assert_eq!(found.total.count, all.len() as u64);
            walked.extend(found.rows);
            let Some(next) = found.next else { break };
            page = PageRequest {
                start: PageStart::After(next),
                limit,
            };
        }
        assert_eq!(walked, all, "pages of {limit}");
        let skipped = ask(PageRequest {
            start: PageStart::Offset(2),
            limit,
        });
        assert_eq!(skipped.await.rows[0], all[2], "pages of {limit}");
    }
    let newest = world
        .store
        .list_events(run.id(), &EventFilter::default(), &PageRequest::first(2))
        .await
        .unwrap();
    let last_two: Vec<_> = all.iter().rev().take(2).cloned().collect();
    assert_eq!(newest.rows, last_two);
}

/// Steps and scopes of folded events are gone; those that follow are as they were.
pub async fn newer_steps_stay(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = bounded(&world, "long", Some(12)).await;
    for n in 0..10 {
        let step = format!(r#"{{"step_id":"s-{n}"}}"#);
        run.event(subtype::STEP_START, step.as_bytes()).await;
        run.event(subtype::STEP_END, step.as_bytes()).await;
    }
    let scope = br#"{"scope_id":"last"}"#;
    run.event(subtype::SCOPE_ENTER, scope).await;
    fold(&world, &run, 100).await;
    let all = StepFilter {
        ascending: true,
        ..StepFilter::default()
    };
    let steps = world
        .store
        .list_steps(run.id(), &all, &PageRequest::first(100))
        .await
        .unwrap();
    let events = world.events(run.id()).await;
    let starts = |event: &&StoredEvent| event.subtype.as_deref() == Some(subtype::STEP_START);
    let left: Vec<_> = events
        .iter()
        .filter(starts)
        .map(|start| start.seq)
        .collect();
    let told: Vec<_> = steps.rows.iter().map(|step| step.seq).collect();
    assert_eq!(told, left);
    assert!(!told.is_empty() && told.len() < 10, "{told:?}");
    assert!(steps.rows.iter().all(|step| step.ended_at.is_some()));
    let scopes = world.store.scope_ancestors(run.id(), "last").await.unwrap();
    assert_eq!(scopes.len(), 1);
    // A step that begins and ends after that is found.
    run.event(subtype::STEP_START, br#"{"step_id":"s-0"}"#)
        .await;
    run.event(subtype::STEP_END, br#"{"step_id":"s-0"}"#).await;
    let steps = world
        .store
        .list_steps(run.id(), &all, &PageRequest::first(100))
        .await
        .unwrap();
    assert_eq!(steps.rows.len(), left.len() + 1);
    assert!(steps.rows.last().unwrap().ended_at.is_some());
}

/// Folded or not, an instance goes whole when its time is over.
pub async fn a_folded_instance_is_removed(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = bounded(&world, "long", Some(8)).await;
    report(&world, &run, 0..20).await;
    run.complete(b"1").await;
    run.exit(exit_code(0)).await;
    assert!(
        is_overfull(&world, &run).await,
        "the last are folded after the end"
    );
    fold(&world, &run, 100).await;
    let purged = world.store.purge_instance(run.id()).await.unwrap();
    assert_eq!(purged, crate::Purge::Purged);
    let again = bounded(&world, "long", Some(8)).await;
    report(&world, &again, 0..3).await;
    let numbers: Vec<_> = world.events(again.id()).await;
    let numbers: Vec<_> = numbers.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
}
