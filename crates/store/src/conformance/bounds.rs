//! The longest, the largest and the strangest values that may come in.

use bytes::Bytes;
use runtara_domain::{ImageName, InstanceId, NewEvent, TenantId, WaitKind, Word, limits};

use super::Harness;
use super::make::{checkpoint, exit_code, instance, new_image, save, signal, sleep};
use super::world::World;
use crate::{
    EventFilter, ImageFilter, InstanceFilter, InstanceOrder, PageRequest, PageStart, StepFilter,
    WaitKey,
};

/// As many letters of several bytes as fit.
fn longest(bytes: usize) -> String {
    let mut text = "名".repeat(bytes / 3);
    text.push_str(&"x".repeat(bytes % 3));
    assert_eq!(text.len(), bytes);
    text
}

/// Ids of the greatest length, of letters of several bytes, are ids like any others.
pub async fn the_longest_ids_serve(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let owner = TenantId::new(longest(255)).unwrap();
    let mut image = new_image(&owner, "program", b"x");
    image.name = ImageName::new(longest(255)).unwrap();
    image.image_id = runtara_domain::ImageId::new(longest(255)).unwrap();
    let image = world.store.register_image(image).await.unwrap();
    let mut new = world.new_instance("x");
    new.instance_id = InstanceId::new(longest(255)).unwrap();
    (new.tenant_id, new.image_id) = (owner.clone(), image.image_id.clone());
    world.start_as(new.clone()).await;
    let run = world.claim_only(&new.instance_id).await;
    let name = longest(limits::CHECKPOINT_ID_BYTES);
    assert_eq!(run.save(&name, b"s").await.found, None);
    assert_eq!(
        run.save(&name, b"x").await.found.as_deref(),
        Some(&b"s"[..])
    );
    world.send(run.id(), &name, b"p").await;
    assert_eq!(run.take(&name).await, Some(Some(Bytes::from_static(b"p"))));
    let mut nap = sleep(Some(&name), 1_000, b"s");
    nap.call.request_id = Some(longest(255));
    run.wait(nap).await;
    run.event(&longest(limits::EVENT_SUBTYPE_BYTES), b"{}")
        .await;
    let filter = InstanceFilter {
        tenant_id: Some(owner),
        image_id: Some(image.image_id),
        image_name_prefix: Some(longest(255)),
        ..InstanceFilter::default()
    };
    let page = PageRequest::first(1);
    let found = world
        .store
        .list_instances(&filter, InstanceOrder::default(), &page)
        .await;
    assert_eq!(found.unwrap().rows[0].instance_id, new.instance_id);
    assert_eq!(world.record(run.id()).await.image_name, Some(longest(255)));
}

/// A page of events, or of steps, ends with the row by which what they carry reaches its bound; the next one goes on behind it.
pub async fn a_page_ends_by_what_its_rows_carry(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let large = vec![b'x'; limits::EVENT_PAYLOAD_BYTES];
    for _ in 0..10 {
        run.event("large", &large).await;
    }
    run.event("small", b"x").await;
    for ascending in [true, false] {
        let filter = EventFilter {
            ascending,
            ..EventFilter::default()
        };
        let (mut page, mut sizes) = (PageRequest::first(1_000), Vec::new());
        loop {
            let found = world.store.list_events(run.id(), &filter, &page).await;
            let found = found.expect("events are listed");
            assert_eq!(found.total.count, 11);
            sizes.push(found.rows.len());
            let Some(next) = found.next else { break };
            page.start = PageStart::After(next);
        }
        let wanted = if ascending { [8, 3] } else { [9, 2] };
        assert_eq!(sizes, wanted, "ascending: {ascending}");
    }
    let half = "x".repeat(limits::EVENT_PAYLOAD_BYTES / 2);
    for number in 0..9 {
        let step = serde_json::json!({ "step_id": format!("s-{number}"), "a": half }).to_string();
        run.event("step_debug_start", step.as_bytes()).await;
        run.event("step_debug_end", step.as_bytes()).await;
    }
    let filter = StepFilter::default();
    let page = PageRequest::first(1_000);
    let found = world.store.list_steps(run.id(), &filter, &page).await;
    let found = found.expect("steps are listed");
    assert_eq!((found.rows.len(), found.total.count), (8, 9));
    let rest = PageRequest {
        start: PageStart::After(found.next.expect("there is one more")),
        limit: 1_000,
    };
    let rest = world.store.list_steps(run.id(), &filter, &rest).await;
    let rest = rest.expect("steps are listed");
    assert_eq!((rest.rows.len(), rest.next), (1, None));
}

