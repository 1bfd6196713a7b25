//! The runner, as a scheduler calls it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runtara_domain::{EndedBy, ExitCause, NetworkMode, ResourceLimits};
use runtara_runner::{
    Adoption, AskedSettings, LaunchObstacle, PrepareError, Readiness, RunKey, Runner as _,
};
use serde_json::Value;

use crate::server::{Server, archive};
use crate::stage::until;

async fn until_nothing_is_left(server: &Server) {
    until("nothing is left of containers", || server.left().is_empty()).await;
}

/// Waits until the program of a run has written something.
async fn wrote(server: &Server, key: &RunKey, text: &str) {
    let log = server.directory(key).path().join("stdout.0");
    let has_it = || fs::read_to_string(&log).is_ok_and(|log| log.contains(text));
    until(text, has_it).await;
}

/// The shim of a run.
fn shim_of(server: &Server, key: &RunKey) -> Pid {
    let lock = fs::read_to_string(server.directory(key).lock_file()).unwrap();
    let lock: Value = serde_json::from_str(&lock).unwrap();
    Pid::from_raw(lock["pid"].as_i64().unwrap().try_into().unwrap())
}

pub(crate) async fn a_program_runs_and_leaves_nothing() {
    let server = Server::new().await;
    let run = server
        .launch("cat /data/input.json; hostname >&2; cat /etc/hosts >&2")
        .await;
    assert_eq!(run.core_addr(), None);
    let exit = run.wait().await.unwrap();
    assert_eq!(exit.cause, ExitCause::Code(0), "{exit:?}");
    assert_eq!(exit.output.as_deref(), Some(b"{\"n\":1}".as_slice()));
    let hostname = run.key().instance_id.letters();
    assert!(exit.stderr.starts_with(&hostname), "{}", exit.stderr);
    assert!(
        exit.stderr.contains(&format!("localhost {hostname}")),
        "{}",
        exit.stderr
    );
    let is_told = crate::stage::tells_peaks();
    assert_eq!(exit.usage.memory_peak_bytes > 0, is_told, "{exit:?}");
    assert!(exit.usage.cpu_usec > 0, "{exit:?}");
    server.runner.clean(run.key(), false).await.unwrap();
    server.runner.clean(run.key(), false).await.unwrap();
    assert!(!server.directory(run.key()).path().exists());
    until_nothing_is_left(&server).await;
}

pub(crate) async fn a_container_is_found_again_by_the_next_server() {
    let mut server = Server::new().await;
    let key = server
        .launch("echo here; read -t 60 _; sleep 60")
        .await
        .key()
        .clone();
    wrote(&server, &key, "here").await;
    server.restart().await;
    let run = match server.runner.adopt(&key).await.unwrap() {
        Adoption::Alive(run) => run,
        _ => panic!("it lives"),
    };
    assert_eq!(run.core_addr(), None);
    run.terminate(Duration::ZERO, EndedBy::Stop).await.unwrap();
    let exit = run.wait().await.unwrap();
    assert_eq!(
        (exit.cause, exit.ended_by),
        (ExitCause::Signal(9), Some(EndedBy::Stop))
    );
    server.restart().await;
    assert!(matches!(
        server.runner.adopt(&key).await.unwrap(),
        Adoption::Exited(_)
    ));
    server.runner.clean(&key, false).await.unwrap();
    until_nothing_is_left(&server).await;
}

pub(crate) async fn a_run_whose_shim_was_killed_leaves_nothing() {
    let server = Server::new().await;
    let run = server.launch("sleep 60 & echo here; sleep 60").await;
    wrote(&server, run.key(), "here").await;
    kill(shim_of(&server, run.key()), Signal::SIGKILL).unwrap();
    let exit = run.wait().await.unwrap();
    assert_eq!(exit, runtara_domain::RunExit::lost());
    server.runner.clean(run.key(), false).await.unwrap();
    assert_eq!(server.left(), Vec::<std::path::PathBuf>::new());
}

pub(crate) async fn what_a_killed_server_has_left_is_swept() {
    let mut server = Server::new().await;
    let run = server.launch("echo here; sleep 60").await;
    let key = run.key().clone();
    wrote(&server, &key, "here").await;
    kill(shim_of(&server, &key), Signal::SIGKILL).unwrap();
    run.wait().await.unwrap();
    assert!(!server.left().is_empty());
    // As if the server had been killed between the run's files and its container.
    fs::remove_dir_all(server.directory(&key).path()).unwrap();
    server.restart().await;
    assert_eq!(server.left(), Vec::<std::path::PathBuf>::new());
}

