//! The program `runtara-shim`, as a server uses it whose own program cannot be executed again.

#![expect(clippy::unwrap_used, reason = "all of this is tests")]

use std::path::Path;
use std::time::{Duration, Instant};

use runtara_domain::{EndedBy, ExitCause};
use runtara_runner::shim::{
    Found, Launcher, LogReader, LogStream, ProcessLimits, Program, ShimError, ShimProgram,
    is_locked, look, write_run_file,
};
use runtara_runner::{RunDirectory, Spares};

const SHIM: &str = env!("CARGO_BIN_EXE_runtara-shim");

fn program(work: &Path, command: &str) -> Program {
    Program {
        executable: "/bin/sh".into(),
        args: ["sh", "-c", command].map(str::to_owned).into(),
        env: vec!["PATH=/usr/bin:/bin".to_owned()],
        work: work.to_owned(),
        stdin: None,
        user: None,
        limits: ProcessLimits::default(),
        cgroup: None,
        container: None,
        oom_score_adj: None,
        nice: None,
        timeout_ms: 60_000,
        expires_in_ms: None,
        made_within_ms: None,
        log_cap_bytes: 4096,
    }
}

/// Has the run of a directory started with this program.
fn write_run(directory: &RunDirectory, program: Program) -> std::io::Result<()> {
    let spares = Spares::open(directory.path().join("spares"))?;
    write_run_file(&spares, &directory.run_file(), program)
}

async fn found(directory: &RunDirectory) -> Found {
    let directory = directory.clone();
    tokio::task::spawn_blocking(move || look(&directory))
        .await
        .unwrap()
        .unwrap()
}

/// How a run ended that is recorded.
async fn exit_of(directory: &RunDirectory) -> ExitCause {
    match found(directory).await {
        Found::Exited(record) => record.cause,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_run_is_started_found_ended_and_recorded() {
    let root = tempfile::tempdir().unwrap();
    let directory = RunDirectory::at(root.path().to_owned());
    let launcher = Launcher::start(ShimProgram::At(SHIM.into())).await.unwrap();
    write_run(&directory, program(root.path(), "echo hello; sleep 1000")).unwrap();
    let launched = launcher.launch(&directory).await.unwrap();
    // Whoever looks before the shim has its lock prevents the run.
    let late = Instant::now() + Duration::from_secs(60);
    while std::fs::read(directory.lock_file())
        .unwrap_or_default()
        .is_empty()
    {
        assert!(Instant::now() < late, "the shim says who it is");
        std::thread::sleep(Duration::from_millis(1));
    }
    let Found::Alive(shim) = found(&directory).await else {
        panic!("it lives");
    };
    assert!(is_locked(&directory).unwrap());
    // Its parent goes, and it stays.
    drop(launcher);
    assert!(matches!(found(&directory).await, Found::Alive(_)));
    shim.terminate(Duration::ZERO, EndedBy::Stop).unwrap();
    launched.ended().await.unwrap();
    shim.ended().await.unwrap();
    let Found::Exited(record) = found(&directory).await else {
        panic!("it ended");
    };
    assert_eq!(record.cause, ExitCause::Signal(9));
    assert_eq!(record.ended_by, Some(EndedBy::Stop));
    assert!(!is_locked(&directory).unwrap());
    assert!(shim.usage(&directory).unwrap().is_none());
}

#[tokio::test]
async fn a_run_that_was_given_up_is_not_started() {
    let root = tempfile::tempdir().unwrap();
    let directory = RunDirectory::at(root.path().join("run"));
    assert!(matches!(found(&directory).await, Found::Gone));
    let refused = write_run(&directory, program(root.path(), "true")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::AlreadyExists);
    let launcher = Launcher::start(ShimProgram::At(SHIM.into())).await.unwrap();
    launcher
        .launch(&directory)
        .await
        .unwrap()
        .ended()
        .await
        .unwrap();
    assert!(matches!(found(&directory).await, Found::Gone));
}

#[tokio::test]
async fn a_run_without_a_directory_leaves_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let directory = RunDirectory::at(root.path().join("nowhere"));
    let launcher = Launcher::start(ShimProgram::At(SHIM.into())).await.unwrap();
    launcher
        .launch(&directory)
        .await
        .unwrap()
        .ended()
        .await
        .unwrap();
    assert!(!directory.path().exists());
}

#[tokio::test]
async fn what_the_program_wrote_is_there_when_its_end_is_known() {
    let root = tempfile::tempdir().unwrap();
    let directory = RunDirectory::at(root.path().to_owned());
    let launcher = Launcher::start(ShimProgram::At(SHIM.into())).await.unwrap();
    let writes = "echo out; echo err >&2; exit 7";
    write_run(&directory, program(root.path(), writes)).unwrap();
    launcher
        .launch(&directory)
        .await
        .unwrap()
        .ended()
        .await
        .unwrap();
    for (stream, text) in [(LogStream::Stdout, "out\n"), (LogStream::Stderr, "err\n")] {
        let chunk = LogReader::new(&directory, stream).tail(100).unwrap();
        assert_eq!(String::from_utf8(chunk.bytes).unwrap(), text);
    }
    assert_eq!(exit_of(&directory).await, ExitCause::Code(7));
}

#[tokio::test]
async fn a_program_that_was_not_prepared_for_it_is_not_executed_again() {
    let refused = Launcher::start(ShimProgram::ThisProgram).await.unwrap_err();
    assert!(matches!(refused, ShimError::NotInitialised), "{refused}");
    let absent = Launcher::start(ShimProgram::At("/no/such/shim".into()))
        .await
        .unwrap_err();
    assert!(matches!(absent, ShimError::NoLauncher { .. }), "{absent}");
}

#[test]
fn started_by_hand_it_says_what_it_is() {
    let output = std::process::Command::new(SHIM)
        .env("RUNTARA_LAUNCHER_SOCKET", "0")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("by hand"), "{text}");
}

