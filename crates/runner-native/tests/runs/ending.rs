//! A run ends when it must, with all of its processes.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use runtara_domain::{EndedBy, ExitCause};
use runtara_runner::Runner as _;

use crate::stage::{PATIENCE, Stage, in_lock, is_alive, kill, until};

const LONG: Duration = PATIENCE;

pub(crate) async fn the_deadline_ends_a_run() {
    let stage = Stage::new().await;
    let mut spec = stage.spec("sleep 100 & sleep 100").await;
    spec.timeout = Duration::from_millis(200);
    let exit = stage
        .runner
        .launch(spec)
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
    assert_eq!(exit.cause, ExitCause::Signal(9));
    assert_eq!(exit.ended_by, Some(EndedBy::Deadline));
    assert!(exit.usage.running_ms >= 200, "{:?}", exit.usage);
}

pub(crate) async fn slept_time_moves_the_deadline() {
    let stage = Stage::new().await;
    let mut spec = stage.spec("sleep 100").await;
    spec.timeout = Duration::from_millis(300);
    let run = stage.runner.launch(spec).await.unwrap();
    run.set_slept(Duration::from_millis(100)).await.unwrap();
    run.set_slept(Duration::from_millis(700)).await.unwrap();
    let exit = run.wait().await.unwrap();
    assert_eq!(exit.ended_by, Some(EndedBy::Deadline));
    assert!(exit.usage.running_ms >= 1000, "{:?}", exit.usage);
}

pub(crate) async fn termination_asks_first_and_kills_later() {
    let stage = Stage::new().await;
    let run = stage
        .launch("trap 'echo asked > asked' TERM; echo here > here; while :; do sleep 0.01; done")
        .await;
    stage.written(run.key(), "here").await;
    run.terminate(Duration::from_millis(500), EndedBy::Stop)
        .await
        .unwrap();
    let exit = run.wait().await.unwrap();
    assert_eq!(exit.cause, ExitCause::Signal(9));
    assert_eq!(exit.ended_by, Some(EndedBy::Stop));
    assert_eq!(stage.written(run.key(), "asked").await, "asked");
}

pub(crate) async fn termination_without_grace_kills_at_once() {
    let stage = Stage::new().await;
    let run = stage
        .launch("trap 'echo asked > asked' TERM; echo here > here; while :; do sleep 0.01; done")
        .await;
    stage.written(run.key(), "here").await;
    run.terminate(Duration::ZERO, EndedBy::Leaving)
        .await
        .unwrap();
    let exit = run.wait().await.unwrap();
    assert_eq!(
        (exit.cause, exit.ended_by),
        (ExitCause::Signal(9), Some(EndedBy::Leaving))
    );
    assert!(!stage.work(run.key()).join("asked").exists());
}

pub(crate) async fn a_machine_that_goes_down_asks_no_program() {
    let stage = Stage::new().await;
    let run = stage
        .launch("trap 'echo asked > asked; exit 0' TERM; echo here > here; while :; do sleep 0.01; done")
        .await;
    stage.written(run.key(), "here").await;
    let mut shim = None;
    until("the shim says who it is", || {
        shim = in_lock(&stage, run.key(), "pid");
        shim.is_some()
    })
    .await;
    kill(&shim.unwrap(), Signal::SIGTERM);
    let exit = run.wait().await.unwrap();
    assert_eq!(
        (exit.cause, exit.ended_by),
        (ExitCause::Signal(9), Some(EndedBy::Host))
    );
    assert!(!stage.work(run.key()).join("asked").exists());
}