pub(crate) async fn each_container_has_user_ids_of_its_own() {
    let server = Server::new().await;
    if !server.shifts_owners() {
        // All have the same: `where_owners_cannot_be_shifted_all_have_the_same_ids`.
        return;
    }
    let script = "cat /proc/self/uid_map; echo here; sleep 60";
    let mut runs = Vec::new();
    for _ in 0..4 {
        runs.push(server.launch(script).await);
    }
    let mut seen = std::collections::BTreeSet::new();
    for run in &runs {
        wrote(&server, run.key(), "here").await;
        let log = fs::read_to_string(server.directory(run.key()).path().join("stdout.0")).unwrap();
        let first = log.split_whitespace().nth(1).unwrap().to_owned();
        assert!(seen.insert(first), "{log}");
    }
    let spec = server.spec(script).await;
    let refused = server.runner.launch(spec.clone()).await.err().unwrap();
    assert_eq!(refused.obstacle, LaunchObstacle::Host);
    assert!(refused.reason.contains("all 4 ranges"), "{refused}");
    for run in &runs {
        run.terminate(Duration::ZERO, EndedBy::Stop).await.unwrap();
        run.wait().await.unwrap();
        server.runner.clean(run.key(), false).await.unwrap();
    }
    let again = server.runner.launch(spec).await.unwrap();
    again
        .terminate(Duration::ZERO, EndedBy::Stop)
        .await
        .unwrap();
    again.wait().await.unwrap();
}

pub(crate) async fn where_owners_cannot_be_shifted_all_have_the_same_ids() {
    let server = Server::with(|config| config.shifts_owners = Some(false)).await;
    for _ in 0..2 {
        let exit = server
            .run("cat /proc/self/uid_map; cat /secret-of-root; touch /bin/new && id")
            .await;
        let output = String::from_utf8(exit.output.unwrap().to_vec()).unwrap();
        let first = server.config.ids.first_range().first().to_string();
        assert!(output.contains(&first), "{output}");
        assert!(
            output.contains("of the image") && output.contains("uid=0"),
            "{output}"
        );
    }
}

pub(crate) async fn without_overlayfs_each_has_a_copy() {
    let server = Server::with(|config| config.overlay = Some(false)).await;
    let script =
        "cat /secret-of-root; mount | head -n 1; test -e /left || touch /left && echo fresh";
    for _ in 0..2 {
        let exit = server.run(script).await;
        let output = String::from_utf8(exit.output.unwrap().to_vec()).unwrap();
        assert!(output.contains("of the image"), "{output}");
        assert!(
            output.contains("tmpfs") && !output.contains("overlay"),
            "{output}"
        );
        assert!(output.contains("fresh"), "{output}");
    }
}

pub(crate) async fn what_is_not_allowed_is_refused_for_now() {
    let server = Server::with(|config| config.ceiling.pids = Some(10)).await;
    let mut settings = AskedSettings::default();
    assert_eq!(server.runner.check(&settings), Ok(()));
    settings.start.limits = ResourceLimits {
        pids: Some(11),
        ..ResourceLimits::default()
    };
    let reason = server.runner.check(&settings).unwrap_err();
    assert!(reason.contains("ask for at most 10"), "{reason}");
    let mut spec = server.spec("true").await;
    spec.settings.start.network = Some(NetworkMode::Host);
    let refused = server.runner.launch(spec).await.err().unwrap();
    assert_eq!(
        refused.obstacle,
        LaunchObstacle::Host,
        "the operator may allow it again"
    );
    assert!(
        refused.reason.contains("'host' is not allowed here"),
        "{refused}"
    );
}

pub(crate) async fn a_machine_without_runtime_says_what_to_install() {
    let server = Server::with(|config| config.runtime = "no-such-runtime".to_owned()).await;
    match server.runner.readiness().await {
        Readiness::Unfit(text) => {
            assert!(text.contains("'no-such-runtime' was not found"), "{text}");
            assert!(text.contains("apt install runc"), "{text}");
        }
        Readiness::Ready(text) => panic!("{text}"),
    }
    let error = server.prepare(server.busybox()).await.unwrap_err();
    assert!(matches!(error, PrepareError::Host { .. }), "{error}");
}

