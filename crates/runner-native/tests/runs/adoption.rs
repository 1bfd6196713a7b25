//! A run outlives the server, and is found again.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use runtara_domain::{EndedBy, ExitCause};
use runtara_runner::{Adoption, Run, Runner as _};

use crate::stage::{Stage, in_lock, is_alive, kill, until};

fn alive(adoption: Adoption) -> Arc<dyn Run> {
    match adoption {
        Adoption::Alive(run) => run,
        Adoption::Exited(exit) => panic!("it exited: {exit:?}"),
        Adoption::Gone => panic!("it is gone"),
    }
}

async fn launcher_pid(stage: &Stage) -> String {
    stage.launcher.process_id().await.unwrap().to_string()
}

pub(crate) async fn a_run_outlives_server_and_launcher() {
    let stage = Stage::new().await;
    let run = stage
        .launch("echo $$ > here; while [ ! -e go ]; do sleep 0.01; done; echo 9; exit 0")
        .await;
    let key = run.key().clone();
    let program = stage.written(&key, "here").await;
    drop(run);
    kill(&launcher_pid(&stage).await, Signal::SIGKILL);

    let server = stage.restarted().await;
    // Twice: whoever reconciles does it again and again.
    let first = alive(server.adopt(&key).await.unwrap());
    let second = alive(server.adopt(&key).await.unwrap());
    assert!(is_alive(&program));
    assert_eq!(in_lock(&stage, &key, "child_pid").unwrap(), program);
    assert!(second.usage().await.unwrap().memory_peak_bytes > 0);
    std::fs::write(stage.work(&key).join("go"), "").unwrap();
    for run in [first, second] {
        let exit = run.wait().await.unwrap();
        assert_eq!(
            (exit.cause, exit.output.unwrap()),
            (ExitCause::Code(0), "9".into())
        );
    }
}

pub(crate) async fn a_run_that_ended_meanwhile_is_told_as_it_ended() {
    let stage = Stage::new().await;
    let run = stage.launch("echo broken >&2; exit 6").await;
    let exit = run.wait().await.unwrap();
    let server = stage.restarted().await;
    for _ in 0..2 {
        match server.adopt(run.key()).await.unwrap() {
            Adoption::Exited(told) => assert_eq!(told, exit),
            _ => panic!("it ended"),
        }
    }
    assert_eq!(
        (exit.cause, exit.stderr.as_str()),
        (ExitCause::Code(6), "broken\n")
    );
}

pub(crate) async fn a_run_without_a_trace_is_gone_and_cannot_begin() {
    let stage = Stage::new().await;
    let spec = stage.spec("echo here > here").await;
    for _ in 0..2 {
        let found = stage.runner.adopt(&spec.key).await.unwrap();
        assert!(matches!(found, Adoption::Gone));
    }
    let key = spec.key.clone();
    assert!(stage.runner.launch(spec).await.is_err());
    // Not even by a launcher that got the request late.
    let directory = stage.directory(&key);
    let shim = stage.launcher.launch(&directory).await.unwrap();
    shim.ended().await.unwrap();
    assert!(!directory.exit_file().exists() && !stage.work(&key).exists());
}

pub(crate) async fn a_run_whose_shim_was_killed_is_lost_with_all_its_processes() {
    let stage = Stage::new().await;
    let run = stage
        .launch("setsid sh -c 'echo $$ > daemon; sleep 1000' & echo $$ > main; sleep 1000")
        .await;
    let key = run.key().clone();
    let daemon = stage.written(&key, "daemon").await;
    let main = stage.written(&key, "main").await;
    until("the shim has said who it is", || {
        in_lock(&stage, &key, "pid").is_some()
    })
    .await;
    kill(&in_lock(&stage, &key, "pid").unwrap(), Signal::SIGKILL);
    assert_eq!(run.wait().await.unwrap().cause, ExitCause::Lost);
    assert!(
        !is_alive(&main) && !is_alive(&daemon),
        "nothing of it lives"
    );
    assert!(matches!(
        stage.runner.adopt(&key).await.unwrap(),
        Adoption::Gone
    ));
}

pub(crate) async fn adopting_races_with_launching() {
    let stage = Stage::new().await;
    for _ in 0..50 {
        let spec = stage.spec("echo $$ > here; sleep 1000").await;
        let key = spec.key.clone();
        let (launched, adopted) = tokio::join!(stage.runner.launch(spec), stage.runner.adopt(&key));
        match adopted.unwrap() {
            Adoption::Alive(adopted) => {
                let launched = launched.unwrap();
                adopted
                    .terminate(Duration::ZERO, EndedBy::Stop)
                    .await
                    .unwrap();
                assert_eq!(launched.wait().await.unwrap().cause, ExitCause::Signal(9));
            }
            Adoption::Gone => {
                // Then there is no process of it, and none comes.
                if let Ok(launched) = launched {
                    assert_eq!(launched.wait().await.unwrap().cause, ExitCause::Lost);
                }
                assert!(!stage.work(&key).join("here").exists());
            }
            Adoption::Exited(exit) => panic!("it cannot have ended: {exit:?}"),
        }
    }
}

pub(crate) async fn a_dead_launcher_is_replaced() {
    let stage = Stage::new().await;
    for _ in 0..3 {
        let before = launcher_pid(&stage).await;
        kill(&before, Signal::SIGKILL);
        until("it is dead", || !is_alive(&before)).await;
        assert_eq!(stage.run("exit 0").await.cause, ExitCause::Code(0));
        assert_ne!(launcher_pid(&stage).await, before);
    }
}