/// Names differ by every byte: case, accents, spaces, and how letters are composed.
pub async fn names_differ_by_every_byte(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let names = [
        "a",
        "A",
        "ä",
        "a\u{308}",
        " a",
        "a ",
        "a\u{200b}",
        "%",
        "_",
        "a'b",
        "a\"b",
        "$1",
    ];
    for name in names {
        assert_eq!(
            run.save(name, name.as_bytes()).await.found,
            None,
            "{name:?}"
        );
    }
    for name in names {
        let found = run.save(name, b"x").await.found;
        assert_eq!(found.as_deref(), Some(name.as_bytes()), "{name:?}");
    }
    for id in ["Order-1", "order-1\u{200b}", "ORDER-1"] {
        assert_eq!(world.store.instance(&instance(id)).await.unwrap(), None);
    }
}

/// States of several megabytes are saved whole, beside small ones of the same moment.
pub async fn large_states_are_saved_whole(harness: &dyn Harness) {
    const LARGE: usize = 8 * 1024 * 1024;
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let savers: Vec<_> = (0..6_u8)
        .map(|n| {
            let (store, caller) = (world.store.clone(), run.caller.clone());
            let size = if n % 3 == 0 { LARGE } else { 10 };
            let state = vec![n; size];
            tokio::spawn(async move {
                let request = save(&format!("step-{n}"), &state);
                store.save_checkpoint(&caller, request).await
            })
        })
        .collect();
    for saver in savers {
        let answer = saver
            .await
            .expect("no saver panics")
            .expect("a save is answered");
        assert_eq!(answer.found, None);
    }
    for n in 0..6_u8 {
        let size = if n % 3 == 0 { LARGE } else { 10 };
        let state = world.state_saved(run.id(), &format!("step-{n}")).await;
        let state = state.expect("it was saved");
        assert!(
            state.len() == size && state.iter().all(|byte| *byte == n),
            "step-{n}"
        );
    }
    let output = Bytes::from(vec![b'7'; LARGE]);
    run.complete(&output).await;
    assert!(world.values(run.id()).await.output == Some(output));
    let completed = world
        .events(run.id())
        .await
        .pop()
        .expect("the end is an event");
    assert_eq!(
        completed.payload, None,
        "what is too large for an event is with the instance"
    );
}

/// Bytes of every value are kept as they are, wherever bytes may stand.
pub async fn bytes_are_kept_as_they_are(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let all: Vec<u8> = (0..=255).collect();
    let mut new = world.new_instance("order-1");
    new.input = Bytes::from(all.clone());
    world.start_as(new).await;
    let claimed = world.claim(1).await;
    assert_eq!(claimed[0].input.as_deref(), Some(&all[..]));
    let run = super::world::Run::of(&world, &claimed[0]);
    run.save("step", &all).await;
    assert_eq!(
        world.state_saved(run.id(), "step").await.as_deref(),
        Some(&all[..])
    );
    world.send(run.id(), "go", &all).await;
    assert_eq!(run.take("go").await, Some(Some(Bytes::from(all.clone()))));
    run.event("x", &all).await;
    assert_eq!(
        world.events(run.id()).await[0].payload.as_deref(),
        Some(&all[..])
    );
    run.complete(&all).await;
    assert_eq!(
        world.values(run.id()).await.output.as_deref(),
        Some(&all[..])
    );
}

