//! Checkpoints, events and steps of one instance.

use runtara_domain::{EventKind, InstanceId, Timestamp};
use runtara_store::postgres::PostgresStore;
use runtara_store::{
    CheckpointFilter, EventFilter, PageRequest, StepFilter, StepStatus, Store as _,
};

use crate::case::{Case, PAGES};

async fn rare_events(store: &PostgresStore, filter: EventFilter, count: u64) {
    let rare = InstanceId::new("rare").unwrap();
    let page = PageRequest::first(50);
    let found = store.list_events(&rare, &filter, &page).await.unwrap();
    assert_eq!(found.total.count, count, "{filter:?}");
}

async fn rare_steps(store: &PostgresStore, filter: StepFilter, count: u64) {
    let rare = InstanceId::new("rare").unwrap();
    let page = PageRequest::first(50);
    let found = store.list_steps(&rare, &filter, &page).await.unwrap();
    assert_eq!(found.total.count, count, "{filter:?}");
}

pub(crate) const CASES: &[Case] = &[
    Case {
        what: "checkpoints of an instance",
        index: "runtara_checkpoints_pkey",
        entries: PAGES,
        call: |store, _| {
            Box::pin(async {
                let long = InstanceId::new("long").unwrap();
                let filter = CheckpointFilter::default();
                let page = PageRequest::first(50);
                let found = store.list_checkpoints(&long, &filter, &page).await.unwrap();
                assert_eq!(found.rows[0].seq, 30_000);
            })
        },
    },
    Case {
        what: "events of an instance",
        index: "runtara_events_pkey",
        entries: PAGES,
        call: |store, _| {
            Box::pin(async {
                let long = InstanceId::new("long").unwrap();
                let page = PageRequest::first(50);
                let found = store
                    .list_events(&long, &EventFilter::default(), &page)
                    .await
                    .unwrap();
                assert_eq!(found.rows[0].seq, 30_000);
            })
        },
    },
    Case {
        what: "steps of an instance",
        index: "runtara_events_step",
        entries: 2 * PAGES,
        call: |store, _| {
            Box::pin(async {
                let long = InstanceId::new("long").unwrap();
                let page = PageRequest::first(50);
                let found = store
                    .list_steps(&long, &StepFilter::default(), &page)
                    .await
                    .unwrap();
                assert_eq!(found.rows.len(), 50);
                assert!(found.rows.iter().all(|step| step.end.is_some()));
            })
        },
    },
    Case {
        what: "events of a type",
        index: "runtara_events_kind",
        entries: 30,
        call: |store, _| {
            let filter = EventFilter {
                kind: Some(EventKind::Failed),
                ..EventFilter::default()
            };
            Box::pin(rare_events(store, filter, 3))
        },
    },
    Case {
        what: "events of a subtype",
        index: "runtara_events_subtype",
        entries: PAGES,
        call: |store, _| {
            let filter = EventFilter {
                subtype: Some("step_debug_end".to_owned()),
                ..EventFilter::default()
            };
            Box::pin(rare_events(store, filter, 10_000))
        },
    },
    Case {
        what: "events of a time",
        index: "runtara_events_created",
        entries: 90,
        call: |store, _| {
            let filter = EventFilter {
                created_after: Some(Timestamp(29_990)),
                ..EventFilter::default()
            };
            Box::pin(rare_events(store, filter, 11))
        },
    },
    Case {
        what: "events in scopes inside a scope",
        index: "runtara_events_parent_scope",
        entries: 30,
        call: |store, _| {
            let filter = EventFilter {
                parent_scope_id: Some("parent".to_owned()),
                ..EventFilter::default()
            };
            Box::pin(rare_events(store, filter, 3))
        },
    },
    Case {
        what: "steps of a type",
        index: "runtara_events_step_type",
        entries: 60,
        call: |store, _| {
            let filter = StepFilter {
                step_type: Some("rare".to_owned()),
                ..StepFilter::default()
            };
            Box::pin(rare_steps(store, filter, 4))
        },
    },
    Case {
        what: "steps that failed",
        index: "runtara_events_step_failed",
        entries: 60,
        call: |store, _| {
            let filter = StepFilter {
                status: Some(StepStatus::Failed),
                ..StepFilter::default()
            };
            Box::pin(rare_steps(store, filter, 4))
        },
    },
    Case {
        what: "scopes around a scope",
        index: "runtara_events_scope",
        entries: 1_000 * 9,
        call: |store, _| {
            Box::pin(async {
                let long = InstanceId::new("long").unwrap();
                let found = store.scope_ancestors(&long, "scope-9000").await.unwrap();
                assert_eq!(found.len(), 1_000);
            })
        },
    },
];
