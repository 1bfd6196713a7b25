//! Whether each question is carried out by the index that it is meant to use, on a filled table.

use std::path::Path;

use runtara_domain::{
    EventKind, ImageDigest, ImageId, InstanceId, LabelFilter, NodeId, RunnerKind, Status, TenantId,
    Timestamp, TokenHash,
};
use sqlx::SqliteConnection;

use super::lists::{From, Part, count_sql, in_order, part_sql, selective};
use super::numbered::{Driver, Numbered, Question};
use super::sql::{Columns, Sql};
use super::{
    SqliteOptions, SqliteStore, calls, connect, file, history, images, instances, lists, removal,
    runs, state,
};
use crate::{
    Claim, EndPlace, EventFilter, Expired, ImageFilter, InstanceFilter, InstanceOrder,
    MetricsQuery, Owners, PageRequest, PageStart, StepFilter, StepStatus, Store as _,
};

const FILL: &str = "with recursive n(n) as (select 1 union all select n + 1 from n where n < 3000)
    insert into runtara_instances (instance_id, tenant_id, image_id, kind, origin, status, due_at,
    live_node, token, run_number, spoke, heartbeat_seen, stored_new, cancel_shown, pause_shown,
    asked_to_leave, slept_ms, resume_waits, crash_count, backoff, interruptions, relaunches,
    timeout_ms, created_at, finished_at, has_error, has_read_signals, cpu_usec, memory_peak_bytes,
    running_ms)
    select 'i-' || n, 't-' || (n % 7), 'm-' || (n % 11), 'native', 'launched',
    case n % 3 when 0 then 'completed' when 1 then 'suspended' else 'running' end,
    case n % 3 when 1 then n end, case n % 3 when 2 then 'node-' || (n % 2) end,
    case n % 3 when 2 then randomblob(32) end, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1000,
    1700000000000 + n / 2, case n % 3 when 0 then 1700000000000 + n end, 0, 0, 0, 0, 0 from n";

fn at(path: &Path) -> connect::WriterOptions {
    connect::WriterOptions {
        path: path.to_owned(),
        max_pages: None,
    }
}

async fn filled() -> (tempfile::TempDir, SqliteConnection) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let _lock = file::prepare(&path).unwrap();
    let mut connection = connect::at_the_start(&at(&path)).await.unwrap();
    connect::migrate(&mut connection, &path).await.unwrap();
    Sql::new(FILL)
        .execute(&mut connection, "filling")
        .await
        .unwrap();
    (directory, connection)
}