/// Texts that come from programs and people may hold a NUL, which not every database can keep: they are kept without harm to
/// anything else.
pub async fn a_nul_in_a_text_does_no_harm(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let odd = "a\0b";
    run.retry("pay", 2, Some(odd)).await;
    let event = NewEvent::custom(
        None,
        None,
        Some(Bytes::from_static(br#"{"step_id":"a\u0000b"}"#)),
    );
    let request_id = Some("r\0".to_owned());
    for _ in 0..2 {
        let recorded = world
            .store
            .record_event(&run.caller, event.clone(), request_id.clone());
        recorded.await.expect("an event is recorded");
    }
    assert_eq!(
        world.events(run.id()).await.len(),
        2,
        "the retry, and the event once"
    );
    let saying = EventFilter {
        payload_contains: Some(odd.to_owned()),
        ..EventFilter::default()
    };
    let page = PageRequest::first(9);
    let found = world
        .store
        .list_events(run.id(), &saying, &page)
        .await
        .unwrap();
    assert!(found.rows.is_empty());
    let of_scope = EventFilter {
        scope_id: Some(odd.to_owned()),
        subtype: Some(odd.to_owned()),
        ..EventFilter::default()
    };
    assert!(
        world
            .store
            .list_events(run.id(), &of_scope, &page)
            .await
            .unwrap()
            .rows
            .is_empty()
    );
    assert!(
        world
            .store
            .scope_ancestors(run.id(), odd)
            .await
            .unwrap()
            .is_empty()
    );
    let named = ImageFilter {
        name: Some(odd.to_owned()),
        ..ImageFilter::default()
    };
    assert!(
        world
            .store
            .list_images(&named, &page)
            .await
            .unwrap()
            .rows
            .is_empty()
    );
    let prefixed = InstanceFilter {
        image_name_prefix: Some(odd.to_owned()),
        ..InstanceFilter::default()
    };
    let order = InstanceOrder::default();
    let found = world
        .store
        .list_instances(&prefixed, order, &page)
        .await
        .unwrap();
    assert!(found.rows.is_empty());
    let stderr = format!("{odd} on its standard error");
    run.say(Word::Failed {
        error: odd.to_owned(),
    })
    .await;
    let exit = runtara_domain::RunExit {
        stderr,
        ..exit_code(1)
    };
    run.exit(exit).await;
    let values = world.values(run.id()).await;
    let error = values.error.expect("an error is kept");
    assert!(error.starts_with('a') && error.ends_with('b'), "{error:?}");
    assert!(
        values
            .stderr
            .expect("it is kept")
            .ends_with("b on its standard error")
    );
}

/// Waits of the greatest length, and for the empty name, are told apart from each other.
pub async fn waits_are_told_apart(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let mut signal_wait = sleep(None, 1_000, b"");
    signal_wait.key = WaitKey::Signal(signal("x"));
    signal_wait.call.kind = WaitKind::Signal;
    let mut long = sleep(None, limits::SLEEP_MAX_MS, b"");
    long.call.park = false;
    for request in [
        sleep(None, 1_000, b""),
        sleep(Some("x"), 1_000, b""),
        signal_wait,
    ] {
        let crate::Waiting::Held(held) = run.wait(request).await else {
            panic!("a near wait is held");
        };
        assert_eq!(held.n, 1);
    }
    let crate::Waiting::Held(held) = run.wait(long).await else {
        panic!("a busy run is held");
    };
    assert_eq!((held.n, held.remaining_ms), (2, Some(limits::SLEEP_MAX_MS)));
    assert_eq!(
        world
            .store
            .checkpoint(run.id(), &checkpoint("x"))
            .await
            .unwrap(),
        None
    );
}
