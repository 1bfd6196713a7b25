//! Images in containers: what they are made of, what they reach, what becomes of them.

use runtara_tests::{Server, Store, on_both_stores};
use serde_json::json;

on_both_stores!(a_program_runs_in_a_container);

fn a_program_runs_in_a_container(store: Store) {
    let server = Server::start(store.in_containers());
    let run = server.launch(
        &server.shell("hostname; cat"),
        &json!({ "input": { "a": 1 } }),
    );
    run.wait_for("completed");
    assert_eq!(
        run.logs("stream=stdout").text(),
        format!("{}\n{{\"a\":1}}", run.id)
    );
}
