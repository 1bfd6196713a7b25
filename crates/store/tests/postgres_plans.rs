//! Every hot statement is served by the index that its documentation names, on filled tables.
//!
//! PostgreSQL itself counts what each index was used for, so the statements are run as they are, by the methods of the store, often
//! enough for the server to have settled on a plan for them; then the counters are read: the named index was used, no table of
//! instances was read whole, and no index was walked any further than the answer needs.

#![cfg(feature = "postgres")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "postgres_support/node.rs"]
mod node;
mod postgres_support;

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use node::Node;
use postgres_support::{Schema, execute};
use runtara_domain::{
    Caller, CheckpointId, Cursor, EventKind, Fence, ImageId, InstanceId, LabelFilter, NewEvent,
    NodeId, RunToken, RunnerKind, SaveCheckpoint, SignalId, Status, TenantId, Timestamp, TokenHash,
};
use runtara_store::postgres::{PostgresOptions, PostgresStore};
use runtara_store::{
    CheckpointFilter, Claim, EventFilter, InstanceFilter, InstanceOrder, MetricsQuery, PageRequest,
    PageStart, StepFilter, StepStatus, Store,
};
use sqlx::{Connection as _, PgConnection};

/// So often each method is called: the server plans for each call at first and settles on one plan after five.
const CALLS: i64 = 8;

const FILL: &str = "
    insert into runtara_instances
           (instance_id, tenant_id, image_id, runner_kind, origin, status, reason, due_at, live_node, token_hash, run_number,
            spoke, timeout_ms, created_at, started_at, finished_at, event_seq)
    select 'n-' || lpad(n::text, 6, '0'), 't-' || n % 40, 'image-' || n % 100, 'native', 'launched',
           s.status, null,
           case s.status when 'suspended' then 4000000000000 + n when 'pending' then n end,
           case s.status when 'running' then '00000000-0000-0000-0000-00000000000' || n % 10 end,
           case s.status when 'running' then sha256(n::text::bytea) end,
           1, true, 1000, 1600000000000 + n * 1000, 1600000000000 + n * 1000,
           case when s.status in ('completed', 'failed') then 1600000000000 + n * 1000 + 500 end, 1
      from generate_series(1, 120000) n
     cross join lateral (select case when n % 100 < 60 then 'completed' when n % 100 < 65 then 'failed'
                                     when n % 100 < 95 then 'suspended' when n % 100 < 97 then 'running'
                                     else 'pending' end as status) s;
    insert into runtara_instance_labels
    select 'n-' || lpad(n::text, 6, '0'), 'batch', (n / 50)::text from generate_series(1, 120000) n;
    insert into runtara_instance_inputs
    select 'n-' || lpad(n::text, 6, '0'), '{}' from generate_series(1, 120000) n;
    insert into runtara_checkpoints (instance_id, seq, checkpoint_id, version, state, size, created_at, run_number)
    select 'n-' || lpad(n::text, 6, '0'), 1, 'first', 1, 'state', 5, 1, 1 from generate_series(1, 120000) n;
    insert into runtara_checkpoints (instance_id, seq, checkpoint_id, version, state, size, created_at, run_number)
    select 'long', n, 'step-' || n, 1, 'state', 5, n, 1 from generate_series(1, 30000) n;
    insert into runtara_events (instance_id, seq, kind, created_at, run_number)
    select 'n-' || lpad(n::text, 6, '0'), 1, 'started', 1, 1 from generate_series(1, 120000) n;
    insert into runtara_events
           (instance_id, seq, kind, subtype, payload, created_at, run_number, scope_id, parent_scope_id, step_id, step_key, step_failed)
    select 'long', n, 'custom', case n % 3 when 0 then 'scope_enter' when 1 then 'step_debug_start' else 'step_debug_end' end,
           '{}', n, 1, 'scope-' || n / 3, 'scope-' || n / 3 - 1,
           case when n % 3 > 0 then 'step-' || n / 3 end, case when n % 3 > 0 then 'step-' || n / 3 end,
           case when n % 3 = 2 then false end
      from generate_series(1, 30000) n;
    insert into runtara_events
           (instance_id, seq, kind, subtype, payload, created_at, run_number, parent_scope_id, step_id, step_type, step_key, step_failed)
    select 'rare', n, case when n % 10000 = 3 then 'failed' else 'custom' end,
           case n % 3 when 1 then 'step_debug_start' when 2 then 'step_debug_end' end, '{}', n, 1,
           case when n % 10000 = 5 then 'parent' end, case when n % 3 > 0 then 'step-' || n / 3 end,
           case when n % 9999 = 1 then 'rare' else 'usual' end, case when n % 3 > 0 then 'step-' || n / 3 end,
           case when n % 3 = 2 then n % 9999 = 2 end
      from generate_series(1, 30000) n;
    insert into runtara_waits
    select 'n-' || lpad(n::text, 6, '0'), 'sleep', '', 1, 5, sha256('x'), 1, null from generate_series(1, 120000) n;
    insert into runtara_signals
    select 'n-' || lpad(n::text, 6, '0'), 'go', 1, null, null, null from generate_series(1, 120000) n where n % 7 = 0;
    insert into runtara_images (image_id, tenant_id, name, kind, digest, size, created_at)
    select 'image-' || n, 't-' || n % 40, 'name-' || n, 'native', sha256(n::text::bytea), 1, n from generate_series(0, 9999) n;
    analyze;
