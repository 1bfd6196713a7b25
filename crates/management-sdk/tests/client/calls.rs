//! Every call against a server that answers as a test says: what is asked, and what is made of the answer.

use std::time::Duration;

use crate::fake::{Fake, Reply};
use runtara_management_sdk::{
    CapabilityTest, CheckpointFilter, Client, Error, EventFilter, EventType, Granularity,
    ImageFilter, ImageRegistration, InstanceFilter, InstanceOrder, LogQuery, MetricsQuery,
    NotFound, OutputStream, RunnerKind, SignalKind, SortOrder, StartRequest, Status, StatusReason,
    StepFilter, StepStatus,
};
use serde_json::json;

fn client(fake: &Fake) -> Client {
    Client::builder(fake.url())
        .tenant("acme")
        .retries(2, Duration::from_millis(1))
        .build()
        .expect("a valid address")
}

#[tokio::test]
async fn health_and_readiness_are_told_also_when_they_are_bad() {
    let fake = Fake::replies([
        Reply::json(200, &json!({"healthy": false, "version": "1.2"})),
        Reply::json(503, &json!({"ready": false, "database": "unreachable"})),
        Reply::json(200, &json!({"ready": true})),
    ])
    .await;
    let health = client(&fake).health().await.unwrap();
    assert_eq!(
        (health.healthy, health.version.as_str(), health.uptime_ms),
        (false, "1.2", 0)
    );
    let readiness = client(&fake).ready().await.unwrap();
    assert!(!readiness.ready);
    assert_eq!(readiness.details["database"], "unreachable");
    assert!(client(&fake).ready().await.unwrap().ready);
    assert_eq!(
        fake.lines(),
        ["GET /api/v1/health", "GET /ready", "GET /ready"]
    );
}

#[tokio::test]
async fn every_call_names_tenant_and_token() {
    let fake = Fake::replies([Reply::json(200, &json!({"healthy": true, "version": "1"}))]).await;
    let client = Client::builder(fake.url())
        .tenant("acme")
        .token("t0ken")
        .build()
        .unwrap();
    client.health().await.unwrap();
    let asked = &fake.asked()[0];
    assert_eq!(asked.header("x-runtara-tenant-id"), Some("acme"));
    assert_eq!(asked.header("authorization"), Some("Bearer t0ken"));
}

#[tokio::test]
async fn an_image_is_registered_as_json() {
    let fake = Fake::replies([
        Reply::json(201, &json!({"success": true, "image_id": "i-1"})),
        Reply::json(400, &json!({"success": false, "error": "name is empty"})),
        Reply::text(413, "too large"),
    ])
    .await;
    let client = client(&fake);
    let registration = ImageRegistration::new("orders")
        .runner_type(RunnerKind::Native)
        .label("team", "shop");
    assert_eq!(
        client
            .register_image(&registration, b"#!/bin/sh\n")
            .await
            .unwrap()
            .image_id,
        "i-1"
    );
    assert_eq!(
        fake.asked()[0].json(),
        json!({"tenant_id": "acme", "name": "orders", "description": null, "binary": "IyEvYmluL3NoCg==",
               "runner_type": "native", "metadata": null, "labels": {"team": "shop"}})
    );
    let refused = client.register_image(&registration, b"").await.unwrap_err();
    assert_eq!(refused.to_string(), "name is empty (REGISTER_FAILED)");
    let refused = client.register_image(&registration, b"").await.unwrap_err();
    assert!(
        matches!(&refused, Error::Refused { status: 413, code, .. } if code == "413"),
        "{refused}"
    );
}

