//! Steps and scopes, which are derived from events.

use bytes::Bytes;
use serde_json::json;

use super::Harness;
use super::world::{Run, World};
use crate::{PageRequest, PageStart, StepFilter, StepStatus, StepSummary};

async fn begin(run: &Run<'_>, step: &str, scope: Option<&str>, more: &[(&str, &str)]) {
    let mut payload = json!({ "step_id": step, "scope_id": scope });
    for (key, value) in more {
        payload[*key] = json!(value);
    }
    run.event("step_debug_start", payload.to_string().as_bytes())
        .await;
}

async fn end(run: &Run<'_>, step: &str, scope: Option<&str>, error: Option<&str>) {
    let payload = json!({ "step_id": step, "scope_id": scope, "error": error });
    run.event("step_debug_end", payload.to_string().as_bytes())
        .await;
}

async fn steps(world: &World<'_>, run: &Run<'_>, filter: StepFilter) -> Vec<StepSummary> {
    let page = PageRequest::first(100);
    let page = world.store.list_steps(run.id(), &filter, &page).await;
    let page = page.expect("steps are listed");
    assert_eq!(page.total.count, page.rows.len() as u64, "{filter:?}");
    page.rows
}

fn oldest_first() -> StepFilter {
    StepFilter {
        ascending: true,
        ..StepFilter::default()
    }
}

fn seqs(steps: &[StepSummary]) -> Vec<u64> {
    steps.iter().map(|step| step.seq).collect()
}

/// A step takes as long as it takes, minutes included, and its payloads are kept as they came.
pub async fn a_step_takes_as_long_as_it_takes(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let began = world.now();
    begin(&run, "charge", None, &[]).await;
    world.advance(3 * 60_000 + 7).await;
    end(&run, "charge", None, None).await;
    let found = steps(&world, &run, oldest_first()).await;
    let start = json!({ "step_id": "charge", "scope_id": null }).to_string();
    let done = json!({ "step_id": "charge", "scope_id": null, "error": null }).to_string();
    let expected = StepSummary {
        seq: 1,
        start: Bytes::from(start),
        started_at: began,
        end: Some(Bytes::from(done)),
        ended_at: Some(began.plus_millis(180_007)),
        status: StepStatus::Completed,
    };
    assert_eq!(found, [expected]);
}

/// A step that is repeated is a step each time, each with its own end.
pub async fn a_repeated_step_has_its_own_end(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    begin(&run, "a", None, &[]).await; // 1
    begin(&run, "a", None, &[]).await; // 2: the first was cut off
    end(&run, "a", None, Some("no")).await; // 3
    end(&run, "a", None, None).await; // 4: of nothing
    begin(&run, "a", None, &[]).await; // 5
    begin(&run, "b", None, &[]).await; // 6
    end(&run, "a", None, None).await; // 7
    let found = steps(&world, &run, oldest_first()).await;
    let stands: Vec<_> = found.iter().map(|step| (step.seq, step.status)).collect();
    use StepStatus::{Completed, Failed, Running};
    assert_eq!(
        stands,
        [(1, Running), (2, Failed), (5, Completed), (6, Running)]
    );
    let newest_first = steps(&world, &run, StepFilter::default()).await;
    assert_eq!(seqs(&newest_first), [6, 5, 2, 1]);
}

/// The same step in another scope is another step, and so is one in no scope.
pub async fn scopes_keep_steps_apart(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    begin(&run, "a", Some("x"), &[]).await; // 1
    begin(&run, "a", Some("y"), &[]).await; // 2
    begin(&run, "a", None, &[]).await; // 3
    end(&run, "a", Some("y"), None).await; // 4
    end(&run, "a", None, Some("no")).await; // 5
    let found = steps(&world, &run, oldest_first()).await;
    let stands: Vec<_> = found.iter().map(|step| step.status).collect();
    use StepStatus::{Completed, Failed, Running};
    assert_eq!(stands, [Running, Completed, Failed]);
    let in_x = StepFilter {
        scope_id: Some("x".to_owned()),
        ..oldest_first()
    };
    assert_eq!(seqs(&steps(&world, &run, in_x).await), [1]);
}

/// Texts that a separator would join to the same are kept apart.
pub async fn step_and_scope_are_not_mixed_up(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    for (step, scope) in [
        ("a:b", Some("c")),
        ("a", Some("b:c")),
        ("a", Some("")),
        ("a", None),
    ] {
        begin(&run, step, scope, &[]).await;
    }
    end(&run, "a", Some("b:c"), None).await;
    end(&run, "a", None, None).await;
    let found = steps(&world, &run, oldest_first()).await;
    let ended: Vec<_> = found.iter().map(|step| step.end.is_some()).collect();
    assert_eq!(ended, [false, true, false, true]);
}

