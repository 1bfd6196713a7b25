//! Which runner could run content, and whether this server does.

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
    /// The server has no runner of this kind.
    #[error(
        "the content is {found}, to be run as '{kind}', and this server runs only {runnable}{hint}",
        runnable = either(runnable)
    )]
    NotHere {
        /// What the content is.
        found: String,
        /// The kind it would need.
        kind: RunnerKind,
        /// The kinds that this server runs.
        runnable: Vec<RunnerKind>,
        /// What could be done about it; begins with a separator, or is empty.
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
            native_for_oci,
            machine: Machine::host(),
        }
    }

    fn runs(&self, kind: RunnerKind) -> bool {
        self.runnable.contains(&kind)
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
/// A declared kind must fit the content. `oci` fits a plain program or script as well as a container image: it is then run in
/// a container. Without a declaration the content decides, and of several kinds that this server runs the one
/// with more isolation.
///
/// # Errors
/// [`KindError`], whose text is meant for whoever registers the image.
pub fn check_kind(
    detected: &Detected,
    declared: Option<RunnerKind>,
    rules: &KindRules,
) -> Result<ChosenKind, KindError> {
    let fitting = kinds_of(detected);
    let Some(first) = fitting.first() else {
        return Err(KindError::NotRunnable {
            found: detected.to_string(),
        });
    };
    if let Some(declared) = declared
        && !fitting.contains(&declared)
    {
        return Err(KindError::Misdeclared {
            declared,
            found: detected.to_string(),
            fitting: fitting.to_vec(),
        });
    }
    check_machine(detected, rules)?;
    let wanted = declared
        .or_else(|| fitting.iter().copied().find(|kind| rules.runs(*kind)))
        .unwrap_or(*first);
    if rules.runs(wanted) {
        return Ok(ChosenKind {
            kind: wanted,
            native_for_oci: false,
        });
    }
    let native_would_do = fitting.contains(&RunnerKind::Native) && rules.runs(RunnerKind::Native);
    if wanted == RunnerKind::Oci && native_would_do && rules.native_for_oci {
        return Ok(ChosenKind {
            kind: RunnerKind::Native,
            native_for_oci: true,
        });
    }
    Err(KindError::NotHere {
        found: detected.to_string(),
        kind: wanted,
        runnable: rules.runnable.clone(),
        hint: match wanted {
            RunnerKind::Oci if native_would_do => {
                "; declare 'native' to run it as a process of the host"
            }
            RunnerKind::Oci => "; container images need a build with the OCI runner",
            RunnerKind::Wasm => "; it needs a build with the WebAssembly runner",
            RunnerKind::Native => "",
        },
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
    match quoted.as_slice() {
        [] => "nothing".to_owned(),
        quoted => quoted.join(" or "),
    }
}

#[cfg(test)]
mod tests;
