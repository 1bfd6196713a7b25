//! What a container may take: merged from what its image says, what its start asks for, and what the operator allows.

use runtara_domain::ResourceLimits;

/// A megabyte as memory is counted.
const MIB: u64 = 1024 * 1024;

/// Memory of a container when nobody says how much: what Google Cloud Run gives, and enough for most programs of any language.
pub const DEFAULT_MEMORY_BYTES: u64 = 512 * MIB;
/// Least memory, as Docker has it: runc cannot start a container with less than some 4 MiB (measured).
pub const LEAST_MEMORY_BYTES: u64 = 6 * MIB;
/// Processes and threads of a container when nobody says how many.
pub const DEFAULT_PIDS: u64 = 512;
/// Open files of each process when nobody says how many: the soft and the hard limit that systemd gives to services
/// (`DefaultLimitNOFILE`). Programs that need many raise the soft limit themselves; those that use `select` know no higher number.
pub const DEFAULT_OPEN_FILES: OpenFiles = OpenFiles {
    soft: 1024,
    hard: 524_288,
};
/// Fewest open files: standard streams, libraries and a connection.
pub const LEAST_OPEN_FILES: u64 = 16;
/// Least processor time: the kernel's shortest quota is 1 ms in each period of 100 ms.
pub const LEAST_CPU_MILLICORES: u64 = 10;
/// Size of the writable layer when nobody says how large, if it is not more than half of the memory, to which it is charged.
pub const DEFAULT_WRITABLE_BYTES: u64 = 64 * MIB;
/// Smallest writable layer: the directories that runc makes need a few pages.
pub const LEAST_WRITABLE_BYTES: u64 = MIB;
/// Largest value that a runtime takes: it reads signed numbers.
const MOST: u64 = i64::MAX.cast_unsigned();

/// Who has a say in the limits of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitSources {
    /// What the image says.
    pub image: ResourceLimits,
    /// What the start asks for. It wins over the image.
    pub start: ResourceLimits,
    /// What the operator gives where neither says anything.
    pub operator_default: ResourceLimits,
    /// What nobody may go beyond.
    pub ceiling: ResourceLimits,
}

/// What a container may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of all processes and of all that they write to places in memory, in bytes. Nothing of it is swapped out.
    pub memory_bytes: u64,
    /// Processor time: 1000 is one processor. `None`: what is free, in fair shares with others.
    pub cpu_millicores: Option<u64>,
    /// Processes and threads at once.
    pub pids: u64,
    /// Open files of each process.
    pub open_files: OpenFiles,
    /// Size of the writable layer in bytes, the run directory included; `/tmp` has as much for itself. Both are charged to the memory as
    /// they are filled.
    pub writable_bytes: u64,
}

/// Limits on open files (getrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// What holds at first.
    pub soft: u64,
    /// To where a process may raise it.
    pub hard: u64,
}

/// Says which limit cannot be what somebody asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// It is beyond what the operator allows.
    #[error(
        "{limit} of {asked}, as {who} asks, is more than the operator allows; ask for at most {ceiling}"
    )]
    OverCeiling {
        /// The limit and its unit.
        limit: &'static str,
        /// Who asks.
        who: &'static str,
        /// What is asked for.
        asked: u64,
        /// The most that is allowed.
        ceiling: u64,
    },
    /// It is so low that no container works.
    #[error(
        "{limit} of {asked}, as {who} asks, is too low for a container; ask for at least {least}"
    )]
    TooLow {
        /// The limit and its unit.
        limit: &'static str,
        /// Who asks.
        who: &'static str,
        /// What is asked for.
        asked: u64,
        /// The least that works.
        least: u64,
    },
    /// The writable layer could never be filled: the memory it is charged to would be used up before.
    #[error(
        "a writable layer of {writable_bytes} bytes is charged to the memory, which is {memory_bytes} bytes; ask for more memory or for a smaller layer"
    )]
    WritableOverMemory {
        /// Size of the layer that is asked for.
        writable_bytes: u64,
        /// The memory of the container.
        memory_bytes: u64,
    },
}

/// Merges the limits of a container: the start wins over the image, both over the operator's default, and what nobody says is as usual,
/// or at the ceiling if that is lower.
///
/// # Errors
/// [`LimitError::OverCeiling`] and [`LimitError::TooLow`] if somebody asks for what cannot be given, [`LimitError::WritableOverMemory`] if
/// a writable layer is asked for that is not smaller than the memory.
pub fn merge(sources: &LimitSources) -> Result<Limits, LimitError> {
    let memory_bytes = settle(sources, &MEMORY)?.unwrap_or(DEFAULT_MEMORY_BYTES);
    let memory_bytes = under(memory_bytes, sources.ceiling.memory_bytes);
    let writable_bytes = match settle(sources, &WRITABLE)? {
        Some(writable_bytes) if writable_bytes >= memory_bytes => {
            return Err(LimitError::WritableOverMemory {
                writable_bytes,
                memory_bytes,
            });
        }
        Some(writable_bytes) => writable_bytes,
        None => under(
            DEFAULT_WRITABLE_BYTES.min(memory_bytes / 2),
            sources.ceiling.writable_bytes,
        ),
    };
    Ok(Limits {
        memory_bytes,
        cpu_millicores: settle(sources, &CPU)?.or(sources.ceiling.cpu_millicores),
        pids: settle(sources, &PIDS)?.unwrap_or(under(DEFAULT_PIDS, sources.ceiling.pids)),
        open_files: match settle(sources, &OPEN_FILES)? {
            Some(asked) => OpenFiles {
                soft: asked,
                hard: asked,
            },
            None => OpenFiles {
                soft: under(DEFAULT_OPEN_FILES.soft, sources.ceiling.open_files),
                hard: under(DEFAULT_OPEN_FILES.hard, sources.ceiling.open_files),
            },
        },
        writable_bytes,
    })
}

