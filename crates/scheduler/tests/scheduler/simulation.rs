//! Random histories of servers on a simulated clock: starts, calls, exits, crashes of servers, lost answers, expired leases, pauses,
//! cancels and clocks that are set. Days pass in a fraction of a second, and each history follows from its seed.
//!
//! The scheduler and the core are the real ones, the store is the reference, and programs are tasks that outlive their server.
//! `RUNTARA_TEST_HISTORIES` says how many histories of one server there are, and of the others in proportion; `RUNTARA_TEST_SEED` with
//! which seed they begin.

mod history;
mod host;
mod program;

use std::time::Duration;

use runtara_images::{BlobOptions, BlobStore, Stored};
use tempfile::TempDir;

use self::history::{Shape, live};

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}; a number is wanted")),
        Err(_) => default,
    }
}

/// How many histories of one server there are unless something else is asked for: as many as take a few seconds.
const HISTORIES: u64 = 40;

/// Lives so many histories for each [`HISTORIES`], each with a runtime, and so a clock, of its own.
fn live_all(share: u64, shape: impl Fn(u64) -> Shape) {
    let first = number("RUNTARA_TEST_SEED", fastrand::u64(..1_000_000));
    let histories = number("RUNTARA_TEST_HISTORIES", HISTORIES) * share / HISTORIES;
    let histories = histories.max(1);
    let (mut runs, mut time) = (0, Duration::ZERO);
    let content = Content::make();
    for seed in first..first + histories {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        // A failure anywhere names the seed, also where nobody catches it.
        let told = Told(seed);
        let lived = runtime.block_on(live(seed, shape(seed), &content));
        runtime.shutdown_background();
        drop(told);
        runs += lived.runs;
        time += lived.time;
    }
    eprintln!(
        "{histories} histories from seed {first}: {runs} runs in {time:.0?} of simulated time"
    );
}

/// The one program of all histories, which nobody executes. To make it durable each time would take longer than to live them.
struct Content {
    directory: TempDir,
    blobs: BlobStore,
    stored: Stored,
}

impl Content {
    fn make() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let (blobs, stored) = runtime.unwrap().block_on(async {
            let blobs = BlobStore::open(directory.path().join("blobs"), BlobOptions::default());
            let blobs = blobs.await.unwrap();
            let mut upload = blobs.upload().await.unwrap();
            upload.write(b"#!/bin/sh\n").await.unwrap();
            (blobs, upload.finish(None).await.unwrap())
        });
        Self {
            directory,
            blobs,
            stored,
        }
    }
}

/// Says with which seed a history failed.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "repeat it with RUNTARA_TEST_SEED={} RUNTARA_TEST_HISTORIES=1",
                self.0
            );
        }
    }
}

#[test]
fn one_server_keeps_its_promises() {
    live_all(HISTORIES, |_| Shape {
        nodes: 1,
        time: Duration::from_secs(600),
        clock_is_set: false,
    });
}

#[test]
fn several_servers_keep_their_promises() {
    live_all(30, |seed| Shape {
        nodes: 2 + (seed % 2) as usize,
        time: Duration::from_secs(600),
        clock_is_set: false,
    });
}

#[test]
fn a_clock_that_is_set_breaks_none() {
    live_all(20, |_| Shape {
        nodes: 1,
        time: Duration::from_secs(900),
        clock_is_set: true,
    });
}

#[test]
fn days_break_none() {
    live_all(1, |_| Shape {
        nodes: 1,
        time: Duration::from_secs(5 * 86_400),
        clock_is_set: false,
    });
}
