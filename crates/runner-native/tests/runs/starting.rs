//! A program starts as it should, or not at all.

use runtara_domain::{ExitCause, RunNumber};
use runtara_runner::shim::LogStream;
use runtara_runner::{Input, LaunchObstacle, Runner as _};

use crate::stage::{Stage, until};

pub(crate) async fn the_exit_code_is_told() {
    let stage = Stage::new().await;
    for code in [0, 1, 42, 255] {
        let exit = stage.run(&format!("exit {code}")).await;
        assert_eq!(exit.cause, ExitCause::Code(code));
        assert_eq!((exit.ended_by, exit.limits_met), (None, vec![]));
    }
}

pub(crate) async fn a_killing_signal_is_told() {
    let stage = Stage::new().await;
    assert_eq!(
        stage.run("kill -SEGV $$").await.cause,
        ExitCause::Signal(11)
    );
    assert_eq!(stage.run("kill -9 $$").await.cause, ExitCause::Signal(9));
}

pub(crate) async fn a_real_time_signal_is_told() {
    let stage = Stage::new().await;
    assert_eq!(stage.run("kill -45 $$").await.cause, ExitCause::Signal(45));
}

pub(crate) async fn a_program_gets_its_input_on_standard_input_and_in_a_file() {
    let stage = Stage::new().await;
    let exit = stage.run("cat; echo; cat \"$RUNTARA_INPUT_FILE\"").await;
    let output = String::from_utf8(exit.output.unwrap().to_vec()).unwrap();
    assert_eq!(output, r#""{\"n\":1}\n{\"n\":1}""#);
}

pub(crate) async fn arguments_reach_the_program() {
    let stage = Stage::new().await;
    let mut spec = stage.spec("echo \"$1|$2\"").await;
    spec.args = vec!["a b".to_owned(), "*".to_owned()];
    let exit = stage
        .runner
        .launch(spec)
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
    assert_eq!(exit.output.unwrap(), r#""a b|*""#);
}

pub(crate) async fn a_large_input_arrives_whole() {
    let stage = Stage::new().await;
    let large = vec![b'x'; 3 << 20];
    let path = stage.root.path().join("large");
    std::fs::write(&path, &large).unwrap();
    for input in [Input::Inline(large.into()), Input::File(path)] {
        let mut spec = stage.spec("wc -c").await;
        spec.input = input;
        let exit = stage
            .runner
            .launch(spec)
            .await
            .unwrap()
            .wait()
            .await
            .unwrap();
        assert_eq!(exit.output.unwrap(), (3 << 20).to_string());
    }
}

pub(crate) async fn what_cannot_be_executed_fails_for_good() {
    let stage = Stage::new().await;
    let noise = stage.root.path().join("noise");
    std::fs::write(&noise, "neither a program nor a script").unwrap();
    let orphan = stage.root.path().join("orphan");
    std::fs::write(&orphan, "#!/no/such/interpreter\n").unwrap();
    for (path, expected) in [(noise, "format"), (orphan, "interpreter")] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
        let mut spec = stage.spec("true").await;
        spec.image.path = path;
        let exit = stage
            .runner
            .launch(spec)
            .await
            .unwrap()
            .wait()
            .await
            .unwrap();
        match exit.cause {
            ExitCause::NotLaunched {
                permanent: true,
                error,
            } => {
                assert!(error.contains(expected), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) async fn an_executable_that_is_gone_must_be_prepared_again() {
    let stage = Stage::new().await;
    let spec = stage.spec("true").await;
    std::fs::remove_file(&spec.image.path).unwrap();
    let refused = stage.runner.launch(spec.clone()).await.err().unwrap();
    assert_eq!(refused.obstacle, LaunchObstacle::NotPrepared, "{refused}");
    assert!(
        !stage.directory(&spec.key).path().exists(),
        "nothing was begun"
    );
}

pub(crate) async fn two_hundred_runs_at_once_all_end() {
    let stage = Stage::new().await;
    let mut runs = tokio::task::JoinSet::new();
    let stage = std::sync::Arc::new(stage);
    for number in 0..200 {
        let stage = std::sync::Arc::clone(&stage);
        runs.spawn(async move {
            let exit = stage
                .run(&format!("read line; echo {number}; exit 0"))
                .await;
            (number, exit)
        });
    }
    while let Some(done) = runs.join_next().await {
        let (number, exit) = done.unwrap();
        assert_eq!(exit.cause, ExitCause::Code(0));
        assert_eq!(exit.output.unwrap(), number.to_string());
    }
}

pub(crate) async fn a_run_is_launched_once() {
    let stage = Stage::new().await;
    let spec = stage.spec("echo once >> \"$RUNTARA_RUN_DIR/count\"").await;
    let run = stage.runner.launch(spec.clone()).await.unwrap();
    let refused = stage.runner.launch(spec.clone()).await.err().unwrap();
    assert!(
        refused.obstacle == LaunchObstacle::Host && refused.reason.contains("earlier launch"),
        "{refused}"
    );
    run.wait().await.unwrap();
    assert!(stage.runner.launch(spec.clone()).await.is_err());
    let count = std::fs::read_to_string(stage.work(&spec.key).join("count"));
    assert_eq!(count.unwrap(), "once\n");
}

pub(crate) async fn runs_of_one_instance_share_nothing() {
    let stage = Stage::new().await;
    let script = "ls -A; echo trace > here; echo $RUNTARA_RUN_NUMBER > number; pwd; echo $HOME; echo $TMPDIR";
    let first = stage.spec(script).await;
    let mut second = first.clone();
    second.key.run_number = RunNumber(2);
    let (one, two) = (first.key.clone(), second.key.clone());
    let runs = [
        stage.runner.launch(first).await.unwrap(),
        stage.runner.launch(second).await.unwrap(),
    ];
    for run in runs {
        assert_eq!(run.wait().await.unwrap().cause, ExitCause::Code(0));
    }
    for (key, number) in [(&one, "1"), (&two, "2")] {
        let place = stage.work(key).display().to_string();
        let expected = format!("{place}\n{place}\n{place}\n");
        assert_eq!(stage.log(key, LogStream::Stdout), expected);
        assert_eq!(stage.written(key, "number").await, number);
    }
    assert_ne!(stage.work(&one), stage.work(&two));
}

pub(crate) async fn cleaning_leaves_the_logs_and_then_nothing() {
    let stage = Stage::new().await;
    let run = stage
        .launch("echo hello; mkdir -p a/b; touch a/b/c; chmod 0 a")
        .await;
    run.wait().await.unwrap();
    let key = run.key();
    stage.runner.clean(key, true).await.unwrap();
    assert_eq!(stage.log(key, LogStream::Stdout), "hello\n");
    assert!(!stage.work(key).exists() && !stage.directory(key).run_file().exists());
    for _ in 0..2 {
        stage.runner.clean(key, false).await.unwrap();
        let left = std::fs::read_dir(stage.config.data_dir.join("runs"))
            .unwrap()
            .count();
        assert_eq!(left, 0, "neither the run nor its instance has a directory");
    }
}

pub(crate) async fn a_run_that_lives_is_not_cleaned() {
    let stage = Stage::new().await;
    let run = stage.launch("echo here > here; sleep 100").await;
    stage.written(run.key(), "here").await;
    let refused = stage.runner.clean(run.key(), false).await.unwrap_err();
    assert_eq!(refused.source.kind(), std::io::ErrorKind::ResourceBusy);
    assert!(stage.work(run.key()).exists());
    run.terminate(std::time::Duration::ZERO, runtara_domain::EndedBy::Stop)
        .await
        .unwrap();
    run.wait().await.unwrap();
    stage.runner.clean(run.key(), false).await.unwrap();
}

pub(crate) async fn usage_is_told_while_it_runs_and_afterwards() {
    let stage = Stage::new().await;
    let busy = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
    let run = stage
        .launch(&format!(
            "({busy}); echo half > half; read never < /dev/null; sleep 100"
        ))
        .await;
    stage.written(run.key(), "half").await;
    let live = run.usage().await.unwrap();
    assert!(
        live.cpu_usec > 10_000 && live.memory_peak_bytes > 100_000 && live.running_ms > 0,
        "{live:?}"
    );
    run.terminate(std::time::Duration::ZERO, runtara_domain::EndedBy::Leaving)
        .await
        .unwrap();
    until("it ended", || {
        !crate::stage::is_alive(&crate::stage::in_lock(&stage, run.key(), "pid").unwrap())
    })
    .await;
    let ended = run.usage().await.unwrap();
    // The live figures count in ticks of 10 ms.
    assert!(
        ended.cpu_usec + 20_000 >= live.cpu_usec && ended.memory_peak_bytes > 100_000,
        "{live:?} {ended:?}"
    );
    assert_eq!(run.wait().await.unwrap().usage, ended);
}
