//! A run has a cgroup of its own, where the server may make one.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;
use runtara_domain::{EndedBy, ExitCause, RunExit};
use runtara_runner::Run;
use runtara_runner::shim::{CgroupRoot, LogStream};

use crate::stage::{Stage, in_lock, is_alive, kill, until};

/// Another at each call: tests may run side by side.
fn name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("test-{}-{number}", std::process::id())
}

/// The places of both versions that this machine has.
fn roots() -> Vec<CgroupRoot> {
    let mut roots: Vec<_> = CgroupRoot::find(&name()).into_iter().collect();
    let hybrid = PathBuf::from("/sys/fs/cgroup/unified");
    if !roots.is_empty() && hybrid.join("cgroup.procs").exists() {
        roots.push(CgroupRoot::at(hybrid, &name()));
    }
    roots
}

async fn stage(root: &CgroupRoot) -> Stage {
    Stage::with(|config| config.cgroups = Some(root.clone())).await
}

fn is_gone(stage: &Stage, run: &dyn Run) -> bool {
    let root = stage.config.cgroups.as_ref().unwrap();
    !root.of(run.key()).exists()
}

/// A daemon that nothing tells from others: of a session of its own, without a parent, with an empty environment.
const HIDES: &str = "setsid env -i /bin/sh -c '/bin/sh -c \"echo \\$\\$ > daemon; exec /bin/sleep 1000\" & exec /bin/true' &\n\
                     while [ ! -s daemon ]; do sleep 0.01; done;";

pub(crate) async fn a_run_is_in_it_from_its_first_moment_and_it_goes_with_the_run() {
    for root in roots() {
        let stage = stage(&root).await;
        let run = stage
            .launch(&format!("cat /proc/self/cgroup; {HIDES} exit 3"))
            .await;
        let path = root.of(run.key());
        let exit = run.wait().await.unwrap();
        assert_eq!(exit.cause, ExitCause::Code(3), "{exit:?}");
        let text = stage.log(run.key(), LogStream::Stdout);
        let own = path.file_name().unwrap().to_str().unwrap();
        assert!(text.contains(own), "{text}");
        until("it is gone", || is_gone(&stage, run.as_ref())).await;
        assert!(exit.usage.cpu_usec > 0 && exit.usage.memory_peak_bytes > 0);
    }
}

pub(crate) async fn what_hides_is_ended_although_the_shim_was_killed() {
    for root in roots() {
        let stage = stage(&root).await;
        let run = stage
            .launch(&format!("{HIDES} echo here > here; sleep 1000"))
            .await;
        stage.written(run.key(), "here").await;
        let daemon = stage.written(run.key(), "daemon").await;
        until("the shim has said who it is", || {
            in_lock(&stage, run.key(), "pid").is_some()
        })
        .await;
        kill(&in_lock(&stage, run.key(), "pid").unwrap(), Signal::SIGKILL);
        assert_eq!(run.wait().await.unwrap().cause, ExitCause::Lost);
        assert!(!is_alive(&daemon), "it lives beside the next run");
        assert!(is_gone(&stage, run.as_ref()));
    }
}

pub(crate) async fn an_empty_one_that_was_left_is_swept() {
    for root in roots() {
        let stage = stage(&root).await;
        let key = stage.spec("true").await.key;
        std::fs::create_dir(root.of(&key)).unwrap();
        root.sweep().unwrap();
        assert!(!root.of(&key).exists());
    }
}

pub(crate) async fn the_memory_of_all_its_processes_counts() {
    for root in roots().into_iter().take(1) {
        let stage = stage(&root).await;
        if !counts_memory(&root.of(&stage.spec("true").await.key)) {
            // Memory is then that of the largest process.
            continue;
        }
        let holds = "(head -c 30000000 /dev/zero; sleep 1) | tail -c 29000000 > /dev/null";
        let exit = stage.run(&format!("{holds} & {holds} & wait")).await;
        let peak = exit.usage.memory_peak_bytes;
        assert!(peak > 55_000_000, "{peak}");
    }
}

/// Whether the kernel says how much memory a cgroup at this place had at most. In version 2 it does not before Linux 5.19, nor where other
/// processes are in the cgroup above, as under systemd.
fn counts_memory(path: &Path) -> bool {
    std::fs::create_dir(path).unwrap();
    let figures = ["memory.max_usage_in_bytes", "memory.peak"];
    let counts = figures.iter().any(|figure| path.join(figure).exists());
    std::fs::remove_dir(path).unwrap();
    counts
}

/// `tail` keeps in memory what it cannot seek in.
const FEEDS: &str = "mkfifo f; head -c 200000000 /dev/zero > f &";
const HOARDS: &str = "tail -c 100000000 f > /dev/null";

/// Runs a script whose processes may have 20 MB together; `None` where that cannot be had.
async fn in_small_memory(script: &str) -> Option<RunExit> {
    let place = CgroupRoot::find(&name()).ok()?;
    let stage = stage(&place).await;
    let parent = place.of(&stage.spec("true").await.key);
    std::fs::create_dir(&parent).unwrap();
    let limits = ["memory.limit_in_bytes", "memory.max"];
    let limited = limits.iter().any(|limit| {
        let file = parent.join(limit);
        file.exists() && std::fs::write(file, "20000000").is_ok()
    });
    // Version 2 counts memory only in the cgroups of a directory that says so, as that of a server does.
    let counting = parent.join("cgroup.subtree_control");
    if limited && counting.exists() {
        std::fs::write(counting, "+memory").unwrap();
    }
    let exit = if limited {
        let small = CgroupRoot::at(parent.clone(), &name());
        let stage = Stage::with(|config| config.cgroups = Some(small)).await;
        let run = stage.launch(script).await;
        let exit = run.wait().await.unwrap();
        until("it is gone", || is_gone(&stage, run.as_ref())).await;
        Some(exit)
    } else {
        None
    };
    std::fs::remove_dir(parent).unwrap();
    exit
}

pub(crate) async fn a_run_without_memory_is_told_as_such() {
    let Some(exit) = in_small_memory(&format!("{FEEDS} exec {HOARDS}")).await else {
        return;
    };
    assert_eq!(
        (exit.cause, exit.ended_by),
        (ExitCause::Signal(9), Some(EndedBy::OutOfMemory))
    );
}

pub(crate) async fn a_process_of_a_run_without_memory_is_named_beside_its_end() {
    let Some(exit) = in_small_memory(&format!("{FEEDS} {HOARDS}; exit 4")).await else {
        return;
    };
    assert_eq!((&exit.cause, exit.ended_by), (&ExitCause::Code(4), None));
    assert_eq!(exit.limits_met, ["memory"]);
}
