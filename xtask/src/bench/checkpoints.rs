//! How fast states are made durable, beside what the database does without us.

use std::time::Duration;

use serde_json::json;

use super::database::{Database, STATE_BYTES};
use super::figure::{Bound, Figure};
use super::load::{Load, drive};
use super::server::{Server, TENANT, id_prefix};
use super::wire::Connection;
use super::{Bench, say};
use crate::error::Error;

/// 4 base64 digits for 3 bytes.
const STATE_DIGITS: usize = STATE_BYTES / 3 * 4;

#[derive(Default)]
struct Rounds {
    base16: Vec<f64>,
    base1: Vec<f64>,
    with16: Vec<Load>,
    with64: Vec<Load>,
    with1: Vec<Load>,
}

/// Measures with 16, 64 and one connection.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>, Error> {
    let database = bench.postgres.database("checkpoints")?;
    database.prepare_pgbench()?;
    let server = Server::start(&bench.place, "checkpoints", &database, &[])?;
    save(&server, "warm", 16, Duration::from_secs(1))?;
    let mut rounds = Rounds::default();
    for round in 0..bench.rounds {
        rounds.measure(bench, &server, &database, round)?;
    }
    Ok(rounds.figures())
}

impl Rounds {
    fn measure(
        &mut self,
        bench: &Bench,
        server: &Server,
        database: &Database,
        round: usize,
    ) -> Result<(), Error> {
        let base16 = database.pgbench(&bench.place, 16, bench.time)?;
        let with16 = save(server, &format!("{round}-16"), 16, bench.time)?;
        let with64 = save(server, &format!("{round}-64"), 64, bench.time)?;
        let base1 = database.pgbench(&bench.place, 1, bench.time)?;
        let with1 = save(server, &format!("{round}-1"), 1, bench.time)?;
        say(format!(
            "checkpoints, round {}: pgbench {:.0}/s, ours {:.0}/s with 16 and {:.0}/s with 64; alone {:.2} and {:.2} ms",
            round + 1,
            base16.rate,
            with16.rate,
            with64.rate,
            base1.p50_ms,
            with1.p50(),
        ));
        self.base16.push(base16.rate);
        self.base1.push(base1.p50_ms);
        self.with16.push(with16);
        self.with64.push(with64);
        self.with1.push(with1);
        Ok(())
    }

    fn figures(&self) -> Vec<Figure> {
        let many = |connections: usize, loads: &[Load], least: f64| {
            let rates: Vec<f64> = loads.iter().map(|it| it.rate).collect();
            let p50: Vec<f64> = loads.iter().map(Load::p50).collect();
            let p99: Vec<f64> = loads.iter().map(Load::p99).collect();
            let rate = Figure::new(
                format!("checkpoints/s, {connections} connections"),
                "/s",
                &rates,
            )
            .beside("pgbench insert+commit, 16 clients", &self.base16)
            .must(Bound::RatioAtLeast(least))
            .note("self-registered instances on loopback, one a connection");
            let tail = Figure::new(
                format!("checkpoint p99, {connections} connections"),
                "ms",
                &p99,
            )
            .beside("their p50", &p50)
            .must(Bound::RatioAtMost(5.0));
            [rate, tail]
        };
        let alone: Vec<f64> = self.with1.iter().map(Load::p50).collect();
        let mut figures = Vec::from(many(16, &self.with16, 1.0));
        figures.extend(many(64, &self.with64, 1.5));
        figures.push(
            Figure::new("checkpoint p50, 1 connection", "ms", &alone)
                .beside("pgbench p50, 1 client", &self.base1)
                .must(Bound::RatioAtMost(1.6)),
        );
        figures
    }
}

/// Lets as many instances save checkpoint after checkpoint, each over a connection of its own.
fn save(server: &Server, name: &str, connections: usize, time: Duration) -> Result<Load, Error> {
    let state = "WlpaWlpaWlpa".repeat(STATE_DIGITS / 12);
    let worker = |number: usize| {
        let mut connection = Connection::open(server.core)?;
        let instance = format!("/api/v1/instances/{}{name}-{number}", id_prefix());
        connection.post(
            &format!("{instance}/register"),
            &json!({"tenant_id": TENANT}),
        )?;
        let path = format!("{instance}/checkpoint");
        let (state, mut step) = (&state, 0_u64);
        Ok(move || {
            step += 1;
            let body = format!(r#"{{"checkpoint_id":"step-{step}","state":"{state}"}}"#);
            connection.call("POST", &path, body.as_bytes())
        })
    };
    let workers: Result<Vec<_>, Error> = (0..connections).map(worker).collect();
    drive(workers?, time)
}
