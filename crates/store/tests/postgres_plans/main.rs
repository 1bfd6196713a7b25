//! Every hot statement is served by the index that its documentation names, on filled tables.
//!
//! PostgreSQL itself counts what each index was used for, so the statements are run as they are, by the methods of the store, often
//! enough for the server to have settled on a plan for them; then the counters are read: the named index was used, no table of
//! instances was read whole, and no index was walked any further than the answer needs.

#![cfg(feature = "postgres")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod calls;
mod case;
mod claims;
mod counters;
mod filled;
mod history;
mod instances;
#[path = "../postgres_support/node.rs"]
mod node;
#[path = "../postgres_support/mod.rs"]
mod postgres_support;

use std::time::Duration;

use case::{CALLS, Case};
use counters::{connections, counted};
use filled::FILL;
use postgres_support::{Schema, execute};
use runtara_store::Store as _;
use runtara_store::postgres::{PostgresOptions, PostgresStore};
use sqlx::Connection as _;

const CASES: [&[Case]; 4] = [
    claims::CASES,
    calls::CASES,
    instances::CASES,
    history::CASES,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_hot_statement_is_served_by_its_index() {
    let Some(schema) = Schema::make().await else {
        return;
    };
    schema.store().await.close().await;
    let mut connection = schema.connect().await;
    execute(&mut connection, FILL).await;
    connection.close().await.unwrap();
    let mut connection = schema.connect().await;
    let mut wrong = Vec::new();
    for case in CASES.into_iter().flatten() {
        let before = counted(&mut connection, case.index).await;
        // The counters of a connection are complete once it is gone (its backend adds them up right before), so the connections of each
        // case are waited for by a name of their own. Otherwise the late ones of one case would count for the next.
        let name = format!("plans-{}", std::process::id());
        let joint = if schema.url.contains('?') { '&' } else { '?' };
        let url = format!("{}{joint}application_name={name}", schema.url);
        let options = PostgresOptions::new(url).migrate(false).max_connections(2);
        let store = PostgresStore::connect(options).await.unwrap();
        for n in 0..CALLS {
            (case.call)(&store, usize::try_from(n).unwrap()).await;
        }
        store.close().await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while connections(&mut connection, &name).await > 0 {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{}: its connections stay",
                case.what
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let after = counted(&mut connection, case.index).await;
        let (used, entries) = (after.used - before.used, after.entries - before.entries);
        if used < CALLS || entries > case.entries * CALLS || after.whole > before.whole {
            wrong.push(format!(
                "{}: {} used {used} times in {CALLS} calls, {entries} index entries read of {} allowed, {} tables read whole",
                case.what,
                case.index,
                case.entries * CALLS,
                after.whole - before.whole,
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
