//! Verbs that change what instances do: `signal`, `pause`, `resume`, `cancel`, `rm`; and how a verb is for several.

use clap::Args;
use runtara_management_sdk::Client;
use serde_json::json;

use crate::failure::Failure;
use crate::screen::Screen;
use crate::text::printable;
use crate::values::text_from;

/// Instances that a verb is for.
#[derive(Debug, Args)]
pub(crate) struct Instances {
    /// Ids of the instances
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
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
    each(screen, &args.ids, async |screen: &mut Screen, id: &str| {
        client.pause(id).await?;
        told(screen, id, "asked to pause")
    })
    .await
}

pub(crate) async fn resume(
    client: &Client,
    screen: &mut Screen,
    args: &Instances,
) -> Result<(), Failure> {
    each(screen, &args.ids, async |screen: &mut Screen, id: &str| {
        client.resume(id).await?;
        told(screen, id, "resumed")
    })
    .await
}

pub(crate) async fn cancel(
    client: &Client,
    screen: &mut Screen,
    args: &Instances,
) -> Result<(), Failure> {
    each(screen, &args.ids, async |screen: &mut Screen, id: &str| {
        client.cancel(id).await?;
        told(screen, id, "asked to end")
    })
    .await
}

pub(crate) async fn remove(
    client: &Client,
    screen: &mut Screen,
    args: &Instances,
) -> Result<(), Failure> {
    each(screen, &args.ids, async |screen: &mut Screen, id: &str| {
        client.purge(id).await?;
        told(screen, id, "removed")
    })
    .await
}

/// Does the same to each, in order. One that fails does not keep the others from their turn, but a server that is away does, and
/// so does a user who leaves.
pub(crate) async fn each(
    screen: &mut Screen,
    ids: &[String],
    act: impl AsyncFn(&mut Screen, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut first: Option<Failure> = None;
    let mut failed = 0;
    for id in ids {
        match act(screen, id).await {
            Ok(()) => {}
            Err(failure) if ids.len() == 1 || matches!(failure.exit_code(), 4 | 130) => {
                return Err(failure);
            }
            Err(failure) => {
                let told = if screen.json {
                    failure.json_of(id).to_string()
                } else {
                    format!("error: {id}: {}", failure.text())
                };
                screen.note(&told);
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

/// Says that it was done.
pub(crate) fn told(screen: &mut Screen, id: &str, done: &str) -> Result<(), Failure> {
    if screen.json {
        screen.json_line(&json!({"id": id, "done": done}))?;
    } else {
        screen.line(&format!("{} {done}", printable(id)))?;
    }
    Ok(())
}
