//! Instances that wait for a word while their server is killed: what the phases of guests and of native programs do alike.

use std::time::{Duration, Instant};

use serde_json::json;

use super::now;
use super::runs::completed;
use super::server::{Server, id_prefix};
use super::wire::Connection;
use crate::error::Error;
use crate::interrupt;

/// Has the server hold every wait.
pub(super) const HOLD: (&str, &str) = ("RUNTARA_SLEEP_HOLD_MS", "600000");
/// How long an instance waits: less than what the server is told to hold.
pub(super) const WAIT_MS: u32 = 590_000;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// How many are woken at the end.
const WOKEN: usize = 100;

/// How long it took from the kill of a server on.
pub(super) struct Recovery {
    /// Seconds until the next one answered.
    pub(super) ready: f64,
    /// Seconds until all instances had spoken to it.
    pub(super) again: f64,
}

/// The id of an instance that waits.
pub(super) fn id(number: usize) -> String {
    format!("{}held-{number}", id_prefix())
}

/// Waits until the next sign of life of each is noted again, which happens every 5 seconds at most. Buffers of their starts have gone
/// back by then, too; a minute would change nothing.
pub(super) fn settle() -> Result<(), Error> {
    interrupt::pause(Duration::from_secs(6))
}

/// Waits until so many are in their run of this number, and have spoken in it, since when it may have begun.
pub(super) fn wait_for_runs(
    connection: &mut Connection,
    (run, since): (u64, Duration),
    count: usize,
) -> Result<(), Error> {
    let mut missing: Vec<_> = (0..count).map(id).collect();
    interrupt::until("the instances to wait", PATIENCE, || {
        while let Some(id) = missing.last() {
            let found = connection.get(&format!("/api/v1/instances/{id}"))?;
            let seen = found["heartbeat_at_ms"].as_u64().unwrap_or_default();
            let spoke = u128::from(seen) >= since.as_millis();
            if found["status"] != "running" || found["run_number"] != run || !spoke {
                return Ok(None);
            }
            missing.pop();
        }
        Ok(Some(()))
    })
}

/// Kills the server, starts the next one, and waits until so many are in their run of this number there.
pub(super) fn kill_and_wait(
    server: &mut Server,
    (database_url, variables): (&str, &[(&str, &str)]),
    (run, count): (u64, usize),
) -> Result<Recovery, Error> {
    let (began, killed) = (Instant::now(), now());
    server.kill_and_restart(database_url, variables)?;
    let ready = began.elapsed().as_secs_f64();
    wait_for_runs(&mut server.connect()?, (run, killed), count)?;
    let again = began.elapsed().as_secs_f64();
    Ok(Recovery { ready, again })
}

/// Says the word to some of so many, and waits for their end: they are as alive as they seem.
pub(super) fn wake_some(server: &Server, count: usize) -> Result<(), Error> {
    let mut connection = server.connect()?;
    for number in (0..count).step_by(count / WOKEN) {
        let path = format!("/api/v1/instances/{}/signals/custom", id(number));
        connection.post(&path, &json!({"signal_id": "go"}))?;
        completed(&mut connection, &id(number))?;
    }
    Ok(())
}
