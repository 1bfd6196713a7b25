//! Short names for the values that cases give to a store.

use bytes::Bytes;
use runtara_domain::{
    CheckpointId, ExitCause, ImageDigest, ImageId, ImageName, InstanceId, Labels, NetworkMode,
    NewImage, Refusal, RegistrationNumber, ResourceLimits, RunExit, RunSettings, RunnerKind,
    SaveCheckpoint, SignalId, TenantId, WaitCall, WaitKind, limits,
};

use crate::{StoreError, StoreResult, WaitKey, WaitRequest};

/// All kinds of runners.
pub const KINDS: [RunnerKind; 3] = [RunnerKind::Oci, RunnerKind::Native, RunnerKind::Wasm];

/// Makes a tenant id.
pub fn tenant(text: &str) -> TenantId {
    TenantId::new(text).expect("tenant ids of the suite are valid")
}

/// Makes an instance id.
pub fn instance(text: &str) -> InstanceId {
    InstanceId::new(text).expect("instance ids of the suite are valid")
}

/// Makes the name of a checkpoint.
pub fn checkpoint(text: &str) -> CheckpointId {
    CheckpointId::new(text).expect("checkpoint ids of the suite are valid")
}

/// Makes the id of a signal.
pub fn signal(text: &str) -> SignalId {
    SignalId::new(text).expect("signal ids of the suite are valid")
}

/// Makes labels.
pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    let owned = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Labels::new(owned.collect()).expect("labels of the suite are valid")
}

/// Makes an image that is to be registered.
pub fn new_image(tenant: &TenantId, name: &str, content: &[u8]) -> NewImage {
    NewImage {
        image_id: ImageId::generate(),
        number: RegistrationNumber(0),
        tenant_id: tenant.clone(),
        name: ImageName::new(name).expect("image names of the suite are valid"),
        description: None,
        kind: RunnerKind::Native,
        digest: ImageDigest::of(content),
        base: None,
        size: content.len() as u64,
        metadata: None,
        labels: Labels::default(),
        settings: RunSettings::default(),
        container: None,
        tenant_bytes_allowed: None,
    }
}

/// Settings of which each is said, all numbers being different.
pub fn settings(first: u64) -> RunSettings {
    RunSettings {
        limits: ResourceLimits {
            memory_bytes: Some(first),
            cpu_millicores: Some(first + 1),
            pids: Some(first + 2),
            open_files: Some(first + 3),
            writable_bytes: Some(first + 4),
        },
        network: Some(NetworkMode::Egress),
        allowed_hosts: Some(vec![
            "*.example.com:443".parse().expect("it is a rule"),
            "10.0.0.0/8".parse().expect("it is a rule"),
        ]),
        read_only: Some(true),
    }
}

/// The exit of a process that left with a code.
pub fn exit_code(code: i32) -> RunExit {
    RunExit {
        cause: ExitCause::Code(code),
        ..RunExit::lost()
    }
}

/// A demand to save.
pub fn save(name: &str, state: &[u8]) -> SaveCheckpoint {
    SaveCheckpoint {
        checkpoint_id: checkpoint(name),
        state: Bytes::copy_from_slice(state),
        request_id: None,
    }
}

/// A durable sleep under a name, with a state that its length tells from others.
pub fn sleep(name: Option<&str>, millis: u64, state: &[u8]) -> WaitRequest {
    WaitRequest {
        key: WaitKey::Sleep(name.map(checkpoint)),
        call: WaitCall {
            kind: WaitKind::Sleep,
            identified: name.is_some(),
            duration_ms: Some(millis),
            state_hash: ImageDigest::of(state).0,
            request_id: None,
            named: false,
            park: true,
        },
        state: Bytes::copy_from_slice(state),
        hold_ms: limits::HOLD_MS,
    }
}

/// A wait for a custom signal.
pub fn wait_for(name: &str, timeout_ms: Option<u64>) -> WaitRequest {
    WaitRequest {
        key: WaitKey::Signal(signal(name)),
        call: WaitCall {
            kind: WaitKind::Signal,
            identified: true,
            duration_ms: timeout_ms,
            state_hash: [0; 32],
            request_id: None,
            named: false,
            park: true,
        },
        state: Bytes::new(),
        hold_ms: limits::HOLD_MS,
    }
}

/// The refusal in an answer; `None` if it was another error or none.
pub fn refusal<T>(answer: StoreResult<T>) -> Option<Refusal> {
    match answer {
        Err(StoreError::Refused(refusal)) => Some(refusal),
        _ => None,
    }
}
