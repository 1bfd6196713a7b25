//! Lists of instances: every filter, every order, pages that meet, totals; and purges.

use bytes::Bytes;
use runtara_domain::{
    CheckpointId, Cursor, InstanceId, LabelFilter, Reason, Status, Timestamp, Word, limits,
};

use super::Harness;
use super::make::{exit_code, instance, labels, new_image, sleep, tenant, wait_for};
use super::world::World;
use crate::{
    InstanceFilter, InstanceOrder, InstanceSummary, Page, PageRequest, PageStart, Purge, Total,
};

const ORDERS: [InstanceOrder; 4] = [
    InstanceOrder::CreatedDescending,
    InstanceOrder::CreatedAscending,
    InstanceOrder::FinishedDescending,
    InstanceOrder::FinishedAscending,
];

async fn page(
    world: &World<'_>,
    filter: &InstanceFilter,
    order: InstanceOrder,
    start: PageStart,
    limit: u32,
) -> Page<InstanceSummary> {
    let request = PageRequest { start, limit };
    let page = world.store.list_instances(filter, order, &request).await;
    page.expect("instances are listed")
}

/// The ids that a filter finds, oldest first.
async fn found(world: &World<'_>, filter: &InstanceFilter) -> Vec<String> {
    let order = InstanceOrder::CreatedAscending;
    let page = page(world, filter, order, PageStart::Offset(0), 100).await;
    let rows = page.rows.len() as u64;
    let exact = Total {
        count: rows,
        exact: true,
    };
    assert_eq!(page.total, exact, "{filter:?}");
    page.rows
        .iter()
        .map(|row| row.instance_id.as_str().to_owned())
        .collect()
}

/// A row says where its instance stands.
pub async fn a_row_says_where_its_instance_stands(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let mut new = world.new_instance("order-1");
    new.labels = labels(&[("team", "billing")]);
    let created_at = world.now();
    let id = world.start_as(new.clone()).await.instance_id;
    world.advance(5).await;
    let run = world.claim_only(&id).await;
    run.wait(sleep(None, 60_000, b"s")).await;
    let expected = InstanceSummary {
        instance_id: id.clone(),
        tenant_id: world.tenant.clone(),
        image_id: Some(world.image.image_id.clone()),
        image_name: Some("program".to_owned()),
        status: Status::Suspended,
        reason: Some(Reason::Sleeping),
        due_at: Some(created_at.plus_millis(60_005)),
        created_at,
        started_at: Some(created_at.plus_millis(5)),
        finished_at: None,
        has_error: false,
        labels: new.labels,
    };
    let any = InstanceFilter::default();
    let first = || {
        page(
            &world,
            &any,
            InstanceOrder::default(),
            PageStart::Offset(0),
            9,
        )
    };
    assert_eq!(first().await.rows, [expected]);
    run.exit(exit_code(0)).await;
    world.advance(60_000).await;
    let run = world.claim_only(&id).await;
    run.say(Word::Failed { error: "no".into() }).await;
    let row = first().await.rows.remove(0);
    assert!(row.has_error);
    assert_eq!(
        (row.status, row.reason),
        (Status::Failed, Some(Reason::ApplicationError))
    );
    assert_eq!((row.finished_at, row.due_at), (Some(world.now()), None));
    // One that registered itself has no image; one whose image has another content by now still names it.
    world.self_registered("self").await;
    let again = new_image(&world.tenant, "program", b"other");
    world.store.register_image(again).await.unwrap();
    let other = new_image(&world.tenant, "another", b"x");
    let other = world.store.register_image(other).await.unwrap();
    let mut new = world.new_instance("order-2");
    new.image_id = other.image_id;
    world.start_as(new).await;
    for order in [
        InstanceOrder::CreatedAscending,
        InstanceOrder::FinishedAscending,
    ] {
        let rows = page(&world, &any, order, PageStart::Offset(0), 9)
            .await
            .rows;
        let mut names: Vec<_> = rows
            .iter()
            .map(|row| (row.instance_id.as_str(), row.image_name.as_deref()))
            .collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                ("order-1", Some("program")),
                ("order-2", Some("another")),
                ("self", None)
            ],
            "{order:?}"
        );
    }
}

