//! Which runner could run content, and whether this server does.

use std::collections::BTreeMap;

use runtara_domain::RunnerKind;

use crate::{Compression, Detected, Machine};

/// Says why an image is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KindError {
    /// No runner runs such content.
    #[error(
        "the content is {found}, which no runner can run; send an ELF program, a `#!` script, a WebAssembly module or \
         component, or a container image (OCI layout or docker archive)"
    )]
    NotRunnable {
        /// What the content is.
        found: String,
    },
    /// The content is not of the declared kind.
    #[error(
        "runner type '{declared}' takes {wanted}, and the content is {found}; declare {fitting}",
        wanted = wanted(*declared),
        fitting = either(fitting)
    )]
    Misdeclared {
        /// The kind that was declared.
        declared: RunnerKind,
        /// What the content is.
        found: String,
        /// The kinds that it fits.
        fitting: Vec<RunnerKind>,
    },
    /// The content cannot be laid on a base.
    #[error(
        "the content is {found}, and only an ELF program or a `#!` script is laid on a base; register it without one"
    )]
    NotOnBase {
        /// What the content is.
        found: String,
    },
    /// The declared kind knows no base.
    #[error(
        "runner type '{declared}' knows no base, which is for containers; declare 'oci', or register it without a base"
    )]
    BaseOfContainers {
        /// The kind that was declared.
        declared: RunnerKind,
    },
    /// In a container of its own, the program would lack what runs it.
    #[error(
        "the content is {found}, to be run as 'oci', and a container of it alone holds no {needed}; {way_out}"
    )]
    Alone {
        /// What the content is.
        found: String,
        /// The path of the program that loads or runs it.
        needed: String,
        /// What could be done about it.
        way_out: String,
    },
    /// The server has no runner of this kind.
    #[error(
        "the content is {found}, to be run as '{kind}', and this server runs {runnable}{reason}{hint}",
        runnable = only(runnable)
    )]
    NotHere {
        /// What the content is.
        found: String,
        /// The kind it would need.
        kind: RunnerKind,
        /// The kinds that this server runs.
        runnable: Vec<RunnerKind>,
        /// Why it does not run that kind and what to do; begins with a separator, or is empty.
        reason: String,
        /// What else could be done about it; begins with a separator, or is empty.
        hint: &'static str,
    },
    /// The program is for another kind of processor.
    #[error(
        "the content is {found}, and this server is an {host} machine; build the program for {host}"
    )]
    OtherMachine {
        /// What the content is.
        found: String,
        /// The kind of processor the server has.
        host: Machine,
    },
}

/// What a server can run.
#[derive(Debug, Clone)]
pub struct KindRules {
    /// The kinds that it has a runner for.
    pub runnable: Vec<RunnerKind>,
    /// Of other kinds, what is missing and what to do.
    pub unavailable: BTreeMap<RunnerKind, String>,
    /// Whether a program or script that was declared `oci` runs as a native process where there is no runner for containers.
    /// Published clients declare `oci` unless told otherwise. It takes the isolation away that the declaration asks for,
    /// so it is for the operator to say.
    pub native_for_oci: bool,
    /// The kind of processor of the machine, if known; programs for others are refused.
    pub machine: Option<Machine>,
}

impl KindRules {
    /// The rules of a server on this machine.
    #[must_use]
    pub fn new(runnable: impl Into<Vec<RunnerKind>>, native_for_oci: bool) -> Self {
        Self {
            runnable: runnable.into(),
            unavailable: BTreeMap::new(),
            native_for_oci,
            machine: Machine::host(),
        }
    }

    fn runs(&self, kind: RunnerKind) -> bool {
        self.runnable.contains(&kind)
    }
}

/// What is to be registered, as far as it decides how it is run.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// What the content is.
    pub detected: &'a Detected,
    /// The kind that was declared, if one was.
    pub declared: Option<RunnerKind>,
    /// Whether the content is laid on a container image.
    pub with_base: bool,
}

impl Candidate<'_> {
    /// The kinds that could run it, whatever this server runs.
    fn fitting(&self) -> Result<&'static [RunnerKind], KindError> {
        let found = || self.detected.to_string();
        let fitting = kinds_of(self.detected);
        if fitting.is_empty() {
            return Err(KindError::NotRunnable { found: found() });
        }
        if self.with_base {
            return self.on_base();
        }
        match self.declared {
            Some(declared) if !fitting.contains(&declared) => Err(KindError::Misdeclared {
                declared,
                found: found(),
                fitting: fitting.to_vec(),
            }),
            _ => Ok(fitting),
        }
    }

    fn on_base(&self) -> Result<&'static [RunnerKind], KindError> {
        if !matches!(self.detected, Detected::Elf(_) | Detected::Script { .. }) {
            return Err(KindError::NotOnBase {
                found: self.detected.to_string(),
            });
        }
        match self.declared {
            None | Some(RunnerKind::Oci) => Ok(&[RunnerKind::Oci]),
            Some(declared) => Err(KindError::BaseOfContainers { declared }),
        }
    }

    /// The file without which it cannot run in a container of its own.
    fn needs(&self) -> Option<&str> {
        match self.detected {
            _ if self.with_base => None,
            Detected::Elf(elf) => elf.interpreter.as_deref(),
            Detected::Script { interpreter } => Some(interpreter),
            _ => None,
        }
    }
}

