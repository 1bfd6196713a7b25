//! Throw-away PostgreSQL clusters: one for development, and a private one for each test run.
//!
//! A cluster lives under `target/postgres/<name>` and answers on 127.0.0.1 and on a socket of its
//! own, to anybody on this machine, without a password. Tests find it through three variables:
//!
//! | variable | meaning |
//! |---|---|
//! | `RUNTARA_TEST_POSTGRES_URL` | URL of the database `postgres`, as a superuser: tests create databases of their own |
//! | `RUNTARA_TEST_PG_CTL` | a `pg_ctl` that already knows this cluster and its user: `$RUNTARA_TEST_PG_CTL restart -m immediate` is all a fault test types, root or not |
//! | `RUNTARA_TEST_PG_DATA` | its data directory |
//!
//! Ids are compared and sorted by an ICU collation here, as in most production databases: under `C`
//! a statement that forgets `COLLATE "C"` or a pattern index would look right.

mod place;
mod private;

use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(crate) use self::place::binaries;
use self::place::{SERVER_USER, as_server_user, base, make_directory, server_user};
pub(crate) use self::private::PrivateCluster;
use crate::command::{capture, quoted};
use crate::error::Error;

/// Where the search for the port of the development cluster begins.
const FIRST_PORT: u16 = 55432;
/// How often a start is tried. A port may be taken between our look at it and the server's bind, and
/// what is left of a server that was killed holds its shared memory for a moment longer.
const START_ATTEMPTS: u32 = 10;
/// `sun_path` of unix(7) has 108 bytes, the final NUL included; the name is `/.s.PGSQL.<port>`.
const LONGEST_SOCKET_DIRECTORY: usize = 107 - "/.s.PGSQL.65535".len();

/// How a cluster is to run.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    /// Whether commits wait for the disk. Without it a killed PostgreSQL still loses nothing (the
    /// pages are the kernel's by then); only a machine that stops does, and no test does that.
    pub(crate) fsync: bool,
    /// The port to listen on; without one a free port is taken.
    pub(crate) port: Option<u16>,
}

/// How the server is told to leave, as pg_ctl(1) names it.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Waits until every client has gone.
    Smart,
    /// Ends the sessions, writes everything down, leaves.
    Fast,
    /// Leaves at once, as if it had crashed: the next start recovers.
    Immediate,
}

/// A cluster's place on the disk, whether or not there is anything yet.
pub(crate) struct Cluster {
    /// What is ours: `pg_ctl` and the settings. Root executes a file in it, so the server's user
    /// must not be able to write here.
    directory: PathBuf,
    /// What is the server's: data, socket and log.
    server: PathBuf,
    binaries: PathBuf,
}

/// What a cluster is doing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// There is none.
    Absent,
    /// It has data and no server.
    Stopped,
    /// It is served by this process on this port.
    Running { pid: u32, port: u16 },
}

impl Cluster {
    /// Names the cluster for development, which stays until it is stopped.
    pub(crate) fn for_development() -> Result<Self, Error> {
        Self::named("development")
    }

    fn named(name: &str) -> Result<Self, Error> {
        let directory = base()?.join(name);
        Ok(Self {
            server: directory.join("server"),
            directory,
            binaries: binaries()?,
        })
    }