";

type Done<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

struct Case {
    what: &'static str,
    index: &'static str,
    /// Most index entries of one call.
    entries: i64,
    call: for<'a> fn(&'a PostgresStore, usize) -> Done<'a>,
}

fn id(n: usize) -> InstanceId {
    InstanceId::new(format!("n-{n:06}")).unwrap()
}

/// The n-th of the running instances, as its run speaks for it.
fn running(n: usize) -> (usize, InstanceId, Fence) {
    let n = n * 100 + 95;
    (n, id(n), Fence::Run(token(n)))
}

fn token(n: usize) -> TokenHash {
    let digest = runtara_domain::ImageDigest::of(n.to_string().as_bytes());
    TokenHash(digest.0)
}

fn caller(n: usize) -> Caller {
    let (_, instance_id, fence) = running(n);
    Caller { instance_id, fence }
}

fn tenant() -> TenantId {
    TenantId::new("t-7").unwrap()
}

fn save(n: usize, state: &'static [u8]) -> SaveCheckpoint {
    SaveCheckpoint {
        checkpoint_id: CheckpointId::new(format!("step-{n}")).unwrap(),
        state: Bytes::from_static(state),
        request_id: None,
    }
}

fn claim(without: &[&str]) -> Claim {
    Claim {
        node: NodeId::generate(),
        kinds: vec![RunnerKind::Native],
        tokens: (0..5).map(|_| RunToken::generate().hash()).collect(),
        without_tenants: without
            .iter()
            .map(|tenant| TenantId::new(tenant).unwrap())
            .collect(),
    }
}

async fn list(store: &PostgresStore, filter: InstanceFilter, order: InstanceOrder) {
    let after = Cursor {
        value: Some(1_600_050_000_000),
        key: String::new(),
    };
    let first = PageRequest::first(20);
    let next = PageRequest {
        start: PageStart::After(after),
        limit: 20,
    };
    let page = store.list_instances(&filter, order, &first).await.unwrap();
    assert!(!page.rows.is_empty(), "{filter:?}");
    store.list_instances(&filter, order, &next).await.unwrap();
}

fn of_tenant(status: Option<Status>) -> InstanceFilter {
    InstanceFilter {
        tenant_id: Some(tenant()),
        status,
        ..InstanceFilter::default()
    }
}

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

/// Two pages with their totals, each counted to 10,001, and their rows.
const PAGES: i64 = 2 * (10_001 + 120);

