//! Lists: filters, orders, pages, and what is counted.

use runtara_tests::http::Request;
use runtara_tests::{Server, Store, TENANT, base64, milliseconds, on_both_stores};
use serde_json::{Value, json};

on_both_stores!(
    instances_are_listed_and_counted,
    bounds_of_time_are_inclusive_below_and_exclusive_above,
    a_list_is_walked_by_cursor,
    names_and_labels_find_instances,
    metrics_have_every_bucket,
);

fn list(server: &Server, query: &str) -> Value {
    server
        .ask(&Request::get(&format!("/api/v1/instances?{query}")))
        .expect(200)
}

fn ids(page: &Value) -> Vec<&str> {
    let rows = page["instances"].as_array().expect("it is a list");
    rows.iter()
        .map(|row| row["instance_id"].as_str().expect("an id is a text"))
        .collect()
}

/// Makes ended and unended instances that registered themselves: quick, and all that lists need.
fn some_instances(server: &Server) {
    for number in 1..=7 {
        let id = format!("own-{number}");
        server.self_register(&id);
        let answer = match number {
            1 => server.say(&id, "completed", &json!({ "output": base64("1") })),
            2 => server.say(&id, "failed", &json!({ "error": "no" })),
            3 => server.say(&id, "suspended", &json!({})),
            _ => continue,
        };
        assert_eq!(answer.expect(200)["success"], true);
    }
}

fn instances_are_listed_and_counted(store: Store) {
    let server = Server::start(store);
    some_instances(&server);
    let all = list(&server, "");
    assert_eq!(all["total_count"], 7, "{all}");
    assert_eq!(
        ids(&all),
        [
            "own-7", "own-6", "own-5", "own-4", "own-3", "own-2", "own-1"
        ]
    );
    assert_eq!(
        ids(&list(&server, "order_by=created_at_asc&limit=2")),
        ["own-1", "own-2"]
    );
    assert_eq!(ids(&list(&server, "order_by=nonsense&limit=1")), ["own-7"]);
    let page = list(&server, "limit=2&offset=1&order_by=created_at_asc");
    assert_eq!(
        (ids(&page), &page["total_count"]),
        (vec!["own-2", "own-3"], &json!(7))
    );
    assert!(ids(&list(&server, "limit=0")).is_empty());
    assert_eq!(ids(&list(&server, "status=failed")), ["own-2"]);
    assert_eq!(list(&server, "status=running")["total_count"], 4);
    assert_eq!(
        ids(&list(&server, "order_by=finished_at_desc&limit=2")),
        ["own-2", "own-1"]
    );
    assert_eq!(
        ids(&list(&server, "order_by=finished_at_asc&limit=2")),
        ["own-1", "own-2"]
    );
    assert_eq!(list(&server, "tenant_id=stranger")["total_count"], 0);
    let failed = list(&server, "status=failed");
    assert_eq!(failed["instances"][0]["has_error"], true, "{failed}");
    for required in ["instance_id", "tenant_id", "status", "created_at_ms"] {
        assert!(
            !failed["instances"][0][required].is_null(),
            "{required} in {failed}"
        );
    }
    for bad in [
        "limit=-1",
        "limit=x",
        "offset=-1",
        "created_after_ms=now",
        "status=odd",
    ] {
        server
            .ask(&Request::get(&format!("/api/v1/instances?{bad}")))
            .refuses(400, "INVALID_QUERY");
    }
}

fn bounds_of_time_are_inclusive_below_and_exclusive_above(store: Store) {
    let server = Server::start(store);
    server.self_register("own-1");
    let at = server.instance("own-1").status()["created_at_ms"]
        .as_i64()
        .expect("a time");
    for (query, count) in [
        (format!("created_after_ms={at}"), 1),
        (format!("created_after_ms={}", at + 1), 0),
        (format!("created_before_ms={}", at + 1), 1),
        (format!("created_before_ms={at}"), 0),
    ] {
        assert_eq!(list(&server, &query)["total_count"], count, "{query}");
    }
}

