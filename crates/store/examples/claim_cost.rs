//! What a claim costs on PostgreSQL, by how many instances there are that are not due.
//!
//! ```text
//! cargo run --release -p runtara-store --example claim_cost -- postgres://…/database [instances…]
//! ```
//!
//! Of each number it tells, in milliseconds, how long a claim takes that finds nothing, the question what is due next, and a claim that
//! finds one: the median and the 95th percentile of 200 each. It makes a schema `claims_…` and drops it at the end. Ten million instances take
//! some 10 GB.

use std::time::{Duration, Instant};

use bytes::Bytes;
use runtara_domain::{
    Change, Due, ImageDigest, ImageId, ImageName, InstanceId, Labels, NewImage, NewInstance,
    NodeId, RegistrationNumber, RunExit, RunSettings, RunToken, RunnerKind, TenantId,
};
use runtara_store::postgres::{PostgresOptions, PostgresStore};
use runtara_store::{Claim, NodeLease, Store};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const ROUNDS: usize = 200;
/// Rows of one statement that fills the table.
const PIECE: u64 = 500_000;

/// Fills up to so many sleepers that are due in a year and later.
async fn fill(connection: &mut PgConnection, from: u64, to: u64) -> Result<(), Failure> {
    for first in (from..to).step_by(usize::try_from(PIECE)?) {
        let last = (first + PIECE).min(to) - 1;
        let statement = format!(
            "insert into runtara_instances (instance_id, tenant_id, image_id, runner_kind, origin, status, reason, due_at,
                                            run_number, timeout_ms, created_at, started_at)
             select 'sleeper-' || n, 'acme', 'image', 'native', 'launched', 'suspended', 'sleeping',
                    runtara_now() + 31536000000 + n, 1, 3600000, runtara_now() - 86400000 + n, runtara_now() - 86400000 + n
               from generate_series({first}, {last}) n"
        );
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut *connection)
            .await?;
    }
    sqlx::query("vacuum analyze runtara_instances")
        .execute(connection)
        .await?;
    Ok(())
}

struct Claimer {
    store: PostgresStore,
    node: NodeId,
    tenant: TenantId,
    image: ImageId,
    started: u64,
}

impl Claimer {
    async fn claim(&self) -> Result<usize, Failure> {
        let claim = Claim {
            node: self.node,
            kinds: vec![RunnerKind::Native],
            tokens: (0..32).map(|_| RunToken::generate().hash()).collect(),
            without_tenants: Vec::new(),
            running_allowed: None,
        };
        let claimed = self.store.claim_due(claim).await?;
        for run in &claimed {
            let exit = Change::Exit {
                run_number: run.run_number,
                exit: RunExit::not_launched(true, "only to measure".to_owned()),
                our_fault: false,
            };
            self.store.change(&run.instance_id, exit).await?;
        }
        Ok(claimed.len())
    }

    async fn start(&mut self) -> Result<(), Failure> {
        self.started += 1;
        let new = NewInstance {
            instance_id: InstanceId::new(format!("due-{}", self.started))?,
            tenant_id: self.tenant.clone(),
            image_id: self.image.clone(),
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
        };
        self.store.start_instance(new).await?;
        Ok(())
    }

    /// Tells what each part takes.
    async fn measure(&mut self) -> Result<[String; 3], Failure> {
        let mut took = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let found = self.claim().await?;
            took[0].push(began.elapsed());
            assert_eq!(found, 0, "nothing is due");
            let began = Instant::now();
            self.store.next_due(&[RunnerKind::Native]).await?;
            took[1].push(began.elapsed());
            self.start().await?;
            let began = Instant::now();
            let found = self.claim().await?;
            took[2].push(began.elapsed());
            assert_eq!(found, 1, "one is due");
        }
        Ok(took.map(told))
    }
}

/// The median and the 95th percentile.
fn told(mut took: Vec<Duration>) -> String {
    took.sort_unstable();
    let millis = |at: usize| took[at].as_secs_f64() * 1_000.0;
    format!(
        "{:.2} ({:.2})",
        millis(ROUNDS / 2),
        millis(ROUNDS * 95 / 100)
    )
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("the URL of a database is wanted")?;
    let mut sizes: Vec<u64> = arguments
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    if sizes.is_empty() {
        sizes = vec![1_000, 1_000_000, 10_000_000];
    }
    sizes.sort_unstable();
    let mut connection = PgConnection::connect(&url).await?;
    let schema = format!("claims_{}", std::process::id());
    for statement in [
        format!("create schema {schema}"),
        format!("set search_path to {schema}"),
    ] {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut connection)
            .await?;
    }
    let mark = if url.contains('?') { '&' } else { '?' };
    let options = PostgresOptions::new(format!("{url}{mark}options=-csearch_path%3D{schema}"));
    let outcome = measure_all(options, &mut connection, &sizes).await;
    sqlx::query(AssertSqlSafe(format!("drop schema {schema} cascade")))
        .execute(&mut connection)
        .await?;
    outcome
}

async fn measure_all(
    options: PostgresOptions,
    connection: &mut PgConnection,
    sizes: &[u64],
) -> Result<(), Failure> {
    let store = PostgresStore::connect(options).await?;
    let (node, tenant) = (NodeId::generate(), TenantId::new("acme")?);
    let image = ImageId::new("image")?;
    store
        .renew_node(NodeLease::new(node, "node", 86_400_000))
        .await?;
    store
        .register_image(NewImage {
            image_id: image.clone(),
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
    let mut claimer = Claimer {
        store,
        node,
        tenant,
        image,
        started: 0,
    };
    let mut filled = 0;
    println!(
        "instances | claim of nothing | what is due next | claim of one, and its end   (ms: median, 95th percentile)"
    );
    for size in sizes {
        fill(connection, filled, *size).await?;
        filled = *size;
        let [nothing, next, one] = claimer.measure().await?;
        println!("{size:9} | {nothing:>16} | {next:>16} | {one}");
    }
    claimer.store.close().await;
    Ok(())
}
