//! What instances leave: checkpoints, events, steps, scopes, logs.

use std::thread::scope;

use runtara_tests::{
    Ground, Server, Store, base64, eventually, from_base64, in_every_kind, on_both_stores,
};
use serde_json::{Value, json};

on_both_stores!(
    checkpoints_are_listed_and_read,
    events_are_filtered_in_every_way,
    steps_are_told_with_their_true_durations,
    ancestors_lead_from_a_scope_outward,
    a_page_of_events_ends_by_what_they_carry,
    logs_can_be_followed_to_the_end_of_the_run,
);

in_every_kind!(logs_are_read_by_stream_run_and_offset,);

fn checkpoints_are_listed_and_read(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    for (id, state) in [("a", "[1]"), ("100%41", "\"zwei\""), ("x/y?z#", "3")] {
        let body = json!({ "checkpoint_id": id, "state": base64(state) });
        assert_eq!(
            server.say("own-1", "checkpoint", &body).expect(200)["found"],
            false
        );
    }
    let run = server.instance("own-1");
    let page = run.get("/checkpoints?limit=2").expect(200);
    assert_eq!(page["total_count"], 3, "{page}");
    assert_eq!(
        (&page["limit"], &page["offset"]),
        (&json!(2), &json!(0)),
        "{page}"
    );
    let rows = page["checkpoints"].as_array().expect("it is a list");
    assert_eq!(rows.len(), 2);
    assert_eq!(
        rows[0]["checkpoint_id"], "x/y?z#",
        "the newest comes first: {page}"
    );
    assert_eq!(rows[1]["data_size_bytes"], 6, "{page}");
    for required in [
        "checkpoint_id",
        "instance_id",
        "created_at_ms",
        "data_size_bytes",
    ] {
        assert!(!rows[0][required].is_null(), "{required} in {page}");
    }
    let filtered = run.get("/checkpoints?checkpoint_id=100%2541").expect(200);
    assert_eq!(filtered["total_count"], 1, "{filtered}");
    for (in_path, id, state) in [
        ("a", "a", "[1]"),
        ("100%2541", "100%41", "\"zwei\""),
        ("x%2Fy%3Fz%23", "x/y?z#", "3"),
    ] {
        let one = run.get(&format!("/checkpoints/{in_path}")).expect(200);
        assert_eq!(one["found"], true, "{one}");
        assert_eq!(one["checkpoint_id"], id);
        assert_eq!(from_base64(&one["data"]), state);
    }
    let missing = run.get("/checkpoints/none").expect(200);
    assert_eq!(missing["found"], false, "{missing}");
    assert_eq!(
        (&missing["checkpoint_id"], &missing["instance_id"]),
        (&json!("none"), &json!("own-1"))
    );
    assert_eq!(missing["created_at_ms"], 0, "{missing}");
    let empty = server.instance("nobody").get("/checkpoints").expect(200);
    assert_eq!(empty["checkpoints"], json!([]), "{empty}");
}

