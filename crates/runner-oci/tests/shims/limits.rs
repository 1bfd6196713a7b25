//! Limits that a program has met are told with its end.

use runtara_domain::{EndedBy, ExitCause};

use crate::stage::{Stage, tells_peaks};

const MIB: u64 = 1024 * 1024;
/// Takes more and more memory.
const HOARDS: &str = "awk 'BEGIN { x = \"0123456789abcdef\"; while (1) x = x x }'";

pub(crate) async fn a_memory_kill_is_told_with_its_figures() {
    let mut stage = Stage::new().await;
    stage.limits.memory_bytes = Some(32 * MIB);
    let record = stage.run(&format!("exec {HOARDS}")).await.record;
    assert_eq!(record.cause, ExitCause::Signal(9), "{record:?}");
    assert_eq!(record.ended_by, Some(EndedBy::OutOfMemory), "{record:?}");
    assert_eq!(record.memory_limit_bytes, Some(32 * MIB), "{record:?}");
    let peak = record.usage.memory_peak_bytes;
    let is_told = tells_peaks();
    let expected = if is_told { 24 * MIB..=32 * MIB } else { 0..=0 };
    assert!(expected.contains(&peak), "{record:?}");
}

pub(crate) async fn a_child_that_is_killed_for_memory_is_told() {
    let mut stage = Stage::new().await;
    stage.limits.memory_bytes = Some(32 * MIB);
    let record = stage.run(&format!("{HOARDS}; exit 4")).await.record;
    assert_eq!(record.cause, ExitCause::Code(4), "{record:?}");
    assert_eq!(record.ended_by, None, "{record:?}");
    assert_eq!(record.limits_met, ["memory"], "{record:?}");
}

pub(crate) async fn too_many_processes_are_told() {
    let mut stage = Stage::new().await;
    stage.limits.pids = Some(16);
    let script = "for n in $(seq 100); do sleep 100 & done; exit 4";
    let record = stage.run(script).await.record;
    assert_eq!(record.limits_met, ["pids"], "{record:?}");
}

pub(crate) async fn a_full_disk_is_told() {
    let mut stage = Stage::new().await;
    stage.limits.writable_bytes = Some(4 * MIB);
    for file in ["/data/big", "/big", "/tmp/big"] {
        let fills = format!("cat /dev/zero > {file}");
        let ended = stage.run(&format!("{fills}; exit 4")).await;
        assert_eq!(ended.record.cause, ExitCause::Code(4), "{ended:?}");
        assert!(ended.stderr.contains("No space left"), "{ended:?}");
        assert_eq!(ended.record.limits_met, ["disk"], "{file}: {ended:?}");
    }
    for place in ["/data", "/tmp"] {
        let script = format!("n=0; while true > {place}/$n; do n=$((n + 1)); done; exit 4");
        let ended = stage.run(&script).await;
        assert_eq!(ended.record.limits_met, ["disk"], "{place}: {ended:?}");
    }
}

pub(crate) async fn what_was_not_met_is_not_told() {
    let stage = Stage::new().await;
    let record = stage.run("echo x > /tmp/x; true & wait").await.record;
    assert_eq!(record.cause, ExitCause::Code(0), "{record:?}");
    assert!(record.limits_met.is_empty(), "{record:?}");
}
