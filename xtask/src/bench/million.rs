//! A million sleepers: what they cost an idle server, and how fast lists of them are.

use std::time::{Duration, Instant};

use super::database::Database;
use super::figure::{Bound, Figure};
use super::load::quantile;
use super::server::{Server, TENANT};
use super::wire::Connection;
use super::{Bench, process, say};
use crate::error::Error;
use crate::interrupt;

const MIB: f64 = 1024.0 * 1024.0;
/// Rows that are there, each a sleeper due in a year.
const SLEEPERS: u64 = 1_000_000;
/// How long the server may take to have counted them: it looks every ten seconds.
const COUNT_LIMIT: Duration = Duration::from_secs(120);

/// A list and where in it a page is asked for.
struct Page {
    name: &'static str,
    query: &'static str,
}

const LISTS: &[Page] = &[
    Page {
        name: "tenant",
        query: "tenant_id=bench",
    },
    Page {
        name: "all tenants",
        query: "",
    },
    Page {
        name: "tenant and status",
        query: "tenant_id=bench&status=suspended",
    },
    Page {
        name: "oldest first",
        query: "tenant_id=bench&order_by=created_at_asc",
    },
    Page {
        name: "one image",
        query: "tenant_id=bench&image_id=bench-image-3",
    },
];

/// Measures both on one filled database.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>, Error> {
    let database = bench.postgres.database("million")?;
    // The first start makes the tables.
    drop(Server::start(&bench.place, "million", &database, &[])?);
    fill(&database)?;
    let server = Server::start(&bench.place, "million", &database, &[])?;
    interrupt::until("the sleepers to be counted", COUNT_LIMIT, || {
        let kept = database.numbers(&format!(
            "select count(*) from runtara_counts where tenant_id = '' and status = '' and count >= {SLEEPERS}"
        ))?;
        Ok((kept[0][0] > 0.0).then_some(()))
    })?;
    let mut figures = idle(bench, &server)?;
    figures.extend(lists(bench, &server)?);
    Ok(figures)
}

fn fill(database: &Database) -> Result<(), Error> {
    say(format!("filling in {SLEEPERS} sleepers"));
    let began = Instant::now();
    // In parts, so that Ctrl-C need not wait for all of them.
    let part = SLEEPERS / 10;
    for first in (0..SLEEPERS).step_by(usize::try_from(part).expect("it is small")) {
        interrupt::check()?;
        let last = first + part - 1;
        database.sql(&format!(
            "insert into runtara_instances (instance_id, tenant_id, image_id, runner_kind, origin, status, reason, due_at,
                                            run_number, timeout_ms, created_at, started_at)
             select 'sleeper-' || n, '{TENANT}', 'bench-image-' || n % 10, 'native', 'launched', 'suspended', 'sleeping',
                    runtara_now() + 31536000000 + n, 1, 3600000, runtara_now() - 86400000 + n, runtara_now() - 86400000 + n
               from generate_series({first}, {last}) n"
        ))?;
    }
    // What autovacuum would have done long before there are so many.
    database.sql("vacuum (analyze) runtara_instances")?;
    database.sql("checkpoint")?;
    say(format!("filled in {:.0} s", began.elapsed().as_secs_f64()));
    Ok(())
}

fn idle(bench: &Bench, server: &Server) -> Result<Vec<Figure>, Error> {
    let time = Duration::from_secs(if bench.quick { 10 } else { 40 });
    let mut processes = server.launchers();
    let launchers = processes.len();
    processes.push(server.pid());
    let cpu =
        || -> Result<f64, Error> { processes.iter().copied().map(process::cpu_seconds).sum() };
    let (before, began) = (cpu()?, Instant::now());
    interrupt::pause(time)?;
    let percent = (cpu()? - before) / began.elapsed().as_secs_f64() * 100.0;
    let resident = process::bytes(server.pid(), "status", "VmRSS")? / MIB;
    let anonymous = process::bytes(server.pid(), "status", "RssAnon")? / MIB;
    let private: Result<Vec<f64>, Error> = processes
        .iter()
        .take(launchers)
        .copied()
        .map(process::private_bytes)
        .collect();
    let beside = private?.iter().sum::<f64>() / MIB;
    say(format!(
        "idle: {resident:.1} MiB resident, {percent:.3} % of a CPU"
    ));
    Ok(vec![
        Figure::new("idle server: resident memory", "MiB", &[resident])
            .must(Bound::AtMost(25.0))
            .note(format!(
                "1,000,000 sleepers waiting; {anonymous:.1} MiB of it anonymous; {beside:.1} MiB private of {launchers} process(es) beside it"
            )),
        Figure::new("idle server: CPU", "%", &[percent])
            .must(Bound::AtMost(0.1))
            .note(format!(
                "of one CPU, over {} s, its launcher included; the database's not",
                time.as_secs()
            )),
    ])
}

