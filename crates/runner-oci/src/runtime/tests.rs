use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// A runtime that is a shell script.
fn script(directory: &Path, text: &str) -> Runtime {
    let program = directory.join("runtime");
    fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Runtime::new(program, directory.join("state"))
}

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_program_is_found_on_the_path_and_only_if_it_can_be_executed() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("runx");
    fs::write(&program, "").unwrap();
    let path = Some(OsString::from(format!(
        ":relative:{}",
        directory.path().display()
    )));
    let error = find("runx", path.clone()).unwrap_err().to_string();
    assert!(
        error.contains("'runx' was not found in the directories of PATH"),
        "{error}"
    );
    assert!(error.contains("apt install runc"), "{error}");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(find("runx", path).unwrap(), program);
    assert_eq!(find(program.to_str().unwrap(), None).unwrap(), program);
    assert!(find("./runx", None).is_err());
}

#[test]
fn a_runtime_that_hangs_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = script(directory.path(), "exec sleep 600");
    let error = runtime
        .start("rt-x", Duration::from_millis(100))
        .unwrap_err();
    assert!(
        matches!(error, RuntimeError::TimedOut { verb: "start", .. }),
        "{error}"
    );
}

#[test]
fn a_child_that_keeps_the_pipes_does_not_hold_us_up() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = script(directory.path(), "sleep 3 &");
    let begun = std::time::Instant::now();
    runtime.start("rt-x", SOON).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[test]
fn endless_output_is_read_and_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = script(directory.path(), "head -c 3000000 /dev/zero; echo '{}' >&2");
    let answer = runtime.ask("state", &["state"], SOON).unwrap();
    assert_eq!(answer.stdout.len(), 64 * 1024);
    assert_eq!(answer.stderr, b"{}\n");
}

#[test]
fn a_failure_is_told_in_the_words_of_the_runtime() {
    let directory = tempfile::tempdir().unwrap();
    let said = r#"echo '{"level":"error","msg":"no such device"}' >&2; exit 1"#;
    let error = script(directory.path(), said)
        .start("rt-x", SOON)
        .unwrap_err();
    let program = directory.path().join("runtime");
    let wanted = format!("'{} start' failed: no such device", program.display());
    assert_eq!(error.to_string(), wanted);
    let error = script(directory.path(), "exit 3")
        .start("rt-x", SOON)
        .unwrap_err();
    assert!(
        error.to_string().ends_with("failed: exit status: 3"),
        "{error}"
    );
}

#[test]
fn a_container_that_is_gone_is_no_failure() {
    let directory = tempfile::tempdir().unwrap();
    let said = r#"echo '{"level":"error","msg":"container does not exist"}' >&2; exit 1"#;
    let runtime = script(directory.path(), said);
    assert_eq!(runtime.state("rt-x", SOON).unwrap(), None);
    assert!(!runtime.kill("rt-x", 15, SOON).unwrap());
    runtime.delete("rt-x", SOON).unwrap();
}

#[test]
fn a_state_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let said =
        r#"echo '{"ociVersion":"1.0.2","id":"rt-x","status":"running","pid":42,"bundle":"/b"}'"#;
    let runtime = script(directory.path(), said);
    let state = runtime.state("rt-x", SOON).unwrap().unwrap();
    assert_eq!((state.status, state.pid), (ContainerStatus::Running, 42));
    let runtime = script(directory.path(), "echo nonsense");
    let error = runtime.state("rt-x", SOON).unwrap_err();
    assert!(matches!(error, RuntimeError::Unreadable { .. }), "{error}");
}

#[test]
fn a_runtime_is_given_nothing_of_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let leaked = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let said = "env | cut -d= -f1 | sort | tr '\\n' ' '; pwd; ls /proc/self/fd | tr '\\n' ' '";
    let runtime = script(directory.path(), said);
    let answer = runtime.ask("state", &["state"], SOON).unwrap();
    let text = String::from_utf8(answer.stdout).unwrap();
    // `ls` has the directory open that it reads, and a shell sets PWD itself.
    assert_eq!(text, "PATH PWD /\n0 1 2 3 ");
}

