//! How fast states are made durable, beside what the database does without us.

use std::time::Duration;

use serde_json::json;

use super::database::{Database, STATE_BYTES};
use super::figure::{Bound, Figure};
use super::load::{Load, drive};
use super::server::{Server, TENANT, id_prefix};
use super::wire::Connection;
use super::{Bench, process, say};
use crate::error::Error;
use crate::interrupt;

/// 4 base64 digits for 3 bytes.
const STATE_DIGITS: usize = STATE_BYTES / 3 * 4;

/// A program that does nothing.
const SLEEPER: &str = "sleeps_forever";
/// The most connections, and so instances.
const MOST: usize = 64;

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
    let runs = runs(&server)?;
    save(&server, &runs, "warm", MOST, Duration::from_secs(1))?;
    let mut rounds = Rounds::default();
    for round in 0..bench.rounds {
        rounds.measure(bench, &server, &runs, &database, round)?;
    }
    Ok(rounds.figures())
}

impl Rounds {
    fn measure(
        &mut self,
        bench: &Bench,
        server: &Server,
        runs: &[String],
        database: &Database,
        round: usize,
    ) -> Result<(), Error> {
        let base16 = database.pgbench(&bench.place, 16, bench.time)?;
        let with16 = save(server, runs, &format!("{round}-16"), 16, bench.time)?;
        let with64 = save(server, runs, &format!("{round}-64"), 64, bench.time)?;
        let base1 = database.pgbench(&bench.place, 1, bench.time)?;
        let with1 = save(server, runs, &format!("{round}-1"), 1, bench.time)?;
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
            .note("launched instances with the tokens of their runs, one a connection; the load speaks in place of their programs");
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

/// Gives the URLs of as many running instances, each with the token of its run: what their programs were given to speak to.
///
/// The programs only sleep, and the load speaks in their place: a token is what makes a save an ordinary one. Saves of instances
/// that were not launched by the server have none, and take another, slower path.
fn runs(server: &Server) -> Result<Vec<String>, Error> {
    let image = server.image(SLEEPER)?;
    let mut connection = server.connect()?;
    let id = |number: usize| format!("{}saver-{number}", id_prefix());
    for number in 0..MOST {
        let start = json!({"tenant_id": TENANT, "image_id": image, "instance_id": id(number)});
        connection.post("/api/v1/instances", &start)?;
    }
    let limit = Duration::from_secs(60);
    let urls = interrupt::until("the programs to be started", limit, || {
        let urls = process::variables(&id_prefix(), "RUNTARA_HTTP_URL");
        Ok((urls.len() == MOST).then_some(urls))
    })?;
    let path = |(id, url): (String, String)| {
        let (_, prefix) = url
            .split_once("/r/")
            .ok_or_else(|| Error::Unmet("a program was given a URL without a token".to_owned()))?;
        Ok(format!("/r/{prefix}/api/v1/instances/{id}"))
    };
    urls.into_iter().map(path).collect()
}

/// Lets as many instances save checkpoint after checkpoint, each over a connection of its own.
fn save(
    server: &Server,
    runs: &[String],
    name: &str,
    connections: usize,
    time: Duration,
) -> Result<Load, Error> {
    let state = "WlpaWlpaWlpa".repeat(STATE_DIGITS / 12);
    let worker = |run: &String| {
        let mut connection = Connection::open(server.core)?;
        connection.post(&format!("{run}/register"), &json!({"tenant_id": TENANT}))?;
        let path = format!("{run}/checkpoint");
        let (state, mut step) = (&state, 0_u64);
        Ok(move || {
            step += 1;
            let body = format!(r#"{{"checkpoint_id":"{name}-{step}","state":"{state}"}}"#);
            connection.call("POST", &path, body.as_bytes())
        })
    };
    let workers: Result<Vec<_>, Error> = runs.iter().take(connections).map(worker).collect();
    drive(workers?, time)
}