pub(crate) async fn a_program_that_needs_a_loader_needs_a_base() {
    let server = Server::new().await;
    let dynamic = fs::read("/bin/true").unwrap();
    let error = server
        .prepare(server.files(&dynamic, None))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("needs /lib64/ld-linux-x86-64.so.2"),
        "{error}"
    );
    let script = b"#!/bin/sh\necho \"$0 $1\"; id -u\n";
    let base = server.busybox();
    let image = server
        .prepare(server.files(script, Some(&base)))
        .await
        .unwrap();
    let mut spec = server.spec("").await;
    (spec.image, spec.args) = (image, vec!["one".to_owned()]);
    let run = server.runner.launch(spec).await.unwrap();
    let exit = run.wait().await.unwrap();
    assert_eq!(
        exit.output.as_deref(),
        Some(b"\"/program one\\n0\"".as_slice()),
        "{exit:?}"
    );
    // A base that has no loader for it.
    let error = server
        .prepare(server.files(&dynamic, Some(&base)))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("which the base image does not have"),
        "{error}"
    );
}

fn layers(server: &Server) -> usize {
    let layers = Path::new(&server.config.data_dir).join("cache/oci/layers");
    fs::read_dir(layers).unwrap().count()
}

pub(crate) async fn an_image_that_goes_takes_what_nobody_else_needs() {
    let server = Server::new().await;
    let base = server.busybox();
    let other = server.files(
        &archive(|tree| fs::write(tree.join("other"), "").unwrap()),
        None,
    );
    let prepared = server.prepare(base.clone()).await.unwrap();
    let about: Value = serde_json::from_str(&prepared.about.unwrap()).unwrap();
    assert_eq!(about["labels"]["colour"], "blue", "{about}");
    server.prepare(other.clone()).await.unwrap();
    assert_eq!(layers(&server), 2);
    let on_base = server.files(b"#!/bin/sh\n", Some(&base));
    server.prepare(on_base.clone()).await.unwrap();
    assert_eq!(layers(&server), 3, "the base is shared");
    server.runner.forget(other.content.digest).await.unwrap();
    assert_eq!(layers(&server), 3, "what may take long is for later");
    server.runner.reclaim().await.unwrap();
    assert_eq!(layers(&server), 2);
    server.runner.forget(on_base.content.digest).await.unwrap();
    server.runner.reclaim().await.unwrap();
    assert_eq!(layers(&server), 1);
    server.runner.forget(base.content.digest).await.unwrap();
    server.runner.forget(base.content.digest).await.unwrap();
    // Whoever comes in between has a whole image again.
    server.prepare(base.clone()).await.unwrap();
    server.runner.reclaim().await.unwrap();
    assert_eq!(layers(&server), 1);
    server.runner.forget(base.content.digest).await.unwrap();
    server.runner.reclaim().await.unwrap();
    server.runner.reclaim().await.unwrap();
    assert_eq!(layers(&server), 0);
}

pub(crate) async fn what_a_forgotten_image_leaves_goes_with_the_next_server() {
    let mut server = Server::new().await;
    let image = server.busybox();
    server.prepare(image.clone()).await.unwrap();
    server.runner.forget(image.content.digest).await.unwrap();
    assert_eq!(layers(&server), 1);
    server.restart().await;
    assert_eq!(layers(&server), 0);
}

pub(crate) async fn a_whole_copy_of_an_image_goes_with_it() {
    let server = Server::with(|config| config.overlay = Some(false)).await;
    let image = server.busybox();
    server.prepare(image.clone()).await.unwrap();
    let flat = server.config.data_dir.join("cache/oci/flat");
    let copies = || fs::read_dir(&flat).unwrap().count();
    let whole = flat.join(image.content.digest.to_string());
    assert!(whole.join("bin/busybox").exists());
    server.runner.forget(image.content.digest).await.unwrap();
    assert!(!whole.exists(), "nobody finds it");
    assert_eq!(copies(), 1, "what may take long is for later");
    server.prepare(image.clone()).await.unwrap();
    assert_eq!(copies(), 2);
    server.runner.reclaim().await.unwrap();
    assert_eq!(copies(), 1);
    assert!(whole.join("bin/busybox").exists(), "it was made anew");
    assert_eq!(layers(&server), 1);
    server.runner.forget(image.content.digest).await.unwrap();
    server.runner.reclaim().await.unwrap();
    assert_eq!((copies(), layers(&server)), (0, 0));
}

pub(crate) async fn an_image_that_is_refused_leaves_no_layers() {
    let server = Server::new().await;
    server.prepare(server.busybox()).await.unwrap();
    assert_eq!(layers(&server), 1);
    let mut content = archive(|tree| fs::write(tree.join("other"), "").unwrap());
    let said = br#""Labels":{"colour":"blue"}"#;
    let at = content.windows(said.len()).position(|part| part == said);
    let instead = br#""User":"no-such-user-here""#;
    content[at.unwrap()..][..said.len()].copy_from_slice(instead);
    let error = server
        .prepare(server.files(&content, None))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no-such-user-here"), "{error}");
    assert_eq!(layers(&server), 1, "that of the other stays");
}

