//! What uploads and waiting instances cost in memory.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::figure::{Bound, Figure};
use super::runs::SPEAKER;
use super::server::{Server, TENANT, id_of_image, id_prefix};
use super::{Bench, process, say};
use crate::command::capture;
use crate::error::Error;
use crate::interrupt;

const MIB: f64 = 1024.0 * 1024.0;
/// How many instances wait while memory is measured, after some that warm the server up.
const WAITING: usize = 50;
const WARM: usize = 10;

/// Uploads an image of 1 GiB and watches the server meanwhile.
pub(super) fn upload(bench: &Bench) -> Result<Vec<Figure>, Error> {
    let size: u64 = if bench.quick { 256 << 20 } else { 1 << 30 };
    let database = bench.postgres.database("upload")?;
    let (mut rates, mut limits, mut growth) = (Vec::new(), Vec::new(), Vec::new());
    let mut slower = "";
    for round in 0..bench.rounds {
        let (disk, hash) = disk_and_hash(bench, size)?;
        slower = if disk < hash { "disk" } else { "sha256" };
        // A new server each time: the growth of the first upload is the one that counts.
        let name = format!("upload-{round}");
        let server = Server::start(&bench.place, &name, &database, &[])?;
        let (rate, grown) = one_upload(&server, &name, size)?;
        say(format!(
            "upload, round {}: {rate:.0} MiB/s, disk {disk:.0}, sha256 {hash:.0}; grown by {grown:.1} MiB",
            round + 1
        ));
        rates.push(rate);
        limits.push(disk.min(hash));
        growth.push(grown);
    }
    let most = growth.iter().copied().fold(f64::NAN, f64::max);
    Ok(vec![
        Figure::new("resident growth while 1 GiB is uploaded", "MiB", &[most])
            .must(Bound::AtMost(8.0))
            .note("highest resident size (VmHWM) less the one before; the most of all rounds"),
        Figure::new("upload rate", "MiB/s", &rates)
            .beside("the slower of sha256sum and dd with fsync", &limits)
            .must(Bound::RatioAtLeast(0.7))
            .note(format!(
                "{} MiB; in the last round {slower} was the slower",
                size >> 20
            )),
    ])
}

/// Gives MiB/s of writing a file to the disk, and of hashing it out of the page cache.
fn disk_and_hash(bench: &Bench, size: u64) -> Result<(f64, f64), Error> {
    interrupt::check()?;
    let file = bench.place.join("dd");
    let rate = |began: Instant| size as f64 / MIB / began.elapsed().as_secs_f64();
    let began = Instant::now();
    let (output, count) = (
        format!("of={}", file.display()),
        format!("count={}", size >> 20),
    );
    capture(Command::new("dd").args(["if=/dev/zero", &output, "bs=1M", &count, "conv=fsync"]))?;
    let disk = rate(began);
    let began = Instant::now();
    capture(Command::new("sha256sum").arg(&file))?;
    let hash = rate(began);
    std::fs::remove_file(&file).map_err(Error::io(format!("remove {}", file.display())))?;
    Ok((disk, hash))
}

/// Gives MiB/s, and by how many MiB the server's resident size grew.
fn one_upload(server: &Server, name: &str, size: u64) -> Result<(f64, f64), Error> {
    // A script by its first line; what follows differs from round to round, so that nothing is stored already.
    let mut block = format!("#!/bin/sh\nexit 0 # {name}\n").into_bytes();
    let line = (0_u8..=255).cycle().skip(name.len());
    block.extend(line.take((1 << 20) - block.len()));
    let fields = [
        ("tenant_id", TENANT),
        ("name", name),
        ("runner_type", "native"),
    ];
    let mut connection = server.connect()?;
    let pid = server.pid();
    process::forget_peak(pid)?;
    let before = process::bytes(pid, "status", "VmRSS")?;
    let began = Instant::now();
    let answer = connection.upload(&fields, size, &block)?;
    let took = began.elapsed().as_secs_f64();
    let peak = process::bytes(pid, "status", "VmHWM")?;
    let image = id_of_image(&answer)?;
    // The next round needs the room.
    connection.call(
        "DELETE",
        &format!("/api/v1/images/{image}?tenant_id={TENANT}"),
        b"",
    )?;
    Ok((size as f64 / MIB / took, (peak - before) / MIB))
}

/// Lets instances wait, and shares out what the server's processes have more than before.
pub(super) fn waiting(bench: &Bench) -> Result<Vec<Figure>, Error> {
    let database = bench.postgres.database("waiting")?;
    let server = Server::start(&bench.place, "waiting", &database, &[])?;
    let image = server.image(SPEAKER)?;
    let own = || -> Result<f64, Error> {
        let launchers = server.launchers();
        let processes = launchers.iter().copied().chain([server.pid()]);
        processes.map(process::private_bytes).sum()
    };
    let begin = |name: &str, count: usize| -> Result<Vec<u32>, Error> {
        let mut connection = server.connect()?;
        let prefix = format!("{}{name}-", id_prefix());
        let input = json!({"actions": [{"hang": true}]});
        for number in 0..count {
            let id = format!("{prefix}{number}");
            let start =
                json!({"tenant_id": TENANT, "image_id": image, "instance_id": id, "input": input});
            connection.post("/api/v1/instances", &start)?;
        }
        interrupt::until("the instances to register", Duration::from_secs(60), || {
            let spoke = database.numbers(&format!(
                    "select count(*) from runtara_instances where instance_id like '{prefix}%' and spoke and live_node is not null"
                ))?;
            Ok((spoke[0][0] as usize == count).then_some(()))
        })?;
        let programs = process::of_instances(&prefix);
        Ok(programs.into_iter().filter_map(process::parent).collect())
    };
    begin("warm", WARM)?;
    // Until buffers of the starts have gone back; a minute would change nothing.
    interrupt::pause(Duration::from_secs(3))?;
    let before = own()?;
    let mut shims = begin("waits", WAITING)?;
    interrupt::pause(Duration::from_secs(3))?;
    let after = own()?;
    shims.sort_unstable();
    shims.dedup();
    let shim_bytes: Result<Vec<f64>, Error> =
        shims.iter().copied().map(process::private_bytes).collect();
    let each = shim_bytes?.iter().sum::<f64>() / WAITING as f64;
    let share = (after - before) / WAITING as f64;
    say(format!(
        "one waiting instance: shim {:.0} KiB, our share {:.0} KiB",
        each / 1024.0,
        share / 1024.0
    ));
    let figure = Figure::new("private memory for one waiting native instance", "MiB", &[(each + share) / MIB])
        .must(Bound::AtMost(1.0))
        .note(format!(
            "mean of {WAITING}: shim {:.0} KiB ({} processes), growth of server and launcher {:.0} KiB; the program's own memory not included",
            each / 1024.0,
            shims.len(),
            share / 1024.0
        ));
    Ok(vec![figure])
}
