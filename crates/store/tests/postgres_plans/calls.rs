//! What runs say.

use bytes::Bytes;
use runtara_domain::{CheckpointId, NewEvent, SaveCheckpoint, SignalId};
use runtara_store::Store as _;

use crate::case::Case;
use crate::filled::{caller, id, running, token};

fn save(n: usize, state: &'static [u8]) -> SaveCheckpoint {
    SaveCheckpoint {
        checkpoint_id: CheckpointId::new(format!("step-{n}")).unwrap(),
        state: Bytes::from_static(state),
        request_id: None,
    }
}

pub(crate) const CASES: &[Case] = &[
    Case {
        what: "the run of a token",
        index: "runtara_instances_token",
        entries: 1,
        call: |store, n| {
            Box::pin(async move {
                let (n, owner, _) = running(n);
                let found = store.run_of_token(token(n)).await.unwrap().unwrap();
                assert_eq!(found.instance_id, owner);
            })
        },
    },
    Case {
        what: "save of a checkpoint",
        index: "runtara_checkpoints_name",
        entries: 8,
        call: |store, n| {
            Box::pin(async move {
                let told = store
                    .save_checkpoint(&caller(n), save(n, b"new"))
                    .await
                    .unwrap();
                assert_eq!(told.found, None);
            })
        },
    },
    Case {
        what: "look at a checkpoint",
        index: "runtara_checkpoints_name",
        entries: 8,
        call: |store, n| {
            Box::pin(async move {
                store
                    .save_checkpoint(&caller(n), save(99, b""))
                    .await
                    .unwrap();
            })
        },
    },
    Case {
        what: "event",
        index: "runtara_events_request",
        entries: 8,
        call: |store, n| {
            Box::pin(async move {
                let event = NewEvent::custom(Some("said".to_owned()), None, None);
                store.record_event(&caller(n), event, None).await.unwrap();
            })
        },
    },
    Case {
        what: "heartbeat",
        index: "runtara_instances_token",
        entries: 8,
        call: |store, n| {
            Box::pin(async move {
                store.heartbeat(&caller(n)).await.unwrap();
            })
        },
    },
    Case {
        what: "custom signal",
        index: "runtara_signals_pkey",
        entries: 20,
        call: |store, n| {
            Box::pin(async move {
                let signal = SignalId::new("go").unwrap();
                store.send_signal(&id(n + 10), &signal, None).await.ok();
                store.take_signal(&caller(n), &signal, None).await.unwrap();
            })
        },
    },
];
