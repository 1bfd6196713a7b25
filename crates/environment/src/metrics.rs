//! The figures of a server, for whoever watches many of them.

use std::fmt;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use runtara_scheduler::{SchedulerFigures, UpkeepFigures};

type Labels = Vec<(&'static str, String)>;

/// Writes the figures down in the text format of OpenMetrics, which Prometheus reads. Everything is kept in memory: nobody is asked.
pub(crate) fn text(
    version: &'static str,
    figures: &SchedulerFigures,
    upkeep: &[(&'static str, UpkeepFigures)],
) -> String {
    let mut registry = Registry::with_prefix("runtara");
    registry.register("build", "What is running", {
        let build = Family::<Labels, Gauge>::default();
        let labels = vec![("version", version.to_owned())];
        build.get_or_create(&labels).set(1);
        build
    });
    of_runs(&mut registry, figures);
    of_upkeep(&mut registry, upkeep);
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => text,
        // A text takes whatever is written to it.
        Err(fmt::Error) => String::new(),
    }
}

fn counted(value: u64) -> Counter {
    let counter = Counter::default();
    counter.inc_by(value);
    counter
}

fn measured(value: usize) -> Gauge {
    let gauge = Gauge::<i64>::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    gauge
}

/// One counter for each value of a label.
fn by_label(
    label: &'static str,
    values: impl Iterator<Item = (String, u64)>,
) -> Family<Labels, Counter> {
    let family = Family::<Labels, Counter>::default();
    for (value, count) in values {
        family.get_or_create(&vec![(label, value)]).inc_by(count);
    }
    family
}

fn of_runs(registry: &mut Registry, figures: &SchedulerFigures) {
    registry.register(
        "live_runs",
        "Runs that are live on this node",
        measured(figures.live_runs),
    );
    registry.register(
        "capacity_runs",
        "Runs that may be live at once",
        measured(figures.capacity),
    );
    registry.register(
        "claims",
        "Instances that were claimed",
        counted(figures.claims),
    );
    let launches = figures.launches.iter();
    let launches = launches.map(|(kind, count)| (kind.to_string(), *count));
    registry.register(
        "launches",
        "Runs that were launched",
        by_label("kind", launches),
    );
    registry.register(
        "failed_launches",
        "Claimed instances that could not be launched then",
        counted(figures.failed_launches),
    );
    let exits = figures.exits.iter();
    let exits = exits.map(|(outcome, count)| ((*outcome).to_owned(), *count));
    registry.register(
        "exits",
        "Exits that were recorded, by what became of the instance",
        by_label("outcome", exits),
    );
    registry.register(
        "store_errors",
        "Questions of the scheduler that the store did not answer",
        counted(figures.store_errors),
    );
}

fn of_upkeep(registry: &mut Registry, upkeep: &[(&'static str, UpkeepFigures)]) {
    let of = |figure: fn(&UpkeepFigures) -> u64| {
        let values = upkeep.iter();
        let values = values.map(|(name, figures)| ((*name).to_owned(), figure(figures)));
        by_label("reconciler", values)
    };
    registry.register("upkeep_runs", "How often it was done", of(|it| it.runs));
    registry.register(
        "upkeep_failures",
        "How often it failed",
        of(|it| it.failures),
    );
    registry.register(
        "upkeep_removed_items",
        "Things that were removed",
        of(|it| it.items),
    );
    registry.register_with_unit(
        "upkeep_removed",
        "Bytes that were removed, as far as they are known",
        Unit::Bytes,
        of(|it| it.bytes),
    );
    let took = Family::<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
    for (name, figures) in upkeep {
        let labels = vec![("reconciler", (*name).to_owned())];
        took.get_or_create(&labels)
            .set(figures.last_duration.as_secs_f64());
    }
    registry.register_with_unit(
        "upkeep_last_duration",
        "How long it took the last time",
        Unit::Seconds,
        took,
    );
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use runtara_domain::RunnerKind;

    use super::*;

    #[test]
    fn every_figure_is_told_under_its_name() {
        let figures = SchedulerFigures {
            live_runs: 3,
            capacity: 1_000,
            claims: 7,
            launches: vec![(RunnerKind::Native, 5), (RunnerKind::Wasm, 0)],
            failed_launches: 1,
            exits: vec![("completed", 4), ("crashed", 1)],
            store_errors: 2,
        };
        let upkeep = UpkeepFigures {
            runs: 9,
            failures: 1,
            last_duration: Duration::from_millis(1_500),
            items: 12,
            bytes: 4_096,
        };
        let text = text("1.2.3", &figures, &[("logs", upkeep)]);
        for line in [
            "runtara_build{version=\"1.2.3\"} 1",
            "runtara_live_runs 3",
            "runtara_capacity_runs 1000",
            "runtara_claims_total 7",
            "runtara_launches_total{kind=\"native\"} 5",
            "runtara_launches_total{kind=\"wasm\"} 0",
            "runtara_failed_launches_total 1",
            "runtara_exits_total{outcome=\"completed\"} 4",
            "runtara_exits_total{outcome=\"crashed\"} 1",
            "runtara_store_errors_total 2",
            "runtara_upkeep_runs_total{reconciler=\"logs\"} 9",
            "runtara_upkeep_failures_total{reconciler=\"logs\"} 1",
            "runtara_upkeep_removed_items_total{reconciler=\"logs\"} 12",
            "runtara_upkeep_removed_bytes_total{reconciler=\"logs\"} 4096",
            "runtara_upkeep_last_duration_seconds{reconciler=\"logs\"} 1.5",
        ] {
            assert!(text.lines().any(|told| told == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
