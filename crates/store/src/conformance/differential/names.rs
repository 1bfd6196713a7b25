//! The few names and values that histories are about.

use bytes::Bytes;
use runtara_domain::{
    EndedBy, ExitCause, ImageDigest, ImageId, InstanceId, Labels, NodeId, RunExit, RunSettings,
    RunnerKind, TenantId, Usage,
};
use uuid::Uuid;

use crate::conformance::make::{instance, labels, settings, tenant};

pub(super) const NAMES: [&str; 3] = ["a", "b", "ü%_"];
pub(super) const TENANTS: [&str; 2] = ["acme", "ümlaut"];
pub(super) const SUBTYPES: [Option<&str>; 5] = [
    Some("step_debug_start"),
    Some("step_debug_end"),
    Some("scope_enter"),
    Some("progress"),
    None,
];
pub(super) const PAYLOADS: [Option<&[u8]>; 10] = [
    Some(br#"{"step_id":"s","step_type":"http"}"#),
    Some(br#"{"step_id":"s","scope_id":"x","step_type":"sql","error":null}"#),
    Some(br#"{"step_id":"t","scope_id":"y","parent_scope_id":"x","error":"no"}"#),
    Some(br#"{"scope_id":"x","parent_scope_id":"y"}"#),
    Some(br#"{"scope_id":"z"}"#),
    Some(br#"{"step_id":"s","scope_id":7}"#),
    Some(b"plain TEXT 100%"),
    Some(b"\xff\0\xfe"),
    Some(b""),
    None,
];

pub(super) fn name(n: u8) -> &'static str {
    NAMES[usize::from(n) % NAMES.len()]
}

pub(super) fn owner(n: u8) -> TenantId {
    tenant(TENANTS[usize::from(n) % TENANTS.len()])
}

pub(super) fn instance_id(n: u8) -> InstanceId {
    instance(&format!("i-{n}"))
}

pub(super) fn image_id(n: u8) -> ImageId {
    ImageId::new(format!("image-{n}")).expect("it is valid")
}

pub(super) fn node_id(n: u8) -> NodeId {
    NodeId(Uuid::from_u128(0xa0 + u128::from(n)))
}

/// Of how many contents images are.
pub(super) const CONTENTS: u8 = 3;

pub(super) fn content(n: u8) -> ImageDigest {
    ImageDigest::of(&[n])
}

pub(super) fn settings_of(n: u8) -> RunSettings {
    match n {
        0 => RunSettings::default(),
        1 => settings(1),
        _ => RunSettings {
            read_only: Some(false),
            ..RunSettings::default()
        },
    }
}

pub(super) fn kinds(mask: u8) -> Vec<RunnerKind> {
    let chosen = RunnerKind::ALL.iter().enumerate();
    chosen
        .filter(|(n, _)| mask & (1 << n) != 0)
        .map(|(_, kind)| *kind)
        .collect()
}

pub(super) fn label_set(n: u8) -> Labels {
    match n {
        0 => Labels::default(),
        1 => labels(&[("team", "billing")]),
        2 => labels(&[("team", "sales"), ("env", "")]),
        _ => labels(&[("env", "prod")]),
    }
}

pub(super) fn state_of(n: u8) -> Bytes {
    Bytes::from(vec![b'0' + n; usize::from(n)])
}

pub(super) fn exit(how: u8) -> RunExit {
    let ended = |cause, ended_by, stderr: &str| RunExit {
        cause,
        ended_by,
        stderr: stderr.to_owned(),
        output: Some(Bytes::from_static(b"\"out\"")),
        usage: Usage {
            cpu_usec: 11,
            memory_peak_bytes: 100 * u64::from(how),
            running_ms: 13,
        },
        ..RunExit::lost()
    };
    match how {
        0 => ended(ExitCause::Code(0), None, ""),
        1 => ended(ExitCause::Code(1), None, "panicked"),
        2 => ended(ExitCause::Signal(11), None, ""),
        3 => ended(ExitCause::Signal(9), Some(EndedBy::OutOfMemory), "big"),
        4 => ended(ExitCause::Signal(9), Some(EndedBy::Deadline), "slow"),
        5 => ended(ExitCause::Signal(15), Some(EndedBy::Stop), ""),
        6 => ended(ExitCause::Signal(9), Some(EndedBy::Host), ""),
        7 => RunExit::not_launched(true, "no such file"),
        8 => RunExit::not_launched(false, "no space"),
        _ => RunExit::lost(),
    }
}
