//! What only a store on a database server has to prove.

#![cfg(feature = "postgres")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "postgres_support/node.rs"]
mod node;
mod postgres_support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use node::Node;
use postgres_support::{Schema, execute};
use runtara_domain::{
    Caller, CheckpointId, Fence, ImageId, InstanceId, NewEvent, NodeId, Refusal, RunToken,
    RunnerKind, SaveCheckpoint, Status,
};
use runtara_store::postgres::{PostgresOptions, PostgresStore};
use runtara_store::{
    CheckpointFilter, Claim, EventFilter, InstanceFilter, InstanceOrder, NodeLease, PageRequest,
    PageStart, Store, StoreError,
};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgPool};

/// Starts instances and claims them all: how each is spoken for.
async fn runs(store: &PostgresStore, count: usize) -> Vec<Caller> {
    let node = Node::make(store).await;
    for n in 0..count {
        node.start(&format!("i-{n:05}")).await;
    }
    let tokens: Vec<_> = (0..count).map(|_| RunToken::generate().hash()).collect();
    let claimer = NodeId::generate();
    let lease = NodeLease::new(claimer, "node", 600_000);
    store.renew_node(lease).await.unwrap();
    let claim = Claim {
        node: claimer,
        kinds: vec![RunnerKind::Native],
        tokens,
        without_tenants: Vec::new(),
        running_allowed: None,
    };
    let claimed = store.claim_due(claim).await.unwrap();
    assert_eq!(claimed.len(), count, "every instance is due");
    let caller = |run: runtara_store::ClaimedRun| Caller {
        instance_id: run.instance_id,
        fence: Fence::Run(run.token),
    };
    claimed.into_iter().map(caller).collect()
}
fn save(name: &str, state: &str, request: &str) -> SaveCheckpoint {
    SaveCheckpoint {
        checkpoint_id: CheckpointId::new(name).unwrap(),
        state: Bytes::copy_from_slice(state.as_bytes()),
        request_id: Some(request.to_owned()),
    }
}

async fn saved(store: &PostgresStore, id: &InstanceId) -> Vec<String> {
    let page = PageRequest::first(1_000);
    let found = store
        .list_checkpoints(id, &CheckpointFilter::default(), &page)
        .await
        .unwrap();
    found
        .rows
        .into_iter()
        .rev()
        .map(|row| row.checkpoint_id)
        .collect()
}

#[tokio::test]
async fn servers_that_start_at_once_migrate_once() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    let connect = || PostgresStore::connect(PostgresOptions::new(&*schema.url).max_connections(2));
    let (a, b, c, d) = tokio::join!(connect(), connect(), connect(), connect());
    let mut ids = Vec::new();
    for store in [a, b, c, d] {
        ids.push(store.unwrap().database_id().await.unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "all see one database");
}

/// Instances that were there before the time in each status was counted begin to count at the last time that is known of their status.
#[tokio::test]
async fn the_time_of_older_instances_is_counted_from_what_is_known() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    let store = schema.store().await;
    store.close().await;
    let mut connection = schema.connect().await;
    execute(
        &mut connection,
        "alter table runtara_instances drop column status_since, drop column pending_time_ms,
                drop column running_time_ms, drop column suspended_time_ms;
         delete from runtara_migrations where version = 4;
         create or replace function runtara_now() returns bigint language sql stable as 'select 10000::bigint';
         insert into runtara_instances
                (instance_id, tenant_id, origin, status, timeout_ms, created_at, claimed_at, last_seen_at, finished_at)
         values ('pending', 'acme', 'launched', 'pending', 1, 1000, null, null, null),
                ('paused', 'acme', 'launched', 'suspended', 1, 1000, null, null, null),
                ('running', 'acme', 'launched', 'running', 1, 1000, 2000, 3000, null),
                ('asleep', 'acme', 'launched', 'suspended', 1, 1000, 2000, 3000, null),
                ('silent', 'acme', 'launched', 'suspended', 1, 1000, 4000, 3000, null),
                ('ended', 'acme', 'launched', 'completed', 1, 1000, 2000, 3000, 5000);",
    )
    .await;
    let store = schema.store().await;
    let mut found = Vec::new();
    for id in ["pending", "paused", "running", "asleep", "silent", "ended"] {
        let record = store.instance(&InstanceId::new(id).unwrap()).await.unwrap();
        let time = record.unwrap().time_in_states;
        found.push((id, [time.pending_ms, time.running_ms, time.suspended_ms]));
    }
    assert_eq!(
        found,
        [
            ("pending", [9_000, 0, 0]),
            ("paused", [0, 0, 9_000]),
            ("running", [0, 8_000, 0]),
            ("asleep", [0, 0, 7_000]),
            ("silent", [0, 0, 6_000]),
            ("ended", [0, 0, 0]),
        ]
    );
}

