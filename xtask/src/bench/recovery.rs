//! How soon native programs are in the hands of a server again whose predecessor was killed.

use std::time::{Duration, Instant};

use serde_json::json;

use super::figure::{Bound, Figure};
use super::guests::{completed, held_id, now, wait_for_runs};
use super::load::median;
use super::server::{Server, TENANT};
use super::{Bench, say};
use crate::error::Error;
use crate::interrupt;

/// How many programs run when their server is killed.
const RUNNING: usize = 1_000;
/// A program of the SDK, which calls again until a server answers.
const CLIENT: &str = "uses_the_sdk";
/// How long a program waits: less than what the server is told to hold.
const WAIT_MS: u32 = 590_000;

/// Measures it on both stores.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>, Error> {
    let place = "recovery-sqlite";
    let file = bench.place.join(place).join("runtara.db");
    let sqlite = format!("sqlite:{}", file.display());
    let postgres = bench.postgres.database("recovery")?.url;
    Ok(vec![
        adopted(bench, ("SQLite", place), &sqlite)?,
        adopted(bench, ("PostgreSQL", "recovery-postgresql"), &postgres)?,
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
    for number in 0..count {
        let input = json!({"actions": [{"wait_signal": {"id": "go", "timeout_ms": WAIT_MS}}]});
        let start = json!({
            "tenant_id": TENANT, "image_id": image, "instance_id": held_id(number), "input": input,
        });
        connection.post("/api/v1/instances", &start)?;
    }
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
