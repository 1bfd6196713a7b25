//! `runtara logs`: what the program wrote.

use std::time::Duration;

use clap::Args;
use runtara_management_sdk::{Client, Instance, LogQuery, OutputStream, Status};
use serde_json::json;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::live::{LONGEST_OUTAGE, goes_on, or_interrupt};
use crate::screen::Screen;

/// Pause between two looks while nothing comes.
const PAUSE: Duration = Duration::from_millis(500);

/// Print what an instance wrote
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Id of the instance
    id: String,
    /// Go on as it writes, over all later runs, until it ends
    #[arg(long, short)]
    follow: bool,
    /// Standard error in place of standard output
    #[arg(long)]
    stderr: bool,
    /// The run to print; the last one if absent
    #[arg(long, value_name = "N")]
    run: Option<u64>,
    /// From which byte on
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    offset: u64,
}

pub(crate) async fn run(
    client: &Client,
    screen: &mut Screen,
    args: &LogsArgs,
) -> Result<(), Failure> {
    if args.follow {
        return or_interrupt(|| goes_on(&args.id), follow(client, screen, args)).await;
    }
    let mut offset = args.offset;
    match copy(client, screen, args, args.run, &mut offset).await {
        // What is missing may be the instance, or only the log.
        Err(Failure::Client(error)) if error.is_not_found() => {
            client.instance(&args.id).await?;
            Err(nothing_kept(args))
        }
        result => result,
    }
}

fn nothing_kept(args: &LogsArgs) -> Failure {
    Failure::Missing(format!(
        "nothing is kept of what instance {:?} wrote",
        args.id
    ))
}

/// Copies what the program wrote as it is, its colours included. From `offset` to the end of what there is, or of the run while following.
async fn copy(
    client: &Client,
    screen: &mut Screen,
    args: &LogsArgs,
    run: Option<u64>,
    offset: &mut u64,
) -> Result<(), Failure> {
    let stream = if args.stderr {
        OutputStream::Stderr
    } else {
        OutputStream::Stdout
    };
    let mut query = LogQuery::new().stream(stream).follow(args.follow);
    query.run = run;
    query.offset = (*offset > 0).then_some(*offset);
    let mut log = client.logs(&args.id, &query).await?;
    if log.offset() > *offset {
        screen.note(&format!(
            "the first {} bytes are no longer kept",
            log.offset()
        ));
    }
    *offset = log.offset();
    while let Some(chunk) = log.chunk().await? {
        if screen.json {
            screen.json_line(
                &json!({"run": log.run(), "offset": *offset, "text": String::from_utf8_lossy(&chunk)}),
            )?;
        } else {
            screen.bytes(&chunk)?;
        }
        *offset = log.offset();
    }
    Ok(())
}

/// Follows one run after the other until the instance has ended.
async fn follow(client: &Client, screen: &mut Screen, args: &LogsArgs) -> Result<(), Failure> {
    let mut offset = args.offset;
    let mut run = args.run;
    let mut last_answer = Instant::now();
    // One of several runs may have written nothing, or what it wrote may be gone. If it is so of all, that is told.
    let mut is_any_kept = false;
    let end = |is_any_kept| match is_any_kept {
        true => Ok(()),
        false => Err(nothing_kept(args)),
    };
    let mut instance = client.instance(&args.id).await?;
    loop {
        // A run that has not begun has written nothing.
        run = run.or(launched(&instance));
        if let Some(number) = run {
            let was_over = instance.status.is_end()
                || launched(&instance) > Some(number)
                // Only this run was asked for, and it has spoken its last word.
                || (args.run.is_some() && instance.status == Status::Suspended);
            let is_read = match copy(client, screen, args, Some(number), &mut offset).await {
                // Nothing is kept of this run, or nothing was written yet.
                Err(Failure::Client(error)) if error.is_not_found() => true,
                Err(Failure::Client(error))
                    if error.is_transient() && last_answer.elapsed() < LONGEST_OUTAGE =>
                {
                    false
                }
                Err(failure) => return Err(failure),
                Ok(()) => {
                    (is_any_kept, last_answer) = (true, Instant::now());
                    true
                }
            };
            match () {
                () if !was_over || !is_read => {}
                () if args.run.is_some() || launched(&instance) <= Some(number) => {
                    return end(is_any_kept);
                }
                () => (run, offset) = (Some(number + 1), 0),
            }
        } else if instance.status.is_end() {
            return end(is_any_kept);
        }
        let asked = Instant::now();
        match client.instance_after(&args.id, PAUSE).await {
            Ok(answer) => (instance, last_answer) = (answer, Instant::now()),
            Err(error) if error.is_transient() && last_answer.elapsed() < LONGEST_OUTAGE => {}
            Err(error) => return Err(error.into()),
        }
        if !instance.status.is_end() {
            // A server that does not wait would be asked without pause.
            tokio::time::sleep_until(asked + PAUSE).await;
        }
    }
}

/// The number of the last run, where there was one.
fn launched(instance: &Instance) -> Option<u64> {
    instance.run_number.filter(|run| *run > 0)
}
