//! How soon native programs are in the hands of a server again when the one that had them was killed.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use super::figure::{Bound, Figure};
use super::guests::{completed, held_id, now, wait_for_runs};
use super::load::median;
use super::server::{Server, TENANT};
use super::wire::Connection;
use super::{Bench, say};
use crate::error::Error;
use crate::interrupt;

/// How many programs run when their server is killed.
const RUNNING: usize = 1_000;
/// A program of the SDK, which calls again until a server answers.
const CLIENT: &str = "uses_the_sdk";
/// How long a program waits: less than what the server is told to hold.
const WAIT_MS: u32 = 590_000;

/// How many run on a node that dies, and what a node may need until it runs them: the lease of the dead one and a second.
const LOST: usize = 16;
const FAILOVER_LIMIT: f64 = 15.0 + 1.0;

/// Measures the next server of the same node on both stores, and another node on the store that several can share.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>, Error> {
    let place = "recovery-sqlite";
    let file = bench.place.join(place).join("runtara.db");
    let sqlite = format!("sqlite:{}", file.display());
    let postgres = bench.postgres.database("recovery")?.url;
    Ok(vec![
        adopted(bench, ("SQLite", place), &sqlite)?,
        adopted(bench, ("PostgreSQL", "recovery-postgresql"), &postgres)?,
        taken_over(bench)?,
    ])
}

/// Kills a server with programs at work, and takes the time until each of them has spoken to the next one, in the run in which it was.
fn adopted(bench: &Bench, (store, place): (&str, &str), url: &str) -> Result<Figure, Error> {
    let count = if bench.quick { RUNNING / 10 } else { RUNNING };
    let variables = [("RUNTARA_SLEEP_HOLD_MS", "600000")];
    let mut server = Server::start_on(&bench.place, place, url, &variables)?;
    let image = server.image(CLIENT)?;
    let mut connection = server.connect()?;
    let began = Instant::now();
    start(&mut connection, &image, count)?;
    wait_for_runs(&mut connection, (1, Duration::ZERO), count)?;
    let started = began.elapsed().as_secs_f64();
    let mut rounds = Vec::new();
    let mut readies = Vec::new();
    for round in 0..bench.rounds {
        // A sign of life is noted every 5 seconds at most: the next one must not be kept back because of the last.
        interrupt::pause(Duration::from_secs(6))?;
        let (began, killed) = (Instant::now(), now());
        server.kill_and_restart(url, &variables)?;
        let ready = began.elapsed().as_secs_f64();
        connection = server.connect()?;
        wait_for_runs(&mut connection, (1, killed), count)?;
        let again = began.elapsed().as_secs_f64();
        say(format!(
            "{count} programs on {store}, round {}: all in hand again {again:.2} s after the server was killed, which answered after \
             {ready:.2} s; they had taken {started:.1} s to start",
            round + 1
        ));
        rounds.push(again);
        readies.push(ready);
    }
    // They are as alive as they seem, and have lost nothing.
    for number in (0..count).step_by(count / 100) {
        let path = format!("/api/v1/instances/{}/signals/custom", held_id(number));
        connection.post(&path, &json!({"signal_id": "go"}))?;
        completed(&mut connection, &held_id(number))?;
    }
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
    let images = bench.place.join("failover-images");
    fs::create_dir_all(&images).map_err(Error::io(format!("make {}", images.display())))?;
    let images = format!("file://{}", images.display());
    let mut rounds = Vec::new();
    for round in 0..bench.rounds {
        let url = bench.postgres.database(&format!("failover_{round}"))?.url;
        let node = |name: &str| {
            let variables = [
                ("RUNTARA_SLEEP_HOLD_MS", "600000"),
                ("RUNTARA_IMAGE_STORE_URL", &images),
                ("RUNTARA_NODE_NAME", name),
            ];
            let place = format!("failover-{round}-{name}");
            Server::start_on(&bench.place, &place, &url, &variables)
        };
        let mut first = node("first")?;
        let image = first.image(CLIENT)?;
        // The other one is not there yet: all of them run here.
        start(&mut first.connect()?, &image, LOST)?;
        wait_for_runs(&mut first.connect()?, (1, Duration::ZERO), LOST)?;
        let second = node("second")?;
        interrupt::pause(Duration::from_secs(6))?;
        let (began, killed) = (Instant::now(), now());
        first.kill()?;
        wait_for_runs(&mut second.connect()?, (2, killed), LOST)?;
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

/// Starts so many that wait.
fn start(connection: &mut Connection, image: &str, count: usize) -> Result<(), Error> {
    for number in 0..count {
        let input = json!({"actions": [{"wait_signal": {"id": "go", "timeout_ms": WAIT_MS}}]});
        let start = json!({
            "tenant_id": TENANT, "image_id": image, "instance_id": held_id(number), "input": input,
        });
        connection.post("/api/v1/instances", &start)?;
    }
    Ok(())
}
