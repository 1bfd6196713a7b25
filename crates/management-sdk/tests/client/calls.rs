//! Every call against a server that answers as a test says: what is asked, and what is made of the answer.

use std::time::Duration;

use crate::client;
use crate::fake::{Fake, Reply};
use runtara_management_sdk::{
    Client, Error, ImageFilter, ImageRegistration, NetworkMode, NotFound, ResourceLimits,
    RunnerKind, SignalKind, StartRequest, Status,
};
use serde_json::json;

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
async fn an_image_says_what_it_is_laid_on_and_what_it_asks_for() {
    let told = json!({"image_id": "i-1", "tenant_id": "acme", "name": "orders", "runner_type": "oci", "created_at_ms": 5,
                      "base": "6f52", "limits": {"pids": 7}, "network": "egress", "read_only": true,
                      "container": {"user": "app"}});
    let fake = Fake::replies([
        Reply::json(201, &json!({"success": true, "image_id": "i-1"})),
        Reply::json(200, &json!({"found": true, "image": told})),
    ])
    .await;
    let client = client(&fake);
    let limits = ResourceLimits::new().pids(7);
    let registration = ImageRegistration::new("orders")
        .base("python")
        .limits(limits)
        .network(NetworkMode::Egress)
        .read_only(true);
    client
        .register_image(&registration, b"#!/bin/sh\n")
        .await
        .unwrap();
    let sent = fake.asked()[0].json();
    for (field, value) in [
        ("base", json!("python")),
        ("limits", json!({"pids": 7})),
        ("network", json!("egress")),
        ("read_only", json!(true)),
    ] {
        assert_eq!(sent[field], value, "{sent}");
    }
    let image = client.image("i-1").await.unwrap();
    assert_eq!(
        (image.base.as_deref(), image.limits),
        (Some("6f52"), limits)
    );
    assert_eq!(
        (&image.network, image.read_only),
        (&Some(NetworkMode::Egress), Some(true))
    );
    assert_eq!(image.container, Some(json!({"user": "app"})));
    assert!(image.more.is_empty(), "{image:?}");
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
async fn changes_of_an_instance_go_where_they_should() {
    let fake = Fake::replies([Reply::json(200, &json!({"success": true}))]).await;
    let client = client(&fake);
    let stopped = client
        .stop("o-1", Duration::from_millis(6_500), "enough")
        .await
        .unwrap();
    // As published servers answer, which say no more.
    assert_eq!(
        (stopped.status, stopped.process_gone),
        (Status::Cancelled, true)
    );
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
async fn a_stop_tells_how_far_it_has_come() {
    let fake = Fake::replies([
        Reply::json(
            200,
            &json!({"success": true, "status": "running", "process_gone": false}),
        ),
        Reply::json(
            200,
            &json!({"success": true, "status": "completed", "process_gone": true}),
        ),
    ])
    .await;
    for (grace_ms, asked, status, gone) in [
        (500, 1, Status::Running, false),
        (0, 0, Status::Completed, true),
    ] {
        let grace = Duration::from_millis(grace_ms);
        let stopped = client(&fake).stop("o-1", grace, "").await.unwrap();
        assert_eq!((stopped.status, stopped.process_gone), (status, gone));
        let body = fake.asked().pop().unwrap().json();
        assert_eq!(body["grace_period_seconds"], asked, "{grace_ms} ms");
    }
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
