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

use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::unistd::{User, geteuid};

use crate::command::{capture, quoted, root, target};
use crate::error::Error;
use crate::requirements::in_path;

/// The oldest major version that can make a cluster with an ICU collation.
const OLDEST_VERSION: u32 = 15;
/// The user that runs the server when we are root, which PostgreSQL refuses to be.
const SERVER_USER: &str = "postgres";
/// Where the search for the port of the development cluster begins.
const FIRST_PORT: u16 = 55432;
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
        let ports = match settings.port {
            Some(port) => vec![port],
            None => self.ports_to_try(),
        };
        let mut last_failure = None;
        for port in ports {
            // A port may be taken between our look at it and the server's bind, hence the loop.
            self.configure(settings, port)?;
            match self.pg_ctl(&["start"]) {
                Ok(()) => return Ok(()),
                Err(error) => last_failure = Some(error),
            }
        }
        let log = self.end_of_log();
        Err(match last_failure {
            Some(error) => Error::Unmet(format!("{error}; the end of its log:\n{log}")),
            None => Error::Unmet(format!("no free port from {FIRST_PORT} on for PostgreSQL")),
        })
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

    /// Gives ports that are free now: first the one used before, since URLs were copied. What is
    /// left of a server that was killed holds it for a moment longer.
    fn ports_to_try(&self) -> Vec<u16> {
        let before = self.configured_port().ok();
        let deadline = Instant::now() + Duration::from_secs(5);
        while before.is_some_and(|port| !is_free(&port)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let others = FIRST_PORT..FIRST_PORT + 100;
        before
            .into_iter()
            .chain(others)
            .filter(is_free)
            .take(5)
            .collect()
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

/// A cluster for one test run: gone with this value, and if this process is killed, with the next
/// run.
pub(crate) struct PrivateCluster {
    cluster: Cluster,
    /// Held for the whole life: a cluster whose lock is free has lost its process.
    alive: File,
}

impl PrivateCluster {
    const PREFIX: &'static str = "private-";

    /// Starts a cluster that does not wait for the disk.
    pub(crate) fn start() -> Result<Self, Error> {
        sweep()?;
        let name = format!("{}{}", Self::PREFIX, std::process::id());
        let cluster = Cluster::named(&name)?;
        let path = alive_path(&cluster.directory);
        let alive = File::create(&path).map_err(Error::io(format!("open {}", path.display())))?;
        alive
            .try_lock()
            .map_err(|error| Error::Unmet(format!("{}: {error}", path.display())))?;
        // From here on `drop` cleans up, also after a start that failed half-way.
        let started = Self { cluster, alive };
        started.cluster.start(Settings {
            fsync: false,
            port: None,
        })?;
        Ok(started)
    }

    /// Gives the variables by which tests find it.
    pub(crate) fn environment(&self) -> Result<[(&'static str, String); 3], Error> {
        self.cluster.environment()
    }
}

impl Drop for PrivateCluster {
    fn drop(&mut self) {
        if let Err(error) = discard(&self.cluster) {
            let text = crate::error::with_causes(&error);
            eprintln!("could not remove the private PostgreSQL: {text}");
        }
        // Explicit, because the order matters: free only when nothing is left.
        let _closed_anyway = self.alive.unlock();
    }
}

/// Removes private clusters whose process was killed.
fn sweep() -> Result<(), Error> {
    let base = base()?;
    let entries = fs::read_dir(&base).map_err(Error::io(format!("list {}", base.display())))?;
    for entry in entries {
        let entry = entry.map_err(Error::io(format!("list {}", base.display())))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_suffix(".alive") else {
            continue;
        };
        let free = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok());
        if free && name.starts_with(PrivateCluster::PREFIX) {
            eprintln!("    removing {name}, whose test run was killed");
            discard(&Cluster::named(name)?)?;
        }
    }
    Ok(())
}

fn discard(cluster: &Cluster) -> Result<(), Error> {
    cluster.stop(Mode::Immediate)?;
    cluster.remove()?;
    for path in [
        lock_path(&cluster.directory),
        alive_path(&cluster.directory),
    ] {
        if path.exists() {
            fs::remove_file(&path).map_err(Error::io(format!("remove {}", path.display())))?;
        }
    }
    Ok(())
}

/// Finds the directory of the newest server programs of this machine.
pub(crate) fn binaries() -> Result<PathBuf, Error> {
    let complete = |directory: &PathBuf| {
        ["initdb", "pg_ctl"]
            .iter()
            .all(|it| directory.join(it).exists())
    };
    let debian = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let newest = debian
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .filter(|(version, _): &(u32, PathBuf)| *version >= OLDEST_VERSION)
        .map(|(version, path)| (version, path.join("bin")))
        .filter(|(_, directory)| complete(directory))
        .max_by_key(|(version, _)| *version)
        .map(|(_, directory)| directory);
    let in_path = || in_path("pg_ctl").and_then(|file| Some(file.parent()?.to_path_buf()));
    newest
        .or_else(|| in_path().filter(complete))
        .ok_or_else(|| {
            Error::Unmet(format!(
                "no initdb and pg_ctl of PostgreSQL {OLDEST_VERSION} or newer in \
             /usr/lib/postgresql/*/bin or PATH: sudo apt-get install postgresql"
            ))
        })
}

/// Gives the directory of all clusters: under the target directory, unless we are root and the
/// server's user cannot get there (a checkout below /root).
fn base() -> Result<PathBuf, Error> {
    let ours = target().join("postgres");
    make_directory(&ours, 0o755)?;
    if !geteuid().is_root() || can_be_reached(&ours) {
        return Ok(ours);
    }
    let name: String = root()
        .to_string_lossy()
        .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let elsewhere = PathBuf::from(format!("/var/tmp/runtara-postgres{name}"));
    make_directory(&elsewhere, 0o755)?;
    // Anybody may make directories there: one that is not ours could hold a pg_ctl for root to run.
    let found = fs::symlink_metadata(&elsewhere)
        .map_err(Error::io(format!("look at {}", elsewhere.display())))?;
    if found.is_dir() && found.uid() == 0 {
        Ok(elsewhere)
    } else {
        Err(Error::Unmet(format!(
            "{} is not root's directory: remove it",
            elsewhere.display()
        )))
    }
}

fn can_be_reached(directory: &Path) -> bool {
    directory
        .ancestors()
        .all(|it| it.metadata().is_ok_and(|found| found.mode() & 0o001 != 0))
}

/// Gives the user that must run the server, when it cannot be us.
fn server_user() -> Result<Option<User>, Error> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let found = User::from_name(SERVER_USER)
        .map_err(|errno| Error::io(format!("look up {SERVER_USER}"))(errno.into()))?;
    found.map(Some).ok_or_else(|| {
        Error::Unmet(format!(
            "PostgreSQL refuses to run as root and there is no user {SERVER_USER}: \
             useradd --system {SERVER_USER}"
        ))
    })
}

fn as_server_user(program: &Path, as_root: bool) -> Command {
    let mut command = Command::new(if as_root {
        Path::new("runuser")
    } else {
        program
    });
    if as_root {
        command.args(["-u", SERVER_USER, "--"]).arg(program);
    }
    command.current_dir("/");
    command
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    let action = || format!("make {}", path.display());
    fs::create_dir_all(path).map_err(Error::io(action()))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::io(action()))
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(Error::io(format!("write {}", path.display())))
}

fn lock_path(directory: &Path) -> PathBuf {
    directory.with_extension("lock")
}

fn alive_path(directory: &Path) -> PathBuf {
    directory.with_extension("alive")
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
