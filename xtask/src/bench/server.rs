//! A server of one phase: a release build, on a database and a data directory of its own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::Value;

use super::database::Database;
use super::process;
use super::wire::Connection;
use crate::command::{leave_out, signal, target};
use crate::error::Error;
use crate::http::Client;
use crate::interrupt;

/// How long a server may take until it is ready.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a server may take to leave.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// The tenant of everything.
pub(super) const TENANT: &str = "bench";

/// A running server. Dropped, it leaves, and its runs end.
pub(super) struct Server {
    child: Child,
    directory: PathBuf,
    /// The environment protocol.
    pub(super) environment: u16,
    /// The instance protocol.
    pub(super) core: u16,
}

impl Server {
    /// Starts a server and waits until it is ready.
    pub(super) fn start(
        place: &Path,
        name: &str,
        database: &Database,
        variables: &[(&str, &str)],
    ) -> Result<Self, Error> {
        Self::start_on(place, name, &database.url, variables)
    }

    /// Starts a server on the database at this URL, which need not be one of PostgreSQL, and waits until it is ready.
    pub(super) fn start_on(
        place: &Path,
        name: &str,
        database_url: &str,
        variables: &[(&str, &str)],
    ) -> Result<Self, Error> {
        let directory = place.join(name);
        fs::create_dir_all(&directory)
            .map_err(Error::io(format!("make {}", directory.display())))?;
        let ports = free_ports()?;
        let child = spawn(&directory, ports, database_url, variables)?;
        let [environment, core] = ports;
        let mut server = Self {
            child,
            directory,
            environment,
            core,
        };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// Gives the id of the process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives the process that forks the shims.
    pub(super) fn launchers(&self) -> Vec<u32> {
        let ours = |pid: &u32| process::parent(*pid) == Some(self.pid());
        process::all().into_iter().filter(ours).collect()
    }

    /// Connects to the environment protocol.
    pub(super) fn connect(&self) -> Result<Connection, Error> {
        Connection::open(self.environment)
    }

    /// Registers a test program and gives the id of its image.
    pub(super) fn image(&self, name: &str) -> Result<String, Error> {
        let fields = [
            ("tenant_id", TENANT),
            ("name", name),
            ("runner_type", "native"),
        ];
        let answer = Client::new(self.environment).upload(
            "/api/v1/images/upload",
            &fields,
            "binary",
            &program(name),
        )?;
        let body = answer.accepted(&format!("register {name}"))?;
        id_of_image(&body)
    }

    /// Kills the process; what it has started lives on.
    pub(super) fn kill(&mut self) -> Result<(), Error> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map(drop).map_err(Error::io("kill the server"))
    }

    /// Kills the process, starts another in its place, and waits until that is ready.
    pub(super) fn kill_and_restart(
        &mut self,
        database_url: &str,
        variables: &[(&str, &str)],
    ) -> Result<(), Error> {
        self.kill()?;
        let ports = [self.environment, self.core];
        self.child = spawn(&self.directory, ports, database_url, variables)?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<(), Error> {
        let client = Client::new(self.environment);
        interrupt::until("the server to be ready", START_LIMIT, || {
            let left = self
                .child
                .try_wait()
                .map_err(Error::io("look after the server"))?;
            if let Some(status) = left {
                let log = fs::read_to_string(self.directory.with_extension("log"));
                return Err(Error::Unmet(format!(
                    "the server left at its start ({status}):\n{}",
                    log.unwrap_or_default()
                )));
            }
            let ready = client
                .get("/ready")
                .ok()
                .filter(|answer| answer.status == 200);
            Ok(ready.map(drop))
        })
    }

    /// Ends the process, politely first. Not a wait that Ctrl-C cuts short: this is what happens after it.
    fn stop(&mut self) -> std::io::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        signal(self.pid(), Signal::SIGTERM);
        let end = Instant::now() + STOP_LIMIT;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                self.child.kill()?;
                self.child.wait()?;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("could not stop the server: {error}");
        }
        // Runs outlive their server by design; their shims leave with them.
        for pid in process::of_instances(&id_prefix()) {
            signal(pid, Signal::SIGKILL);
        }
    }
}

/// Starts the process of a server.
fn spawn(
    directory: &Path,
    [environment, core]: [u16; 2],
    database_url: &str,
    variables: &[(&str, &str)],
) -> Result<Child, Error> {
    let path = directory.with_extension("log");
    let open = || File::options().create(true).append(true).open(&path);
    let action = || format!("open {}", path.display());
    let (log, errors) = (
        open().map_err(Error::io(action()))?,
        open().map_err(Error::io(action()))?,
    );
    let program = program("runtara-environment");
    let mut command = Command::new(&program);
    // What the developer has set for another server must not lead this one astray.
    leave_out(&mut command, |name| {
        name.starts_with("RUNTARA_") || name == "RUST_LOG"
    });
    if geteuid().is_root() {
        command.env("RUNTARA_NATIVE_USER", "root");
    }
    command
        .arg("serve")
        .env("RUNTARA_ENVIRONMENT_DATABASE_URL", database_url)
        .env("DATA_DIR", directory)
        .env("RUNTARA_ENV_HTTP_PORT", environment.to_string())
        .env("RUNTARA_CORE_ADDR", format!("127.0.0.1:{core}"))
        .envs(variables.iter().copied())
        // No `.env` of the working tree; and Ctrl-C reaches the server through us.
        .current_dir(directory)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .map_err(Error::io(format!("run {}", program.display())))
}

/// Reads the id out of the answer to a registration.
pub(super) fn id_of_image(body: &Value) -> Result<String, Error> {
    let id = body.get("image_id").and_then(Value::as_str);
    id.map(str::to_owned).ok_or_else(|| {
        Error::Unmet(format!(
            "the answer to a registration names no image: {body}"
        ))
    })
}

/// What the ids of all our instances begin with: of no other bench that runs at the same time.
pub(super) fn id_prefix() -> String {
    format!("bench-{}-", std::process::id())
}

/// Gives the place where cargo puts a release build.
pub(super) fn program(name: &str) -> PathBuf {
    target().join("release").join(name)
}

/// Finds two ports below those that the kernel gives to connections (`ip_local_port_range`, ip(7)).
fn free_ports() -> Result<[u16; 2], Error> {
    let start = std::process::id().wrapping_mul(37) % 18_000;
    let listen = |port: u32| {
        let port = u16::try_from(port).ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
    };
    // Both are held until the second is found, so that they differ.
    let held: Vec<_> = (0..200)
        .filter_map(|step| listen(11_000 + start + step))
        .take(2)
        .collect();
    let ports: Option<Vec<u16>> = held
        .iter()
        .map(|it| it.local_addr().ok().map(|address| address.port()))
        .collect();
    match ports.as_deref() {
        Some([environment, core]) => Ok([*environment, *core]),
        _ => Err(Error::Unmet(
            "no two ports are free for the server".to_owned(),
        )),
    }
}
