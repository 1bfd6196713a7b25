//! What is asked of the box of a program, as it is typed and as it is shown.

use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser};
use runtara_management_sdk::{Image, NetworkMode, ResourceLimits};
use serde_json::Value;

use crate::table::Cell;
use crate::text::size;
use crate::values::{bytes, millicores};

/// Under what these options stand.
const HEADING: &str = "Isolation";

/// Options of `start` and of whatever registers an image.
#[derive(Debug, Default, Args)]
pub(crate) struct SettingsArgs {
    /// Most memory, such as 256M; what is written to places in memory counts
    #[arg(long, help_heading = HEADING, value_name = "SIZE", value_parser = bytes)]
    memory: Option<u64>,
    /// Most processor time, such as 2 or 0.5
    #[arg(long, help_heading = HEADING, value_name = "N", value_parser = millicores)]
    cpus: Option<u64>,
    /// Most processes and threads at once
    #[arg(long, help_heading = HEADING, value_name = "N")]
    pids: Option<u64>,
    /// Most open files of each process
    #[arg(long, help_heading = HEADING, value_name = "N")]
    open_files: Option<u64>,
    /// Largest writable layer, such as 64M; the run directory is in it
    #[arg(long, help_heading = HEADING, value_name = "SIZE", value_parser = bytes)]
    writable: Option<u64>,
    /// What the program reaches: nothing but Runtara, the internet as well, or all that the host reaches
    #[arg(long, help_heading = HEADING, value_name = "MODE", value_parser = modes())]
    network: Option<String>,
    /// Which hosts a WebAssembly program reaches with `egress`, of those that the server allows: api.example.com,*.example.com:443
    #[arg(long = "allow-host", help_heading = HEADING, value_name = "HOST", value_delimiter = ',')]
    allowed_hosts: Vec<String>,
    /// Make the root of the file system read-only, all but the run directory and the places for temporary files
    #[arg(
        long,
        help_heading = HEADING,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    read_only: Option<bool>,
}

fn modes() -> PossibleValuesParser {
    PossibleValuesParser::new([
        PossibleValue::new("isolated").alias("none"),
        PossibleValue::new("egress").alias("pasta"),
        PossibleValue::new("host"),
    ])
}

impl SettingsArgs {
    pub(crate) fn limits(&self) -> ResourceLimits {
        let mut limits = ResourceLimits::new();
        limits.memory_bytes = self.memory;
        limits.cpu_millicores = self.cpus;
        limits.pids = self.pids;
        limits.open_files = self.open_files;
        limits.writable_bytes = self.writable;
        limits
    }

    pub(crate) fn network(&self) -> Option<NetworkMode> {
        self.network.as_deref().map(NetworkMode::from)
    }

    pub(crate) fn allowed_hosts(&self) -> Option<Vec<String>> {
        (!self.allowed_hosts.is_empty()).then(|| self.allowed_hosts.clone())
    }

    pub(crate) fn read_only(&self) -> Option<bool> {
        self.read_only
    }
}

/// What an image asks of its container, and what it says of itself.
pub(crate) fn facts(image: &Image) -> Vec<(String, Option<Cell>)> {
    let fact = |name: &str, text: Option<String>| (name.to_owned(), text.map(Cell::from));
    let mut rows = vec![
        fact("base", image.base.clone()),
        fact("limits", limits_text(&image.limits)),
        fact("network", image.network.as_ref().map(ToString::to_string)),
        fact(
            "allowed hosts",
            image.allowed_hosts.as_ref().map(|hosts| hosts.join(", ")),
        ),
        fact("read only", image.read_only.map(|flag| flag.to_string())),
    ];
    let said = image.container.as_ref().and_then(Value::as_object);
    for (name, value) in said.into_iter().flatten() {
        let (name, text) = match name.strip_suffix("_bytes") {
            Some(name) if value.is_u64() => (name, value.as_u64().map(size)),
            _ => (name.as_str(), value_text(value)),
        };
        rows.push(fact(&format!("container {}", name.replace('_', " ")), text));
    }
    rows
}

fn limits_text(limits: &ResourceLimits) -> Option<String> {
    let cpus = |millicores| format!("{} processors", millicores as f64 / 1000.0);
    let texts = [
        limits
            .memory_bytes
            .map(|bytes| format!("{} memory", size(bytes))),
        limits.cpu_millicores.map(cpus),
        limits.pids.map(|pids| format!("{pids} processes")),
        limits.open_files.map(|files| format!("{files} open files")),
        limits
            .writable_bytes
            .map(|bytes| format!("{} writable", size(bytes))),
    ];
    let texts: Vec<_> = texts.into_iter().flatten().collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

/// A value as people read it; nothing if there is nothing in it.
fn value_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let words = items.iter().map(|item| match item.as_str() {
                Some(word) => quoted(word),
                None => item.to_string(),
            });
            words.collect::<Vec<_>>().join(" ")
        }
        Value::Object(pairs) => {
            let pairs = pairs
                .iter()
                .map(|(key, value)| format!("{key}={}", value_text(value).unwrap_or_default()));
            pairs.collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    };
    (!text.is_empty()).then_some(text)
}

/// A word as a shell takes it for one.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_an_image_asks_for_and_says_reads_well() {
        let image: Image = serde_json::from_value(json!({
            "image_id": "4f3c", "tenant_id": "t", "name": "orders", "runner_type": "oci", "created_at_ms": 0,
            "base": "6f52", "limits": {"memory_bytes": 268_435_456, "cpu_millicores": 500, "pids": 32}, "network": "egress",
            "allowed_hosts": ["a.example.com", "*.b.example.com:443"], "read_only": true,
            "container": {
                "cmd": null, "entrypoint": ["/bin/sh", "-c", "echo 'a b'", ""], "env_names": [], "labels": {"a": "b"},
                "layers": 3, "unpacked_bytes": 2048, "user": "", "working_dir": "/srv",
            },
        }))
        .unwrap();
        let rows = facts(&image);
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, cell)| (name.as_str(), cell.clone()))
            .collect();
        let shown = crate::table::facts(&rows, false);
        let lines: Vec<_> = shown
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "base 6f52",
                "limits 256.0 MiB memory, 0.5 processors, 32 processes",
                "network egress",
                "allowed hosts a.example.com, *.b.example.com:443",
                "read only true",
                r"container entrypoint /bin/sh -c 'echo '\''a b'\''' ''",
                "container labels a=b",
                "container layers 3",
                "container unpacked 2.0 KiB",
                "container working dir /srv",
            ]
        );
    }
}
