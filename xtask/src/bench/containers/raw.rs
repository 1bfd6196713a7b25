//! The runtime alone: what a container takes without us.

use std::fs;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::bench::load::{Load, drive_threads};
use crate::command::run as run_command;
use crate::error::Error;
use crate::interrupt;

/// How long a start may take until its files are there.
const PATIENCE: Duration = Duration::from_secs(30);

/// A configuration of a container that the server made, and a root for it.
pub(super) struct Bundle {
    place: PathBuf,
    configuration: Value,
    runtime: String,
}

impl Bundle {
    /// Takes the configuration out of the run of an instance that lives, and copies its image to where no mount is needed.
    pub(super) fn like(data: &Path, place: &Path, id: &str) -> Result<Self, Error> {
        let runs = data.join("runs");
        let run = interrupt::until("the run of a container", PATIENCE, || {
            Ok(run_file_of(&runs, id))
        })?;
        let plan = &run["program"]["container"];
        let mut configuration = plan["configuration"].clone();
        // It does not wait as the one that was copied does.
        configuration["process"]["args"] = json!(["/program"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (root, first) = (place.join("root"), plan["ids"].as_u64().unwrap_or_default());
        fs::create_dir_all(place).map_err(Error::io(format!("make {}", place.display())))?;
        let mut copy = Command::new("cp");
        copy.arg("--archive")
            .arg(text(&plan["layers"][0]))
            .arg(&root);
        run_command(&mut copy)?;
        fs::create_dir_all(root.join("data")).map_err(Error::io("make /data".to_owned()))?;
        own(&root, first).map_err(Error::io(format!("own {}", root.display())))?;
        configuration["root"]["path"] = json!(root);
        set_child_subreaper(true)
            .map_err(|errno| Error::io("be a subreaper".to_owned())(errno.into()))?;
        Ok(Self {
            place: place.to_owned(),
            configuration,
            runtime: text(&plan["runtime"]),
        })
    }

    /// Makes containers, by so many at once, and gives how long each took until its program had ended.
    pub(super) fn drive(&self, threads: usize, time: Duration) -> Result<Load, Error> {
        let work = |_| {
            move |over: &dyn Fn() -> bool| {
                let mut millis = Vec::new();
                while !over() {
                    let took = self.run()?;
                    if !over() {
                        millis.push(took.as_secs_f64() * 1e3);
                    }
                }
                Ok(millis)
            }
        };
        drive_threads((0..threads).map(work).collect(), time)
    }

    fn run(&self) -> Result<Duration, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = format!(
            "runtara-bench-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let bundle = self.place.join(&id);
        let failed = || Error::io(format!("make {}", bundle.display()));
        let data = bundle.join("data");
        fs::create_dir_all(&data).map_err(failed())?;
        let mut configuration = self.configuration.clone();
        configuration["linux"]["cgroupsPath"] = json!(format!("/{id}"));
        for mount in configuration["mounts"].as_array_mut().into_iter().flatten() {
            if mount["destination"] == "/data" {
                mount["source"] = json!(data);
            }
        }
        fs::write(bundle.join("config.json"), configuration.to_string()).map_err(failed())?;
        let pid_file = bundle.join("pid");
        let began = Instant::now();
        let mut command = self.command(&["run", "--detach", "--bundle"]);
        command
            .arg(&bundle)
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(&id);
        run_quietly(&mut command)?;
        let pid = fs::read_to_string(&pid_file).map_err(failed())?;
        let pid = pid.trim().parse().map(Pid::from_raw);
        let pid = pid.map_err(|_| Error::Unmet("the runtime gave no process".to_owned()))?;
        let status = waitpid(pid, None);
        let took = began.elapsed();
        run_quietly(self.command(&["delete"]).arg(&id))?;
        fs::remove_dir_all(&bundle).map_err(failed())?;
        match status {
            Ok(WaitStatus::Exited(_, 0)) => Ok(took),
            other => Err(Error::Unmet(format!("the container ended as {other:?}"))),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.runtime);
        command
            .arg("--root")
            .arg(self.place.join("state"))
            .args(args);
        command
    }
}

fn run_quietly(command: &mut Command) -> Result<(), Error> {
    let run = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let status = run.map_err(Error::io("execute the runtime".to_owned()))?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::Unmet(format!("{command:?} ended with {status}"))),
    }
}

/// What a run was to start, of an instance whose variables tell its id.
fn run_file_of(runs: &Path, id: &str) -> Option<Value> {
    for instance in fs::read_dir(runs).ok()?.flatten() {
        let owner = fs::read_to_string(instance.path().join("instance")).unwrap_or_default();
        if owner == id {
            let text = fs::read(instance.path().join("1/run.json")).ok()?;
            return serde_json::from_slice(&text).ok();
        }
    }
    None
}

/// Gives a tree to the root of a container.
fn own(path: &Path, first: u64) -> std::io::Result<()> {
    let id = u32::try_from(first).ok();
    lchown(path, id, id)?;
    if path.symlink_metadata()?.is_dir() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path(), first)?;
        }
    }
    Ok(())
}
