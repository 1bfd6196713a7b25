//! `runtara stop`: ending instances, and waiting until their processes are gone.

use std::time::Duration;

use clap::Args;
use runtara_management_sdk::{Client, Error, Status, Stopped};
use serde_json::json;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::lifecycle::{Instances, each};
use crate::live::or_interrupt;
use crate::screen::Screen;
use crate::text::{printable, span};
use crate::values::duration;

/// How long after the grace a killed process may need to be gone and its end to be recorded.
const AFTER_THE_GRACE: Duration = Duration::from_secs(8);
/// How long the server is asked to wait at a time.
const ROUND: Duration = Duration::from_secs(20);
/// Pause where it cannot be asked.
const PAUSE: Duration = Duration::from_millis(500);
/// How often the live line is written anew.
const REDRAW: Duration = Duration::from_millis(250);

/// End instances: ask, then kill after the grace
///
/// Tells how each ended: stopped, or completed or failed if it came to that within the grace. Exit status 124: one was still
/// leaving a few seconds after the grace.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    instances: Instances,
    /// How long they may take to leave, in whole seconds
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = duration)]
    grace: Duration,
    /// Why, for the record
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
}

pub(crate) async fn run(
    client: &Client,
    screen: &mut Screen,
    args: &StopArgs,
) -> Result<(), Failure> {
    let stop = async |screen: &mut Screen, id: &str| {
        let began = Instant::now();
        let end = until_gone(client, id, args, began);
        let end = or_interrupt(|| left_behind(id), end);
        let stopped = showing(screen, end, || line(id, args.grace, began.elapsed())).await?;
        told(screen, id, &stopped)
    };
    each(screen, &args.instances.ids, stop).await
}

fn left_behind(id: &str) -> String {
    format!("instance {id:?} is asked to leave all the same, `runtara wait {id}` waits for its end")
}

/// Stops an instance, and waits for its end where the server answers before it: its longest answer is shorter than a long grace.
async fn until_gone(
    client: &Client,
    id: &str,
    args: &StopArgs,
    began: Instant,
) -> Result<Stopped, Failure> {
    let mut stopped = client.stop(id, args.grace, &args.reason).await?;
    let patience = args.grace.saturating_add(AFTER_THE_GRACE);
    while !stopped.process_gone && !stopped.status.is_end() {
        let left = patience.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(Failure::Client(Error::WaitTimedOut {
                id: id.to_owned(),
                after: patience,
                status: stopped.status,
            }));
        }
        match client.instance_after(id, left.min(ROUND)).await {
            Ok(instance) => {
                // It ends with its process, unless it said its last word before.
                stopped.process_gone = instance.status == Status::Cancelled;
                stopped.status = instance.status;
            }
            // The server minds the grace also while it cannot be asked.
            Err(error) if error.is_transient() => tokio::time::sleep(PAUSE.min(left)).await,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(stopped)
}

/// Carries `work` out, and shows a line meanwhile where it can be written over.
async fn showing<T>(
    screen: &mut Screen,
    work: impl Future<Output = T>,
    line: impl Fn() -> String,
) -> T {
    if !screen.is_live() {
        return work.await;
    }
    let mut work = std::pin::pin!(work);
    let mut redraw = tokio::time::interval(REDRAW);
    loop {
        tokio::select! {
            done = &mut work => {
                screen.over("");
                return done;
            }
            _ = redraw.tick() => screen.over(&line()),
        }
    }
}

fn line(id: &str, grace: Duration, waited: Duration) -> String {
    // Rounded up: as long as it says a second, the program has that second.
    let left = grace.saturating_sub(waited).as_millis().div_ceil(1_000);
    let left = Duration::from_secs(u64::try_from(left).unwrap_or(u64::MAX));
    let id = printable(id);
    if left.is_zero() {
        format!("{id}  leaving  {}", span(waited))
    } else {
        format!("{id}  leaving, killed in {}  {}", span(left), span(waited))
    }
}

fn told(screen: &mut Screen, id: &str, stopped: &Stopped) -> Result<(), Failure> {
    let done = match &stopped.status {
        Status::Cancelled => "stopped",
        other => other.as_str(),
    };
    if screen.json {
        let gone = stopped.process_gone;
        let told = json!({"id": id, "done": done, "status": stopped.status, "process_gone": gone});
        screen.json_line(&told)?;
    } else {
        screen.line(&format!("{} {}", printable(id), printable(done)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_counts_down_to_the_kill() {
        let line = |waited| {
            line(
                "o-1",
                Duration::from_secs(60),
                Duration::from_millis(waited),
            )
        };
        assert_eq!(line(1_000), "o-1  leaving, killed in 59s  1.0s");
        assert_eq!(line(59_900), "o-1  leaving, killed in 1.0s  59s");
        assert_eq!(line(61_000), "o-1  leaving  1m 1s");
    }
}