/// Each filter finds what it names, and all must be met.
pub async fn instances_are_found(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let other = tenant("else");
    let theirs = new_image(&other, "program", b"x");
    let theirs = world.store.register_image(theirs).await.unwrap();
    let began = world.now();
    for (id, pairs) in [
        ("a", &[("team", "billing"), ("env", "")][..]),
        ("b", &[("team", "sales")]),
        ("c", &[]),
    ] {
        let mut new = world.new_instance(id);
        new.labels = labels(pairs);
        world.start_as(new).await;
        world.advance(10).await;
    }
    let mut foreign = world.new_instance("d");
    (foreign.tenant_id, foreign.image_id) = (other.clone(), theirs.image_id.clone());
    foreign.labels = labels(&[("team", "billing")]);
    world.start_as(foreign).await;
    world.self_registered("e").await;
    world.cancel(&instance("a")).await;
    world.advance(10).await;
    world.cancel(&instance("c")).await;
    let find = |change: &dyn Fn(&mut InstanceFilter)| {
        let mut filter = InstanceFilter::default();
        change(&mut filter);
        let world = &world;
        async move { found(world, &filter).await.join("") }
    };
    let own = world.tenant.clone();
    let at = |millis: u64| Some(began.plus_millis(millis));
    let label = |text: &str| vec![LabelFilter::parse(text).unwrap()];
    assert_eq!(find(&|_| {}).await, "abcde");
    assert_eq!(find(&|f| f.tenant_id = Some(own.clone())).await, "abce");
    assert_eq!(find(&|f| f.tenant_id = Some(other.clone())).await, "d");
    assert_eq!(find(&|f| f.status = Some(Status::Cancelled)).await, "ac");
    assert_eq!(find(&|f| f.status = Some(Status::Running)).await, "e");
    assert_eq!(
        find(&|f| f.image_id = Some(theirs.image_id.clone())).await,
        "d"
    );
    assert_eq!(find(&|f| f.created_after = at(10)).await, "bcde");
    assert_eq!(find(&|f| f.created_before = at(20)).await, "ab");
    assert_eq!(find(&|f| f.finished_after = at(30)).await, "ac");
    assert_eq!(find(&|f| f.finished_after = at(31)).await, "c");
    assert_eq!(find(&|f| f.finished_before = at(40)).await, "a");
    assert_eq!(find(&|f| f.labels = label("team")).await, "abd");
    assert_eq!(find(&|f| f.labels = label("team=billing")).await, "ad");
    assert_eq!(find(&|f| f.labels = label("env=")).await, "a");
    assert_eq!(find(&|f| f.labels = label("team=")).await, "");
    let both = [label("team=billing"), label("env")].concat();
    assert_eq!(find(&|f| f.labels = both.clone()).await, "a");
    let all = |f: &mut InstanceFilter| {
        f.tenant_id = Some(own.clone());
        f.status = Some(Status::Cancelled);
        f.created_before = at(10);
        f.labels = label("team=billing");
        f.image_name_prefix = Some("prog".to_owned());
    };
    assert_eq!(find(&all).await, "a");
}

