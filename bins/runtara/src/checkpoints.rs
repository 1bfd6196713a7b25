//! `runtara checkpoints`: what an instance saved.

use clap::Args;
use runtara_management_sdk::{CheckpointFilter, CheckpointSummary, Client};

use crate::failure::Failure;
use crate::screen::Screen;
use crate::start::output_text;
use crate::table::{Cell, Table};
use crate::text::{moment, size};

/// List an instance's checkpoints, or show one
#[derive(Debug, Args)]
pub(crate) struct CheckpointsArgs {
    /// Id of the instance
    id: String,
    /// The checkpoint whose state is printed
    checkpoint: Option<String>,
    /// How many at most: the newest
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

pub(crate) async fn run(
    client: &Client,
    screen: &mut Screen,
    args: CheckpointsArgs,
) -> Result<(), Failure> {
    if let Some(id) = &args.checkpoint {
        let checkpoint = client.checkpoint(&args.id, id).await?;
        return match (&checkpoint.data, screen.json) {
            (_, true) => Ok(screen.json(&checkpoint)?),
            (Some(data), false) => Ok(screen.line(&output_text(data))?),
            (None, false) => Ok(()),
        };
    }
    // The list of an unknown instance is empty: only its status tells the two apart.
    client.instance(&args.id).await?;
    let page = client
        .checkpoints(&args.id, &CheckpointFilter::new().limit(args.limit))
        .await?;
    if screen.json {
        return Ok(screen.json(&page)?);
    }
    screen.table(&table(&page.items), true)?;
    if page.next_cursor.is_some() {
        screen.note(&format!(
            "the newest {} of {}",
            page.items.len(),
            page.total_count
        ));
    }
    Ok(())
}

fn table(checkpoints: &[CheckpointSummary]) -> Table {
    let mut table = Table::new(["CHECKPOINT", "SAVED", "SIZE"]);
    for checkpoint in checkpoints {
        table.row([
            Cell::from(&checkpoint.checkpoint_id),
            moment(checkpoint.created_at_ms).into(),
            size(checkpoint.data_size_bytes).into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_listed_in_columns() {
        let rows: Vec<CheckpointSummary> = serde_json::from_value(serde_json::json!([
            {"checkpoint_id": "charge", "instance_id": "o", "created_at_ms": 0, "data_size_bytes": 2048}
        ]))
        .unwrap();
        assert_eq!(
            table(&rows).render(true, false),
            "CHECKPOINT  SAVED                 SIZE\ncharge      1970-01-01 00:00:00Z  2.0 KiB\n"
        );
    }
}
