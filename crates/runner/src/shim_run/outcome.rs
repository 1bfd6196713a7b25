//! What a run that ended has left: its result and the end of its standard error.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use runtara_domain::{ExitCause, RunExit, limits, redact_tokens};
use tracing::warn;

use super::ShimRunPlaces;
use crate::left::{ProgramResult, as_json, end_of_stderr, result_of_stdout};
use crate::shim::ExitRecord;

/// The end of a run as its record and its files tell it. Blocking.
///
/// # Errors
/// What reading its result reported: a program that completed must not do so without it, and a later attempt may read it.
pub(super) fn of(places: &ShimRunPlaces, record: ExitRecord) -> io::Result<RunExit> {
    let mut limits_met = record.limits_met;
    let mut output = None;
    let mut cause = record.cause;
    if cause == ExitCause::Code(0) {
        match result(places, record.stdout_is_cut)? {
            Some(ProgramResult::Lost) => cause = ExitCause::OutputLost,
            Some(ProgramResult::Json(result)) => output = Some(result),
            Some(ProgramResult::None) => {}
            Some(ProgramResult::TooLarge) => limits_met.push("output".to_owned()),
            None => warn!(
                run = %places.key,
                "RUNTARA_OUTPUT_FILE of a run is not a file that its program wrote"
            ),
        }
    }
    Ok(RunExit {
        cause,
        ended_by: record.ended_by,
        limits_met,
        memory_limit_bytes: record.memory_limit_bytes,
        output,
        stderr: stderr(places),
        usage: record.usage,
    })
}

enum Output {
    None,
    File(File),
    Unusable,
}

/// What the program gave as its result: the file it was told of, else its standard output. `None` if it has put something else in the place
/// of that file.
fn result(places: &ShimRunPlaces, stdout_is_cut: bool) -> io::Result<Option<ProgramResult>> {
    let opened = open_output(places)?;
    if matches!(opened, Output::Unusable) {
        return Ok(None);
    }
    if let Output::File(file) = opened {
        let mut text = Vec::new();
        let limit = limits::STATE_BYTES as u64;
        file.take(limit + 1).read_to_end(&mut text)?;
        if text.len() as u64 > limit {
            return Ok(Some(ProgramResult::TooLarge));
        }
        if !text.is_empty() {
            return Ok(Some(as_json(&redact_tokens(&text))));
        }
    }
    if stdout_is_cut {
        return Ok(Some(ProgramResult::Lost));
    }
    result_of_stdout(&places.directory).map(Some)
}

/// Opens the file that the program may have written. It lies where the program can put anything: a link to a file that only the server
/// may read, a pipe that never ends.
fn open_output(places: &ShimRunPlaces) -> io::Result<Output> {
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags((nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits())
        .open(&places.output);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Output::None),
        Err(error) if is_of_the_machine(&error) => return Err(error),
        // A link, a socket, a directory that is closed or none.
        Err(_) => return Ok(Output::Unusable),
    };
    let metadata = file.metadata()?;
    let is_theirs = places.output_owner.is_none_or(|uid| metadata.uid() == uid);
    if !metadata.is_file() || !is_theirs {
        return Ok(Output::Unusable);
    }
    Ok(Output::File(file))
}

/// Whether an error may pass: what the program did stays.
fn is_of_the_machine(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EIO | libc::EINTR | libc::ESTALE)
    )
}

fn stderr(places: &ShimRunPlaces) -> String {
    end_of_stderr(&places.directory).unwrap_or_else(|error| {
        warn!(run = %places.key, %error, "the standard error of a run could not be read");
        String::new()
    })
}
