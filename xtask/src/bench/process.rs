//! What /proc (proc(5)) tells about processes.

use std::fs;

use crate::error::Error;

/// Gives a line of a file of `/proc/<pid>` that counts in kB, in bytes.
pub(super) fn bytes(pid: u32, file: &str, field: &str) -> Result<f64, Error> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))?;
    field_of(&text, field).ok_or_else(|| Error::Unmet(format!("{path} has no {field}")))
}

fn field_of(text: &str, field: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}

/// Gives the memory that only this process has, in bytes.
pub(super) fn private_bytes(pid: u32) -> Result<f64, Error> {
    let part = |field| bytes(pid, "smaps_rollup", field);
    Ok(part("Private_Clean")? + part("Private_Dirty")?)
}

/// Gives how many bytes were written to in the memories of guests: each is followed by the rest of the address space that is set aside
/// for it.
pub(super) fn set_aside_and_written(pid: u32) -> Result<f64, Error> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))?;
    Ok(written_before_reserves(&text))
}

/// More than what guards a stack.
const RESERVE: u64 = 16 * 1024 * 1024;

fn written_before_reserves(smaps: &str) -> f64 {
    let (mut written, mut sum) = (0.0, 0.0);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((from, to)) = first.split_once('-') {
            let size = |text| u64::from_str_radix(text, 16).unwrap_or(0);
            let length = size(to).saturating_sub(size(from));
            if words.next() == Some("---p") && length >= RESERVE {
                sum += written;
            }
            written = 0.0;
        } else if first == "Private_Dirty:" {
            written = words.next().and_then(|it| it.parse().ok()).unwrap_or(0.0) * 1024.0;
        }
    }
    sum
}

/// Sets the highest resident size back to the present one.
pub(super) fn forget_peak(pid: u32) -> Result<(), Error> {
    let path = format!("/proc/{pid}/clear_refs");
    fs::write(&path, "5").map_err(Error::io(format!("write {path}")))
}

/// Gives the CPU time of a process so far, of threads that live, in seconds. `schedstat` counts nanoseconds, `stat` ticks of 10 ms.
pub(super) fn cpu_seconds(pid: u32) -> Result<f64, Error> {
    let path = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&path).map_err(Error::io(format!("list {path}")))?;
    let mut nanoseconds = 0.0;
    for thread in threads.flatten() {
        // A thread may have left meanwhile.
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        let on_cpu: Option<f64> = text.split(' ').next().and_then(|it| it.parse().ok());
        nanoseconds += on_cpu.unwrap_or(0.0);
    }
    Ok(nanoseconds / 1e9)
}

/// Gives the CPU time of a process, of its living children, and of those that it has waited for, in seconds.
pub(super) fn family_cpu_seconds(pid: u32) -> Result<f64, Error> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))?;
    let waited_for = children_ticks(&text)
        .ok_or_else(|| Error::Unmet(format!("{path} does not tell the time of children")))?;
    let mut seconds = cpu_seconds(pid)? + waited_for / TICKS;
    for child in all().into_iter().filter(|it| parent(*it) == Some(pid)) {
        // It may have left meanwhile.
        seconds += cpu_seconds(child).unwrap_or(0.0);
    }
    Ok(seconds)
}

/// Ticks in a second: the same on every Linux that Rust runs on (time(7)).
const TICKS: f64 = 100.0;

/// Fields 16 and 17 of proc_pid_stat(5), behind the name, which may hold anything.
fn children_ticks(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(13);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some(next()? + next()?)
}

/// Gives how often a process has waited for something and been woken (proc_pid_status(5)).
pub(super) fn wake_ups(pid: u32) -> Result<f64, Error> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))?;
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    let count = line.and_then(|line| line.trim().parse().ok());
    count.ok_or_else(|| Error::Unmet(format!("{path} does not tell its wake-ups")))
}

/// Gives all processes.
pub(super) fn all() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Gives the parent of a process.
pub(super) fn parent(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// Gives the processes of instances whose id begins so.
pub(super) fn of_instances(prefix: &str) -> Vec<u32> {
    let wanted = format!("RUNTARA_INSTANCE_ID={prefix}");
    let is_one = |pid: &u32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut variables = environ.split(|byte| *byte == 0);
        variables.any(|it| it.starts_with(wanted.as_bytes()))
    };
    all().into_iter().filter(is_one).collect()
}

/// Gives the ids of instances, which begin so, with a variable that their programs were given.
pub(super) fn variables(prefix: &str, name: &str) -> Vec<(String, String)> {
    let read = |pid: u32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let environ = String::from_utf8(environ).ok()?;
        let value = |name: &str| {
            let mut values = environ.split('\0').filter_map(|it| it.split_once('='));
            values
                .find(|(it, _)| *it == name)
                .map(|(_, value)| value.to_owned())
        };
        let id = value("RUNTARA_INSTANCE_ID")?;
        Some((id, value(name)?))
    };
    of_instances(prefix).into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_by_its_whole_name() {
        let text = "VmHWMx:\t 1 kB\nVmHWM:\t  20 kB\nThreads:\t2\n";
        assert_eq!(field_of(text, "VmHWM"), Some(20.0 * 1024.0));
        assert_eq!(field_of(text, "Threads"), None);
    }

    #[test]
    fn memory_counts_that_is_followed_by_a_reserve() {
        let smaps = "10000000-1003f000 rw-p 00000000 00:00 0\nPrivate_Dirty:        32 kB\n\
                     1003f000-14000000 ---p 00000000 00:00 0\nPrivate_Dirty:         0 kB\n\
                     14000000-14010000 rw-p 00000000 00:00 0\nPrivate_Dirty:        16 kB\n\
                     14010000-14011000 ---p 00000000 00:00 0\nPrivate_Dirty:         0 kB\n";
        assert_eq!(written_before_reserves(smaps), 32.0 * 1024.0);
    }

    #[test]
    fn the_time_of_children_is_read_behind_any_name() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 30 12 20 0";
        assert_eq!(children_ticks(stat), Some(42.0));
        assert_eq!(children_ticks("7 (a) S 1 2"), None);
    }

    #[test]
    fn this_process_has_memory_and_used_time() {
        let pid = std::process::id();
        assert!(bytes(pid, "status", "VmRSS").expect("it lives") > 0.0);
        assert!(private_bytes(pid).expect("it lives") > 0.0);
        assert!(cpu_seconds(pid).expect("it lives") >= 0.0);
        assert!(all().contains(&pid) && parent(pid).is_some());
    }
}
