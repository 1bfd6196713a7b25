//! Limits, met from the inside.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use runtara_domain::ResourceLimits;

use crate::container::Trial;

const MIB: u64 = 1024 * 1024;

/// A file of the cgroup of a container, by its names in the two versions: controller and file, and file.
fn figure(trial: &Trial, (controller, old): (&str, &str), new: &str) -> String {
    let cgroups = Path::new("/sys/fs/cgroup");
    let path = if trial.machine.cgroups.unified {
        in_cgroup(trial, new)
    } else {
        let name = trial.cgroup();
        let name = name.strip_prefix("/").unwrap();
        cgroups.join(controller).join(name).join(old)
    };
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A file of the cgroup of a container in version 2.
fn in_cgroup(trial: &Trial, file: &str) -> PathBuf {
    let name = trial.cgroup();
    let name = name.strip_prefix("/").unwrap();
    Path::new("/sys/fs/cgroup").join(name).join(file)
}

#[test]
fn a_program_that_takes_too_much_memory_is_killed() {
    let mut trial = Trial::new("exec tail /dev/zero");
    trial.limits.memory_bytes = Some(32 * MIB);
    let mut events = String::new();
    let outcome = trial.start().unwrap().end_and(|| {
        events = figure(&trial, ("memory", "memory.oom_control"), "memory.events");
    });
    assert!(
        matches!(outcome.status, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
        "{outcome:?}"
    );
    assert!(events.lines().any(|line| line == "oom_kill 1"), "{events}");
}

#[test]
fn what_is_written_to_memory_counts_as_memory() {
    let mut trial = Trial::new(
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=14 2>/dev/null; dd if=/dev/zero of=/data/x bs=1M count=15; echo alive",
    );
    trial.limits.memory_bytes = Some(24 * MIB);
    trial.limits.writable_bytes = Some(20 * MIB);
    let mut peak = String::new();
    let mut events = String::new();
    trial.start().unwrap().end_and(|| {
        let is_told = !trial.machine.cgroups.unified || in_cgroup(&trial, "memory.peak").exists();
        if is_told {
            peak = figure(
                &trial,
                ("memory", "memory.max_usage_in_bytes"),
                "memory.peak",
            );
        } else {
            events = figure(&trial, ("", ""), "memory.events");
        }
    });
    if peak.is_empty() {
        // Version 2 tells it since Linux 5.19. What goes beyond the limit is killed all the same.
        assert!(
            events.contains("\noom_kill ") && !events.contains("\noom_kill 0"),
            "{events}"
        );
        return;
    }
    let peak: u64 = peak.trim().parse().unwrap();
    assert!((23 * MIB..=24 * MIB).contains(&peak), "{peak}");
}

#[test]
fn swap_processor_time_and_processes_are_limited_in_the_cgroup() {
    let mut trial = Trial::new("sleep 0.1");
    trial.limits = ResourceLimits {
        memory_bytes: Some(32 * MIB),
        cpu_millicores: Some(1500),
        pids: Some(20),
        ..ResourceLimits::default()
    };
    let mut found = Vec::new();
    trial.start().unwrap().end_and(|| {
        found = vec![
            figure(&trial, ("memory", "memory.limit_in_bytes"), "memory.max"),
            figure(
                &trial,
                ("memory", "memory.memsw.limit_in_bytes"),
                "memory.swap.max",
            ),
            figure(&trial, ("pids", "pids.max"), "pids.max"),
            figure(&trial, ("cpu", "cpu.cfs_quota_us"), "cpu.max"),
        ];
    });
    let found: Vec<_> = found.iter().map(|text| text.trim()).collect();
    if trial.machine.cgroups.unified {
        assert_eq!(found, ["33554432", "0", "20", "150000 100000"]);
    } else {
        assert_eq!(found, ["33554432", "33554432", "20", "150000"]);
    }
}

#[test]
fn a_program_cannot_start_more_processes_than_its_limit() {
    let mut trial =
        Trial::new("i=0; while [ $i -lt 40 ]; do sleep 20 & i=$((i+1)); done; echo started all");
    trial.limits.pids = Some(12);
    let outcome = trial.run();
    assert!(!outcome.stdout.contains("started all"), "{outcome:#?}");
    assert!(outcome.stderr.contains("fork"), "{outcome:#?}");
}

#[test]
fn the_writable_layer_is_full_at_its_size() {
    let mut trial = Trial::new(
        "for place in / /data/ /tmp/; do dd if=/dev/zero of=${place}x bs=64k count=100 2>&1 | grep -c 'No space left'; stat -c %s ${place}x; rm ${place}x; done",
    );
    trial.limits.writable_bytes = Some(2 * MIB);
    let outcome = trial.run();
    let numbers: Vec<u64> = outcome
        .succeeded()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    for place in numbers.chunks(2) {
        assert_eq!(place[0], 1, "{numbers:?}");
        assert!((MIB..=2 * MIB).contains(&place[1]), "{numbers:?}");
    }
}

#[test]
fn a_writable_layer_holds_so_many_files_and_no_more() {
    let mut trial = Trial::new(
        "cd /data; i=0; while [ $i -lt 6000 ]; do true > $i || break; i=$((i+1)); done; echo $i",
    );
    trial.limits.writable_bytes = Some(MIB);
    let outcome = trial.run();
    let made: u64 = outcome.stdout.trim().parse().unwrap_or(0);
    assert!((3000..4200).contains(&made), "{outcome:#?}");
}

#[test]
fn open_files_and_core_files_are_limited() {
    let trial = Trial::new("ulimit -Sn; ulimit -Hn; ulimit -c");
    let hard = trial.machine.open_files.min(524_288);
    let soft = hard.min(1024);
    assert_eq!(trial.run().succeeded(), format!("{soft}\n{hard}\n0\n"));
    let mut trial = Trial::new("ulimit -Sn; ulimit -Hn; ulimit -c");
    trial.limits.open_files = Some(100);
    assert_eq!(trial.run().succeeded(), "100\n100\n0\n");
}