#[tokio::test]
async fn what_a_shim_left_that_never_said_who_it_is_is_ended() {
    let root = tempfile::tempdir().unwrap();
    let directory = RunDirectory::at(root.path().to_owned());
    let mark = format!("RUNTARA_RUN_DIR={}", root.path().display());
    let mut program = program(root.path(), "sleep 1000");
    program.env.push(mark.clone());
    write_run(&directory, program).unwrap();
    // The shim was killed when it had the lock and had started the program, or the disk was full.
    std::fs::write(directory.lock_file(), "").unwrap();
    let (name, value) = mark.split_once('=').unwrap();
    let mut left = std::process::Command::new("sleep")
        .arg("1000")
        .env(name, value)
        .spawn()
        .unwrap();
    assert!(matches!(found(&directory).await, Found::Gone));
    let ended = left.try_wait().unwrap();
    // What is not ended by now is not to stay for that.
    let _ended = left.kill();
    assert!(ended.is_some(), "it lives beside the next run");
}

/// The spares of a launcher: what else it has forked has ended.
fn spares(launcher: u32) -> Vec<i32> {
    let path = format!("/proc/{launcher}/task/{launcher}/children");
    let children = std::fs::read_to_string(path).unwrap();
    let children = children.split_whitespace();
    children.map(|child| child.parse().unwrap()).collect()
}