#[tokio::test]
async fn images_are_listed_found_and_deleted() {
    let image = json!({"image_id": "i-1", "tenant_id": "acme", "name": "orders", "runner_type": "native",
                       "created_at_ms": 5, "digest": "abc"});
    let fake = Fake::start(move |asked| match asked.line().as_str() {
        "GET /api/v1/images?tenant_id=acme&name=orders&limit=1" => {
            Reply::json(200, &json!({"images": [image], "total_count": 1}))
        }
        "GET /api/v1/images?tenant_id=acme&name=other&limit=1" => {
            Reply::json(200, &json!({"images": [], "total_count": 0}))
        }
        "GET /api/v1/images/other?tenant_id=acme" => Reply::json(200, &json!({"found": false})),
        "GET /api/v1/images?tenant_id=acme&label=a%3Db&label=c&offset=3" => Reply::json(
            200,
            &json!({"images": [], "total_count": 7, "total_is_exact": false, "next_cursor": "x"}),
        ),
        "DELETE /api/v1/images/i-1?tenant_id=acme" => Reply::json(
            409,
            &json!({"error": "instances need it", "code": "IMAGE_IN_USE"}),
        ),
        "DELETE /api/v1/images/other?tenant_id=acme" => {
            Reply::json(404, &json!({"success": false}))
        }
        _ => Reply::text(500, "unexpected"),
    })
    .await;
    let client = client(&fake);
    let found = client.find_image("orders").await.unwrap();
    assert_eq!(
        (found.image_id.as_str(), &found.more["digest"]),
        ("i-1", &json!("abc"))
    );
    let missing = client.find_image("other").await.unwrap_err();
    assert!(
        matches!(
            missing,
            Error::NotFound {
                kind: NotFound::Image,
                ..
            }
        ),
        "{missing}"
    );
    let filter = ImageFilter::new()
        .labels(vec!["a=b".into(), "c".into()])
        .offset(3);
    let page = client.images(&filter).await.unwrap();
    assert_eq!(
        (
            page.total_count,
            page.total_is_exact,
            page.next_cursor.as_deref()
        ),
        (7, false, Some("x"))
    );
    let in_use = client.delete_image("i-1").await.unwrap_err();
    assert_eq!(in_use.to_string(), "instances need it (IMAGE_IN_USE)");
    assert!(
        client
            .delete_image("other")
            .await
            .unwrap_err()
            .is_not_found()
    );
}

#[tokio::test]
async fn a_start_tells_what_came_of_it() {
    let fake = Fake::replies([
        Reply::json(201, &json!({"success": true, "instance_id": "o-1"})),
        Reply::json(
            200,
            &json!({"success": true, "instance_id": "o-1", "deduplicated": true}),
        ),
        Reply::json(
            400,
            &json!({"success": false, "error": "Image 'x' not found"}),
        ),
        Reply::json(
            400,
            &json!({"success": false, "error": "the id is in use", "code": "INSTANCE_EXISTS"}),
        ),
        Reply::json(400, &json!({"error": "bad"})),
    ])
    .await;
    let client = client(&fake);
    let request = StartRequest::new("x")
        .instance_id("o-1")
        .idempotency_key("k 1");
    assert!(!client.start(&request).await.unwrap().deduplicated);
    assert_eq!(fake.asked()[0].header("idempotency-key"), Some("k 1"));
    assert_eq!(fake.asked()[0].json()["tenant_id"], "acme");
    assert!(client.start(&request).await.unwrap().deduplicated);
    let missing = client.start(&request).await.unwrap_err();
    assert_eq!(missing.to_string(), r#"image "x" was not found"#);
    assert_eq!(
        client.start(&request).await.unwrap_err().to_string(),
        "the id is in use (INSTANCE_EXISTS)"
    );
    assert_eq!(
        client.start(&request).await.unwrap_err().to_string(),
        "bad (400)"
    );
    let unfit = client
        .start(&request.clone().idempotency_key("a\nb"))
        .await
        .unwrap_err();
    assert!(
        matches!(
            unfit,
            Error::InvalidRequest {
                what: "idempotency key",
                ..
            }
        ),
        "{unfit}"
    );
}

#[tokio::test]
async fn only_what_is_safe_is_repeated_when_the_connection_breaks() {
    let started = || Reply::json(201, &json!({"success": true, "instance_id": "o-1"}));
    for (request, wanted) in [
        (StartRequest::new("x"), 1),
        (StartRequest::new("x").instance_id("o-1"), 2),
        (StartRequest::new("x").idempotency_key("k"), 2),
    ] {
        let fake = Fake::replies([Reply::cut(), started()]).await;
        let result = client(&fake).start(&request).await;
        assert_eq!(
            (fake.asked().len(), result.is_ok()),
            (wanted, wanted == 2),
            "{request:?}: {result:?}"
        );
    }
    let fake = Fake::replies([
        Reply::cut(),
        Reply::cut(),
        Reply::json(200, &json!({"healthy": true, "version": "1"})),
    ])
    .await;
    assert!(client(&fake).health().await.unwrap().healthy);
    let fake = Fake::replies([Reply::cut()]).await;
    let error = client(&fake).health().await.unwrap_err();
    assert!(
        matches!(error, Error::Transport { .. }) && error.is_unreachable(),
        "{error:?}"
    );
    assert_eq!(fake.asked().len(), 3);
    assert!(client(&fake).stop("o-1", Duration::ZERO, "").await.is_err());
    assert_eq!(fake.asked().len(), 4);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    // Bound and dropped: nothing listens there now.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let client = Client::builder(port.to_string())
        .retries(0, Duration::ZERO)
        .build()
        .unwrap();
    let error = client.health().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no answer from http://{port} to GET /api/v1/health")
    );
    assert!(error.is_unreachable());
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_left() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let client = Client::builder(address)
        .request_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    let error = client.health().await.unwrap_err();
    assert!(
        matches!(error, Error::Timeout { after, .. } if after == Duration::from_millis(50)),
        "{error:?}"
    );
}