/// What is no step, or names none, is not among them, and disturbs nothing.
pub async fn other_events_are_no_steps(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.register().await;
    run.event("step_debug_start", b"plain text").await;
    run.event("step_debug_start", b"\xff").await;
    run.event("step_debug_start", br#"{"step_id":7}"#).await;
    run.event("step_debug_end", b"plain text").await;
    run.event("other", br#"{"step_id":"a"}"#).await;
    begin(&run, "a", None, &[]).await; // 7
    run.event("step_debug_end", br#"{"step_id":"a","error":{"code":7}}"#)
        .await;
    let found = steps(&world, &run, oldest_first()).await;
    assert_eq!(seqs(&found), [7]);
    assert_eq!(found[0].status, StepStatus::Failed);
}

/// Each filter finds what it names.
pub async fn steps_are_found(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let (http, sql) = (("step_type", "http"), ("step_type", "sql"));
    begin(&run, "a", None, &[http]).await; // 1
    begin(&run, "b", Some("x"), &[sql]).await; // 2
    begin(&run, "c", Some("y"), &[http, ("parent_scope_id", "x")]).await; // 3
    end(&run, "a", None, None).await; // 4
    end(&run, "b", Some("x"), Some("no")).await; // 5
    let find = |change: fn(&mut StepFilter)| {
        let mut filter = oldest_first();
        change(&mut filter);
        let (world, run) = (&world, &run);
        async move { seqs(&steps(world, run, filter).await) }
    };
    assert_eq!(find(|f| f.status = Some(StepStatus::Completed)).await, [1]);
    assert_eq!(find(|f| f.status = Some(StepStatus::Failed)).await, [2]);
    assert_eq!(find(|f| f.status = Some(StepStatus::Running)).await, [3]);
    assert_eq!(find(|f| f.step_type = Some("http".into())).await, [1, 3]);
    assert_eq!(find(|f| f.scope_id = Some("x".into())).await, [2]);
    assert_eq!(find(|f| f.parent_scope_id = Some("x".into())).await, [3]);
    assert_eq!(find(|f| f.root_scopes_only = true).await, [1, 2]);
    assert_eq!(
        find(|f| f.step_ids = vec!["c".into(), "a".into(), "z".into()]).await,
        [1, 3]
    );
    let both = |f: &mut StepFilter| {
        f.step_type = Some("http".into());
        f.status = Some(StepStatus::Running);
    };
    assert_eq!(find(both).await, [3]);
}

/// Pages of steps meet without a gap.
pub async fn pages_of_steps_meet(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    for n in 0..7 {
        begin(&run, &format!("s-{n}"), None, &[]).await;
        end(&run, &format!("s-{n}"), None, None).await;
    }
    for ascending in [true, false] {
        let filter = StepFilter {
            ascending,
            ..StepFilter::default()
        };
        let mut walked = Vec::new();
        let mut start = PageStart::Offset(0);
        loop {
            let page = PageRequest { start, limit: 3 };
            let page = world
                .store
                .list_steps(run.id(), &filter, &page)
                .await
                .unwrap();
            assert_eq!(page.total.count, 7);
            walked.extend(seqs(&page.rows));
            match page.next {
                Some(next) => start = PageStart::After(next),
                None => break,
            }
        }
        let mut expected = vec![1, 3, 5, 7, 9, 11, 13];
        if !ascending {
            expected.reverse();
        }
        assert_eq!(walked, expected);
        let middle = PageRequest {
            start: PageStart::Offset(5),
            limit: 9,
        };
        let middle = world
            .store
            .list_steps(run.id(), &filter, &middle)
            .await
            .unwrap();
        assert_eq!(seqs(&middle.rows), expected[5..]);
    }
}

async fn enter(run: &Run<'_>, scope: &str, parent: Option<&str>) {
    let payload = json!({ "scope_id": scope, "parent_scope_id": parent });
    run.event("scope_enter", payload.to_string().as_bytes())
        .await;
}

async fn outward(world: &World<'_>, run: &Run<'_>, scope: &str) -> Vec<String> {
    let scopes = world.store.scope_ancestors(run.id(), scope).await.unwrap();
    let id = |payload: &[u8]| {
        let payload: serde_json::Value = serde_json::from_slice(payload).expect("it is JSON");
        payload["scope_id"]
            .as_str()
            .expect("it has an id")
            .to_owned()
    };
    scopes.iter().map(|scope| id(&scope.payload)).collect()
}

/// A scope comes first, then those around it; a parent that was never entered ends the list.
pub async fn scopes_lead_outward(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    enter(&run, "root", None).await;
    enter(&run, "loop", Some("root")).await;
    enter(&run, "body", Some("loop")).await;
    enter(&run, "orphan", Some("nobody")).await;
    assert_eq!(
        outward(&world, &run, "body").await,
        ["body", "loop", "root"]
    );
    assert_eq!(outward(&world, &run, "root").await, ["root"]);
    assert_eq!(outward(&world, &run, "orphan").await, ["orphan"]);
    assert!(outward(&world, &run, "nobody").await.is_empty());
}

/// A scope that was entered again counts as it was entered last.
pub async fn a_scope_counts_as_entered_last(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    enter(&run, "body", Some("nobody")).await;
    enter(&run, "root", None).await;
    world.advance(9).await;
    enter(&run, "body", Some("root")).await;
    assert_eq!(outward(&world, &run, "body").await, ["body", "root"]);
    let scopes = world.store.scope_ancestors(run.id(), "body").await.unwrap();
    assert_eq!(scopes[0].created_at, world.now());
}

/// Scopes that are each other's parents end where they meet again; a long chain is cut.
pub async fn scopes_in_a_ring_end(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    enter(&run, "itself", Some("itself")).await;
    assert_eq!(outward(&world, &run, "itself").await, ["itself"]);
    for (scope, parent) in [("a", "b"), ("b", "c"), ("c", "a")] {
        enter(&run, scope, Some(parent)).await;
    }
    assert_eq!(outward(&world, &run, "b").await, ["b", "c", "a"]);
    for n in 0..1_005 {
        enter(&run, &format!("n-{n}"), Some(&format!("n-{}", n + 1))).await;
    }
    assert_eq!(outward(&world, &run, "n-0").await.len(), 1_000);
    assert_eq!(outward(&world, &run, "n-1000").await.len(), 5);
}
