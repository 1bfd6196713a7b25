//! Gives what it finds around itself as JSON: arguments, variables, working directory, open descriptors, limits, ids.

use std::path::Path;
use std::{env, fs, io};

use runtara_test_programs::print_result;
use serde_json::{Map, Value, json};

fn main() -> io::Result<()> {
    let variables: Map<_, _> = env::vars_os()
        .map(|(name, value)| (lossy(&name), Value::String(lossy(&value))))
        .collect();
    let arguments: Vec<_> = env::args_os().map(|argument| lossy(&argument)).collect();
    let mut result = json!({
        "args": arguments,
        "env": variables,
        "cwd": env::current_dir()?,
        "descriptors": descriptors()?,
        "limits": limits()?,
        "status": status()?,
        "oom_score_adj": fs::read_to_string("/proc/self/oom_score_adj")?.trim(),
        "cgroup": fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
    });
    let stat = fs::read_to_string("/proc/self/stat")?;
    // proc(5): after the name in brackets come state, parent, process group, session.
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ids: Vec<i64> = fields
        .split(' ')
        .skip(1)
        .take(3)
        .filter_map(|field| field.parse().ok())
        .collect();
    result["pid"] = json!(std::process::id());
    for (name, id) in ["ppid", "pgid", "sid"].into_iter().zip(ids) {
        result[name] = json!(id);
    }
    print_result(&result)
}

fn lossy(text: &std::ffi::OsStr) -> String {
    text.to_string_lossy().into_owned()
}

/// The open descriptors and what they lead to, without the one that lists them.
fn descriptors() -> io::Result<Map<String, Value>> {
    let directory = Path::new("/proc/self/fd");
    let mut found = Map::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let target = fs::read_link(entry.path())?;
        let own = format!("/proc/{}/fd", std::process::id());
        if target != Path::new(&own) {
            found.insert(lossy(&entry.file_name()), json!(target));
        }
    }
    Ok(found)
}

/// The resource limits: soft and hard, as the kernel writes them.
fn limits() -> io::Result<Map<String, Value>> {
    let text = fs::read_to_string("/proc/self/limits")?;
    let limits = text.lines().skip(1).filter_map(|line| {
        // Names have spaces in them, so columns are told by their width.
        let (name, rest) = line.split_at_checked(26)?;
        let mut values = rest.split_whitespace();
        let (soft, hard) = (values.next()?, values.next()?);
        Some((name.trim().to_owned(), json!({"soft": soft, "hard": hard})))
    });
    Ok(limits.collect())
}

/// Ids, groups, capabilities and filters.
fn status() -> io::Result<Map<String, Value>> {
    let text = fs::read_to_string("/proc/self/status")?;
    let wanted = [
        "Uid",
        "Gid",
        "Groups",
        "NoNewPrivs",
        "Seccomp",
        "CapEff",
        "CapBnd",
        "SigIgn",
    ];
    let lines = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let value: Vec<_> = value.split_whitespace().collect();
        wanted
            .contains(&name)
            .then(|| (name.to_owned(), json!(value.join(" "))))
    });
    Ok(lines.collect())
}
