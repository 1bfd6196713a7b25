//! How fast WebAssembly guests are started, make their steps and are woken, and what those cost that wait.

use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::database::Database;
use super::figure::{Bound, Figure};
use super::load::median;
use super::runs::{COMMITS, CONCURRENT, complete, completed};
use super::server::{Server, TENANT, id_of_image, id_prefix, program};
use super::wire::Connection;
use super::{Bench, held, now, process, say};
use crate::command::{capture, cargo, run as run_command};
use crate::error::Error;
use crate::http::Client;
use crate::interrupt;

/// Steps of a workflow whose steps are counted.
const STEPS: usize = 500;
/// How many sleepers are due at once.
const SLEEPERS: usize = 1_000;
/// How many guests are held in memory at once.
const HELD: usize = 10_000;
/// What compares the runner with wasmtime alone.
const BENCH: [&str; 5] = ["bench", "-p", "runtara-runner-wasm", "--bench", "guests"];

/// Measures guests on both stores, and beside wasmtime alone.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>, Error> {
    let mut figures = runner()?;
    let database = bench.postgres.database("guests")?;
    database.prepare_pgbench()?;
    let sqlite = bench.sqlite("guests-sqlite");
    for (name, url) in [("SQLite", &sqlite), ("PostgreSQL", &database.url)] {
        let place = format!("guests-{}", name.to_lowercase());
        let variables = [("RUNTARA_SLEEP_HOLD_MS", "0")];
        let server = Server::start_on(&bench.place, &place, url, &variables)?;
        let stage = Stage {
            bench,
            server: &server,
            database: &database,
            store: name,
        };
        figures.extend(stage.starts()?);
        figures.push(stage.steps()?);
        figures.push(stage.sleepers()?);
    }
    for name in ["SQLite", "PostgreSQL"] {
        figures.extend(waiting(bench, name)?);
    }
    Ok(figures)
}

/// Builds what this phase starts beside the server.
pub(super) fn build() -> Result<(), Error> {
    run_command(cargo(BENCH).arg("--no-run"))
}

/// The runner beside wasmtime alone, in one process.
fn runner() -> Result<Vec<Figure>, Error> {
    interrupt::check()?;
    let told = capture(&mut cargo(BENCH))?;
    let mut rounds = Vec::new();
    for line in told.lines().filter(|line| line.starts_with('{')) {
        let round: Value = serde_json::from_str(line)
            .map_err(|error| Error::Unmet(format!("`cargo bench` told no figures: {error}")))?;
        rounds.push(round);
    }
    let of = |name: &str| {
        rounds
            .iter()
            .filter_map(|round| round[name].as_f64())
            .collect::<Vec<_>>()
    };
    let (ours, alone, whole, lasted) = (
        of("ours_us"),
        of("alone_us"),
        of("whole_us"),
        of("lasted_us"),
    );
    say(format!(
        "CPU of a guest: {ours:.1?} us, beside {alone:.1?} us of wasmtime alone"
    ));
    Ok(vec![
        Figure::new("instantiation and run of a guest, CPU", "us", &ours)
            .beside("wasmtime with a pool, same guest", &alone)
            .must(Bound::RatioAtMost(1.3))
            .note(format!(
                "an empty command, 16 at once; with its launch and its end {:.0} us of CPU; one alone lasts {:.0} us",
                median(&whole),
                median(&lasted)
            )),
    ])
}

/// A server on one of the stores.
struct Stage<'a> {
    bench: &'a Bench,
    server: &'a Server,
    database: &'a Database,
    store: &'static str,
}

