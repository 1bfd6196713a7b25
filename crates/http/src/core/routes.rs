//! The routes of the instance protocol, in the order of the protocol.

use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use runtara_domain::{
    CheckpointId, EventKind, Fence, InstanceId, NewEvent, Refusal, SaveCheckpoint, SignalId,
    SignalKind, SignalWait, Sleep, TenantId, Timestamp, Word,
};
use runtara_runner::CallError;
use serde_json::json;
use tokio::time::timeout;

use super::CoreState;
use super::session::{Session, Watcher};
use super::wire::{
    AcknowledgeBody, CheckpointAnswer, CheckpointBody, CompletedBody, EventBody, FailedBody,
    InputAnswer, RegisterBody, RetryBody, SignalAnswer, SignalWaitAnswer, SignalWaitBody,
    SleepBody, StatusAnswer, Success, WaitedSignal, WakePayload, WireCustomSignal,
};
use crate::ApiError;
use crate::extract::{Json, PathIds, decode, encode, parse_id, unknown_route};
use crate::standing;

type Answer<T> = Result<axum::Json<T>, ApiError>;

/// How long the store may take to answer a health check.
const HEALTH: Duration = Duration::from_secs(2);

/// A launched run is told that we live, whatever the store does: its further calls wait for the store, while a program that is told
/// otherwise gives up. Only if the store says that there is no such run, it is told so. The answer says nothing about its calls, so that
/// it leaves the account of them alone.
pub(super) async fn health(
    State(state): State<CoreState>,
    Extension(fence): Extension<Fence>,
) -> Result<Response, ApiError> {
    let Fence::Run(token) = fence else {
        let healthy = matches!(timeout(HEALTH, state.0.store.ping()).await, Ok(Ok(())));
        let word = if healthy { "healthy" } else { "unhealthy" };
        return Ok(standing::answer(healthy, json!({ "status": word })));
    };
    if let Ok(Ok(None)) = timeout(HEALTH, state.0.store.run_of_token(token)).await {
        return Err(Refusal::RunSuperseded.into());
    }
    Ok(standing::answer(true, json!({ "status": "healthy" })))
}

/// Says whether the core can serve, which database it serves, and which runners work beside it.
pub(super) async fn ready(
    State(state): State<CoreState>,
    Extension(fence): Extension<Fence>,
    request: Request,
) -> Response {
    if matches!(fence, Fence::Run(_)) {
        // What a program needs to know is whether it may go on.
        return unknown_route(request).await.into_response();
    }
    let ready = matches!(timeout(HEALTH, state.0.store.ping()).await, Ok(Ok(())));
    let runners = standing::runners(state.0.report.as_ref());
    let body = json!({ "ready": ready, "database_id": state.0.database_id, "runners": runners });
    standing::answer(ready, body)
}

pub(super) async fn register(session: Session, Json(body): Json<RegisterBody>) -> Answer<Success> {
    let tenant: TenantId = parse_id(&body.tenant_id)?;
    let checkpoint = optional_id(body.checkpoint_id.as_deref())?;
    session.check_tenant(&body.tenant_id)?;
    session
        .call(
            session
                .calls()
                .register(&session.caller, tenant, checkpoint),
        )
        .await?;
    Ok(axum::Json(Success::yes()))
}

pub(super) async fn checkpoint(
    session: Session,
    Json(body): Json<CheckpointBody>,
) -> Answer<CheckpointAnswer> {
    let request = SaveCheckpoint {
        checkpoint_id: parse_id(&body.checkpoint_id)?,
        state: decode(
            body.state.as_deref().unwrap_or_default(),
            "INVALID_STATE",
            "state",
        )?,
        request_id: check_request_id(body.request_id)?,
    };
    let saved = session
        .call(session.calls().checkpoint(&session.caller, request))
        .await?;
    Ok(axum::Json(CheckpointAnswer {
        found: saved.found.is_some(),
        state: saved.found.filter(|state| !state.is_empty()).map(encode),
        signal: saved.signal.map(Into::into),
        custom_signal: saved
            .custom_signal
            .map(|payload| WireCustomSignal::new(&body.checkpoint_id, payload)),
    }))
}