/// Waits until a launcher has one spare, which is none of these.
async fn spare(launcher: &Launcher, not: &[i32]) -> i32 {
    let late = Instant::now() + Duration::from_secs(60);
    loop {
        let launcher = launcher.process_id().await.unwrap();
        if let [spare] = spares(launcher)[..]
            && !not.contains(&spare)
        {
            return spare;
        }
        assert!(Instant::now() < late, "there is a spare");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn shim_of(directory: &RunDirectory) -> i64 {
    let lock: serde_json::Value =
        serde_json::from_slice(&std::fs::read(directory.lock_file()).unwrap()).unwrap();
    lock["pid"].as_i64().unwrap()
}

async fn run(launcher: &Launcher, root: &Path, command: &str) -> RunDirectory {
    let directory = RunDirectory::at(root.to_owned());
    write_run(&directory, program(root, command)).unwrap();
    launcher
        .launch(&directory)
        .await
        .unwrap()
        .ended()
        .await
        .unwrap();
    directory
}

#[tokio::test]
async fn a_spare_takes_the_next_run_and_the_one_after_it_has_another() {
    let launcher = Launcher::start(ShimProgram::At(SHIM.into())).await.unwrap();
    let mut before = Vec::new();
    for _ in 0..5 {
        let root = tempfile::tempdir().unwrap();
        let waiting = spare(&launcher, &before).await;
        let directory = run(&launcher, root.path(), "echo out; exit 7").await;
        // Its end is told before its process is gone: by then all of this must be so.
        assert!(!is_locked(&directory).unwrap());
        assert_eq!(shim_of(&directory), i64::from(waiting));
        let chunk = LogReader::new(&directory, LogStream::Stdout).tail(100);
        assert_eq!(chunk.unwrap().bytes, b"out\n");
        assert_eq!(exit_of(&directory).await, ExitCause::Code(7));
        before.push(waiting);
    }
}

#[tokio::test]
async fn runs_that_begin_at_once_do_not_wait_for_spares() {
    let launcher = Launcher::start(ShimProgram::At(SHIM.into())).await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let mut launched = Vec::new();
    for number in 0..10 {
        let directory = RunDirectory::at(root.path().join(number.to_string()));
        std::fs::create_dir(directory.path()).unwrap();
        let program = program(directory.path(), &format!("exit {number}"));
        write_run(&directory, program).unwrap();
        launched.push((launcher.launch(&directory).await.unwrap(), directory));
    }
    for (number, (shim, directory)) in (0..).zip(launched) {
        shim.ended().await.unwrap();
        assert_eq!(exit_of(&directory).await, ExitCause::Code(number));
    }
}

#[tokio::test]
async fn a_spare_that_leaves_or_is_killed_is_not_told_a_run() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    let launcher = Launcher::start(ShimProgram::At(SHIM.into())).await.unwrap();
    let mut before = Vec::new();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let root = tempfile::tempdir().unwrap();
        let waiting = spare(&launcher, &before).await;
        kill(Pid::from_raw(waiting), signal).unwrap();
        let launcher_id = launcher.process_id().await.unwrap();
        let late = Instant::now() + Duration::from_secs(60);
        while spares(launcher_id).contains(&waiting) {
            assert!(Instant::now() < late, "it leaves");
            std::thread::sleep(Duration::from_millis(1));
        }
        let directory = run(&launcher, root.path(), "exit 7").await;
        assert_eq!(exit_of(&directory).await, ExitCause::Code(7));
        before.push(waiting);
    }
}

#[tokio::test]
async fn a_spare_leaves_with_its_server() {
    let launcher = Launcher::start(ShimProgram::At(SHIM.into())).await.unwrap();
    let waiting = spare(&launcher, &[]).await;
    drop(launcher);
    let late = Instant::now() + Duration::from_secs(60);
    // Nobody may be there to reap it.
    let stat = || std::fs::read_to_string(format!("/proc/{waiting}/stat")).unwrap_or_default();
    while !stat().is_empty() && !stat().contains(") Z ") {
        assert!(Instant::now() < late, "it leaves");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test]
async fn the_time_of_a_spare_is_not_that_of_its_run() {
    let launcher = Launcher::start(ShimProgram::At(SHIM.into())).await.unwrap();
    let waiting = spare(&launcher, &[]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let root = tempfile::tempdir().unwrap();
    let directory = RunDirectory::at(root.path().to_owned());
    let begun = Instant::now();
    write_run(&directory, program(root.path(), "sleep 1000")).unwrap();
    let shim = launcher.launch(&directory).await.unwrap();
    while std::fs::read(directory.lock_file())
        .unwrap_or_default()
        .is_empty()
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(shim_of(&directory), i64::from(waiting));
    let running = shim.usage(&directory).unwrap().unwrap().running_ms;
    // Both are told in ticks of 10 ms.
    let since = begun.elapsed() + Duration::from_millis(50);
    assert!(u128::from(running) <= since.as_millis(), "{running} ms");
    shim.terminate(Duration::ZERO, EndedBy::Stop).unwrap();
    shim.ended().await.unwrap();
}
