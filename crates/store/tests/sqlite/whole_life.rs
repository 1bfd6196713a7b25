//! An instance from its start to its purge, through every method of the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use runtara_domain::{
    Caller, Change, CheckpointId, EndedBy, EventKind, ExitCause, Fence, InstanceId, LabelFilter,
    Labels, NewEvent, NodeId, RunExit, RunnerKind, SignalId, Status, Timestamp, WaitCall, WaitKind,
    Word, subtype,
};
use runtara_store::sqlite::{SqliteOptions, SqliteStore};
use runtara_store::{
    CheckpointFilter, EventFilter, ImageDeletion, ImageFilter, InstanceFilter, InstanceOrder,
    ManualClock, MetricsQuery, NodeLease, PageRequest, PageStart, Purge, Started, StepFilter,
    StepStatus, Store, WaitKey, WaitRequest, Waiting,
};

use super::support::{caller, claim, image, save, start, tenant};

const FIRST: PageRequest = PageRequest {
    start: PageStart::Offset(0),
    limit: 10,
};

async fn fresh() -> (tempfile::TempDir, Arc<ManualClock>, SqliteStore) {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
    let url = format!("sqlite:{}", directory.path().join("new/a.db").display());
    let options = SqliteOptions::new(&url).unwrap().clock(clock.clone());
    let store = SqliteStore::open(options).await.unwrap();
    store.register_image(image()).await.unwrap();
    (directory, clock, store)
}

fn event(kind: &str, payload: &'static str) -> NewEvent {
    NewEvent::custom(Some(kind.to_owned()), None, Some(Bytes::from(payload)))
}

fn sleep(name: &str, ms: u64) -> WaitRequest {
    WaitRequest {
        key: WaitKey::Sleep(CheckpointId::new(name).ok()),
        call: WaitCall {
            kind: WaitKind::Sleep,
            identified: true,
            duration_ms: Some(ms),
            state_hash: [1; 32],
            request_id: None,
            named: false,
            park: true,
        },
        state: Bytes::from_static(b"sleeping"),
        hold_ms: 10_000,
    }
}

