//! What is seen of the field from the outside while things are done to it.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use runtara_tests::processes;

use crate::field::{Notes, now};

/// How often containers are looked at: as often as other programs say that they live.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often people are told how far the proof is.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Waits for this time. Says whether there is nothing to wait for any more: the other end of the channel is gone.
fn is_over(end: &Receiver<()>, time: Duration) -> bool {
    end.recv_timeout(time) != Err(RecvTimeoutError::Timeout)
}

/// Writes a sign of life to the ledger for each program in a container of these nodes, which has the ledger not in its reach, until the
/// other end of the channel is gone.
///
/// # Panics
/// If the ledger cannot be written.
pub(crate) fn watch_containers(nodes: &[String], ledger: &Path, end: &Receiver<()>) {
    let ledger = OpenOptions::new().append(true).open(ledger);
    let mut ledger = ledger.expect("the ledger is ours");
    while !is_over(end, LOOK_EVERY) {
        for node in nodes {
            for pid in processes::first_of_containers(node) {
                // Taken before the look: the process lives then or later.
                let at = now();
                let Some(process) = processes::read(pid) else {
                    continue;
                };
                let variable = |name| process.variable(name);
                // It has none of them until the program is executed.
                let (Some(instance), Some(run)) = (
                    variable("RUNTARA_INSTANCE_ID"),
                    variable("RUNTARA_RUN_NUMBER"),
                ) else {
                    continue;
                };
                let line = format!("{at} {instance} {run} {pid} alive\n");
                let written = ledger.write_all(line.as_bytes());
                written.expect("the ledger can be written");
            }
        }
    }
}

/// Tells now and then how far the proof is, until the other end of the channel is gone.
pub(crate) fn tell(notes: &Notes, time: Duration, ledger: &Path, end: &Receiver<()>) {
    let began = Instant::now();
    while !is_over(end, TELL_EVERY) {
        let counts = notes.counts();
        let faults = counts.iter().filter(|(what, _)| what.starts_with("fault"));
        let faults: u64 = faults.map(|(_, count)| count).sum();
        let ends = fs::read_to_string(ledger).unwrap_or_default();
        let ends = ends.lines().filter(|line| line.ends_with(" end")).count();
        println!(
            "   {:>4.0?} of {time:.0?}: {faults} faults; {ends} native programs came to their end",
            began.elapsed()
        );
    }
}