/// The name of an image is met by its beginning, taken literally, in its own case, also of images that were replaced.
pub async fn prefixes_of_image_names_are_literal(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let names = [
        "50% off",
        "50 percent",
        "a_b",
        "aXb",
        "Größe",
        "GRÖSSE",
        "back\\slash",
        "ab*",
    ];
    for (n, name) in names.iter().enumerate() {
        let image = new_image(&world.tenant, name, b"x");
        let mut new = world.new_instance(&n.to_string());
        new.image_id = world.store.register_image(image).await.unwrap().image_id;
        world.start_as(new).await;
    }
    let replaced = new_image(&world.tenant, "a_b", b"y");
    world.store.register_image(replaced).await.unwrap();
    for (prefix, expected) in [
        ("50%", "0"),
        ("50", "01"),
        ("%", ""),
        ("a_", "2"),
        ("_", ""),
        ("a", "237"),
        ("Gr", "4"),
        ("größe", ""),
        ("Größ", "4"),
        ("back\\", "6"),
        ("ab*", "7"),
        ("*", ""),
        ("a_b", "2"),
        ("a_bc", ""),
    ] {
        let filter = InstanceFilter {
            image_name_prefix: Some(prefix.to_owned()),
            ..InstanceFilter::default()
        };
        let mut ids = found(&world, &filter).await;
        ids.sort();
        assert_eq!(ids.join(""), expected, "{prefix:?}");
    }
    let all = InstanceFilter {
        image_name_prefix: Some(String::new()),
        ..InstanceFilter::default()
    };
    assert_eq!(found(&world, &all).await.len(), names.len());
}

/// Makes instances that share times, so that ids settle the order, some ended and some not.
async fn populate(world: &World<'_>) -> Vec<InstanceSummary> {
    for id in ["b", "B", "ä", "a", "10", "9", "z-1", "z", "_"] {
        world.start(id).await;
        if matches!(id, "B" | "a" | "z-1") {
            world.advance(1).await;
        }
    }
    for id in ["z", "b", "ä", "9"] {
        world.cancel(&instance(id)).await;
        if id == "b" {
            world.advance(1).await;
        }
    }
    let any = InstanceFilter::default();
    let all = page(
        world,
        &any,
        InstanceOrder::default(),
        PageStart::Offset(0),
        100,
    )
    .await;
    assert_eq!(all.rows.len(), 9);
    all.rows
}

fn sorted(mut rows: Vec<InstanceSummary>, order: InstanceOrder) -> Vec<InstanceSummary> {
    use InstanceOrder as O;
    let value = |row: &InstanceSummary| match order {
        O::CreatedDescending | O::CreatedAscending => Some(row.created_at),
        O::FinishedDescending | O::FinishedAscending => row.finished_at,
    };
    rows.sort_by_key(|row| row.instance_id.as_str().as_bytes().to_vec());
    rows.sort_by_key(value);
    if matches!(order, O::CreatedDescending | O::FinishedDescending) {
        rows.reverse();
    }
    // Rows without a finish time come last in both directions.
    rows.sort_by_key(|row| value(row).is_none());
    rows
}

/// Every order is total: by time, then by id, byte by byte; what has not ended comes last.
pub async fn every_order_is_total(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let all = populate(&world).await;
    for order in ORDERS {
        let any = InstanceFilter::default();
        let listed = page(&world, &any, order, PageStart::Offset(0), 100).await;
        assert_eq!(listed.rows, sorted(all.clone(), order), "{order:?}");
        assert_eq!(listed.next, None);
    }
}