/// One limit: its name with its unit, where it stands, and its least value.
struct Limit {
    name: &'static str,
    of: fn(&ResourceLimits) -> Option<u64>,
    least: u64,
}

const MEMORY: Limit = Limit {
    name: "memory (bytes)",
    of: |limits| limits.memory_bytes,
    least: LEAST_MEMORY_BYTES,
};
const CPU: Limit = Limit {
    name: "processor time (thousandths of a processor)",
    of: |limits| limits.cpu_millicores,
    least: LEAST_CPU_MILLICORES,
};
const PIDS: Limit = Limit {
    name: "number of processes",
    of: |limits| limits.pids,
    least: 1,
};
const OPEN_FILES: Limit = Limit {
    name: "number of open files",
    of: |limits| limits.open_files,
    least: LEAST_OPEN_FILES,
};
const WRITABLE: Limit = Limit {
    name: "writable layer (bytes)",
    of: |limits| limits.writable_bytes,
    least: LEAST_WRITABLE_BYTES,
};

/// What the first who says something about a limit says.
fn settle(sources: &LimitSources, limit: &Limit) -> Result<Option<u64>, LimitError> {
    let asking = [
        ("the start", &sources.start),
        ("the image", &sources.image),
        ("the operator's default", &sources.operator_default),
    ];
    let found = asking
        .into_iter()
        .find_map(|(who, limits)| Some((who, (limit.of)(limits)?)));
    let Some((who, asked)) = found else {
        return Ok(None);
    };
    let ceiling = (limit.of)(&sources.ceiling).unwrap_or(MOST);
    if asked > ceiling {
        return Err(LimitError::OverCeiling {
            limit: limit.name,
            who,
            asked,
            ceiling,
        });
    }
    if asked < limit.least {
        return Err(LimitError::TooLow {
            limit: limit.name,
            who,
            asked,
            least: limit.least,
        });
    }
    Ok(Some(asked))
}

fn under(value: u64, ceiling: Option<u64>) -> u64 {
    ceiling.map_or(value, |ceiling| value.min(ceiling))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(bytes: u64) -> ResourceLimits {
        ResourceLimits {
            memory_bytes: Some(bytes),
            ..ResourceLimits::default()
        }
    }

    #[test]
    fn what_nobody_says_is_as_usual() {
        let limits = merge(&LimitSources::default()).unwrap();
        assert_eq!(
            limits,
            Limits {
                memory_bytes: DEFAULT_MEMORY_BYTES,
                cpu_millicores: None,
                pids: DEFAULT_PIDS,
                open_files: DEFAULT_OPEN_FILES,
                writable_bytes: DEFAULT_WRITABLE_BYTES,
            }
        );
    }

    #[test]
    fn the_start_wins_over_the_image_and_the_image_over_the_operator() {
        let mut sources = LimitSources {
            operator_default: memory(100 * MIB),
            ..LimitSources::default()
        };
        assert_eq!(merge(&sources).unwrap().memory_bytes, 100 * MIB);
        sources.image = memory(200 * MIB);
        assert_eq!(merge(&sources).unwrap().memory_bytes, 200 * MIB);
        sources.start = memory(300 * MIB);
        assert_eq!(merge(&sources).unwrap().memory_bytes, 300 * MIB);
    }

    #[test]
    fn a_ceiling_refuses_what_is_asked_and_lowers_what_is_not() {
        let mut sources = LimitSources {
            ceiling: ResourceLimits {
                memory_bytes: Some(100 * MIB),
                cpu_millicores: Some(500),
                pids: Some(10),
                open_files: Some(2048),
                writable_bytes: Some(8 * MIB),
            },
            ..LimitSources::default()
        };
        let limits = merge(&sources).unwrap();
        assert_eq!(limits.memory_bytes, 100 * MIB);
        assert_eq!(limits.cpu_millicores, Some(500));
        assert_eq!(limits.pids, 10);
        assert_eq!(
            (limits.open_files.soft, limits.open_files.hard),
            (1024, 2048)
        );
        assert_eq!(limits.writable_bytes, 8 * MIB);
        sources.image = memory(101 * MIB);
        let error = merge(&sources).unwrap_err().to_string();
        assert_eq!(
            error,
            "memory (bytes) of 105906176, as the image asks, is more than the operator allows; ask for at most 104857600"
        );
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let sources = LimitSources {
            start: memory(MIB),
            ..LimitSources::default()
        };
        assert!(matches!(
            merge(&sources),
            Err(LimitError::TooLow {
                who: "the start",
                least: LEAST_MEMORY_BYTES,
                ..
            })
        ));
        let sources = LimitSources {
            start: ResourceLimits {
                memory_bytes: Some(32 * MIB),
                writable_bytes: Some(32 * MIB),
                ..ResourceLimits::default()
            },
            ..LimitSources::default()
        };
        let error = merge(&sources).unwrap_err();
        assert!(
            matches!(error, LimitError::WritableOverMemory { .. }),
            "{error}"
        );
    }

    #[test]
    fn the_usual_writable_layer_leaves_half_of_a_small_memory() {
        let sources = LimitSources {
            start: memory(32 * MIB),
            ..LimitSources::default()
        };
        assert_eq!(merge(&sources).unwrap().writable_bytes, 16 * MIB);
    }

    #[test]
    fn numbers_that_no_runtime_takes_are_refused() {
        let sources = LimitSources {
            start: memory(u64::MAX),
            ..LimitSources::default()
        };
        assert!(matches!(
            merge(&sources),
            Err(LimitError::OverCeiling { .. })
        ));
    }
}
