//! How many runs a node takes.

use std::time::Duration;

use runtara_tests::{Server, Setup, Store, eventually, holds_for, on_both_stores};
use serde_json::json;

use super::{alone, beside};

on_both_stores!(runs_count_by_the_weights_of_their_kinds);

fn running(server: &Server, ids: &[String]) -> usize {
    let runs = |id: &&String| server.instance(id).status()["status"] == "running";
    ids.iter().filter(runs).count()
}

fn runs_count_by_the_weights_of_their_kinds(store: Store) {
    let server = Setup::new(store)
        .variable("RUNTARA_MAX_RUNS", "4")
        .variable("RUNTARA_RUN_WEIGHTS", "native=2, oci=4")
        .start();
    let image = server.shell("sleep 600");
    let ids: Vec<_> = (0..4)
        .map(|_| server.launch(&image, &json!({})).id)
        .collect();
    let two_run = || match running(&server, &ids) {
        2 => Ok(()),
        other => Err(other),
    };
    eventually("two runs", two_run);
    holds_for(Duration::from_secs(1), "two runs, not more", two_run);
    for id in &ids {
        let _stopped = server.instance(id).stop(0);
    }
}

#[test]
fn what_one_node_has_no_room_for_runs_on_another() {
    let one = alone(Store::Postgres)
        .variable("RUNTARA_MAX_RUNS", "1")
        .start();
    let two = beside(&one, "other")
        .variable("RUNTARA_MAX_RUNS", "1")
        .start();
    let image = one.shell("sleep 600");
    let ids: Vec<_> = (0..3).map(|_| one.launch(&image, &json!({})).id).collect();
    let one_each = || {
        let processes = |server: &Server| {
            let runs = |id: &&String| !server.instance(id).processes().is_empty();
            ids.iter().filter(runs).count()
        };
        match (processes(&one), processes(&two)) {
            (1, 1) => Ok(()),
            other => Err(other),
        }
    };
    eventually("one run on each", one_each);
    holds_for(Duration::from_secs(1), "one run on each", one_each);
    for id in &ids {
        let _stopped = two.instance(id).stop(0);
    }
}
