//! How the server loop treats clients that keep it waiting, and those that it keeps waiting itself.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream;
use runtara_http::server::{Listener, Server, ServerLimits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

const IDLE: Duration = Duration::from_millis(300);
const UNTAKEN: Duration = Duration::from_millis(500);

/// A body that never ends, piece by piece.
fn endless(bytes: usize, pause: Duration) -> Body {
    Body::from_stream(stream::unfold((), move |()| async move {
        sleep(pause).await;
        Some((Ok::<_, Infallible>(Bytes::from(vec![b'x'; bytes])), ()))
    }))
}

/// A body of so many lines, one in each half of the time after which an idle connection is closed.
fn lines(count: u32) -> Body {
    Body::from_stream(stream::unfold(0, move |line| async move {
        if line == count {
            return None;
        }
        sleep(IDLE / 2).await;
        Some((
            Ok::<_, Infallible>(Bytes::from(format!("line {line}\n"))),
            line + 1,
        ))
    }))
}

async fn serve() -> (Server, SocketAddr) {
    let limits = ServerLimits {
        idle: IDLE,
        untaken: UNTAKEN,
        ..ServerLimits::default()
    };
    serve_within(limits).await
}

async fn serve_within(limits: ServerLimits) -> (Server, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Router::new()
        .route("/long", get(|| async { lines(8) }))
        .route("/silent", get(|| async { endless(1, 4 * IDLE) }))
        .route("/flood", get(|| async { endless(1 << 20, Duration::ZERO) }))
        .route("/short", get(|| async { "short" }))
        .route(
            "/refuse",
            post(|| async { (StatusCode::FORBIDDEN, "refused unread") }),
        );
    (
        Server::start(Listener::Tcp(listener), routes, limits),
        address,
    )
}

async fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn an_answer_may_take_longer_than_a_connection_may_be_idle() {
    let (_server, address) = serve().await;
    let mut stream = ask(address, "/long").await;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let text = String::from_utf8_lossy(&answer);
    for line in 0..8 {
        assert!(text.contains(&format!("line {line}\n")), "{text}");
    }
    assert!(
        text.ends_with("0\r\n\r\n"),
        "it ended before its end: {text}"
    );
}

#[tokio::test]
async fn an_answer_that_pauses_is_not_an_idle_connection() {
    let (_server, address) = serve().await;
    let mut stream = ask(address, "/silent").await;
    let mut answer = Vec::new();
    let began = Instant::now();
    while !answer.ends_with(b"x\r\n") {
        let read = stream.read_buf(&mut answer).await.unwrap();
        assert!(read > 0, "it was cut after {:?}", began.elapsed());
    }
    assert!(began.elapsed() >= 3 * IDLE);
}

#[tokio::test]
async fn a_connection_is_idle_from_the_end_of_its_answer_on() {
    let (_server, address) = serve().await;
    let mut stream = ask(address, "/short").await;
    let began = Instant::now();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(b"short"));
    assert!(began.elapsed() >= IDLE / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_given_up() {
    let (server, address) = serve().await;
    let _unread = ask(address, "/flood").await;
    // Once the buffers of both sides are full.
    sleep(Duration::from_millis(200)).await;
    server.stop();
    tokio::time::timeout(Duration::from_secs(10), server.stopped())
        .await
        .expect("the connection of a client that reads nothing stays open");
}

#[tokio::test]
async fn a_client_that_takes_its_answer_slowly_is_borne() {
    let (_server, address) = serve().await;
    let mut stream = ask(address, "/flood").await;
    let began = Instant::now();
    let mut piece = vec![0; 1 << 20];
    while began.elapsed() < 3 * UNTAKEN {
        stream.read_exact(&mut piece).await.expect("it goes on");
        sleep(UNTAKEN / 5).await;
    }
}

#[tokio::test]
async fn heads_that_are_too_large_are_answered_in_json() {
    let (_server, address) = serve().await;
    let mut many = String::new();
    for number in 0..80 {
        many.push_str(&format!("X-{number}: 1\r\n"));
    }
    let large = format!("X-Large: {}\r\n", "x".repeat(70 * 1024));
    let long = format!("/short?{}", "x".repeat(40 * 1024));
    for (path, headers, status, code) in [
        (long.as_str(), "", "414", "URI_TOO_LONG"),
        ("/short", many.as_str(), "431", "HEADERS_TOO_LARGE"),
        ("/short", large.as_str(), "431", "HEADERS_TOO_LARGE"),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{answer}");
        assert!(answer.contains("\"success\":false"), "{answer}");
    }
}

/// The head of a request with a body that is refused before it is read.
fn refused(length: usize) -> String {
    format!("POST /refuse HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n")
}

#[tokio::test]
async fn a_client_that_is_refused_while_it_sends_gets_to_know_why() {
    const LENGTH: usize = 32 << 20;
    let (_server, address) = serve().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = refused(LENGTH);
    stream.write_all(head.as_bytes()).await.unwrap();
    // It looks at nothing before all is sent.
    let sent = stream.write_all(&vec![b'x'; LENGTH]).await;
    sent.expect("the connection is there until all is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.ends_with("refused unread"), "{answer}");
}

#[tokio::test]
async fn a_client_that_is_refused_and_sends_for_ever_is_cut() {
    let (_server, address) = serve().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = refused(1 << 40);
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![b'x'; 1 << 20];
    let sending = async { while stream.write_all(&piece).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(60), sending)
        .await
        .expect("what it sends is taken for ever");
}

#[tokio::test]
async fn a_client_that_is_refused_and_sends_nothing_is_given_up() {
    let (server, address) = serve().await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = refused(1 << 20);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("refused unread"), "{answer}");
    server.stop();
    tokio::time::timeout(Duration::from_secs(30), server.stopped())
        .await
        .expect("the server waits for a client that sends nothing and closes nothing");
}

#[tokio::test]
async fn an_idle_connection_is_closed_at_once_when_the_server_leaves() {
    let limits = ServerLimits {
        idle: Duration::from_secs(600),
        ..ServerLimits::default()
    };
    let (server, address) = serve_within(limits).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    // Refused unread, but small: the connection goes on.
    let request = refused(4) + "body";
    let mut answer = Vec::new();
    for count in 1..=2 {
        stream.write_all(request.as_bytes()).await.unwrap();
        while String::from_utf8_lossy(&answer)
            .matches("refused unread")
            .count()
            < count
        {
            let read = stream.read_buf(&mut answer).await.unwrap();
            assert!(read > 0, "it was closed after {answer:?}");
        }
    }
    server.stop();
    // Shorter than what is waited for who has still to send.
    tokio::time::timeout(Duration::from_millis(1_500), server.stopped())
        .await
        .expect("an idle connection holds up the end of the server");
}
