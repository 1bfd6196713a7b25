//! There is room for so many guests, and what an operator makes smaller keeps instances waiting, and fails none.

use std::time::Duration;

use nix::unistd::geteuid;
use runtara_tests::{Server, Setup, Store, holds_for, on_both_stores};
use serde_json::{Value, json};

use super::{command, component, error_of, text, try_register};

on_both_stores!(
    more_guests_than_there_is_room_for_take_turns,
    a_guest_of_several_parts_takes_their_room,
    an_image_that_is_allowed_no_more_keeps_its_instances_waiting,
    a_directory_of_its_own_is_given_to_whom_asks_for_one,
);

const ROOM: &str = "RUNTARA_WASM_MAX_INSTANCES";
const MEMORY: &str = "RUNTARA_WASM_MAX_MEMORY_BYTES";
/// Longer than an instance waits before it asks again.
const LONG: Duration = Duration::from_secs(120);

fn server_with_room(store: Store, guests: &str) -> Server {
    Setup::new(store).variable(ROOM, guests).start()
}

fn more_guests_than_there_is_room_for_take_turns(store: Store) {
    let mut server = server_with_room(store, "2");
    let spins = command(&server, "spins");
    let first: Vec<_> = (0..2)
        .map(|_| server.launch(&spins, &json!({ "timeout_seconds": 600 })).id)
        .collect();
    for id in &first {
        let _ready = server.instance(id).wait_for_line("ready");
    }
    let image = component(&server, "workflow");
    // The time that it waits for its turn is not its own.
    let start = json!({ "timeout_seconds": 1 });
    let later: Vec<_> = (0..6).map(|_| server.launch(&image, &start).id).collect();
    let given_up = &later[5];
    for id in &later {
        let _claimed = server.instance(id).wait_for("running");
    }
    holds_for(Duration::from_millis(1_500), "none has its turn", || {
        let early = later
            .iter()
            .map(|id| server.instance(id))
            .find(|run| run.status()["status"] != "running" || !run.checkpoints().is_empty());
        early.map_or(Ok(()), |run| Err(run.status()))
    });
    assert_eq!(server.instance(given_up).stop(0)["status"], "cancelled");
    // Who waits for a turn does not keep the server from leaving.
    let status = server.sigterm();
    assert!(status.success(), "{status}");
    server.start_again();
    for id in &first {
        let run = server.instance(id);
        assert_eq!(run.stop(0)["status"], "cancelled", "{}", run.story());
    }
    for id in &later[..5] {
        let run = server.instance(id);
        let output = run.output();
        assert_eq!(output["sum"], 6, "{}", run.story());
        let found = run.status();
        assert_eq!(found["retry_count"], 0, "{found}");
    }
}

fn a_guest_of_several_parts_takes_their_room(store: Store) {
    let server = server_with_room(store, "2");
    let three = runtara_tests::guest::text("has_three_memories");
    let refused = try_register(&server, "three", &three).refuses(400, "IMAGE_NOT_RUNNABLE");
    assert!(
        refused.contains(ROOM) && refused.contains("for 3 guests"),
        "{refused}"
    );
    let server = server_with_room(store, "4");
    let image = text(&server, "has_three_memories");
    let ids: Vec<_> = (0..20)
        .map(|_| server.launch(&image, &json!({})).id)
        .collect();
    for id in &ids {
        let found = server.instance(id).wait_for("completed");
        assert_eq!(
            (&found["run_number"], &found["retry_count"]),
            (&json!(1), &json!(0)),
            "{found}"
        );
    }
}

fn an_image_that_is_allowed_no_more_keeps_its_instances_waiting(store: Store) {
    let mut server = Setup::new(store).variable(MEMORY, "4294967296").start();
    let image = text(&server, "has_a_large_memory");
    let asked = json!({ "limits": { "memory_bytes": 3_221_225_472_u64 } });
    let ran = server.launch(&image, &asked);
    ran.wait_for("completed");
    let mut delayed = asked.clone();
    delayed["start_at_ms"] = json!(runtara_tests::milliseconds() + 3_000);
    let id = server.launch(&image, &delayed).id;
    server.kill_9();
    server.set_variable(MEMORY, "1073741824");
    server.start_again();
    let run = server.instance(&id);
    let found = run.wait_until("why it waits", |found| found["error"].is_string());
    assert_eq!(
        (&found["status"], &found["retry_count"]),
        (&json!("suspended"), &json!(0)),
        "{found}"
    );
    assert!(error_of(&found).contains("at most 1073741824"), "{found}");
    // What its own limit allows is still more than the pool has for the image.
    let less = json!({ "limits": { "memory_bytes": 1_073_741_824_u64 } });
    let less = server.launch(&image, &less);
    let found = less.wait_until("why it waits", |found| found["error"].is_string());
    assert_eq!(found["status"], "suspended", "{found}");
    assert!(
        error_of(&found).contains("more than a guest is given"),
        "{found}"
    );
    server.kill_9();
    server.set_variable(MEMORY, "4294967296");
    server.start_again();
    server.instance(&id).resume();
    let found = server.instance(&id).wait_within(LONG, "completed");
    assert_eq!(found["error"], Value::Null, "{found}");
}

fn a_directory_of_its_own_is_given_to_whom_asks_for_one(store: Store) {
    const MIB: u64 = 1024 * 1024;
    let mut server = Server::start(store);
    let image = command(&server, "writes_files");
    let without = server.launch(&image, &json!({})).output();
    assert_eq!(
        without,
        json!({ "found": -1, "kept": 0, "written": 0, "full": 0, "linked": 0, "left": 0 })
    );
    let asked = json!({ "limits": { "writable_bytes": MIB } });
    if !geteuid().is_root() {
        let refused = server.try_launch(&image, &asked);
        let reason = refused.refuses(400, "INVALID_SETTINGS");
        assert!(reason.contains("CAP_SYS_ADMIN"), "{reason}");
        return;
    }
    let too_much = json!({ "limits": { "writable_bytes": 65 * MIB } });
    let refused = server.try_launch(&image, &too_much);
    let reason = refused.refuses(400, "INVALID_SETTINGS");
    assert!(reason.contains("at most 67108864"), "{reason}");
    // What one has left, no other finds: also not after the server was killed.
    for round in 0..3 {
        let output = server.launch(&image, &asked).output();
        assert_eq!(
            (
                &output["found"],
                &output["kept"],
                &output["full"],
                &output["left"]
            ),
            (&json!(0), &json!(1), &json!(1), &json!(0)),
            "round {round}: {output}"
        );
        let written = output["written"].as_u64().expect("it counts");
        assert!((MIB / 2..MIB).contains(&written), "{output}");
        if round == 1 {
            server.kill_9_and_restart();
        }
    }
    // It is nobody's mount.
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", server.pid()));
    let mounts = mounts.expect("the server runs");
    assert!(!mounts.contains(" runtara "), "{mounts}");
}
