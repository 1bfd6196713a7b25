//! Checkpoints: a name is saved once, and what was saved is never lost.

use bytes::Bytes;
use runtara_domain::{Checkpointed, EventKind, Refusal, SaveCheckpoint, Word, limits};

use super::Harness;
use super::make::{checkpoint, refusal, save, sleep};
use super::world::World;
use crate::{CheckpointFilter, PageRequest, PageStart};

/// What was saved is found, what is sent again is dropped.
pub async fn a_name_is_saved_once(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let nothing = Checkpointed::default();
    assert_eq!(run.save("step", b"first").await, nothing);
    let found = run.save("step", b"second").await;
    assert_eq!(found.found.as_deref(), Some(&b"first"[..]));
    assert_eq!(
        world.state_saved(run.id(), "step").await.as_deref(),
        Some(&b"first"[..])
    );
    assert_eq!(world.saved(run.id()).await, [("step".to_owned(), 5)]);
    let next = run.lose().await;
    let replayed = next.save("step", b"third").await;
    assert_eq!(replayed.found.as_deref(), Some(&b"first"[..]));
}

/// An empty state only looks.
pub async fn an_empty_state_only_looks(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    assert_eq!(run.save("step", b"").await.found, None);
    assert!(world.saved(run.id()).await.is_empty());
    let state = world.state(run.id()).await;
    assert!(state.run.spoke && !state.run.stored_new);
    assert_eq!(state.checkpoint_id, None);
    run.save("step", b"s").await;
    assert_eq!(
        run.save("step", b"").await.found.as_deref(),
        Some(&b"s"[..])
    );
}

/// A new checkpoint is progress: crashes are forgotten, and the instance goes on from there.
pub async fn a_new_checkpoint_is_progress(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let first = world.launch("order-1").await;
    first.register().await;
    first.exit(super::make::exit_code(1)).await;
    world.advance(120_000).await;
    let run = world.claim_only(first.id()).await;
    assert_eq!(world.state(run.id()).await.attempts.crash_count, 1);
    run.save("step", b"s").await;
    let state = world.state(run.id()).await;
    assert_eq!(state.attempts.crash_count, 0);
    assert!(state.run.stored_new);
    assert_eq!(state.checkpoint_id, Some(checkpoint("step")));
}

/// The repetition of the request that saved is told that it saved; another request is told what was saved.
pub async fn a_repeated_request_is_told_that_it_saved(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let request = SaveCheckpoint {
        request_id: Some("r-1".to_owned()),
        ..save("step", b"first")
    };
    for _ in 0..3 {
        assert_eq!(run.save_as(request.clone()).await, Checkpointed::default());
    }
    let other = SaveCheckpoint {
        request_id: Some("r-2".to_owned()),
        ..save("step", b"second")
    };
    assert_eq!(
        run.save_as(other).await.found.as_deref(),
        Some(&b"first"[..])
    );
    assert_eq!(
        run.save("step", b"x").await.found.as_deref(),
        Some(&b"first"[..])
    );
    assert_eq!(world.saved(run.id()).await.len(), 1);
}

