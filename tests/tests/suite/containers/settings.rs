//! What images and starts ask for, and what their containers may take.

use runtara_tests::image::{archive, base_layer};
use runtara_tests::{Server, Setup, Store, TENANT, eventually, on_both_stores};
use serde_json::{Value, json};

use super::images::shell;

const MIB: u64 = 1024 * 1024;
/// How long what waits may take until it is tried again.
const LONG: std::time::Duration = std::time::Duration::from_secs(120);

on_both_stores!(
    limits_of_a_start_win_over_those_of_its_image,
    a_container_that_takes_more_memory_than_it_may_is_ended,
    what_is_not_allowed_any_more_waits_until_it_is,
);

fn limits_of_a_start_win_over_those_of_its_image(store: Store) {
    let server = Server::start(store.in_containers());
    let script = "ulimit -n; (i=0; while [ $i -lt 30 ]; do sleep 5 & i=$((i+1)); done) 2>/dev/null || echo bounded";
    let content = archive(&[base_layer()], &shell(script));
    let limits = r#"{"open_files":64,"pids":10,"writable_bytes":8388608}"#;
    let texts = [
        ("tenant_id", TENANT),
        ("name", "limited"),
        ("limits", limits),
    ];
    let image = server.upload(&texts, &content).image();
    assert_eq!(server.image(&image)["limits"]["pids"], 10);
    let printed = |limits: &Value| server.launch(&image, &json!({ "limits": limits })).stdout();
    assert_eq!(printed(&json!({})), "64\nbounded\n");
    assert_eq!(printed(&json!({ "open_files": 128 })), "128\nbounded\n");
    assert_eq!(printed(&json!({ "pids": 100 })), "64\n");
}

fn a_container_that_takes_more_memory_than_it_may_is_ended(store: Store) {
    let server = Server::start(store.in_containers());
    let image = server.program("allocates_until_killed");
    let limits = json!({ "limits": { "memory_bytes": 32 * MIB }, "max_attempts": 1 });
    let run = server.launch(&image, &limits);
    let found = run.wait_for("failed");
    assert_eq!(found["termination_reason"], "crashed", "{found}");
    let error = found["error"].as_str().unwrap_or_default();
    assert!(
        error.contains("out of memory: memory limit of 32 MiB exceeded; peak "),
        "{found}"
    );
    let peak = found["memory_peak_bytes"].as_u64().unwrap_or_default();
    assert!((16 * MIB..=32 * MIB).contains(&peak), "{found}");
    server.wait_until_nothing_remains();
}

fn what_is_not_allowed_any_more_waits_until_it_is(store: Store) {
    const PIDS: &str = "RUNTARA_CONTAINER_MAX_PIDS";
    const NETWORKS: &str = "RUNTARA_ALLOWED_NETWORK_MODES";
    let mut server = Setup::new(store.in_containers())
        .variable("RUNTARA_SLEEP_HOLD_MS", "100")
        .variable(PIDS, "64")
        .variable(NETWORKS, "isolated,host")
        .start();
    let image = server.scripted();
    let actions = json!([
        { "checkpoint": { "id": "a", "value": 1 } },
        { "wait_signal": { "id": "go" } },
        { "checkpoint": { "id": "b", "value": 2 } },
    ]);
    let asked = [
        ("many", json!({ "limits": { "pids": 64 } })),
        ("resumed", json!({ "limits": { "pids": 64 } })),
        ("connected", json!({ "network": "host" })),
        ("given-up", json!({ "limits": { "pids": 64 } })),
        ("modest", json!({ "limits": { "pids": 32 } })),
    ];
    for (id, settings) in &asked {
        let mut start = settings.clone();
        start["instance_id"] = json!(id);
        start["input"] = json!({ "actions": actions });
        let _waits = server.launch(&image, &start);
    }
    for (id, _) in &asked {
        server.instance(id).wait_for_reason("waiting_signal");
    }
    server.kill_9();
    server.set_variable(PIDS, "32");
    server.set_variable(NETWORKS, "isolated");
    server.start_again();
    let [many, resumed, connected, given_up, modest] =
        ["many", "resumed", "connected", "given-up", "modest"];
    for (id, _) in &asked {
        server.instance(id).custom_signal("go", "1");
    }
    let waits = |id: &str, told: &str| {
        let run = server.instance(id);
        let found = run.wait_until("what it waits for", |found| found["error"].is_string());
        assert_eq!(
            (&found["status"], &found["status_reason"]),
            (&json!("suspended"), &json!("interrupted")),
            "{found}"
        );
        let error = found["error"].as_str().unwrap_or_default();
        assert!(
            error.contains(told) && error.contains("it waits until the operator allows it again"),
            "{found}"
        );
        assert!(found["due_at_ms"].is_i64(), "{found}");
        assert_eq!(found["retry_count"], 0, "nothing is counted: {found}");
        let events = run.events();
        let event = events
            .iter()
            .find(|event| event["subtype"] == "runtara.interrupted");
        assert!(event.is_some(), "{events:?}");
    };
    let pids = "number of processes of 64, as the start asks, is more than the operator allows; ask for at most 32";
    waits(many, pids);
    waits(resumed, pids);
    waits(given_up, pids);
    waits(
        connected,
        "the network mode 'host' is not allowed here; the operator allows 'isolated'",
    );
    assert_eq!(
        server.instance(modest).output()["run"],
        2,
        "what is allowed goes on"
    );
    server
        .try_launch(&image, &json!({ "limits": { "pids": 64 } }))
        .refuses(400, "INVALID_SETTINGS");
    assert_eq!(server.instance(given_up).stop(0)["status"], "cancelled");
    let found = server.instance(given_up).status();
    assert_eq!(
        (&found["status"], &found["error"]),
        (&json!("cancelled"), &Value::Null),
        "{found}"
    );
    server.kill_9();
    server.set_variable(PIDS, "64");
    server.set_variable(NETWORKS, "isolated,host");
    server.start_again();
    server.instance(resumed).resume();
    for id in [resumed, many, connected] {
        let run = server.instance(id);
        let found = run.wait_within(LONG, "completed");
        assert_eq!(found["error"], Value::Null, "{found}");
        assert_eq!(run.checkpoints(), ["a", "b"], "{}", run.story());
        let names = run.event_names();
        assert!(
            !names.contains(&"failed".to_owned())
                && !names.contains(&"custom/runtara.crashed".to_owned()),
            "{names:?}"
        );
    }
    server.wait_until_nothing_remains();
}

