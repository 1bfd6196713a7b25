//! Claims of which each tenant has only so many run at once.
//!
//! What a tenant runs is counted by its rows, so claims are made one after the other, under a lock: two at once would both count what was before
//! them. First it looks at what is due first, as any claim does; only if that leaves room, because some of it is of tenants who have
//! none, does it hop from tenant to tenant.

use runtara_domain::{RunnerKind, TokenHash};
use sqlx::PgConnection;
use sqlx::postgres::PgRow;

use crate::{CLAIMED_INPUT_BYTES, Claim, ClaimedRun};

use super::PostgresStore;
use super::claims::{CLAIM_WITHIN, CLAIM_WITHIN_WITHOUT, claimed, words};
use super::error::Answer;
use super::row;

/// The key of the lock: "claims" in ASCII.
const LOCK: i64 = 0x63_6c61_696d_7300;
/// How many are looked at for each that is wanted; `CLAIM_WITHIN` has it written out.
const LOOKED_AT: usize = 4;

/// Claims what is due, so that no more than `allowed` of each tenant are running.
pub(super) async fn claim(
    store: &PostgresStore,
    claim: Claim,
    allowed: u32,
) -> Answer<Vec<ClaimedRun>> {
    let mut transaction = store.connections.pool.begin().await?;
    sqlx::query("select pg_advisory_xact_lock($1)")
        .bind(LOCK)
        .execute(&mut *transaction)
        .await?;
    let mut claimed_runs = Vec::new();
    let mut hops = true;
    if claim.without_tenants.is_empty() {
        let rows = first_due(&mut transaction, &claim, allowed).await?;
        let seen: i64 = rows
            .first()
            .map_or(Ok(0), |found| row::get(found, "seen"))?;
        for found in &rows {
            if row::get::<Option<&str>>(found, "instance_id")?.is_some() {
                claimed_runs.push(claimed(found)?);
            }
        }
        hops = row::unsigned(seen) >= (LOOKED_AT * claim.tokens.len()) as u64;
    }
    let left: Vec<_> = claim
        .tokens
        .iter()
        .filter(|token| !claimed_runs.iter().any(|run| run.token == **token))
        .copied()
        .collect();
    if hops && !left.is_empty() {
        let rows = of_each(&mut transaction, &claim, &left, allowed).await?;
        for found in &rows {
            claimed_runs.push(claimed(found)?);
        }
    }
    transaction.commit().await?;
    for run in &claimed_runs {
        store.nudges.claimed(&run.instance_id);
    }
    Ok(claimed_runs)
}

fn largest_input() -> i32 {
    i32::try_from(CLAIMED_INPUT_BYTES).unwrap_or(i32::MAX)
}

fn bytes(tokens: &[TokenHash]) -> Vec<Vec<u8>> {
    tokens.iter().map(|token| token.0.to_vec()).collect()
}

fn kinds(claim: &Claim) -> Vec<&'static str> {
    let kinds: &[RunnerKind] = &claim.kinds;
    words(kinds)
}

async fn first_due(
    connection: &mut PgConnection,
    claim: &Claim,
    allowed: u32,
) -> Answer<Vec<PgRow>> {
    let rows = sqlx::query(CLAIM_WITHIN)
        .bind(claim.node.to_string())
        .bind(bytes(&claim.tokens))
        .bind(largest_input())
        .bind(kinds(claim))
        .bind(i64::from(allowed))
        .fetch_all(connection)
        .await?;
    Ok(rows)
}

async fn of_each(
    connection: &mut PgConnection,
    claim: &Claim,
    tokens: &[TokenHash],
    allowed: u32,
) -> Answer<Vec<PgRow>> {
    let without = claim.without_tenants.iter();
    let without: Vec<_> = without.map(|tenant| tenant.as_str().to_owned()).collect();
    let rows = sqlx::query(CLAIM_WITHIN_WITHOUT)
        .bind(claim.node.to_string())
        .bind(bytes(tokens))
        .bind(largest_input())
        .bind(kinds(claim))
        .bind(without)
        .bind(i64::from(allowed))
        .fetch_all(connection)
        .await?;
    Ok(rows)
}
