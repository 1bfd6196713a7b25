//! However a container ends, nothing of it stays on the machine, and its instance comes to its right end.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use runtara_tests::image::{archive, base_layer, compile};
use runtara_tests::{Server, Setup, Store, TENANT, eventually, on_both_stores, processes};
use serde_json::json;

on_both_stores!(
    who_hears_nothing_is_not_waited_for,
    no_end_leaves_anything,
    a_sleeper_has_no_container,
    a_stop_asks_and_waits_and_then_ends_all_of_it,
    a_program_that_is_killed_goes_on_from_its_checkpoints,
    a_container_that_is_made_slowly_takes_no_time_of_its_program,
);

fn no_end_leaves_anything(store: Store) {
    let server = Server::start(store.in_containers());
    let sleeper = server.program("sleeps_forever");
    let silent = server.shell("(while :; do sleep 1; done) & exit $RUNTARA_CODE");
    let with_code =
        |code: &str| server.launch(&silent, &json!({ "env": { "RUNTARA_CODE": code } }));
    let over_time = server.launch(&sleeper, &json!({ "timeout_seconds": 1 }));
    let leaves = server.shell("trap 'exit 1' TERM; echo ready; while :; do sleep 0.05; done");
    let cancelled = server.launch(&leaves, &json!({}));
    let killed = server.launch(&sleeper, &json!({ "max_attempts": 1 }));
    let (done, failed) = (with_code("0"), with_code("3"));
    let absent = archive(
        &[base_layer()],
        &json!({ "Entrypoint": ["/no/such/program"] }),
    );
    let absent = server.launch(
        &server.register_archive(&absent),
        &json!({ "max_attempts": 1 }),
    );
    processes::send(killed.wait_for_process().pid, Signal::SIGKILL);
    let _ready = cancelled.wait_for_line("ready");
    assert_eq!(cancelled.signal("cancel").expect(200)["success"], true);
    for (run, status, reason) in [
        (&done, "completed", "completed"),
        (&failed, "failed", "application_error"),
        (&over_time, "failed", "timeout"),
        (&cancelled, "cancelled", "cancelled"),
        (&killed, "failed", "crashed"),
    ] {
        let found = run.wait_for(status);
        assert_eq!(found["termination_reason"], reason, "{found}");
        assert_eq!(found["run_number"], 1, "{found}");
    }
    let found = absent.wait_for("failed");
    let error = found["error"].as_str().unwrap_or_default();
    assert!(error.contains("/no/such/program"), "{found}");
    assert!(
        !error.contains("/run/runtara") && !error.contains("/bin/runc"),
        "a path of the host: {error}"
    );
    assert_eq!(
        found["run_number"], 1,
        "no further run would find it: {found}"
    );
    server.wait_until_nothing_remains();
}

fn a_container_that_is_made_slowly_takes_no_time_of_its_program(store: Store) {
    const MADE_MS: u64 = 6_000;
    let place = tempfile::tempdir().expect("a directory can be made");
    let runtime = place.path().join("slow-runtime");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *' run '*) sleep {};; esac\nexec runc \"$@\"\n",
        MADE_MS / 1_000
    );
    fs::write(&runtime, script).expect("it can be written");
    fs::set_permissions(&runtime, Permissions::from_mode(0o755)).expect("it is ours");
    let mut server = Setup::new(store.in_containers())
        .variable("RUNTARA_OCI_RUNTIME", &runtime.display().to_string())
        .start();
    let image = server.shell("echo ready; sleep 1; echo end");
    let id = server.launch(&image, &json!({ "timeout_seconds": 5 })).id;
    let sleeper = server.program("sleeps_forever");
    let late = server.launch(&sleeper, &json!({ "timeout_seconds": 1 })).id;
    let _ready = server.instance(&id).wait_for_line("ready");
    // The deadline is that of the program whoever minds it.
    server.kill_9_and_restart();
    let run = server.instance(&id);
    assert_eq!(run.stdout(), "ready\nend\n");
    let found = run.status();
    assert_eq!(found["run_number"], 1, "{found}");
    let ran = found["time_in_states_ms"]["running"].as_u64();
    assert!(
        ran.is_some_and(|ran| ran >= MADE_MS),
        "making it ready is part of a run: {found}"
    );
    let found = server.instance(&late).wait_for("failed");
    assert_eq!(found["termination_reason"], "timeout", "{found}");
}

