//! What takes more than one answer: uploads, waiting, following.

use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::fake::{Fake, Reply};
use runtara_management_sdk::{Client, Error, EventFilter, ImageRegistration, Status};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn client(fake: &Fake) -> Client {
    Client::builder(fake.url())
        .tenant("acme")
        .retries(0, Duration::ZERO)
        .build()
        .expect("a valid address")
}

fn registered() -> Reply {
    Reply::json(201, &json!({"success": true, "image_id": "i-1"}))
}

/// SHA-256 of `abc`, the first example of FIPS 180-4.
const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[tokio::test]
async fn a_file_is_streamed_with_its_digest_and_length() {
    let fake = Fake::replies([registered()]).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
    file.write_all(&content).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let progress = {
        let seen = Arc::clone(&seen);
        move |progress: runtara_management_sdk::UploadProgress| seen.lock().unwrap().push(progress)
    };
    let registration = ImageRegistration::new("orders");
    let image = client(&fake)
        .upload_image_file(&registration, file.path(), progress)
        .await
        .unwrap();
    assert_eq!(image.image_id, "i-1");

    let asked = &fake.asked()[0];
    assert_eq!(asked.line(), "POST /api/v1/images/upload");
    assert_eq!(
        asked.header("content-length").unwrap(),
        asked.body.len().to_string()
    );
    let boundary = asked
        .header("content-type")
        .unwrap()
        .strip_prefix("multipart/form-data; boundary=")
        .unwrap();
    let tail = format!("\r\n--{boundary}--\r\n");
    let head = asked
        .body
        .strip_suffix(tail.as_bytes())
        .and_then(|body| body.strip_suffix(content.as_slice()));
    let head =
        String::from_utf8(head.expect("the content stands last, as it is").to_vec()).unwrap();
    assert!(
        head.contains("name=\"tenant_id\"\r\n\r\nacme\r\n"),
        "{head}"
    );
    let digest = image.sha256.unwrap();
    assert!(
        head.contains(&format!("name=\"sha256\"\r\n\r\n{digest}\r\n")),
        "{head}"
    );

    let seen = seen.lock().unwrap();
    assert!(seen.len() > 1, "{seen:?}");
    assert!(seen.is_sorted_by_key(|progress| progress.sent_bytes));
    assert_eq!(
        (
            seen.last().unwrap().sent_bytes,
            seen.last().unwrap().total_bytes
        ),
        (600_000, Some(600_000))
    );
}

#[tokio::test]
async fn a_reader_of_unknown_length_is_sent_in_chunks_and_hashed() {
    let fake = Fake::replies([registered()]).await;
    let image = client(&fake)
        .upload_image(&ImageRegistration::new("n"), &b"abc"[..], None, |_| {})
        .await
        .unwrap();
    assert_eq!(image.sha256.as_deref(), Some(ABC));
    assert_eq!(fake.asked()[0].header("transfer-encoding"), Some("chunked"));
}

#[tokio::test]
async fn content_that_is_not_what_was_announced_is_never_finished() {
    let fake = Fake::replies([registered()]).await;
    let client = client(&fake);
    let other = ImageRegistration::new("n").sha256(ABC.to_uppercase());
    assert!(
        client
            .upload_image(&other, &b"abc"[..], None, |_| {})
            .await
            .is_ok()
    );
    let error = client
        .upload_image(&other, &b"abd"[..], None, |_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Checksum { wanted, .. } if wanted.eq_ignore_ascii_case(ABC)),
        "{error:?}"
    );
    for size in [2, 4] {
        let error = client
            .upload_image(
                &ImageRegistration::new("n"),
                &b"abc"[..],
                Some(size),
                |_| {},
            )
            .await
            .unwrap_err();
        assert!(
            matches!(
                error,
                Error::InvalidRequest {
                    what: "length of the content",
                    ..
                }
            ),
            "{size}: {error:?}"
        );
    }
    assert_eq!(
        fake.asked().len(),
        1,
        "no broken upload looks like a whole one"
    );
}

#[tokio::test]
async fn an_upload_that_stands_still_is_left() {
    let fake = Fake::replies([registered()]).await;
    let client = Client::builder(fake.url())
        .tenant("t")
        .upload_idle_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    let (_kept_open, reader) = tokio::io::duplex(16);
    let error = client
        .upload_image(&ImageRegistration::new("n"), reader, None, |_| {})
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn a_refusal_in_the_middle_of_an_upload_is_heard() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 300_000]).await.unwrap();
        let body = r#"{"success": false, "error": "too large"}"#;
        let head = format!(
            "HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream
            .write_all(format!("{head}{body}").as_bytes())
            .await
            .unwrap();
        // Whoever closes with unread bytes resets the connection: an orderly server reads on for a while.
        while stream
            .read(&mut [0; 65_536])
            .await
            .is_ok_and(|read| read > 0)
        {}
    });
    let client = Client::builder(address).tenant("t").build().unwrap();
    let endless = tokio::io::repeat(7);
    let error = client
        .upload_image(&ImageRegistration::new("n"), endless, None, |_| {})
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "too large (REGISTER_FAILED)");
    drop(client);
    tokio::time::timeout(Duration::from_secs(10), server)
        .await
        .expect("the upload was broken off")
        .unwrap();
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named() {
    let fake = Fake::replies([registered()]).await;
    let error = client(&fake)
        .upload_image_file(&ImageRegistration::new("n"), "/does/not/exist", |_| {})
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "cannot read /does/not/exist");
}

