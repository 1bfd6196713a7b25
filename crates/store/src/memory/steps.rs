//! What is derived: steps and scopes from events, metrics from instances.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use runtara_domain::{InstanceId, Status, Timestamp, subtype};

use super::lists::cut_numbered;
use super::model::{Event, Instance, Model};
use crate::{
    MetricsBucket, MetricsQuery, Page, PageRequest, Scope, StepFilter, StepStatus, StepSummary,
    StoredEvent, paging,
};

/// Most scopes of one answer.
const SCOPES: usize = 1_000;

fn is_custom(event: &Event, subtype: &str) -> bool {
    event.event.kind == runtara_domain::EventKind::Custom
        && event.event.subtype.as_deref() == Some(subtype)
}

fn payload(stored: &StoredEvent) -> Bytes {
    stored.payload.clone().unwrap_or_default()
}

impl Instance {
    /// Steps in the order in which they began, each with the event by which it began.
    fn steps(&self) -> Vec<(&Event, StepSummary)> {
        let mut steps: Vec<(&Event, StepSummary)> = Vec::new();
        let mut newest = BTreeMap::new();
        for (event, stored) in self.stored_events() {
            let keys = &event.event.keys;
            let step = (keys.step_id.clone(), keys.scope_id.clone());
            if step.0.is_none() {
                continue;
            }
            if is_custom(event, subtype::STEP_START) {
                newest.insert(step, steps.len());
                steps.push((event, begun(&stored)));
            } else if is_custom(event, subtype::STEP_END)
                && let Some(place) = newest.remove(&step)
            {
                end(&mut steps[place].1, &stored);
            }
        }
        steps
    }
}

fn begun(start: &StoredEvent) -> StepSummary {
    StepSummary {
        seq: start.seq,
        start: payload(start),
        started_at: start.created_at,
        end: None,
        ended_at: None,
        status: StepStatus::Running,
    }
}

fn end(step: &mut StepSummary, end: &StoredEvent) {
    let payload = payload(end);
    step.status = if paging::is_failed_end(&payload) {
        StepStatus::Failed
    } else {
        StepStatus::Completed
    };
    step.end = Some(payload);
    step.ended_at = Some(end.created_at);
}

impl Model {
    /// See [`crate::Store::list_steps`].
    #[must_use]
    pub fn list_steps(
        &self,
        id: &InstanceId,
        filter: &StepFilter,
        page: &PageRequest,
    ) -> Page<StepSummary> {
        let steps = self
            .instances
            .get(id)
            .map(Instance::steps)
            .unwrap_or_default();
        let matching = steps.into_iter().filter(|(start, step)| {
            let keys = &start.event.keys;
            let id = keys.step_id.as_ref();
            filter.status.is_none_or(|status| status == step.status)
                && (filter.step_type.is_none() || filter.step_type == keys.step_type)
                && (filter.scope_id.is_none() || filter.scope_id == keys.scope_id)
                && (filter.parent_scope_id.is_none()
                    || filter.parent_scope_id == keys.parent_scope_id)
                && !(filter.root_scopes_only && keys.parent_scope_id.is_some())
                && (filter.step_ids.is_empty() || id.is_some_and(|id| filter.step_ids.contains(id)))
        });
        let found = matching.map(|(_, step)| step).collect();
        let size = |row: &StepSummary| row.start.len() + row.end.as_ref().map_or(0, Bytes::len);
        cut_numbered(found, filter.ascending, page, |row| row.seq, size)
    }

    /// See [`crate::Store::scope_ancestors`].
    #[must_use]
    pub fn scope_ancestors(&self, id: &InstanceId, scope_id: &str) -> Vec<Scope> {
        let mut entered = BTreeMap::new();
        let events = self
            .instances
            .get(id)
            .into_iter()
            .flat_map(Instance::stored_events);
        for (event, stored) in events {
            if is_custom(event, subtype::SCOPE_ENTER)
                && let Some(scope) = event.event.keys.scope_id.clone()
            {
                let parent = event.event.keys.parent_scope_id.clone();
                entered.insert(scope, (parent, stored));
            }
        }
        let mut outward = Vec::new();
        let mut met = BTreeSet::new();
        let mut next = Some(scope_id.to_owned());
        while let Some(scope) = next.filter(|_| outward.len() < SCOPES) {
            let Some((parent, stored)) = entered.get(&scope) else {
                break;
            };
            if !met.insert(scope) {
                break;
            }
            outward.push(Scope {
                payload: payload(stored),
                created_at: stored.created_at,
            });
            next = parent.clone();
        }
        outward
    }

    /// See [`crate::Store::tenant_metrics`].
    #[must_use]
    pub fn tenant_metrics(&self, query: &MetricsQuery) -> Vec<MetricsBucket> {
        let width = i64::try_from(query.bucket_ms.max(1)).unwrap_or(i64::MAX);
        let mut buckets: BTreeMap<i64, Vec<&Instance>> = BTreeMap::new();
        for instance in self.instances.values() {
            let state = &instance.state;
            let Some(at) = state
                .finished_at
                .filter(|at| *at >= query.start && *at < query.end)
            else {
                continue;
            };
            if state.tenant_id == query.tenant_id {
                let start = at.0.div_euclid(width) * width;
                buckets.entry(start).or_default().push(instance);
            }
        }
        let of = buckets.into_iter();
        of.map(|(start, ended)| bucket(Timestamp(start), &ended))
            .collect()
    }
}

fn bucket(start: Timestamp, ended: &[&Instance]) -> MetricsBucket {
    let count = |status| ended.iter().filter(|of| of.state.status == status).count() as u64;
    let durations: Vec<_> = ended
        .iter()
        .filter_map(|of| Some(of.state.finished_at?.millis_since(of.state.started_at?) as f64))
        .collect();
    let peaks: Vec<_> = ended
        .iter()
        .map(|of| of.state.usage.memory_peak_bytes)
        .filter(|bytes| *bytes > 0)
        .collect();
    let average = |values: &[f64]| {
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let as_floats: Vec<_> = peaks.iter().map(|bytes| *bytes as f64).collect();
    MetricsBucket {
        start,
        completed: count(Status::Completed),
        failed: count(Status::Failed),
        cancelled: count(Status::Cancelled),
        avg_duration_ms: average(&durations),
        min_duration_ms: durations.iter().copied().reduce(f64::min),
        max_duration_ms: durations.iter().copied().reduce(f64::max),
        avg_memory_bytes: average(&as_floats),
        max_memory_bytes: peaks.iter().copied().max(),
    }
}
