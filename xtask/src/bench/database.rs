//! The PostgreSQL of one bench: waits for the disk at each commit, as production does.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::load::quantile;
use super::process::family_cpu_seconds;
use crate::command::capture;
use crate::error::Error;
use crate::postgres::{PrivateCluster, binaries};
use crate::requirements::in_path;

/// The same size as the state of a checkpoint of ours.
pub(super) const STATE_BYTES: usize = 96;

/// A cluster of our own. Each phase makes a database in it.
pub(super) struct Postgres {
    cluster: PrivateCluster,
}

/// One database.
pub(super) struct Database {
    pub(super) url: String,
}

/// What pgbench came to.
pub(super) struct Pgbench {
    /// Commits in a second.
    pub(super) rate: f64,
    pub(super) p50_ms: f64,
    /// CPU microseconds that the server spent for each commit.
    pub(super) cpu_us: f64,
}

impl Postgres {
    pub(super) fn start() -> Result<Self, Error> {
        let cluster = PrivateCluster::durable()?;
        Ok(Self { cluster })
    }

    /// Makes an empty database.
    pub(super) fn database(&self, name: &str) -> Result<Database, Error> {
        let [(_, url), ..] = self.cluster.environment()?;
        let postgres = Database { url };
        postgres.sql(&format!("create database {name}"))?;
        let url = postgres
            .url
            .strip_suffix("/postgres")
            .unwrap_or(&postgres.url);
        Ok(Database {
            url: format!("{url}/{name}"),
        })
    }
}

impl Database {
    /// Executes statements, each its own transaction unless they say otherwise, and gives what the last ones print.
    pub(super) fn sql(&self, statements: &str) -> Result<String, Error> {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d"]);
        psql.arg(&self.url)
            .args(["-c", statements])
            .env("PGCONNECT_TIMEOUT", "10")
            .env("PGOPTIONS", "-c client_min_messages=warning");
        Ok(capture(&mut psql)?.trim().to_owned())
    }

    /// Gives one row of numbers.
    pub(super) fn numbers(&self, statement: &str) -> Result<Vec<Vec<f64>>, Error> {
        let text = self.sql(statement)?;
        let rows = text
            .lines()
            .map(|line| line.split('|').map(str::parse).collect());
        rows.collect::<Result<_, _>>()
            .map_err(|_| Error::Unmet(format!("`{statement}` gave no numbers: {text}")))
    }

    /// Gives the CPU time that the whole PostgreSQL server has used so far.
    pub(super) fn cpu_seconds(&self) -> Result<f64, Error> {
        let file = self.sql("show data_directory")? + "/postmaster.pid";
        let text = fs::read_to_string(&file).map_err(Error::io(format!("read {file}")))?;
        let pid = text.lines().next().and_then(|it| it.trim().parse().ok());
        let pid = pid.ok_or_else(|| Error::Unmet(format!("{file} names no process")))?;
        family_cpu_seconds(pid)
    }

    /// Makes the table that pgbench fills.
    pub(super) fn prepare_pgbench(&self) -> Result<(), Error> {
        self.sql(
            "create table bench_rows (id bigint generated always as identity primary key,
                                      client integer not null, name text not null, state bytea not null)",
        )
        .map(drop)
    }

    /// Measures commits of one inserted row each: what the database does without us, over the same kind of connection.
    pub(super) fn pgbench(
        &self,
        place: &Path,
        clients: usize,
        time: Duration,
    ) -> Result<Pgbench, Error> {
        let script = place.join("insert.sql");
        let state = "5a".repeat(STATE_BYTES);
        let text = format!(
            "insert into bench_rows (client, name, state) values (:client_id, 'step', '\\x{state}');\n"
        );
        fs::write(&script, text).map_err(Error::io(format!("write {}", script.display())))?;
        let logs = place.join("pgbench");
        fs::create_dir_all(&logs).map_err(Error::io(format!("make {}", logs.display())))?;
        let beside = binaries()?.join("pgbench");
        let program = in_path("pgbench")
            .filter(|_| !beside.exists())
            .unwrap_or(beside);
        let mut pgbench = Command::new(program);
        pgbench
            .args(["--no-vacuum", "--protocol=prepared", "--log", "--client"])
            .arg(clients.to_string())
            .args(["--jobs", &clients.min(2).to_string()])
            .args(["--time", &time.as_secs().max(1).to_string()])
            .arg("--log-prefix")
            .arg(logs.join("log"))
            .arg("--file")
            .arg(&script)
            .arg(&self.url);
        let before = self.cpu_seconds()?;
        let printed = capture(&mut pgbench)?;
        let cpu = self.cpu_seconds()? - before;
        let millis = logged_millis(&logs)?;
        fs::remove_dir_all(&logs).map_err(Error::io(format!("remove {}", logs.display())))?;
        Ok(Pgbench {
            rate: rate_of(&printed)?,
            cpu_us: cpu * 1e6 / millis.len().max(1) as f64,
            p50_ms: quantile(&millis, 0.5),
        })
    }
}

fn rate_of(printed: &str) -> Result<f64, Error> {
    let rate = printed
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.ok_or_else(|| Error::Unmet(format!("pgbench told no rate: {printed}")))
}

/// Reads the latencies, the third word of each line (in microseconds), of all of its threads.
fn logged_millis(logs: &Path) -> Result<Vec<f64>, Error> {
    let action = || format!("read the logs of pgbench in {}", logs.display());
    let mut millis: Vec<f64> = Vec::new();
    for entry in fs::read_dir(logs).map_err(Error::io(action()))? {
        let path = entry.map_err(Error::io(action()))?.path();
        let text = fs::read_to_string(path).map_err(Error::io(action()))?;
        let micros = text
            .lines()
            .filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok());
        millis.extend(micros.map(|it| it / 1e3));
    }
    millis.sort_by(f64::total_cmp);
    Ok(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_from_what_pgbench_prints() {
        let printed = "number of failed transactions: 0 (0.000%)\n\
                       tps = 1234.567890 (without initial connection time)\n";
        assert_eq!(rate_of(printed).expect("it is there"), 1234.56789);
        assert!(rate_of("connection refused").is_err());
    }
}