/// Walking by cursor and by offset finds the same rows, in every order, whatever the size of the page.
pub async fn pages_meet_in_every_order(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let all = populate(&world).await;
    let own = InstanceFilter {
        tenant_id: Some(world.tenant.clone()),
        ..InstanceFilter::default()
    };
    for order in ORDERS {
        for size in [1, 2, 4, 9, 10] {
            let (mut walked, mut skipped) = (Vec::new(), Vec::new());
            let mut start = PageStart::Offset(0);
            loop {
                let by_cursor = page(&world, &own, order, start, size).await;
                let offset = PageStart::Offset(walked.len() as u64);
                skipped.extend(page(&world, &own, order, offset, size).await.rows);
                assert_eq!(by_cursor.total.count, 9);
                walked.extend(by_cursor.rows);
                match by_cursor.next {
                    Some(next) => {
                        let read_back = Cursor::decode(&next.encode()).unwrap();
                        assert_eq!(read_back, next);
                        start = PageStart::After(read_back);
                    }
                    None => break,
                }
            }
            assert_eq!(walked, sorted(all.clone(), order), "{order:?} by {size}");
            assert_eq!(skipped, walked, "{order:?} by {size}");
        }
    }
    let beyond = page(&world, &own, ORDERS[0], PageStart::Offset(u64::MAX), 9).await;
    assert_eq!(
        (beyond.rows.len(), beyond.next, beyond.total.count),
        (0, None, 9)
    );
    let none = page(&world, &own, ORDERS[0], PageStart::Offset(0), 0).await;
    assert_eq!((none.rows.len(), none.next, none.total.count), (0, None, 9));
}

/// A row that comes or goes while somebody walks by cursor moves no other row.
pub async fn a_walk_is_not_disturbed(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for n in 0..6 {
        world.start(&format!("i-{n}")).await;
        world.advance(1).await;
    }
    let any = InstanceFilter::default();
    let order = InstanceOrder::CreatedDescending;
    let first = page(&world, &any, order, PageStart::Offset(0), 3).await;
    world.start("newer").await;
    world.cancel(&instance("i-3")).await;
    world.store.purge_instance(&instance("i-3")).await.unwrap();
    let next = first.next.expect("there are more");
    let second = page(&world, &any, order, PageStart::After(next), 3).await;
    let ids: Vec<_> = second
        .rows
        .iter()
        .map(|row| row.instance_id.as_str())
        .collect();
    assert_eq!(ids, ["i-2", "i-1", "i-0"]);
}

/// Totals are exact up to ten thousand; above, they are marked, and no less than what is certain.
pub async fn totals_are_exact_up_to_ten_thousand(harness: &dyn Harness) {
    let world = World::new(harness).await;
    start_many(&world, limits::EXACT_TOTAL as usize).await;
    let any = InstanceFilter::default();
    let own = InstanceFilter {
        tenant_id: Some(world.tenant.clone()),
        status: Some(Status::Pending),
        ..any.clone()
    };
    let by_image = InstanceFilter {
        image_id: Some(world.image.image_id.clone()),
        ..any.clone()
    };
    let order = InstanceOrder::default();
    for filter in [&any, &own, &by_image] {
        let total = page(&world, filter, order, PageStart::Offset(0), 1)
            .await
            .total;
        let exact = Total {
            count: 10_000,
            exact: true,
        };
        assert_eq!(total, exact, "{filter:?}");
    }
    world.start("one-more").await;
    world.store.refresh_counts().await.unwrap();
    for filter in [&any, &own, &by_image] {
        let total = page(&world, filter, order, PageStart::Offset(0), 1)
            .await
            .total;
        let about = Total {
            count: 10_001,
            exact: false,
        };
        assert_eq!(total, about, "{filter:?}");
    }
    let last = page(&world, &own, order, PageStart::Offset(10_000), 5).await;
    assert_eq!((last.rows.len(), last.next), (1, None));
    let full = page(&world, &any, order, PageStart::Offset(0), u32::MAX).await;
    assert_eq!(
        full.rows.len(),
        limits::PAGE_ROWS as usize,
        "a page is bounded"
    );
}

