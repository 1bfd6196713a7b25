//! How a container begins.

use runtara_domain::ExitCause;

use crate::stage::{Stage, tells_peaks};

pub(crate) async fn output_and_exit_code_are_those_of_the_program() {
    let stage = Stage::new().await;
    let ended = stage.run("echo out; echo err >&2; id -u; exit 7").await;
    assert_eq!(ended.record.cause, ExitCause::Code(7), "{ended:?}");
    assert_eq!(
        (ended.stdout.as_str(), ended.stderr.as_str()),
        ("out\n0\n", "err\n")
    );
    let usage = ended.record.usage;
    let is_told = tells_peaks();
    assert_eq!(usage.memory_peak_bytes > 100_000, is_told, "{usage:?}");
    assert!(usage.cpu_usec > 0, "{usage:?}");
}

pub(crate) async fn the_input_is_in_its_place() {
    let stage = Stage::new().await;
    let ended = stage
        .run("cat; cat /data/input.json; pwd; ls -la /data")
        .await;
    assert!(
        ended.stdout.starts_with("{\"n\":1}{\"n\":1}/data\n"),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("input.json"), "{ended:?}");
}

pub(crate) async fn streams_are_opened_by_their_names() {
    let stage = Stage::new().await;
    for user in [0, 1000] {
        let mut plan = stage.plan(
            "cat /dev/stdin; cat /dev/stdin; echo out > /dev/stdout; echo err > /dev/stderr; echo more >> /proc/self/fd/1; id -u",
        );
        plan.user = (user, user);
        let mut process = plan.configuration.process().clone().unwrap();
        process.user_mut().set_uid(user).set_gid(user);
        plan.configuration.set_process(Some(process));
        let ended = stage.launch(plan).await.end().await;
        let expected = format!("{{\"n\":1}}{{\"n\":1}}out\nmore\n{user}\n");
        assert_eq!(ended.stdout, expected, "{ended:?}");
        assert_eq!(ended.stderr, "err\n", "{ended:?}");
    }
}

pub(crate) async fn a_program_that_is_not_there_fails_for_good() {
    let stage = Stage::new().await;
    let mut plan = stage.plan("true");
    let mut process = plan.configuration.process().clone().unwrap();
    process.set_args(Some(vec!["/no/such/program".to_owned()]));
    plan.configuration.set_process(Some(process));
    let ended = stage.launch(plan).await.end().await;
    match &ended.record.cause {
        ExitCause::NotLaunched {
            permanent: true,
            error,
        } => {
            assert!(error.contains("/no/such/program"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn a_layer_that_is_missing_fails_for_now() {
    let stage = Stage::new().await;
    let mut plan = stage.plan("true");
    plan.layers = vec![stage.path("data/nowhere")];
    let ended = stage.launch(plan).await.end().await;
    match &ended.record.cause {
        ExitCause::NotLaunched {
            permanent: false,
            error,
        } => {
            assert!(
                error.contains("'<layer 0>'") && error.contains("No such file"),
                "{error}"
            );
            assert!(!error.contains("nowhere"), "a path of the host: {error}");
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn no_host_path_is_seen() {
    let stage = Stage::new().await;
    let script =
        "cat /proc/self/mountinfo; readlink /proc/self/fd/0; ls -l /proc/self/fd /proc/1/fd; env";
    let ended = stage.run(script).await;
    let place = stage.path("");
    let place = place.to_str().unwrap().trim_end_matches('/');
    assert_eq!(ended.record.cause, ExitCause::Code(0), "{ended:?}");
    assert!(!ended.stdout.contains(place), "{}", ended.stdout);
    assert!(!ended.stdout.contains("staging"), "{}", ended.stdout);
}
