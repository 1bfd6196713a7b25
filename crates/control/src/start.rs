//! Starts instances.

use std::collections::BTreeMap;

use runtara_domain::{
    Due, ImageId, ImageRecord, InstanceId, InstanceState, Labels, NewInstance, RunSettings,
    TenantId, Timestamp, limits,
};
use runtara_runner::forbidden_env_name;
use runtara_store::Started;
use serde_json::value::RawValue;

use crate::{Control, ControlError, ControlResult, input};

/// A demand to start an instance.
#[derive(Clone)]
pub struct StartInstance {
    /// The image.
    pub image_id: ImageId,
    /// Whose instance it is to be.
    pub tenant_id: TenantId,
    /// Its id; one is made if there is none.
    pub instance_id: Option<InstanceId>,
    /// A key that stands for an id: the same key of the same tenant is the same start.
    pub idempotency_key: Option<String>,
    /// What it works on, as JSON; none, and null, become an empty object.
    pub input: Option<Box<RawValue>>,
    /// Variables for its program.
    pub env: BTreeMap<String, String>,
    /// Arguments for its program.
    pub args: Vec<String>,
    /// Labels to find it by.
    pub labels: Labels,
    /// What it asks of the box in which its program runs. It wins over what its image asks.
    pub settings: RunSettings,
    /// Running time of each run, in seconds.
    pub timeout_seconds: Option<u64>,
    /// Launches without progress that are allowed.
    pub max_attempts: Option<u32>,
    /// How many of its events are kept; none, and 0, are as the operator says and without a bound.
    pub max_events: Option<u32>,
    /// When it is due at the earliest.
    pub start_at: Option<Timestamp>,
    /// How much later than now it is due, in milliseconds.
    pub delay_ms: Option<u64>,
    /// For how long each of its runs may be silent, in seconds.
    pub heartbeat_timeout_seconds: Option<u64>,
    /// When it has ended at the latest.
    pub expires_at: Option<Timestamp>,
    /// How much later than now it has ended at the latest, in seconds.
    pub expires_in_seconds: Option<u64>,
}

/// What came of a start.
#[derive(Debug, Clone)]
pub struct StartOutcome {
    /// The instance.
    pub state: InstanceState,
    /// Whether the same start came before, and this is its instance.
    pub deduplicated: bool,
}

impl Control {
    /// Starts an instance. When this answers, it is durable; it is launched as soon as there is room, and not before it is due.
    ///
    /// # Errors
    /// [`ControlError::NotFound`] for the image; [`ControlError::Invalid`] for what cannot be accepted
    /// (`INVALID_SETTINGS` for what its program cannot be given here); [`ControlError::Refused`]
    /// (`INSTANCE_EXISTS`) if another start has that id.
    pub async fn start(&self, start: StartInstance) -> ControlResult<StartOutcome> {
        // Also if it is deleted: the start may be the repetition of an earlier one, whose answer was lost.
        let image = self
            .images
            .get(self.store.as_ref(), &start.image_id)
            .await?
            .filter(|image| image.tenant_id == start.tenant_id)
            .ok_or_else(|| ControlError::image_not_found(&start.image_id))?;
        let mut new = check_start(start, &image, self.config.max_events).await?;
        new.pending_allowed = self.config.max_pending_per_tenant;
        if let Err(refused) = self.can_run(&image, &new.settings)
            && self.store.instance(&new.instance_id).await?.is_none()
        {
            return Err(refused);
        }
        let id = new.instance_id.clone();
        match self.store.start_instance(new).await? {
            Started::New(state) => Ok(StartOutcome {
                state: *state,
                deduplicated: false,
            }),
            Started::Same(state) => Ok(StartOutcome {
                state: *state,
                deduplicated: true,
            }),
            Started::Taken { .. } => Err(ControlError::Refused {
                code: "INSTANCE_EXISTS",
                message: format!(
                    "Failed to create instance: the id '{id}' belongs to an earlier start with \
                     another tenant, image or input"
                ),
            }),
            Started::TooManyPending { pending } => Err(ControlError::OverLimit {
                code: "TOO_MANY_PENDING",
                message: too_many_pending(pending, self.config.max_pending_per_tenant),
                passes: true,
            }),
            Started::ImageNotFound => Err(ControlError::image_not_found(&image.image_id)),
        }
    }
}

impl Control {
    /// Whether this server would launch an image with these settings.
    fn can_run(&self, image: &ImageRecord, settings: &RunSettings) -> ControlResult<()> {
        if !self.config.kinds.contains(&image.kind) {
            return Err(ControlError::Refused {
                code: "KIND_NOT_RUN_HERE",
                message: format!(
                    "Image '{}' is of kind '{}', which this server cannot run",
                    image.image_id, image.kind
                ),
            });
        }
        self.check_settings(image.kind, &image.settings, settings)
    }
}

fn too_many_pending(pending: u64, allowed: Option<u64>) -> String {
    let allowed = allowed.unwrap_or(pending);
    format!(
        "{pending} instances of the tenant are pending, and {allowed} may be (RUNTARA_MAX_PENDING_PER_TENANT); start it again once some of \
         them have begun, or cancel those that are not needed"
    )
}

