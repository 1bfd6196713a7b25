//! What a program leaves in its outputs: a result, and its last words.

use std::io;

use bytes::Bytes;
use runtara_domain::{limits, tail};

use crate::RunDirectory;
use crate::shim::{LogReader, LogStream};

/// Largest standard output that is taken for a result.
const STDOUT_RESULT_BYTES: u64 = 1024 * 1024;

/// What a program gave as its result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramResult {
    /// Nothing.
    None,
    /// This, as JSON text.
    Json(Bytes),
    /// More than results may have.
    TooLarge,
    /// Something that could not be kept.
    Lost,
}

/// The standard output of a run that has ended, as its result. Blocking.
///
/// # Errors
/// What reading reported.
pub fn result_of_stdout(directory: &RunDirectory) -> io::Result<ProgramResult> {
    let stdout = LogReader::new(directory, LogStream::Stdout);
    let extent = stdout.extent()?;
    if extent.end - extent.oldest > STDOUT_RESULT_BYTES || extent.oldest > 0 {
        return Ok(ProgramResult::TooLarge);
    }
    let text = stdout.read(0, STDOUT_RESULT_BYTES as usize)?.bytes;
    Ok(as_json(&text))
}

/// JSON as it is, anything else as a JSON string without the line ends at its end.
pub(crate) fn as_json(text: &[u8]) -> ProgramResult {
    let trimmed = text.trim_ascii();
    if trimmed.is_empty() {
        return ProgramResult::None;
    }
    if serde_json::from_slice::<serde::de::IgnoredAny>(trimmed).is_ok() {
        return ProgramResult::Json(Bytes::copy_from_slice(trimmed));
    }
    let text = String::from_utf8_lossy(text);
    let text = text.trim_end_matches(['\n', '\r']);
    let json = serde_json::Value::from(text).to_string();
    // What is escaped takes up to six times the room.
    if json.len() > limits::STATE_BYTES {
        return ProgramResult::TooLarge;
    }
    ProgramResult::Json(json.into())
}

/// The end of the standard error of a run. Blocking.
///
/// # Errors
/// What reading reported.
pub fn end_of_stderr(directory: &RunDirectory) -> io::Result<String> {
    let reader = LogReader::new(directory, LogStream::Stderr);
    let chunk = reader.tail(limits::STDERR_BYTES)?;
    let mut bytes = chunk.bytes.as_slice();
    if chunk.offset > 0 {
        // It may begin in the middle of a character of UTF-8: at most three bytes of it are left.
        let rest = bytes
            .iter()
            .take(3)
            .take_while(|byte| **byte & 0xc0 == 0x80);
        bytes = &bytes[rest.count()..];
    }
    Ok(tail(&String::from_utf8_lossy(bytes), limits::STDERR_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Option<String> {
        match as_json(text.as_bytes()) {
            ProgramResult::Json(result) => Some(String::from_utf8(result.to_vec()).unwrap()),
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
        assert!(matches!(as_json(&text), ProgramResult::TooLarge));
    }
}