#[tokio::test]
async fn the_database_of_another_server_is_refused_and_left_alone() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    let mut connection = schema.connect().await;
    execute(
        &mut connection,
        "create table instances (instance_id text); create table container_registry (instance_id text)",
    )
    .await;
    let refused = PostgresStore::connect(PostgresOptions::new(&*schema.url)).await;
    let error = refused.err().unwrap();
    assert!(error.to_string().contains("database of its own"), "{error}");
    let ours: i64 = sqlx::query_scalar(
        "select count(*) from pg_class
          where relnamespace = current_schema()::regnamespace and relname like 'runtara%'",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(ours, 0);
}

#[tokio::test]
async fn a_url_that_cannot_be_read_is_not_shown() {
    let refused = PostgresStore::connect(PostgresOptions::new("postgres://u:secret@[bad/x")).await;
    let error = refused.err().unwrap();
    assert!(matches!(error, StoreError::Broken { .. }), "{error:?}");
    assert!(!format!("{error:?}").contains("secret"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn checkpoints_that_meet_are_saved_each_for_its_own_instance() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    let store = Arc::new(schema.store().await);
    let callers = runs(&store, 60).await;
    let mut tasks = tokio::task::JoinSet::new();
    for caller in callers.clone() {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for n in 0..8 {
                let request = save(
                    &format!("step-{n}"),
                    caller.instance_id.as_str(),
                    &format!("{n}"),
                );
                let told = store.save_checkpoint(&caller, request).await.unwrap();
                assert_eq!(told.found, None);
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let expected: Vec<_> = (0..8).map(|n| format!("step-{n}")).collect();
    for caller in callers {
        let id = &caller.instance_id;
        assert_eq!(saved(&store, id).await, expected);
        let name = CheckpointId::new("step-7").unwrap();
        let stored = store.checkpoint(id, &name).await.unwrap().unwrap();
        assert_eq!(stored.state, id.as_str().as_bytes());
        let state = store.instance(id).await.unwrap().unwrap().state;
        assert_eq!(state.checkpoint_id, Some(name));
        assert!(state.run.spoke && state.run.stored_new);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_row_that_is_refused_harms_no_other_of_its_batch() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    let store = schema.store().await;
    let callers = runs(&store, 20).await;
    let asked = callers.iter().enumerate().map(|(n, caller)| {
        let stranger = Caller {
            fence: Fence::Run(RunToken::generate().hash()),
            ..caller.clone()
        };
        let caller = if n % 2 == 0 { caller.clone() } else { stranger };
        let store = &store;
        async move {
            let saved = store
                .save_checkpoint(&caller, save("a", "state", "1"))
                .await;
            let recorded = NewEvent::custom(Some("said".to_owned()), None, Some("{}".into()));
            let recorded = store.record_event(&caller, recorded, None).await;
            let alive = store.heartbeat(&caller).await;
            (n, saved.map(drop), recorded, alive)
        }
    });
    for (n, saved, recorded, alive) in join_all(asked).await {
        for answer in [saved, recorded, alive] {
            match answer {
                Ok(()) => assert_eq!(n % 2, 0),
                Err(StoreError::Refused(Refusal::RunSuperseded)) => assert_eq!(n % 2, 1),
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_caller_that_goes_away_has_its_checkpoint_saved_or_not_and_others_are_not_harmed() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    let store = Arc::new(schema.store().await);
    let callers = runs(&store, 30).await;
    let mut tasks = Vec::new();
    for (n, caller) in callers.iter().cloned().enumerate() {
        let store = Arc::clone(&store);
        let task = tokio::spawn(async move {
            store
                .save_checkpoint(&caller, save("a", "state", "1"))
                .await
                .map(drop)
        });
        if n % 3 == 0 {
            task.abort();
        }
        tasks.push(task);
    }
    for task in tasks {
        match task.await {
            Ok(answer) => answer.unwrap(),
            Err(gone) => assert!(gone.is_cancelled()),
        }
    }
    for caller in &callers {
        // Whoever asks again is told that it saved, whether or not it did so before.
        let told = store
            .save_checkpoint(caller, save("a", "state", "1"))
            .await
            .unwrap();
        assert_eq!(told.found, None);
        assert_eq!(saved(&store, &caller.instance_id).await, ["a"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn connections_that_are_cut_lose_nothing_and_repeat_nothing() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    let store = Arc::new(schema.store().await);
    let callers = runs(&store, 16).await;
    let mut tasks = tokio::task::JoinSet::new();
    for caller in callers.clone() {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for n in 0..15 {
                let request = save(&format!("step-{n:02}"), "state", &format!("r-{n}"));
                let event = NewEvent::custom(Some(format!("e-{n}")), None, None);
                // As the core does: the same request again while the store is away.
                loop {
                    match store.save_checkpoint(&caller, request.clone()).await {
                        Ok(told) => {
                            break assert_eq!(told.found, None, "its own save is not another's");
                        }
                        Err(StoreError::Unavailable { .. }) => tokio::task::yield_now().await,
                        Err(other) => panic!("{other:?}"),
                    }
                }
                loop {
                    let id = Some(format!("e-{n}"));
                    match store.record_event(&caller, event.clone(), id).await {
                        Ok(()) => break,
                        Err(StoreError::Unavailable { .. }) => tokio::task::yield_now().await,
                        Err(other) => panic!("{other:?}"),
                    }
                }
            }
        });
    }
    let mut cutter = schema.connect().await;
    let mut cuts = 0_i64;
    while !tasks.is_empty() {
        let cut: i64 = sqlx::query_scalar(
            "select count(pg_terminate_backend(pid)) from (
                 select pid from pg_stat_activity
                  where application_name = current_setting('application_name') and pid <> pg_backend_pid()
                  order by random() limit 3) cut",
        )
        .fetch_one(&mut cutter)
        .await
        .unwrap();
        cuts += cut;
        let pause = tokio::time::timeout(Duration::from_millis(50), tasks.join_next());
        if let Ok(Some(ended)) = pause.await {
            ended.unwrap();
        }
    }
    assert!(cuts > 0, "no connection was cut: the test proved nothing");
    // The connections that were cut last are still in the store's pool.
    let store = schema.store().await;
    let expected: Vec<_> = (0..15).map(|n| format!("step-{n:02}")).collect();
    for caller in callers {
        let id = &caller.instance_id;
        assert_eq!(saved(&store, id).await, expected);
        let filter = EventFilter {
            ascending: true,
            ..EventFilter::default()
        };
        let events = store
            .list_events(id, &filter, &PageRequest::first(1_000))
            .await
            .unwrap();
        let said: Vec<_> = events
            .rows
            .iter()
            .filter_map(|event| event.subtype.clone())
            .collect();
        assert_eq!(said, (0..15).map(|n| format!("e-{n}")).collect::<Vec<_>>());
        let seqs: Vec<_> = events.rows.iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (1..=15).collect::<Vec<_>>(), "numbers without gaps");
    }
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_the_store_being_away() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    drop(schema.store().await);
    let options = PostgresOptions::new(&*schema.url).statement_timeout(Duration::from_millis(200));
    let store = PostgresStore::connect(options).await.unwrap();
    let callers = runs(&store, 1).await;
    let mut blocker = schema.connect().await;
    execute(
        &mut blocker,
        "begin; lock table runtara_instances in access exclusive mode",
    )
    .await;
    let away = store
        .save_checkpoint(&callers[0], save("a", "state", "1"))
        .await;
    assert!(
        matches!(away, Err(StoreError::Unavailable { .. })),
        "{away:?}"
    );
    let away = store.instance(&callers[0].instance_id).await;
    assert!(
        matches!(away, Err(StoreError::Unavailable { .. })),
        "{away:?}"
    );
    execute(&mut blocker, "rollback").await;
    let told = store
        .save_checkpoint(&callers[0], save("a", "state", "1"))
        .await
        .unwrap();
    assert_eq!(told.found, None);
}

#[tokio::test]
async fn a_closed_store_finishes_what_it_took_and_takes_no_more() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    let store = schema.store().await;
    let callers = runs(&store, 8).await;
    let asked = callers
        .iter()
        .map(|caller| store.save_checkpoint(caller, save("a", "state", "1")));
    let (answers, ()) = tokio::join!(join_all(asked), store.close());
    let reader = schema.store().await;
    for (caller, answer) in callers.iter().zip(answers) {
        let saved = saved(&reader, &caller.instance_id).await;
        match answer {
            Ok(_) => assert_eq!(saved, ["a"]),
            Err(StoreError::Unavailable { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(matches!(
        store.ping().await,
        Err(StoreError::Unavailable { .. })
    ));
}

/// A pool as a host program makes it, which does something to each of its connections.
async fn pool_of_host(schema: &Schema) -> PgPool {
    PgPoolOptions::new()
        .max_connections(5)
        .after_connect(|connection, _| {
            let name = sqlx::query("select set_config('host.tenant', 'acme', false)");
            Box::pin(async move { name.execute(connection).await.map(drop) })
        })
        .connect(&schema.url)
        .await
        .unwrap()
}

/// Applies migrations of a host program, the first so many.
async fn migrate_host(pool: &PgPool, count: usize) {
    let directory = tempfile::tempdir().unwrap();
    let all = [
        (
            "1_orders.sql",
            "create table orders (id bigint primary key)",
        ),
        (
            "2_items.sql",
            "create table items (of bigint references orders)",
        ),
    ];
    for (name, sql) in &all[..count] {
        std::fs::write(directory.path().join(name), sql).unwrap();
    }
    let migrator = sqlx::migrate::Migrator::new(directory.path())
        .await
        .unwrap();
    migrator.run(pool).await.unwrap();
}

async fn saves_steps(store: &PostgresStore) {
    let callers = runs(store, 16).await;
    let saves = callers
        .iter()
        .map(|caller| store.save_checkpoint(caller, save("a", "state", "1")));
    for saved in join_all(saves).await {
        saved.unwrap();
    }
}

#[tokio::test]
async fn a_store_beside_a_host_program_shares_its_database_and_leaves_it_alone() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    let pool = pool_of_host(&schema).await;
    migrate_host(&pool, 1).await;
    PostgresStore::migrate(&pool, None).await.unwrap();
    migrate_host(&pool, 2).await;
    let store = PostgresStore::connect(PostgresOptions::beside(&pool))
        .await
        .unwrap();
    saves_steps(&store).await;
    let names: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class
          where relnamespace = current_schema()::regnamespace and relkind in ('r', 'S', 'v')
            and relname not like 'runtara\\_%' order by 1",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(names, ["_sqlx_migrations", "items", "orders"]);
    let open: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity where application_name = current_setting('application_name')",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    let of_host = i64::from(pool.size());
    assert!(
        open - of_host <= 5,
        "{open} connections, {of_host} of the host"
    );
    store.close().await;
    let (tenant, planner): (String, String) =
        sqlx::query_as("select current_setting('host.tenant'), current_setting('enable_seqscan')")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!((&*tenant, &*planner), ("acme", "on"));
    // It comes again as it left.
    migrate_host(&pool, 2).await;
    let store = PostgresStore::connect(PostgresOptions::beside(&pool))
        .await
        .unwrap();
    store.ping().await.unwrap();
}

#[tokio::test]
async fn a_store_has_a_schema_of_its_own_if_it_is_told_to() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    let pool = pool_of_host(&schema).await;
    let host: String = sqlx::query_scalar("select current_schema()::text")
        .fetch_one(&pool)
        .await
        .unwrap();
    // Any name, and removed with those of other tests should this one be killed.
    let own = format!("{host} \"own\"")
        .chars()
        .take(63)
        .collect::<String>();
    let options = || PostgresOptions::beside(&pool).schema(&*own);
    let (one, other) = tokio::join!(
        PostgresStore::connect(options()),
        PostgresStore::connect(options())
    );
    let (one, other) = (one.unwrap(), other.unwrap());
    saves_steps(&one).await;
    assert_eq!(
        one.database_id().await.unwrap(),
        other.database_id().await.unwrap()
    );
    let ours: Vec<String> = sqlx::query_scalar(
        "select distinct relnamespace::regnamespace::text from pg_class where relname = 'runtara_instances'
            and relnamespace in (select oid from pg_namespace where starts_with(nspname, $1))",
    )
    .bind(&host)
    .fetch_all(&pool)
    .await
    .unwrap();
    let quoted = format!("\"{}\"", own.replace('"', "\"\""));
    assert_eq!(ours, [&*quoted]);
    for store in [one, other] {
        store.close().await;
    }
    let mut connection = schema.connect().await;
    execute(&mut connection, &format!("drop schema {quoted} cascade")).await;
    for unfit in ["", "pg_mine", &"x".repeat(64)] {
        let refused = PostgresStore::connect(PostgresOptions::beside(&pool).schema(unfit)).await;
        let refused = refused.err().map(|error| error.to_string());
        assert!(
            refused
                .as_ref()
                .is_some_and(|it| it.contains("cannot be used")),
            "{unfit:?}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn long_lists_have_kept_counts_and_places() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    let store = schema.store().await;
    let node = Node::make(&store).await;
    // A connection that ends tells at once what it changed; one that rests keeps it for ten seconds.
    let mut filler = schema.connect().await;
    execute(
        &mut filler,
        "insert into runtara_instances
                (instance_id, tenant_id, image_id, runner_kind, origin, status, due_at, timeout_ms, created_at, finished_at)
         select 'n-' || lpad(n::text, 6, '0'), case when n % 3 = 0 then 'other' else 'acme' end,
                case when n % 3 = 0 then 'theirs' else 'image' end, 'native', 'launched',
                case when n % 20 = 0 then 'completed' else 'pending' end, case when n % 20 > 0 then n end, 1000, n / 2,
                case when n % 20 = 0 then 50000 - n / 40 end
           from generate_series(1, 400000) n where n > 360000 or n % 20 = 0",
    )
    .await;
    filler.close().await.unwrap();
    let mut connection = schema.connect().await;
    let filter = InstanceFilter {
        tenant_id: Some(node.tenant.clone()),
        status: Some(Status::Pending),
        ..InstanceFilter::default()
    };
    let order = InstanceOrder::CreatedDescending;
    let all: i64 = sqlx::query_scalar(
        "select count(*) from runtara_instances where tenant_id = 'acme' and status = 'pending'",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    let at = |offset| PageRequest {
        start: PageStart::Offset(offset),
        limit: 7,
    };
    let first = store.list_instances(&filter, order, &at(0)).await.unwrap();
    assert!(
        !first.total.exact && first.total.count == 10_001,
        "{:?}",
        first.total
    );
    // The database tells of changes with a delay.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        store.refresh_counts().await.unwrap();
        let page = store.list_instances(&filter, order, &at(0)).await.unwrap();
        if page.total.count == all as u64 {
            assert!(!page.total.exact, "a kept count is marked as such");
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "never counted: {:?}",
            page.total
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let of_image = InstanceFilter {
        tenant_id: Some(node.tenant.clone()),
        image_id: Some(ImageId::new("image").unwrap()),
        ..InstanceFilter::default()
    };
    let of_tenant = InstanceFilter {
        tenant_id: Some(node.tenant.clone()),
        ..InstanceFilter::default()
    };
    let lists = [
        (&filter, "tenant_id = 'acme' and status = 'pending'"),
        (&of_image, "image_id = 'image'"),
        (&of_tenant, "tenant_id = 'acme'"),
        (&InstanceFilter::default(), "true"),
    ];
    let orders = [
        (
            InstanceOrder::CreatedDescending,
            "created_at desc, instance_id desc",
        ),
        (InstanceOrder::CreatedAscending, "created_at, instance_id"),
        (
            InstanceOrder::FinishedDescending,
            "finished_at desc nulls last, instance_id desc",
        ),
        (
            InstanceOrder::FinishedAscending,
            "finished_at nulls last, instance_id",
        ),
    ];
    for (filter, condition) in lists {
        for (order, columns) in orders {
            let statement = format!(
                "select instance_id from runtara_instances where {condition} order by {columns}"
            );
            let all: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
                .fetch_all(&mut connection)
                .await
                .unwrap();
            let length = all.len() as u64;
            for offset in [0, 9_999, 10_000, 10_001, 12_000, 13_500, length - 1, length] {
                let page = store
                    .list_instances(filter, order, &at(offset))
                    .await
                    .unwrap();
                let rows = page.rows.iter().map(|row| row.instance_id.to_string());
                let expected = all.iter().skip(offset as usize).take(7).cloned();
                assert_eq!(
                    rows.collect::<Vec<_>>(),
                    expected.collect::<Vec<_>>(),
                    "{condition}, {columns}, offset {offset} of {length}"
                );
            }
        }
    }
}
