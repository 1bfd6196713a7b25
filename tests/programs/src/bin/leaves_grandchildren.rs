//! Leaves a daemon behind: two processes further, in a session of its own, deaf to SIGTERM and SIGHUP. It writes its process
//! id and a growing number to the file of the option `heartbeat_file`, again and again.
//!
//! The program itself exits when the heartbeat has begun, or with the option `stay` lives on.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::setsid;
use runtara_test_programs::{Options, sleep_forever};

fn main() -> io::Result<()> {
    let options = Options::read();
    let file: PathBuf = options
        .text("heartbeat_file")
        .expect("the option heartbeat_file names the file to write to")
        .into();
    match options.text("generation").as_deref() {
        None => {
            spawn("child", &file)?.wait()?;
            wait_for_heartbeat(&file);
            if options.get("stay").unwrap_or(false) {
                sleep_forever();
            }
            Ok(())
        }
        Some("child") => {
            setsid()?;
            spawn("grandchild", &file)?;
            // Its parent gone, the grandchild belongs to process 1, or to whoever is a subreaper.
            exit(0)
        }
        Some(_) => beat(&file),
    }
}

fn spawn(generation: &str, file: &Path) -> io::Result<std::process::Child> {
    // The link, and not the path behind it: the file may lie where this program's user cannot go (proc(5)).
    Command::new("/proc/self/exe")
        .arg(format!("--generation={generation}"))
        .arg(format!("--heartbeat_file={}", file.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

fn wait_for_heartbeat(file: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !file.exists() {
        assert!(Instant::now() < deadline, "the daemon does not write");
        thread::sleep(Duration::from_millis(5));
    }
}

fn beat(file: &Path) -> io::Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    let draft = file.with_extension("draft");
    for beat in 1_u64.. {
        // Renamed into place, so that no reader meets half a line.
        fs::write(&draft, format!("{} {beat}\n", std::process::id()))?;
        fs::rename(&draft, file)?;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