#[tokio::test]
async fn answers_are_read_up_to_the_limit() {
    let fake = Fake::replies([Reply::text(200, vec![b' '; 4096])]).await;
    let client = Client::builder(fake.url())
        .max_response_bytes(1024)
        .build()
        .unwrap();
    let error = client.health().await.unwrap_err();
    assert!(
        matches!(error, Error::TooLarge { limit: 1024, .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_answer_without_sense_is_shown() {
    let fake = Fake::replies([Reply::text(200, "<html>proxy</html>")]).await;
    let error = client(&fake).health().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"cannot read the answer to GET /api/v1/health, found "<html>proxy</html>""#
    );
}

#[tokio::test]
async fn an_instance_tells_all_it_knows() {
    let fake = Fake::replies([
        Reply::json(
            200,
            &json!({"found": true, "instance_id": "o/1", "status": "suspended", "status_reason": "waiting_signal",
                    "due_at_ms": 9, "run_number": 3, "labels": {"a": "b"}, "exit_code": 1, "output": "eyJhIjoxfQ==",
                    "signal_pending": "pause", "cpu_usage_usec": null, "node": "n-1"}),
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
async fn changes_of_an_instance_go_where_they_should() {
    let fake = Fake::replies([Reply::json(200, &json!({"success": true}))]).await;
    let client = client(&fake);
    client
        .stop("o-1", Duration::from_secs(7), "enough")
        .await
        .unwrap();
    client.resume("o-1").await.unwrap();
    client.pause("o-1").await.unwrap();
    client.cancel("o-1").await.unwrap();
    client
        .signal("o-1", &SignalKind::Resume, Some("p"))
        .await
        .unwrap();
    client.custom_signal("o-1", "approved", None).await.unwrap();
    client.purge("o-1").await.unwrap();
    assert_eq!(
        fake.lines(),
        [
            "POST /api/v1/instances/o-1/stop",
            "POST /api/v1/instances/o-1/resume",
            "POST /api/v1/instances/o-1/signals",
            "POST /api/v1/instances/o-1/signals",
            "POST /api/v1/instances/o-1/signals",
            "POST /api/v1/instances/o-1/signals/custom",
            "DELETE /api/v1/instances/o-1",
        ]
    );
    let asked = fake.asked();
    assert_eq!(
        asked[0].json(),
        json!({"reason": "enough", "grace_period_seconds": 7})
    );
    assert!(asked[1].body.is_empty());
    assert_eq!(
        asked[2].json(),
        json!({"signal_type": "pause", "payload": null})
    );
    assert_eq!(
        asked[3].json(),
        json!({"signal_type": "cancel", "payload": null})
    );
    assert_eq!(
        asked[4].json(),
        json!({"signal_type": "resume", "payload": "p"})
    );
    assert_eq!(
        asked[5].json(),
        json!({"checkpoint_id": "approved", "payload": null})
    );
}

#[tokio::test]
async fn refused_changes_say_why() {
    let fake = Fake::replies([
        Reply::json(
            200,
            &json!({"success": false, "error": "Instance 'x' not found"}),
        ),
        Reply::json(200, &json!({"success": false, "error": "it is completed"})),
        Reply::json(
            409,
            &json!({"success": false, "error": "Cannot send signal to instance in 'failed' state"}),
        ),
        Reply::json(404, &json!({"success": false})),
        Reply::json(503, &json!({"error": "no database", "code": "STORE_AWAY"}))
            .header("Retry-After", "2"),
    ])
    .await;
    let client = client(&fake);
    assert!(client.resume("x").await.unwrap_err().is_not_found());
    assert_eq!(
        client.resume("x").await.unwrap_err().to_string(),
        "it is completed (RESUME_FAILED)"
    );
    let refused = client.cancel("x").await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Cannot send signal to instance in 'failed' state (409)"
    );
    assert!(client.purge("x").await.unwrap_err().is_not_found());
    let away = client.purge("x").await.unwrap_err();
    let wanted = Some(Duration::from_secs(2));
    assert!(
        matches!(&away, Error::Refused { retry_after, .. } if *retry_after == wanted),
        "{away:?}"
    );
    assert!(away.is_transient());
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
    assert_eq!(log.offset(), 100);
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
