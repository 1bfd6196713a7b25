//! How a container ends, and what is left of it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use runtara_domain::{EndedBy, ExitCause};
use runtara_runner::shim::Found;

use crate::image;
use crate::stage::{PATIENCE, Run, Stage, found, memory_cgroup, until};

pub(crate) async fn what_it_wrote_as_its_result_is_kept() {
    let stage = Stage::new().await;
    let ended = stage.run("echo '{\"a\":1}' > /data/output.json").await;
    assert_eq!(ended.record.cause, ExitCause::Code(0), "{ended:?}");
    let kept = std::fs::read_to_string(ended.directory.path().join("output.json"));
    assert_eq!(kept.unwrap(), "{\"a\":1}\n");
}

pub(crate) async fn a_result_that_is_no_file_is_not_kept() {
    let stage = Stage::new().await;
    for script in [
        "ln -s /etc/passwd /data/output.json",
        "mkfifo /data/output.json",
        "mkdir /data/output.json",
    ] {
        let ended = stage.run(script).await;
        assert_eq!(
            ended.record.cause,
            ExitCause::Code(0),
            "{script}: {ended:?}"
        );
        assert!(
            !ended.directory.path().join("output.json").exists(),
            "{script}"
        );
    }
}

pub(crate) async fn nothing_is_left_of_it() {
    let stage = Stage::new().await;
    let run = stage.launch(stage.plan("echo here; sleep 0.2")).await;
    run.wrote("here").await;
    assert!(run.is_there());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(&*run.plan.staging.to_string_lossy()),
        "{mounts}"
    );
    // Waits until nothing is there.
    run.end().await;
}

pub(crate) async fn the_stop_signal_is_that_of_the_image() {
    let mut stage = Stage::new().await;
    stage.stop_signal = 10;
    let script = "trap 'echo asked; exit 3' USR1; trap 'echo wrong' TERM; echo ready; while :; do sleep 0.05; done";
    let run = stage.launch(stage.plan(script)).await;
    run.wrote("ready").await;
    run.shim.terminate(PATIENCE, EndedBy::Stop).unwrap();
    let ended = run.end().await;
    assert_eq!(ended.stdout, "ready\nasked\n");
    assert_eq!(ended.record.cause, ExitCause::Code(3));
    assert_eq!(ended.record.ended_by, Some(EndedBy::Stop));
}

pub(crate) async fn a_program_that_does_not_leave_is_killed() {
    let stage = Stage::new().await;
    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let run = stage.launch(stage.plan(script)).await;
    run.wrote("ready").await;
    run.shim
        .terminate(Duration::from_millis(200), EndedBy::Stop)
        .unwrap();
    let ended = run.end().await;
    assert_eq!(ended.record.cause, ExitCause::Signal(9));
    assert_eq!(ended.record.ended_by, Some(EndedBy::Stop));
}

pub(crate) async fn a_program_that_hears_nothing_is_not_waited_for() {
    let stage = Stage::new().await;
    let run = stage
        .launch(stage.plan("echo ready; exec sleep 1000"))
        .await;
    run.wrote("ready").await;
    let begun = Instant::now();
    run.shim.terminate(PATIENCE, EndedBy::Stop).unwrap();
    let ended = run.end().await;
    assert_eq!(ended.record.cause, ExitCause::Signal(9));
    assert_eq!(ended.record.ended_by, Some(EndedBy::Stop));
    assert!(begun.elapsed() < PATIENCE / 2, "it was waited for");
}

pub(crate) async fn everything_in_it_ends_with_its_program() {
    let stage = Stage::new().await;
    let script =
        "setsid sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' & sleep 0.1; echo left";
    let begun = Instant::now();
    let ended = stage.run(script).await;
    assert_eq!(ended.record.cause, ExitCause::Code(0), "{ended:?}");
    assert!(begun.elapsed() < PATIENCE, "nobody is waited for");
}

pub(crate) async fn running_time_is_bounded() {
    let mut stage = Stage::new().await;
    stage.timeout = Duration::from_secs(1);
    let ended = stage.run("sleep 1000").await;
    assert_eq!(ended.record.cause, ExitCause::Signal(9), "{ended:?}");
    assert_eq!(ended.record.ended_by, Some(EndedBy::Deadline));
}

/// Kills the shim of a run, and gives what its lock said.
pub(crate) async fn kill_shim(run: &Run<'_>) -> serde_json::Value {
    until("the lock says who has it", || {
        std::fs::read(run.directory.lock_file()).is_ok_and(|lock| !lock.is_empty())
    })
    .await;
    let lock: serde_json::Value =
        serde_json::from_slice(&std::fs::read(run.directory.lock_file()).unwrap()).unwrap();
    let shim = nix::unistd::Pid::from_raw(i32::try_from(lock["pid"].as_i64().unwrap()).unwrap());
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
    run.shim.ended().await.unwrap();
    assert!(matches!(found(&run.directory).await, Found::Gone));
    lock
}

