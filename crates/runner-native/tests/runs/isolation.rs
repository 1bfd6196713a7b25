//! A program finds itself in a clean place.

use std::collections::BTreeMap;

use runtara_domain::ExitCause;
use runtara_runner::Runner as _;
use runtara_runner::shim::LogStream;

use crate::stage::Stage;

pub(crate) async fn the_environment_is_the_contract_and_nothing_else() {
    let stage = Stage::new().await;
    let mut spec = stage.spec("tr '\\0' '\\n' < /proc/self/environ").await;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    spec.env = [pair("COLOUR", "red"), pair("LD_PRELOAD", "/evil.so")].into();
    spec.passed_env = [pair("REGION", "eu")].into();
    let key = spec.key.clone();
    stage
        .runner
        .launch(spec)
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
    let text = stage.log(&key, LogStream::Stdout);
    let env: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    // The shell adds PWD.
    let names: Vec<_> = env.keys().copied().filter(|name| *name != "PWD").collect();
    assert_eq!(
        names,
        [
            "COLOUR",
            "HOME",
            "LANG",
            "PATH",
            "REGION",
            "RUNTARA_HTTP_URL",
            "RUNTARA_INPUT_FILE",
            "RUNTARA_INSTANCE_ID",
            "RUNTARA_OUTPUT_FILE",
            "RUNTARA_REQUEST_TIMEOUT_MS",
            "RUNTARA_RUN_DIR",
            "RUNTARA_RUN_NUMBER",
            "RUNTARA_SERVER_ADDR",
            "RUNTARA_TENANT_ID",
            "TMPDIR",
        ]
    );
    assert_eq!(env["HOME"], stage.work(&key).to_str().unwrap());
}

pub(crate) async fn no_descriptor_is_inherited() {
    let stage = Stage::new().await;
    // 3 is the directory that `ls` reads, 10 the script that the shell reads.
    let run = stage
        .launch("ls /proc/self/fd; readlink /proc/$$/fd/10 > script")
        .await;
    run.wait().await.unwrap();
    let listed = stage.log(run.key(), LogStream::Stdout);
    let others: Vec<_> = listed
        .lines()
        .filter(|fd| !["0", "1", "2", "3"].contains(fd))
        .collect();
    let script = stage.written(run.key(), "script").await;
    assert!(script.contains("cache/native"), "{script}");
    assert!(others.is_empty() || others == ["10"], "{listed}");
}

pub(crate) async fn signals_and_limits_are_as_for_a_fresh_process() {
    let stage = Stage::new().await;
    let run = stage.launch("grep -E '^(Sig(Blk|Ign)|NoNewPrivs)' /proc/self/status; grep -o 'core file size.*[0-9]' /proc/self/limits | tr -s ' '; umask; cut -d' ' -f6 /proc/$$/stat; echo $$").await;
    run.wait().await.unwrap();
    let text = stage.log(run.key(), LogStream::Stdout);
    let lines: Vec<_> = text.lines().collect();
    let clean = "0000000000000000";
    assert_eq!(lines[0], format!("SigBlk:\t{clean}"));
    assert_eq!(lines[1], format!("SigIgn:\t{clean}"));
    assert_eq!(lines[2], "NoNewPrivs:\t1");
    // With 0 the core would still be piped to the program that core_pattern names (core(5)).
    assert_eq!(&lines[3..5], ["core file size 1 1", "0077"]);
    assert_eq!(lines[5], lines[6], "it leads a session of its own");
}

pub(crate) async fn configured_limits_hold() {
    let stage = Stage::with(|config| {
        config.limits.open_files = Some(77);
        config.limits.file_bytes = Some(1024);
        config.oom_score_adj = Some(500);
        config.nice = Some(5);
    })
    .await;
    let run = stage
        .launch("ulimit -n; cat /proc/self/oom_score_adj; nice; exec head -c 5000 /dev/zero > big")
        .await;
    let exit = run.wait().await.unwrap();
    assert_eq!(stage.log(run.key(), LogStream::Stdout), "77\n500\n5\n");
    assert_eq!(exit.cause, ExitCause::Signal(nix::libc::SIGXFSZ));
    assert_eq!(exit.limits_met, ["file size"]);
}

