//! Content: where it lies, what is kept of it and what is not.

use std::fs;
use std::path::{Path, PathBuf};

use runtara_tests::http::{Connection, Request};
use runtara_tests::{Server, Setup, Store, TENANT, base64, eventually, on_both_stores};
use serde_json::json;

use super::{SCRIPT, as_json, images, register_json, upload, usual};

on_both_stores!(
    a_new_version_leaves_instances_of_the_old_one_alone,
    an_image_in_use_is_not_deleted,
    equal_content_is_stored_once,
    an_upload_that_breaks_leaves_nothing,
    an_upload_that_the_server_does_not_survive_leaves_nothing,
    a_registered_image_is_whole_after_a_crash,
);

/// Files that hold content of images, finished or not: everything of some size below the store of content.
pub(super) fn content_files(server: &Server) -> Vec<(PathBuf, u64)> {
    fn walk(directory: &Path, found: &mut Vec<(PathBuf, u64)>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(facts) = entry.metadata() else {
                continue;
            };
            if facts.is_dir() {
                walk(&entry.path(), found);
            } else if facts.len() > 0 {
                found.push((entry.path(), facts.len()));
            }
        }
    }
    let mut found = Vec::new();
    walk(&server.data_dir().join("blobs"), &mut found);
    found
}

fn a_new_version_leaves_instances_of_the_old_one_alone(store: Store) {
    let server = Server::start(store);
    let old = server.register(
        "program",
        b"#!/bin/sh\n[ -e \"$1\" ] || { echo waiting >&2; kill -9 $$; }\necho '\"old\"'\n",
    );
    let go = server.shared().path("go");
    let run = server.launch(&old, &json!({ "args": [go], "max_attempts": 100 }));
    run.wait_for_reason("crashed");
    let new = server.register("program", b"#!/bin/sh\necho '\"new\"'\n");
    assert_ne!(new, old);
    let list = images(&server, "");
    assert_eq!(
        list["total_count"], 1,
        "the old one leaves the list: {list}"
    );
    assert_eq!(list["images"][0]["image_id"], json!(new.0));
    let kept = server
        .ask(&Request::get(&format!("/api/v1/images/{}", old.0)))
        .expect(200);
    assert_eq!(kept["found"], true, "it stays readable: {kept}");
    server.shared().touch("go");
    assert_eq!(run.output(), "old", "and runnable");
    assert_eq!(server.launch(&new, &json!({})).output(), "new");
}

fn an_image_in_use_is_not_deleted(store: Store) {
    let server = Server::start(store);
    let image = server.program("sleeps_forever");
    let run = server.launch(&image, &json!({}));
    let _running = run.wait_for_process();
    let delete = |tenant: &str| {
        server.ask(&Request::delete(&format!(
            "/api/v1/images/{}?tenant_id={tenant}",
            image.0
        )))
    };
    delete("stranger").refuses(404, "IMAGE_NOT_FOUND");
    let refused = delete(TENANT).expect(200);
    assert_eq!(
        (&refused["success"], &refused["code"]),
        (&json!(false), &json!("IMAGE_IN_USE")),
        "{refused}"
    );
    assert!(
        !refused["error"]
            .as_str()
            .unwrap_or_default()
            .contains("not found"),
        "{refused}"
    );
    assert_eq!(run.stop(0)["status"], "cancelled");
    assert_eq!(delete(TENANT).expect(200)["success"], true);
    delete(TENANT).refuses(404, "IMAGE_NOT_FOUND");
    let start = server.try_launch(&image, &json!({}));
    assert_eq!(
        start.json()["error"],
        format!("Image '{}' not found", image.0),
        "{start}"
    );
    assert_eq!(images(&server, "")["total_count"], 0);
    // What was cancelled may still be resumed: its content stays for that.
    run.resume();
    let _running = run.wait_for_process();
}

fn equal_content_is_stored_once(store: Store) {
    let server = Server::start(store);
    let content = [SCRIPT, &vec![b'#'; 100_000][..]].concat();
    for name in ["a", "b"] {
        assert_eq!(
            upload(&server, &usual(&[("name", name)]), &content).status,
            201
        );
    }
    let large: Vec<_> = content_files(&server)
        .into_iter()
        .filter(|(_, size)| *size >= 100_000)
        .collect();
    assert_eq!(large.len(), 1, "{large:?}");
}

