//! Many thousand due instances keep nobody else waiting, on the stores that have to find what is due among them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtara_domain::{ExitCause, Status};
use runtara_runner::RunKey;
use runtara_scheduler::Scheduler;
use runtara_store::Store;
use runtara_store::sqlite::{SqliteOptions, SqliteStore};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use tokio::time::sleep;

use crate::postgres_support::{Schema, execute};
use crate::soon;
use crate::world::World;

/// How many runs there is room for.
const ROOM: usize = 20;
/// How long each takes.
const WORK: Duration = Duration::from_millis(20);
/// How many tenants come anew.
const NEW: usize = 5;

/// What is due, and what is allowed.
#[derive(Clone, Copy)]
struct Throng {
    tenants: usize,
    of_each: usize,
    max_runs_per_tenant: Option<u32>,
    /// Whether the runs of the throng end; otherwise its tenants have no room after some.
    ends: bool,
}

const ONE: Throng = Throng {
    tenants: 1,
    of_each: 100_000,
    max_runs_per_tenant: None,
    ends: true,
};
const MANY: Throng = Throng {
    tenants: 1_000,
    of_each: 100,
    ..ONE
};
const AT_ITS_LIMIT: Throng = Throng {
    max_runs_per_tenant: Some(5),
    ends: false,
    ..ONE
};
const MANY_WITH_A_LIMIT: Throng = Throng {
    max_runs_per_tenant: Some(5),
    ..MANY
};

impl Throng {
    /// Its rows: names of columns that both databases have, and the values for them.
    fn rows(self, image: &str, series: &str) -> String {
        let Self {
            tenants, of_each, ..
        } = self;
        let due_at = 1_600_000_000_000_i64;
        format!(
            "select 'throng-' || t.n || '-' || i.n, 'throng-' || t.n, '{image}', 'native', 'launched', 'pending', {due_at} + i.n, 3600000, {due_at}
               from {series}
              where t.n <= {tenants} and i.n <= {of_each}"
        )
    }
}