/// How a question is carried out, line by line.
async fn plan(connection: &mut SqliteConnection, sql: Sql) -> String {
    let rows = sql
        .explained()
        .rows(connection, "explaining")
        .await
        .unwrap();
    let line = |row| {
        let mut columns = Columns::of(row);
        columns.int().unwrap();
        columns.int().unwrap();
        columns.int().unwrap();
        columns.text().unwrap()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

async fn expect(connection: &mut SqliteConnection, sql: Sql, index: &str) {
    let text = format!("{sql:?}");
    let plan = plan(connection, sql).await;
    assert!(plan.contains(index), "wanted {index}:\n{plan}\nfor {text}");
    assert!(!plan.contains("TEMP B-TREE"), "sorted:\n{plan}\nfor {text}");
    for line in plan.lines().filter(|line| line.starts_with("SCAN ")) {
        let by_index = line.contains("USING") || line.contains("json_each");
        assert!(
            by_index || line.contains("subquery"),
            "scanned whole:\n{plan}\nfor {text}"
        );
    }
}

#[tokio::test]
async fn ended_instances_and_unused_images_are_found_by_index() {
    let (_directory, mut connection) = filled().await;
    let mut demand = Expired {
        owners: Owners::AllBut(Vec::new()),
        statuses: vec![Status::Failed],
        ended_ms: 1,
        after: Some(EndPlace {
            finished_at: Timestamp(1_700_000_000_900),
            instance_id: InstanceId::new("i-9").unwrap(),
        }),
        limit: 10,
    };
    let now = Timestamp(1_800_000_000_000);
    for (owners, index) in [
        (Owners::AllBut(Vec::new()), "runtara_instances_finished"),
        (
            Owners::Only(tenant().unwrap()),
            "runtara_instances_tenant_finished",
        ),
    ] {
        demand.owners = owners;
        let sql = removal::expired_sql(&demand, now);
        expect(&mut connection, sql, index).await;
    }
    for index in [
        "runtara_images_created",
        "runtara_instances_image_created",
        "runtara_images_base",
    ] {
        let sql = images::unused_sql(1, 10, now);
        expect(&mut connection, sql, index).await;
    }
}

fn tenant() -> Option<TenantId> {
    TenantId::new("t-1").ok()
}

#[tokio::test]
async fn claims_and_runs_are_found_by_index() {
    let (_directory, mut connection) = filled().await;
    let kinds = [RunnerKind::Native];
    let claim = Claim {
        node: NodeId::generate(),
        kinds: kinds.to_vec(),
        tokens: vec![TokenHash([0; 32]); 16],
        without_tenants: tenant().into_iter().collect(),
        running_allowed: None,
    };
    let due = runs::due(&claim, Timestamp(1_000)).unwrap();
    expect(
        &mut connection,
        due,
        "SEARCH i USING INDEX runtara_instances_due",
    )
    .await;
    let next = runs::next_due_sql(&kinds);
    expect(&mut connection, next, "runtara_instances_due").await;
    let after = InstanceId::new("i-2").unwrap();
    let live = runs::live_runs_sql(NodeId::generate(), Some(&after), 100);
    expect(
        &mut connection,
        live,
        "SEARCH i USING INDEX runtara_instances_live",
    )
    .await;
    let owner = runs::owner_sql(TokenHash([0; 32]));
    expect(
        &mut connection,
        owner,
        "SEARCH i USING INDEX runtara_instances_token",
    )
    .await;
    let query = MetricsQuery {
        tenant_id: tenant().unwrap(),
        start: Timestamp(0),
        end: Timestamp(1),
        bucket_ms: 3_600_000,
    };
    // Grouping sorts what the index has selected.
    let metrics = plan(&mut connection, history::metrics_sql(&query)).await;
    let by =
        "SEARCH i USING INDEX runtara_instances_tenant_finished (tenant_id=? AND finished_at>?";
    assert!(metrics.contains(by), "{metrics}");
}

#[tokio::test]
async fn what_a_call_loads_is_found_by_index() {
    let (_directory, mut connection) = filled().await;
    let instance = "SEARCH i USING INDEX sqlite_autoindex_runtara_instances_1 (instance_id=?)";
    for (question, indexes) in [
        (state::LOAD, &[instance][..]),
        (
            calls::FIND_SAVED,
            &[
                "SEARCH runtara_checkpoints USING INDEX runtara_checkpoints_name \
                 (instance=? AND checkpoint_id=?)",
            ],
        ),
        (
            calls::FIND_EVENT,
            &["runtara_events_request (instance=? AND request_id=?)"],
        ),
        (
            state::FIND_SIGNALS,
            &["SEARCH runtara_signals USING PRIMARY KEY (instance=? AND signal_id=?)"],
        ),
    ] {
        for index in indexes {
            expect(&mut connection, Sql::new(question), index).await;
        }
    }
    let start = plan(&mut connection, Sql::new(instances::FIND_FOR_START)).await;
    for index in [
        "SEARCH i USING INDEX",
        "SEARCH m USING INDEX",
        "SEARCH n USING INTEGER",
    ] {
        assert!(start.contains(index), "{start}");
    }
}

#[tokio::test]
async fn each_list_of_instances_is_in_the_order_of_an_index() {
    use InstanceOrder::{
        CreatedAscending, CreatedDescending, FinishedAscending, FinishedDescending,
    };
    let (_directory, mut connection) = filled().await;
    let all = InstanceFilter::default();
    let of = InstanceFilter {
        tenant_id: tenant(),
        ..InstanceFilter::default()
    };
    let by_status = InstanceFilter {
        status: Some(Status::Running),
        ..InstanceFilter::default()
    };
    let of_by_status = InstanceFilter {
        status: Some(Status::Running),
        created_after: Some(Timestamp(3)),
        ..of.clone()
    };
    let by_image = InstanceFilter {
        image_id: ImageId::new("m-1").ok(),
        ..of.clone()
    };
    let labelled = |text| InstanceFilter {
        labels: vec![LabelFilter::parse(text).unwrap()],
        ..of.clone()
    };
    let (by_key, by_pair) = (labelled("team"), labelled("team=a"));
    let cursor = runtara_domain::Cursor {
        value: Some(7),
        key: "i-7".to_owned(),
    };
    let key = super::anchors::Key {
        created_at: 7,
        instance_id: "i-7".to_owned(),
    };
    for (filter, created, finished) in [
        (&all, "_created", "_finished"),
        (
            &of,
            "_tenant_created (tenant_id=?",
            "_tenant_finished (tenant_id=?",
        ),
        (&by_status, "_status_created (status=?", "_finished"),
        (
            &of_by_status,
            "_tenant_status_created (tenant_id=? AND status=?",
            "_tenant_finished",
        ),
        (&by_image, "_image_created (image_id=?", "_tenant_finished"),
    ] {
        for order in [CreatedAscending, CreatedDescending] {
            let driver = in_order(filter, order);
            let index = format!("runtara_instances{created}");
            for from in [From::Beginning, From::After(&cursor), From::At(&key)] {
                let sql = part_sql(filter, order, driver, Part::All, from, (10, 0));
                expect(&mut connection, sql, &index).await;
            }
            let count = count_sql(filter, driver, Part::All, 10);
            expect(&mut connection, count, &index).await;
        }
        for order in [FinishedAscending, FinishedDescending] {
            let driver = in_order(filter, order);
            for (part, from) in [
                (Part::Ended, From::Beginning),
                (Part::Ended, From::After(&cursor)),
                (Part::NotEnded, From::Beginning),
                (Part::NotEnded, From::After(&cursor)),
            ] {
                let sql = part_sql(filter, order, driver, part, from, (10, 0));
                expect(
                    &mut connection,
                    sql,
                    &format!("runtara_instances{finished}"),
                )
                .await;
            }
        }
    }
    for (filter, index) in [
        (
            &by_pair,
            "SEARCH d USING PRIMARY KEY (tenant_id=? AND key=? AND value=?",
        ),
        (
            &by_key,
            "SEARCH d USING COVERING INDEX runtara_instance_labels_tenant_key",
        ),
    ] {
        let driver = in_order(filter, CreatedDescending);
        let sql = part_sql(
            filter,
            CreatedDescending,
            driver,
            Part::All,
            From::Beginning,
            (10, 0),
        );
        expect(&mut connection, sql, index).await;
    }
}

#[tokio::test]
async fn a_narrow_filter_selects_by_its_own_index() {
    let (_directory, mut connection) = filled().await;
    let ended = InstanceFilter {
        tenant_id: tenant(),
        finished_after: Some(Timestamp(5)),
        ..InstanceFilter::default()
    };
    let named = InstanceFilter {
        image_name_prefix: Some("orders".to_owned()),
        ..InstanceFilter::default()
    };
    for (filter, by) in [
        (
            &ended,
            "runtara_instances_tenant_finished (tenant_id=? AND finished_at>?",
        ),
        (&named, "runtara_instances_image_created (image_id=?"),
    ] {
        let order = InstanceOrder::CreatedDescending;
        let driver = selective(filter, order).unwrap();
        let count = count_sql(filter, driver, Part::All, 10);
        expect(&mut connection, count, by).await;
        let sql = part_sql(filter, order, driver, Part::All, From::Beginning, (10, 0));
        let narrow = plan(&mut connection, sql).await;
        assert!(narrow.contains(by), "{narrow}");
        // Where too many match for that, the list goes in its order and leaves out what does not.
        let driver = in_order(filter, order);
        let sql = part_sql(filter, order, driver, Part::All, From::Beginning, (10, 0));
        expect(&mut connection, sql, "_created").await;
    }
    let kept = lists::kept_sql(&ended);
    expect(
        &mut connection,
        kept,
        "SEARCH runtara_counts USING PRIMARY KEY (tenant_id=?",
    )
    .await;
}

/// The plans of a list of events or steps: how its rows are counted, and how those of a page are found.
async fn numbered_plans(
    connection: &mut SqliteConnection,
    question: &Question,
    driver: Option<Driver>,
    conditions: impl Fn(&mut Sql) -> crate::StoreResult<()>,
) -> [String; 2] {
    let page = PageRequest::first(10);
    let list = Numbered {
        instance: 7,
        all: None,
        ascending: false,
        page: &page,
        driver,
    };
    let count = list.count_sql(question, &conditions).unwrap();
    let rows = list.page_sql(question, driver, &conditions).unwrap();
    [
        plan(connection, count).await,
        plan(connection, rows.unwrap()).await,
    ]
}

#[tokio::test]
async fn each_filter_of_events_is_served_by_its_index() {
    let (_directory, mut connection) = filled().await;
    let none = EventFilter::default;
    let text = || Some("a".to_owned());
    for (filter, index) in [
        (
            EventFilter {
                kind: Some(EventKind::Failed),
                ..none()
            },
            "kind (instance=? AND kind=?",
        ),
        (
            EventFilter {
                subtype: text(),
                ..none()
            },
            "subtype (instance=? AND subtype=?",
        ),
        (
            EventFilter {
                scope_id: text(),
                ..none()
            },
            "scope (instance=? AND scope_id=?",
        ),
        (
            EventFilter {
                parent_scope_id: text(),
                ..none()
            },
            "parent_scope (instance=? AND parent_scope_id=?",
        ),
        (
            EventFilter {
                created_after: Some(Timestamp(7)),
                ..none()
            },
            "created (instance=? AND created_at>?",
        ),
    ] {
        let conditions = |sql: &mut Sql| {
            history::event_conditions(sql, &filter);
            Ok(())
        };
        let driver = Driver::of_events(&filter);
        let index = format!("INDEX runtara_events_{index}");
        for plan in numbered_plans(&mut connection, &history::EVENTS, driver, conditions).await {
            assert!(plan.contains(&index), "wanted {index}:\n{plan}");
        }
    }
}

#[tokio::test]
async fn each_filter_of_steps_is_served_by_its_index() {
    let (_directory, mut connection) = filled().await;
    let none = StepFilter::default;
    let text = || Some("a".to_owned());
    for (filter, index) in [
        (
            StepFilter {
                status: Some(StepStatus::Running),
                ..none()
            },
            "status (instance=? AND status=?",
        ),
        (
            StepFilter {
                step_type: text(),
                ..none()
            },
            "type (instance=? AND step_type=?",
        ),
        (
            StepFilter {
                scope_id: text(),
                ..none()
            },
            "scope (instance=? AND scope_id=?",
        ),
        (
            StepFilter {
                parent_scope_id: text(),
                ..none()
            },
            "parent_scope (instance=? AND parent_scope_id=?",
        ),
    ] {
        let conditions = |sql: &mut Sql| history::step_conditions(sql, &filter);
        let driver = Driver::of_steps(&filter);
        let index = format!("INDEX runtara_steps_{index}");
        for plan in numbered_plans(&mut connection, &history::STEPS, driver, conditions).await {
            assert!(plan.contains(&index), "wanted {index}:\n{plan}");
        }
    }
}

#[tokio::test]
async fn images_are_listed_and_named_by_index() {
    let (_directory, mut connection) = filled().await;
    let page = PageRequest::first(10);
    let all = images::list_sql(&ImageFilter::default(), &page);
    expect(&mut connection, all, "runtara_images_created").await;
    let of = ImageFilter {
        tenant_id: tenant(),
        ..ImageFilter::default()
    };
    expect(
        &mut connection,
        images::list_sql(&of, &page),
        "runtara_images_tenant_created",
    )
    .await;
    let ids = [ImageId::generate(), ImageId::generate()];
    let names = images::names_sql(&ids.into_iter().collect()).unwrap();
    let by = "SEARCH m USING INDEX sqlite_autoindex_runtara_images_1 (image_id=?)";
    expect(&mut connection, names, by).await;
    for by in ["digest (digest=?)", "base (base=?)"] {
        let content = images::content_sql(&ImageDigest::of(b"content"));
        expect(
            &mut connection,
            content,
            &format!("INDEX runtara_images_{by}"),
        )
        .await;
    }
}

#[tokio::test]
async fn a_far_page_is_what_counting_gives() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let store = SqliteStore::open(SqliteOptions::at(&path)).await.unwrap();
    let mut connection = connect::at_the_start(&at(&path)).await.unwrap();
    let many = FILL.replace("n < 3000", "n < 90000");
    let mut fill = Sql::new(many);
    fill.then(
        "insert into runtara_counts select tenant_id, status, count(*) \
         from runtara_instances group by tenant_id, status",
    );
    fill.execute(&mut connection, "filling").await.unwrap();
    let all = InstanceFilter::default();
    let ended = InstanceFilter {
        status: Some(Status::Completed),
        ..InstanceFilter::default()
    };
    for filter in [&all, &ended] {
        for order in [
            InstanceOrder::CreatedAscending,
            InstanceOrder::CreatedDescending,
        ] {
            // The first page is counted for, the second takes keys, the others use them.
            for offset in [
                20_000, 20_000, 20_001, 24_575, 24_576, 29_990, 88_000, 89_999,
            ] {
                let page = PageRequest {
                    start: PageStart::Offset(offset),
                    limit: 20,
                };
                let found = store.list_instances(filter, order, &page).await.unwrap();
                let found: Vec<_> = found.rows.into_iter().map(|row| row.instance_id).collect();
                let driver = in_order(filter, order);
                let plain = part_sql(
                    filter,
                    order,
                    driver,
                    Part::All,
                    From::Beginning,
                    (20, offset),
                );
                let plain = plain.rows(&mut connection, "listing").await.unwrap();
                let plain: Vec<_> = plain
                    .iter()
                    .map(|row| Columns::of(row).parsed::<InstanceId>().unwrap())
                    .collect();
                assert_eq!(found, plain, "{order:?} from {offset}");
            }
            let scope = super::anchors::Scope::of(filter);
            let known = store.anchors.look(&scope);
            assert!(matches!(known, super::anchors::Known::Keys(_)), "{known:?}");
        }
    }
}