fn lists(bench: &Bench, server: &Server) -> Result<Vec<Figure>, Error> {
    let mut connection = server.connect()?;
    let calls = if bench.quick { 10 } else { 30 };
    let (mut by_cursor, mut by_offset) = (Vec::new(), Vec::new());
    for list in LISTS {
        by_cursor.push((list.name, cursor_pages(&mut connection, list, calls)?));
        by_offset.push((list.name, offset_pages(&mut connection, list, calls)?));
        interrupt::check()?;
    }
    let figure = |name: &str, pages: &[(&str, Pages)]| {
        let worst = pages.iter().map(|(_, it)| it.p50).fold(0.0, f64::max);
        let note: Vec<String> = pages
            .iter()
            .map(|(list, it)| format!("{list} {:.1} ({:.1})", it.p50, it.most))
            .collect();
        say(format!("lists, {name}: {}", note.join(", ")));
        Figure::new(format!("list of 1,000,000, {name}"), "ms", &[worst])
            .must(Bound::AtMost(15.0))
            .note(format!(
                "the slowest list's p50 (and its slowest page), 100 rows a page, total included: {}",
                note.join(", ")
            ))
    };
    Ok(vec![
        figure("page by cursor, from the first on", &by_cursor),
        figure("page by offset, at 1 % to 99 %", &by_offset),
    ])
}

/// Milliseconds for a page.
struct Pages {
    p50: f64,
    most: f64,
}

impl Pages {
    fn new(mut millis: Vec<f64>) -> Self {
        millis.sort_by(f64::total_cmp);
        Self {
            p50: quantile(&millis, 0.5),
            most: quantile(&millis, 1.0),
        }
    }
}

fn cursor_pages(connection: &mut Connection, list: &Page, calls: usize) -> Result<Pages, Error> {
    let first = format!("/api/v1/instances?limit=100&{}", list.query);
    let (mut path, mut millis) = (first.clone(), Vec::new());
    for _ in 0..calls {
        let began = Instant::now();
        let page = connection.get(&path)?;
        millis.push(began.elapsed().as_secs_f64() * 1e3);
        expect_full(&page, &path)?;
        let cursor = page["next_cursor"].as_str().unwrap_or_default();
        path = format!("{first}&cursor={cursor}");
    }
    Ok(Pages::new(millis))
}

fn offset_pages(connection: &mut Connection, list: &Page, calls: usize) -> Result<Pages, Error> {
    let first = format!("/api/v1/instances?limit=100&{}", list.query);
    let rows = if list.query.contains("image_id") {
        SLEEPERS / 10
    } else {
        SLEEPERS
    };
    let mut millis = Vec::new();
    for call in 0..calls as u64 {
        // Spread over the list, and never at a place that is kept.
        let offset = rows / 100 + call * (rows / 100 * 98) / (calls as u64) + 37;
        let path = format!("{first}&offset={offset}");
        let began = Instant::now();
        let page = connection.get(&path)?;
        millis.push(began.elapsed().as_secs_f64() * 1e3);
        expect_full(&page, &path)?;
    }
    Ok(Pages::new(millis))
}

fn expect_full(page: &serde_json::Value, path: &str) -> Result<(), Error> {
    let rows = page["instances"].as_array().map_or(0, Vec::len);
    if rows == 100 && page["total_count"].as_u64() > Some(0) {
        return Ok(());
    }
    Err(Error::Unmet(format!(
        "{path} gave {rows} of 100 rows and the total {}",
        page["total_count"]
    )))
}
