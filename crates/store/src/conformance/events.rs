//! Events: numbered without gaps, in an order that all see, and found by what they say.

use bytes::Bytes;
use runtara_domain::{EventKind, NewEvent, limits};

use super::Harness;
use super::make::{checkpoint, instance};
use super::world::{Run, World};
use crate::{EventFilter, PageRequest, PageStart, StoredEvent};

async fn list(world: &World<'_>, run: &Run<'_>, filter: EventFilter) -> Vec<u64> {
    let page = PageRequest::first(100);
    let page = world.store.list_events(run.id(), &filter, &page).await;
    let page = page.expect("events are listed");
    assert_eq!(page.total.count, page.rows.len() as u64, "{filter:?}");
    page.rows.into_iter().map(|event| event.seq).collect()
}

fn oldest_first() -> EventFilter {
    EventFilter {
        ascending: true,
        ..EventFilter::default()
    }
}

/// An event is read back as it was recorded.
pub async fn an_event_is_read_back(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    world.advance(5).await;
    let name = Some(checkpoint("step/ä"));
    for payload in [
        None,
        Some(Bytes::new()),
        Some(Bytes::from_static(b"\0\xff\"{}")),
    ] {
        let event = NewEvent::custom(Some("progress".to_owned()), name.clone(), payload);
        world
            .store
            .record_event(&run.caller, event, None)
            .await
            .unwrap();
    }
    let bare = NewEvent::custom(None, None, None);
    world
        .store
        .record_event(&run.caller, bare, None)
        .await
        .unwrap();
    let events = world.events(run.id()).await;
    let payloads: Vec<_> = events.iter().map(|event| event.payload.clone()).collect();
    let odd = Bytes::from_static(b"\0\xff\"{}");
    assert_eq!(payloads, [None, Some(Bytes::new()), Some(odd), None]);
    let first = StoredEvent {
        seq: 1,
        kind: EventKind::Custom,
        subtype: Some("progress".to_owned()),
        checkpoint_id: name,
        payload: None,
        created_at: world.now(),
        run_number: run.run_number,
    };
    assert_eq!(events[0], first);
    assert_eq!(events[3].subtype, None);
    let state = world.state(run.id()).await;
    assert!(state.run.spoke);
    assert_eq!(state.last_seen_at, Some(world.now()));
}

/// The first heartbeat of each run is an event; all of them are signs of life.
pub async fn the_first_heartbeat_of_a_run_is_an_event(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    for _ in 0..3 {
        world.advance(limits::SIGN_OF_LIFE_MS).await;
        run.heartbeat().await;
        assert_eq!(world.state(run.id()).await.last_seen_at, Some(world.now()));
    }
    let run = run.lose().await;
    run.heartbeat().await;
    let history = world.history(run.id()).await;
    assert_eq!(history, ["heartbeat", "runtara.interrupted", "heartbeat"]);
}

/// A run that calls often does not have its row written for each sign of life: all of them are noted to within a few seconds.
pub async fn signs_of_life_that_follow_each_other_closely_are_one(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.register().await;
    let seen = world.now();
    world.advance(limits::SIGN_OF_LIFE_MS - 1).await;
    run.save("a", b"s").await;
    run.save("b", b"s").await;
    run.save("b", b"").await;
    run.poll().await;
    run.heartbeat().await;
    assert_eq!(world.state(run.id()).await.last_seen_at, Some(seen));
    world.advance(1).await;
    run.poll().await;
    assert_eq!(world.state(run.id()).await.last_seen_at, Some(world.now()));
}

/// An event that is sent again under the same request id is recorded once, also when both come at once.
pub async fn a_repeated_event_is_recorded_once(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    for round in 0..20 {
        let senders: Vec<_> = (0..3)
            .map(|_| {
                let (store, caller) = (world.store.clone(), run.caller.clone());
                let payload = Some(Bytes::from(round.to_string()));
                let event = NewEvent::custom(Some("tick".to_owned()), None, payload);
                let request_id = Some(format!("r-{round}"));
                tokio::spawn(async move { store.record_event(&caller, event, request_id).await })
            })
            .collect();
        for sender in senders {
            sender
                .await
                .expect("no sender panics")
                .expect("an event is recorded");
        }
        assert_eq!(world.events(run.id()).await.len(), round + 1);
    }
    let anonymous = NewEvent::custom(Some("tick".to_owned()), None, None);
    for _ in 0..2 {
        world
            .store
            .record_event(&run.caller, anonymous.clone(), None)
            .await
            .unwrap();
    }
    assert_eq!(world.events(run.id()).await.len(), 22);
}

