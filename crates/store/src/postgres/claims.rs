//! Runs: who takes what is due, and what is recorded as live.

use runtara_domain::{InstanceId, Liveness, NodeId, RunnerKind, Timestamp, TokenHash};
use sqlx::postgres::PgRow;

use crate::{CLAIMED_INPUT_BYTES, Claim, ClaimedRun, LiveRun, NextDue, TokenOwner};

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::{Answer, Fault};
use super::limited;
use super::row::{self, image_columns, last_checkpoint};

/// How long an instance `i` has stood where it stands.
macro_rules! time_in_status {
    () => {
        "greatest(runtara_now() - coalesce(i.status_since, i.created_at), 0)"
    };
}

/// Whether the node of a claim may claim at all: asked in the claim's own statement, whatever was true before it.
macro_rules! may_claim {
    () => {
        "exists (select from runtara_nodes
                         where node_id = $1 and lease_until > runtara_now() and drain_by is null and not removed)"
    };
}

/// Who has something that is due now or later, hopping from tenant to tenant along `runtara_instances_tenant_due`.
macro_rules! tenants_hopped {
    () => {
        "recursive tenants as (
         (select tenant_id from runtara_instances
           where due_at is not null and live_node is null
           order by tenant_id limit 1)
         union all
         select (select i.tenant_id from runtara_instances i
                  where i.due_at is not null and i.live_node is null and i.tenant_id > t.tenant_id
                  order by i.tenant_id limit 1)
           from tenants t where t.tenant_id is not null
     )"
    };
}

/// Everything that the claim of a row writes: `Change::Claim` of the domain. What is picked says itself that the node may claim: that is
/// asked in the same statement, so that a node that was held up between its last renewal and its claim gets nothing.
///
/// Parameters: node, tokens, largest input.
macro_rules! claim_picked {
    ([$($picked:tt)+]) => {
        claim_picked!(
            [$($picked)+],
            "",
            "claimed c
               join runtara_images m on m.image_id = c.image_id"
        )
    };
    ([$($picked:tt)+], $columns:literal, $claimed:literal) => {
        concat!(
            "with ",
            $($picked)+,
            ",
             numbered as (
                 select instance_id, due_at, row_number() over (order by due_at, instance_id) as n from picked
             ),
             claimed as (
                 update runtara_instances i
                    set version = i.version + 1, status = 'running', reason = null, due_at = null, waiting_for = null,
                        live_node = $1, run_number = i.run_number + 1,
                        started_at = coalesce(i.started_at, runtara_now()),
                        token_hash = t.token_hash, claimed_at = runtara_now(),
                        spoke = false, heartbeat_seen = false, stored_new = false, cancel_shown = false,
                        pause_shown = false, leave_by = null, asked_to_leave = false, held = false,
                        hold_until = null, hold_park = false, slept_ms = 0, status_since = runtara_now(),
                        pending_time_ms = i.pending_time_ms
                            + case when i.status = 'pending' then ", time_in_status!(), " else 0 end,
                        suspended_time_ms = i.suspended_time_ms
                            + case when i.status = 'suspended' then ", time_in_status!(), " else 0 end
                   from numbered p join unnest($2::bytea[]) with ordinality as t (token_hash, n) on t.n = p.n
                  where i.instance_id = p.instance_id
              returning i.instance_id, i.tenant_id as owner, i.image_id, i.run_number, i.token_hash, ",
            last_checkpoint!(),
            " as checkpoint_id,
                        i.timeout_ms, i.heartbeat_timeout_ms, case when i.expires_at is not null then greatest(i.expires_at - runtara_now(), 0) end as expires_in_ms, p.due_at, p.n
             )
             select c.instance_id, c.owner, c.run_number, c.token_hash, c.checkpoint_id, c.timeout_ms, c.heartbeat_timeout_ms, c.expires_in_ms, c.due_at,
                    case when length(b.input) <= $3 then b.input end as input, b.env, b.args, b.settings, ",
            image_columns!(),
            $columns,
            "  from ",
            $claimed,
            "
               left join runtara_instance_inputs b on b.instance_id = c.instance_id
              order by c.n"
        )
    };
}

