//! How soon native programs are in the hands of a server again when the one that had them was killed.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use super::figure::{Bound, Figure};
use super::load::median;
use super::server::{Server, TENANT};
use super::{Bench, held, now, say};
use crate::error::Error;

/// How many programs run when their server is killed.
const RUNNING: usize = 1_000;
/// A program of the SDK, which calls again until a server answers.
const CLIENT: &str = "uses_the_sdk";
/// How many run on a node that dies.
const LOST: usize = 16;
/// Seconds until another node must run them: the lease of the dead one, and one more.
const FAILOVER_LIMIT: f64 = 15.0 + 1.0;

/// Measures the next server of the same node on both stores, and another node on the store that several can share.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>, Error> {
    let sqlite = bench.sqlite("recovery-sqlite");
    let postgres = bench.postgres.database("recovery")?.url;
    Ok(vec![
        adopted(bench, "SQLite", &sqlite)?,
        adopted(bench, "PostgreSQL", &postgres)?,
        taken_over(bench)?,
    ])
}

/// Kills a server with programs at work, and takes the time until each of them has spoken to the next one, in the run in which it was.
fn adopted(bench: &Bench, store: &str, url: &str) -> Result<Figure, Error> {
    let count = if bench.quick { RUNNING / 10 } else { RUNNING };
    let place = format!("recovery-{}", store.to_lowercase());
    let variables = [held::HOLD];
    let mut server = Server::start_on(&bench.place, &place, url, &variables)?;
    let began = Instant::now();
    start(&server, count)?;
    let started = began.elapsed().as_secs_f64();
    let (mut rounds, mut readies) = (Vec::new(), Vec::new());
    for round in 0..bench.rounds {
        held::settle()?;
        let held::Recovery { ready, again } =
            held::kill_and_wait(&mut server, (url, &variables), (1, count))?;
        say(format!(
            "{count} programs on {store}, round {}: all in hand again {again:.2} s after the server was killed, which answered after \
             {ready:.2} s; they had taken {started:.1} s to start",
            round + 1
        ));
        rounds.push(again);
        readies.push(ready);
    }
    held::wake_some(&server, count)?;
    let figure = Figure::new(
        format!("native runs adopted after a crash, {store}"),
        "s",
        &rounds,
    )
    .must(Bound::AtMost(10.0))
    .note(format!(
        "{count} of them, from the kill on until the last has spoken to the next server; that answered after {:.2} s",
        median(&readies)
    ));
    Ok(figure)
}

/// Kills one of two nodes, and takes the time until all that ran there run on the other one.
fn taken_over(bench: &Bench) -> Result<Figure, Error> {
    let mut rounds = Vec::new();
    for round in 0..bench.rounds {
        let url = bench.postgres.database(&format!("failover_{round}"))?.url;
        // Images are those of one database.
        let images = bench.place.join(format!("failover-{round}-images"));
        fs::create_dir_all(&images).map_err(Error::io(format!("make {}", images.display())))?;
        let images = format!("file://{}", images.display());
        let node = |name: &str| {
            let variables = [
                held::HOLD,
                ("RUNTARA_IMAGE_STORE_URL", &images),
                ("RUNTARA_NODE_NAME", name),
            ];
            let place = format!("failover-{round}-{name}");
            Server::start_on(&bench.place, &place, &url, &variables)
        };
        let mut first = node("first")?;
        // The other one is not there yet: all of them run here.
        start(&first, LOST)?;
        let second = node("second")?;
        held::settle()?;
        let (began, killed) = (Instant::now(), now());
        first.kill()?;
        held::wait_for_runs(&mut second.connect()?, (2, killed), LOST)?;
        let again = began.elapsed().as_secs_f64();
        say(format!(
            "{LOST} programs of a dead node, round {}: at work on the other one after {again:.2} s",
            round + 1
        ));
        rounds.push(again);
    }
    let figure = Figure::new("failover of a dead node", "s", &rounds)
        .must(Bound::AtMost(FAILOVER_LIMIT))
        .note(format!(
            "{LOST} programs, from the kill on until the last is at work on the other node; a lease lasts 15 s"
        ));
    Ok(figure)
}

/// Starts so many, and waits until each of them waits.
fn start(server: &Server, count: usize) -> Result<(), Error> {
    let image = server.image(CLIENT)?;
    let mut connection = server.connect()?;
    let actions = json!([{"wait_signal": {"id": "go", "timeout_ms": held::WAIT_MS}}]);
    for number in 0..count {
        let start = json!({
            "tenant_id": TENANT, "image_id": image, "instance_id": held::id(number), "input": {"actions": actions},
        });
        connection.post("/api/v1/instances", &start)?;
    }
    held::wait_for_runs(&mut connection, (1, Duration::ZERO), count)
}