#[tokio::test]
async fn an_instance_lives_sleeps_ends_and_is_removed() {
    let (_directory, clock, store) = fresh().await;
    let new = {
        let mut new = start("order-1");
        new.labels = Labels::new(BTreeMap::from([("team".to_owned(), "a".to_owned())])).unwrap();
        new.env = BTreeMap::from([("KEY".to_owned(), "secret".to_owned())]);
        new.args = vec!["--fast".to_owned()];
        new
    };
    let id = new.instance_id.clone();
    let started = store.start_instance(new.clone()).await.unwrap();
    assert!(matches!(started, Started::New(_)), "{started:?}");
    let again = store.start_instance(new.clone()).await.unwrap();
    assert!(matches!(again, Started::Same(_)), "{again:?}");
    let runs = claim(&store, 5).await;
    assert_eq!(runs.len(), 1);
    assert_eq!(runs[0].env, new.env);
    assert_eq!(runs[0].args, new.args);
    assert_eq!(runs[0].input.as_deref(), Some(&b"{}"[..]));
    let me = caller(&runs[0]);
    store.register_instance(&me, &tenant(), None).await.unwrap();
    let saved = store.save_checkpoint(&me, save("one", "1")).await.unwrap();
    assert_eq!(saved.found, None);
    let found = store.save_checkpoint(&me, save("one", "2")).await.unwrap();
    assert_eq!(found.found.as_deref(), Some(&b"1"[..]));
    store.heartbeat(&me).await.unwrap();
    store
        .record_retry(&me, &CheckpointId::new("one").unwrap(), 2, None)
        .await
        .unwrap();
    let signal = SignalId::new("go").unwrap();
    store
        .send_signal(&id, &signal, Some(Bytes::from_static(b"now")))
        .await
        .unwrap();
    let taken = store.take_signal(&me, &signal, None).await.unwrap();
    assert_eq!(taken, Some(Some(Bytes::from_static(b"now"))));
    assert_eq!(store.take_signal(&me, &signal, None).await.unwrap(), None);
    assert_eq!(store.poll_signal(&me).await.unwrap(), None);
    let far = store.begin_wait(&me, sleep("nap", 60_000)).await.unwrap();
    assert_eq!(far, Waiting::Parked);
    let asleep = store.instance(&id).await.unwrap().unwrap();
    assert_eq!(asleep.state.status, Status::Suspended);
    assert_eq!(asleep.image_name.as_deref(), Some("orders"));
    assert_eq!(asleep.labels, new.labels);
    let live = store.live_run(&id).await.unwrap().unwrap();
    assert_eq!(live.leave_in_ms, Some(0));
    let exit = RunExit {
        cause: ExitCause::Signal(9),
        ended_by: Some(EndedBy::Leaving),
        stderr: "bye".to_owned(),
        ..RunExit::lost()
    };
    let exit = Change::Exit {
        run_number: live.run_number,
        exit,
        our_fault: false,
    };
    assert!(store.change(&id, exit).await.unwrap().applied);
    let due = store.next_due(&[RunnerKind::Native]).await.unwrap();
    assert_eq!(due.in_ms, Some(60_000));
    clock.advance_millis(60_000);
    let runs = claim(&store, 1).await;
    let me = caller(&runs[0]);
    let over = store.begin_wait(&me, sleep("nap", 60_000)).await.unwrap();
    assert!(
        matches!(over, Waiting::Over { elapsed: true, .. }),
        "{over:?}"
    );
    let near = store.begin_wait(&me, sleep("nap", 5_000)).await.unwrap();
    let Waiting::Held(held) = near else {
        panic!("{near:?}");
    };
    let parked = store.continue_wait(&me, &held, false).await.unwrap();
    assert!(matches!(parked, Waiting::Held(_)), "{parked:?}");
    clock.advance_millis(5_000);
    let over = store.continue_wait(&me, &held, false).await.unwrap();
    assert!(
        matches!(over, Waiting::Over { elapsed: true, .. }),
        "{over:?}"
    );
    let done = Word::Completed {
        output: Some(Bytes::from_static(b"42")),
    };
    assert!(store.say(&me, done.clone(), false).await.unwrap().applied);
    assert!(!store.say(&me, done, false).await.unwrap().applied);
    let values = store.instance_values(&id).await.unwrap().unwrap();
    assert_eq!(values.output.as_deref(), Some(&b"42"[..]));
    assert_eq!(values.stderr.as_deref(), Some("bye"));
    assert_eq!(
        store.purge_instance(&id).await.unwrap(),
        Purge::ProcessLeaving
    );
    let exit = Change::Exit {
        run_number: runs[0].run_number,
        exit: RunExit::lost(),
        our_fault: false,
    };
    store.change(&id, exit).await.unwrap();
    let saved = store
        .list_checkpoints(&id, &CheckpointFilter::default(), &FIRST)
        .await
        .unwrap();
    let names: Vec<_> = saved
        .rows
        .iter()
        .map(|row| row.checkpoint_id.as_str())
        .collect();
    assert_eq!(names, ["nap", "nap", "one::retry::2", "one"]);
    let query = MetricsQuery {
        tenant_id: tenant(),
        start: Timestamp(0),
        end: Timestamp(i64::MAX),
        bucket_ms: 3_600_000,
    };
    let buckets = store.tenant_metrics(&query).await.unwrap();
    assert_eq!((buckets.len(), buckets[0].completed), (1, 1));
    assert_eq!(buckets[0].avg_duration_ms, Some(65_000.0));
    assert_eq!(store.purge_instance(&id).await.unwrap(), Purge::Purged);
    assert_eq!(store.purge_instance(&id).await.unwrap(), Purge::NotFound);
    store.close().await;
    assert!(store.ping().await.is_err());
}