const CASES: &[Case] = &[
    Case {
        what: "claim",
        index: "runtara_instances_due",
        entries: 60,
        call: |store, _| {
            Box::pin(async {
                let claimed = store.claim_due(claim(&[])).await.unwrap();
                assert_eq!(claimed.len(), 5);
            })
        },
    },
    Case {
        what: "claim without the tenants that have the most",
        index: "runtara_instances_tenant_due",
        entries: 700,
        call: |store, _| {
            Box::pin(async {
                let claimed = store.claim_due(claim(&["t-15", "t-35"])).await.unwrap();
                assert_eq!(claimed.len(), 5);
            })
        },
    },
    Case {
        what: "next due time",
        index: "runtara_instances_due",
        entries: 120,
        call: |store, _| {
            Box::pin(async {
                let next = store.next_due(&[RunnerKind::Native]).await.unwrap();
                assert_eq!(next.in_ms, Some(0));
            })
        },
    },
    Case {
        what: "live runs of a node",
        index: "runtara_instances_live",
        entries: 12,
        call: |store, _| {
            Box::pin(async {
                let node: NodeId = "00000000-0000-0000-0000-000000000005".parse().unwrap();
                let runs = store.live_runs(node, Some(&id(50)), 10).await.unwrap();
                assert_eq!(runs.len(), 10);
            })
        },
    },
    Case {
        what: "the run of a token",
        index: "runtara_instances_token",
        entries: 1,
        call: |store, n| {
            Box::pin(async move {
                let (n, owner, _) = running(n);
                let found = store.run_of_token(token(n)).await.unwrap().unwrap();
                assert_eq!(found.instance_id, owner);
            })
        },
    },
    Case {
        what: "save of a checkpoint",
        index: "runtara_checkpoints_name",
        entries: 8,
        call: |store, n| {
            Box::pin(async move {
                let told = store
                    .save_checkpoint(&caller(n), save(n, b"new"))
                    .await
                    .unwrap();
                assert_eq!(told.found, None);
            })
        },
    },
    Case {
        what: "look at a checkpoint",
        index: "runtara_checkpoints_name",
        entries: 8,
        call: |store, n| {
            Box::pin(async move {
                store
                    .save_checkpoint(&caller(n), save(99, b""))
                    .await
                    .unwrap();
            })
        },
    },
    Case {
        what: "event",
        index: "runtara_events_request",
        entries: 8,
        call: |store, n| {
            Box::pin(async move {
                let event = NewEvent::custom(Some("said".to_owned()), None, None);
                store.record_event(&caller(n), event, None).await.unwrap();
            })
        },
    },
    Case {
        what: "heartbeat",
        index: "runtara_instances_token",
        entries: 8,
        call: |store, n| {
            Box::pin(async move {
                store.heartbeat(&caller(n)).await.unwrap();
            })
        },
    },
    Case {
        what: "custom signal",
        index: "runtara_signals_pkey",
        entries: 20,
        call: |store, n| {
            Box::pin(async move {
                let signal = SignalId::new("go").unwrap();
                store.send_signal(&id(n + 10), &signal, None).await.ok();
                store.take_signal(&caller(n), &signal, None).await.unwrap();
            })
        },
    },
    Case {
        what: "start",
        index: "runtara_images_pkey",
        entries: 12,
        call: |store, n| {
            Box::pin(async move {
                let node = Node::make(store).await;
                node.start(&format!("started-{n}")).await;
            })
        },
    },
    Case {
        what: "list",
        index: "runtara_instances_created",
        entries: PAGES,
        call: |store, _| Box::pin(list(store, InstanceFilter::default(), Default::default())),
    },
    Case {
        what: "list of a tenant",
        index: "runtara_instances_tenant_created",
        entries: PAGES,
        call: |store, _| {
            Box::pin(list(
                store,
                of_tenant(None),
                InstanceOrder::CreatedAscending,
            ))
        },
    },
    Case {
        what: "list by status",
        index: "runtara_instances_status_created",
        entries: PAGES,
        call: |store, _| {
            let filter = InstanceFilter {
                status: Some(Status::Failed),
                ..InstanceFilter::default()
            };
            Box::pin(list(store, filter, Default::default()))
        },
    },
    Case {
        what: "list of a tenant by status",
        index: "runtara_instances_tenant_status_created",
        entries: PAGES,
        call: |store, _| {
            let filter = of_tenant(Some(Status::Completed));
            Box::pin(list(store, filter, Default::default()))
        },
    },
    Case {
        what: "list by end",
        index: "runtara_instances_finished",
        entries: PAGES,
        call: |store, _| {
            let order = InstanceOrder::FinishedDescending;
            Box::pin(list(store, InstanceFilter::default(), order))
        },
    },
    Case {
        what: "list of a tenant by end",
        index: "runtara_instances_tenant_finished",
        entries: PAGES,
        call: |store, _| {
            Box::pin(list(
                store,
                of_tenant(None),
                InstanceOrder::FinishedAscending,
            ))
        },
    },
    Case {
        what: "list of an image",
        index: "runtara_instances_image_created",
        entries: PAGES,
        call: |store, _| {
            let filter = InstanceFilter {
                image_id: Some(ImageId::new("image-7").unwrap()),
                ..InstanceFilter::default()
            };
            Box::pin(list(store, filter, Default::default()))
        },
    },
    Case {
        what: "list by the beginning of an image's name",
        index: "runtara_instances_image_created",
        entries: PAGES,
        call: |store, _| {
            let filter = InstanceFilter {
                image_name_prefix: Some("name-77".to_owned()),
                ..of_tenant(None)
            };
            Box::pin(async move {
                store
                    .list_instances(&filter, Default::default(), &PageRequest::first(20))
                    .await
                    .unwrap();
            })
        },
    },
    Case {
        what: "list by label",
        index: "runtara_instance_labels_found",
        entries: 600,
        call: |store, n| {
            let filter = InstanceFilter {
                labels: vec![LabelFilter::parse(&format!("batch={}", n + 900)).unwrap()],
                ..InstanceFilter::default()
            };
            Box::pin(async move {
                let page = PageRequest::first(20);
                let found = store
                    .list_instances(&filter, Default::default(), &page)
                    .await
                    .unwrap();
                assert_eq!(found.total.count, 50);
            })
        },
    },
    Case {
        what: "metrics",
        index: "runtara_instances_tenant_finished",
        entries: 2_500,
        call: |store, _| {
            let query = MetricsQuery {
                tenant_id: tenant(),
                start: Timestamp(1_600_000_000_000),
                end: Timestamp(1_600_086_400_000),
                bucket_ms: 3_600_000,
            };
            Box::pin(async move {
                assert!(!store.tenant_metrics(&query).await.unwrap().is_empty());
            })
        },
    },
    Case {
        what: "use of an image",
        index: "runtara_instances_image_used",
        entries: 1_300,
        call: |store, _| {
            Box::pin(async move {
                let image = ImageId::new("image-70").unwrap();
                store.delete_image(&image).await.unwrap();
            })
        },
    },
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
    Case {
        what: "instance",
        index: "runtara_instances_pkey",
        entries: 8,
        call: |store, n| {
            Box::pin(async move {
                assert!(store.instance(&id(n + 1)).await.unwrap().is_some());
                assert!(store.instance_values(&id(n + 1)).await.unwrap().is_some());
            })
        },
    },
];

