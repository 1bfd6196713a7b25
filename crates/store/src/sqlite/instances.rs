//! What is asked of instances from outside.

use bytes::Bytes;
use runtara_domain::{
    Change, InstanceId, InstanceState, Labels, NewInstance, Refusal, SignalId, Status, TenantId,
    Timestamp, transition,
};

use super::failure::{broken, broken_by};
use super::sql::{Columns, Question, Sql, json_text};
use super::state::{insert, load, read_with, state_columns};
use super::tx::{After, Tx};
use super::write::Write;
use crate::{Changed, InstanceRecord, InstanceValues, Started, StoreResult};

pub(super) const FIND_FOR_START: &str = concat!(
    "select m.kind, n.input, ",
    state_columns!(),
    " from (select 1) \
     left join runtara_instances i on i.instance_id = ? \
     left join runtara_inputs n on n.instance = i.id \
     left join runtara_images m on m.image_id = ? and m.tenant_id = ? and m.deleted = 0"
);

/// Makes the row of an instance, its input and its labels, unless its id is taken.
pub(super) fn start(tx: &mut Tx, new: NewInstance) -> StoreResult<Started> {
    let mut sql = Sql::new(FIND_FOR_START);
    sql.bind(new.instance_id.as_str())
        .bind(new.image_id.as_str())
        .bind(new.tenant_id.as_str());
    let row = tx.row(&sql, "looking before a start")?;
    let row = row.ok_or_else(|| broken("a question that always has a row had none"))?;
    let mut columns = Columns::of(&row);
    let kind = columns.opt_text()?;
    let input = columns.opt_bytes()?;
    if columns.peek_is_some()? {
        let found = super::state::read_state(&mut columns)?.state;
        return Ok(same_or_taken(found, input.as_ref(), &new));
    }
    let Some(kind) = kind else {
        return Ok(Started::ImageNotFound);
    };
    if let Some(allowed) = new.pending_allowed {
        let pending = tx.instances_of(&new.tenant_id, Status::Pending)?;
        if pending >= allowed {
            return Ok(Started::TooManyPending { pending });
        }
    }
    let state = InstanceState::started(&new, tx.now);
    let mut sql = Sql::default();
    insert(
        &mut sql,
        &state,
        Some(&kind),
        json_text(&new.labels, new.labels.is_empty())?.as_deref(),
    );
    sql.then(
        "insert into runtara_inputs (instance, input, env, args, settings, max_events) \
         values (last_insert_rowid(), ?, ?, ?, ?, ?)",
    )
    .bind_bytes(Some(&new.input))
    .bind(json_text(&new.env, new.env.is_empty())?)
    .bind(json_text(&new.args, new.args.is_empty())?)
    .bind(json_text(&new.settings, new.settings.is_empty())?)
    .bind(new.max_events);
    label(&mut sql, &state, &new.labels);
    tx.execute(sql)?;
    tx.came(&state);
    tx.nudge_after(After::Made(Box::new(state.clone())));
    Ok(Started::New(Box::new(state)))
}

fn same_or_taken(found: InstanceState, input: Option<&Bytes>, new: &NewInstance) -> Started {
    let same_tenant = found.tenant_id == new.tenant_id;
    if same_tenant && found.image_id.as_ref() == Some(&new.image_id) && input == Some(&new.input) {
        Started::Same(Box::new(found))
    } else {
        Started::Taken { same_tenant }
    }
}

fn label(sql: &mut Sql, state: &InstanceState, labels: &Labels) {
    for (key, value) in labels.iter() {
        sql.then(
            "insert into runtara_instance_labels (tenant_id, key, value, created_at, instance_id) \
             values (?, ?, ?, ?, ?)",
        )
        .bind(state.tenant_id.as_str())
        .bind(key)
        .bind(value)
        .bind_time(state.created_at)
        .bind(state.instance_id.as_str());
    }
}

/// Applies one of the changes that stand for themselves.
pub(super) fn change(tx: &mut Tx, id: &InstanceId, change: &Change) -> StoreResult<Changed> {
    let found = load(tx, id)?;
    let found = found.ok_or(Refusal::InstanceUnknown)?;
    let next = transition(&found.state, change, tx.now)?;
    if matches!(change, Change::Resume) && !has_image(tx, &found.state)? {
        return Err(Refusal::NoImage.into());
    }
    let applied = next.applied;
    let written = Write::new(&found, next, tx.now).run(tx)?;
    Ok(Changed {
        state: written.state.clone(),
        applied,
    })
}