pub(super) async fn poll_signal(session: Session) -> Answer<SignalAnswer> {
    let polled = session.call(async {
        match session.calls().poll_signal(&session.caller).await {
            // Nothing waits for an instance that is not there, or not any more.
            Err(CallError::Refused(Refusal::InstanceUnknown | Refusal::InstanceEnded { .. })) => {
                Ok(None)
            }
            answer => answer,
        }
    });
    let signal = polled.await?;
    Ok(axum::Json(SignalAnswer {
        signal: signal.map(Into::into),
        custom_signal: None,
    }))
}

pub(super) async fn take_signal(
    session: Session,
    PathIds(_, signal): PathIds<InstanceId, SignalId>,
) -> Answer<SignalAnswer> {
    take(&session, &signal).await
}

/// A custom signal may be called like one of our routes.
pub(super) async fn take_signal_ack(session: Session) -> Answer<SignalAnswer> {
    take(&session, &parse_id("ack")?).await
}

/// A custom signal may be called like one of our routes.
pub(super) async fn take_signal_wait(session: Session) -> Answer<SignalAnswer> {
    take(&session, &parse_id("wait")?).await
}

async fn take(session: &Session, signal: &SignalId) -> Answer<SignalAnswer> {
    let taken = session
        .call(session.calls().take_signal(&session.caller, signal))
        .await?;
    Ok(axum::Json(SignalAnswer {
        signal: None,
        custom_signal: taken.map(|payload| WireCustomSignal::new(signal.as_str(), payload)),
    }))
}

pub(super) async fn wait_signal(
    session: Session,
    Json(body): Json<SignalWaitBody>,
) -> Answer<SignalWaitAnswer> {
    let request = SignalWait {
        signal_id: parse_id(&body.signal_id)?,
        timeout_ms: body.timeout_ms,
        park: body.park.unwrap_or(true),
        request_id: check_request_id(body.request_id)?,
    };
    let waited = session
        .wait(session.calls().wait_signal(&session.caller, request))
        .await?;
    Ok(axum::Json(SignalWaitAnswer {
        timed_out: waited.timed_out,
        signal: waited.signal.map(|payload| WaitedSignal {
            signal_id: body.signal_id,
            payload: payload.map(encode),
        }),
    }))
}

pub(super) async fn acknowledge(
    session: Session,
    Json(body): Json<AcknowledgeBody>,
) -> Answer<Success> {
    let kind: SignalKind = body
        .signal_type
        .parse()
        .map_err(|error| ApiError::bad_request("INVALID_SIGNAL_TYPE", error))?;
    say(&session, Word::Acknowledged(kind)).await
}

async fn say(session: &Session, word: Word) -> Answer<Success> {
    session
        .call(session.calls().say(&session.caller, word))
        .await?;
    Ok(axum::Json(Success::yes()))
}

pub(super) async fn event(session: Session, Json(body): Json<EventBody>) -> Answer<Success> {
    let payload = match body.payload.as_deref() {
        None | Some("") => None,
        Some(text) => Some(decode(text, "INVALID_PAYLOAD", "payload")?),
    };
    let checkpoint = optional_id(body.checkpoint_id.as_deref())?;
    let kind = body.event_type.parse().unwrap_or(EventKind::Custom);
    let word = match kind {
        EventKind::Completed => Word::Completed { output: payload },
        EventKind::Failed => Word::Failed {
            error: payload.map_or_else(unknown_error, |text| {
                String::from_utf8_lossy(&text).into_owned()
            }),
        },
        EventKind::Suspended => suspension(checkpoint, payload.as_ref())?,
        EventKind::Heartbeat => {
            session
                .call(session.calls().heartbeat(&session.caller))
                .await?;
            return Ok(axum::Json(Success::yes()));
        }
        EventKind::Custom | EventKind::Started => {
            if body
                .subtype
                .as_deref()
                .is_some_and(|text| text.contains('\0'))
            {
                return Err(ApiError::bad_request(
                    "INVALID_SUBTYPE",
                    "the subtype holds NUL",
                ));
            }
            let request_id = check_request_id(body.request_id)?;
            let event = NewEvent::custom(body.subtype, checkpoint, payload);
            session
                .call(session.calls().record(&session.caller, event, request_id))
                .await?;
            return Ok(axum::Json(Success::yes()));
        }
    };
    say(&session, word).await
}