pub(crate) async fn an_image_is_ready_at_once_for_the_next_server() {
    let mut server = Server::new().await;
    let image = server.busybox();
    let before = server.prepare(image.clone()).await.unwrap();
    server.restart().await;
    // Nothing is read of its content.
    fs::remove_file(&image.path).unwrap();
    assert_eq!(server.prepare(image).await.unwrap(), before);
}

pub(crate) async fn layers_that_are_gone_are_unpacked_again() {
    let server = Server::new().await;
    let spec = server.spec("true").await;
    let layers = server.config.data_dir.join("cache/oci/layers");
    for layer in fs::read_dir(&layers).unwrap() {
        fs::remove_dir_all(layer.unwrap().path()).unwrap();
    }
    let refused = server.runner.launch(spec.clone()).await.err().unwrap();
    assert_eq!(refused.obstacle, LaunchObstacle::NotPrepared);
    server.prepare(server.busybox()).await.unwrap();
    let run = server.runner.launch(spec).await.unwrap();
    assert_eq!(run.wait().await.unwrap().cause, ExitCause::Code(0));
}

pub(crate) async fn an_image_is_made_ready_once_however_many_ask() {
    for _ in 0..5 {
        let server = Server::new().await;
        let ask = || server.prepare(server.busybox());
        let (one, two, three) = tokio::join!(ask(), ask(), ask());
        assert_eq!(one.unwrap(), two.unwrap());
        three.unwrap();
        assert_eq!(layers(&server), 1);
        // And while others go.
        let other = server.files(b"#!/bin/sh\n", Some(&server.busybox()));
        let third = server.files(b"#!/bin/sh\n# gone\n", Some(&server.busybox()));
        server.prepare(third.clone()).await.unwrap();
        server.runner.forget(third.content.digest).await.unwrap();
        let reclaimed = || server.runner.reclaim();
        let (made, first, second) =
            tokio::join!(server.prepare(other.clone()), reclaimed(), reclaimed());
        made.unwrap();
        first.unwrap();
        second.unwrap();
        assert_eq!(layers(&server), 2, "the base, and what is laid on it now");
    }
}

pub(crate) async fn an_image_without_room_for_what_containers_need_is_refused() {
    let server = Server::new().await;
    let replace = |place: &Path, with: &dyn Fn(&Path)| {
        let _not_there = fs::remove_dir_all(place);
        with(place);
    };
    let file: &dyn Fn(&Path) = &|place| fs::write(place, "").unwrap();
    let circle: &dyn Fn(&Path) =
        &|place| std::os::unix::fs::symlink(place.file_name().unwrap(), place).unwrap();
    let directory: &dyn Fn(&Path) = &|place| fs::create_dir(place).unwrap();
    for (name, with, told) in [
        ("tmp", circle, "a directory at '/tmp'"),
        ("data", file, "a directory at '/data'"),
        ("etc/hosts", directory, "a file of its own at '/etc/hosts'"),
    ] {
        let content = archive(|tree| replace(&tree.join(name), with));
        let refused = server.prepare(server.files(&content, None)).await;
        let refused = refused.unwrap_err();
        assert!(matches!(refused, PrepareError::Unfit { .. }), "{refused}");
        assert!(refused.to_string().contains(told), "{refused}");
    }
    assert_eq!(layers(&server), 0);
}

pub(crate) async fn ids_of_runs_that_were_there_before_are_not_given_again() {
    let mut server = Server::new().await;
    if !server.shifts_owners() {
        return;
    }
    let first = server.launch("echo here; sleep 60").await.key().clone();
    wrote(&server, &first, "here").await;
    server.restart().await;
    // Nobody has looked at the first one yet.
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(server.launch("sleep 60").await);
    }
    let spec = server.spec("true").await;
    let refused = server.runner.launch(spec.clone()).await.err().unwrap();
    assert!(refused.reason.contains("all 4 ranges"), "{refused}");
    if let Adoption::Alive(run) = server.runner.adopt(&first).await.unwrap() {
        runs.push(run);
    }
    for run in runs {
        run.terminate(Duration::ZERO, EndedBy::Stop).await.unwrap();
        run.wait().await.unwrap();
        server.runner.clean(run.key(), false).await.unwrap();
    }
    let run = server.runner.launch(spec).await.unwrap();
    assert_eq!(run.wait().await.unwrap().cause, ExitCause::Code(0));
}
