//! Calls that look: instances, checkpoints, events, steps, metrics, agents, logs.

use std::time::Duration;

use crate::client;
use crate::fake::{Fake, Reply};
use runtara_management_sdk::{
    CapabilityTest, CheckResult, CheckpointFilter, Error, EventFilter, EventType, Granularity,
    InstanceFilter, InstanceOrder, LogQuery, MetricsQuery, NotFound, OutputStream, SortOrder,
    Status, StatusReason, StepFilter, StepStatus,
};
use serde_json::json;

#[tokio::test]
async fn an_instance_tells_all_it_knows() {
    let fake = Fake::replies([
        Reply::json(
            200,
            &json!({"found": true, "instance_id": "o/1", "status": "suspended", "status_reason": "waiting_signal",
                    "due_at_ms": 9, "run_number": 3, "labels": {"a": "b"}, "exit_code": 1, "output": "eyJhIjoxfQ==",
                    "signal_pending": "pause", "cpu_usage_usec": null, "node": "n-1",
                    "time_in_states_ms": {"pending": 5, "running": 60, "suspended": 700}}),
        ),
        Reply::json(200, &json!({"found": false, "instance_id": "x"})),
        Reply::json(200, &json!({"found": true, "instance_id": "x", "output": "not base64!"})),
    ])
    .await;
    let client = client(&fake);
    let instance = client
        .instance_after("o/1", Duration::from_millis(1500))
        .await
        .unwrap();
    assert_eq!(fake.lines(), ["GET /api/v1/instances/o%2F1?wait_ms=1500"]);
    assert_eq!(
        (instance.status, instance.status_reason),
        (Status::Suspended, Some(StatusReason::WaitingSignal))
    );
    assert_eq!(
        (instance.due_at_ms, instance.run_number, instance.exit_code),
        (Some(9), Some(3), Some(1))
    );
    assert_eq!(instance.output.unwrap().to_value(), Some(json!({"a": 1})));
    assert_eq!(instance.signal_pending.as_deref(), Some("pause"));
    let time = instance.time_in_states_ms.unwrap();
    assert_eq!((time.pending, time.running, time.suspended), (5, 60, 700));
    assert_eq!(instance.more, [("node".to_owned(), json!("n-1"))].into());
    assert!(client.instance("x").await.unwrap_err().is_not_found());
    assert!(matches!(
        client.instance("x").await.unwrap_err(),
        Error::Decode { .. }
    ));
}

#[tokio::test]
async fn instances_are_listed_with_every_filter() {
    let row = json!({"instance_id": "o-1", "tenant_id": "acme", "status": "failed", "created_at_ms": 1, "has_error": true});
    let fake = Fake::replies([
        Reply::json(
            200,
            &json!({"instances": [row], "total_count": 2, "next_cursor": "c/1"}),
        ),
        Reply::json(
            200,
            &json!({"instances": [row], "total_count": 2, "next_cursor": null}),
        ),
    ])
    .await;
    let filter = InstanceFilter::new()
        .tenant_id("t")
        .status(Status::Failed)
        .image_id("i")
        .image_name_prefix("or d")
        .labels(vec!["a=b".into()])
        .created_after_ms(1)
        .created_before_ms(2)
        .finished_after_ms(3)
        .finished_before_ms(4)
        .order_by(InstanceOrder::FinishedAtAsc)
        .limit(1)
        .offset(6);
    let mut all = client(&fake).all_instances(&filter);
    let mut count = 0;
    while let Some(instance) = all.next().await.unwrap() {
        assert!(instance.has_error);
        count += 1;
    }
    assert_eq!(count, 2);
    let conditions = "tenant_id=t&status=failed&image_id=i&image_name_prefix=or%20d&label=a%3Db&created_after_ms=1\
                      &created_before_ms=2&finished_after_ms=3&finished_before_ms=4&order_by=finished_at_asc&limit=1";
    // A cursor and an offset exclude each other.
    assert_eq!(
        fake.lines(),
        [
            format!("GET /api/v1/instances?{conditions}&offset=6"),
            format!("GET /api/v1/instances?{conditions}&cursor=c%2F1")
        ]
    );
}

