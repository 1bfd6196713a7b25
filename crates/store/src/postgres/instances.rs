//! Instances: what is asked of them, and what is kept of them.

use bytes::Bytes;
use runtara_domain::{
    Change, Due, ImageId, InstanceId, InstanceState, Labels, NewInstance, Refusal, SignalId,
    TenantId, Timestamp, limits, transition,
};
use runtara_failpoints::{Point, pass};

use crate::removal::PIECE;
use crate::{Changed, InstanceRecord, InstanceValues, Started};

use sqlx::postgres::PgRow;

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::{Answer, Fault};
use super::removal;
use super::row::{self, state_columns};
use super::write::{Loaded, SignalPlace, TRIES, Write, loaded_columns, write};

/// Starts an instance: its row, its labels and its input in one statement, which also holds the image against deletion.
pub(super) async fn start(store: &PostgresStore, new: NewInstance) -> Answer<Started> {
    // Between two looks the instance of that id may be removed; then the start is tried again.
    for _ in 0..TRIES {
        if let Some(now) = insert(store, &new).await? {
            let state = InstanceState::started(&new, now);
            store.after(&state);
            return Ok(Started::New(Box::new(state)));
        }
        if let Some(found) = find_same(store, &new).await? {
            return Ok(found);
        }
        if !is_startable(store, &new.image_id, &new.tenant_id).await? {
            return Ok(Started::ImageNotFound);
        }
        if let Some(allowed) = new.pending_allowed {
            let pending = pending_of(store, &new.tenant_id, allowed).await?;
            if pending >= allowed {
                return Ok(Started::TooManyPending { pending });
            }
        }
        removal::remove_remains(store, Some(&new.instance_id), PIECE).await?;
    }
    Err(Fault::Contended)
}

/// How many instances of a tenant are pending, counted a little beyond what is allowed.
async fn pending_of(store: &PostgresStore, tenant: &TenantId, allowed: u64) -> Answer<u64> {
    let count: i64 = sqlx::query_scalar(
        "select count(*) from (select from runtara_instances where tenant_id = $1 and status = 'pending' limit $2) p",
    )
    .bind(tenant.as_str())
    .bind(row::signed(allowed.saturating_add(1_000)).min(i64::MAX / 4))
    .one_on(&store.connections)
    .await?;
    Ok(row::unsigned(count))
}

/// The statement of a start. The literal is a further condition: where none is needed nothing is counted.
macro_rules! start {
    ($condition:literal) => {
        concat!(
            "with image as (
             select image_id, kind from runtara_images
              where image_id = $2 and tenant_id = $3 and deleted_at is null
                and not exists (select from runtara_instances where instance_id = $1)
                and not exists (select from runtara_removals where instance_id = $1)",
            $condition,
            "
                for key share
         ),
         made as (
             insert into runtara_instances
                    (instance_id, tenant_id, image_id, runner_kind, origin, status, due_at, max_attempts, timeout_ms,
                     request_timeout_ms, created_at, heartbeat_timeout_ms, expires_at)
             select $1, $3, image_id, kind, 'launched', 'pending', coalesce($4, runtara_now() + $13), $5, $6, $7, runtara_now(), $15, coalesce($16, runtara_now() + $17)
               from image
             on conflict (instance_id) do nothing
             returning instance_id, created_at
         ),
         brought as (
             insert into runtara_instance_inputs (instance_id, input, env, args, settings, max_events)
             select instance_id, $8, $9, $10, $14, $18 from made
         ),
         labelled as (
             insert into runtara_instance_labels (instance_id, key, value)
             select instance_id, l.key, l.value from made, unnest($11::text[], $12::text[]) as l (key, value)
         )
         select created_at from made"
        )
    };
}

const START: &str = start!("");
/// The same where so many instances of the tenant may be pending, along `runtara_instances_tenant_status_created`.
const START_LIMITED: &str = start!(
    "
                and (select count(*) from (select from runtara_instances p
                                            where p.tenant_id = $3 and p.status = 'pending' limit $19) p) < $19"
);

