//! How fast containers are started and end, beside the runtime alone with the same bundle.

mod archive;
mod raw;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use serde_json::{Value, json};

use self::archive::archive;
use self::raw::Bundle;
use super::figure::{Bound, Figure};
use super::load::{Load, drive_threads};
use super::runs::{CONCURRENT, complete, expect_completed};
use super::server::{Server, TENANT, id_of_image, id_prefix};
use super::{Bench, process, say};
use crate::command::run as run_command;
use crate::error::Error;
use crate::http::Client;
use crate::interrupt;

/// How long a shim is watched that has nothing to do.
const WATCHED: Duration = Duration::from_secs(5);
/// Leaves at once, or sleeps if it is told to.
const PROGRAM: &str = "#include <unistd.h>\nint main(int count, char **args) { if (count > 1) sleep(600); return 0; }\n";
const MIB: usize = 1024 * 1024;

/// Measures containers from start to completed beside the runtime alone, by one and by many; images of two sizes; and a shim that waits.
pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>, Error> {
    if !geteuid().is_root() {
        return Err(Error::Unmet(
            "containers are made by root; run the bench as root".to_owned(),
        ));
    }
    let database = bench.postgres.database("containers")?;
    let server = Server::start(&bench.place, "containers", &database, &[])?;
    let stage = Stage::new(bench, &server)?;
    let mut figures = vec![stage.one_by_one()?, stage.many()?];
    figures.push(stage.sizes()?);
    figures.push(stage.idle()?);
    Ok(figures)
}

/// What all of them share.
struct Stage<'a> {
    bench: &'a Bench,
    server: &'a Server,
    program: PathBuf,
    image: String,
    bundle: Bundle,
    /// Where the server has its containers.
    containers: PathBuf,
}

impl<'a> Stage<'a> {
    fn new(bench: &'a Bench, server: &'a Server) -> Result<Self, Error> {
        let program = compile(&bench.place)?;
        let image = register(server, "static", &program)?;
        let data = bench.place.join("containers");
        let id = format!("{}model", id_prefix());
        start(server, &image, &id, &["wait"])?;
        let bundle = Bundle::like(&data, &bench.place.join("bundles"), &id)?;
        stop(server, &id)?;
        let node = fs::read_to_string(data.join("node"));
        let node = node.map_err(Error::io("read the node's id".to_owned()))?;
        complete(server, &image, &Value::Null, "warm", 1, bench.time / 4)?;
        Ok(Self {
            bench,
            server,
            program,
            image,
            bundle,
            containers: Path::new("/run/runtara")
                .join(node.trim())
                .join("containers"),
        })
    }

    fn load(&self, image: &str, name: &str, concurrent: usize) -> Result<Load, Error> {
        complete(
            self.server,
            image,
            &Value::Null,
            name,
            concurrent,
            self.bench.time,
        )
    }

    /// One after another. Many short rounds in alternation: a runtime's time comes in steps.
    fn one_by_one(&self) -> Result<Figure, Error> {
        let (mut ours, mut limits) = (Vec::new(), Vec::new());
        for round in 0..self.bench.rounds {
            let limit = self.bundle.drive(1, self.bench.time)?;
            let load = self.one_by_one_load(&self.image, &format!("one-{round}"))?;
            say(format!(
                "one container after another, round {}: {:.1} ms, beside {:.1} ms of the runtime alone",
                round + 1,
                load.p50(),
                limit.p50()
            ));
            ours.push(load.p50());
            limits.push(limit.p50());
        }
        let figure = Figure::new("container start to completed, p50", "ms", &ours)
            .beside("runc run --detach + wait, same bundle", &limits)
            .must(Bound::RatioAtMost(1.15))
            .note("user namespace, seccomp and limits in both; each begins when the one before is removed, which is timed in neither");
        Ok(figure)
    }

    /// Instances one after another, each started when nothing is left of the container of the one before, as the runtime alone does it.
    fn one_by_one_load(&self, image: &str, name: &str) -> Result<Load, Error> {
        let mut connection = self.server.connect()?;
        let work = move |over: &dyn Fn() -> bool| {
            let mut millis = Vec::new();
            while !over() {
                let id = format!("{}{name}-{}", id_prefix(), millis.len());
                let start = json!({"tenant_id": TENANT, "image_id": image, "instance_id": id});
                let began = Instant::now();
                connection.post("/api/v1/instances", &start)?;
                let end = connection.get(&format!("/api/v1/instances/{id}?wait_ms=30000"))?;
                millis.push(began.elapsed().as_secs_f64() * 1e3);
                expect_completed(&end)?;
                self.until_removed()?;
            }
            Ok(millis)
        };
        drive_threads(vec![work], self.bench.time)
    }

