//! How fast states are made durable, beside what the database does without us.

use std::time::Duration;

use serde_json::json;

use super::crowd::{self, Member};
use super::database::{Database, STATE_BYTES};
use super::figure::{Bound, Figure};
use super::load::{Load, median};
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
    base16_cpu: Vec<f64>,
    base1: Vec<f64>,
    with16: Vec<Saves>,
    with64: Vec<Saves>,
    with1: Vec<Saves>,
}

/// A load of saves, and what each cost.
struct Saves {
    load: Load,
    /// CPU microseconds of our server for each.
    server_us: f64,
    /// CPU microseconds of PostgreSQL for each.
    database_us: f64,
}

impl Saves {
    fn cost(&self) -> String {
        format!(
            "{:.0} us CPU each (load {:.0}, server {:.0}, database {:.0})",
            self.load.own_cpu_us + self.server_us + self.database_us,
            self.load.own_cpu_us,
            self.server_us,
            self.database_us
        )
    }
}

/// Measures with 16, 64 and one connection.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>, Error> {
    let database = bench.postgres.database("checkpoints")?;
    database.prepare_pgbench()?;
    let server = Server::start(&bench.place, "checkpoints", &database, &[])?;
    let runs = runs(&server)?;
    let saver = Saver {
        server: &server,
        database: &database,
        runs: &runs,
    };
    saver.save("warm", MOST, Duration::from_secs(1))?;
    let mut rounds = Rounds::default();
    for round in 0..bench.rounds {
        rounds.measure(bench, &saver, round)?;
    }
    Ok(rounds.figures())
}

impl Rounds {
    fn measure(&mut self, bench: &Bench, saver: &Saver<'_>, round: usize) -> Result<(), Error> {
        let database = saver.database;
        let base16 = database.pgbench(&bench.place, 16, bench.time)?;
        let with16 = saver.save(&format!("{round}-16"), 16, bench.time)?;
        let with64 = saver.save(&format!("{round}-64"), 64, bench.time)?;
        let base1 = database.pgbench(&bench.place, 1, bench.time)?;
        let with1 = saver.save(&format!("{round}-1"), 1, bench.time)?;
        say(format!(
            "checkpoints, round {}: pgbench {:.0}/s, ours {:.0}/s with 16 and {:.0}/s with 64; alone {:.2} and {:.2} ms",
            round + 1,
            base16.rate,
            with16.load.rate,
            with64.load.rate,
            base1.p50_ms,
            with1.load.p50(),
        ));
        say(format!(
            "checkpoints, round {}: pgbench {:.0} us CPU of the database each; with 16 {}; with 64 {}; alone {}",
            round + 1,
            base16.cpu_us,
            with16.cost(),
            with64.cost(),
            with1.cost()
        ));
        self.base16.push(base16.rate);
        self.base16_cpu.push(base16.cpu_us);
        self.base1.push(base1.p50_ms);
        self.with16.push(with16);
        self.with64.push(with64);
        self.with1.push(with1);
        Ok(())
    }

    fn figures(&self) -> Vec<Figure> {
        let many = |connections: usize, saves: &[Saves], least: f64| {
            let of = |part: fn(&Saves) -> f64| saves.iter().map(part).collect::<Vec<f64>>();
            let rates = of(|it| it.load.rate);
            let p50 = of(|it| it.load.p50());
            let p99 = of(|it| it.load.p99());
            let database_us = of(|it| it.database_us);
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
            let cost = Figure::new(
                format!("database CPU of a checkpoint, {connections} connections"),
                "us",
                &database_us,
            )
            .beside("pgbench, 16 clients", &self.base16_cpu)
            .note(format!(
                "beside {:.0} us of our server and {:.0} us of the load; it does not depend on what else the machine does",
                median(&of(|it| it.server_us)),
                median(&of(|it| it.load.own_cpu_us))
            ));
            [rate, tail, cost]
        };
        let alone: Vec<f64> = self.with1.iter().map(|it| it.load.p50()).collect();
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

struct Saver<'a> {
    server: &'a Server,
    database: &'a Database,
    runs: &'a [String],
}

impl Saver<'_> {
    /// Lets as many instances save checkpoint after checkpoint, each over a connection of its own.
    fn save(&self, name: &str, connections: usize, time: Duration) -> Result<Saves, Error> {
        let state = "WlpaWlpaWlpa".repeat(STATE_DIGITS / 12);
        let members: Vec<_> = self.runs[..connections]
            .iter()
            .map(|run| Member {
                port: self.server.core,
                path: format!("{run}/checkpoint"),
            })
            .collect();
        for run in &self.runs[..connections] {
            let mut connection = Connection::open(self.server.core)?;
            connection.post(&format!("{run}/register"), &json!({"tenant_id": TENANT}))?;
        }
        let used = || {
            let server = process::cpu_seconds(self.server.pid())?;
            Ok::<_, Error>((server, self.database.cpu_seconds()?))
        };
        let before = used()?;
        let load = crowd::drive(&members, time, |step| {
            format!(r#"{{"checkpoint_id":"{name}-{step}","state":"{state}"}}"#)
        })?;
        let after = used()?;
        let calls = load.millis.len() as f64;
        Ok(Saves {
            load,
            server_us: (after.0 - before.0) * 1e6 / calls,
            database_us: (after.1 - before.1) * 1e6 / calls,
        })
    }
}
