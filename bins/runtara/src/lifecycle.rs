//! Verbs that change what instances do: `signal`, `pause`, `resume`, `cancel`, `stop`, `rm`.

use std::time::Duration;

use clap::Args;
use runtara_management_sdk::{Client, Error};
use serde_json::json;

use crate::failure::Failure;
use crate::screen::Screen;
use crate::text::printable;
use crate::values::{duration, text_from};

/// Instances that a verb is for.
#[derive(Debug, Args)]
pub(crate) struct Instances {
    /// Ids of the instances
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

/// Send a custom signal that an instance waits for
#[derive(Debug, Args)]
pub(crate) struct SignalArgs {
    /// Id of the instance
    id: String,
    /// Name of the signal, as the program waits for it
    name: String,
    /// What goes with it: text in place, @file, or - for standard input
    payload: Option<String>,
}

/// End instances: ask, then kill after the grace
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    instances: Instances,
    /// How long they may take to leave
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = duration)]
    grace: Duration,
    /// Why, for the record
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
}

pub(crate) async fn signal(
    client: &Client,
    screen: &mut Screen,
    args: SignalArgs,
) -> Result<(), Failure> {
    let payload = match &args.payload {
        Some(given) => Some(text_from(given).await?),
        None => None,
    };
    client
        .custom_signal(&args.id, &args.name, payload.as_deref())
        .await?;
    told(screen, &args.id, "signalled")
}

pub(crate) async fn pause(
    client: &Client,
    screen: &mut Screen,
    args: &Instances,
) -> Result<(), Failure> {
    each(screen, &args.ids, "asked to pause", async |id: &str| {
        client.pause(id).await
    })
    .await
}

pub(crate) async fn resume(
    client: &Client,
    screen: &mut Screen,
    args: &Instances,
) -> Result<(), Failure> {
    each(screen, &args.ids, "resumed", async |id: &str| {
        client.resume(id).await
    })
    .await
}

pub(crate) async fn cancel(
    client: &Client,
    screen: &mut Screen,
    args: &Instances,
) -> Result<(), Failure> {
    each(screen, &args.ids, "asked to end", async |id: &str| {
        client.cancel(id).await
    })
    .await
}

pub(crate) async fn stop(
    client: &Client,
    screen: &mut Screen,
    args: &StopArgs,
) -> Result<(), Failure> {
    let stop = async |id: &str| client.stop(id, args.grace, &args.reason).await;
    each(screen, &args.instances.ids, "stopped", stop).await
}

pub(crate) async fn remove(
    client: &Client,
    screen: &mut Screen,
    args: &Instances,
) -> Result<(), Failure> {
    each(screen, &args.ids, "removed", async |id: &str| {
        client.purge(id).await
    })
    .await
}

/// Does the same to each, in order. One that fails does not keep the others from their turn, but a server that is away does.
pub(crate) async fn each(
    screen: &mut Screen,
    ids: &[String],
    done: &str,
    act: impl AsyncFn(&str) -> Result<(), Error>,
) -> Result<(), Failure> {
    let mut first: Option<Failure> = None;
    let mut failed = 0;
    for id in ids {
        match act(id).await.map_err(Failure::from) {
            Ok(()) => told(screen, id, done)?,
            Err(failure) if ids.len() == 1 || failure.exit_code() == 4 => return Err(failure),
            Err(failure) => {
                screen.note(&format!("error: {id}: {}", failure.text()));
                failed += 1;
                first.get_or_insert(failure);
            }
        }
    }
    match first {
        None => Ok(()),
        Some(failure) => Err(Failure::Several {
            message: format!("{failed} of {} failed", ids.len()),
            code: failure.exit_code(),
        }),
    }
}

fn told(screen: &mut Screen, id: &str, done: &str) -> Result<(), Failure> {
    if screen.json {
        screen.json_line(&json!({"id": id, "done": done}))?;
    } else {
        screen.line(&format!("{} {done}", printable(id)))?;
    }
    Ok(())
}
