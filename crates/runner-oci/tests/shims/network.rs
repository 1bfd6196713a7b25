//! How a program without a network reaches the core.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use runtara_domain::ExitCause;
use runtara_runner_oci::plan::CoreRelay;

use crate::stage::Stage;

const CALL: &str = "ip -o addr; wget -q -O - http://127.0.0.1:8001/r/token/health; \
                    wget -q -T 2 -O - http://127.0.0.1:8002/ || echo nobody else";

async fn stage() -> Stage {
    let mut stage = Stage::new().await;
    stage.core = Some(CoreRelay {
        port: 8001,
        socket: stage.path("core.sock"),
    });
    stage
}

/// Answers one call, and gives its first line.
pub(crate) fn answer_one(core: &UnixListener) -> String {
    let (mut call, _) = core.accept().unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        call.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    call.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nalive\n")
        .unwrap();
    let head = String::from_utf8(head).unwrap();
    head.lines().next().unwrap_or_default().to_owned()
}

pub(crate) async fn the_core_is_reached_without_a_network() {
    let stage = stage().await;
    let core = UnixListener::bind(stage.path("core.sock")).unwrap();
    let answering = std::thread::spawn(move || answer_one(&core));
    let ended = stage.run(CALL).await;
    assert_eq!(ended.record.cause, ExitCause::Code(0), "{ended:?}");
    assert!(ended.stdout.contains("alive\n"), "{ended:?}");
    assert!(ended.stdout.ends_with("nobody else\n"), "{ended:?}");
    let networks = ended.stdout.lines().filter(|line| line.contains("inet"));
    assert!(networks.clone().count() > 0, "{ended:?}");
    assert!(
        networks.clone().all(|line| line.contains(" lo ")),
        "{ended:?}"
    );
    assert_eq!(answering.join().unwrap(), "GET /r/token/health HTTP/1.1");
}

pub(crate) async fn a_core_that_comes_late_is_waited_for() {
    let stage = stage().await;
    let run = stage
        .launch(stage.plan(&format!("echo ready; {CALL}")))
        .await;
    run.wrote("ready").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let core = UnixListener::bind(stage.path("core.sock")).unwrap();
    let answering = std::thread::spawn(move || answer_one(&core));
    let ended = run.end().await;
    assert!(ended.stdout.contains("alive\n"), "{ended:?}");
    answering.join().unwrap();
}