pub(crate) async fn a_program_that_ignores_the_request_is_killed_after_its_grace() {
    let stage = Stage::new().await;
    let run = stage
        .launch("trap '' TERM; echo here > here; sleep 100")
        .await;
    stage.written(run.key(), "here").await;
    let begun = Instant::now();
    run.terminate(Duration::from_millis(300), EndedBy::Stop)
        .await
        .unwrap();
    let exit = run.wait().await.unwrap();
    assert_eq!(exit.cause, ExitCause::Signal(9));
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

pub(crate) async fn a_program_may_leave_in_order_within_its_grace() {
    let stage = Stage::new().await;
    let run = stage
        .launch("trap 'echo 7; exit 0' TERM; echo here > here; while :; do sleep 0.01; done")
        .await;
    stage.written(run.key(), "here").await;
    run.terminate(LONG, EndedBy::Stop).await.unwrap();
    let exit = run.wait().await.unwrap();
    assert_eq!(
        (exit.cause, exit.ended_by),
        (ExitCause::Code(0), Some(EndedBy::Stop))
    );
    assert_eq!(exit.output.unwrap(), "7");
}

pub(crate) async fn a_shorter_grace_wins() {
    let stage = Stage::new().await;
    let run = stage
        .launch("trap '' TERM; echo here > here; sleep 100")
        .await;
    stage.written(run.key(), "here").await;
    run.terminate(LONG, EndedBy::Leaving).await.unwrap();
    run.terminate(Duration::from_millis(50), EndedBy::Stop)
        .await
        .unwrap();
    run.terminate(2 * LONG, EndedBy::Host).await.unwrap();
    let begun = Instant::now();
    let exit = run.wait().await.unwrap();
    assert_eq!(exit.ended_by, Some(EndedBy::Stop));
    assert!(begun.elapsed() < LONG / 2);
}

pub(crate) async fn a_request_right_after_the_launch_is_not_lost() {
    let stage = Stage::new().await;
    for _ in 0..20 {
        let run = stage.launch("sleep 100").await;
        run.terminate(Duration::ZERO, EndedBy::Host).await.unwrap();
        let exit = run.wait().await.unwrap();
        assert_eq!(
            (exit.cause, exit.ended_by),
            (ExitCause::Signal(9), Some(EndedBy::Host))
        );
    }
}

pub(crate) async fn ending_a_run_that_has_ended_does_nothing() {
    let stage = Stage::new().await;
    let run = stage.launch("exit 5").await;
    let exit = run.wait().await.unwrap();
    run.terminate(Duration::ZERO, EndedBy::Stop).await.unwrap();
    assert_eq!(run.wait().await.unwrap(), exit);
    assert_eq!((exit.cause, exit.ended_by), (ExitCause::Code(5), None));
}

pub(crate) async fn what_has_left_the_session_is_ended_too() {
    let stage = Stage::new().await;
    let run = stage
        .launch("setsid sh -c 'trap \"\" TERM HUP; echo $$ > daemon; sleep 1000' & while [ ! -s daemon ]; do :; done; exit 4")
        .await;
    assert_eq!(run.wait().await.unwrap().cause, ExitCause::Code(4));
    let daemon = stage.written(run.key(), "daemon").await;
    assert!(
        !is_alive(&daemon),
        "the daemon is dead when the run is over"
    );
}

pub(crate) async fn what_has_left_the_session_is_asked_too() {
    let stage = Stage::new().await;
    let run = stage
        .launch(
            "setsid sh -c 'trap \"echo bye > bye; exit\" TERM; echo $$ > daemon; while :; do sleep 0.01; done' &\n\
             trap 'while [ ! -s bye ]; do sleep 0.01; done; exit 0' TERM; while :; do sleep 0.01; done",
        )
        .await;
    stage.written(run.key(), "daemon").await;
    run.terminate(LONG, EndedBy::Stop).await.unwrap();
    assert_eq!(run.wait().await.unwrap().cause, ExitCause::Code(0));
    assert_eq!(stage.written(run.key(), "bye").await, "bye");
}

pub(crate) async fn a_descendant_of_many_generations_is_ended() {
    let stage = Stage::new().await;
    // Each generation begins a session and waits for the next; the middle ones are killed first.
    let run = stage
        .launch("cat > gen <<'END'\necho $$ >> pids\n[ $1 -gt 0 ] && setsid sh gen $(($1 - 1)) &\nsleep 1000\nEND\nsetsid sh gen 20 & \
                 while [ \"$(wc -l < pids)\" != 21 ]; do sleep 0.01; done 2>/dev/null; kill $(sed -n 5,15p pids); echo here > here; sleep 1000")
        .await;
    stage.written(run.key(), "here").await;
    run.terminate(Duration::ZERO, EndedBy::Stop).await.unwrap();
    run.wait().await.unwrap();
    let pids = std::fs::read_to_string(stage.work(run.key()).join("pids")).unwrap();
    assert_eq!(pids.lines().count(), 21);
    until("all are dead", || !pids.lines().any(is_alive)).await;
}

pub(crate) async fn a_program_that_flees_from_process_to_process_is_caught() {
    let stage = Stage::new().await;
    // Each process starts the next in a session of its own, and leaves.
    let run = stage
        .launch("cat > flee <<'END'\necho $1 > at\nsetsid sh flee $(($1 + 1)) &\nEND\nfor i in 1 2 3 4; do setsid sh flee 0 & done; sleep 1000")
        .await;
    let at = stage.work(run.key()).join("at");
    let generation = || {
        std::fs::read_to_string(&at)
            .unwrap_or_default()
            .trim()
            .parse::<u64>()
            .unwrap_or(0)
    };
    until("it is on its way", || generation() > 20).await;
    run.terminate(Duration::ZERO, EndedBy::Stop).await.unwrap();
    assert_eq!(run.wait().await.unwrap().cause, ExitCause::Signal(9));
    // The record is written when nothing is left: nobody counts on.
    let last = generation();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(generation(), last);
}