#[test]
fn processes_and_files_are_bounded() {
    let server = Server::start(Store::Sqlite.in_containers());
    let bomb =
        server.shell("bomb() { bomb | bomb & }; (bomb) 2>/dev/null; echo begun; exec sleep 60");
    let run = server.launch(&bomb, &json!({ "limits": { "pids": 16 } }));
    let _begun = run.wait_for_line("begun");
    for _ in 0..20 {
        let count = run.processes().len();
        assert!(count <= 16, "{count} processes");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let neighbour = server.launch(&server.shell("echo 1"), &json!({}));
    assert_eq!(neighbour.output(), 1, "others are not held up");
    assert_eq!(run.stop(0)["status"], "cancelled");
    let script = "dd if=/dev/zero of=/large bs=64k count=200 2>/dev/null || echo full; rm -f /large; \
                  dd if=/dev/zero of=/tmp/large bs=64k count=200 2>/dev/null || echo full; echo end";
    let run = server.launch(
        &server.shell(script),
        &json!({ "limits": { "writable_bytes": 4 * MIB } }),
    );
    assert_eq!(run.stdout(), "full\nfull\nend\n");
    server.wait_until_nothing_remains();
}

#[test]
fn limits_that_a_failed_program_has_met_are_told() {
    let server = Server::start(Store::Sqlite.in_containers());
    let limits = json!({ "pids": 10, "writable_bytes": 4 * MIB, "memory_bytes": 64 * MIB });
    for (script, told) in [
        ("exit 4", ""),
        (
            "(for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done) 2>/dev/null; exit 4",
            "; limits met: pids",
        ),
        (
            "dd if=/dev/zero of=/data/large bs=64k count=200 2>/dev/null; exit 4",
            "; limits met: disk",
        ),
    ] {
        let run = server.launch(&server.shell(script), &json!({ "limits": limits }));
        let found = run.wait_for("failed");
        let error = found["error"].as_str().unwrap_or_default();
        let wanted = format!("process ended with exit code 4{told}");
        assert_eq!(error.trim_end(), wanted, "{script}");
    }
}

#[test]
fn a_root_may_be_read_only_and_the_run_directory_is_not() {
    let server = Server::start(Store::Sqlite.in_containers());
    let script = "touch /x /etc/x /bin/x 2>/dev/null; ls -d /x /etc/x /bin/x 2>/dev/null | wc -l; touch /tmp/x /data/x && echo '\"kept\"' > /data/output.json; cat";
    let image = server.shell(script);
    let run = server.launch(&image, &json!({ "read_only": true, "input": 5 }));
    assert_eq!(run.stdout(), "0\n5");
    assert_eq!(run.output(), "kept");
    assert_eq!(server.launch(&image, &json!({})).stdout(), "3\n{}");
}

#[test]
fn what_the_operator_does_not_allow_is_refused_before_it_is_kept() {
    let server = Setup::new(Store::Sqlite.in_containers())
        .variable("RUNTARA_CONTAINER_MAX_PIDS", "32")
        .variable(
            "RUNTARA_CONTAINER_MAX_MEMORY_BYTES",
            &(64 * MIB).to_string(),
        )
        .start();
    let image = server.shell("cat /proc/self/cgroup > /dev/null; ulimit -n");
    for limits in [json!({ "pids": 33 }), json!({ "memory_bytes": 65 * MIB })] {
        let text = server
            .try_launch(
                &image,
                &json!({ "instance_id": "order-1", "limits": limits }),
            )
            .refuses(400, "INVALID_SETTINGS");
        assert!(text.contains("the operator allows"), "{text}");
        let texts = limits.to_string();
        let texts = [
            ("tenant_id", TENANT),
            ("name", "greedy"),
            ("limits", texts.as_str()),
        ];
        let content = archive(&[base_layer()], &shell("true"));
        server
            .upload(&texts, &content)
            .refuses(400, "INVALID_SETTINGS");
    }
    assert_eq!(server.instance("order-1").status()["found"], false);
    let run = server.launch(&image, &json!({ "limits": { "pids": 32 } }));
    run.wait_for("completed");
    let native = [
        ("tenant_id", TENANT),
        ("name", "native"),
        ("runner_type", "native"),
        ("read_only", "true"),
    ];
    server
        .upload(&native, b"#!/bin/sh\n")
        .refuses(400, "INVALID_SETTINGS");
    eventually("that the refused left no image", || {
        let list = server
            .ask(&runtara_tests::http::Request::get(
                "/api/v1/images?name=greedy",
            ))
            .expect(200);
        if list["total_count"] == 0 {
            Ok(())
        } else {
            Err(list)
        }
    });
}
