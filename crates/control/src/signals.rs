//! Signals.

use bytes::Bytes;
use runtara_domain::{Change, InstanceId, Refusal, SignalId, SignalKind, Status, limits};
use runtara_store::StoreError;

use crate::{Control, ControlError, ControlResult, Scope};

impl Control {
    /// Sends a cancel, a pause or a resume.
    ///
    /// A resume of an instance that runs or has not begun has nothing to do, and succeeds.
    ///
    /// # Errors
    /// [`ControlError::NotFound`], [`ControlError::Refused`] if the instance has ended, [`ControlError::Invalid`] for a payload over the limit.
    pub async fn signal(
        &self,
        scope: &Scope,
        id: &InstanceId,
        kind: SignalKind,
        payload: Option<Bytes>,
    ) -> ControlResult<()> {
        check_payload(payload.as_ref())?;
        self.find(scope, id).await?;
        let change = match kind {
            SignalKind::Cancel => Change::Cancel { payload },
            SignalKind::Pause => Change::Pause { payload },
            SignalKind::Resume => Change::Resume,
        };
        match self.store.change(id, change).await {
            Ok(_) => Ok(()),
            Err(StoreError::Refused(Refusal::WrongState {
                status: Status::Running | Status::Pending,
                ..
            })) if kind == SignalKind::Resume => Ok(()),
            Err(StoreError::Refused(Refusal::WrongState { status, .. })) => {
                Err(ControlError::Refused {
                    code: "WRONG_STATE",
                    message: format!("Cannot send signal to instance in '{status}' state"),
                })
            }
            Err(error) => Err(ControlError::of_instance(error, id)),
        }
    }

    /// Sends a custom signal.
    ///
    /// # Errors
    /// [`ControlError::NotFound`], [`ControlError::Refused`] if the instance has ended, [`ControlError::Invalid`] for a payload over the limit.
    pub async fn custom_signal(
        &self,
        scope: &Scope,
        id: &InstanceId,
        signal_id: &SignalId,
        payload: Option<Bytes>,
    ) -> ControlResult<()> {
        check_payload(payload.as_ref())?;
        self.find(scope, id).await?;
        self.store
            .send_signal(id, signal_id, payload)
            .await
            .map_err(|error| ControlError::of_instance(error, id))
    }
}

fn check_payload(payload: Option<&Bytes>) -> ControlResult<()> {
    let size = payload.map_or(0, Bytes::len);
    if size > limits::SIGNAL_PAYLOAD_BYTES {
        return Err(ControlError::invalid(
            "PAYLOAD_TOO_LARGE",
            format!(
                "the payload has {size} bytes; at most {} are allowed",
                limits::SIGNAL_PAYLOAD_BYTES
            ),
        ));
    }
    Ok(())
}