impl Stage<'_> {
    /// An empty command, one after another and by many.
    fn starts(&self) -> Result<Vec<Figure>, Error> {
        let image = image(self.bench, self.server, "leaves_at_once.wat")?;
        let (place, time) = (&self.bench.place, self.bench.time);
        let load = |name: &str, concurrent| {
            complete(self.server, &image, &Value::Null, name, concurrent, time)
        };
        load("warm", CONCURRENT)?;
        let (mut alone, mut commits, mut many, mut base) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..self.bench.rounds {
            let commit = self.database.pgbench(place, 1, time / 2)?;
            let one = load(&format!("one-{round}"), 1)?;
            let pgbench = self.database.pgbench(place, CONCURRENT, time / 2)?;
            let sixteen = load(&format!("many-{round}"), CONCURRENT)?;
            say(format!(
                "guests on {}, round {}: {:.2} ms alone, beside 3 x {:.2} ms commit; {:.0}/s by 16, beside {:.0}/s of pgbench",
                self.store,
                round + 1,
                one.p50(),
                commit.p50_ms,
                sixteen.rate,
                pgbench.rate
            ));
            alone.push(one.p50());
            commits.push(COMMITS * commit.p50_ms);
            many.push(sixteen.rate);
            base.push(pgbench.rate);
        }
        Ok(vec![
            Figure::new(
                format!("guest start to completed, p50, {}", self.store),
                "ms",
                &alone,
            )
            .beside("3 commits of pgbench", &commits)
            .must(Bound::AtMost(2.0))
            .note("an empty command, one after another"),
            Figure::new(
                format!("guest starts/s, 16 concurrent, {}", self.store),
                "/s",
                &many,
            )
            .beside("pgbench insert+commit, 16 clients", &base)
            .must(Bound::AtLeast(3_000.0))
            .note("each started and seen to complete; the better of both stores counts"),
        ])
    }

    /// Steps that are saved through host calls.
    fn steps(&self) -> Result<Figure, Error> {
        let image = image(self.bench, self.server, "saves_steps.c")?;
        let (mut ours, mut base) = (Vec::new(), Vec::new());
        for round in 0..self.bench.rounds {
            let pgbench =
                self.database
                    .pgbench(&self.bench.place, CONCURRENT, self.bench.time / 2)?;
            let rate = self.rate_of_steps(&image, round)?;
            say(format!(
                "steps on {}, round {}: {rate:.0}/s, beside {:.0}/s of pgbench",
                self.store,
                round + 1,
                pgbench.rate
            ));
            ours.push(rate);
            base.push(pgbench.rate);
        }
        let figure = Figure::new(
            format!("durable steps/s of 16 guests, {}", self.store),
            "/s",
            &ours,
        )
        .beside("pgbench insert+commit, 16 clients", &base)
        .must(Bound::RatioAtLeast(1.5))
        .note(format!(
            "{CONCURRENT} instances of {STEPS} saved steps at a time, from the start to the end of the last"
        ));
        Ok(figure)
    }

    fn rate_of_steps(&self, image: &str, round: usize) -> Result<f64, Error> {
        let (mut count, mut connection) = (0, self.server.connect()?);
        let began = Instant::now();
        while began.elapsed() < self.bench.time {
            let id = |number: usize| format!("{}steps-{round}-{count}-{number}", id_prefix());
            for number in 0..CONCURRENT {
                start(&mut connection, image, &id(number), &[STEPS.to_string()])?;
            }
            for number in 0..CONCURRENT {
                completed(&mut connection, &id(number))?;
            }
            count += CONCURRENT * STEPS;
        }
        Ok(count as f64 / began.elapsed().as_secs_f64())
    }

    /// Sleepers that are suspended, and all due at the same moment: until the last of them has been woken and goes on.
    fn sleepers(&self) -> Result<Figure, Error> {
        let image = image(self.bench, self.server, "sleeps_until.c")?;
        let mut took = Vec::new();
        for round in 0..self.bench.rounds {
            let mut connection = self.server.connect()?;
            let due = now() + Duration::from_secs(5);
            let until = due.as_millis().to_string();
            let id = |number: usize| format!("{}sleep-{round}-{number}", id_prefix());
            for number in 0..SLEEPERS {
                start(
                    &mut connection,
                    &image,
                    &id(number),
                    std::slice::from_ref(&until),
                )?;
            }
            let early = due.saturating_sub(now());
            if early < Duration::from_millis(300) {
                return Err(Error::Unmet(format!(
                    "{SLEEPERS} sleepers were not asleep before they were due"
                )));
            }
            interrupt::pause(early)?;
            let mut last = 0;
            for number in 0..SLEEPERS {
                let end = completed(&mut connection, &id(number))?;
                last = last.max(number_of(&end["output"])?);
            }
            let seconds = Duration::from_millis(last)
                .saturating_sub(due)
                .as_secs_f64();
            say(format!(
                "{SLEEPERS} sleepers on {}, round {}: {seconds:.2} s",
                self.store,
                round + 1
            ));
            took.push(seconds);
        }
        let figure = Figure::new(
            format!("1,000 sleepers due at once, {}", self.store),
            "s",
            &took,
        )
        .must(Bound::AtMost(1.0))
        .note("suspended guests; until the last of them goes on behind its sleep");
        Ok(figure)
    }
}