#[tokio::test]
async fn checkpoints_are_listed_and_shown() {
    let fake = Fake::replies([
        Reply::json(
            200,
            &json!({"checkpoints": [{"checkpoint_id": "a/b", "instance_id": "o-1", "created_at_ms": 1, "data_size_bytes": 7}],
                    "total_count": 1, "limit": 100, "offset": 0}),
        ),
        Reply::json(
            200,
            &json!({"found": true, "checkpoint_id": "a/b", "instance_id": "o-1", "created_at_ms": 1, "data": "eyJhIjoxfQ=="}),
        ),
        Reply::json(200, &json!({"found": false, "checkpoint_id": "z", "instance_id": "o-1", "created_at_ms": 0})),
    ])
    .await;
    let client = client(&fake);
    let page = client
        .checkpoints("o-1", &CheckpointFilter::new().limit(5))
        .await
        .unwrap();
    assert_eq!(page.items[0].data_size_bytes, 7);
    let checkpoint = client.checkpoint("o-1", "a/b").await.unwrap();
    assert_eq!(checkpoint.data.unwrap().as_bytes(), br#"{"a":1}"#);
    let missing = client.checkpoint("o-1", "z").await.unwrap_err();
    assert!(
        matches!(
            missing,
            Error::NotFound {
                kind: NotFound::Checkpoint,
                ..
            }
        ),
        "{missing}"
    );
    assert_eq!(
        fake.lines()[..2],
        [
            "GET /api/v1/instances/o-1/checkpoints?limit=5",
            "GET /api/v1/instances/o-1/checkpoints/a%2Fb"
        ]
    );
}

#[tokio::test]
async fn events_steps_scopes_and_metrics_are_asked_for() {
    let fake = Fake::replies([
        Reply::json(200, &json!({"events": [], "total_count": 0, "limit": 1, "offset": 0})),
        Reply::json(
            200,
            &json!({"steps": [{"step_id": "s", "step_type": "t", "status": "failed", "started_at_ms": 1, "error": {"a": 1}}],
                    "total_count": 1, "limit": 1, "offset": 0}),
        ),
        Reply::json(
            200,
            &json!({"ancestors": [{"scope_id": "c", "step_id": "s", "step_type": "t", "created_at_ms": 1, "index": 2}]}),
        ),
        Reply::json(
            200,
            &json!({"tenant_id": "acme", "start_time_ms": 0, "end_time_ms": 1, "granularity": "daily", "buckets": [
                {"bucket_time_ms": 0, "invocation_count": 1, "success_count": 1, "failure_count": 0, "cancelled_count": 0,
                 "avg_duration_ms": 1.5}]}),
        ),
    ])
    .await;
    let client = client(&fake);
    let filter = EventFilter::new()
        .event_type(EventType::Custom)
        .subtype("progress")
        .payload_contains("x")
        .scope_id("s")
        .parent_scope_id("p")
        .root_scopes_only(true)
        .sort_order(SortOrder::Asc)
        .limit(1);
    client.events("o", &filter).await.unwrap();
    let steps = client
        .steps("o", &StepFilter::new().status(StepStatus::Failed))
        .await
        .unwrap();
    assert_eq!(steps.items[0].error, Some(json!({"a": 1})));
    assert_eq!(
        client.scope_ancestors("o", "c d").await.unwrap()[0].index,
        Some(2)
    );
    let metrics = client
        .tenant_metrics(&MetricsQuery::new().granularity(Granularity::Daily))
        .await
        .unwrap();
    assert_eq!(metrics.buckets[0].avg_duration_ms, Some(1.5));
    assert_eq!(
        fake.lines(),
        [
            "GET /api/v1/instances/o/events?event_type=custom&subtype=progress&payload_contains=x&scope_id=s\
             &parent_scope_id=p&root_scopes_only=true&sort_order=asc&limit=1",
            "GET /api/v1/instances/o/steps?status=failed",
            "GET /api/v1/instances/o/scopes/c%20d/ancestors",
            "GET /api/v1/tenants/acme/metrics?granularity=daily",
        ]
    );
}

#[tokio::test]
async fn a_machine_is_told_by_servers_that_can() {
    let checks = json!([
        {"about": "cgroups", "result": "fine", "text": "version 2; all of it"},
        {"about": "OCI runtime", "result": "unfit", "text": "none was found; install one; then start again"},
        {"about": "swap", "result": "warning", "text": "not counted"},
        {"about": "moon", "result": "full", "text": "shines"},
    ]);
    let fake = Fake::replies([
        Reply::json(200, &json!({ "checks": checks })),
        Reply::json(
            404,
            &json!({"error": "there is no GET /api/v1/machine", "code": "UNKNOWN_ROUTE"}),
        ),
        Reply::json(500, &json!({"error": "broken", "code": "INTERNAL_ERROR"})),
    ])
    .await;
    let client = client(&fake);
    let told = client.machine().await.unwrap().unwrap();
    assert_eq!(fake.lines(), ["GET /api/v1/machine"]);
    assert_eq!(
        (told[0].found(), told[0].advice()),
        ("version 2; all of it", None)
    );
    assert_eq!(
        (told[1].found(), told[1].advice()),
        ("none was found", Some("install one; then start again"))
    );
    assert_eq!((told[2].found(), told[2].advice()), ("not counted", None));
    assert_eq!(told[3].result, CheckResult::Other("full".to_owned()));
    assert!(client.machine().await.unwrap().is_none());
    let error = client.machine().await.unwrap_err();
    assert!(
        matches!(error, Error::Refused { status: 500, .. }),
        "{error}"
    );
}

#[tokio::test]
async fn agents_are_read_in_both_spellings() {
    let fake = Fake::replies([
        Reply::json(
            200,
            &json!({"agents": [{"id": "a", "name": "A", "description": "", "hasSideEffects": true, "supportsConnections": false,
                                "integrationIds": ["x"], "capabilities": []},
                               {"id": "b", "name": "B", "description": "", "has_side_effects": true,
                                "supports_connections": false, "integration_ids": [], "capabilities": []}]}),
        ),
        Reply::json(404, &json!({"found": false})),
        Reply::json(
            200,
            &json!({"found": true, "capability": {"id": "c", "name": "C"}, "inputs": [{"name": "n", "type": "text", "required": true}]}),
        ),
        Reply::json(200, &json!({"success": false, "error": "no harness"})),
    ])
    .await;
    let client = client(&fake);
    assert!(
        client
            .agents()
            .await
            .unwrap()
            .iter()
            .all(|agent| agent.has_side_effects)
    );
    let missing = client.capability("a", "z").await.unwrap_err();
    assert_eq!(missing.to_string(), r#"capability "a/z" was not found"#);
    assert_eq!(
        client.capability("a", "c").await.unwrap().inputs[0].field_type,
        "text"
    );
    let result = client
        .test_capability(&CapabilityTest::new("a", "c", json!({})))
        .await
        .unwrap();
    assert_eq!(
        (result.success, result.error.as_deref()),
        (false, Some("no harness"))
    );
    assert_eq!(fake.asked()[3].json()["timeout_ms"], 30_000);
}

#[tokio::test]
async fn a_log_is_streamed_from_where_it_is_kept() {
    let fake = Fake::replies([
        Reply::text(200, "hello").header("X-Runtara-Log-Offset", "100"),
        Reply::json(404, &json!({"error": "nothing is kept"})),
        Reply::json(
            400,
            &json!({"error": "stream is unknown", "code": "INVALID_QUERY"}),
        ),
    ])
    .await;
    let client = client(&fake);
    let query = LogQuery::new()
        .stream(OutputStream::Stderr)
        .run(2)
        .offset(7)
        .follow(true);
    let mut log = client.logs("o", &query).await.unwrap();
    assert_eq!((log.run(), log.offset()), (Some(2), 100));
    assert_eq!(log.chunk().await.unwrap().unwrap(), "hello");
    assert_eq!(log.chunk().await.unwrap(), None);
    assert_eq!(log.offset(), 105);
    assert_eq!(
        fake.lines(),
        ["GET /api/v1/instances/o/logs?stream=stderr&run=2&offset=7&follow=true"]
    );
    assert!(client.logs("o", &query).await.unwrap_err().is_not_found());
    assert_eq!(
        client.logs("o", &query).await.unwrap_err().to_string(),
        "stream is unknown (INVALID_QUERY)"
    );
}

#[tokio::test]
async fn a_log_tells_which_run_wrote_it() {
    let fake = Fake::replies([
        Reply::text(200, "hello").header("X-Runtara-Run", "3"),
        Reply::text(200, "hello"),
    ])
    .await;
    let client = client(&fake);
    for run in [Some(3), None] {
        assert_eq!(client.logs("o", &LogQuery::new()).await.unwrap().run(), run);
    }
}