/// A `suspended` event with a checkpoint and a wake time asks to be woken; any other only to be resumed.
fn suspension(checkpoint: Option<CheckpointId>, payload: Option<&Bytes>) -> Result<Word, ApiError> {
    let wake = payload.and_then(|text| serde_json::from_slice::<WakePayload>(text).ok());
    match (checkpoint, wake) {
        (Some(checkpoint_id), Some(wake)) => Ok(Word::SuspendedUntil {
            wake_at: Timestamp(wake.wake_at_ms),
            checkpoint_id,
            state: decode(&wake.state, "INVALID_STATE", "state")?,
        }),
        _ => Ok(Word::Suspended),
    }
}

fn unknown_error() -> String {
    "Unknown error".to_owned()
}

pub(super) async fn completed(
    session: Session,
    Json(body): Json<CompletedBody>,
) -> Answer<Success> {
    let output = match body.output.as_deref() {
        None | Some("") => None,
        Some(text) => Some(decode(text, "INVALID_OUTPUT", "output")?),
    };
    say(&session, Word::Completed { output }).await
}

pub(super) async fn failed(session: Session, Json(body): Json<FailedBody>) -> Answer<Success> {
    let error = body.error.unwrap_or_else(unknown_error);
    say(&session, Word::Failed { error }).await
}

/// Reads no body: some programs send one, and some do not.
pub(super) async fn suspended(session: Session) -> Answer<Success> {
    say(&session, Word::Suspended).await
}

pub(super) async fn retry(session: Session, Json(body): Json<RetryBody>) -> Answer<Success> {
    let checkpoint = parse_id(&body.checkpoint_id)?;
    let recorded = session.calls().record_retry(
        &session.caller,
        checkpoint,
        body.attempt,
        body.error_message,
    );
    session.call(recorded).await?;
    Ok(axum::Json(Success::yes()))
}

/// May name another instance of the caller's tenant: a parent watches its child. The headers then carry the caller's own ids.
pub(super) async fn status(Watcher { session, of }: Watcher) -> Answer<StatusAnswer> {
    let found = session.call(async {
        match session.calls().status(&session.caller, &of).await {
            Err(CallError::Refused(Refusal::InstanceUnknown)) => Ok(None),
            answer => answer,
        }
    });
    Ok(axum::Json(match found.await? {
        None => StatusAnswer {
            found: false,
            instance_id: of.to_string(),
            status: "unknown",
            checkpoint_id: None,
            output: None,
            error: None,
            due_at_ms: None,
            run_number: None,
        },
        Some(found) => StatusAnswer {
            found: true,
            instance_id: of.to_string(),
            status: found.status.as_str(),
            checkpoint_id: found.checkpoint_id.map(String::from),
            output: found.output.map(encode),
            error: found.error,
            due_at_ms: found.due_at.map(|due| due.0),
            run_number: Some(found.run_number.0),
        },
    }))
}

pub(super) async fn input(session: Session) -> Answer<InputAnswer> {
    let instance_id = session.caller.instance_id.to_string();
    let input = session.call(session.calls().input(&session.caller)).await?;
    Ok(axum::Json(InputAnswer {
        found: true,
        instance_id,
        input: input.map(encode),
    }))
}

pub(super) async fn sleep(session: Session, Json(body): Json<SleepBody>) -> Answer<Success> {
    let request = Sleep {
        duration_ms: body.duration_ms,
        checkpoint_id: optional_id(body.checkpoint_id.as_deref())?,
        state: decode(
            body.state.as_deref().unwrap_or_default(),
            "INVALID_STATE",
            "state",
        )?,
        park: body.park.unwrap_or(true),
        request_id: check_request_id(body.request_id)?,
    };
    session
        .wait(session.calls().sleep(&session.caller, request))
        .await?;
    Ok(axum::Json(Success::yes()))
}

fn optional_id(text: Option<&str>) -> Result<Option<CheckpointId>, ApiError> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => parse_id(text).map(Some),
    }
}

fn check_request_id(id: Option<String>) -> Result<Option<String>, ApiError> {
    match id {
        Some(id) if id.is_empty() || id.len() > 128 || id.chars().any(char::is_control) => {
            Err(ApiError::bad_request(
                "INVALID_REQUEST_ID",
                "request_id is not 1 to 128 bytes without control characters",
            ))
        }
        accepted => Ok(accepted),
    }
}
