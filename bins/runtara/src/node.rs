//! `runtara node …`

use std::time::Duration;

use clap::{Args, Subcommand};
use runtara_management_sdk::{Client, Node};

use crate::failure::Failure;
use crate::lifecycle::{each, told};
use crate::screen::Screen;
use crate::table::{Cell, Table, Tint};
use crate::text::span;
use crate::values::duration;

/// List, drain and remove the servers that share a database
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List nodes
    Ls,
    /// Have nodes take nothing new and hand over what still runs
    Drain(DrainArgs),
    /// Let drained nodes work again
    Undrain(Nodes),
    /// Remove dead nodes that do not come back
    Remove(Nodes),
}

/// Nodes that a verb is for.
#[derive(Debug, Args)]
pub(crate) struct Nodes {
    /// Names or ids of the nodes
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
}

/// Have nodes take nothing new and hand over what still runs
///
/// Instances that are handed over run on elsewhere from their last checkpoint; nothing is counted against them. A drained node stays so,
/// also over restarts, until `node undrain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    nodes: Nodes,
    /// How long what runs may go on
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = duration)]
    hand_over_after: Duration,
}

/// Carries one of them out.
pub(crate) async fn run(
    client: &Client,
    screen: &mut Screen,
    command: NodeCommand,
) -> Result<(), Failure> {
    match command {
        NodeCommand::Ls => ls(client, screen).await,
        NodeCommand::Drain(args) => {
            let drain = async |screen: &mut Screen, node: &str| {
                client.drain_node(node, args.hand_over_after).await?;
                told(screen, node, "is being drained")
            };
            each(screen, &args.nodes.nodes, drain).await
        }
        NodeCommand::Undrain(args) => {
            let undrain = async |screen: &mut Screen, node: &str| {
                client.undrain_node(node).await?;
                told(screen, node, "works again")
            };
            each(screen, &args.nodes, undrain).await
        }
        NodeCommand::Remove(args) => {
            let remove = async |screen: &mut Screen, node: &str| {
                let runs = client.remove_node(node).await?;
                let done = match runs {
                    0 => "removed".to_owned(),
                    1 => "removed; the instance that ran there runs elsewhere".to_owned(),
                    _ => format!("removed; {runs} instances that ran there run elsewhere"),
                };
                told(screen, node, &done)
            };
            each(screen, &args.nodes, remove).await
        }
    }
}

async fn ls(client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    let nodes = client.nodes().await?;
    if screen.json {
        screen.json(&nodes)?;
    } else {
        screen.table(&table(&nodes), true)?;
    }
    Ok(())
}

fn table(nodes: &[Node]) -> Table {
    let mut table = Table::new(["NAME", "STATE", "RUNS", "ROOM", "LEASE", "ADDRESS", "ID"]);
    for node in nodes {
        table.row([
            Cell::from(&node.name),
            state(node),
            node.live_runs.to_string().into(),
            format!("{} of {}", node.used, node.capacity).into(),
            lease(node.lease_in_ms).into(),
            node.address.as_deref().unwrap_or("-").into(),
            Cell::new(&node.node_id, Tint::Dim),
        ]);
    }
    table
}

fn state(node: &Node) -> Cell {
    let tint = match node.state.as_str() {
        "alive" => Tint::Green,
        "draining" => Tint::Yellow,
        _ => Tint::Red,
    };
    match node.hand_over_in_ms {
        Some(0) if node.live_runs == 0 => Cell::new("drained", tint),
        Some(ms) if node.state == "draining" => {
            let left = span(Duration::from_millis(ms));
            Cell::new(format!("draining, hands over in {left}"), tint)
        }
        _ => Cell::new(&node.state, tint),
    }
}

fn lease(ms: i64) -> String {
    let length = span(Duration::from_millis(ms.unsigned_abs()));
    match ms {
        ..=0 => format!("over for {length}"),
        _ => length,
    }
}