async fn insert(store: &PostgresStore, new: &NewInstance) -> Answer<Option<Timestamp>> {
    let (keys, values) = label_arrays(&new.labels);
    let (due_at, delay_ms) = match new.due {
        Due::At(at) => (Some(at.0), 0),
        Due::After(millis) => (None, row::signed(millis.min(limits::SLEEP_MAX_MS))),
    };
    let (expires_at, expires_in_ms) = match new.expires {
        Some(Due::At(at)) => (Some(at.0), None),
        Some(Due::After(millis)) => (None, Some(row::signed(millis.min(limits::SLEEP_MAX_MS)))),
        None => (None, None),
    };
    let statement = match new.pending_allowed {
        None => START,
        Some(_) => START_LIMITED,
    };
    let statement = sqlx::query_scalar(statement)
        .bind(new.instance_id.as_str())
        .bind(new.image_id.as_str())
        .bind(new.tenant_id.as_str())
        .bind(due_at)
        .bind(new.max_attempts.map(row::stored_small))
        .bind(row::signed(new.timeout_ms))
        .bind(new.request_timeout_ms.map(row::signed))
        .bind(&*new.input)
        .bind(row::json_text(&new.env, new.env.is_empty())?)
        .bind(row::json_text(&new.args, new.args.is_empty())?)
        .bind(keys)
        .bind(values)
        .bind(delay_ms)
        .bind(row::json_text(&new.settings, new.settings.is_empty())?)
        .bind(new.heartbeat_timeout_ms.map(row::signed))
        .bind(expires_at)
        .bind(expires_in_ms)
        .bind(new.max_events.map(row::stored_small));
    let statement = match new.pending_allowed {
        None => statement,
        Some(allowed) => statement.bind(row::signed(allowed)),
    };
    let now: Option<i64> = statement.optional_on(&store.connections).await?;
    pass(Point::StoreCommitted);
    Ok(now.map(Timestamp))
}

/// Labels as two arrays of one length.
pub(super) fn label_arrays(labels: &Labels) -> (Vec<String>, Vec<String>) {
    labels
        .iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .unzip()
}

/// The instance that already has this id, compared with the start where it is stored: inputs may be large.
async fn find_same(store: &PostgresStore, new: &NewInstance) -> Answer<Option<Started>> {
    let found = sqlx::query(concat!(
        "select ", state_columns!(), ", coalesce(b.input = $2, false) as same_input
           from runtara_instances i left join runtara_instance_inputs b on b.instance_id = i.instance_id
          where i.instance_id = $1"
    ))
    .bind(new.instance_id.as_str())
    .bind(&*new.input)
    .optional_on(&store.connections)
    .await?;
    let Some(found) = found else {
        return Ok(None);
    };
    let state = row::state(&found)?;
    let same_tenant = state.tenant_id == new.tenant_id;
    let same = same_tenant
        && state.image_id.as_ref() == Some(&new.image_id)
        && row::get(&found, "same_input")?;
    Ok(Some(if same {
        Started::Same(Box::new(state))
    } else {
        Started::Taken { same_tenant }
    }))
}

async fn is_startable(store: &PostgresStore, image: &ImageId, tenant: &TenantId) -> Answer<bool> {
    let found = sqlx::query_scalar(
        "select exists (
             select from runtara_images where image_id = $1 and tenant_id = $2 and deleted_at is null)",
    )
    .bind(image.as_str())
    .bind(tenant.as_str())
    .one_on(&store.connections)
    .await?;
    Ok(found)
}

/// Reads an instance to change it.
pub(super) async fn load(store: &PostgresStore, id: &InstanceId) -> Answer<Loaded> {
    let found = sqlx::query(concat!(
        "select ",
        loaded_columns!(),
        " from runtara_instances i where i.instance_id = $1"
    ))
    .bind(id.as_str())
    .optional_on(&store.connections)
    .await?;
    Loaded::of(&found.ok_or(Refusal::InstanceUnknown)?)
}

/// Applies a change that brings nothing of its own.
pub(super) async fn change(
    store: &PostgresStore,
    id: &InstanceId,
    change: Change,
) -> Answer<Changed> {
    if let Change::Claim { .. } | Change::Call(..) | Change::SignalArrived { .. } = change {
        return Err(Fault::Misplaced);
    }
    for _ in 0..TRIES {
        let loaded = load(store, id).await?;
        let state = &loaded.state;
        let decided = transition(state, &change, loaded.now)?;
        if change == Change::Resume && !has_image(store, state).await? {
            return Err(Refusal::NoImage.into());
        }
        if !decided.applied {
            return Ok(Changed {
                state: decided.state,
                applied: false,
            });
        }
        if write(&store.connections, &loaded, &Write::of(&decided)).await? {
            store.after(&decided.state);
            return Ok(Changed {
                state: decided.state,
                applied: true,
            });
        }
    }
    Err(Fault::Contended)
}

/// Whether the image of an instance can still be launched.
async fn has_image(store: &PostgresStore, state: &InstanceState) -> Answer<bool> {
    let found =
        sqlx::query_scalar("select exists (select from runtara_images where image_id = $1)")
            .bind(state.image_id.as_ref().map(ImageId::as_str))
            .one_on(&store.connections)
            .await?;
    Ok(found)
}