/// Fills the database of a store that is closed.
async fn fill_sqlite(path: &std::path::Path, throng: Throng, image: &str) {
    let url = format!("sqlite://{}", path.display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    let series = "(with recursive s (n) as (select 1 union all select n + 1 from s where n < 100000) select n from s) i
                  cross join (with recursive s (n) as (select 1 union all select n + 1 from s where n < 1000) select n from s) t";
    // Small tables first: one of the two has few rows.
    let zeros = [
        "run_number",
        "spoke",
        "heartbeat_seen",
        "stored_new",
        "cancel_shown",
        "pause_shown",
        "asked_to_leave",
        "slept_ms",
        "resume_waits",
        "crash_count",
        "backoff",
        "interruptions",
        "relaunches",
        "has_error",
        "has_read_signals",
        "cpu_usec",
        "memory_peak_bytes",
        "running_ms",
    ];
    let rows = throng.rows(image, series).replace(
        "\n               from",
        &format!("{} \n               from", ", 0".repeat(zeros.len())),
    );
    let rows = rows.replace("n < 100000)", &format!("n < {})", throng.of_each));
    let rows = rows.replace("n < 1000)", &format!("n < {})", throng.tenants));
    let sql = format!(
        "insert into runtara_instances (instance_id, tenant_id, image_id, kind, origin, status, due_at, timeout_ms, created_at, {}) {rows}",
        zeros.join(", ")
    );
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
}

async fn fill_postgres(schema: &Schema, throng: Throng, image: &str) {
    let series = format!(
        "generate_series(1, {}) t (n) cross join generate_series(1, {}) i (n)",
        throng.tenants, throng.of_each
    );
    let mut connection = schema.connect().await;
    let rows = throng.rows(image, &series);
    let sql = format!(
        "insert into runtara_instances (instance_id, tenant_id, image_id, runner_kind, origin, status, due_at, timeout_ms, created_at) {rows};
         analyze runtara_instances"
    );
    execute(&mut connection, &sql).await;
}

/// Ends what is launched of the throng, if it ends, and of all others.
async fn end_runs(world: &World, throng: Throng) -> std::convert::Infallible {
    let mut seen = 0;
    loop {
        let launched = world.runner.launches_after(seen);
        seen += launched.len();
        sleep(WORK).await;
        for key in launched {
            let is_of_throng = key.instance_id.as_str().starts_with("throng");
            let run = world
                .runner
                .run(&key)
                .filter(|_| throng.ends || !is_of_throng);
            if let Some(run) = run {
                run.ends(ExitCause::Code(0));
            }
        }
    }
}

async fn until_each_had_a_turn(world: &World, throng: Throng) {
    let mut tenants = BTreeSet::new();
    let mut seen = 0;
    while tenants.len() < throng.tenants {
        let launched = world.runner.launches_after(seen);
        seen += launched.len();
        let tenant = |key: RunKey| {
            let mut parts = key.instance_id.as_str().split('-');
            parts.nth(1).map(str::to_owned)
        };
        tenants.extend(launched.into_iter().filter_map(tenant));
        sleep(WORK).await;
    }
}

async fn others_come_within_a_second(store: Arc<dyn Store>, throng: Throng) {
    let mut world = World::over(Arc::clone(&store)).await;
    // Thousands of runs come and go, and nobody looks at their files.
    world.runner = Arc::default();
    world.max_runs_per_tenant = throng.max_runs_per_tenant;
    let scheduler: Scheduler = world.scheduler(ROOM);
    let measured = async {
        let full = throng
            .max_runs_per_tenant
            .map_or(ROOM, |most| most as usize);
        world.runner.launched(full).await;
        // Once each of the throng has had its first turn, which is as much theirs as that of anybody else.
        until_each_had_a_turn(&world, throng).await;
        let mut waits = Vec::new();
        for number in 0..NEW {
            let tenant = format!("new-{number}");
            let _registered = world.image_id(&tenant).await;
            let began = Instant::now();
            let id = world.start_for(&tenant, &format!("{tenant}-first")).await;
            world
                .until(&id, |found| found.state.status != Status::Pending)
                .await;
            waits.push(began.elapsed());
            // So that the rounds of the dispatcher are met at several moments.
            sleep(Duration::from_millis(70)).await;
        }
        waits
    };
    let mut waits = tokio::select! {
        waits = measured => waits,
        never = end_runs(&world, throng) => match never {},
    };
    eprintln!("waited {waits:?}");
    waits.sort();
    // The machine may be busy with other tests: so not each of them.
    assert!(waits[NEW / 2] < Duration::from_secs(1), "{waits:?}");
    if let Some(most) = throng.max_runs_per_tenant.filter(|_| !throng.ends) {
        let filter = runtara_store::InstanceFilter {
            status: Some(Status::Running),
            tenant_id: runtara_domain::TenantId::new("throng-1").ok(),
            ..Default::default()
        };
        let page = runtara_store::PageRequest::first(100);
        let order = runtara_store::InstanceOrder::CreatedAscending;
        let running = store.list_instances(&filter, order, &page).await.unwrap();
        assert_eq!(running.rows.len(), most as usize);
    }
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
}

async fn on_sqlite(throng: Throng) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.db");
    let open = async || {
        let options =
            SqliteOptions::at(&path).claims_by_tenant(throng.max_runs_per_tenant.is_some());
        Arc::new(SqliteStore::open(options).await.unwrap()) as Arc<dyn Store>
    };
    let store = open().await;
    let image = World::over(Arc::clone(&store))
        .await
        .image_id("throng-1")
        .await;
    store.close().await;
    drop(store);
    fill_sqlite(&path, throng, image.as_str()).await;
    let store = open().await;
    others_come_within_a_second(Arc::clone(&store), throng).await;
    store.close().await;
}

async fn on_postgres(throng: Throng) {
    let Some(schema) = Schema::make().await else {
        return;
    };
    let store: Arc<dyn Store> = Arc::new(schema.store().await);
    let image = World::over(Arc::clone(&store))
        .await
        .image_id("throng-1")
        .await;
    fill_postgres(&schema, throng, image.as_str()).await;
    others_come_within_a_second(Arc::clone(&store), throng).await;
    store.close().await;
}

macro_rules! on_both {
    ($($name:ident: $throng:expr;)+) => {
        $(mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                super::on_sqlite($throng).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                super::on_postgres($throng).await;
            }
        })+
    };
}

on_both! {
    one_tenant_with_a_hundred_thousand: super::ONE;
    a_thousand_tenants_with_a_hundred_each: super::MANY;
    one_tenant_at_its_limit: super::AT_ITS_LIMIT;
    a_thousand_tenants_with_a_limit: super::MANY_WITH_A_LIMIT;
}