fn an_upload_that_breaks_leaves_nothing(store: Store) {
    let server = Server::start(store);
    let whole = Request::form(
        "/api/v1/images/upload",
        &usual(&[]),
        &[("binary", &vec![b'#'; 4_000_000])],
    )
    .bytes();
    let mut connection = Connection::open(&server.environment()).expect("the port is served");
    connection
        .send(&whole[..whole.len() / 2])
        .expect("the server reads");
    eventually("the upload to arrive", || {
        let files = content_files(&server);
        if files.iter().any(|(_, size)| *size > 100_000) {
            Ok(())
        } else {
            Err(files)
        }
    });
    drop(connection);
    eventually("that nothing is left", || {
        let files = content_files(&server);
        if files.is_empty() { Ok(()) } else { Err(files) }
    });
    assert_eq!(images(&server, "")["total_count"], 0);
}

fn an_upload_that_the_server_does_not_survive_leaves_nothing(store: Store) {
    let mut server = Server::start(store);
    let whole = Request::form(
        "/api/v1/images/upload",
        &usual(&[]),
        &[("binary", &vec![b'#'; 4_000_000])],
    )
    .bytes();
    let mut connection = Connection::open(&server.environment()).expect("the port is served");
    connection
        .send(&whole[..whole.len() / 2])
        .expect("the server reads");
    eventually("the upload to arrive", || {
        let files = content_files(&server);
        if files.iter().any(|(_, size)| *size > 100_000) {
            Ok(())
        } else {
            Err(files)
        }
    });
    server.kill_9_and_restart();
    eventually("that nothing is left", || {
        let files = content_files(&server);
        if files.is_empty() { Ok(()) } else { Err(files) }
    });
    assert_eq!(images(&server, "")["total_count"], 0);
    assert_eq!(upload(&server, &usual(&[]), SCRIPT).status, 201);
}

fn a_registered_image_is_whole_after_a_crash(store: Store) {
    let mut server = Server::start(store);
    let image = server.program("echoes_input");
    server.kill_9_and_restart();
    assert_eq!(server.launch(&image, &json!({ "input": 7 })).output(), 7);
}

/// The largest memory that a process has had at once, in KiB: `VmHWM` of proc(5).
fn peak_memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .expect("the kernel tells it");
    line.split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect("it is a number")
}

#[test]
fn the_memory_of_the_server_does_not_grow_with_an_upload() {
    let server = Server::start(Store::Sqlite);
    let warm = [SCRIPT, &vec![b'#'; 2_000_000][..]].concat();
    assert_eq!(upload(&server, &usual(&[]), &warm).status, 201);
    assert_eq!(
        register_json(&server, &as_json(&json!({ "binary": base64(&warm) }))).status,
        201
    );
    let before = peak_memory(server.pid());
    let large = [SCRIPT, &vec![b'#'; 128 * 1024 * 1024][..]].concat();
    assert_eq!(
        upload(&server, &usual(&[("name", "large")]), &large).status,
        201
    );
    let medium = &large[..40 * 1024 * 1024];
    assert_eq!(
        register_json(
            &server,
            &as_json(&json!({ "name": "medium", "binary": base64(medium) }))
        )
        .status,
        201
    );
    // The kernel counts in parts that it adds up later (proc_pid_status(5)): the peak may be told a little lower the second time.
    let grown = peak_memory(server.pid()).saturating_sub(before);
    assert!(grown < 24 * 1024, "the server grew by {grown} KiB");
}

#[test]
fn many_uploads_may_follow_each_other_on_one_connection() {
    let server = Server::start(Store::Sqlite);
    let mut connection = Connection::open(&server.environment()).expect("the port is served");
    for size in [60_000, 66_000, 100_000, 300_000, 1_000_000, 6_000_000] {
        let program = [SCRIPT, &vec![b'#'; size][..]].concat();
        for round in 0..6 {
            let form = Request::form(
                "/api/v1/images/upload",
                &usual(&[]),
                &[("binary", &program)],
            );
            let answer = connection.exchange(&form).expect("it stays open");
            assert_eq!(answer.status, 201, "{size} bytes, round {round}: {answer}");
        }
    }
}

#[test]
fn an_image_over_the_limit_is_refused() {
    let server = Setup::new(Store::Sqlite)
        .variable("RUNTARA_MAX_IMAGE_BYTES", "100000")
        .start();
    let large = [SCRIPT, &vec![b'#'; 100_000][..]].concat();
    let form = upload(&server, &usual(&[]), &large);
    assert!(matches!(form.status, 400 | 413), "{form}");
    assert_eq!(form.json()["code"], "IMAGE_TOO_LARGE", "{form}");
    let by_json = register_json(&server, &as_json(&json!({ "binary": base64(&large) })));
    assert_eq!(by_json.json()["code"], "IMAGE_TOO_LARGE", "{by_json}");
    assert_eq!(upload(&server, &usual(&[]), &large[..100_000]).status, 201);
}