/// Two savers of one name at once: one saves, the other is told what was saved. Many rounds.
pub async fn two_savers_of_one_name_agree(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    for round in 0..50 {
        let savers: Vec<_> = (0..4)
            .map(|saver| {
                let (store, caller) = (world.store.clone(), run.caller.clone());
                let request = save(&format!("step-{round}"), format!("by {saver}").as_bytes());
                tokio::spawn(async move {
                    let mine = request.state.clone();
                    let answer = store.save_checkpoint(&caller, request).await;
                    (mine, answer.expect("a save is answered").found)
                })
            })
            .collect();
        let mut winners = Vec::new();
        let mut found = Vec::new();
        for saver in savers {
            match saver.await.expect("no saver panics") {
                (mine, None) => winners.push(mine),
                (_, Some(state)) => found.push(state),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        assert_eq!(found, vec![winners[0].clone(); 3], "round {round}");
    }
    assert_eq!(world.saved(run.id()).await.len(), 50);
}

/// Checkpoints of many instances that are saved at once are each in their own order, without gaps.
pub async fn savers_of_many_instances_do_not_mix(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for n in 0..8 {
        world.start(&format!("i-{n}")).await;
    }
    let runs: Vec<_> = world.claim(8).await;
    let savers: Vec<_> = runs
        .iter()
        .map(|claimed| {
            let caller = super::world::Run::of(&world, claimed).caller;
            let store = world.store.clone();
            tokio::spawn(async move {
                for n in 0..40 {
                    let state = format!("{} {n}", caller.instance_id);
                    let request = save(&format!("step-{n}"), state.as_bytes());
                    let answer = store.save_checkpoint(&caller, request).await;
                    assert_eq!(answer.expect("a save is answered").found, None);
                }
            })
        })
        .collect();
    for saver in savers {
        saver.await.expect("no saver panics");
    }
    for claimed in &runs {
        let id = &claimed.instance_id;
        let names: Vec<_> = world
            .saved(id)
            .await
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let expected: Vec<_> = (0..40).map(|n| format!("step-{n}")).collect();
        assert_eq!(names, expected);
        let last = world.state_saved(id, "step-39").await;
        assert_eq!(last, Some(Bytes::from(format!("{id} 39"))));
    }
}

/// A state that is told with the last word is saved: under its name if that is free, else as its newest version.
pub async fn a_word_brings_a_state(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let mut run = world.launch("order-1").await;
    for (n, state) in [&b"one"[..], b"twoo", b"three"].into_iter().enumerate() {
        let now = world.now();
        let said = run
            .say(Word::SuspendedUntil {
                wake_at: now.plus_millis(1_000),
                checkpoint_id: checkpoint("nap"),
                state: Bytes::copy_from_slice(state),
            })
            .await;
        assert!(said.applied);
        assert_eq!(said.state.due_at, Some(now.plus_millis(1_000)));
        assert_eq!(said.state.checkpoint_id, Some(checkpoint("nap")));
        let late = run
            .say(Word::SuspendedUntil {
                wake_at: now,
                checkpoint_id: checkpoint("late"),
                state: Bytes::from_static(b"late"),
            })
            .await;
        assert!(!late.applied);
        assert_eq!(
            world.state_saved(run.id(), "nap").await.as_deref(),
            Some(state)
        );
        assert_eq!(world.saved(run.id()).await.len(), n + 1);
        run.exit(super::make::exit_code(0)).await;
        world.advance(1_000).await;
        run = world.claim_only(&run.caller.instance_id.clone()).await;
    }
    let found = run.save("nap", b"again").await;
    assert_eq!(found.found.as_deref(), Some(&b"three"[..]));
    assert_eq!(world.state_saved(run.id(), "late").await, None);
}

/// Plain saves, sleeps and last words under one name follow each other; reads give the newest.
pub async fn versions_of_a_name_follow_each_other(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.save("n", b"1").await;
    run.wait(sleep(Some("n"), 1_000, b"22")).await;
    run.wait(sleep(Some("n"), 1_000, b"333")).await;
    let now = world.now();
    run.say(Word::SuspendedUntil {
        wake_at: now,
        checkpoint_id: checkpoint("n"),
        state: Bytes::from_static(b"4444"),
    })
    .await;
    run.exit(super::make::exit_code(0)).await;
    let run = world.claim_only(run.id()).await;
    run.save("other", b"o").await;
    run.wait(sleep(Some("n"), 1_000, b"55555")).await;
    let n = |size| ("n".to_owned(), size);
    let saved = world.saved(run.id()).await;
    assert_eq!(
        saved,
        [n(1), n(2), n(3), n(4), ("other".to_owned(), 1), n(5)]
    );
    assert_eq!(
        world.state_saved(run.id(), "n").await.as_deref(),
        Some(&b"55555"[..])
    );
    assert_eq!(
        run.save("n", b"x").await.found.as_deref(),
        Some(&b"55555"[..])
    );
}

/// A retry is listed and recorded with its error, once, and is no checkpoint.
pub async fn a_retry_is_listed_and_is_no_checkpoint(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    for _ in 0..2 {
        run.retry("pay", 2, Some("connection refused")).await;
    }
    run.retry("pay", 3, None).await;
    let retry = |n| (format!("pay::retry::{n}"), 0);
    assert_eq!(world.saved(run.id()).await, [retry(2), retry(3)]);
    assert_eq!(world.state_saved(run.id(), "pay").await, None);
    let record = world.state_saved(run.id(), "pay::retry::2").await;
    assert_eq!(record.as_deref(), Some(b"".as_slice()), "it is listed");
    assert_eq!(run.save("pay::retry::2", b"s").await.found, None);
    let saved = world.state_saved(run.id(), "pay::retry::2").await;
    assert_eq!(saved.as_deref(), Some(b"s".as_slice()));
    let events = world.events(run.id()).await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].kind, EventKind::Custom);
    assert_eq!(events[0].subtype.as_deref(), Some("runtara.retry"));
    let payload = events[0]
        .payload
        .as_deref()
        .expect("a retry says what failed");
    let payload: serde_json::Value = serde_json::from_slice(payload).expect("it is JSON");
    let expected = serde_json::json!({
        "checkpoint_id": "pay", "attempt": 2, "error": "connection refused",
    });
    assert_eq!(payload, expected);
}

