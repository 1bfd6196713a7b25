//! How many checkpoints a second the PostgreSQL store saves, beside single-row commits of pgbench in the same database.
//!
//! ```text
//! cargo run --release -p runtara-store --example checkpoint_rate -- postgres://…/database [seconds]
//! ```
//!
//! It makes a schema `rate_…` and drops it at the end. `pgbench` must be in the path.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use runtara_domain::{
    Caller, CheckpointId, Due, Fence, ImageDigest, ImageId, ImageName, InstanceId, Labels,
    NewImage, NewInstance, NodeId, RegistrationNumber, RunSettings, RunToken, RunnerKind,
    SaveCheckpoint, TenantId,
};
use runtara_store::postgres::{PostgresOptions, PostgresStore};
use runtara_store::{Claim, NodeLease, Store};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The size of a state: what a program's step gives.
const STATE_BYTES: usize = 200;

async fn runs(store: &PostgresStore, prefix: &str, count: usize) -> Result<Vec<Caller>, Failure> {
    let tenant = TenantId::new("acme")?;
    let image_id = ImageId::new("image")?;
    store
        .register_image(NewImage {
            image_id: image_id.clone(),
            number: RegistrationNumber(0),
            tenant_id: tenant.clone(),
            name: ImageName::new("program")?,
            description: None,
            kind: RunnerKind::Native,
            digest: ImageDigest::of(b"program"),
            base: None,
            size: 7,
            metadata: None,
            labels: Labels::default(),
            settings: RunSettings::default(),
            container: None,
            tenant_bytes_allowed: None,
        })
        .await?;
    for n in 0..count {
        store
            .start_instance(NewInstance {
                instance_id: InstanceId::new(format!("{prefix}-{n}"))?,
                tenant_id: tenant.clone(),
                image_id: image_id.clone(),
                input: Bytes::from_static(b"{}"),
                env: Default::default(),
                args: Vec::new(),
                labels: Labels::default(),
                settings: RunSettings::default(),
                timeout_ms: 3_600_000,
                max_attempts: None,
                max_events: None,
                due: Due::NOW,
                request_timeout_ms: None,
                heartbeat_timeout_ms: None,
                expires: None,
                pending_allowed: None,
            })
            .await?;
    }
    let node = NodeId::generate();
    store
        .renew_node(NodeLease::new(node, "node", 3_600_000))
        .await?;
    let claim = Claim {
        node,
        kinds: vec![RunnerKind::Native],
        tokens: (0..count).map(|_| RunToken::generate().hash()).collect(),
        without_tenants: Vec::new(),
        running_allowed: None,
    };
    let claimed = store.claim_due(claim).await?;
    let caller = |run: runtara_store::ClaimedRun| Caller {
        instance_id: run.instance_id,
        fence: Fence::Run(run.token),
    };
    Ok(claimed.into_iter().map(caller).collect())
}

/// Saves from so many tasks, each an instance of its own; answers with the rate and the latencies in milliseconds.
async fn measure(
    store: &Arc<PostgresStore>,
    tasks: usize,
    seconds: u64,
) -> Result<(f64, Vec<f64>), Failure> {
    let callers = runs(
        store,
        &format!("rate-{tasks}-{}", RunToken::generate().expose()),
        tasks,
    )
    .await?;
    let until = Instant::now() + Duration::from_secs(seconds);
    let began = Instant::now();
    let mut saving = tokio::task::JoinSet::new();
    for caller in callers {
        let store = Arc::clone(store);
        saving.spawn(async move {
            let mut latencies = Vec::new();
            let mut n = 0_u64;
            while Instant::now() < until {
                n += 1;
                let request = SaveCheckpoint {
                    checkpoint_id: CheckpointId::new(format!("durable::step::{n}"))?,
                    state: Bytes::from(vec![b'x'; STATE_BYTES]),
                    request_id: None,
                };
                let asked = Instant::now();
                store.save_checkpoint(&caller, request).await?;
                latencies.push(asked.elapsed().as_secs_f64() * 1_000.0);
            }
            Ok::<_, Failure>(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(saved) = saving.join_next().await {
        latencies.extend(saved??);
    }
    let rate = latencies.len() as f64 / began.elapsed().as_secs_f64();
    latencies.sort_by(f64::total_cmp);
    Ok((rate, latencies))
}

/// Single-row inserts with a commit each, by pgbench with so many clients.
fn pgbench(url: &str, schema: &str, clients: usize, seconds: u64) -> Result<f64, Failure> {
    let script = std::env::temp_dir().join(format!("{schema}.sql"));
    std::fs::write(
        &script,
        format!("insert into {schema}.single (state) values (repeat('x', {STATE_BYTES}));\n"),
    )?;
    let output = Command::new("pgbench")
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2", "--file"])
        .arg(&script)
        .arg(format!("--client={clients}"))
        .arg(format!("--time={seconds}"))
        .arg(url)
        .output()?;
    std::fs::remove_file(&script)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("tps = "))
        .and_then(|rest| rest.split(' ').next());
    match rate {
        Some(rate) => Ok(rate.parse()?),
        None => Err(format!(
            "pgbench said: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into()),
    }
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted
        .get((last as f64 * share) as usize)
        .copied()
        .unwrap_or_default()
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("give the URL of a database")?;
    let seconds = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let schema = format!("rate_{}", std::process::id());
    let mut connection = PgConnection::connect(&url).await?;
    let make = format!(
        "create schema {schema}; create table {schema}.single (id bigserial primary key, state text)"
    );
    sqlx::raw_sql(AssertSqlSafe(make))
        .execute(&mut connection)
        .await?;
    let joint = if url.contains('?') { '&' } else { '?' };
    let options = PostgresOptions::new(format!("{url}{joint}options=-csearch_path%3D{schema}"));
    let store = Arc::new(PostgresStore::connect(options).await?);
    println!("tasks  checkpoints/s  p50 ms  p99 ms  pgbench/s  ratio");
    for tasks in [1, 16, 64] {
        let (rate, latencies) = measure(&store, tasks, seconds).await?;
        let single = pgbench(&url, &schema, tasks.min(16), seconds)?;
        println!(
            "{tasks:>5}  {rate:>13.0}  {:>6.2}  {:>6.2}  {single:>9.0}  {:>5.2}",
            percentile(&latencies, 0.5),
            percentile(&latencies, 0.99),
            rate / single
        );
    }
    store.close().await;
    let drop = format!("drop schema {schema} cascade");
    sqlx::raw_sql(AssertSqlSafe(drop))
        .execute(&mut connection)
        .await?;
    Ok(())
}