#[tokio::test]
async fn steps_scopes_and_events_are_found_again() {
    let (_directory, _clock, store) = fresh().await;
    let id = InstanceId::new("self-1").unwrap();
    let me = Caller {
        instance_id: id.clone(),
        fence: Fence::SelfRegistered,
    };
    store.register_instance(&me, &tenant(), None).await.unwrap();
    let outer = r#"{"scope_id":"a","step_id":"s1"}"#;
    let inner = r#"{"scope_id":"b","parent_scope_id":"a","step_id":"s1"}"#;
    let failed = r#"{"scope_id":"b","step_id":"s1","error":"Größe"}"#;
    for (kind, payload) in [
        (subtype::SCOPE_ENTER, outer),
        (subtype::SCOPE_ENTER, inner),
        (subtype::STEP_START, outer),
        (subtype::STEP_START, inner),
        (subtype::STEP_END, failed),
        (subtype::STEP_END, failed),
        (subtype::STEP_START, inner),
    ] {
        store
            .record_event(&me, event(kind, payload), None)
            .await
            .unwrap();
    }
    for _ in 0..2 {
        let named = Some("request-1".to_owned());
        store
            .record_event(&me, event("x", "plain"), named)
            .await
            .unwrap();
    }
    let steps = |filter| {
        let (store, id) = (&store, &id);
        async move { store.list_steps(id, &filter, &FIRST).await.unwrap() }
    };
    let all = steps(StepFilter::default()).await;
    let statuses: Vec<_> = all.rows.iter().map(|step| step.status).collect();
    assert_eq!(
        statuses,
        [StepStatus::Running, StepStatus::Failed, StepStatus::Running]
    );
    let some = StepFilter {
        step_ids: vec!["s1".to_owned(), "s2".to_owned()],
        status: Some(StepStatus::Failed),
        ..StepFilter::default()
    };
    assert_eq!(steps(some).await.rows.len(), 1);
    let scopes = store.scope_ancestors(&id, "b").await.unwrap();
    let payloads: Vec<_> = scopes.iter().map(|scope| &scope.payload[..]).collect();
    assert_eq!(payloads, [inner.as_bytes(), outer.as_bytes()]);
    let events = |filter| {
        let (store, id) = (&store, &id);
        async move { store.list_events(id, &filter, &FIRST).await.unwrap() }
    };
    let all = events(EventFilter::default()).await;
    assert_eq!(all.total.count, 9, "the repeated request is one event");
    assert_eq!(all.rows.last().unwrap().kind, EventKind::Started);
    let found = EventFilter {
        payload_contains: Some("gRößE".to_owned()),
        ..EventFilter::default()
    };
    assert_eq!(events(found).await.total.count, 2);
    let roots = EventFilter {
        root_scopes_only: true,
        scope_id: Some("a".to_owned()),
        ascending: true,
        ..EventFilter::default()
    };
    assert_eq!(events(roots).await.rows.len(), 2);
}

#[tokio::test]
async fn nodes_images_and_labels_are_kept() {
    let (_directory, clock, store) = fresh().await;
    let lease = |node, name: &str| NodeLease::new(node, name, 15_000);
    let (one, two) = (NodeId::generate(), NodeId::generate());
    assert_eq!(store.renew_node(lease(one, "one")).await.unwrap().others, 0);
    let refused = store.renew_node(lease(two, "two")).await.unwrap_err();
    assert!(refused.to_string().contains("one node"), "{refused}");
    clock.advance_millis(15_000);
    assert_eq!(store.renew_node(lease(two, "two")).await.unwrap().others, 1);
    assert_eq!(store.expire_nodes(two, 10).await.unwrap(), []);
    store.release_node(one).await.unwrap();
    let images = store
        .list_images(&ImageFilter::default(), &FIRST)
        .await
        .unwrap();
    assert_eq!((images.rows.len(), images.total.count), (1, 1));
    let id = image().image_id;
    for (name, label) in [("a", "x"), ("b", "y")] {
        let mut new = start(name);
        new.labels = Labels::new(BTreeMap::from([("team".to_owned(), label.to_owned())])).unwrap();
        store.start_instance(new).await.unwrap();
    }
    assert_eq!(
        store.delete_image(&id).await.unwrap(),
        ImageDeletion::InUse(2)
    );
    for (labels, expected) in [
        (vec!["team"], 2),
        (vec!["team=x"], 1),
        (vec!["team", "team=y"], 1),
    ] {
        for order in [
            InstanceOrder::CreatedAscending,
            InstanceOrder::FinishedDescending,
        ] {
            let filter = InstanceFilter {
                tenant_id: Some(tenant()),
                labels: labels
                    .iter()
                    .map(|text| LabelFilter::parse(text).unwrap())
                    .collect(),
                ..InstanceFilter::default()
            };
            let found = store.list_instances(&filter, order, &FIRST).await.unwrap();
            assert_eq!(found.rows.len(), expected, "{labels:?}");
            assert_eq!(found.total.count, expected as u64, "{labels:?}");
        }
    }
    for name in ["a", "b"] {
        let id = InstanceId::new(name).unwrap();
        let cancelled = store
            .change(&id, Change::Cancel { payload: None })
            .await
            .unwrap();
        assert_eq!(cancelled.state.status, Status::Cancelled);
    }
    assert_eq!(
        store.delete_image(&id).await.unwrap(),
        ImageDeletion::Deleted
    );
    assert_eq!(store.remove_unneeded_images(10).await.unwrap(), []);
    for name in ["a", "b"] {
        let id = InstanceId::new(name).unwrap();
        assert_eq!(store.purge_instance(&id).await.unwrap(), Purge::Purged);
    }
    assert_eq!(
        store.remove_unneeded_images(10).await.unwrap(),
        [image().digest]
    );
    assert!(!store.is_content_needed(&image().digest).await.unwrap());
}
