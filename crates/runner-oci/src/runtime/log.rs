//! What the runtime says went wrong: one JSON object a line, with `level` and `msg`.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde::Deserialize;

/// How much of a log is read, from its end.
const LOG_BYTES: u64 = 64 * 1024;
/// Longest reason that is handed on, in characters.
const REASON_CHARACTERS: usize = 1000;

#[derive(Deserialize)]
struct Line {
    level: String,
    msg: String,
}

/// The last error that a log tells; of one that is no JSON, its last line. `None` if it tells nothing.
pub(super) fn reason(log: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(log);
    let lines = || {
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .rev()
    };
    let is_error = |line: &Line| matches!(line.level.as_str(), "error" | "fatal" | "panic");
    let told = lines()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .find(is_error)
        .map(|line| line.msg);
    let plain = || {
        lines()
            .find(|line| !line.starts_with('{'))
            .map(str::to_owned)
    };
    let reason = told.or_else(plain)?;
    Some(shortened(reason.trim()))
}

/// Beginning and end of a text that is too long: what was done stands at one, what went wrong at the other, and what an image has in between.
fn shortened(text: &str) -> String {
    let count = text.chars().count();
    if count <= REASON_CHARACTERS {
        return text.to_owned();
    }
    let (begin, end) = (REASON_CHARACTERS / 2, count - REASON_CHARACTERS / 2);
    let characters = text.chars();
    let first = characters.clone().take(begin);
    first.chain(['…']).chain(characters.skip(end)).collect()
}

/// The same of a log file; `None` also if it cannot be read.
pub(super) fn reason_in_file(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES)))
        .ok()?;
    let mut log = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut log).ok()?;
    reason(&log)
}

/// Whether a reason means that there is no such container.
pub(super) fn says_missing(reason: &str) -> bool {
    // runc: "container does not exist"; crun: "error opening file `…/status`: No such file or directory"; youki: "container … does not exist".
    reason.contains("does not exist")
        || (reason.contains("status`") && reason.contains("No such file or directory"))
}

/// Whether a reason means that no process of the container runs any more.
pub(super) fn says_gone(reason: &str) -> bool {
    says_missing(reason)
        || ["not running", "already finished", "No such process"]
            .iter()
            .any(|words| reason.contains(words))
}

/// Whether a reason is in the image: its program is not there or cannot be executed, or nothing can be mounted where it must be. A later attempt fails as well.
#[must_use]
pub fn is_fault_of_image(reason: &str) -> bool {
    // runc: `exec: "/x": stat /x: no such file or directory`, `exec /x: exec format error`; crun: "executable file `/x` not found", "open
    // executable: Permission denied".
    let of_program = reason.contains("exec: \"")
        || reason.contains("exec /")
        || reason.contains("executable file")
        || reason.contains("open executable");
    // What the image has where something is to be mounted: a file, or links that lead nowhere, out, or in a circle. crun: "mount `/source` to
    // `data`: Not a directory".
    let of_mount = reason.contains("error mounting") || reason.starts_with("mount `");
    // crun opens that place, by its path in the image.
    let of_place = reason.starts_with("openat2 `");
    // Where the program is to start, which the runtime makes if it is not there.
    let of_directory = reason.contains("mkdir /")
        || reason.contains("chdir to cwd")
        || reason.starts_with("chdir `");
    let reason = reason.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|words| reason.contains(words));
    of_program
        && says(&[
            "no such file",
            "not found",
            "permission denied",
            "exec format error",
            "is a directory",
            "too many levels of symbolic links",
            "not a directory",
        ])
        || of_place && says(&["no such file"])
        || (of_mount || of_place || of_directory)
            && says(&[
                "too many levels of symbolic links",
                "file name too long",
                "not a directory",
                "outside of rootfs",
            ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_the_reason() {
        let log = br#"{"level":"warning","msg":"cgroups are slow","time":"2026-01-01T00:00:00Z"}
{"level":"error","msg":"first","time":"2026-01-01T00:00:00Z"}
{"level":"error","msg":"runc run failed: exec: \"/nope\": no such file","time":"2026-01-01T00:00:01Z"}
{"level":"debug","msg":"bye","time":"2026-01-01T00:00:01Z"}
"#;
        assert_eq!(
            reason(log).as_deref(),
            Some("runc run failed: exec: \"/nope\": no such file")
        );
    }

    #[test]
    fn a_log_without_json_gives_its_last_line() {
        assert_eq!(
            reason(b"flag provided\nIncorrect Usage.\n\n").as_deref(),
            Some("Incorrect Usage.")
        );
        assert_eq!(reason(b""), None);
        assert_eq!(reason(b"{\"level\":\"info\",\"msg\":\"x\"}\n"), None);
        assert_eq!(
            reason(&[0xff, 0xfe]).map(|text| text.chars().count()),
            Some(2)
        );
    }

    #[test]
    fn a_reason_is_bounded_and_keeps_both_its_ends() {
        let long = format!(
            "error mounting: {}: too many levels of symbolic links",
            "/further".repeat(5000)
        );
        let told = reason(long.as_bytes()).unwrap();
        assert_eq!(told.chars().count(), REASON_CHARACTERS + 1);
        assert!(is_fault_of_image(&told), "{told}");
        let whole = "x".repeat(REASON_CHARACTERS);
        assert_eq!(reason(whole.as_bytes()), Some(whole));
    }

    #[test]
    fn a_program_that_cannot_be_executed_is_told_from_a_machine_that_cannot() {
        for reason in [
            r#"runc run failed: unable to start container process: exec: "/nope": stat /nope: no such file or directory: unknown"#,
            r#"runc run failed: unable to start container process: exec: "/etc": permission denied"#,
            "exec /bin/program: exec format error",
            "executable file `program` not found in $PATH: No such file or directory",
            r#"runc run failed: error mounting "tmpfs" to rootfs at "/tmp": SecureJoin: too many levels of symbolic links"#,
            "openat2 `data`: No such file or directory",
            "openat2 `data`: Too many levels of symbolic links",
            "mount `/run/runtara/x/data` to `data`: Not a directory",
            "chdir `/bin/sh/x`: Not a directory",
            "open executable: Permission denied",
            r#"runc run failed: error mounting "proc" to rootfs at "/proc": mkdir /root/proc: not a directory"#,
        ] {
            assert!(is_fault_of_image(reason), "{reason}");
        }
        for reason in [
            "runc run failed: unable to apply cgroup configuration: no such file or directory",
            "container with id exists: rt-x",
            "openat2 `proc`: Permission denied",
            "mount `proc` to `proc`: Operation not permitted",
            "open `/sys/fs/cgroup/x`: No such file or directory",
        ] {
            assert!(!is_fault_of_image(reason), "{reason}");
        }
    }

    #[test]
    fn a_missing_container_is_told_from_a_failure() {
        assert!(says_missing("container \"rt-x\" does not exist"));
        assert!(says_gone("container not running"));
        assert!(says_gone("os: process already finished"));
        assert!(!says_gone("permission denied"));
    }
}
