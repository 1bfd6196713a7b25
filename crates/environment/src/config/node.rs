//! Settings of this node among others.

use std::collections::HashMap;

use runtara_domain::RunnerKind;

use super::reader::Reader;

/// What a node is told of itself.
#[derive(Debug, Clone, Default)]
pub struct NodeSettings {
    /// Where other nodes reach it, as `host:port`; it listens there. Without one they cannot fetch logs from it.
    pub address: Option<String>,
    /// How much of its room for runs one takes, by its kind: 1 if nothing is said.
    pub weights: HashMap<RunnerKind, usize>,
}

const MOST_WEIGHT: usize = 10_000;

impl NodeSettings {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            address: reader.host_and_port("RUNTARA_NODE_ADDR"),
            weights: weights(reader),
        }
    }
}

fn weights(reader: &mut Reader<'_>) -> HashMap<RunnerKind, usize> {
    const NAME: &str = "RUNTARA_RUN_WEIGHTS";
    let text = reader.text(NAME).unwrap_or_default();
    let mut weights = HashMap::new();
    let entries = text.split(',').map(str::trim);
    for entry in entries.filter(|entry| !entry.is_empty()) {
        match weight(entry) {
            Some((kind, weight)) => {
                weights.insert(kind, weight);
            }
            None => reader.problem(
                NAME,
                format!(
                    "found {entry:?}; kind=weight with commas between them is wanted, of the kinds oci, native and wasm, with whole numbers from 1 \
                     to {MOST_WEIGHT}"
                ),
            ),
        }
    }
    weights
}

fn weight(entry: &str) -> Option<(RunnerKind, usize)> {
    let (kind, weight) = entry.split_once('=')?;
    let weight: usize = weight.trim().parse().ok()?;
    let kind = kind.trim().parse().ok()?;
    (1..=MOST_WEIGHT)
        .contains(&weight)
        .then_some((kind, weight))
}
