//! Files that an older program has made.

use std::sync::Arc;

use runtara_domain::{InstanceId, TimeInStates, Timestamp};
use runtara_store::sqlite::{SqliteOptions, SqliteStore};
use runtara_store::{ManualClock, Store as _};
use sqlx::{Connection as _, SqliteConnection};

use super::support::{caller, claim, image, start};

/// Instances that were there before the time in each status was counted begin to count at the last time that is known of their status.
#[tokio::test]
async fn the_time_of_older_instances_is_counted_from_what_is_known() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.db");
    let clock = Arc::new(ManualClock::at(Timestamp(1_000)));
    let open = || SqliteStore::open(SqliteOptions::at(&path).clock(clock.clone()));
    let store = open().await.unwrap();
    store.register_image(image()).await.unwrap();
    for id in ["suspended", "ended", "running", "pending"] {
        store.start_instance(start(id)).await.unwrap();
        if id == "pending" {
            continue;
        }
        clock.advance_millis(10);
        let runs = claim(&store, 1).await;
        let me = caller(&runs[0]);
        clock.advance_millis(10);
        let tenant = &runs[0].tenant_id;
        store.register_instance(&me, tenant, None).await.unwrap();
        let word = match id {
            "suspended" => runtara_domain::Word::Suspended,
            "ended" => runtara_domain::Word::Completed { output: None },
            _ => continue,
        };
        store.say(&me, word, false).await.unwrap();
    }
    store.close().await;
    let url = format!("sqlite:{}", path.display());
    let mut file = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(
        "alter table runtara_instances drop column status_since;
         alter table runtara_instances drop column pending_time_ms;
         alter table runtara_instances drop column running_time_ms;
         alter table runtara_instances drop column suspended_time_ms;
         delete from runtara_migrations where version = 3;",
    )
    .execute(&mut file)
    .await
    .unwrap();
    file.close().await.unwrap();
    let store = open().await.unwrap();
    clock.advance_millis(500);
    let mut found = Vec::new();
    for id in ["suspended", "ended", "running", "pending"] {
        let record = store.instance(&InstanceId::new(id).unwrap()).await.unwrap();
        let TimeInStates {
            pending_ms,
            running_ms,
            suspended_ms,
        } = record.unwrap().time_in_states;
        found.push((id, [pending_ms, running_ms, suspended_ms]));
    }
    // All was over at 1,060: what was claimed at 1,050 runs, what was last heard of at 1,020 is suspended.
    assert_eq!(
        found,
        [
            ("suspended", [0, 0, 540]),
            ("ended", [0, 0, 0]),
            ("running", [0, 510, 0]),
            ("pending", [500, 0, 0]),
        ]
    );
    store.close().await;
}
