//! What a run that ended has left: its result and the end of its standard error.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use bytes::Bytes;
use runtara_domain::{ExitCause, RunExit, limits, redact_tokens, tail};
use tracing::warn;

use super::ShimRunPlaces;
use crate::shim::{ExitRecord, LogReader, LogStream};

/// Largest standard output that is taken for a result.
const STDOUT_RESULT_BYTES: u64 = 1024 * 1024;

/// The end of a run as its record and its files tell it. Blocking.
///
/// # Errors
/// What reading its result reported: a program that completed must not do so without it, and a later attempt may read it.
pub(super) fn of(places: &ShimRunPlaces, record: ExitRecord) -> io::Result<RunExit> {
    let mut limits_met = record.limits_met;
    let mut output = None;
    if record.cause == ExitCause::Code(0) {
        match result(places)? {
            Found::Result(result) => output = Some(result),
            Found::Nothing => {}
            Found::TooLarge => limits_met.push("output".to_owned()),
            Found::Unusable => warn!(
                run = %places.key,
                "RUNTARA_OUTPUT_FILE of a run is not a file that its program wrote"
            ),
        }
    }
    Ok(RunExit {
        cause: record.cause,
        ended_by: record.ended_by,
        limits_met,
        memory_limit_bytes: record.memory_limit_bytes,
        output,
        stderr: stderr(places),
        usage: record.usage,
    })
}

enum Found {
    Nothing,
    Result(Bytes),
    TooLarge,
    /// The program has put something else in its place.
    Unusable,
}

enum Output {
    None,
    File(File),
    Unusable,
}

/// What the program gave as its result: the file it was told of, else its standard output.
fn result(places: &ShimRunPlaces) -> io::Result<Found> {
    let opened = open_output(places)?;
    if matches!(opened, Output::Unusable) {
        return Ok(Found::Unusable);
    }
    if let Output::File(file) = opened {
        let mut text = Vec::new();
        let limit = limits::STATE_BYTES as u64;
        file.take(limit + 1).read_to_end(&mut text)?;
        if text.len() as u64 > limit {
            return Ok(Found::TooLarge);
        }
        if !text.is_empty() {
            return Ok(as_json(&redact_tokens(&text)));
        }
    }
    let stdout = LogReader::new(&places.directory, LogStream::Stdout);
    let extent = stdout.extent()?;
    if extent.end - extent.oldest > STDOUT_RESULT_BYTES || extent.oldest > 0 {
        return Ok(Found::TooLarge);
    }
    let text = stdout.read(0, STDOUT_RESULT_BYTES as usize)?.bytes;
    Ok(as_json(&text))
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

/// JSON as it is, anything else as a JSON string without the line ends at its end.
fn as_json(text: &[u8]) -> Found {
    let trimmed = text.trim_ascii();
    if trimmed.is_empty() {
        return Found::Nothing;
    }
    if serde_json::from_slice::<serde::de::IgnoredAny>(trimmed).is_ok() {
        return Found::Result(Bytes::copy_from_slice(trimmed));
    }
    let text = String::from_utf8_lossy(text);
    let text = text.trim_end_matches(['\n', '\r']);
    let json = serde_json::Value::from(text).to_string();
    // What is escaped takes up to six times the room.
    if json.len() > limits::STATE_BYTES {
        return Found::TooLarge;
    }
    Found::Result(json.into())
}

/// The end of the standard error.
fn stderr(places: &ShimRunPlaces) -> String {
    let reader = LogReader::new(&places.directory, LogStream::Stderr);
    let chunk = match reader.tail(limits::STDERR_BYTES) {
        Ok(chunk) => chunk,
        Err(error) => {
            warn!(run = %places.key, %error, "the standard error of a run could not be read");
            return String::new();
        }
    };
    let mut bytes = chunk.bytes.as_slice();
    if chunk.offset > 0 {
        // It may begin in the middle of a character of UTF-8: at most three bytes of it are left.
        let rest = bytes
            .iter()
            .take(3)
            .take_while(|byte| **byte & 0xc0 == 0x80);
        bytes = &bytes[rest.count()..];
    }
    tail(&String::from_utf8_lossy(bytes), limits::STDERR_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Option<String> {
        match as_json(text.as_bytes()) {
            Found::Result(result) => Some(String::from_utf8(result.to_vec()).unwrap()),
            _ => None,
        }
    }

    #[test]
    fn json_stays_and_everything_else_becomes_a_string() {
        assert_eq!(json("{\"a\": 1}\n").as_deref(), Some("{\"a\": 1}"));
        assert_eq!(json("42\n").as_deref(), Some("42"));
        assert_eq!(
            json("hello \"you\"\n").as_deref(),
            Some("\"hello \\\"you\\\"\"")
        );
        assert_eq!(
            json("{\"a\": 1} {\"b\": 2}").as_deref(),
            Some("\"{\\\"a\\\": 1} {\\\"b\\\": 2}\"")
        );
        assert_eq!(json(" \n"), None);
    }

    #[test]
    fn a_text_that_is_too_large_once_it_is_escaped_is_no_result() {
        let text = vec![1_u8; limits::STATE_BYTES / 5];
        assert!(matches!(as_json(&text), Found::TooLarge));
    }
}