#[derive(Debug, Default, Clone, Copy)]
struct Counted {
    used: i64,
    entries: i64,
    whole: i64,
}

async fn counted(connection: &mut PgConnection, index: &str) -> Counted {
    let (used, entries, whole) = sqlx::query_as(
        "select (select coalesce(sum(idx_scan), 0)::bigint from pg_stat_user_indexes
                  where schemaname = current_schema() and indexrelname = $1),
                (select coalesce(sum(idx_tup_read), 0)::bigint from pg_stat_user_indexes
                  where schemaname = current_schema()),
                (select coalesce(sum(seq_scan), 0)::bigint from pg_stat_user_tables
                  where schemaname = current_schema()
                    and relname not in ('runtara_meta', 'runtara_migrations', 'runtara_nodes', 'runtara_counted'))",
    )
    .bind(index)
    .fetch_one(connection)
    .await
    .unwrap();
    Counted {
        used,
        entries,
        whole,
    }
}

/// How many connections of this name there are.
async fn connections(connection: &mut PgConnection, name: &str) -> i64 {
    sqlx::query_scalar("select count(*) from pg_stat_activity where application_name = $1")
        .bind(name)
        .fetch_one(connection)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_hot_statement_is_served_by_its_index() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    schema.store().await.close().await;
    let mut connection = schema.connect().await;
    execute(&mut connection, FILL).await;
    connection.close().await.unwrap();
    let mut connection = schema.connect().await;
    let mut wrong = Vec::new();
    for case in CASES {
        let before = counted(&mut connection, case.index).await;
        // The counters of a connection are complete once it is gone (its backend adds them up right before), so the connections of each
        // case are waited for by a name of their own. Otherwise the late ones of one case would count for the next.
        let name = format!("plans-{}", std::process::id());
        let joint = if schema.url.contains('?') { '&' } else { '?' };
        let url = format!("{}{joint}application_name={name}", schema.url);
        let options = PostgresOptions::new(url).migrate(false).max_connections(2);
        let store = PostgresStore::connect(options).await.unwrap();
        for n in 0..CALLS {
            (case.call)(&store, usize::try_from(n).unwrap()).await;
        }
        store.close().await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while connections(&mut connection, &name).await > 0 {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{}: its connections stay",
                case.what
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let after = counted(&mut connection, case.index).await;
        let (used, entries) = (after.used - before.used, after.entries - before.entries);
        if used < CALLS || entries > case.entries * CALLS || after.whole > before.whole {
            wrong.push(format!(
                "{}: {} used {used} times in {CALLS} calls, {entries} index entries read of {} allowed, {} tables read whole",
                case.what,
                case.index,
                case.entries * CALLS,
                after.whole - before.whole,
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