fn a_list_is_walked_by_cursor(store: Store) {
    let server = Server::start(store);
    some_instances(&server);
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    for _ in 0..5 {
        let query = if cursor.is_empty() {
            "limit=3".to_owned()
        } else {
            format!("limit=3&cursor={cursor}")
        };
        let page = list(&server, &query);
        seen.extend(ids(&page).into_iter().map(str::to_owned));
        // One that is made meanwhile is newer than the first page, and moves nothing.
        server.self_register(&format!("late-{}", seen.len()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(
        seen,
        [
            "own-7", "own-6", "own-5", "own-4", "own-3", "own-2", "own-1"
        ]
    );
    server
        .ask(&Request::get(&format!(
            "/api/v1/instances?cursor={cursor}x&limit=1"
        )))
        .refuses(400, "INVALID_CURSOR");
    let both = format!("/api/v1/instances?offset=0&cursor={cursor}");
    server
        .ask(&Request::get(&both))
        .refuses(400, "INVALID_QUERY");
}

fn names_and_labels_find_instances(store: Store) {
    let server = Server::start(store);
    let named = |name: &str| server.register(name, b"#!/bin/sh\nexit 0\n");
    let (plain, percent) = (named("report"), named("re%ort"));
    let run = server.launch(
        &plain,
        &json!({ "instance_id": "a", "labels": { "team": "billing", "env": "test" } }),
    );
    run.wait_for("completed");
    server
        .launch(
            &percent,
            &json!({ "instance_id": "b", "labels": { "team": "sales" } }),
        )
        .wait_for("completed");
    assert_eq!(
        ids(&list(&server, "image_name_prefix=re%25")),
        ["b"],
        "a prefix is text, not a pattern"
    );
    assert_eq!(
        ids(&list(&server, "image_name_prefix=re_")),
        Vec::<&str>::new()
    );
    assert_eq!(ids(&list(&server, "image_name_prefix=rep")), ["a"]);
    assert_eq!(
        ids(&list(&server, &format!("image_id={}", percent.0))),
        ["b"]
    );
    assert_eq!(ids(&list(&server, "label=team")), ["b", "a"]);
    assert_eq!(ids(&list(&server, "label=team=billing")), ["a"]);
    assert_eq!(ids(&list(&server, "label=team&label=env=test")), ["a"]);
    assert_eq!(run.status()["labels"]["team"], "billing");
    server
        .ask(&Request::get("/api/v1/instances?label=a%20b"))
        .refuses(400, "INVALID_LABEL");
}

fn metrics_have_every_bucket(store: Store) {
    let server = Server::start(store);
    some_instances(&server);
    let path = format!("/api/v1/tenants/{TENANT}/metrics");
    let body = server.ask(&Request::get(&path)).expect(200);
    for required in [
        "tenant_id",
        "start_time_ms",
        "end_time_ms",
        "granularity",
        "buckets",
    ] {
        assert!(!body[required].is_null(), "{required} in {body}");
    }
    assert_eq!(body["granularity"], "hourly");
    let buckets = body["buckets"].as_array().expect("it is a list");
    assert!(
        (24..=25).contains(&buckets.len()),
        "a day of hours, ends included: {}",
        buckets.len()
    );
    let sum = |key: &str| {
        buckets
            .iter()
            .filter_map(|bucket| bucket[key].as_i64())
            .sum::<i64>()
    };
    assert_eq!(
        (
            sum("invocation_count"),
            sum("success_count"),
            sum("failure_count")
        ),
        (2, 1, 1),
        "{body}"
    );
    let empty = buckets
        .iter()
        .find(|bucket| bucket["invocation_count"] == 0)
        .expect("an hour without");
    assert!(
        empty.get("success_rate_percent").is_none_or(Value::is_null),
        "{empty}"
    );
    let end = milliseconds();
    let daily = format!(
        "{path}?granularity=daily&start_time_ms={}&end_time_ms={end}",
        end - 3 * 86_400_000
    );
    let daily = server.ask(&Request::get(&daily)).expect(200);
    assert_eq!(
        daily["buckets"].as_array().map(Vec::len),
        Some(4),
        "{daily}"
    );
    // From the beginning of time; backwards by a day, and within one bucket.
    for (start, end) in [
        (0, end),
        (end, end - 86_400_000),
        (end, end - 1),
        (7_200_002, 7_200_001),
    ] {
        let wrong = format!("{path}?start_time_ms={start}&end_time_ms={end}");
        server
            .ask(&Request::get(&wrong))
            .refuses(400, "INVALID_RANGE");
    }
}
