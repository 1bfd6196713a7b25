//! The programs that need no server.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A process that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pid(process: u32) -> Pid {
    Pid::from_raw(i32::try_from(process).expect("ids are below 2^22"))
}

#[test]
fn echoes_input_from_a_file_or_standard_input() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("in"), directory.path().join("out"));
    fs::write(&input, r#"{"a": [1, 2]}"#).unwrap();
    let program = env!("CARGO_BIN_EXE_echoes_input");
    let status = Command::new(program)
        .env("RUNTARA_INPUT_FILE", &input)
        .env("RUNTARA_OUTPUT_FILE", &output)
        .status();
    assert!(status.unwrap().success());
    let echoed: Value = serde_json::from_slice(&fs::read(output).unwrap()).unwrap();
    assert_eq!(echoed, json!({"a": [1, 2]}));

    let echoed = Command::new(program)
        .stdin(fs::File::open(input).unwrap())
        .output()
        .unwrap();
    assert_eq!(echoed.stdout, b"{\"a\":[1,2]}\n");
}

#[test]
fn prints_and_exits_as_it_is_told_in_any_way() {
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("in");
    fs::write(&input, r#"{"code": 4, "stderr": "from the input"}"#).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_prints_and_exits"))
        .arg("--stdout=from an argument")
        .env("CODE", "3")
        .env("RUNTARA_INPUT_FILE", input)
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"from an argument");
    assert_eq!(output.stderr, b"from the input");
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn exits_with_a_code_and_dies_by_a_signal() {
    let status = Command::new(env!("CARGO_BIN_EXE_exits_with"))
        .arg("--code=7")
        .status();
    assert_eq!(status.unwrap().code(), Some(7));
    for signal in [9, 15, 11] {
        let status = Command::new(env!("CARGO_BIN_EXE_dies_by_signal"))
            .arg(format!("--signal={signal}"))
            .status();
        assert_eq!(status.unwrap().signal(), Some(signal));
    }
}

#[test]
fn ignores_sigterm_but_not_sigkill() {
    let child = Command::new(env!("CARGO_BIN_EXE_ignores_sigterm"))
        .stdout(Stdio::piped())
        .spawn();
    let mut child = Ended(child.unwrap());
    let mut stdout = BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    kill(pid(child.0.id()), Signal::SIGTERM).unwrap();
    // proc(5): what is pending for the process shows that the signal has come.
    let pending = |line: &str| {
        let mask = line.strip_prefix("ShdPnd:").map(str::trim)?;
        u64::from_str_radix(mask, 16).ok()
    };
    let status = fs::read_to_string(format!("/proc/{}/status", child.0.id())).unwrap();
    assert_eq!(status.lines().find_map(pending), Some(1 << 14));
    assert!(child.0.try_wait().unwrap().is_none());
    child.0.kill().unwrap();
    assert_eq!(child.0.wait().unwrap().signal(), Some(9));
}

#[test]
fn leaves_grandchildren_that_outlive_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("heartbeat");
    let status = Command::new(env!("CARGO_BIN_EXE_leaves_grandchildren"))
        .arg(format!("--heartbeat_file={}", file.display()))
        .status();
    assert!(status.unwrap().success());
    let read = || {
        let text = fs::read_to_string(&file).unwrap();
        let (process, beat) = text.trim().split_once(' ').unwrap();
        (
            process.parse::<u32>().unwrap(),
            beat.parse::<u64>().unwrap(),
        )
    };
    let (process, first) = read();
    let deadline = Instant::now() + Duration::from_secs(10);
    while read().1 <= first + 1 {
        assert!(Instant::now() < deadline, "the heart stands still");
    }
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    kill(pid(process), Signal::SIGKILL).unwrap();
    let session = stat.rsplit_once(") ").unwrap().1.split(' ').nth(3).unwrap();
    let own = nix::unistd::getsid(None).unwrap().to_string();
    assert_ne!(session, own, "it is in a session of its own");
}

#[test]
fn writes_endless_output_to_the_stream_it_is_told() {
    let child = Command::new(env!("CARGO_BIN_EXE_writes_endless_output"))
        .arg("--stream=stderr")
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = Ended(child.unwrap());
    let mut start = vec![0; 1024 * 1024];
    let mut stderr = child.0.stderr.take().unwrap();
    stderr.read_exact(&mut start).unwrap();
    assert!(start.starts_with(b"line 1 of complaints"));
    drop(stderr);
    let mut stdout = Vec::new();
    child
        .0
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut stdout)
        .unwrap();
    assert!(stdout.is_empty());
    // Nobody reads any more: it ends by the broken pipe.
    assert_eq!(child.0.wait().unwrap().code(), Some(1));
}

#[test]
fn allocates_until_killed_or_at_its_limit() {
    let output = Command::new(env!("CARGO_BIN_EXE_allocates_until_killed"))
        .arg("--limit=16")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stderr, b"got 16 MiB and was not killed\n");
}

#[test]
fn sleeps_forever_without_using_the_processor() {
    let child = Command::new(env!("CARGO_BIN_EXE_sleeps_forever")).spawn();
    let child = Ended(child.unwrap());
    let asleep = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.0.id())).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('S') && stat.contains("sleeps_forever")
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while !asleep() {
        assert!(Instant::now() < deadline, "it does not sleep");
    }
}

#[test]
fn shows_environment_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_shows_environment"))
        .arg("an argument")
        .env_clear()
        .env("GREETING", "hello")
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["env"], json!({"GREETING": "hello"}));
    assert_eq!(shown["args"][1], "an argument");
    let place = directory.path().canonicalize().unwrap();
    assert_eq!(shown["cwd"], json!(place));
    let descriptors = shown["descriptors"].as_object().unwrap();
    assert_eq!(descriptors["0"], "/dev/null");
    assert!(descriptors.contains_key("1") && descriptors.contains_key("2"));
    assert!(
        shown["limits"]["Max open files"]["soft"].is_string(),
        "{shown}"
    );
    assert!(shown["status"]["Uid"].is_string());
    assert_eq!(shown["ppid"], std::process::id());
    assert!(shown["sid"].is_i64() && shown["pgid"].is_i64());
}