/// Guests that wait in memory: what each costs, and how soon all run again after a crash.
fn waiting(bench: &Bench, store: &str) -> Result<Vec<Figure>, Error> {
    let count = if bench.quick { HELD / 10 } else { HELD };
    let place = format!("held-{}", store.to_lowercase());
    let url = match store {
        "SQLite" => bench.sqlite(&place),
        _ => bench.postgres.database("held")?.url,
    };
    let text = count.to_string();
    let variables = [
        ("RUNTARA_WASM_MAX_INSTANCES", text.as_str()),
        ("RUNTARA_MAX_RUNS", text.as_str()),
        // Address space is set aside for so many, each of which needs little.
        ("RUNTARA_WASM_MAX_MEMORY_BYTES", "67108864"),
        held::HOLD,
    ];
    let mut server = Server::start_on(&bench.place, &place, &url, &variables)?;
    let image = image(bench, &server, "waits_for_go.c")?;
    let mut connection = server.connect()?;
    let before = process::private_bytes(server.pid())?;
    let began = Instant::now();
    for number in 0..count {
        start(
            &mut connection,
            &image,
            &held::id(number),
            &[held::WAIT_MS.to_string()],
        )?;
    }
    held::wait_for_runs(&mut connection, (1, Duration::ZERO), count)?;
    let started = began.elapsed().as_secs_f64();
    held::settle()?;
    let each = (process::private_bytes(server.pid())? - before) / count as f64;
    let own = process::set_aside_and_written(server.pid())? / count as f64;
    say(format!(
        "{count} guests wait {started:.1} s after the first was started, with {:.1} KiB each, {:.1} KiB of it in their own memory",
        each / 1024.0,
        own / 1024.0
    ));
    let held::Recovery { ready, again } =
        held::kill_and_wait(&mut server, (&url, &variables), (2, count))?;
    say(format!(
        "{count} guests wait again {again:.1} s after the server was killed; it was ready after {ready:.1} s"
    ));
    held::wake_some(&server, count)?;
    let memory = Figure::new(
        format!("memory for a guest that waits, {store}"),
        "KiB",
        &[(each - own) / 1024.0],
    )
    .must(Bound::AtMost(64.0))
    .note(format!(
        "private, mean of {count}; its own memory holds {:.1} KiB more",
        own / 1024.0
    ));
    let recovery = Figure::new(
        format!("guests running again after a crash, {store}"),
        "s",
        &[again],
    )
    .must(Bound::AtMost(10.0))
    .note(format!(
        "{count} of them, from the kill on; the server answered after {ready:.1} s"
    ));
    Ok(vec![memory, recovery])
}

/// Builds a guest of the tests and registers it.
fn image(bench: &Bench, server: &Server, source: &str) -> Result<String, Error> {
    let file = bench.place.join(source).with_extension("wasm");
    let mut build = Command::new(program("build_guest"));
    run_command(build.arg(source).arg(&file))?;
    let fields = [("tenant_id", TENANT), ("name", source)];
    let client = Client::new(server.environment);
    let answer = client.upload("/api/v1/images/upload", &fields, "binary", &file)?;
    id_of_image(&answer.accepted(&format!("register {source}"))?)
}

fn start(connection: &mut Connection, image: &str, id: &str, args: &[String]) -> Result<(), Error> {
    let body = json!({"tenant_id": TENANT, "image_id": image, "instance_id": id, "args": args});
    connection.post("/api/v1/instances", &body).map(drop)
}

/// The number that a guest has completed with.
fn number_of(output: &Value) -> Result<u64, Error> {
    let bytes = output
        .as_str()
        .and_then(|text| BASE64_STANDARD.decode(text).ok());
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or_else(|| Error::Unmet(format!("a guest completed with no number: {output}")))
}
