//! Questions: single rows and lists.

use std::cmp::{Ordering, Reverse};

use bytes::Bytes;
use runtara_domain::{CheckpointId, Cursor, InstanceId, Timestamp};

use super::model::{Instance, Model};
use crate::paging::{self, COUNTED, cursor_at, seq_after};
use crate::{
    CheckpointFilter, CheckpointSummary, EventFilter, InstanceFilter, InstanceOrder,
    InstanceRecord, InstanceSummary, InstanceValues, Page, PageRequest, PageStart,
    StoredCheckpoint, StoredEvent,
};

/// Cuts a page out of all matches in their order.
pub(super) fn cut<T>(
    found: Vec<T>,
    request: &PageRequest,
    kept: Option<u64>,
    is_after: impl Fn(&T) -> bool,
    cursor: impl Fn(&T) -> Cursor,
    size: impl Fn(&T) -> usize,
) -> Page<T> {
    let total = paging::total((found.len() as u64).min(COUNTED), kept);
    let skipped = match request.start {
        PageStart::Offset(offset) => usize::try_from(offset).unwrap_or(usize::MAX),
        PageStart::After(_) => 0,
    };
    let one_more = paging::rows(request) as usize + 1;
    let rows = found
        .into_iter()
        .filter(is_after)
        .skip(skipped)
        .take(one_more);
    let mut found: Vec<_> = rows.collect();
    let there = found.len();
    let sizes = found.iter().map(|row| size(row) as u64);
    found.truncate(paging::within_bytes(sizes));
    paging::page_of(found, there, request, total, cursor)
}

/// Cuts a page out of matches that are numbered within their instance.
pub(super) fn cut_numbered<T>(
    mut found: Vec<T>,
    ascending: bool,
    request: &PageRequest,
    seq: impl Fn(&T) -> u64,
    size: impl Fn(&T) -> usize,
) -> Page<T> {
    found.sort_by_key(|row| seq(row));
    if !ascending {
        found.reverse();
    }
    let after = seq_after(&request.start);
    let is_after = |row: &T| match after {
        Ok(None) => true,
        Ok(Some(after)) if ascending => seq(row) > after,
        Ok(Some(after)) => seq(row) < after,
        Err(_) => false,
    };
    let cursor = |row: &T| cursor_at(seq(row));
    cut(found, request, None, is_after, cursor, size)
}

fn is_within(at: Option<Timestamp>, after: Option<Timestamp>, before: Option<Timestamp>) -> bool {
    after.is_none_or(|after| at.is_some_and(|at| at >= after))
        && before.is_none_or(|before| at.is_some_and(|at| at < before))
}

impl InstanceOrder {
    fn value(self, row: &InstanceSummary) -> Option<i64> {
        match self {
            Self::CreatedDescending | Self::CreatedAscending => Some(row.created_at.0),
            Self::FinishedDescending | Self::FinishedAscending => row.finished_at.map(|at| at.0),
        }
    }

    fn compare(self, one: (Option<i64>, &str), other: (Option<i64>, &str)) -> Ordering {
        match self {
            // `Reverse(None)` is greater than any other reversed value, so rows without one come last here as well.
            Self::CreatedDescending | Self::FinishedDescending => {
                Reverse((one.0, one.1)).cmp(&Reverse((other.0, other.1)))
            }
            Self::CreatedAscending | Self::FinishedAscending => {
                let missing = |place: (Option<i64>, &str)| place.0.is_none();
                (missing(one), one).cmp(&(missing(other), other))
            }
        }
    }
}

impl Model {
    fn image_name(&self, instance: &Instance) -> Option<&str> {
        let image = self.images.get(instance.state.image_id.as_ref()?)?;
        Some(image.record.name.as_str())
    }

    /// See [`crate::Store::instance`].
    #[must_use]
    pub fn instance(&self, id: &InstanceId, now: Timestamp) -> Option<InstanceRecord> {
        let instance = self.instances.get(id)?;
        Some(InstanceRecord {
            time_in_states: instance.state.time_in_states_by(now),
            state: instance.state.clone(),
            image_name: self.image_name(instance).map(str::to_owned),
            labels: instance.labels.clone(),
        })
    }

    /// See [`crate::Store::instance_values`].
    #[must_use]
    pub fn instance_values(&self, id: &InstanceId) -> Option<InstanceValues> {
        self.instances.get(id).map(|instance| InstanceValues {
            input: instance.input.clone(),
            output: instance.output.clone(),
            error: instance.error.clone(),
            stderr: instance.stderr.clone(),
        })
    }

    /// See [`crate::Store::instance_input`].
    #[must_use]
    pub fn instance_input(&self, id: &InstanceId) -> Option<Option<Bytes>> {
        self.instances
            .get(id)
            .map(|instance| instance.input.clone())
    }

    fn summary(&self, instance: &Instance) -> InstanceSummary {
        let state = &instance.state;
        InstanceSummary {
            instance_id: state.instance_id.clone(),
            tenant_id: state.tenant_id.clone(),
            image_id: state.image_id.clone(),
            image_name: self.image_name(instance).map(str::to_owned),
            status: state.status,
            reason: state.reason,
            due_at: state.due_at,
            created_at: state.created_at,
            started_at: state.started_at,
            finished_at: state.finished_at,
            has_error: state.has_error,
            labels: instance.labels.clone(),
        }
    }

