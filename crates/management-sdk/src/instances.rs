//! Looking at instances: one, or a list.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::client::Client;
use crate::options::options;
use crate::query::Path;
use crate::transport::Call;
use crate::{
    Error, InstanceOrder, Labels, NotFound, Page, Pages, Payload, Status, StatusReason,
    TerminationReason,
};

pub(crate) const INSTANCES: &str = "/api/v1/instances";

/// Everything the server says of one instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Instance {
    /// Its id.
    pub instance_id: String,
    /// Where it stands.
    #[serde(default = "unknown")]
    pub status: Status,
    /// Why, where it is suspended.
    #[serde(default)]
    pub status_reason: Option<StatusReason>,
    /// Its owner.
    #[serde(default)]
    pub tenant_id: String,
    /// Its image.
    #[serde(default)]
    pub image_id: String,
    /// The name its image had at the start.
    #[serde(default)]
    pub image_name: String,
    /// The last checkpoint it saved.
    #[serde(default)]
    pub checkpoint_id: Option<String>,
    /// When it was started by a caller.
    #[serde(default)]
    pub created_at_ms: Option<i64>,
    /// When its first run began.
    #[serde(default)]
    pub started_at_ms: Option<i64>,
    /// When it ended.
    #[serde(default)]
    pub finished_at_ms: Option<i64>,
    /// When it was last heard of.
    #[serde(default)]
    pub heartbeat_at_ms: Option<i64>,
    /// When it must have a run, where a time is set.
    #[serde(default)]
    pub due_at_ms: Option<i64>,
    /// When it fails if it has not ended, where its start said so.
    #[serde(default)]
    pub expires_at_ms: Option<i64>,
    /// For how many milliseconds a run may be silent, where its start said so.
    #[serde(default)]
    pub heartbeat_timeout_ms: Option<u64>,
    /// How often it was launched.
    #[serde(default)]
    pub run_number: Option<u64>,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// The signal that waits for it, where one does.
    #[serde(default, deserialize_with = "word_or_bool")]
    pub signal_pending: Option<String>,
    /// Its input.
    #[serde(default)]
    pub input: Option<Payload>,
    /// Its result.
    #[serde(default)]
    pub output: Option<Payload>,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<String>,
    /// The end of its standard error.
    #[serde(default)]
    pub stderr: Option<String>,
    /// Relaunches after crashes without progress in between, one that is still waited for included; never more than `max_retries`.
    #[serde(default)]
    pub retry_count: Option<u32>,
    /// Relaunches after crashes without progress in between that are allowed.
    #[serde(default)]
    pub max_retries: Option<u32>,
    /// Most memory it used at once.
    #[serde(default)]
    pub memory_peak_bytes: Option<u64>,
    /// CPU time it used, over all runs.
    #[serde(default)]
    pub cpu_usage_usec: Option<u64>,
    /// How long it has stood where by now; absent where the server does not count it.
    #[serde(default)]
    pub time_in_states_ms: Option<TimeInStates>,
    /// How its last run ended.
    #[serde(default)]
    pub termination_reason: Option<TerminationReason>,
    /// Exit code of its last run.
    #[serde(default)]
    pub exit_code: Option<i32>,
    /// Whatever else the server says of it.
    #[serde(flatten)]
    pub more: BTreeMap<String, Value>,
}

/// Milliseconds that an instance has spent in each status that is not an end, over all its runs. The current status counts up to the
/// answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TimeInStates {
    /// Before its first run.
    #[serde(default)]
    pub pending: u64,
    /// With a run; short sleeps, in which the server keeps the process, count here.
    #[serde(default)]
    pub running: u64,
    /// Between two runs: paused, asleep, waiting for a signal or for a relaunch.
    #[serde(default)]
    pub suspended: u64,
}

fn unknown() -> Status {
    Status::Other("unknown".to_owned())
}

/// Takes the signal's name, or a mere yes or no.
fn word_or_bool<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Told {
        Word(String),
        Flag(bool),
    }
    Ok(match Option::<Told>::deserialize(deserializer)? {
        Some(Told::Word(word)) => Some(word),
        Some(Told::Flag(true)) => Some("signal".to_owned()),
        Some(Told::Flag(false)) | None => None,
    })
}

/// One row of a list of instances.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InstanceSummary {
    /// Its id.
    pub instance_id: String,
    /// Its owner.
    pub tenant_id: String,
    /// Where it stands.
    pub status: Status,
    /// Why, where it is suspended.
    #[serde(default)]
    pub status_reason: Option<StatusReason>,
    /// Its image.
    #[serde(default)]
    pub image_id: Option<String>,
    /// The name of its image, where the server says it.
    #[serde(default)]
    pub image_name: Option<String>,
    /// When it was started by a caller.
    pub created_at_ms: i64,
    /// When its first run began.
    #[serde(default)]
    pub started_at_ms: Option<i64>,
    /// When it ended.
    #[serde(default)]
    pub finished_at_ms: Option<i64>,
    /// When it must have a run, where a time is set.
    #[serde(default)]
    pub due_at_ms: Option<i64>,
    /// Whether an error text is kept with it.
    #[serde(default)]
    pub has_error: bool,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
}

