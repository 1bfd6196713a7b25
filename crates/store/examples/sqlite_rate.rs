//! Measures how many checkpoints and starts a second the SQLite store keeps, beside a bare loop of single-row inserts with the same
//! settings on the same disk.
//!
//! `cargo run --release -p runtara-store --example sqlite_rate [DIRECTORY] [SECONDS]`

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use runtara_domain::{
    Caller, CheckpointId, Due, Fence, ImageDigest, ImageId, ImageName, InstanceId, Labels,
    NewImage, NewInstance, NodeId, RegistrationNumber, RunSettings, RunToken, RunnerKind,
    SaveCheckpoint, TenantId, limits,
};
use runtara_store::sqlite::{SqliteOptions, SqliteStore};
use runtara_store::{Claim, NodeLease, Store};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const STATE: &[u8] = &[b'x'; 200];

/// Times of single operations, and how long all of them took together.
struct Measured {
    took: Vec<Duration>,
    elapsed: Duration,
}

impl Measured {
    fn print(mut self, what: &str) -> f64 {
        self.took.sort_unstable();
        let at = |share: f64| {
            let last = self.took.len().saturating_sub(1);
            self.took[(last as f64 * share) as usize].as_secs_f64() * 1e3
        };
        let rate = self.took.len() as f64 / self.elapsed.as_secs_f64();
        println!(
            "{what:<42} {rate:>9.0} /s   p50 {:>7.3} ms   p99 {:>7.3} ms",
            at(0.5),
            at(0.99)
        );
        rate
    }
}

async fn bare_loop(directory: &Path, time: Duration) -> Result<f64> {
    let options = SqliteConnectOptions::new()
        .filename(directory.join("bare.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", "2000");
    let mut connection = SqliteConnection::connect_with(&options).await?;
    sqlx::query("create table rows (id integer primary key, name text, state blob)")
        .execute(&mut connection)
        .await?;
    let begun = Instant::now();
    let mut took = Vec::new();
    while begun.elapsed() < time {
        let one = Instant::now();
        sqlx::query("insert into rows (name, state) values (?, ?)")
            .bind("a name")
            .bind(STATE)
            .execute(&mut connection)
            .await?;
        took.push(one.elapsed());
    }
    let elapsed = begun.elapsed();
    connection.close().await?;
    Ok(Measured { took, elapsed }.print("bare loop: insert one row, commit"))
}

fn new_instance(id: String, tenant: &TenantId, image: &ImageId) -> Result<NewInstance> {
    Ok(NewInstance {
        instance_id: InstanceId::new(id)?,
        tenant_id: tenant.clone(),
        image_id: image.clone(),
        input: Bytes::from_static(br#"{"order":7}"#),
        env: BTreeMap::new(),
        args: Vec::new(),
        labels: Labels::default(),
        settings: RunSettings::default(),
        timeout_ms: limits::RUN_TIMEOUT_MS,
        max_attempts: None,
        max_events: None,
        due: Due::NOW,
        request_timeout_ms: None,
        heartbeat_timeout_ms: None,
        expires: None,
        pending_allowed: None,
    })
}

async fn starts(
    store: &Arc<SqliteStore>,
    (tenant, image): (&TenantId, &ImageId),
    tasks: usize,
    time: Duration,
) -> Result<f64> {
    let begun = Instant::now();
    let mut running = Vec::new();
    for _ in 0..tasks {
        let (store, tenant, image) = (Arc::clone(store), tenant.clone(), image.clone());
        running.push(tokio::spawn(async move {
            let mut took = Vec::new();
            while begun.elapsed() < time {
                let one = Instant::now();
                let id = InstanceId::generate().to_string();
                store
                    .start_instance(new_instance(id, &tenant, &image)?)
                    .await?;
                took.push(one.elapsed());
            }
            Result::Ok(took)
        }));
    }
    let mut took = Vec::new();
    for task in running {
        took.extend(task.await??);
    }
    let elapsed = begun.elapsed();
    Ok(Measured { took, elapsed }.print(&format!("starts, {tasks} at once")))
}

async fn checkpoints(store: &Arc<SqliteStore>, callers: &[Caller], time: Duration) -> Result<f64> {
    let begun = Instant::now();
    let mut running = Vec::new();
    for caller in callers {
        let (store, caller) = (Arc::clone(store), caller.clone());
        running.push(tokio::spawn(async move {
            let mut took = Vec::new();
            while begun.elapsed() < time {
                let one = Instant::now();
                let name = format!(
                    "durable::step::{}-{}",
                    begun.elapsed().as_nanos(),
                    took.len()
                );
                let request = SaveCheckpoint {
                    checkpoint_id: CheckpointId::new(name)?,
                    state: Bytes::from_static(STATE),
                    request_id: Some(InstanceId::generate().to_string()),
                };
                store.save_checkpoint(&caller, request).await?;
                took.push(one.elapsed());
            }
            Result::Ok(took)
        }));
    }
    let mut took = Vec::new();
    for task in running {
        took.extend(task.await??);
    }
    let elapsed = begun.elapsed();
    let what = format!("checkpoints, {} at once", callers.len());
    Ok(Measured { took, elapsed }.print(&what))
}

async fn measure(directory: &Path, time: Duration) -> Result<()> {
    let bare = bare_loop(directory, time).await?;
    let options = SqliteOptions::at(directory.join("store.db"));
    let store = Arc::new(SqliteStore::open(options).await?);
    let tenant = TenantId::new("acme")?;
    let image = NewImage {
        image_id: ImageId::generate(),
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
    };
    let image = store.register_image(image).await?.image_id;
    for number in 0..64 {
        store
            .start_instance(new_instance(format!("first-{number}"), &tenant, &image)?)
            .await?;
    }
    let node = NodeId::generate();
    store
        .renew_node(NodeLease::new(node, "node", 3_600_000))
        .await?;
    let claim = Claim {
        node,
        kinds: vec![RunnerKind::Native],
        tokens: (0..64).map(|_| RunToken::generate().hash()).collect(),
        without_tenants: Vec::new(),
        running_allowed: None,
    };
    let runs = store.claim_due(claim).await?;
    let callers: Vec<_> = runs
        .iter()
        .map(|run| Caller {
            instance_id: run.instance_id.clone(),
            fence: Fence::Run(run.token),
        })
        .collect();
    for tasks in [1, 16, 64] {
        let rate = checkpoints(&store, &callers[..tasks], time).await?;
        println!("{:<42} {:>9.2} x the bare loop", "", rate / bare);
    }
    for tasks in [1, 16, 64] {
        starts(&store, (&tenant, &image), tasks, time).await?;
    }
    store.close().await;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let directory = tempfile::tempdir_in(directory)?;
    measure(directory.path(), Duration::from_secs(seconds)).await
}