/// Events that are recorded at once are numbered without gaps, and those of one sender stay in its order.
pub async fn numbers_have_no_gaps_under_concurrency(harness: &dyn Harness) {
    const SENDERS: usize = 8;
    const EACH: usize = 40;
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (store, caller) = (world.store.clone(), run.caller.clone());
            tokio::spawn(async move {
                for n in 0..EACH {
                    let payload = Some(Bytes::from(n.to_string()));
                    let event = NewEvent::custom(Some(format!("s-{sender}")), None, payload);
                    let recorded = store.record_event(&caller, event, None).await;
                    recorded.expect("an event is recorded");
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.expect("no sender panics");
    }
    let events = world.events(run.id()).await;
    let numbers: Vec<_> = events.iter().map(|event| event.seq).collect();
    let expected: Vec<_> = (1..=(SENDERS * EACH) as u64).collect();
    assert_eq!(numbers, expected);
    for sender in 0..SENDERS {
        let name = Some(format!("s-{sender}"));
        let of = events.iter().filter(|event| event.subtype == name);
        let order: Vec<_> = of
            .map(|event| event.payload.clone().unwrap_or_default())
            .collect();
        let expected: Vec<_> = (0..EACH).map(|n| Bytes::from(n.to_string())).collect();
        assert_eq!(order, expected, "sender {sender}");
    }
}

/// Each filter finds what it names, and all must be met.
pub async fn events_are_found_by_type_and_time(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let began = world.now();
    run.register().await;
    world.advance(10).await;
    run.event("a", b"1").await;
    world.advance(10).await;
    run.event("b", b"2").await;
    world.advance(10).await;
    run.heartbeat().await;
    let all = oldest_first;
    assert_eq!(
        list(&world, &run, EventFilter::default()).await,
        [4, 3, 2, 1]
    );
    let started = EventFilter {
        kind: Some(EventKind::Started),
        ..all()
    };
    assert_eq!(list(&world, &run, started).await, [1]);
    let custom = EventFilter {
        kind: Some(EventKind::Custom),
        ..all()
    };
    assert_eq!(list(&world, &run, custom).await, [2, 3]);
    let of_subtype = |subtype: &str| EventFilter {
        subtype: Some(subtype.to_owned()),
        ..all()
    };
    assert_eq!(list(&world, &run, of_subtype("b")).await, [3]);
    assert!(list(&world, &run, of_subtype("B")).await.is_empty());
    let between = EventFilter {
        created_after: Some(began.plus_millis(10)),
        created_before: Some(began.plus_millis(30)),
        ..all()
    };
    assert_eq!(list(&world, &run, between.clone()).await, [2, 3]);
    let both = EventFilter {
        subtype: Some("a".to_owned()),
        ..between
    };
    assert_eq!(list(&world, &run, both).await, [2]);
}

/// Payloads are searched as text, without regard to the case of ASCII letters; what is no text is not found, and disturbs nothing.
pub async fn events_are_found_by_what_they_say(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.event("x", "{\"msg\":\"Größe 50% OFF_now\"}".as_bytes())
        .await;
    run.event("x", b"plain text, not JSON: off").await;
    run.event("x", b"\xff\xfe off").await;
    run.event("x", b"nul \0 OFF").await;
    run.event("x", b"back\\slash 'quote' \"off\"").await;
    run.event("x", b"").await;
    let none = NewEvent::custom(None, None, None);
    world
        .store
        .record_event(&run.caller, none, None)
        .await
        .unwrap();
    let saying = |text: &str| EventFilter {
        payload_contains: Some(text.to_owned()),
        ..oldest_first()
    };
    for (text, expected) in [
        ("off", &[1, 2, 4, 5][..]),
        ("OFF", &[1, 2, 4, 5]),
        ("größe", &[1]),
        ("50% o", &[1]),
        ("off_", &[1]),
        ("%", &[1]),
        ("_", &[1]),
        ("\\", &[5]),
        ("'quote'", &[5]),
        ("json: off", &[2]),
        ("nowhere", &[]),
    ] {
        assert_eq!(list(&world, &run, saying(text)).await, expected, "{text:?}");
    }
}

/// Scopes are found by the keys of JSON payloads; payloads that are no JSON have none and are no obstacle.
pub async fn events_are_found_by_scope(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.event("x", br#"{"scope_id":"outer"}"#).await;
    run.event("x", br#"{"scope_id":"inner","parent_scope_id":"outer"}"#)
        .await;
    run.event("x", b"no JSON").await;
    run.event("x", b"\xff{\"scope_id\":\"inner\"}").await;
    run.event("x", br#"{"scope_id":7,"parent_scope_id":null}"#)
        .await;
    run.event("x", br#"{"scope_id":"inner""#).await;
    let inner = EventFilter {
        scope_id: Some("inner".to_owned()),
        ..oldest_first()
    };
    assert_eq!(list(&world, &run, inner).await, [2]);
    let children = EventFilter {
        parent_scope_id: Some("outer".to_owned()),
        ..oldest_first()
    };
    assert_eq!(list(&world, &run, children).await, [2]);
    let roots = EventFilter {
        root_scopes_only: true,
        ..oldest_first()
    };
    assert_eq!(list(&world, &run, roots).await, [1, 3, 4, 5, 6]);
}

/// Pages by cursor and by offset are the same rows, in either direction.
pub async fn pages_meet_in_either_direction(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    for n in 0..11 {
        let subtype = if n % 3 == 0 { "third" } else { "other" };
        run.event(subtype, b"{}").await;
    }
    for ascending in [true, false] {
        let filter = EventFilter {
            subtype: Some("other".to_owned()),
            ascending,
            ..EventFilter::default()
        };
        let (mut by_cursor, mut by_offset) = (Vec::new(), Vec::new());
        let mut start = PageStart::Offset(0);
        loop {
            let page = PageRequest { start, limit: 2 };
            let page = world
                .store
                .list_events(run.id(), &filter, &page)
                .await
                .unwrap();
            assert_eq!(page.total.count, 7);
            by_cursor.extend(page.rows);
            let offset = PageRequest {
                start: PageStart::Offset(by_offset.len() as u64),
                limit: 2,
            };
            let page_at = world
                .store
                .list_events(run.id(), &filter, &offset)
                .await
                .unwrap();
            by_offset.extend(page_at.rows);
            match page.next {
                Some(next) => start = PageStart::After(next),
                None => break,
            }
        }
        assert_eq!(by_cursor, by_offset);
        let seqs: Vec<_> = by_cursor.iter().map(|event| event.seq).collect();
        let mut expected = vec![2, 3, 5, 6, 8, 9, 11];
        if !ascending {
            expected.reverse();
        }
        assert_eq!(seqs, expected);
    }
}

/// An instance that does not exist has no events, checkpoints, steps or scopes.
pub async fn an_unknown_instance_has_nothing(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let (store, id) = (&world.store, instance("nobody"));
    let page = PageRequest::first(9);
    let events = store
        .list_events(&id, &EventFilter::default(), &page)
        .await
        .unwrap();
    assert_eq!((events.rows.len(), events.total.count), (0, 0));
    let any = crate::CheckpointFilter::default();
    let saved = store.list_checkpoints(&id, &any, &page).await.unwrap();
    assert_eq!((saved.rows.len(), saved.total.count), (0, 0));
    let steps = store
        .list_steps(&id, &crate::StepFilter::default(), &page)
        .await
        .unwrap();
    assert_eq!((steps.rows.len(), steps.total.count), (0, 0));
    assert!(store.scope_ancestors(&id, "s").await.unwrap().is_empty());
    assert_eq!(store.checkpoint(&id, &checkpoint("c")).await.unwrap(), None);
}

/// A cursor that another list gave finds nothing.
pub async fn a_cursor_of_another_list_finds_nothing(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.event("x", b"{}").await;
    let foreign = runtara_domain::Cursor {
        value: Some(1),
        key: "order-1".to_owned(),
    };
    for ascending in [true, false] {
        let filter = EventFilter {
            ascending,
            ..EventFilter::default()
        };
        let page = PageRequest {
            start: PageStart::After(foreign.clone()),
            limit: 9,
        };
        let page = world
            .store
            .list_events(run.id(), &filter, &page)
            .await
            .unwrap();
        assert_eq!((page.rows.len(), page.next, page.total.count), (0, None, 1));
    }
}