pub(crate) async fn a_killed_shim_leaves_nothing_running() {
    let stage = Stage::new().await;
    let run = stage.launch(stage.plan("echo ready; sleep 1000")).await;
    run.wrote("ready").await;
    let lock = kill_shim(&run).await;
    let program = i32::try_from(lock["child_pid"].as_i64().unwrap()).unwrap();
    until("the program is gone", || {
        let stat = std::fs::read_to_string(format!("/proc/{program}/stat"));
        stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
    })
    .await;
    assert!(!memory_cgroup(&run.plan.id).exists());
    run.remove_places();
}

/// A runtime that does something before it makes a container.
fn slow_runtime(stage: &Stage, before: &str) -> PathBuf {
    let program = stage.path("slow-runtime");
    let runc = image::runtime();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *' run '*) {before};; esac\nexec {} \"$@\"\n",
        runc.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    program
}

pub(crate) async fn a_container_that_is_never_made_is_given_up() {
    let stage = Stage::new().await;
    let mut plan = stage.plan("echo never");
    plan.runtime = slow_runtime(&stage, "touch ${0%/*}/here; exec sleep 600");
    let run = stage.launch(plan).await;
    until("it is being made", || stage.path("here").exists()).await;
    let begun = Instant::now();
    run.shim.terminate(Duration::ZERO, EndedBy::Stop).unwrap();
    let ended = run.end().await;
    assert!(begun.elapsed() < PATIENCE / 2, "it is not waited for");
    assert_eq!(ended.record.cause, ExitCause::Signal(9), "{ended:?}");
    assert_eq!(ended.record.ended_by, Some(EndedBy::Stop), "{ended:?}");
    assert_eq!(ended.stdout, "");
}

pub(crate) async fn a_container_that_is_never_made_was_not_launched() {
    let mut stage = Stage::new().await;
    stage.made_within = Duration::from_secs(1);
    let mut plan = stage.plan("echo never");
    plan.runtime = slow_runtime(&stage, "exec sleep 600");
    let begun = Instant::now();
    let ended = stage.launch(plan).await.end().await;
    assert!(begun.elapsed() < PATIENCE / 2, "it is given up");
    let ExitCause::NotLaunched { permanent, error } = &ended.record.cause else {
        panic!("{ended:?}");
    };
    assert!(!permanent, "another launch may be faster");
    let told = "the host did not make its container within 1 s";
    assert!(error.contains(told), "{error}");
    assert_eq!(ended.record.ended_by, None, "{ended:?}");
    assert_eq!(ended.record.usage.running_ms, 0, "{ended:?}");
}

/// Far longer than the program has, in whose place nobody may be ended.
const LONG_MADE: Duration = Duration::from_secs(6);

pub(crate) async fn running_time_begins_when_the_program_does() {
    let mut stage = Stage::new().await;
    stage.timeout = LONG_MADE - Duration::from_secs(1);
    let mut plan = stage.plan("echo ready; exec sleep 1000");
    plan.runtime = slow_runtime(&stage, &format!("sleep {}", LONG_MADE.as_secs()));
    let begun = Instant::now();
    let run = stage.launch(plan).await;
    let used = run.shim.usage(&run.directory).unwrap().unwrap();
    assert_eq!(used.running_ms, 0, "it is still being made");
    run.wrote("ready").await;
    until("the lock says who has it", || {
        std::fs::read(run.directory.lock_file()).is_ok_and(|lock| !lock.is_empty())
    })
    .await;
    // As another server finds it.
    let Found::Alive(shim) = found(&run.directory).await else {
        panic!("it lives");
    };
    let used = shim.usage(&run.directory).unwrap().unwrap();
    let most = begun.elapsed().saturating_sub(LONG_MADE);
    assert!(
        u128::from(used.running_ms) <= most.as_millis(),
        "{used:?}, {most:?}"
    );
    run.shim.terminate(Duration::ZERO, EndedBy::Stop).unwrap();
    let ended = run.end().await;
    assert_eq!(ended.record.ended_by, Some(EndedBy::Stop), "{ended:?}");
    let most = begun.elapsed().saturating_sub(LONG_MADE);
    assert!(
        u128::from(ended.record.usage.running_ms) <= most.as_millis(),
        "{ended:?}, {most:?}"
    );
}

pub(crate) async fn a_wish_is_heard_while_the_container_is_made() {
    let stage = Stage::new().await;
    let mut plan = stage.plan("trap 'exit 3' TERM; while :; do sleep 0.05; done");
    let wait = "touch ${0%/*}/here; while ! test -e ${0%/*}/go; do sleep 0.05; done";
    plan.runtime = slow_runtime(&stage, wait);
    let run = stage.launch(plan).await;
    until("it is being made", || stage.path("here").exists()).await;
    let grace = Duration::from_secs(2);
    run.shim.terminate(grace, EndedBy::Stop).unwrap();
    std::fs::write(stage.path("go"), "").unwrap();
    let ended = run.end().await;
    // It may have been asked before it could listen: then what the runtime has in its place leaves with 2, or it is killed.
    let caused = [ExitCause::Code(3), ExitCause::Code(2), ExitCause::Signal(9)];
    assert!(caused.contains(&ended.record.cause), "{ended:?}");
    assert_eq!(ended.record.ended_by, Some(EndedBy::Stop), "{ended:?}");
}
