//! A PostgreSQL of one test's own, which it may restart without disturbing others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::unistd::{User, chown, geteuid};

use crate::place::Place;
use crate::server::free_ports;

/// The user that runs the server when we are root, which PostgreSQL refuses to be.
const SERVER_USER: &str = "postgres";

/// A PostgreSQL server that is ended and removed with this value.
pub struct PrivatePostgres {
    // Dropped last, with whatever is left of the server.
    place: Place,
    binaries: PathBuf,
    port: u16,
}

impl PrivatePostgres {
    /// Makes a cluster and starts its server.
    #[must_use]
    pub fn start() -> Self {
        let place = Place::make();
        let home = place.path().join("postgres");
        fs::create_dir(&home).expect("the directory is ours");
        if geteuid().is_root() {
            let user = User::from_name(SERVER_USER).ok().flatten();
            let user = user.expect("root needs a user `postgres` to run PostgreSQL as");
            chown(&home, Some(user.uid), Some(user.gid)).expect("root may");
        }
        let [port] = free_ports();
        let postgres = Self {
            place,
            binaries: binaries(),
            port,
        };
        let data = postgres.data();
        let data = data.to_str().expect("the path is ours and plain");
        postgres.run(
            "initdb",
            &[
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
                "--pgdata",
                data,
            ],
        );
        let settings = format!(
            "port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n\
             max_connections = 100\n",
            postgres.port
        );
        let file = postgres.data().join("postgresql.conf");
        let text = fs::read_to_string(&file).expect("initdb has written it");
        fs::write(&file, text + &settings).expect("the directory is ours");
        postgres.pg_ctl(&["start"]);
        postgres
    }

    /// The URL of its database `postgres`, as a superuser.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Restarts it as after a crash: no session ends properly, nothing is written down before it is recovered.
    pub fn crash_and_restart(&self) {
        self.crash();
        self.start_again();
    }

    /// Restarts it in good order: sessions are ended, and everything is written down. One that does not come to its end, as it was once
    /// seen of one that had just lost a process, is ended as whoever runs it would do in the end.
    pub fn restart(&self) {
        let data = self.data();
        let stop = ["-D", text(&data), "-w", "-t", "20", "-m", "fast", "stop"];
        if let Err(error) = self.try_run("pg_ctl", &stop) {
            eprintln!("PostgreSQL does not stop, and is killed: {error}");
            self.crash();
        }
        self.start_again();
    }

    /// The id of its first process.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn pid(&self) -> i32 {
        let text = fs::read_to_string(self.data().join("postmaster.pid"));
        let text = text.expect("it runs");
        let line = text.lines().next().unwrap_or_default();
        line.trim().parse().expect("the first line is its id")
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it as a crash would.
    pub fn crash(&self) {
        self.pg_ctl(&["stop", "-m", "immediate"]);
    }

    /// Starts it again after a crash.
    pub fn start_again(&self) {
        self.pg_ctl(&["start"]);
    }

    fn data(&self) -> PathBuf {
        self.place.path().join("postgres/data")
    }

    fn pg_ctl(&self, arguments: &[&str]) {
        let (data, log) = (self.data(), self.place.path().join("postgres/log"));
        let fixed = ["-D", text(&data), "-l", text(&log), "-w", "-t", "60"];
        // What is left of a server that was just killed may hold its shared memory for a moment, and it counts as one that runs until
        // whoever has inherited it has noticed its end.
        let late = Instant::now() + Duration::from_secs(30);
        while let Err(error) = self.try_run("pg_ctl", &[&fixed[..], arguments].concat()) {
            let log = fs::read_to_string(&log).unwrap_or_default();
            let of_server = |line: &&str| !line.contains("FATAL:  the database system is");
            let end: Vec<_> = log.lines().rev().filter(of_server).take(20).collect();
            assert!(
                Instant::now() < late,
                "pg_ctl {arguments:?}: {error}\nThe end of its log, the last line first: {end:#?}"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        if let Err(error) = self.try_run(program, arguments) {
            panic!("{program} {arguments:?}: {error}");
        }
    }

    fn try_run(&self, program: &str, arguments: &[&str]) -> Result<(), String> {
        let program = self.binaries.join(program);
        let mut command = if geteuid().is_root() {
            let mut command = Command::new("runuser");
            command.args(["-u", SERVER_USER, "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        // Not piped: the server would inherit the pipe, and reading it to its end would last as long as the server.
        let output = self.place.path().join("postgres-output");
        let file = fs::File::create(&output).map_err(|error| error.to_string())?;
        let errors = file.try_clone().map_err(|error| error.to_string())?;
        let status = command
            .args(arguments)
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .stdout(file)
            .stderr(errors)
            .status()
            .map_err(|error| error.to_string())?;
        if status.success() {
            Ok(())
        } else {
            Err(fs::read_to_string(&output).unwrap_or_default())
        }
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        let data = self.data();
        let arguments = [
            "-D",
            text(&data),
            "-w",
            "-t",
            "20",
            "-m",
            "immediate",
            "stop",
        ];
        // A server that does not run cannot be stopped; whatever is left is killed with the place.
        let _stopped_or_killed = self.try_run("pg_ctl", &arguments);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is ours and plain")
}

fn binaries() -> PathBuf {
    let debian = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let newest = debian
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse::<u32>().ok()?,
                entry.path(),
            ))
        })
        .map(|(version, path)| (version, path.join("bin")))
        .filter(|(_, path)| path.join("pg_ctl").exists())
        .max_by_key(|(version, _)| *version);
    let from_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|directory| directory.join("pg_ctl").exists())
    };
    newest
        .map(|(_, path)| path)
        .or_else(from_path)
        .expect("no pg_ctl in /usr/lib/postgresql/*/bin or PATH: sudo apt-get install postgresql")
}