/// Plain claim: the oldest due times, whoever owns them. Index `runtara_instances_due`.
pub(super) const CLAIM: &str = claim_picked!([
    "picked as (
         select instance_id, due_at from runtara_instances
          where due_at <= runtara_now() and live_node is null and runner_kind = any($4::text[])
            and ",
    may_claim!(),
    "
            and (expires_at is null or expires_at > runtara_now())
          order by due_at, instance_id
          limit cardinality($2::bytea[])
            for update skip locked
     )"
]);

/// Claim that leaves out tenants. It hops from tenant to tenant along `runtara_instances_tenant_due`, so that a tenant with a
/// million due instances costs no more than one with a single one, and takes the oldest of each.
pub(super) const CLAIM_WITHOUT: &str = claim_picked!(
    [tenants_hopped!(), ",
     candidates as (
         select due.instance_id
           from (select tenant_id from tenants where tenant_id <> all($5::text[]) limit 10000) t
          cross join lateral (
               select i.instance_id, i.due_at from runtara_instances i
                where i.tenant_id = t.tenant_id and i.due_at <= runtara_now() and i.live_node is null
                  and i.runner_kind = any($4::text[]) and (i.expires_at is null or i.expires_at > runtara_now())
                order by i.due_at, i.instance_id
                limit cardinality($2::bytea[])) due
          order by due.due_at, due.instance_id
          limit 2 * cardinality($2::bytea[])
     ),
     picked as (
         select i.instance_id, i.due_at
           from runtara_instances i
          where i.instance_id = any(array(select instance_id from candidates))
            and i.due_at <= runtara_now() and i.live_node is null
            and ", may_claim!(), "
            and (i.expires_at is null or i.expires_at > runtara_now())
          order by i.due_at, i.instance_id
          limit cardinality($2::bytea[])
            for update skip locked
     )"]
);

/// Claim of which each tenant has only so many run at once (`$5`): of the first that are due it takes, in their order, those for which there is
/// room. The first row says how many it has looked at.
pub(super) const CLAIM_WITHIN: &str = claim_picked!(
    ["due as (
         select instance_id, tenant_id, due_at from runtara_instances
          where due_at <= runtara_now() and live_node is null and runner_kind = any($4::text[])
            and (expires_at is null or expires_at > runtara_now())
          order by due_at, instance_id
          limit 4 * cardinality($2::bytea[])
     ),
     rooms as (
         select t.tenant_id,
                $5::bigint - (select count(*) from (select from runtara_instances r
                                                     where r.tenant_id = t.tenant_id and r.status = 'running' limit $5) r)
                    as room
           from (select distinct tenant_id from due) t
     ),
     allowed as (
         select d.instance_id
           from (select *, row_number() over (partition by tenant_id order by due_at, instance_id) as nth from due) d
           join rooms r on r.tenant_id = d.tenant_id and d.nth <= r.room
          order by d.due_at, d.instance_id
          limit cardinality($2::bytea[])
     ),
     picked as (
         select i.instance_id, i.due_at
           from runtara_instances i
          where i.instance_id = any(array(select instance_id from allowed))
            and i.due_at <= runtara_now() and i.live_node is null
            and ", may_claim!(), "
          order by i.due_at, i.instance_id
            for update skip locked
     )"],
    ", s.seen",
    "(select count(*) as seen from due) s
       left join claimed c on true
       left join runtara_images m on m.image_id = c.image_id"
);

/// The same where more is due than that looks at: it hops from tenant to tenant as `CLAIM_WITHOUT` does, so that a tenant that has no room is
/// left out with all it has.
pub(super) const CLAIM_WITHIN_WITHOUT: &str = claim_picked!(
    [tenants_hopped!(), ",
     candidates as (
         select due.instance_id
           from (select tenant_id from tenants where tenant_id <> all($5::text[]) limit 10000) t
          cross join lateral (
               select i.instance_id, i.due_at from runtara_instances i
                where i.tenant_id = t.tenant_id and i.due_at <= runtara_now() and i.live_node is null
                  and i.runner_kind = any($4::text[]) and (i.expires_at is null or i.expires_at > runtara_now())
                order by i.due_at, i.instance_id
                limit least(cardinality($2::bytea[]),
                            $6::bigint - (select count(*) from (select from runtara_instances r
                                                                 where r.tenant_id = t.tenant_id and r.status = 'running'
                                                                 limit $6) r))) due
          order by due.due_at, due.instance_id
          limit cardinality($2::bytea[])
     ),
     picked as (
         select i.instance_id, i.due_at
           from runtara_instances i
          where i.instance_id = any(array(select instance_id from candidates))
            and i.due_at <= runtara_now() and i.live_node is null
            and ", may_claim!(), "
          order by i.due_at, i.instance_id
            for update skip locked
     )"]
);

pub(super) fn words(kinds: &[RunnerKind]) -> Vec<&'static str> {
    kinds.iter().map(|kind| kind.as_str()).collect()
}

/// Claims what is due in one statement: no two claimers lock one row, and a locked row is passed over.
pub(super) async fn claim(store: &PostgresStore, claim: Claim) -> Answer<Vec<ClaimedRun>> {
    if claim.tokens.is_empty() || claim.kinds.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(allowed) = claim.running_allowed {
        return limited::claim(store, claim, allowed).await;
    }
    let plain = claim.without_tenants.is_empty();
    let tokens: Vec<Vec<u8>> = claim.tokens.iter().map(|token| token.0.to_vec()).collect();
    let mut statement = sqlx::query(if plain { CLAIM } else { CLAIM_WITHOUT })
        .bind(claim.node.to_string())
        .bind(tokens)
        .bind(i32::try_from(CLAIMED_INPUT_BYTES).unwrap_or(i32::MAX))
        .bind(words(&claim.kinds));
    if !plain {
        let without = claim
            .without_tenants
            .iter()
            .map(|tenant| tenant.as_str().to_owned());
        statement = statement.bind(without.collect::<Vec<_>>());
    }
    let rows = statement.all_on(&store.connections).await?;
    let claimed: Vec<_> = rows.iter().map(claimed).collect::<Answer<_>>()?;
    for run in &claimed {
        store.nudges.claimed(&run.instance_id);
    }
    Ok(claimed)
}

pub(super) fn claimed(found: &PgRow) -> Answer<ClaimedRun> {
    Ok(ClaimedRun {
        token: required_token(found)?,
        instance_id: row::instance_id(found)?,
        tenant_id: runtara_domain::TenantId::new(row::get::<&str>(found, "owner")?)?,
        run_number: row::run_number(found, "run_number")?,
        due_at: Timestamp(row::get(found, "due_at")?),
        image: row::image(found)?,
        input: row::bytes(found, "input")?,
        env: row::json(found, "env")?,
        args: row::json(found, "args")?,
        settings: row::json(found, "settings")?,
        checkpoint_id: row::checkpoint_id(found)?,
        timeout_ms: row::unsigned(row::get(found, "timeout_ms")?),
        heartbeat_timeout_ms: row::get::<Option<i64>>(found, "heartbeat_timeout_ms")?
            .map(row::unsigned),
        expires_in_ms: row::get::<Option<i64>>(found, "expires_in_ms")?.map(row::unsigned),
    })
}

fn required_token(found: &PgRow) -> Answer<TokenHash> {
    row::token(found, "token_hash")?
        .ok_or_else(|| Fault::Stored("a live run has no token".to_owned()))
}

/// How long until something is due, along `runtara_instances_due`.
pub(super) async fn next_due(store: &PostgresStore, kinds: &[RunnerKind]) -> Answer<NextDue> {
    let in_ms: Option<i64> = sqlx::query_scalar(
        "select greatest(due_at - runtara_now(), 0) from runtara_instances
          where due_at is not null and live_node is null and runner_kind = any($1::text[])
          order by due_at, instance_id limit 1",
    )
    .bind(words(kinds))
    .optional_on(&store.connections)
    .await?;
    Ok(NextDue {
        in_ms: in_ms.map(row::unsigned),
    })
}

/// How long until something is due that is not yet, along `runtara_instances_due`.
pub(super) async fn next_due_later(store: &PostgresStore, kinds: &[RunnerKind]) -> Answer<NextDue> {
    let in_ms: Option<i64> = sqlx::query_scalar(
        "select due_at - runtara_now() from runtara_instances
          where due_at > runtara_now() and live_node is null and runner_kind = any($1::text[])
          order by due_at, instance_id limit 1",
    )
    .bind(words(kinds))
    .optional_on(&store.connections)
    .await?;
    Ok(NextDue {
        in_ms: in_ms.map(row::unsigned),
    })
}

macro_rules! live_columns {
    () => {
        "select instance_id, run_number, token_hash, runner_kind::text as runner_kind, live_node, status::text as status,
                case when leave_by is not null then greatest(leave_by - runtara_now(), 0) end as leave_in_ms, asked_to_leave, slept_ms,
                heartbeat_timeout_ms, claimed_at, case when spoke then last_seen_at end as seen_at, held,
                case when held then hold_until end as held_until, runtara_now() as now
           from runtara_instances"
    };
}

fn live(found: &PgRow) -> Answer<LiveRun> {
    let missing = |what: &str| Fault::Stored(format!("a live run has no {what}"));
    let liveness = Liveness {
        status: row::status(found)?,
        heartbeat_timeout_ms: row::get::<Option<i64>>(found, "heartbeat_timeout_ms")?
            .map(row::unsigned),
        claimed_at: row::time(found, "claimed_at")?,
        seen_at: row::time(found, "seen_at")?,
        is_held: row::get(found, "held")?,
        held_until: row::time(found, "held_until")?,
    };
    let now = Timestamp(row::get(found, "now")?);
    Ok(LiveRun {
        instance_id: row::instance_id(found)?,
        run_number: row::run_number(found, "run_number")?,
        token: required_token(found)?,
        kind: row::get::<Option<&str>>(found, "runner_kind")?
            .ok_or_else(|| missing("runner kind"))?
            .parse()?,
        node: row::node(found, "live_node")?.ok_or_else(|| missing("node"))?,
        status: row::status(found)?,
        leave_in_ms: row::get::<Option<i64>>(found, "leave_in_ms")?.map(row::unsigned),
        asked_to_leave: row::get(found, "asked_to_leave")?,
        slept_ms: row::unsigned(row::get(found, "slept_ms")?),
        heartbeat_timeout_ms: liveness.heartbeat_timeout_ms,
        silent_in_ms: liveness.silent_in_ms(now),
    })
}

/// The live runs of a node, along `runtara_instances_live`.
pub(super) async fn live_runs(
    store: &PostgresStore,
    node: NodeId,
    after: Option<&InstanceId>,
    limit: u32,
) -> Answer<Vec<LiveRun>> {
    let rows = sqlx::query(concat!(
        live_columns!(),
        " where live_node = $1 and instance_id > $2 order by instance_id limit $3"
    ))
    .bind(node.to_string())
    .bind(after.map_or("", InstanceId::as_str))
    .bind(i64::from(limit))
    .all_on(&store.connections)
    .await?;
    rows.iter().map(live).collect()
}

/// The live run of one instance, by its primary key.
pub(super) async fn live_run(store: &PostgresStore, id: &InstanceId) -> Answer<Option<LiveRun>> {
    let found = sqlx::query(concat!(
        live_columns!(),
        " where instance_id = $1 and live_node is not null"
    ))
    .bind(id.as_str())
    .optional_on(&store.connections)
    .await?;
    found.as_ref().map(live).transpose()
}

/// Whose a token is, along `runtara_instances_token`.
pub(super) async fn run_of_token(
    store: &PostgresStore,
    token: TokenHash,
) -> Answer<Option<TokenOwner>> {
    let found = sqlx::query(
        "select instance_id, tenant_id, run_number from runtara_instances where token_hash = $1",
    )
    .bind(token.0)
    .optional_on(&store.connections)
    .await?;
    let Some(found) = found else {
        return Ok(None);
    };
    Ok(Some(TokenOwner {
        instance_id: row::instance_id(&found)?,
        tenant_id: row::tenant_id(&found)?,
        run_number: row::run_number(&found, "run_number")?,
    }))
}