async fn check_start(
    start: StartInstance,
    image: &ImageRecord,
    max_events: Option<u32>,
) -> ControlResult<NewInstance> {
    let instance_id = match (start.instance_id, start.idempotency_key) {
        (Some(id), _) => id,
        (None, Some(key)) => {
            check_idempotency_key(&key)?;
            InstanceId::from_idempotency_key(&start.tenant_id, &key)
        }
        (None, None) => InstanceId::generate(),
    };
    check_env(&start.env)?;
    check_args(&start.args)?;
    let input = input::complete(start.input, image.metadata.as_deref()).await?;
    Ok(NewInstance {
        instance_id,
        tenant_id: start.tenant_id,
        image_id: start.image_id,
        input,
        request_timeout_ms: start
            .env
            .get("RUNTARA_REQUEST_TIMEOUT_MS")
            .and_then(|ms| ms.parse().ok()),
        env: start.env,
        args: start.args,
        labels: start.labels,
        settings: start.settings,
        timeout_ms: timeout_ms(start.timeout_seconds)?,
        max_attempts: check_attempts(start.max_attempts)?,
        max_events: check_events(start.max_events, max_events)?,
        due: due(start.start_at, start.delay_ms)?,
        heartbeat_timeout_ms: heartbeat_timeout_ms(start.heartbeat_timeout_seconds)?,
        expires: expires(start.expires_at, start.expires_in_seconds)?,
        pending_allowed: None,
    })
}

fn check_idempotency_key(key: &str) -> ControlResult<()> {
    if key.is_empty() || key.len() > limits::ID_BYTES || key.chars().any(char::is_control) {
        return Err(ControlError::invalid(
            "INVALID_IDEMPOTENCY_KEY",
            format!(
                "the Idempotency-Key is not 1 to {} bytes without control characters",
                limits::ID_BYTES
            ),
        ));
    }
    Ok(())
}

fn check_env(env: &BTreeMap<String, String>) -> ControlResult<()> {
    let invalid = |message: String| Err(ControlError::invalid("INVALID_ENV", message));
    let bytes: usize = env
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if env.len() > limits::ENV_VARIABLES || bytes > limits::ENV_BYTES {
        return invalid(format!(
            "env has {} variables and {bytes} bytes; at most {} and {} are allowed",
            env.len(),
            limits::ENV_VARIABLES,
            limits::ENV_BYTES
        ));
    }
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return invalid(format!("env name {name:?} is empty or holds = or NUL"));
        }
        if value.contains('\0') {
            return invalid(format!("the value of env '{name}' holds NUL"));
        }
        if forbidden_env_name(name) {
            return invalid(format!(
                "env '{name}' may not be set by a start: it says who the program is, or changes how it is loaded"
            ));
        }
    }
    Ok(())
}

fn check_args(args: &[String]) -> ControlResult<()> {
    let bytes: usize = args.iter().map(String::len).sum();
    if args.len() > limits::ARGS || bytes > limits::ARGS_BYTES {
        return Err(ControlError::invalid(
            "INVALID_ARGS",
            format!(
                "there are {} args of {bytes} bytes; at most {} of {} are allowed",
                args.len(),
                limits::ARGS,
                limits::ARGS_BYTES
            ),
        ));
    }
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err(ControlError::invalid("INVALID_ARGS", "an arg holds NUL"));
    }
    Ok(())
}

fn timeout_ms(seconds: Option<u64>) -> ControlResult<u64> {
    let Some(seconds) = seconds else {
        return Ok(limits::RUN_TIMEOUT_MS);
    };
    seconds
        .checked_mul(1_000)
        .filter(|ms| (1..=limits::RUN_TIMEOUT_MAX_MS).contains(ms))
        .ok_or_else(|| {
            ControlError::invalid(
                "INVALID_TIMEOUT",
                format!(
                    "timeout_seconds is {seconds}; 1 to {} are allowed",
                    limits::RUN_TIMEOUT_MAX_MS / 1_000
                ),
            )
        })
}

fn heartbeat_timeout_ms(seconds: Option<u64>) -> ControlResult<Option<u64>> {
    let Some(seconds) = seconds else {
        return Ok(None);
    };
    let (least, most) = (
        limits::HEARTBEAT_TIMEOUT_MIN_MS,
        limits::HEARTBEAT_TIMEOUT_MAX_MS,
    );
    let allowed = seconds
        .checked_mul(1_000)
        .filter(|ms| (least..=most).contains(ms));
    match allowed {
        Some(ms) => Ok(Some(ms)),
        None => Err(ControlError::invalid(
            "INVALID_HEARTBEAT_TIMEOUT",
            format!(
                "heartbeat_timeout_seconds is {seconds}; {} to {} are allowed (signs of life are noted each {} s, so a shorter silence could \
                 not be told from none)",
                least / 1_000,
                most / 1_000,
                limits::SIGN_OF_LIFE_MS / 1_000
            ),
        )),
    }
}