    fn matches(&self, instance: &Instance, filter: &InstanceFilter) -> bool {
        let state = &instance.state;
        let image_name = self.image_name(instance);
        filter
            .tenant_id
            .as_ref()
            .is_none_or(|tenant| *tenant == state.tenant_id)
            && filter.status.is_none_or(|status| status == state.status)
            && (filter.image_id.is_none() || filter.image_id == state.image_id)
            && filter.image_name_prefix.as_ref().is_none_or(|prefix| {
                image_name.is_some_and(|name| name.starts_with(prefix.as_str()))
            })
            && is_within(
                Some(state.created_at),
                filter.created_after,
                filter.created_before,
            )
            && is_within(
                state.finished_at,
                filter.finished_after,
                filter.finished_before,
            )
            && filter
                .labels
                .iter()
                .all(|label| label.matches(&instance.labels))
    }

    /// See [`crate::Store::list_instances`].
    #[must_use]
    pub fn list_instances(
        &self,
        filter: &InstanceFilter,
        order: InstanceOrder,
        page: &PageRequest,
    ) -> Page<InstanceSummary> {
        let of = self.instances.values();
        let matching = of.filter(|instance| self.matches(instance, filter));
        let mut found: Vec<_> = matching.map(|instance| self.summary(instance)).collect();
        fn place(order: InstanceOrder, row: &InstanceSummary) -> (Option<i64>, &str) {
            (order.value(row), row.instance_id.as_str())
        }
        found.sort_by(|one, other| order.compare(place(order, one), place(order, other)));
        let by_counts_alone = *filter
            == InstanceFilter {
                tenant_id: filter.tenant_id.clone(),
                status: filter.status,
                ..InstanceFilter::default()
            };
        let kept = by_counts_alone.then_some(found.len() as u64);
        let is_after = |row: &InstanceSummary| match &page.start {
            PageStart::Offset(_) => true,
            PageStart::After(cursor) => {
                let end = (cursor.value, cursor.key.as_str());
                order.compare(place(order, row), end) == Ordering::Greater
            }
        };
        cut(
            found,
            page,
            kept,
            is_after,
            |row| Cursor {
                value: order.value(row),
                key: row.instance_id.as_str().to_owned(),
            },
            |_| 0,
        )
    }

    /// See [`crate::Store::list_checkpoints`].
    #[must_use]
    pub fn list_checkpoints(
        &self,
        id: &InstanceId,
        filter: &CheckpointFilter,
        page: &PageRequest,
    ) -> Page<CheckpointSummary> {
        let saved = self
            .instances
            .get(id)
            .into_iter()
            .flat_map(|of| &of.checkpoints);
        let found = (1..).zip(saved).map(|(seq, saved)| CheckpointSummary {
            seq,
            checkpoint_id: saved.name.clone(),
            created_at: saved.created_at,
            size: saved.state.as_ref().map_or(0, |state| state.len() as u64),
            run_number: saved.run_number,
        });
        let matching = found.filter(|row| {
            filter
                .checkpoint_id
                .as_ref()
                .is_none_or(|id| *id == row.checkpoint_id)
                && is_within(
                    Some(row.created_at),
                    filter.created_after,
                    filter.created_before,
                )
        });
        cut_numbered(matching.collect(), false, page, |row| row.seq, |_| 0)
    }

    /// See [`crate::Store::checkpoint`].
    #[must_use]
    pub fn checkpoint(
        &self,
        id: &InstanceId,
        checkpoint_id: &CheckpointId,
    ) -> Option<StoredCheckpoint> {
        let instance = self.instances.get(id)?;
        let record = instance
            .saved(checkpoint_id)
            .or_else(|| instance.retry(checkpoint_id))?;
        Some(StoredCheckpoint {
            state: record.state.clone().unwrap_or_default(),
            created_at: record.created_at,
        })
    }

    /// See [`crate::Store::list_events`].
    #[must_use]
    pub fn list_events(
        &self,
        id: &InstanceId,
        filter: &EventFilter,
        page: &PageRequest,
    ) -> Page<StoredEvent> {
        let events = self
            .instances
            .get(id)
            .into_iter()
            .flat_map(Instance::stored_events);
        let matching = events.filter(|(event, _)| {
            let (at, event) = (event.created_at, &event.event);
            filter.kind.is_none_or(|kind| kind == event.kind)
                && (filter.subtype.is_none() || filter.subtype == event.subtype)
                && is_within(Some(at), filter.created_after, filter.created_before)
                && filter.payload_contains.as_ref().is_none_or(|text| {
                    let payload = event.payload.as_ref();
                    payload.is_some_and(|payload| paging::payload_contains(payload, text))
                })
                && (filter.scope_id.is_none() || filter.scope_id == event.keys.scope_id)
                && (filter.parent_scope_id.is_none()
                    || filter.parent_scope_id == event.keys.parent_scope_id)
                && !(filter.root_scopes_only && event.keys.parent_scope_id.is_some())
        });
        let found = matching.map(|(_, stored)| stored).collect();
        let size = |row: &StoredEvent| row.payload.as_ref().map_or(0, Bytes::len);
        cut_numbered(found, filter.ascending, page, |row| row.seq, size)
    }
}