#[test]
fn a_probe_that_fails_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = script(directory.path(), "echo hello");
    let error = probe(runtime.program()).unwrap_err().to_string();
    assert!(error.contains("begins with 'hello"), "{error}");
    let error = probe(Path::new("/nonexistent/runc")).unwrap_err();
    assert!(matches!(error, RuntimeError::NotExecuted { .. }), "{error}");
}

#[test]
fn signals_that_are_blocked_here_reach_a_runtime() {
    use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
    let directory = tempfile::tempdir().unwrap();
    let runtime = script(directory.path(), "grep SigBlk /proc/self/status");
    // As they are in a shim, which reads them from a descriptor.
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None).unwrap();
    let answer = runtime.ask("state", &["state"], SOON).unwrap();
    assert_eq!(answer.stdout, b"SigBlk:\t0000000000000000\n");
}

/// A runtime that has `$bundle`.
fn of_bundle(directory: &Path, text: &str) -> Runtime {
    let find = "while [ \"$1\" != --bundle ]; do shift; done; bundle=$2";
    script(directory, &format!("{find}\n{text}"))
}

fn begin(runtime: &Runtime, bundle: &Path) -> Making {
    let null = || {
        let mut options = fs::File::options();
        let file = options.read(true).write(true).open("/dev/null");
        file.unwrap().into()
    };
    let streams = Streams {
        stdin: null(),
        stdout: null(),
        stderr: null(),
    };
    let new = NewContainer {
        id: "rt-x",
        bundle,
        pid_file: &bundle.join("pid"),
        log_file: &bundle.join("log"),
    };
    runtime.begin_detached(&new, streams).unwrap()
}

/// One that does not fit into a pipe.
fn large_configuration() -> oci_spec::runtime::Spec {
    let mut spec = oci_spec::runtime::Spec::default();
    spec.set_hostname(Some("x".repeat(300_000)));
    spec
}

#[test]
fn a_configuration_may_come_when_the_runtime_has_begun() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = ConfigurationPipe::put(directory.path()).unwrap();
    let runtime = of_bundle(
        directory.path(),
        "cat \"$bundle/config.json\" > \"$bundle/got\"",
    );
    let making = begin(&runtime, directory.path());
    let spec = large_configuration();
    let handover = pipe.hand_over(&spec).unwrap();
    making.finish(Some(handover), SOON, None).unwrap();
    let got = fs::read(directory.path().join("got")).unwrap();
    assert!(got == serde_json::to_vec(&spec).unwrap());
}

#[test]
fn a_runtime_that_reads_no_configuration_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = ConfigurationPipe::put(directory.path()).unwrap();
    let runtime = of_bundle(directory.path(), "exit 3");
    let handover = pipe.hand_over(&large_configuration()).unwrap();
    let making = begin(&runtime, directory.path());
    let error = making.finish(Some(handover), SOON, None).unwrap_err();
    assert!(matches!(error, RuntimeError::Failed { .. }), "{error}");
}

#[test]
fn a_configuration_that_never_comes_is_at_its_end_when_its_giver_is() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = ConfigurationPipe::put(directory.path()).unwrap();
    let text = "exec 3< \"$bundle/config.json\"\n: > \"$bundle/opened\"\ncat <&3 > \"$bundle/got\"";
    let runtime = of_bundle(directory.path(), text);
    let making = begin(&runtime, directory.path());
    let late = std::time::Instant::now() + SOON;
    while !directory.path().join("opened").exists() {
        assert!(std::time::Instant::now() < late);
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(pipe);
    making.finish(None, SOON, None).unwrap();
    assert_eq!(fs::read(directory.path().join("got")).unwrap(), b"");
}

#[test]
fn a_runtime_that_is_given_up_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let text =
        "echo $$ > \"$bundle/pid.new\"; mv \"$bundle/pid.new\" \"$bundle/pid\"; exec sleep 600";
    let runtime = of_bundle(directory.path(), text);
    let making = begin(&runtime, directory.path());
    let late = std::time::Instant::now() + SOON;
    let pid = loop {
        if let Ok(pid) = fs::read_to_string(directory.path().join("pid")) {
            break pid;
        }
        assert!(std::time::Instant::now() < late);
        std::thread::sleep(Duration::from_millis(2));
    };
    drop(making);
    assert!(!Path::new("/proc").join(pid.trim()).exists());
}