fn events_are_filtered_in_every_way(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let emit = |subtype: &str, payload: &str| {
        let body =
            json!({ "event_type": "custom", "subtype": subtype, "payload": base64(payload) });
        assert_eq!(
            server.say("own-1", "events", &body).expect(200)["success"],
            true
        );
    };
    emit("plain", "no JSON at all");
    emit("root", r#"{"scope_id":"s1","note":"Alpha"}"#);
    emit(
        "child",
        r#"{"scope_id":"s2","parent_scope_id":"s1","note":"beta"}"#,
    );
    emit("list", "[1,2]");
    let binary = json!({ "event_type": "custom", "subtype": "binary", "payload": "//79" });
    assert_eq!(
        server.say("own-1", "events", &binary).expect(200)["success"],
        true
    );
    let run = server.instance("own-1");
    let subtypes = |query: &str| {
        let page = run
            .get(&format!("/events?sort_order=asc&{query}"))
            .expect(200);
        let rows = page["events"].as_array().expect("it is a list").clone();
        rows.iter()
            .map(|row| row["subtype"].as_str().unwrap_or("-").to_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(subtypes(""), "- plain root child list binary");
    assert_eq!(subtypes("event_type=started"), "-");
    assert_eq!(subtypes("event_type=progress"), "");
    assert_eq!(subtypes("event_type=custom&subtype=list"), "list");
    assert_eq!(
        subtypes("payload_contains=ALPHA"),
        "root",
        "case does not matter"
    );
    assert_eq!(
        subtypes("payload_contains=%25"),
        "",
        "a search is text, not a pattern"
    );
    assert_eq!(subtypes("scope_id=s2"), "child");
    assert_eq!(subtypes("parent_scope_id=s1"), "child");
    assert_eq!(
        subtypes("root_scopes_only=true"),
        "- plain root list binary"
    );
    assert_eq!(subtypes("limit=2&offset=1"), "plain root");
    let newest = run.get("/events?limit=1").expect(200);
    assert_eq!(
        newest["events"][0]["subtype"], "binary",
        "the newest comes first: {newest}"
    );
    assert_eq!(newest["total_count"], 6, "{newest}");
    for required in ["id", "instance_id", "event_type", "created_at_ms"] {
        assert!(
            !newest["events"][0][required].is_null(),
            "{required} in {newest}"
        );
    }
    assert_eq!(
        server.instance("nobody").get("/events").expect(200)["total_count"],
        0
    );
}

fn steps_are_told_with_their_true_durations(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let emit = |subtype: &str, payload: Value| {
        let body = json!({ "event_type": "custom", "subtype": subtype, "payload": base64(payload.to_string()) });
        assert_eq!(
            server.say("own-1", "events", &body).expect(200)["success"],
            true
        );
    };
    emit(
        "step_debug_start",
        json!({ "step_id": "fetch", "step_name": "Fetch", "step_type": "http", "inputs": { "u": 1 } }),
    );
    emit(
        "step_debug_end",
        json!({ "step_id": "fetch", "outputs": [1] }),
    );
    emit(
        "step_debug_start",
        json!({ "step_id": "pay", "step_type": "http", "scope_id": "s1" }),
    );
    emit(
        "step_debug_end",
        json!({ "step_id": "pay", "scope_id": "s1", "error": "declined" }),
    );
    emit(
        "step_debug_start",
        json!({ "step_id": "ship", "step_type": "mail", "scope_id": "s2", "parent_scope_id": "s1" }),
    );
    // The same step once more: the second turn of a loop.
    emit(
        "step_debug_start",
        json!({ "step_id": "fetch", "step_type": "http" }),
    );
    emit(
        "step_debug_end",
        json!({ "step_id": "fetch", "outputs": [2] }),
    );
    let run = server.instance("own-1");
    let steps = |query: &str| {
        let page = run
            .get(&format!("/steps?sort_order=asc&{query}"))
            .expect(200);
        for required in ["steps", "total_count", "limit", "offset"] {
            assert!(!page[required].is_null(), "{required} in {page}");
        }
        page["steps"].as_array().expect("it is a list").clone()
    };
    let all = steps("");
    let told: Vec<_> = all
        .iter()
        .map(|step| (step["step_id"].clone(), step["status"].clone()))
        .collect();
    assert_eq!(
        told,
        [
            ("fetch", "completed"),
            ("pay", "failed"),
            ("ship", "running"),
            ("fetch", "completed")
        ]
        .map(|(id, status)| (json!(id), json!(status))),
        "a repeated step is told twice, not four times"
    );
    assert_eq!(
        (&all[0]["inputs"], &all[0]["outputs"]),
        (&json!({ "u": 1 }), &json!([1]))
    );
    assert_eq!(all[3]["outputs"], json!([2]), "each turn has its own end");
    assert_eq!(all[1]["error"], "declined");
    assert_eq!(all[0]["step_name"], "Fetch");
    let (begun, ended) = (
        all[0]["started_at_ms"].as_i64(),
        all[0]["completed_at_ms"].as_i64(),
    );
    assert_eq!(
        all[0]["duration_ms"].as_i64(),
        ended.zip(begun).map(|(end, begin)| end - begin)
    );
    assert_eq!(steps("status=failed").len(), 1);
    assert_eq!(
        steps("status=odd").len(),
        4,
        "an unknown status is no filter"
    );
    assert_eq!(steps("step_type=mail")[0]["step_id"], "ship");
    assert_eq!(steps("scope_id=s1")[0]["step_id"], "pay");
    assert_eq!(steps("parent_scope_id=s1")[0]["step_id"], "ship");
    assert_eq!(steps("root_scopes_only=true").len(), 3);
}

fn ancestors_lead_from_a_scope_outward(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    for (scope, parent, index) in [
        ("outer", None, None),
        ("middle", Some("outer"), Some(3)),
        ("inner", Some("middle"), None),
    ] {
        let payload = json!({
            "scope_id": scope, "parent_scope_id": parent, "step_id": format!("step of {scope}"),
            "step_type": "loop", "index": index,
        });
        let body = json!({ "event_type": "custom", "subtype": "scope_enter", "payload": base64(payload.to_string()) });
        assert_eq!(
            server.say("own-1", "events", &body).expect(200)["success"],
            true
        );
    }
    let run = server.instance("own-1");
    let body = run.get("/scopes/inner/ancestors").expect(200);
    let ancestors = body["ancestors"].as_array().expect("it is a list");
    let names: Vec<_> = ancestors
        .iter()
        .map(|scope| scope["scope_id"].as_str().unwrap_or("?"))
        .collect();
    assert_eq!(names, ["inner", "middle", "outer"]);
    assert_eq!(ancestors[1]["index"], 3, "{body}");
    assert_eq!(ancestors[1]["step_id"], "step of middle", "{body}");
    assert_eq!(ancestors[2].get("parent_scope_id"), None, "{body}");
    assert_eq!(
        run.get("/scopes/none/ancestors").expect(200)["ancestors"],
        json!([])
    );
}

fn a_page_of_events_ends_by_what_they_carry(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let payload = base64(vec![b'x'; 1024 * 1024]);
    let event = json!({ "event_type": "custom", "subtype": "large", "payload": payload });
    for _ in 0..10 {
        assert_eq!(
            server.say("own-1", "events", &event).expect(200)["success"],
            true
        );
    }
    let run = server.instance("own-1");
    let page = run.get("/events?limit=1000&subtype=large").expect(200);
    assert_eq!(page["events"].as_array().map(Vec::len), Some(8));
    assert_eq!(page["total_count"], 10);
    let cursor = page["next_cursor"].as_str().expect("there are more");
    let rest = run.get(&format!("/events?limit=1000&subtype=large&cursor={cursor}"));
    let rest = rest.expect(200);
    assert_eq!(rest["events"].as_array().map(Vec::len), Some(2));
    assert_eq!(rest["next_cursor"], Value::Null);
}

fn logs_are_read_by_stream_run_and_offset(ground: Ground) {
    let server = Server::start(ground);
    let image = server.program("prints_and_exits");
    let run = server.launch(
        &image,
        &json!({ "input": { "stdout": "one\ntwo\n", "stderr": "oh\n" } }),
    );
    run.wait_for("completed");
    let out = run.logs("stream=stdout");
    assert_eq!((out.status, out.text().as_str()), (200, "one\ntwo\n"));
    assert_eq!(
        out.header("X-Runtara-Log-Offset"),
        Some("0"),
        "{:?}",
        out.headers
    );
    assert_eq!(run.logs("stream=stdout&offset=4").text(), "two\n");
    assert_eq!(run.logs("stream=stderr").text(), "oh\n");
    assert_eq!(run.logs("stream=stderr&run=1").text(), "oh\n");
    assert_eq!(run.logs("stream=stdin").status, 400);
    run.logs("stream=stdout&run=7")
        .refuses(404, "LOG_NOT_FOUND");
    let unknown = server.instance("nobody").logs("stream=stdout");
    assert_eq!(unknown.status, 404, "{unknown}");
}

fn logs_can_be_followed_to_the_end_of_the_run(store: Store) {
    let server = Server::start(store);
    let go = server.shared().path("go");
    let image = server.shell(&format!(
        "echo first; while [ ! -e {go} ]; do sleep 0.05; done; echo last"
    ));
    let run = server.launch(&image, &json!({}));
    let text = scope(|scope| {
        eventually("the first line", || {
            let found = run.logs("stream=stdout");
            if found.text().contains("first") {
                Ok(())
            } else {
                Err(found.text())
            }
        });
        let following = scope.spawn(|| run.logs("stream=stdout&follow=true").text());
        server.shared().touch("go");
        following.join().expect("following ends with the run")
    });
    assert_eq!(text, "first\nlast\n");
}