    /// Starts the server unless it runs, over whatever a crash has left behind.
    pub(crate) fn start(&self, settings: Settings) -> Result<(), Error> {
        let _one_at_a_time = self.lock()?;
        if let Status::Running { port, .. } = self.status()? {
            return match settings.port {
                Some(wanted) if wanted != port => Err(Error::Unmet(format!(
                    "PostgreSQL runs on port {port} and not on {wanted}; stop it first"
                ))),
                _ => Ok(()),
            };
        }
        self.make()?;
        let mut failure = None;
        for _ in 0..START_ATTEMPTS {
            let port = settings.port.map_or_else(|| self.free_port(), Ok)?;
            self.configure(settings, port)?;
            match self.pg_ctl(&["start"]) {
                Ok(()) => return Ok(()),
                Err(error) => failure = Some(error),
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        let error = failure.expect("there was at least one attempt");
        Err(Error::Unmet(format!(
            "{error}; the end of its log:\n{}",
            self.end_of_log()
        )))
    }

    /// Stops the server if it runs.
    pub(crate) fn stop(&self, mode: Mode) -> Result<(), Error> {
        let _one_at_a_time = self.lock()?;
        match self.status()? {
            Status::Running { .. } => self.pg_ctl(&["stop", "-m", mode.word()]),
            Status::Absent | Status::Stopped => Ok(()),
        }
    }

    /// Restarts the server; one that does not run is started.
    pub(crate) fn restart(&self, mode: Mode) -> Result<(), Error> {
        let _one_at_a_time = self.lock()?;
        match self.status()? {
            Status::Absent => Err(Error::Unmet("there is no cluster yet: start it".to_owned())),
            Status::Stopped | Status::Running { .. } => {
                self.pg_ctl(&["restart", "-m", mode.word()])
            }
        }
    }

    /// Removes the data of a stopped server.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        match self.status()? {
            Status::Running { pid, .. } => Err(Error::Unmet(format!("process {pid} serves it"))),
            Status::Absent | Status::Stopped => match fs::remove_dir_all(&self.directory) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other.map_err(Error::io(format!("remove {}", self.directory.display()))),
            },
        }
    }

    /// Tells what the cluster is doing. A pid file left by a crash counts as stopped, even when
    /// another process has that pid by now.
    pub(crate) fn status(&self) -> Result<Status, Error> {
        if !self.data().exists() {
            return Ok(Status::Absent);
        }
        let Ok(pid_file) = fs::read_to_string(self.data().join("postmaster.pid")) else {
            return Ok(Status::Stopped);
        };
        let pid = pid_file
            .lines()
            .next()
            .and_then(|line| line.trim().parse().ok());
        let Some(pid) = pid.filter(|pid| self.is_served_by(*pid)) else {
            return Ok(Status::Stopped);
        };
        Ok(Status::Running {
            pid,
            port: self.configured_port()?,
        })
    }

    /// Gives the URL of its database `postgres`.
    pub(crate) fn url(&self) -> Result<String, Error> {
        let port = self.configured_port()?;
        Ok(format!("postgres://postgres@127.0.0.1:{port}/postgres"))
    }

    /// Gives the variables by which tests find it.
    pub(crate) fn environment(&self) -> Result<[(&'static str, String); 3], Error> {
        Ok([
            ("RUNTARA_TEST_POSTGRES_URL", self.url()?),
            ("RUNTARA_TEST_PG_CTL", self.script().display().to_string()),
            ("RUNTARA_TEST_PG_DATA", self.data().display().to_string()),
        ])
    }

    fn data(&self) -> PathBuf {
        self.server.join("data")
    }

    fn script(&self) -> PathBuf {
        self.directory.join("pg_ctl")
    }

    fn settings_file(&self) -> PathBuf {
        self.directory.join("runtara.conf")
    }

    fn log(&self) -> PathBuf {
        self.server.join("log")
    }

    fn lock(&self) -> Result<File, Error> {
        let path = lock_path(&self.directory);
        let file = File::create(&path).map_err(Error::io(format!("open {}", path.display())))?;
        file.lock()
            .map_err(Error::io(format!("lock {}", path.display())))?;
        Ok(file)
    }

    /// Makes the directories and the cluster where they are missing.
    fn make(&self) -> Result<(), Error> {
        make_directory(&self.directory, 0o755)?;
        make_directory(&self.server, 0o700)?;
        let owner = server_user()?;
        if let Some(user) = &owner {
            chown(
                &self.server,
                Some(user.uid.as_raw()),
                Some(user.gid.as_raw()),
            )
            .map_err(Error::io(format!(
                "give {} to {SERVER_USER}",
                self.server.display()
            )))?;
        }
        self.write_script(owner.is_some())?;
        let data = self.data();
        if data.exists() {
            let pid_file = data.join("postmaster.pid");
            if pid_file.exists() {
                // Nobody serves it (the caller looked), but pg_ctl would believe the number.
                fs::remove_file(&pid_file)
                    .map_err(Error::io(format!("remove {}", pid_file.display())))?;
            }
            return Ok(());
        }
        // Renamed when complete: an initdb that was killed leaves nothing that looks like a cluster.
        let unfinished = self.server.join("data.new");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)
                .map_err(Error::io(format!("remove {}", unfinished.display())))?;
        }
        let include = self
            .settings_file()
            .display()
            .to_string()
            .replace('\'', "''");
        let mut initdb = as_server_user(&self.binaries.join("initdb"), owner.is_some());
        initdb.args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ]);
        initdb.args(["--locale-provider=icu", "--icu-locale=en-US", "--no-sync"]);
        capture(initdb.arg("--pgdata").arg(&unfinished))?;
        let main_settings = unfinished.join("postgresql.conf");
        let mut text = fs::read_to_string(&main_settings)
            .map_err(Error::io(format!("read {}", main_settings.display())))?;
        text.push_str(&format!("\ninclude '{include}'\n"));
        write(&main_settings, &text)?;
        fs::rename(&unfinished, &data).map_err(Error::io(format!("make {}", data.display())))
    }

    /// Writes the `pg_ctl` that knows cluster, log and user.
    fn write_script(&self, as_root: bool) -> Result<(), Error> {
        let word = |path: &Path| quoted(&path.display().to_string());
        let user = if as_root {
            format!("runuser -u {SERVER_USER} -- ")
        } else {
            String::new()
        };
        let pg_ctl = word(&self.binaries.join("pg_ctl"));
        let (data, log) = (word(&self.data()), word(&self.log()));
        let text = format!(
            "#!/bin/sh\n# pg_ctl of one cluster, as the user that PostgreSQL agrees to run as.\n\
             cd /\nexec {user}{pg_ctl} -D {data} -l {log} -w -t 60 \"$@\"\n"
        );
        let script = self.script();
        write(&script, &text)?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))
            .map_err(Error::io(format!("make {} executable", script.display())))
    }

    fn configure(&self, settings: Settings, port: u16) -> Result<(), Error> {
        let durable = if settings.fsync { "on" } else { "off" };
        // A place whose name is too long for a socket is served over TCP alone.
        let short = self.server.as_os_str().len() <= LONGEST_SOCKET_DIRECTORY;
        let socket = if short {
            self.server.display().to_string()
        } else {
            String::new()
        };
        let socket = socket.replace('\'', "''");
        let text = format!(
            "# Written at every start.\nport = {port}\nlisten_addresses = '127.0.0.1'\n\
             unix_socket_directories = '{socket}'\nmax_connections = 200\nfsync = {durable}\n\
             full_page_writes = {durable}\n"
        );
        let path = self.settings_file();
        write(&path, &text)?;
        // The server's user reads it, whatever our umask is.
        fs::set_permissions(&path, Permissions::from_mode(0o644))
            .map_err(Error::io(format!("make {} readable", path.display())))
    }

    /// Gives a port that is free now: the one used before if possible, since URLs were copied.
    fn free_port(&self) -> Result<u16, Error> {
        let before = self.configured_port().ok();
        let others = FIRST_PORT..FIRST_PORT + 100;
        before
            .into_iter()
            .chain(others)
            .find(is_free)
            .ok_or_else(|| {
                Error::Unmet(format!(
                    "no port is free for PostgreSQL from {FIRST_PORT} on"
                ))
            })
    }

    fn configured_port(&self) -> Result<u16, Error> {
        let path = self.settings_file();
        let text = fs::read_to_string(&path).map_err(Error::io(format!(
            "read {}: start it first",
            path.display()
        )))?;
        port_of(&text)
            .ok_or_else(|| Error::Unmet(format!("{} names no port: remove it", path.display())))
    }

    fn is_served_by(&self, pid: u32) -> bool {
        let Ok(words) = fs::read(format!("/proc/{pid}/cmdline")) else {
            return false;
        };
        let data = self.data();
        words
            .split(|byte| *byte == 0)
            .any(|word| word == data.as_os_str().as_encoded_bytes())
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Result<(), Error> {
        capture(Command::new(self.script()).args(arguments)).map(drop)
    }

    fn end_of_log(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

impl Mode {
    fn word(self) -> &'static str {
        match self {
            Self::Smart => "smart",
            Self::Fast => "fast",
            Self::Immediate => "immediate",
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::io(format!("write {}", path.display())))
}

fn lock_path(directory: &Path) -> PathBuf {
    directory.with_extension("lock")
}

fn is_free(port: &u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()
}

fn port_of(settings: &str) -> Option<u16> {
    settings
        .lines()
        .find_map(|line| line.strip_prefix("port = "))
        .and_then(|it| it.parse().ok())
}

#[cfg(test)]
mod tests {
    use crate::command::target;

    use super::*;

    fn cluster_in(directory: &Path) -> Cluster {
        Cluster {
            server: directory.join("server"),
            directory: directory.to_path_buf(),
            binaries: PathBuf::from("/nowhere"),
        }
    }

    #[test]
    fn the_port_is_read_from_the_settings_that_are_written() {
        let directory = target().join(format!("postgres-settings-{}", std::process::id()));
        make_directory(&directory, 0o755).expect("the target directory is ours");
        let cluster = cluster_in(&directory);
        cluster
            .configure(
                Settings {
                    fsync: true,
                    port: None,
                },
                5999,
            )
            .expect("it is written");
        assert_eq!(
            cluster.url().expect("a port is configured"),
            "postgres://postgres@127.0.0.1:5999/postgres"
        );
        fs::remove_dir_all(directory).expect("it is ours");
    }

    #[test]
    fn a_stale_pid_file_is_not_taken_for_a_server() {
        let directory = target().join(format!("postgres-stale-{}", std::process::id()));
        let cluster = cluster_in(&directory);
        assert_eq!(cluster.status().expect("it can be told"), Status::Absent);
        fs::create_dir_all(cluster.data()).expect("the target directory is ours");
        assert_eq!(cluster.status().expect("it can be told"), Status::Stopped);
        // Given a pid file that names a living process which is no PostgreSQL: this one.
        let pid_file = cluster.data().join("postmaster.pid");
        fs::write(pid_file, format!("{}\n", std::process::id())).expect("it is ours");
        assert_eq!(cluster.status().expect("it can be told"), Status::Stopped);
        fs::remove_dir_all(directory).expect("it is ours");
    }
}
