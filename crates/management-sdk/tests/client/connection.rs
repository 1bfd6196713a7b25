//! Connections that break, hang or answer nonsense.

use std::time::Duration;

use crate::client;
use crate::fake::{Fake, Reply};
use runtara_management_sdk::{
    Client, Error, EventFilter, ImageRegistration, InstanceFilter, LogQuery, StartRequest,
};
use serde_json::json;

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
async fn a_tenant_is_demanded_where_the_wire_needs_one() {
    let fake = Fake::replies([Reply::json(
        201,
        &json!({"success": true, "instance_id": "o-1"}),
    )])
    .await;
    let anonymous = Client::builder(fake.url()).build().unwrap();
    let error = anonymous.start(&StartRequest::new("x")).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::InvalidRequest {
                what: "tenant id",
                ..
            }
        ),
        "{error:?}"
    );
    anonymous
        .start(&StartRequest::new("x").tenant("t"))
        .await
        .unwrap();
    assert_eq!(fake.asked()[0].json()["tenant_id"], "t");
    assert_eq!(fake.asked()[0].header("x-runtara-tenant-id"), None);
}

/// A caller wants to do this on any runtime: every future must move between threads.
#[test]
fn every_call_can_be_spawned() {
    fn is_send<T: Send>(_: &T) {}
    let client = Client::local();
    let registration = ImageRegistration::new("n");
    is_send(&client.upload_image(&registration, tokio::io::empty(), None, |_| {}));
    is_send(&client.upload_image_file(&registration, "x", |_| {}));
    is_send(&client.wait("o", None));
    is_send(&client.start(&StartRequest::new("x")));
    is_send(&client.logs("o", &LogQuery::new()));
    let mut follower = client.follow_events("o", EventFilter::new());
    is_send(&follower.next());
    let mut all = client.all_instances(&InstanceFilter::new());
    is_send(&all.next());
}
