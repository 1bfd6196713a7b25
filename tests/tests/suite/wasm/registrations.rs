//! What is taken as WebAssembly, and what is refused with the reason.

use runtara_tests::{Server, Store, TENANT, guest, on_both_stores};
use serde_json::json;

use super::{command, component, try_register};

on_both_stores!(
    modules_and_components_are_told_by_their_content,
    what_can_never_run_is_refused_with_the_reason,
    an_image_is_run_after_the_server_is_killed,
);

fn modules_and_components_are_told_by_their_content(store: Store) {
    let server = Server::start(store);
    for image in [
        command(&server, "exits_with"),
        component(&server, "workflow"),
        try_register(
            &server,
            "wrapped",
            &guest::componentise(&guest::command("exits_with")),
        )
        .image(),
    ] {
        assert_eq!(server.image(&image)["runner_type"], "wasm");
        server.launch(&image, &json!({})).wait_for("completed");
    }
    let declared = [
        ("tenant_id", TENANT),
        ("name", "x"),
        ("runner_type", "wasm"),
    ];
    let content = guest::command("exits_with");
    let _taken = server.upload(&declared, &content).image();
    let declared = [
        ("tenant_id", TENANT),
        ("name", "x"),
        ("runner_type", "native"),
    ];
    let answer = server.upload(&declared, &content);
    assert_eq!(answer.status, 400, "{answer}");
    assert!(answer.text().contains("WebAssembly module"), "{answer}");
}

fn what_can_never_run_is_refused_with_the_reason(store: Store) {
    let server = Server::start(store);
    let mut cut = guest::command("exits_with");
    cut.truncate(cut.len() / 2);
    let mut odd = guest::component("workflow");
    odd.truncate(odd.len() / 2);
    for (name, content, told) in [
        (
            "module",
            guest::text("imports_the_unknown"),
            &["no_such_host", "reads_minds"][..],
        ),
        (
            "component",
            guest::text("imports_the_unknown_component"),
            &["stranger:minds/reading@1.0.0"][..],
        ),
        ("library", guest::text("has_no_start"), &["_start"][..]),
        (
            "memories",
            guest::text("has_many_memories"),
            &["memories"][..],
        ),
        ("memory", guest::text("has_a_large_memory"), &["memory"][..]),
        ("cut-module", cut, &[][..]),
        ("cut-component", odd, &[][..]),
    ] {
        let answer = try_register(&server, name, &content);
        let error = answer.refuses(400, "IMAGE_NOT_RUNNABLE");
        for word in told {
            assert!(error.contains(word), "{name}: {error}");
        }
        assert!(
            !error.contains(&server.place().display().to_string()) && !error.contains("src/"),
            "{name} tells of the server's insides: {error}"
        );
    }
}

fn an_image_is_run_after_the_server_is_killed(store: Store) {
    let mut server = Server::start(store);
    let image = command(&server, "exits_with");
    server.kill_9_and_restart();
    let run = server.launch(&image, &json!({}));
    assert_eq!(run.output(), json!({ "code": 0 }));
}

#[test]
fn only_memory_can_be_asked_for() {
    let server = Server::start(Store::Sqlite);
    let image = command(&server, "exits_with");
    for more in [
        json!({ "limits": { "pids": 3 } }),
        json!({ "limits": { "memory_bytes": 1_u64 << 40 } }),
        json!({ "network": "host" }),
    ] {
        let answer = server.try_launch(&image, &more);
        let _text = answer.refuses(400, "INVALID_SETTINGS");
    }
    let limits = json!({ "limits": { "memory_bytes": 4 << 20 } });
    server.launch(&image, &limits).wait_for("completed");
}