    fn until_removed(&self) -> Result<(), Error> {
        let late = Instant::now() + WATCHED;
        while fs::read_dir(&self.containers).is_ok_and(|mut left| left.next().is_some()) {
            if Instant::now() > late {
                return Err(Error::Unmet("a container was not removed".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn many(&self) -> Result<Figure, Error> {
        let (mut ours, mut limits) = (Vec::new(), Vec::new());
        for round in 0..self.bench.rounds {
            let limit = self.bundle.drive(CONCURRENT, self.bench.time)?;
            let load = self.load(&self.image, &format!("many-{round}"), CONCURRENT)?;
            say(format!(
                "containers, round {}: {:.1}/s, beside {:.1}/s of the runtime alone",
                round + 1,
                load.rate,
                limit.rate
            ));
            ours.push(load.rate);
            limits.push(limit.rate);
        }
        let figure = Figure::new("containers/s, 16 concurrent", "/s", &ours)
            .beside("runc run --detach + wait + delete, 16 threads", &limits)
            .must(Bound::RatioAtLeast(0.9));
        Ok(figure)
    }

    /// A large image beside a small one.
    fn sizes(&self) -> Result<Figure, Error> {
        let image = |name: &str, size: usize| {
            let file = archive(&self.bench.place.join(name), &self.program, size)?;
            register(self.server, name, &file)
        };
        let (small, large) = (image("small", MIB)?, image("large", 200 * MIB)?);
        let mut more = Vec::new();
        for round in 0..self.bench.rounds {
            let small = self.one_by_one_load(&small, &format!("small-{round}"))?;
            let large = self.one_by_one_load(&large, &format!("large-{round}"))?;
            say(format!(
                "images, round {}: {:.1} ms of 1 MiB, {:.1} ms of 200 MiB",
                round + 1,
                small.p50(),
                large.p50()
            ));
            more.push(large.p50() - small.p50());
        }
        let figure = Figure::new("start of a 200 MiB image over one of 1 MiB", "ms", &more)
            .must(Bound::AtMost(5.0))
            .note("not the first start of either: how much longer the large one takes, p50");
        Ok(figure)
    }

    /// How often a shim wakes up whose container waits.
    fn idle(&self) -> Result<Figure, Error> {
        let id = format!("{}idle", id_prefix());
        start(self.server, &self.image, &id, &["wait"])?;
        let program = interrupt::until("the container", WATCHED, || {
            Ok(process::of_instances(&id).first().copied())
        })?;
        let shim = process::parent(program)
            .ok_or_else(|| Error::Unmet("the program has no parent".to_owned()))?;
        interrupt::pause(Duration::from_secs(1))?;
        let before = process::wake_ups(shim)?;
        interrupt::pause(WATCHED)?;
        let woken = process::wake_ups(shim)? - before;
        stop(self.server, &id)?;
        let figure = Figure::new(
            "wake-ups of a waiting container's shim in 5 s",
            "",
            &[woken],
        )
        .must(Bound::AtMost(0.0));
        Ok(figure)
    }
}

/// Compiles the program that all containers run.
fn compile(place: &Path) -> Result<PathBuf, Error> {
    let (source, program) = (place.join("program.c"), place.join("program"));
    fs::write(&source, PROGRAM).map_err(Error::io(format!("write {}", source.display())))?;
    let mut command = Command::new("cc");
    command
        .args(["-O1", "-static", "-o"])
        .args([&program, &source]);
    run_command(&mut command)?;
    Ok(program)
}

fn register(server: &Server, name: &str, file: &Path) -> Result<String, Error> {
    let fields = [
        ("tenant_id", TENANT),
        ("name", name),
        ("runner_type", "oci"),
    ];
    let client = Client::new(server.environment);
    let answer = client.upload("/api/v1/images/upload", &fields, "binary", file)?;
    id_of_image(&answer.accepted(&format!("register {name}"))?)
}

fn start(server: &Server, image: &str, id: &str, args: &[&str]) -> Result<(), Error> {
    let body = json!({"tenant_id": TENANT, "image_id": image, "instance_id": id, "args": args});
    server.connect()?.post("/api/v1/instances", &body).map(drop)
}

fn stop(server: &Server, id: &str) -> Result<(), Error> {
    let path = format!("/api/v1/instances/{id}/stop");
    let body = json!({"grace_period_seconds": 0});
    server.connect()?.post(&path, &body).map(drop)
}
