//! How fast programs are started, do their steps and end.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::figure::{Bound, Figure};
use super::load::{Load, drive};
use super::server::{Server, TENANT, id_prefix, program};
use super::wire::Connection;
use super::{Bench, say};
use crate::error::Error;
use crate::interrupt;

/// A program that exits at once, and never speaks.
pub(super) const SILENT: &str = "exits_with";
/// A program that does what its input says, over the instance protocol.
pub(super) const SPEAKER: &str = "speaks_the_protocol";
/// How many are at work at once.
pub(super) const CONCURRENT: usize = 16;
/// What a start, a claim and an end need at least.
pub(super) const COMMITS: f64 = 3.0;

/// Measures starts one after another beside fork, exec, wait and three commits.
pub(super) fn one_by_one(bench: &Bench) -> Result<Vec<Figure>, Error> {
    let database = bench.postgres.database("one_by_one")?;
    database.prepare_pgbench()?;
    let server = Server::start(&bench.place, "one_by_one", &database, &[])?;
    let image = server.image(SILENT)?;
    complete(&server, &image, &Value::Null, "warm", 1, bench.time / 4)?;
    let (mut ours, mut limits) = (Vec::new(), Vec::new());
    for round in 0..bench.rounds {
        let forked = fork_and_wait(1, bench.time / 2)?;
        let commit = database.pgbench(&bench.place, 1, bench.time / 2)?;
        let name = format!("{round}");
        let load = complete(&server, &image, &Value::Null, &name, 1, bench.time)?;
        let limit = forked.p50() + COMMITS * commit.p50_ms;
        say(format!(
            "one start after another, round {}: {:.2} ms, beside {:.2} ms fork+exec+wait and 3 x {:.2} ms commit",
            round + 1,
            load.p50(),
            forked.p50(),
            commit.p50_ms
        ));
        ours.push(load.p50());
        limits.push(limit);
    }
    let figure = Figure::new("native start to completed, p50", "ms", &ours)
        .beside("fork+exec+wait + 3 commits", &limits)
        .must(Bound::RatioAtMost(2.0))
        .note("from the start's first byte to the answer that says completed; aim 1.5 x");
    Ok(vec![figure])
}

/// Measures starts by 16 at once.
pub(super) fn many(bench: &Bench) -> Result<Vec<Figure>, Error> {
    let database = bench.postgres.database("many")?;
    let server = Server::start(&bench.place, "many", &database, &[])?;
    let image = server.image(SILENT)?;
    let (mut ours, mut limits) = (Vec::new(), Vec::new());
    for round in 0..bench.rounds {
        let forked = fork_and_wait(CONCURRENT, bench.time / 2)?;
        let name = format!("{round}");
        let load = complete(&server, &image, &Value::Null, &name, CONCURRENT, bench.time)?;
        say(format!(
            "starts, round {}: {:.0}/s, beside {:.0}/s fork+exec+wait",
            round + 1,
            load.rate,
            forked.rate
        ));
        ours.push(load.rate);
        limits.push(forked.rate);
    }
    let figure = Figure::new("starts/s, 16 concurrent", "/s", &ours)
        .beside("fork+exec+wait, 16 threads", &limits)
        .must(Bound::AtLeast(400.0))
        .note("each started and seen to complete; aim 600/s on 2 cores");
    Ok(vec![figure])
}

/// Measures workflows of ten steps, each in a process of its own.
pub(super) fn workflows(bench: &Bench) -> Result<Vec<Figure>, Error> {
    let database = bench.postgres.database("workflows")?;
    let server = Server::start(&bench.place, "workflows", &database, &[])?;
    let image = server.image(SPEAKER)?;
    let input = json!({"steps": 10});
    let mut rates = Vec::new();
    for round in 0..bench.rounds {
        let name = format!("{round}");
        let load = complete(&server, &image, &input, &name, CONCURRENT, bench.time)?;
        say(format!(
            "workflows, round {}: {:.0}/s, p50 {:.0} ms",
            round + 1,
            load.rate,
            load.p50()
        ));
        rates.push(load.rate);
    }
    let figure = Figure::new("10-step workflows/s, 16 concurrent", "/s", &rates)
        .must(Bound::AtLeast(150.0))
        .note(
            "health, register, input, ten looks, ten saves, completed: 24 calls over one connection each",
        );
    Ok(vec![figure])
}

/// Starts instances and waits for the end of each, by so many at once.
pub(super) fn complete(
    server: &Server,
    image: &str,
    input: &Value,
    name: &str,
    concurrent: usize,
    time: Duration,
) -> Result<Load, Error> {
    let worker = |number: usize| {
        let mut connection = server.connect()?;
        let mut count = 0_u64;
        Ok(move || {
            count += 1;
            let id = format!("{}{name}-{concurrent}-{number}-{count}", id_prefix());
            let start =
                json!({"tenant_id": TENANT, "image_id": image, "instance_id": id, "input": input});
            connection.post("/api/v1/instances", &start)?;
            let end = connection.get(&format!("/api/v1/instances/{id}?wait_ms=30000"))?;
            expect_completed(&end)
        })
    };
    let workers: Result<Vec<_>, Error> = (0..concurrent).map(worker).collect();
    drive(workers?, time)
}

/// Waits until an instance has completed, and gives it.
pub(super) fn completed(connection: &mut Connection, id: &str) -> Result<Value, Error> {
    let end = connection.get(&format!("/api/v1/instances/{id}?wait_ms=40000"))?;
    expect_completed(&end)?;
    Ok(end)
}

/// Fails unless an instance has completed.
pub(super) fn expect_completed(instance: &Value) -> Result<(), Error> {
    if instance["status"] == "completed" {
        return Ok(());
    }
    Err(Error::Unmet(format!(
        "an instance did not complete: {instance}"
    )))
}

/// Starts the silent program and waits for it, without us in between.
fn fork_and_wait(threads: usize, time: Duration) -> Result<Load, Error> {
    interrupt::check()?;
    let worker = || {
        || {
            let status = Command::new(program(SILENT))
                .env_clear()
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            let status = status.map_err(Error::io(format!("run {SILENT}")))?;
            if status.success() {
                Ok(())
            } else {
                Err(Error::Unmet(format!("{SILENT} exited with {status}")))
            }
        }
    };
    drive((0..threads).map(|_| worker()).collect(), time)
}