fn status(word: &str) -> Reply {
    Reply::json(
        200,
        &json!({"found": true, "instance_id": "o", "status": word}),
    )
}

#[tokio::test]
async fn waiting_rides_out_an_outage_and_ends_with_the_instance() {
    let fake = Fake::replies([
        status("running"),
        Reply::cut(),
        Reply::json(503, &json!({"error": "no database"})),
        status("cancelled"),
    ])
    .await;
    let ended = client(&fake).wait("o", None).await.unwrap();
    assert_eq!(ended.status, Status::Cancelled);
    assert_eq!(fake.lines(), ["GET /api/v1/instances/o?wait_ms=20000"; 4]);
}

#[tokio::test]
async fn waiting_ends_in_time_and_for_unknown_instances_at_once() {
    let fake = Fake::replies([status("running")]).await;
    let error = client(&fake)
        .wait("o", Some(Duration::from_millis(30)))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::WaitTimedOut {
                status: Status::Running,
                ..
            }
        ),
        "{error:?}"
    );
    let error = client(&fake)
        .wait("o", Some(Duration::ZERO))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::WaitTimedOut { .. }), "{error:?}");
    let fake = Fake::replies([Reply::json(
        200,
        &json!({"found": false, "instance_id": "o"}),
    )])
    .await;
    assert!(
        client(&fake)
            .wait("o", None)
            .await
            .unwrap_err()
            .is_not_found()
    );
}

#[tokio::test]
async fn events_are_followed_each_once_until_the_end() {
    let event = |id: i64, at: i64| json!({"id": id, "instance_id": "o", "event_type": "custom", "created_at_ms": at});
    let looks = Mutex::new(0);
    let fake = Fake::start(move |asked| {
        if !asked.target.contains("/events?") {
            return status(if *looks.lock().unwrap() >= 2 { "completed" } else { "running" });
        }
        let mut looks = looks.lock().unwrap();
        *looks += 1;
        let (events, next) = match (*looks, asked.target.contains("cursor=")) {
            (1, _) => (vec![event(1, 10_000), event(3, 10_002)], None),
            // Number 2 became visible late, with an earlier time.
            (2, _) => (vec![event(1, 10_000), event(2, 10_001)], Some("c")),
            (3, true) => (vec![event(3, 10_002), event(4, 10_010)], None),
            _ => (vec![event(4, 10_010), event(5, 10_011)], None),
        };
        Reply::json(200, &json!({"events": events, "total_count": 9, "limit": 500, "offset": 0, "next_cursor": next}))
    })
    .await;
    let mut follower = client(&fake).follow_events("o", EventFilter::new().subtype("x"));
    let mut ids = Vec::new();
    while let Some(event) = follower.next().await.unwrap() {
        ids.push(event.id);
    }
    assert_eq!(ids, [1, 3, 2, 4, 5]);
    let looks: Vec<_> = fake
        .lines()
        .into_iter()
        .filter(|line| line.contains("/events?"))
        .collect();
    assert_eq!(
        looks[0],
        "GET /api/v1/instances/o/events?subtype=x&sort_order=asc&limit=500"
    );
    assert_eq!(
        looks[1],
        "GET /api/v1/instances/o/events?subtype=x&sort_order=asc&created_after_ms=5002&limit=500"
    );
}

#[tokio::test]
async fn events_that_were_seen_before_are_left_out() {
    let fake = Fake::replies([Reply::json(
        200,
        &json!({"events": [{"id": 1, "instance_id": "o", "event_type": "started", "created_at_ms": 1},
                           {"id": 2, "instance_id": "o", "event_type": "completed", "created_at_ms": 2}],
                "total_count": 2, "limit": 500, "offset": 0}),
    )])
    .await;
    let mut follower = client(&fake)
        .follow_events("o", EventFilter::new())
        .after(1);
    let ids: Vec<_> = follower
        .poll()
        .await
        .unwrap()
        .iter()
        .map(|event| event.id)
        .collect();
    assert_eq!(ids, [2]);
    assert_eq!(follower.poll().await.unwrap(), [], "each event comes once");
}