/// The longest name has room for its retries.
pub async fn the_longest_name_can_be_retried(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let longest = "n".repeat(limits::CHECKPOINT_ID_BYTES);
    run.save(&longest, b"s").await;
    run.retry(&longest, 2, None).await;
    assert_eq!(world.saved(run.id()).await.len(), 2);
}

/// The list is newest first, filtered by name and time, and its pages meet without a gap.
pub async fn the_list_is_cut_into_pages(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let mut times = Vec::new();
    for n in 0..7 {
        run.save(&format!("step-{n}"), &vec![b'x'; n + 1]).await;
        times.push(world.now());
        world.advance(10).await;
    }
    let list = |filter: CheckpointFilter, start, limit| {
        let (store, id) = (world.store.clone(), run.id().clone());
        async move {
            let page = PageRequest { start, limit };
            store
                .list_checkpoints(&id, &filter, &page)
                .await
                .expect("a list is answered")
        }
    };
    let any = CheckpointFilter::default;
    let mut walked = Vec::new();
    let mut start = PageStart::Offset(0);
    loop {
        let page = list(any(), start, 3).await;
        assert_eq!((page.total.count, page.total.exact), (7, true));
        walked.extend(page.rows.iter().map(|row| (row.seq, row.size)));
        match page.next {
            Some(next) => start = PageStart::After(next),
            None => break,
        }
    }
    let sizes: Vec<_> = walked.iter().map(|(_, size)| *size).collect();
    assert_eq!(sizes, [7, 6, 5, 4, 3, 2, 1]);
    assert!(
        walked.is_sorted_by(|newer, older| newer.0 > older.0),
        "{walked:?}"
    );
    let second = list(any(), PageStart::Offset(5), 3).await;
    assert_eq!(second.rows.len(), 2);
    assert_eq!(second.next, None);
    let between = CheckpointFilter {
        created_after: Some(times[2]),
        created_before: Some(times[4]),
        ..any()
    };
    let rows = list(between, PageStart::Offset(0), 9).await.rows;
    let rows: Vec<_> = rows
        .iter()
        .map(|row| (row.checkpoint_id.as_str(), row.created_at))
        .collect();
    assert_eq!(rows, [("step-3", times[3]), ("step-2", times[2])]);
    let named = CheckpointFilter {
        checkpoint_id: Some("step-4".to_owned()),
        ..any()
    };
    let page = list(named, PageStart::Offset(0), 9).await;
    assert_eq!((page.rows[0].seq, page.total.count), (walked[2].0, 1));
    assert_eq!(page.rows[0].run_number, run.run_number);
    let none = list(any(), PageStart::Offset(0), 0).await;
    assert_eq!((none.rows.len(), none.next, none.total.count), (0, None, 7));
}

/// A save after the end, and a save by a run that is over, are refused and save nothing.
pub async fn a_save_after_the_end_is_refused(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.complete(b"1").await;
    let answer = world
        .store
        .save_checkpoint(&run.caller, save("late", b"s"))
        .await;
    let status = runtara_domain::Status::Completed;
    assert_eq!(refusal(answer), Some(Refusal::InstanceEnded { status }));
    assert!(world.saved(run.id()).await.is_empty());
}

/// A save that meets the end of its run is either before it or refused: what was answered with success is there, and after the end
/// nothing is added.
pub async fn a_save_and_an_end_do_not_cross(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for round in 0..10 {
        let run = world.launch(&format!("order-{round}")).await;
        run.register().await;
        run.save("first", b"s").await;
        let (store, caller) = (world.store.clone(), run.caller.clone());
        let saver = tokio::spawn(async move {
            let mut saved = 0;
            while store
                .save_checkpoint(&caller, save(&format!("step-{saved}"), b"s"))
                .await
                .is_ok()
            {
                saved += 1;
            }
            saved
        });
        tokio::task::yield_now().await;
        run.complete(b"1").await;
        let at_the_end = world.saved(run.id()).await.len();
        let answered: usize = saver.await.expect("it is refused in the end");
        assert_eq!(at_the_end, answered + 1);
        assert_eq!(world.saved(run.id()).await.len(), answered + 1);
    }
}