/// When it ends at the latest. A time that is over already is accepted: the start may be the repetition of one that was made in time.
fn expires(at: Option<Timestamp>, in_seconds: Option<u64>) -> ControlResult<Option<Due>> {
    let invalid = |message: String| Err(ControlError::invalid("INVALID_EXPIRY", message));
    let latest =
        Timestamp::from_system(std::time::SystemTime::now()).plus_millis(limits::SLEEP_MAX_MS);
    match (at, in_seconds) {
        (Some(_), Some(_)) => {
            invalid("expires_at and expires_in_seconds are both given; give one of them".to_owned())
        }
        (Some(at), None) if at > latest => {
            invalid(format!("expires_at is {at}; at most {latest} is allowed"))
        }
        (Some(at), None) => Ok(Some(Due::At(at))),
        (None, Some(seconds)) => {
            let most = limits::SLEEP_MAX_MS / 1_000;
            if !(1..=most).contains(&seconds) {
                return invalid(format!(
                    "expires_in_seconds is {seconds}; 1 to {most} are allowed"
                ));
            }
            Ok(Some(Due::After(seconds * 1_000)))
        }
        (None, None) => Ok(None),
    }
}

fn check_attempts(attempts: Option<u32>) -> ControlResult<Option<u32>> {
    match attempts {
        Some(found) if !(1..=limits::MAX_ATTEMPTS_MAX).contains(&found) => {
            Err(ControlError::invalid(
                "INVALID_MAX_ATTEMPTS",
                format!(
                    "max_attempts is {found}; 1 to {} are allowed",
                    limits::MAX_ATTEMPTS_MAX
                ),
            ))
        }
        accepted => Ok(accepted),
    }
}

/// How many events are kept: as the start says, else as the operator does.
fn check_events(events: Option<u32>, otherwise: Option<u32>) -> ControlResult<Option<u32>> {
    match events {
        None => Ok(otherwise),
        Some(0) => Ok(None),
        Some(found) if found < limits::MAX_EVENTS_LEAST => Err(ControlError::invalid(
            "INVALID_MAX_EVENTS",
            format!(
                "max_events is {found}; at least {}, or 0 for all, is allowed",
                limits::MAX_EVENTS_LEAST
            ),
        )),
        Some(accepted) => Ok(Some(accepted.min(i32::MAX as u32))),
    }
}

fn due(start_at: Option<Timestamp>, delay_ms: Option<u64>) -> ControlResult<Due> {
    check_start_at(start_at)?;
    match (start_at, delay_ms) {
        (Some(_), Some(_)) => Err(ControlError::invalid(
            "INVALID_START_TIME",
            "start_at_ms and delay_ms are both given; give one of them",
        )),
        (_, Some(delay)) if delay > limits::SLEEP_MAX_MS => Err(ControlError::invalid(
            "INVALID_START_TIME",
            format!(
                "delay_ms is {delay}; at most {} are allowed",
                limits::SLEEP_MAX_MS
            ),
        )),
        (None, Some(delay)) => Ok(Due::After(delay)),
        (Some(at), None) => Ok(Due::At(at)),
        (None, None) => Ok(Due::NOW),
    }
}

/// A start may be as far away by its time as by its delay.
fn check_start_at(start_at: Option<Timestamp>) -> ControlResult<()> {
    let latest =
        Timestamp::from_system(std::time::SystemTime::now()).plus_millis(limits::SLEEP_MAX_MS);
    match start_at {
        Some(found) if found > latest => Err(ControlError::invalid(
            "INVALID_START_TIME",
            format!("start_at_ms is {found}; at most {latest} is allowed"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_times_and_limits_are_checked() {
        assert!(due(Some(Timestamp(1)), Some(1)).is_err());
        assert!(due(None, Some(limits::SLEEP_MAX_MS + 1)).is_err());
        assert!(due(Some(Timestamp(i64::MAX)), None).is_err());
        assert!(due(Some(Timestamp(1)), None).is_ok());
        assert!(timeout_ms(Some(0)).is_err());
        assert!(timeout_ms(Some(u64::MAX)).is_err());
        assert_eq!(timeout_ms(None).unwrap(), 3_600_000);
        assert!(check_attempts(Some(0)).is_err());
        for (seconds, accepted) in [
            (Some(9), None),
            (Some(10), Some(Some(10_000))),
            (Some(u64::MAX), None),
            (None, Some(None)),
        ] {
            assert_eq!(heartbeat_timeout_ms(seconds).ok(), accepted, "{seconds:?}");
        }
        assert!(expires(Some(Timestamp(1)), Some(1)).is_err());
        assert!(expires(Some(Timestamp(i64::MAX)), None).is_err());
        assert!(expires(None, Some(0)).is_err());
        assert!(expires(None, Some(u64::MAX)).is_err());
        let over = expires(Some(Timestamp(1)), None).unwrap();
        assert_eq!(over, Some(Due::At(Timestamp(1))), "it may be a repetition");
        let after = expires(None, Some(2)).unwrap();
        assert_eq!(after, Some(Due::After(2_000)));
    }
}