fn has_image(tx: &mut Tx, state: &InstanceState) -> StoreResult<bool> {
    let Some(image_id) = &state.image_id else {
        return Ok(false);
    };
    let mut sql = Sql::new("select 1 from runtara_images where image_id = ?");
    sql.bind(image_id.as_str());
    let row = tx.row(&sql, "looking for an image")?;
    Ok(row.is_some())
}

/// Keeps a custom signal, and makes the instance due if it waits for it.
pub(super) fn send_signal(
    tx: &mut Tx,
    id: &InstanceId,
    signal_id: &SignalId,
    payload: Option<Bytes>,
) -> StoreResult<()> {
    let found = load(tx, id)?;
    let found = found.ok_or(Refusal::InstanceUnknown)?;
    let arrived = Change::SignalArrived {
        signal_id: signal_id.clone(),
    };
    let mut next = transition(&found.state, &arrived, tx.now)?;
    // The signal itself is a change, whether the instance waits for it or not.
    next.applied = true;
    let mut write = Write::new(&found, next, tx.now);
    write.keep_signal(signal_id.as_str(), payload.as_ref());
    write.run(tx)?;
    Ok(())
}

/// Makes an instance that registers itself: its row, without an image or an input.
pub(super) fn make_self_registered(
    tx: &mut Tx,
    id: &InstanceId,
    tenant: &TenantId,
) -> StoreResult<()> {
    let state = InstanceState::self_registered(id.clone(), tenant.clone(), tx.now);
    let mut sql = Sql::default();
    insert(&mut sql, &state, None, None);
    tx.execute(sql)?;
    tx.came(&state);
    Ok(())
}

/// An instance with the name of its image and its labels.
pub(super) fn record(id: &InstanceId, now: Timestamp) -> Question<Option<InstanceRecord>> {
    const FIND: &str = concat!(
        "select ",
        state_columns!(),
        ", i.labels, m.name from runtara_instances i \
         left join runtara_images m on m.image_id = i.image_id where i.instance_id = ?"
    );
    let mut sql = Sql::new(FIND);
    sql.bind(id.as_str());
    Question::new(sql, "loading an instance", move |row| {
        let Some(row) = row else {
            return Ok(None);
        };
        let (found, mut columns) = read_with(row)?;
        Ok(Some(InstanceRecord {
            time_in_states: found.state.time_in_states_by(now),
            state: found.state,
            labels: columns.json()?,
            image_name: columns.opt_text()?,
        }))
    })
}

/// The large values of an instance.
pub(super) fn values(id: &InstanceId) -> Question<Option<InstanceValues>> {
    let mut sql = Sql::new(
        "select n.input, r.output, r.error, r.stderr from runtara_instances i \
         left join runtara_inputs n on n.instance = i.id \
         left join runtara_results r on r.instance = i.id where i.instance_id = ?",
    );
    sql.bind(id.as_str());
    Question::new(sql, "loading the values of an instance", |row| {
        let Some(row) = row else {
            return Ok(None);
        };
        let mut columns = Columns::of(row);
        Ok(Some(InstanceValues {
            input: columns.opt_bytes()?,
            output: columns.opt_bytes()?,
            error: columns.opt_text()?,
            stderr: columns.opt_text()?,
        }))
    })
}

/// The input of an instance.
pub(super) fn input(id: &InstanceId) -> Question<Option<Option<Bytes>>> {
    let mut sql = Sql::new(
        "select n.input from runtara_instances i \
         left join runtara_inputs n on n.instance = i.id where i.instance_id = ?",
    );
    sql.bind(id.as_str());
    Question::new(sql, "loading the input of an instance", |row| {
        row.map(|row| Columns::of(row).opt_bytes()).transpose()
    })
}

/// Refuses the changes that bring more with them than a state: they have methods of their own.
pub(super) fn check_stands_alone(change: &Change) -> StoreResult<()> {
    match change {
        Change::Cancel { .. }
        | Change::Pause { .. }
        | Change::Resume
        | Change::Stop { .. }
        | Change::Silent { .. }
        | Change::Lapse { .. }
        | Change::Expire
        | Change::Exit { .. } => Ok(()),
        Change::Claim { .. } | Change::Call(..) | Change::SignalArrived { .. } => Err(broken_by(
            "applying a change",
            "claims, calls and arriving signals have methods of their own",
        )),
    }
}
