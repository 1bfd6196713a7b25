//! Settings of containers.

use std::path::PathBuf;

use runtara_domain::{NetworkMode, ResourceLimits};
use runtara_runner_oci::limits::{LimitSources, merge};
use runtara_runner_oci::{IdRanges, USUAL_BASE};

use super::reader::Reader;

/// What containers are told by the operator.
#[derive(Debug, Clone)]
pub struct ContainerSettings {
    /// The program that makes them: a name, looked for in `PATH`, or an absolute path.
    pub runtime: String,
    /// What they reach over the network if neither image nor start says.
    pub network: NetworkMode,
    /// What they may reach at all.
    pub allowed_networks: Vec<NetworkMode>,
    /// What they may take if neither image nor start says.
    pub default_limits: ResourceLimits,
    /// What they may take at most.
    pub ceiling: ResourceLimits,
    /// The user and group ids that they have on the host.
    pub ids: IdRanges,
    /// Whether layers keep their setuid and setgid bits.
    pub keep_setuid: bool,
    /// How willingly the kernel ends them when memory of the machine runs out: -1000 to 1000.
    pub oom_score_adj: i32,
    /// Where they are mounted and noted; `/run/runtara/<node>` if not set.
    pub run_root: Option<PathBuf>,
}

/// A limit of a container, and the variables with what it is by default and at most.
struct Limit {
    of: fn(&mut ResourceLimits) -> &mut Option<u64>,
    default: &'static str,
    ceiling: &'static str,
}

const LIMITS: [Limit; 5] = [
    Limit {
        of: |limits| &mut limits.memory_bytes,
        default: "RUNTARA_CONTAINER_MEMORY_BYTES",
        ceiling: "RUNTARA_CONTAINER_MAX_MEMORY_BYTES",
    },
    Limit {
        of: |limits| &mut limits.cpu_millicores,
        default: "RUNTARA_CONTAINER_CPU_MILLICORES",
        ceiling: "RUNTARA_CONTAINER_MAX_CPU_MILLICORES",
    },
    Limit {
        of: |limits| &mut limits.pids,
        default: "RUNTARA_CONTAINER_PIDS",
        ceiling: "RUNTARA_CONTAINER_MAX_PIDS",
    },
    Limit {
        of: |limits| &mut limits.open_files,
        default: "RUNTARA_CONTAINER_OPEN_FILES",
        ceiling: "RUNTARA_CONTAINER_MAX_OPEN_FILES",
    },
    Limit {
        of: |limits| &mut limits.writable_bytes,
        default: "RUNTARA_CONTAINER_WRITABLE_BYTES",
        ceiling: "RUNTARA_CONTAINER_MAX_WRITABLE_BYTES",
    },
];

impl ContainerSettings {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let (network, allowed_networks) = networks(reader);
        let (default_limits, ceiling) = limits(reader);
        Self {
            runtime: reader
                .text("RUNTARA_OCI_RUNTIME")
                .unwrap_or_else(|| "runc".to_owned()),
            network,
            allowed_networks,
            default_limits,
            ceiling,
            ids: ids(reader),
            keep_setuid: reader.flag("RUNTARA_CONTAINER_KEEP_SETUID", false),
            oom_score_adj: reader.oom_score_adj("RUNTARA_CONTAINER_OOM_SCORE_ADJ"),
            run_root: run_root(reader),
        }
    }
}

fn networks(reader: &mut Reader<'_>) -> (NetworkMode, Vec<NetworkMode>) {
    const MODE: &str = "RUNTARA_NETWORK_MODE";
    const ALLOWED: &str = "RUNTARA_ALLOWED_NETWORK_MODES";
    let mut allowed = Vec::new();
    let listed = reader.text(ALLOWED);
    let listed = listed.as_deref().unwrap_or("isolated,egress");
    for word in listed
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
    {
        match word.parse() {
            Ok(mode) if !allowed.contains(&mode) => allowed.push(mode),
            Ok(_) => {}
            Err(error) => reader.problem(ALLOWED, format!("{error}, with commas between them")),
        }
    }
    let mode = match reader.text(MODE) {
        None => NetworkMode::default(),
        Some(word) => word.trim().parse().unwrap_or_else(|error| {
            reader.problem(MODE, format!("{error}"));
            NetworkMode::default()
        }),
    };
    if !allowed.contains(&mode) {
        let text = format!("{mode} is what containers have, and {ALLOWED} does not allow it");
        reader.problem(MODE, text);
    }
    (mode, allowed)
}

fn limits(reader: &mut Reader<'_>) -> (ResourceLimits, ResourceLimits) {
    let (mut defaults, mut ceiling) = (ResourceLimits::default(), ResourceLimits::default());
    for limit in LIMITS {
        *(limit.of)(&mut defaults) = reader.parsed(limit.default, "a whole number");
        *(limit.of)(&mut ceiling) = reader.parsed(limit.ceiling, "a whole number");
    }
    let sources = LimitSources {
        operator_default: defaults,
        ceiling,
        ..LimitSources::default()
    };
    if let Err(error) = merge(&sources) {
        reader.problem(
            "RUNTARA_CONTAINER_MEMORY_BYTES and the like",
            error.to_string(),
        );
    }
    (defaults, ceiling)
}

fn ids(reader: &mut Reader<'_>) -> IdRanges {
    const BASE: &str = "RUNTARA_CONTAINER_ID_BASE";
    const RANGES: &str = "RUNTARA_CONTAINER_ID_RANGES";
    let base: Option<u32> = reader.parsed(BASE, "a whole number");
    let ranges: Option<u32> = reader.parsed(RANGES, "a whole number");
    let made = match (base, ranges) {
        (None, None) => return IdRanges::default(),
        // As many as there is room for above it, up to what is usual.
        (Some(base), None) => (1..=IdRanges::USUAL_COUNT)
            .rev()
            .find_map(|count| IdRanges::new(base, count).ok())
            .map_or_else(|| IdRanges::new(base, 1), Ok),
        (base, Some(ranges)) => IdRanges::new(base.unwrap_or(USUAL_BASE), ranges),
    };
    made.unwrap_or_else(|error| {
        reader.problem(
            if base.is_some() { BASE } else { RANGES },
            error.to_string(),
        );
        IdRanges::default()
    })
}

fn run_root(reader: &mut Reader<'_>) -> Option<PathBuf> {
    const NAME: &str = "RUNTARA_CONTAINER_RUN_DIR";
    let path = PathBuf::from(reader.text(NAME)?);
    if !path.is_absolute() {
        let text = format!("found '{}'; an absolute path is wanted", path.display());
        reader.problem(NAME, text);
    }
    Some(path)
}