options! {
    /// Which instances are listed. All conditions must hold.
    InstanceFilter {
        text {
            /// Only those of this tenant; the client's tenant if absent.
            tenant_id,
            /// Only those of this image.
            image_id,
            /// Only those whose image has a name that begins so.
            image_name_prefix,
            /// Where the page begins, from [`Page::next_cursor`].
            cursor,
        }
        plain {
            /// Only those that stand so.
            status: Status,
            /// Only those with all these labels: `key=value`, or `key` for any value.
            labels: Vec<String>,
            /// Only those created at this time or later.
            created_after_ms: i64,
            /// Only those created before this time.
            created_before_ms: i64,
            /// Only those that ended at this time or later.
            finished_after_ms: i64,
            /// Only those that ended before this time.
            finished_before_ms: i64,
            /// In which order; newest first if absent.
            order_by: InstanceOrder,
            /// How many at most.
            limit: u32,
            /// How many are left out in front. Not together with a cursor.
            offset: u64,
        }
    }
}

impl Client {
    /// Tells where an instance stands.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if it is unknown or another tenant's.
    pub async fn instance(&self, instance_id: &str) -> Result<Instance, Error> {
        self.instance_after(instance_id, Duration::ZERO).await
    }

    /// Tells where an instance stands once it has ended, or after `wait` (the server waits at most 60 s) if it has not.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if it is unknown or another tenant's.
    pub async fn instance_after(
        &self,
        instance_id: &str,
        wait: Duration,
    ) -> Result<Instance, Error> {
        let wait = wait.min(Duration::from_secs(60));
        let path = Path::new(INSTANCES)
            .id("instance id", instance_id)?
            .with("wait_ms", (!wait.is_zero()).then_some(wait.as_millis()));
        let answer = self
            .send(Call::get(path).patience(wait))
            .await?
            .ok_or_missing(NotFound::Instance, instance_id)?;
        // An unknown instance is answered with its id alone, which reads as an instance: so the answer, which may be large, is read
        // once.
        let mut instance: Instance = answer.json()?;
        match instance.more.remove("found") {
            Some(Value::Bool(false)) => Err(Error::not_found(NotFound::Instance, instance_id)),
            _ => Ok(instance),
        }
    }

    /// Lists one page of instances.
    ///
    /// ```no_run
    /// # async fn example(client: runtara_management_sdk::Client) -> Result<(), runtara_management_sdk::Error> {
    /// use runtara_management_sdk::{InstanceFilter, Status};
    ///
    /// let filter = InstanceFilter::new().status(Status::Failed).labels(vec!["team=shop".into()]).limit(20);
    /// for instance in client.instances(&filter).await?.items {
    ///     println!("{}", instance.instance_id);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the connection and of the server.
    pub async fn instances(&self, filter: &InstanceFilter) -> Result<Page<InstanceSummary>, Error> {
        let path = Path::new(INSTANCES)
            .with(
                "tenant_id",
                filter.tenant_id.as_deref().or_else(|| self.tenant()),
            )
            .with("status", filter.status.as_ref())
            .with("image_id", filter.image_id.as_ref())
            .with("image_name_prefix", filter.image_name_prefix.as_ref())
            .with_labels(filter.labels.as_ref())
            .with("created_after_ms", filter.created_after_ms)
            .with("created_before_ms", filter.created_before_ms)
            .with("finished_after_ms", filter.finished_after_ms)
            .with("finished_before_ms", filter.finished_before_ms)
            .with("order_by", filter.order_by.as_ref())
            .with("limit", filter.limit)
            .with("offset", filter.offset)
            .with("cursor", filter.cursor.as_ref());
        self.send(Call::get(path)).await?.ok()?.json()
    }

    /// Walks over all instances that match, page by page.
    #[must_use]
    pub fn all_instances(&self, filter: &InstanceFilter) -> Pages<InstanceSummary> {
        let (client, filter) = (self.clone(), filter.clone());
        Pages::new(move |cursor| {
            let (client, mut filter) = (client.clone(), filter.clone());
            if cursor.is_some() {
                (filter.cursor, filter.offset) = (cursor, None);
            }
            Box::pin(async move { client.instances(&filter).await })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_answer_is_an_instance() {
        let instance: Instance =
            serde_json::from_str(r#"{"instance_id":"i","status":"running","labels":{}}"#).unwrap();
        assert_eq!((instance.status, instance.output), (Status::Running, None));
    }

    #[test]
    fn a_pending_signal_is_named_or_merely_told() {
        for (told, wanted) in [
            ("\"pause\"", Some("pause")),
            ("true", Some("signal")),
            ("false", None),
            ("null", None),
        ] {
            let text = format!(r#"{{"instance_id":"i","signal_pending":{told}}}"#);
            let instance: Instance = serde_json::from_str(&text).unwrap();
            assert_eq!(instance.signal_pending.as_deref(), wanted, "{told}");
        }
    }
}