/// Keeps a custom signal, in place of those of its id that the current run may still read. What it has read is kept beside it: what
/// the run did with that may not be saved yet.
pub(super) async fn send_signal(
    store: &PostgresStore,
    id: &InstanceId,
    signal_id: &SignalId,
    payload: Option<Bytes>,
) -> Answer<()> {
    let arrived = Change::SignalArrived {
        signal_id: signal_id.clone(),
    };
    for _ in 0..TRIES {
        let found = sqlx::query(concat!(
            "select ",
            loaded_columns!(),
            ",
                    (select max(s.n) from runtara_signals s
                      where s.instance_id = i.instance_id and s.signal_id = $2) as newest
               from runtara_instances i where i.instance_id = $1"
        ))
        .bind(id.as_str())
        .bind(signal_id.as_str())
        .optional_on(&store.connections)
        .await?
        .ok_or(Refusal::InstanceUnknown)?;
        let loaded = Loaded::of(&found)?;
        let decided = transition(&loaded.state, &arrived, loaded.now)?;
        let newest: Option<i32> = row::get(&found, "newest")?;
        let place = SignalPlace {
            signal_id: signal_id.as_str().to_owned(),
            n: newest.unwrap_or(0) + 1,
            request_id: None,
        };
        let mut sent = Write::of(&decided);
        sent.send = Some((place, payload.clone()));
        if write(&store.connections, &loaded, &sent).await? {
            store.after(&decided.state);
            return Ok(());
        }
    }
    Err(Fault::Contended)
}

macro_rules! record_columns {
    () => {
        concat!(
            state_columns!(),
            ", runtara_now() as now, m.name as image_name,
                (select json_object_agg(l.key, l.value)::text
                   from runtara_instance_labels l where l.instance_id = i.instance_id) as labels"
        )
    };
}

fn record_of(found: &PgRow) -> Answer<InstanceRecord> {
    let state = row::state(found)?;
    Ok(InstanceRecord {
        time_in_states: state.time_in_states_by(Timestamp(row::get(found, "now")?)),
        state,
        image_name: row::get(found, "image_name")?,
        labels: row::labels(found)?,
    })
}

/// An instance without its large values, by its primary key.
pub(super) async fn record(
    store: &PostgresStore,
    id: &InstanceId,
) -> Answer<Option<InstanceRecord>> {
    let found = sqlx::query(concat!(
        "select ",
        record_columns!(),
        " from runtara_instances i left join runtara_images m on m.image_id = i.image_id
          where i.instance_id = $1"
    ))
    .bind(id.as_str())
    .optional_on(&store.connections)
    .await?;
    found.as_ref().map(record_of).transpose()
}

/// An instance, and if it has ended its large values, by primary keys.
pub(super) async fn record_at_its_end(
    store: &PostgresStore,
    id: &InstanceId,
) -> Answer<Option<(InstanceRecord, Option<InstanceValues>)>> {
    let found = sqlx::query(concat!(
        "select ",
        record_columns!(),
        ", v.input, v.output, v.error, v.stderr
           from runtara_instances i
           left join runtara_images m on m.image_id = i.image_id
           left join lateral (
                select b.input, r.output, r.error, r.stderr
                  from (select) one
                  left join runtara_instance_inputs b on b.instance_id = i.instance_id
                  left join runtara_instance_results r on r.instance_id = i.instance_id
                 where i.status in ('completed', 'failed', 'cancelled')) v on true
          where i.instance_id = $1"
    ))
    .bind(id.as_str())
    .optional_on(&store.connections)
    .await?;
    let Some(found) = found else {
        return Ok(None);
    };
    let record = record_of(&found)?;
    let ended = record.state.status.is_end();
    let values = ended.then(|| values_of(&found)).transpose()?;
    Ok(Some((record, values)))
}

fn values_of(found: &PgRow) -> Answer<InstanceValues> {
    Ok(InstanceValues {
        input: row::bytes(found, "input")?,
        output: row::bytes(found, "output")?,
        error: row::get(found, "error")?,
        stderr: row::get(found, "stderr")?,
    })
}

/// The large values of an instance, by primary keys.
pub(super) async fn values(
    store: &PostgresStore,
    id: &InstanceId,
) -> Answer<Option<InstanceValues>> {
    let found = sqlx::query(
        "select b.input, r.output, r.error, r.stderr
           from runtara_instances i
           left join runtara_instance_inputs b on b.instance_id = i.instance_id
           left join runtara_instance_results r on r.instance_id = i.instance_id
          where i.instance_id = $1",
    )
    .bind(id.as_str())
    .optional_on(&store.connections)
    .await?;
    found.as_ref().map(values_of).transpose()
}

/// The input of an instance, by primary keys.
pub(super) async fn input(store: &PostgresStore, id: &InstanceId) -> Answer<Option<Option<Bytes>>> {
    let found = sqlx::query(
        "select b.input
           from runtara_instances i left join runtara_instance_inputs b on b.instance_id = i.instance_id
          where i.instance_id = $1",
    )
    .bind(id.as_str())
    .optional_on(&store.connections)
    .await?;
    found.map(|found| row::bytes(&found, "input")).transpose()
}
