//! A server that comes again finds its runs under other circumstances than it left them.

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use runtara_tests::{Server, Setup, Store, eventually, free_ports, on_both_stores, processes};
use serde_json::json;

use super::parent_of;

on_both_stores!(a_run_that_knows_an_old_address_is_launched_anew);

fn a_run_that_knows_an_old_address_is_launched_anew(store: Store) {
    let mut server = Server::start(store);
    let go = server.shared().path("go");
    let script = format!("while [ ! -e {go} ]; do sleep 0.05; done; echo $RUNTARA_RUN_NUMBER");
    let image = server.shell(&script);
    let old = server.launch(&image, &json!({})).id;
    let first = server.instance(&old).wait_for_process();
    server.kill_9();
    let [port] = free_ports();
    let elsewhere = format!("127.0.0.1:{port}");
    server.set_variable("RUNTARA_CORE_ADDR", &elsewhere);
    server.start_again();
    let run = server.instance(&old);
    run.wait_until("its second run", |found| found["run_number"] == 2);
    assert!(!processes::lives(first.pid));
    let second = run.wait_for_process();
    assert_eq!(second.variable("RUNTARA_SERVER_ADDR"), Some(elsewhere));
    let new = server.launch(&image, &json!({})).id;
    let third = server.instance(&new).wait_for_process();
    // Those that know the address stay, whatever the servers before were told.
    server.kill_9_and_restart();
    server.shared().touch("go");
    assert_eq!(server.instance(&old).output(), 2);
    assert_eq!(server.instance(&new).output(), 1);
    assert!(!processes::lives(second.pid) && !processes::lives(third.pid));
    assert_eq!(server.instance(&old).status()["retry_count"], 0);
}

#[test]
fn a_server_that_launches_nothing_keeps_what_runs() {
    if !geteuid().is_root() {
        return;
    }
    let mut server = Server::start(Store::Sqlite);
    let go = server.shared().path("go");
    let script = format!("while [ ! -e {go} ]; do sleep 0.05; done; echo $RUNTARA_RUN_NUMBER");
    let image = server.shell(&script);
    let ends = server.launch(&image, &json!({})).id;
    let ended = server.instance(&ends).wait_for_process();
    let stays = server
        .launch(&server.program("sleeps_forever"), &json!({}))
        .id;
    let kept = server.instance(&stays).wait_for_process();
    server.kill_9();
    server.unset_variable("RUNTARA_NATIVE_USER");
    server.start_again();
    assert_eq!(server.instance(&ends).wait_for_process().pid, ended.pid);
    let refused = server.try_launch(&image, &json!({}));
    assert!(refused.text().contains("native"), "{refused}");
    server.shared().touch("go");
    assert_eq!(server.instance(&ends).output(), 1, "its end is recorded");
    assert_eq!(server.instance(&stays).status()["run_number"], 1);
    assert!(processes::lives(kept.pid));
    assert_eq!(server.instance(&stays).stop(0)["status"], "cancelled");
    assert!(!processes::lives(kept.pid), "and it can be stopped");
}

#[test]
fn what_hides_does_not_outlive_server_and_shim() {
    let mut server = Server::start(Store::Sqlite);
    if server.log().contains("have no cgroup of their own") {
        // Without one, a process that leaves its session and its environment cannot be told from others.
        return;
    }
    let (first, second) = (
        server.shared().path("first"),
        server.shared().path("second"),
    );
    let script = format!(
        "[ \"$RUNTARA_RUN_NUMBER\" = 2 ] && {{ echo here > {second}; exit 0; }}; \
         setsid env -i /bin/sh -c '/bin/sh -c \"echo \\$\\$ > {first}; exec /bin/sleep 1000\" & exec /bin/true' & sleep 1000"
    );
    let id = server.launch(&server.shell(&script), &json!({})).id;
    let daemon = server.shared().wait_for("first");
    let daemon = daemon.trim().parse().expect("it is a number");
    let program = server.instance(&id).wait_for_process();
    let shim = parent_of(program.pid);
    server.kill_9();
    processes::send(shim, Signal::SIGKILL);
    assert!(processes::lives(daemon));
    server.start_again();
    let _second = server.shared().wait_for("second");
    assert!(!processes::lives(daemon), "it lives beside the second run");
    server.instance(&id).wait_for("completed");
}

#[test]
fn what_a_program_makes_of_the_end_of_dev_counts_for_nothing() {
    let mut server = Setup::dev().without("RUNTARA_NATIVE_USER").start();
    let asked = server.shared().path("asked");
    let script = format!(
        "[ \"$RUNTARA_RUN_NUMBER\" = 2 ] && exec echo '\"whole\"'; \
         trap 'echo yes > {asked}; echo \\\"half\\\"; exit 0' TERM; echo ready >&2; while :; do sleep 0.05; done"
    );
    let id = server.launch(&server.shell(&script), &json!({})).id;
    eventually("the trap", || {
        if server.instance(&id).logs("stream=stderr").text() == "ready\n" {
            Ok(())
        } else {
            Err(())
        }
    });
    server.signal(Signal::SIGINT);
    let status = server.wait_for_its_end();
    assert!(status.success(), "{status}");
    server.start_again();
    let run = server.instance(&id);
    assert_eq!(run.output(), "whole", "{}", run.story());
    assert_eq!(run.status()["retry_count"], 0);
    assert!(
        server.shared().text("asked").is_none(),
        "a program that is asked could report a failure that is not its own"
    );
}

#[test]
fn a_server_that_is_process_1_leaves_no_zombies() {
    if !geteuid().is_root() {
        return;
    }
    let server = Setup::new(Store::Sqlite).as_process_1().start();
    let (first, _) = processes::children_of(server.pid())[0];
    let script = "[ \"$RUNTARA_RUN_NUMBER\" = 4 ] && exec echo 4; sleep 1000 & setsid sleep 1000 & sleep 1000";
    let run = server.launch(&server.shell(script), &json!({}));
    for number in 1..4 {
        run.wait_until("its run", |found| found["run_number"] == number);
        let program = run.wait_for_process();
        processes::send(parent_of(program.pid), Signal::SIGKILL);
        run.wait_until("the next run", |found| found["run_number"] == number + 1);
    }
    assert_eq!(run.output(), 4);
    eventually("that the dead are buried", || {
        let children = processes::children_of(first);
        if children.iter().all(|(_, state)| *state != 'Z') {
            Ok(())
        } else {
            Err(children)
        }
    });
    assert!(
        !processes::children_of(first).is_empty(),
        "the launcher is a child that lives"
    );
}
