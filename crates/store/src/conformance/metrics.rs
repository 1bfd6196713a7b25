//! How instances ended, in buckets of time.

use runtara_domain::{RunExit, Timestamp, Usage, Word};

use super::Harness;
use super::make::{exit_code, tenant};
use super::world::World;
use crate::{MetricsBucket, MetricsQuery};

const HOUR: u64 = 3_600_000;

async fn ask(
    world: &World<'_>,
    start: Timestamp,
    end: Timestamp,
    width: u64,
) -> Vec<MetricsBucket> {
    let query = MetricsQuery {
        tenant_id: world.tenant.clone(),
        start,
        end,
        bucket_ms: width,
    };
    world
        .store
        .tenant_metrics(&query)
        .await
        .expect("metrics are answered")
}

fn bucket_of(at: Timestamp, width: u64) -> Timestamp {
    let width = i64::try_from(width).unwrap();
    Timestamp(at.0.div_euclid(width) * width)
}

/// An instance is counted where it ended, with how long it took from its first run on and what it used.
pub async fn instances_are_counted_where_they_ended(harness: &dyn Harness) {
    let world = World::new(harness).await;
    // To the start of an hour, so that what follows lies in one bucket.
    let into = world.now().0.rem_euclid(HOUR as i64);
    world.advance(HOUR - u64::try_from(into).unwrap()).await;
    let began = world.now();
    for (id, lasts, memory) in [("a", 1_000, 300), ("b", 4_000, 0), ("c", 2_500, 500)] {
        let run = world.launch(id).await;
        world.advance(lasts).await;
        match id {
            "b" => run.say(Word::Failed { error: "no".into() }).await,
            _ => run.complete(b"1").await,
        };
        let usage = Usage {
            memory_peak_bytes: memory,
            ..Usage::default()
        };
        run.exit(RunExit {
            usage,
            ..exit_code(0)
        })
        .await;
    }
    world.start("never-ran").await;
    world.cancel(&super::make::instance("never-ran")).await;
    world.start("not-ended").await;
    let end = world.now().plus_millis(1);
    let expected = MetricsBucket {
        start: began,
        completed: 2,
        failed: 1,
        cancelled: 1,
        avg_duration_ms: Some(2_500.0),
        min_duration_ms: Some(1_000.0),
        max_duration_ms: Some(4_000.0),
        avg_memory_bytes: Some(400.0),
        max_memory_bytes: Some(500),
    };
    assert_eq!(
        ask(&world, began, end, HOUR).await,
        std::slice::from_ref(&expected)
    );
    let by_day = MetricsBucket {
        start: bucket_of(began, 24 * HOUR),
        ..expected
    };
    assert_eq!(ask(&world, began, end, 24 * HOUR).await, [by_day]);
}

/// Buckets begin at whole hours, the first and last hold only what is asked for, and empty ones are left out.
pub async fn buckets_begin_at_whole_hours(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let mut ended = Vec::new();
    for n in 0..4 {
        let id = format!("i-{n}");
        world.start(&id).await;
        world.cancel(&super::make::instance(&id)).await;
        ended.push(world.now());
        world.advance(2 * HOUR).await;
    }
    let starts = |buckets: Vec<MetricsBucket>| {
        let starts = buckets
            .iter()
            .map(|bucket| (bucket.start, bucket.cancelled));
        starts.collect::<Vec<_>>()
    };
    let one_each = |ended: &[Timestamp]| {
        let buckets = ended.iter().map(|at| (bucket_of(*at, HOUR), 1));
        buckets.collect::<Vec<_>>()
    };
    let all = ask(&world, Timestamp(0), world.now(), HOUR).await;
    assert_eq!(all[0].avg_duration_ms, None, "it never ran");
    assert_eq!(all[0].max_memory_bytes, None);
    assert_eq!(starts(all), one_each(&ended));
    let part = ask(&world, ended[1], ended[3], HOUR).await;
    assert_eq!(
        starts(part),
        one_each(&ended[1..3]),
        "from the start on, before the end"
    );
    assert!(
        ask(&world, ended[3].plus_millis(1), world.now(), HOUR)
            .await
            .is_empty()
    );
}

/// Metrics are of one tenant.
pub async fn metrics_are_of_one_tenant(harness: &dyn Harness) {
    let world = World::new(harness).await;
    world.start("a").await;
    world.cancel(&super::make::instance("a")).await;
    let query = MetricsQuery {
        tenant_id: tenant("else"),
        start: Timestamp(0),
        end: world.now().plus_millis(1),
        bucket_ms: HOUR,
    };
    assert!(world.store.tenant_metrics(&query).await.unwrap().is_empty());
}