const NOBODY: (u32, u32) = (65_534, 65_534);

/// Only root can become another user.
async fn as_nobody() -> Option<Stage> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    Some(Stage::with(|config| config.user = Some(NOBODY)).await)
}

pub(crate) async fn a_program_can_be_another_user() {
    let Some(stage) = as_nobody().await else {
        return;
    };
    let ready = stage.runner.readiness().await;
    assert!(
        matches!(&ready, runtara_runner::Readiness::Ready(text) if text.contains("65534")),
        "{ready:?}"
    );
    let mut spec = stage.spec("true").await;
    // A program of the system.
    spec.image = stage.image(&std::fs::read("/usr/bin/id").unwrap()).await;
    let key = spec.key.clone();
    let exit = stage
        .runner
        .launch(spec)
        .await
        .unwrap()
        .wait()
        .await
        .unwrap();
    assert_eq!(exit.cause, ExitCause::Code(0), "{exit:?}");
    let text = stage.log(&key, LogStream::Stdout);
    assert!(
        text.contains("uid=65534") && text.contains("gid=65534"),
        "{text}"
    );
    assert!(
        !text.contains("groups=0") && !text.contains(",0("),
        "{text}"
    );
}

pub(crate) async fn a_program_of_another_user_can_start_itself_again() {
    let Some(stage) = as_nobody().await else {
        return;
    };
    let mut spec = stage.spec("true").await;
    spec.image = stage.image(&std::fs::read("/bin/sh").unwrap()).await;
    let again = "id -u; [ -w \"$0\" ] && echo writable; ls \"${0%/*}\" 2>&1 | grep -o denied";
    let script = format!("self=$(readlink /proc/$$/exe); exec \"$self\" -c '{again}' \"$self\"");
    spec.args = vec!["-c".to_owned(), script];
    let run = stage.runner.launch(spec).await.unwrap();
    let exit = run.wait().await.unwrap();
    let text = stage.log(run.key(), LogStream::Stdout);
    assert_eq!(text, "65534\ndenied\n", "{exit:?}");
    let before = stage.image(&std::fs::read("/bin/sh").unwrap()).await;
    stage.runner.forget(before.content.digest).await.unwrap();
    assert!(!before.path.exists());
}

pub(crate) async fn a_script_can_be_another_user() {
    let Some(stage) = as_nobody().await else {
        return;
    };
    let script = format!(
        "id -u; cat; echo; cat \"$RUNTARA_INPUT_FILE\"; echo; echo '{{\"a\":1}}' > \"$RUNTARA_OUTPUT_FILE\"; touch \"$HOME/mine\"; ls '{}' 2>&1 | grep -o denied",
        stage.config.data_dir.display()
    );
    let run = stage.launch(&script).await;
    let exit = run.wait().await.unwrap();
    assert_eq!(
        stage.log(run.key(), LogStream::Stdout),
        "65534\n{\"n\":1}\n{\"n\":1}\ndenied\n",
        "{exit:?}"
    );
    assert_eq!(exit.output.unwrap(), "{\"a\":1}");
    assert!(stage.work(run.key()).join("mine").exists());
    stage.runner.clean(run.key(), false).await.unwrap();
    assert!(!stage.work(run.key()).exists());
}

pub(crate) async fn a_run_keeps_its_user_when_the_server_gets_another() {
    let Some(mut stage) = as_nobody().await else {
        return;
    };
    let run = stage.launch("echo here > here; while [ ! -e go ]; do sleep 0.01; done; echo 8 > \"$RUNTARA_OUTPUT_FILE\"").await;
    let key = run.key().clone();
    stage.written(&key, "here").await;
    let work = stage.work(&key);
    stage.config.user = None;
    let server = stage.restarted().await;
    let runtara_runner::Adoption::Alive(adopted) = server.adopt(&key).await.unwrap() else {
        panic!("it lives");
    };
    std::fs::write(work.join("go"), "").unwrap();
    assert_eq!(adopted.wait().await.unwrap().output.unwrap(), "8");
    server.clean(&key, false).await.unwrap();
    assert!(!work.exists());
}
