//! What is silent for too long, and what outlives its deadline.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use runtara_domain::{Change, InstanceId, Refusal, limits};
use sqlx::postgres::PgRow;

use crate::Overdue;

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::{Answer, Fault};
use super::{instances, row};

/// How many instances are ended at once: thousands may be over at the same moment, and each is a change of its own.
const AT_ONCE: usize = 8;

/// Instances whose deadline is over, along `runtara_instances_expires`.
pub(super) const OVER: &str = "select instance_id from runtara_instances
      where expires_at is not null and expires_at <= runtara_now() and status in ('pending', 'running', 'suspended')
      order by expires_at, instance_id limit $1";

/// How long it is until the next one is over, along the same index.
pub(super) const NEXT_OVER: &str =
    "select greatest(expires_at - runtara_now(), 0) from runtara_instances
      where expires_at is not null and status in ('pending', 'running', 'suspended')
      order by expires_at, instance_id limit 1";

/// Instances that registered themselves and were not heard of for so long, along `runtara_instances_self`. What is held without an end is
/// alive.
pub(super) const SILENT: &str = "select instance_id from runtara_instances
      where origin = 'self_registered' and status = 'running' and not (held and hold_until is null)
        and greatest(claimed_at, case when spoke then last_seen_at end, case when held then hold_until end)
            <= runtara_now() - $1
        and not exists (select from runtara_nodes
                         where lease_until between runtara_now() - $1 and runtara_now()
                            or registered_at > runtara_now() - $1)
      order by instance_id limit $2";

/// Ends what has outlived its deadline.
pub(super) async fn expire(store: &PostgresStore, limit: u32) -> Answer<Overdue> {
    let rows = sqlx::query(OVER)
        .bind(i64::from(limit))
        .all_on(&store.connections)
        .await?;
    let instances = end_each(store, &rows, &Change::Expire).await?;
    let next_in_ms: Option<i64> = sqlx::query_scalar(NEXT_OVER)
        .optional_on(&store.connections)
        .await?;
    Ok(Overdue {
        instances,
        next_in_ms: next_in_ms.map(row::unsigned),
    })
}

/// Ends what registered itself and was not heard of any more.
pub(super) async fn lapse(
    store: &PostgresStore,
    timeout_ms: u64,
    limit: u32,
) -> Answer<Vec<InstanceId>> {
    let allowed = timeout_ms.saturating_add(limits::SIGN_OF_LIFE_MS);
    let rows = sqlx::query(SILENT)
        .bind(row::signed(allowed).min(i64::MAX / 4))
        .bind(i64::from(limit))
        .all_on(&store.connections)
        .await?;
    end_each(store, &rows, &Change::Lapse { timeout_ms }).await
}

/// Applies a change to each of these instances, and says to which it still applied.
async fn end_each(
    store: &PostgresStore,
    rows: &[PgRow],
    change: &Change,
) -> Answer<Vec<InstanceId>> {
    let ids = rows
        .iter()
        .map(row::instance_id)
        .collect::<Answer<Vec<_>>>()?;
    let ended = stream::iter(ids).map(|id| async move {
        match instances::change(store, &id, change.clone()).await {
            Ok(changed) => Ok(changed.applied.then_some(id)),
            Err(Fault::Refused(Refusal::InstanceUnknown)) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let ended: Vec<_> = ended.buffered(AT_ONCE).try_collect().await?;
    Ok(ended.into_iter().flatten().collect())
}