async fn start_many(world: &World<'_>, count: usize) {
    let starters: Vec<_> = (0..16)
        .map(|part| {
            let store = world.store.clone();
            let mine = (part..count).step_by(16);
            let new: Vec<_> = mine
                .map(|n| world.new_instance(&format!("i-{n}")))
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
}

/// A purge removes an ended instance with everything that belongs to it, and its id is free again.
pub async fn a_purge_leaves_nothing(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let mut new = world.new_instance("order-1");
    new.labels = labels(&[("team", "billing")]);
    world.start_as(new).await;
    let run = world.claim_only(&instance("order-1")).await;
    run.register().await;
    run.save("step", b"s").await;
    run.retry("pay", 2, None).await;
    run.event("step_debug_start", br#"{"step_id":"a"}"#).await;
    run.event("scope_enter", br#"{"scope_id":"s"}"#).await;
    run.wait(sleep(Some("nap"), 1_000, b"s")).await;
    run.wait(wait_for("go", Some(1_000))).await;
    world.send(run.id(), "go", b"x").await;
    let id = run.id();
    let purge = || world.store.purge_instance(id);
    assert_eq!(purge().await.unwrap(), Purge::NotEnded(Status::Running));
    run.complete(b"1").await;
    assert_eq!(purge().await.unwrap(), Purge::ProcessLeaving);
    run.exit(exit_code(0)).await;
    assert_eq!(purge().await.unwrap(), Purge::Purged);
    assert_eq!(purge().await.unwrap(), Purge::NotFound);
    assert_nothing(&world, id).await;
    world.start("order-1").await;
    let state = world.state(id).await;
    assert_eq!(state.run_number.0, 0);
    assert_eq!(world.values(id).await.output, None);
    assert!(world.events(id).await.is_empty() && world.saved(id).await.is_empty());
    let labelled = InstanceFilter {
        labels: vec![LabelFilter::parse("team").unwrap()],
        ..InstanceFilter::default()
    };
    assert!(found(&world, &labelled).await.is_empty());
    let run = world.claim_only(id).await;
    assert_eq!(run.take("go").await, None);
    assert_eq!(run.save("step", b"").await.found, None);
    let crate::Waiting::Held(held) = run.wait(sleep(Some("nap"), 1_000, b"s")).await else {
        panic!("it sleeps for the first time");
    };
    assert_eq!(held.n, 1);
}

async fn assert_nothing(world: &World<'_>, id: &InstanceId) {
    let store = &world.store;
    assert_eq!(store.instance(id).await.unwrap(), None);
    assert_eq!(store.instance_values(id).await.unwrap(), None);
    assert_eq!(store.instance_input(id).await.unwrap(), None);
    let step = CheckpointId::new("step").unwrap();
    assert_eq!(store.checkpoint(id, &step).await.unwrap(), None);
    assert!(world.events(id).await.is_empty() && world.saved(id).await.is_empty());
    let steps = crate::StepFilter::default();
    let steps = store
        .list_steps(id, &steps, &PageRequest::first(9))
        .await
        .unwrap();
    assert_eq!(steps.total.count, 0);
    assert!(store.scope_ancestors(id, "s").await.unwrap().is_empty());
    let any = InstanceFilter::default();
    assert!(found(world, &any).await.is_empty());
}

/// What an instance ended with is kept, and taken away when it is resumed.
pub async fn a_result_is_kept_until_a_resume(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let output = Bytes::from_static(b"\xff\x00{}");
    run.complete(&output).await;
    assert_eq!(world.values(run.id()).await.output, Some(output));
    let run = world.launch("order-2").await;
    let error = "x".repeat(limits::ERROR_BYTES) + "the reason stands last";
    run.say(Word::Failed { error }).await;
    let kept = world
        .values(run.id())
        .await
        .error
        .expect("an error is kept");
    assert!(kept.len() <= limits::ERROR_BYTES && kept.ends_with("the reason stands last"));
    assert_eq!(world.state(run.id()).await.finished_at, Some(world.now()));
    world.resume(run.id()).await;
    let (state, values) = (world.state(run.id()).await, world.values(run.id()).await);
    assert_eq!(
        (values.error, state.has_error, state.finished_at),
        (None, false, None)
    );
    let ended = InstanceFilter {
        finished_after: Some(Timestamp(0)),
        ..InstanceFilter::default()
    };
    assert_eq!(found(&world, &ended).await, ["order-1"]);
}
