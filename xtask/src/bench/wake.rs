//! How far behind their due time instances are at work again.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::database::Database;
use super::figure::{Bound, Figure};
use super::load::{median, quantile};
use super::runs::{CONCURRENT, SILENT, SPEAKER, complete, completed};
use super::server::{Server, TENANT, id_prefix};
use super::{Bench, say};
use crate::error::Error;
use crate::interrupt;

/// Measures single sleepers, and 1,000 instances due at once.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>, Error> {
    // Every sleep frees its process, and need not be longer than a bench can wait.
    let variables = [("RUNTARA_SLEEP_HOLD_MS", "0")];
    let database = bench.postgres.database("wake")?;
    let server = Server::start(&bench.place, "wake", &database, &variables)?;
    let (mut figures, count) = (Vec::new(), if bench.quick { 20 } else { 100 });
    let (claimed, at_work) = one_sleeper(bench, &server, &database, count)?;
    figures.push(
        Figure::new("wake lag of one sleeper, p99", "ms", &[quantile(&at_work, 0.99)])
            .must(Bound::AtMost(20.0))
            .note(format!(
                "{count} sleepers, due one after another; until the relaunched program has registered and read its input \
                 (p50 {:.1} ms); until the claim alone: p50 {:.0}, p99 {:.0} ms",
                quantile(&at_work, 0.5),
                quantile(&claimed, 0.5),
                quantile(&claimed, 0.99)
            )),
    );
    let image = server.image(SILENT)?;
    let (mut rates, mut limits, mut lags) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..bench.rounds {
        let name = format!("limit-{round}");
        let limit = complete(&server, &image, &Value::Null, &name, CONCURRENT, bench.time)?;
        let (rate, lag) = burst(&server, &database, &image, round)?;
        say(format!(
            "1,000 due at once, round {}: {rate:.0}/s, beside {:.0} starts/s",
            round + 1,
            limit.rate
        ));
        rates.push(rate);
        limits.push(limit.rate);
        lags.push(lag);
    }
    figures.push(
        Figure::new("1,000 due at once, completed/s", "/s", &rates)
            .beside("starts/s, 16 concurrent", &limits)
            .must(Bound::RatioAtLeast(0.9))
            .note(format!(
                "delayed starts; the last one claimed {:.0} ms after the due time",
                median(&lags)
            )),
    );
    Ok(figures)
}

/// Lets sleepers wake one after another; gives the sorted lags of claims, and of programs at work, in milliseconds.
fn one_sleeper(
    bench: &Bench,
    server: &Server,
    database: &Database,
    count: usize,
) -> Result<(Vec<f64>, Vec<f64>), Error> {
    let image = server.image(SPEAKER)?;
    let mut connection = server.connect()?;
    let file = |number: usize| bench.place.join(format!("woke-{number}"));
    let id = |number: usize| format!("{}sleeper-{number:04}", id_prefix());
    for number in 0..count {
        let actions = json!([
            {"from_run": 2, "do": {"touch": file(number)}},
            {"sleep": {"id": "s", "ms": 4_000 + 150 * number}},
        ]);
        let start = json!({"tenant_id": TENANT, "image_id": image, "instance_id": id(number), "input": {"actions": actions}});
        connection.post("/api/v1/instances", &start)?;
    }
    for number in 0..count {
        completed(&mut connection, &id(number))?;
        interrupt::check()?;
    }
    let rows = database.numbers(&format!(
        "select w.until, i.claimed_at from runtara_waits w join runtara_instances i using (instance_id)
          where w.instance_id like '{}sleeper-%' order by w.instance_id",
        id_prefix()
    ))?;
    if rows.len() != count {
        let found = rows.len();
        return Err(Error::Unmet(format!(
            "{found} of {count} sleeps were recorded"
        )));
    }
    let mut claimed: Vec<f64> = rows.iter().map(|row| row[1] - row[0]).collect();
    let mut at_work = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let path = file(number);
        let changed = path.metadata().and_then(|it| it.modified());
        let changed = changed.map_err(Error::io(format!("look at {}", path.display())))?;
        let since = changed.duration_since(std::time::UNIX_EPOCH);
        at_work.push(since.unwrap_or_default().as_secs_f64() * 1e3 - row[0]);
    }
    claimed.sort_by(f64::total_cmp);
    at_work.sort_by(f64::total_cmp);
    Ok((claimed, at_work))
}

/// Makes 1,000 instances due at one moment; gives how many completed in a second, and when the last was claimed.
fn burst(
    server: &Server,
    database: &Database,
    image: &str,
    round: usize,
) -> Result<(f64, f64), Error> {
    const COUNT: usize = 1_000;
    let mut connection = server.connect()?;
    let due = database.numbers("select runtara_now() + 5000")?[0][0];
    let began = Instant::now();
    let id = |number: usize| format!("{}burst-{round}-{number}", id_prefix());
    for number in 0..COUNT {
        let start = json!({"tenant_id": TENANT, "image_id": image, "instance_id": id(number), "start_at_ms": due as i64});
        connection.post("/api/v1/instances", &start)?;
    }
    if began.elapsed() > Duration::from_millis(4_500) {
        return Err(Error::Unmet(
            "1,000 delayed starts took longer than their delay".to_owned(),
        ));
    }
    for number in 0..COUNT {
        completed(&mut connection, &id(number))?;
        interrupt::check()?;
    }
    let ends = database.numbers(&format!(
        "select max(finished_at), max(claimed_at) from runtara_instances where instance_id like '{}burst-{round}-%'",
        id_prefix()
    ))?;
    let (finished, claimed) = (ends[0][0] - due, ends[0][1] - due);
    Ok((COUNT as f64 / finished * 1e3, claimed))
}