fn a_sleeper_has_no_container(store: Store) {
    let server = Setup::new(store.in_containers())
        .variable("RUNTARA_SLEEP_HOLD_MS", "100")
        .start();
    let actions = json!([{ "checkpoint": "a" }, { "sleep": { "id": "nap", "ms": 3_000 } }, { "checkpoint": "b" }]);
    let run = server.follow(&server.scripted(), &actions);
    run.wait_for_reason("sleeping");
    server.wait_until_nothing_remains();
    assert_eq!(
        run.status()["status_reason"],
        "sleeping",
        "all of that before it wakes"
    );
    assert_eq!(run.output()["run"], 2);
    assert_eq!(run.checkpoints(), ["a", "nap", "b"]);
}

fn a_stop_asks_and_waits_and_then_ends_all_of_it(store: Store) {
    let server = Server::start(store.in_containers());
    let polite = "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let run = server.launch(&server.shell(polite), &json!({}));
    let _ready = run.wait_for_line("ready");
    let before = Instant::now();
    assert_eq!(run.stop(20)["process_gone"], true);
    assert!(
        before.elapsed() < Duration::from_secs(10),
        "{:?}",
        before.elapsed()
    );
    assert_eq!(run.logs("stream=stdout").text(), "ready\nasked\n");
    let deaf = "trap '' TERM; (trap '' TERM; while :; do sleep 0.1; done) & echo ready; while :; do sleep 0.05; done";
    let run = server.launch(&server.shell(deaf), &json!({}));
    let _ready = run.wait_for_line("ready");
    assert!(run.processes().len() >= 2);
    let before = Instant::now();
    assert_eq!(run.stop(1)["status"], "cancelled");
    let took = before.elapsed();
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(10),
        "{took:?}"
    );
    assert!(run.processes().is_empty());
    server.wait_until_nothing_remains();
}

fn who_hears_nothing_is_not_waited_for(store: Store) {
    // The first process of a namespace is spared every signal that it does not handle (kill(2)): it would never leave.
    let server = Server::start(store.in_containers());
    let image = server.program("sleeps_forever");
    let [stopped, cancelled] = ["stopped", "cancelled"].map(|id| {
        let run = server.launch(&image, &json!({ "instance_id": id }));
        let _running = run.wait_for_process();
        run
    });
    let before = Instant::now();
    assert_eq!(stopped.stop(20)["success"], true);
    assert_eq!(cancelled.signal("cancel").expect(200)["success"], true);
    for run in [&stopped, &cancelled] {
        run.wait_for("cancelled");
        run.wait_until_no_process();
    }
    let took = before.elapsed();
    assert!(took < Duration::from_secs(8), "it took {took:?}");
}

/// As small programs that are process 1 do, such as tini: nothing is handled, and what comes is taken.
const TAKES_SIGNALS: &str = r#"
#include <signal.h>
#include <unistd.h>
int main(void) {
    sigset_t all;
    int taken = 0;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, 0);
    if (write(1, "ready\n", 6) != 6) return 1;
    while (taken != SIGTERM) sigwait(&all, &taken);
    return write(1, "asked\n", 6) == 6 ? 0 : 1;
}
"#;

#[test]
fn who_takes_signals_without_a_handler_is_asked() {
    let server = Server::start(Store::Sqlite.in_containers());
    let texts = [("tenant_id", TENANT), ("name", "takes-signals")];
    let image = server.upload(&texts, &compile(TAKES_SIGNALS)).image();
    let run = server.launch(&image, &json!({}));
    let _ready = run.wait_for_line("ready");
    assert_eq!(run.stop(20)["success"], true);
    assert_eq!(run.logs("stream=stdout").text(), "ready\nasked\n");
}

fn a_program_that_is_killed_goes_on_from_its_checkpoints(store: Store) {
    let server = Server::start(store.in_containers());
    let actions = json!([
        { "checkpoint": { "id": "a", "value": 1 } },
        { "on_run": 1, "do": { "hang": true } },
        { "checkpoint": { "id": "b", "value": 2 } },
    ]);
    let run = server.follow(&server.scripted(), &actions);
    eventually("its checkpoint", || {
        let saved = run.checkpoints();
        if saved == ["a"] { Ok(()) } else { Err(saved) }
    });
    processes::send(run.wait_for_process().pid, Signal::SIGKILL);
    let crashed = run.wait_for_reason("crashed");
    assert_eq!(crashed["retry_count"], 1, "{crashed}");
    let output = run.output();
    assert_eq!(
        (&output["sum"], &output["run"]),
        (&json!(3), &json!(2)),
        "{output}"
    );
    server.wait_until_nothing_remains();
}
