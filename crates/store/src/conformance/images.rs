//! Images: a name means the newest, content stays while somebody needs it.

use std::collections::BTreeSet;

use runtara_domain::{
    ImageDigest, ImageId, ImageName, ImageRecord, LabelFilter, RunnerKind, TenantId, Word,
};

use super::Harness;
use super::make::{exit_code, labels, new_image, settings, tenant};
use super::world::World;
use crate::{ImageDeletion, ImageFilter, PageRequest, PageStart, Purge};

/// An image is read back as it was registered.
pub async fn an_image_is_read_back(harness: &dyn Harness) {
    let world = World::new(harness).await;
    world.advance(7).await;
    let mut new = new_image(&world.tenant, "Größe %_ 1", b"content");
    new.description = Some("what it does".to_owned());
    new.kind = RunnerKind::Wasm;
    new.metadata = Some(r#"{"a":[1]}"#.to_owned());
    new.labels = labels(&[("team", "billing"), ("env", "")]);
    new.base = Some(ImageDigest::of(b"base"));
    new.settings = settings(1 << 40);
    new.container = Some(r#"{"entrypoint":["/a b"]}"#.to_owned());
    let record = world.store.register_image(new.clone()).await.unwrap();
    let expected = ImageRecord {
        image_id: new.image_id,
        tenant_id: new.tenant_id,
        name: new.name.clone(),
        description: new.description,
        kind: new.kind,
        digest: new.digest,
        base: new.base,
        size: new.size,
        metadata: new.metadata,
        labels: new.labels,
        settings: new.settings,
        container: new.container,
        created_at: world.now(),
        current: true,
    };
    assert_eq!(record, expected);
    let by_id = world.store.image(&expected.image_id).await.unwrap();
    assert_eq!(by_id.as_ref(), Some(&expected));
    let by_name = world
        .store
        .image_by_name(&world.tenant, &new.name)
        .await
        .unwrap();
    assert_eq!(by_name, Some(expected));
    let foreign = world
        .store
        .image_by_name(&tenant("else"), &new.name)
        .await
        .unwrap();
    assert_eq!(foreign, None);
}

/// A name that is registered again means the new image; the old one keeps its id and leaves the list.
pub async fn a_name_means_the_newest(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let other = new_image(&tenant("else"), "program", b"theirs");
    let other = world.store.register_image(other).await.unwrap();
    let newer = new_image(&world.tenant, "program", b"newer");
    let newer = world.store.register_image(newer).await.unwrap();
    let name = ImageName::new("program").unwrap();
    let found = world
        .store
        .image_by_name(&world.tenant, &name)
        .await
        .unwrap();
    assert_eq!(found, Some(newer.clone()));
    let old = world
        .store
        .image(&world.image.image_id)
        .await
        .unwrap()
        .unwrap();
    assert!(!old.current);
    let page = PageRequest::first(9);
    let listed = world
        .store
        .list_images(&ImageFilter::default(), &page)
        .await
        .unwrap();
    let listed: BTreeSet<_> = listed.rows.into_iter().map(|row| row.image_id).collect();
    let expected = [newer.image_id.clone(), other.image_id.clone()];
    assert_eq!(listed, BTreeSet::from(expected));
    let deleted = world.store.delete_image(&newer.image_id).await.unwrap();
    assert_eq!(deleted, ImageDeletion::Deleted);
    let found = world
        .store
        .image_by_name(&world.tenant, &name)
        .await
        .unwrap();
    assert_eq!(found, None, "the one before does not come back");
}

/// Of two registrations of one name the one whose content arrived later is meant, whichever is done first.
pub async fn a_name_means_what_arrived_last(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let register = async |tenant: &TenantId, number, content: &str| {
        let mut new = new_image(tenant, "raced", content.as_bytes());
        new.number = number;
        world.store.register_image(new).await.unwrap()
    };
    let named = async || {
        let name = ImageName::new("raced").unwrap();
        let found = world.store.image_by_name(&world.tenant, &name).await;
        found.unwrap().map(|image| image.image_id)
    };
    let mut numbers = Vec::new();
    for _ in 0..4 {
        numbers.push(world.store.next_registration().await.unwrap());
    }
    let [older, newer, _, newest] = numbers[..] else {
        panic!("four were asked for: {numbers:?}")
    };
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    let second = register(&world.tenant, newer, "second").await;
    assert!(second.current);
    let first = register(&world.tenant, older, "first").await;
    assert!(!first.current, "it was replaced before it was registered");
    assert_eq!(named().await, Some(second.image_id.clone()));
    let found = world.store.image(&first.image_id).await.unwrap();
    assert_eq!(found, Some(first), "it is known by its id");
    let same = register(&world.tenant, newer, "same").await;
    assert!(same.current);
    assert_eq!(named().await, Some(same.image_id.clone()));
    let theirs = register(&tenant("else"), older, "theirs").await;
    assert!(theirs.current, "names are a tenant's own");
    let deleted = world.store.delete_image(&same.image_id).await.unwrap();
    assert_eq!(deleted, ImageDeletion::Deleted);
    let late = register(&world.tenant, older, "late").await;
    assert!(!late.current, "what was deleted had replaced it");
    assert_eq!(named().await, None);
    let last = register(&world.tenant, newest, "last").await;
    assert_eq!(named().await, Some(last.image_id));
}

/// Numbers of registrations that are asked for at once are all different, and each is higher than those that were given before.
pub async fn registrations_are_numbered(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let mut last = world.store.next_registration().await.unwrap();
    for _ in 0..4 {
        let asking: Vec<_> = (0..8)
            .map(|_| {
                let store = world.store.clone();
                tokio::spawn(async move { store.next_registration().await })
            })
            .collect();
        let mut given = BTreeSet::new();
        for number in asking {
            given.insert(number.await.expect("no task panics").expect("it is given"));
        }
        assert_eq!(given.len(), 8, "{given:?}");
        assert!(given.first().is_some_and(|first| *first > last));
        last = *given.last().expect("there are eight");
    }
}

/// Many registrations of one name at once leave one current.
pub async fn one_of_many_is_current(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for _ in 0..10 {
        let registrations: Vec<_> = (0..6)
            .map(|n| {
                let store = world.store.clone();
                let image = new_image(&world.tenant, "raced", format!("{n}").as_bytes());
                tokio::spawn(async move { store.register_image(image).await })
            })
            .collect();
        for registration in registrations {
            registration
                .await
                .expect("no task panics")
                .expect("it is registered");
        }
        let raced = ImageFilter {
            name: Some("raced".to_owned()),
            ..ImageFilter::default()
        };
        let page = world
            .store
            .list_images(&raced, &PageRequest::first(9))
            .await
            .unwrap();
        assert_eq!(page.rows.len(), 1);
    }
}

/// An image is not deleted while an instance of it has not ended, and afterwards once.
pub async fn an_image_in_use_is_not_deleted(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let id = &world.image.image_id;
    let runs = [world.launch("a").await, world.launch("b").await];
    assert_eq!(
        world.store.delete_image(id).await.unwrap(),
        ImageDeletion::InUse(2)
    );
    runs[0].complete(b"1").await;
    runs[1].say(Word::Suspended).await;
    assert_eq!(
        world.store.delete_image(id).await.unwrap(),
        ImageDeletion::InUse(1)
    );
    world.cancel(runs[1].id()).await;
    assert_eq!(
        world.store.delete_image(id).await.unwrap(),
        ImageDeletion::Deleted
    );
    assert_eq!(
        world.store.delete_image(id).await.unwrap(),
        ImageDeletion::NotFound
    );
    assert_eq!(world.store.image(id).await.unwrap(), None);
    let unknown = world
        .store
        .delete_image(&ImageId::generate())
        .await
        .unwrap();
    assert_eq!(unknown, ImageDeletion::NotFound);
    let record = world.record(runs[0].id()).await;
    assert_eq!(
        record.image_name.as_deref(),
        Some("program"),
        "its instances still name it"
    );
}

/// The count of instances that keep an image ends at a thousand.
pub async fn a_deletion_counts_up_to_a_thousand(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for n in 0..1_003 {
        world.start(&format!("i-{n}")).await;
    }
    let answer = world
        .store
        .delete_image(&world.image.image_id)
        .await
        .unwrap();
    assert_eq!(answer, ImageDeletion::InUse(1_000));
}

/// An instance that ended can be resumed although its image was deleted: the content was kept for it.
pub async fn a_deleted_image_is_kept_for_a_resume(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.say(Word::Failed { error: "no".into() }).await;
    run.exit(exit_code(1)).await;
    world
        .store
        .delete_image(&world.image.image_id)
        .await
        .unwrap();
    assert!(
        world
            .store
            .remove_unneeded_images(9)
            .await
            .unwrap()
            .is_empty()
    );
    world.resume(run.id()).await;
    let claimed = world.claim(1).await;
    assert_eq!(claimed[0].image.digest, world.image.digest);
    let live = world.store.live_run(run.id()).await.unwrap();
    assert_eq!(live.map(|live| live.kind), Some(RunnerKind::Native));
}

/// Deleted and replaced images go once no instance refers to them, and content that nothing else has is named.
pub async fn unneeded_images_are_removed(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let register = |name: &'static str, content: &'static [u8]| {
        let (store, image) = (world.store.clone(), new_image(&world.tenant, name, content));
        async move { store.register_image(image).await.unwrap() }
    };
    let run = world.launch("order-1").await;
    register("program", b"second").await; // the world's image is replaced
    let shared = register("shared", b"shared").await;
    register("keeps", b"shared").await;
    register("shared", b"third").await;
    let gone = register("gone", b"gone").await;
    world.store.delete_image(&gone.image_id).await.unwrap();
    assert!(
        world.store.is_content_needed(&gone.digest).await.unwrap(),
        "it is only deleted"
    );
    let removed = world.store.remove_unneeded_images(9).await.unwrap();
    assert_eq!(
        removed,
        [gone.digest],
        "the other content is shared or needed"
    );
    assert_eq!(world.store.image(&shared.image_id).await.unwrap(), None);
    assert!(world.store.is_content_needed(&shared.digest).await.unwrap());
    assert!(!world.store.is_content_needed(&gone.digest).await.unwrap());
    assert!(
        !world
            .store
            .is_content_needed(&ImageDigest::of(b"never"))
            .await
            .unwrap()
    );
    run.complete(b"1").await;
    run.exit(exit_code(0)).await;
    assert!(
        world
            .store
            .remove_unneeded_images(9)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        world.store.purge_instance(run.id()).await.unwrap(),
        Purge::Purged
    );
    let removed = world.store.remove_unneeded_images(9).await.unwrap();
    assert_eq!(removed, [world.image.digest]);
    assert!(
        world
            .store
            .remove_unneeded_images(9)
            .await
            .unwrap()
            .is_empty()
    );
}

/// Content that an image is laid on stays as long as that image, even if no image is that content any more.
pub async fn a_base_stays_while_it_is_needed(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let base = new_image(&world.tenant, "base", b"base");
    let base = world.store.register_image(base).await.unwrap();
    let mut laid = new_image(&world.tenant, "laid", b"laid");
    laid.base = Some(base.digest);
    let laid = world.store.register_image(laid).await.unwrap();
    world.store.delete_image(&base.image_id).await.unwrap();
    let removed = world.store.remove_unneeded_images(9).await.unwrap();
    assert_eq!(removed, [], "an image is laid on it");
    assert_eq!(
        world
            .store
            .image_even_deleted(&base.image_id)
            .await
            .unwrap(),
        None
    );
    assert!(world.store.is_content_needed(&base.digest).await.unwrap());
    world.store.delete_image(&laid.image_id).await.unwrap();
    let removed = world.store.remove_unneeded_images(9).await.unwrap();
    assert_eq!(
        BTreeSet::from_iter(removed),
        BTreeSet::from([base.digest, laid.digest])
    );
    assert!(!world.store.is_content_needed(&base.digest).await.unwrap());
}

/// No more are removed at once than was asked for.
pub async fn removal_is_bounded(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for n in 0..5 {
        let image = new_image(&world.tenant, "again", format!("{n}").as_bytes());
        world.store.register_image(image).await.unwrap();
    }
    let mut counts = Vec::new();
    for _ in 0..3 {
        counts.push(world.store.remove_unneeded_images(2).await.unwrap().len());
    }
    assert_eq!(counts, [2, 2, 0]);
}

/// A start and a deletion at once: either the instance has its image, or there is no instance.
pub async fn a_start_never_loses_its_image(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for round in 0..30 {
        let image = new_image(&world.tenant, "raced", format!("{round}").as_bytes());
        let image = world.store.register_image(image).await.unwrap();
        let mut new = world.new_instance(&format!("i-{round}"));
        new.image_id = image.image_id.clone();
        let id = new.instance_id.clone();
        let (starter, deleter) = (world.store.clone(), world.store.clone());
        let start = tokio::spawn(async move { starter.start_instance(new).await });
        let delete = tokio::spawn(async move {
            let deleted = deleter.delete_image(&image.image_id).await?;
            deleter.remove_unneeded_images(9).await?;
            Ok::<_, crate::StoreError>(deleted)
        });
        let started = start.await.expect("no task panics").unwrap();
        let deleted = delete.await.expect("no task panics").unwrap();
        match (started, deleted) {
            (crate::Started::New(_), ImageDeletion::InUse(1)) => {
                assert_eq!(world.claim(9).await[0].instance_id, id);
            }
            (crate::Started::ImageNotFound, ImageDeletion::Deleted) => {}
            other => panic!("round {round}: {other:?}"),
        }
    }
}

/// An image from which nothing was started for a time is unused, unless something may still need it.
pub async fn unused_images_are_deleted(harness: &dyn Harness) {
    const DAY: u64 = 86_400_000;
    let world = World::new(harness).await;
    let register = |name: &'static str| new_image(&world.tenant, name, name.as_bytes());
    let mut images = Vec::new();
    for name in ["failed", "runs", "completed", "recent", "below", "idle"] {
        images.push(world.store.register_image(register(name)).await.unwrap());
        world.advance(1).await;
    }
    let mut above = register("above");
    above.base = Some(ImageDigest::of(b"below"));
    world.store.register_image(above).await.unwrap();
    let of = |name: &str| {
        images
            .iter()
            .find(|image| image.name.as_str() == name)
            .unwrap()
    };
    let start = |id: &str, image: &str| {
        let mut new = world.new_instance(id);
        new.image_id = of(image).image_id.clone();
        world.start_as(new)
    };
    for (id, image) in [("failed", "failed"), ("completed", "completed")] {
        start(id, image).await;
        let run = world.claim_only(&super::make::instance(id)).await;
        match id {
            "failed" => run.say(Word::Failed { error: "no".into() }).await,
            _ => run.complete(b"1").await,
        };
        run.exit(exit_code(0)).await;
    }
    start("runs", "runs").await;
    let runs = world.claim_only(&super::make::instance("runs")).await;
    world.advance(DAY / 2).await;
    start("recent", "recent").await;
    let recent = world.claim_only(&super::make::instance("recent")).await;
    recent.complete(b"1").await;
    recent.exit(exit_code(0)).await;
    let names = |images: &[ImageRecord]| {
        let names = images.iter().map(|image| image.name.as_str().to_owned());
        names.collect::<Vec<_>>()
    };
    let unused = || async { names(&world.store.unused_images(DAY, 9).await.unwrap()) };
    assert_eq!(unused().await, [] as [&str; 0]);
    // The last of them was registered a day ago by then, and the one that was used lately was started half a day ago.
    world.advance(DAY / 2).await;
    let wanted = ["program", "completed", "idle", "above"];
    assert_eq!(unused().await, wanted);
    let first = world.store.unused_images(DAY, 2).await.unwrap();
    assert_eq!(names(&first), wanted[..2]);
    let deleted = world.store.delete_unused_images(DAY, 2).await.unwrap();
    assert_eq!(deleted, first);
    let deleted = world.store.delete_unused_images(DAY, 9).await.unwrap();
    assert_eq!(names(&deleted), wanted[2..]);
    assert_eq!(unused().await, [] as [&str; 0]);
    let (any, page) = (ImageFilter::default(), PageRequest::first(9));
    let list = world.store.list_images(&any, &page).await.unwrap();
    let mut left = names(&list.rows);
    left.sort();
    assert_eq!(left, ["below", "failed", "recent", "runs"]);
    // It is deleted as by a person: what an ended instance ran stays readable with it.
    let unneeded = names(&world.store.unneeded_images(9).await.unwrap());
    assert!(!unneeded.contains(&"completed".to_owned()), "{unneeded:?}");
    assert_eq!(unneeded.len(), 3);
    world.store.remove_unneeded_images(9).await.unwrap();
    assert_eq!(world.store.unneeded_images(9).await.unwrap(), []);
    assert_eq!(unused().await, ["below"], "nothing is laid on it any more");
    runs.complete(b"1").await;
}

/// A start and the deletion of an unused image do not cross: an instance that was started has its image.
pub async fn a_start_keeps_an_unused_image(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for round in 0..30 {
        let image = new_image(&world.tenant, "idle", format!("{round}").as_bytes());
        let image = world.store.register_image(image).await.unwrap();
        world.advance(10).await;
        let mut new = world.new_instance(&format!("i-{round}"));
        new.image_id = image.image_id.clone();
        let (starter, deleter) = (world.store.clone(), world.store.clone());
        let start = tokio::spawn(async move { starter.start_instance(new).await });
        let delete = tokio::spawn(async move { deleter.delete_unused_images(10, 9).await });
        let started = start.await.expect("no task panics").unwrap();
        let deleted = delete.await.expect("no task panics").unwrap();
        let is_deleted = deleted.iter().any(|one| one.image_id == image.image_id);
        let is_there = world.store.image(&image.image_id).await.unwrap().is_some();
        match started {
            crate::Started::New(_) => assert!(!is_deleted && is_there, "round {round}"),
            crate::Started::ImageNotFound => assert!(is_deleted && !is_there, "round {round}"),
            other => panic!("round {round}: {other:?}"),
        }
    }
}

/// The list is newest first, filtered, and cut into pages that meet.
pub async fn images_are_listed(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let mut expected = vec![world.image.clone()];
    for n in 0..6 {
        if n % 2 == 0 {
            world.advance(1).await;
        }
        let mut image = new_image(&world.tenant, &format!("n-{n}"), b"x");
        image.labels = labels(&[("odd", if n % 2 == 0 { "no" } else { "yes" })]);
        expected.push(world.store.register_image(image).await.unwrap());
    }
    let other = new_image(&tenant("else"), "n-1", b"x");
    world.store.register_image(other).await.unwrap();
    expected.sort_by_key(|image| std::cmp::Reverse((image.created_at, image.image_id.clone())));
    let own = ImageFilter {
        tenant_id: Some(world.tenant.clone()),
        ..ImageFilter::default()
    };
    let mut walked = Vec::new();
    let mut start = PageStart::Offset(0);
    loop {
        let page = PageRequest { start, limit: 3 };
        let page = world.store.list_images(&own, &page).await.unwrap();
        assert_eq!((page.total.count, page.total.exact), (7, true));
        walked.extend(page.rows);
        match page.next {
            Some(next) => start = PageStart::After(next),
            None => break,
        }
    }
    assert_eq!(walked, expected);
    let offset = PageRequest {
        start: PageStart::Offset(4),
        limit: 2,
    };
    let page = world.store.list_images(&own, &offset).await.unwrap();
    assert_eq!(page.rows, expected[4..6]);
    let count = |filter: ImageFilter| {
        let store = world.store.clone();
        async move {
            let page = store
                .list_images(&filter, &PageRequest::first(0))
                .await
                .unwrap();
            assert!(page.rows.is_empty() && page.next.is_none());
            page.total.count
        }
    };
    let label = |text: &str| LabelFilter::parse(text).unwrap();
    let with = |of: &[&str]| ImageFilter {
        labels: of.iter().map(|text| label(text)).collect(),
        ..own.clone()
    };
    assert_eq!(count(ImageFilter::default()).await, 8);
    assert_eq!(count(with(&["odd"])).await, 6);
    assert_eq!(count(with(&["odd=yes"])).await, 3);
    assert_eq!(count(with(&["odd=yes", "odd=no"])).await, 0);
    let named = |name: &str| ImageFilter {
        name: Some(name.to_owned()),
        ..ImageFilter::default()
    };
    assert_eq!(count(named("n-1")).await, 2);
    assert_eq!(count(named("n-")).await, 0, "a name is whole");
}