/// The kind under which an image is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChosenKind {
    /// The kind.
    pub kind: RunnerKind,
    /// Whether a container was declared, and a native process is what it gets: [`KindRules::native_for_oci`]. Worth a word
    /// to whoever registers it.
    pub native_for_oci: bool,
}

/// The kinds that could run such content, the one with more isolation first; empty if none could.
#[must_use]
pub fn kinds_of(detected: &Detected) -> &'static [RunnerKind] {
    match detected {
        Detected::Elf(_) | Detected::Script { .. } => &[RunnerKind::Oci, RunnerKind::Native],
        Detected::WasmModule | Detected::WasmComponent => &[RunnerKind::Wasm],
        // What is inside of compressed content is found out by whoever unpacks it: the runner for containers.
        Detected::OciLayout
        | Detected::DockerArchive
        | Detected::Compressed(Compression::Gzip | Compression::Zstd) => &[RunnerKind::Oci],
        Detected::Tar | Detected::Empty | Detected::Unusable { .. } | Detected::Unknown { .. } => {
            &[]
        }
    }
}

/// Chooses the kind under which content is registered, or says why it is refused.
///
/// A declared kind must fit the content. `oci` fits a plain program as well as a container image: it is then run in a container of
/// its own, for which it must be linked statically, or laid on a base that holds what it needs, as a script must. Without a
/// declaration the content decides, and of several kinds that this server runs the one with more isolation.
///
/// # Errors
/// [`KindError`], whose text is meant for whoever registers the image.
pub fn check_kind(candidate: &Candidate<'_>, rules: &KindRules) -> Result<ChosenKind, KindError> {
    let mut fitting = candidate.fitting()?;
    check_machine(candidate.detected, rules)?;
    if rules.runs(RunnerKind::Oci)
        && let Some(needed) = candidate.needs()
    {
        fitting = not_alone(candidate, needed, rules)?;
    }
    let wanted = candidate
        .declared
        .or_else(|| fitting.iter().copied().find(|kind| rules.runs(*kind)))
        .unwrap_or(fitting[0]);
    if rules.runs(wanted) {
        return Ok(ChosenKind {
            kind: wanted,
            native_for_oci: false,
        });
    }
    let native_would_do = wanted == RunnerKind::Oci
        && fitting.contains(&RunnerKind::Native)
        && rules.runs(RunnerKind::Native);
    if native_would_do && rules.native_for_oci {
        return Ok(ChosenKind {
            kind: RunnerKind::Native,
            native_for_oci: true,
        });
    }
    let reason = rules.unavailable.get(&wanted);
    Err(KindError::NotHere {
        found: candidate.detected.to_string(),
        kind: wanted,
        runnable: rules.runnable.clone(),
        reason: reason.map_or_else(String::new, |reason| format!(": {reason}")),
        hint: match native_would_do {
            true => "; declare 'native' to run it as a process of the host",
            false => "",
        },
    })
}

/// What could run a program that a container of its own does not do for.
fn not_alone(
    candidate: &Candidate<'_>,
    needed: &str,
    rules: &KindRules,
) -> Result<&'static [RunnerKind], KindError> {
    let native_runs = rules.runs(RunnerKind::Native);
    match candidate.declared {
        Some(RunnerKind::Native) => return Ok(&[RunnerKind::Native]),
        None if native_runs => return Ok(&[RunnerKind::Native]),
        _ => {}
    }
    let mut ways = Vec::new();
    if let Detected::Elf(_) = candidate.detected {
        ways.push("link the program statically");
    }
    ways.push("name a base image that holds it");
    if native_runs {
        ways.push("declare 'native' to run it as a process of the host");
    }
    Err(KindError::Alone {
        found: candidate.detected.to_string(),
        needed: needed.escape_debug().to_string(),
        way_out: ways.join(", or "),
    })
}

fn check_machine(detected: &Detected, rules: &KindRules) -> Result<(), KindError> {
    match (detected, rules.machine) {
        (Detected::Elf(elf), Some(host)) if !host.runs(elf.machine) => {
            Err(KindError::OtherMachine {
                found: detected.to_string(),
                host,
            })
        }
        _ => Ok(()),
    }
}

fn wanted(kind: RunnerKind) -> &'static str {
    match kind {
        RunnerKind::Oci => "a container image, an ELF program or a `#!` script",
        RunnerKind::Native => "an ELF program or a `#!` script",
        RunnerKind::Wasm => "a WebAssembly module or component",
    }
}

/// `'a' or 'b'`.
fn either(kinds: &[RunnerKind]) -> String {
    let quoted: Vec<String> = kinds.iter().map(|kind| format!("'{kind}'")).collect();
    quoted.join(" or ")
}

/// `only 'a' or 'b'`.
fn only(kinds: &[RunnerKind]) -> String {
    match kinds {
        [] => "no programs".to_owned(),
        kinds => format!("only {}", either(kinds)),
    }
}

#[cfg(test)]
mod tests;
