//! The server process under test.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::geteuid;

use crate::containers;
use crate::database::{Database, Ground, Kind, psql};
use crate::http::{self, Address, Answer, Request};
use crate::keeper::Keeper;
use crate::place::{self, Place, Shared};
use crate::processes::{self, Process};
use crate::programs::program;

/// How long a server may take until it is ready; the first start makes the database.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a server may take to leave when it is asked.
const LEAVE_LIMIT: Duration = Duration::from_secs(45);
/// How much of the log a failed test shows.
const LOG_SHOWN: u64 = 16 * 1024;

/// What a server is to be started with.
pub struct Setup {
    verb: &'static str,
    database: Option<Database>,
    place: Place,
    variables: BTreeMap<String, String>,
    is_process_1: bool,
    is_passed_sockets: bool,
    kind: Kind,
    program: &'static str,
    disk_mib: Option<u32>,
}

impl Setup {
    /// `serve` on a store of its own.
    ///
    /// # Panics
    /// If it is for containers, and this is not root.
    #[must_use]
    pub fn new(ground: impl Into<Ground>) -> Self {
        let ground = ground.into();
        let place = Place::make();
        let database = Database::make(ground.store, place.path());
        let setup = Self::with(place, Some(database), "serve");
        setup.of_kind(ground.kind)
    }

    fn of_kind(mut self, kind: Kind) -> Self {
        assert!(
            kind != Kind::Containers || geteuid().is_root(),
            "containers are made by root; run the tests as root"
        );
        self.kind = kind;
        self
    }

    /// `serve` on a database of its own in this PostgreSQL.
    #[must_use]
    pub fn in_postgres(url: &str) -> Self {
        Self::with(Place::make(), Some(Database::in_postgres(url)), "serve")
    }

    /// `serve` on the database of another server, as a further node, with a place of its own. The other has to live longer: the database goes
    /// with it.
    ///
    /// # Panics
    /// If that server brings its own database.
    #[must_use]
    pub fn beside(other: &Server) -> Self {
        let database = Database::of_another(&other.database_url());
        Self::with(Place::make(), Some(database), "serve").of_kind(other.kind())
    }

    /// `serve` on somebody else's database.
    #[must_use]
    pub fn on(url: &str) -> Self {
        let setup = Self::with(Place::make(), None, "serve");
        setup.variable("RUNTARA_ENVIRONMENT_DATABASE_URL", url)
    }

    /// Has the server be this program.
    #[must_use]
    pub fn program(mut self, name: &'static str) -> Self {
        self.program = name;
        self
    }

    /// Gives the server a disk of its own for its data directory, of so many MiB. Only root can.
    #[must_use]
    pub fn with_small_disk(mut self, mebibytes: u32) -> Self {
        self.disk_mib = Some(mebibytes);
        self
    }

    /// `dev`, which brings its own database.
    #[must_use]
    pub fn dev() -> Self {
        Self::with(Place::make(), None, "dev")
    }

    fn with(place: Place, database: Option<Database>, verb: &'static str) -> Self {
        let mut setup = Self {
            verb,
            database,
            place,
            variables: BTreeMap::new(),
            is_process_1: false,
            is_passed_sockets: false,
            kind: Kind::Native,
            program: "runtara-environment",
            disk_mib: None,
        };
        if geteuid().is_root() {
            setup = setup.variable("RUNTARA_NATIVE_USER", "nobody");
        }
        setup
    }

    /// The URL of the database that it is given.
    ///
    /// # Panics
    /// If the server brings its own.
    #[must_use]
    pub fn database_url(&self) -> String {
        let database = self.database.as_ref();
        database.expect("this server is given a database").url()
    }

    /// The directory of the test: data, log and shared files.
    #[must_use]
    pub fn place(&self) -> &Path {
        self.place.path()
    }

    /// Sets a variable of the server.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Leaves out a variable of the server.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    /// Has the server be process 1 of a namespace of its own, as in a container. Only root can.
    #[must_use]
    pub fn as_process_1(mut self) -> Self {
        self.is_process_1 = true;
        self
    }

    /// Has somebody else keep the sockets of the server, who passes them on to each of its processes.
    #[must_use]
    pub fn with_sockets_passed_on(mut self) -> Self {
        self.is_passed_sockets = true;
        self
    }

    /// Has the clock of the server say a later time than that of the machine. Its other clocks are right.
    ///
    /// # Panics
    /// If the library that does so cannot be compiled.
    #[must_use]
    pub fn with_clock_ahead_by(self, ahead: Duration) -> Self {
        const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/clock_ahead.c");
        let library = self.place.path().join("clock_ahead.so");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .args([SOURCE, "-ldl"])
            .status();
        assert!(compiled.is_ok_and(|status| status.success()), "{SOURCE}");
        self.variable("LD_PRELOAD", &library.display().to_string())
            .variable("CLOCK_AHEAD_SECONDS", &ahead.as_secs().to_string())
    }

    /// Starts the server and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready, with its log.
    #[must_use]
    pub fn start(self) -> Server {
        // A port that was free may be taken until the server binds it.
        let mut server = Server::new(self);
        for _ in 0..4 {
            server.spawn();
            match server.wait_until_ready() {
                Ok(()) => return server,
                Err(status) if server.log().contains("in use") => {
                    eprintln!("a port was taken meanwhile ({status}); trying others");
                    server.ports = Ports::free();
                }
                Err(status) => panic!("the server left at its start ({status})"),
            }
        }
        panic!("the server found no free ports");
    }

    /// Starts the server, waits until it leaves by itself, and gives how it did and what it wrote.
    ///
    /// # Panics
    /// If it does not leave.
    #[must_use]
    pub fn run_to_its_end(self) -> (ExitStatus, String) {
        let mut server = Server::new(self);
        server.spawn();
        let status = server.wait_until_gone();
        (status, server.log())
    }
}

/// The OCI runtime of all servers, if the tests are told one.
fn runtime() -> Option<(&'static str, OsString)> {
    let named = std::env::var_os("RUNTARA_TEST_OCI_RUNTIME");
    named.map(|name| ("RUNTARA_OCI_RUNTIME", name))
}

/// A command whose process is the first of a namespace of its own, and goes with the one that is started.
fn process_1() -> Command {
    let mut outer = Command::new("unshare");
    outer.args(["--fork", "--pid", "--mount-proc", "--kill-child=SIGKILL"]);
    outer
}

/// The same command, started by another.
fn started_by(mut outer: Command, command: &Command) -> Command {
    outer
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    if let Some(directory) = command.get_current_dir() {
        outer.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    environment: u16,
    core: u16,
}

impl Ports {
    fn free() -> Self {
        let [environment, core] = free_ports();
        Self { environment, core }
    }
}

/// Gives ports that nobody listens on now, below those that the kernel gives to connections (`ip_local_port_range`, ip(7)): a server
/// that is killed and started again finds them still free.
#[must_use]
pub fn free_ports<const N: usize>() -> [u16; N] {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let free = || loop {
        // Tests of other processes begin elsewhere, so that they seldom meet.
        let start = std::process::id().wrapping_mul(37);
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + u16::try_from((start + step) % 20_000).expect("it is below 20,000");
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return listener;
        }
    };
    // All are held until the last is found, so that they differ.
    let held: [TcpListener; N] = std::array::from_fn(|_| free());
    held.map(|listener| listener.local_addr().expect("it is bound").port())
}

/// A server process, ended with this value, and everything that is there because of it.
pub struct Server {
    child: Option<Child>,
    ports: Ports,
    setup: Setup,
    shared: Shared,
    keeper: Option<Keeper>,
    /// Whose programs can be laid on the base image.
    with_base: Mutex<BTreeSet<String>>,
}

impl Server {
    /// A ready server on a store of its own.
    #[must_use]
    pub fn start(ground: impl Into<Ground>) -> Self {
        Setup::new(ground).start()
    }

    fn new(setup: Setup) -> Self {
        let shared = Shared::make(setup.place.path());
        let data = setup.place.path().join("data");
        fs::create_dir(&data).expect("the directory is ours");
        if let Some(mebibytes) = setup.disk_mib {
            place::mount_disk(&data, mebibytes);
        }
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).expect("it is ours");
        let ports = Ports::free();
        let keeper = setup
            .is_passed_sockets
            .then(|| Keeper::of([ports.environment, ports.core], &data));
        Self {
            child: None,
            ports,
            setup,
            shared,
            keeper,
            with_base: Mutex::default(),
        }
    }

    /// The tenants that have the image which programs in containers are laid on.
    pub(crate) fn tenants_with_base(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.with_base.lock().expect("no holder panics")
    }

    /// How it runs the programs of the test.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.setup.kind
    }

    /// Files that programs and the test share.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The server's data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.setup.place.path().join("data")
    }

    /// What it is called in the store, once it has made its data directory.
    #[must_use]
    pub fn node_id(&self) -> Option<String> {
        containers::node(self.place())
    }

    /// The URL of its database.
    ///
    /// # Panics
    /// If the server brings its own.
    #[must_use]
    pub fn database_url(&self) -> String {
        let database = self.setup.database.as_ref();
        database.expect("this server was given a database").url()
    }

    /// Asks the server's PostgreSQL, for what cannot be seen otherwise.
    #[must_use]
    pub fn psql(&self, statement: &str) -> String {
        psql(&self.database_url(), statement)
    }

    /// A command for this server's program with this server's variables.
    #[must_use]
    pub fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(program(self.setup.program));
        for (name, _) in std::env::vars_os() {
            // What the developer has set for another server must not lead this one astray.
            if name.to_string_lossy().starts_with("RUNTARA_") || name == "DATA_DIR" {
                command.env_remove(name);
            }
        }
        if let Some(database) = &self.setup.database {
            command.env("RUNTARA_ENVIRONMENT_DATABASE_URL", database.url());
        }
        command
            .arg(verb)
            .env("DATA_DIR", self.data_dir())
            .env("RUNTARA_ENV_HTTP_PORT", self.ports.environment.to_string())
            .env(
                "RUNTARA_CORE_ADDR",
                format!("127.0.0.1:{}", self.ports.core),
            )
            .envs(runtime())
            .envs(&self.setup.variables)
            // No `.env` of the working tree.
            .current_dir(self.setup.place.path())
            .stdin(Stdio::null());
        if self.setup.verb == "dev" && !self.setup.variables.contains_key("RUNTARA_CORE_HTTP_PORT")
        {
            let [port] = free_ports();
            command.env("RUNTARA_CORE_HTTP_PORT", port.to_string());
        }
        command
    }

    fn spawn(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path());
        let log = log.expect("the directory is ours");
        let errors = log.try_clone().expect("a descriptor is free");
        let mut command = self.command(self.setup.verb);
        if self.setup.is_process_1 {
            command = started_by(process_1(), &command);
        }
        if let Some(keeper) = &self.keeper {
            command = started_by(keeper.outer(), &command);
        }
        let child = command.stdout(log).stderr(errors).spawn();
        self.child = Some(child.expect("the program can be started"));
    }

    fn wait_until_ready(&mut self) -> Result<(), ExitStatus> {
        let end = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self.exited() {
                return Err(status);
            }
            let ready = http::exchange(&self.environment(), &Request::get("/ready"));
            if ready.is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            assert!(
                Instant::now() < end,
                "the server was not ready within {START_LIMIT:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_until_gone(&mut self) -> ExitStatus {
        let end = Instant::now() + LEAVE_LIMIT;
        loop {
            if let Some(status) = self.exited() {
                self.child = None;
                return status;
            }
            assert!(
                Instant::now() < end,
                "the server did not leave within {LEAVE_LIMIT:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut().expect("the server was started");
        child.try_wait().expect("it is our child")
    }

    /// The id of the server process.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn pid(&self) -> i32 {
        let id = self.child.as_ref().expect("the server runs").id();
        i32::try_from(id).expect("process ids fit")
    }

    /// Kills the server process, and only it, with SIGKILL: it gets no chance to put anything in order.
    pub fn kill_9(&mut self) {
        processes::send(self.pid(), Signal::SIGKILL);
        self.wait_until_gone();
    }

    /// Asks the server to leave with SIGTERM, and waits until it has.
    pub fn sigterm(&mut self) -> ExitStatus {
        processes::send(self.pid(), Signal::SIGTERM);
        self.wait_until_gone()
    }

    /// Sends the server process a signal.
    pub fn signal(&self, signal: Signal) {
        processes::send(self.pid(), signal);
    }

    /// Waits until the server process has left by itself.
    pub fn wait_for_its_end(&mut self) -> ExitStatus {
        self.wait_until_gone()
    }

    /// Starts the server again on the same directory, database and ports, and waits until it is ready.
    ///
    /// # Panics
    /// If it does not become ready.
    pub fn start_again(&mut self) {
        self.spawn();
        if let Err(status) = self.wait_until_ready() {
            panic!("the server left at its restart ({status})");
        }
    }

    /// Starts the server again, and does not wait for anything.
    pub fn spawn_again(&mut self) {
        self.spawn();
    }

    /// How the server has left, if it has.
    ///
    /// # Panics
    /// If it does not run.
    pub fn has_left(&mut self) -> Option<ExitStatus> {
        let status = self.exited();
        if status.is_some() {
            self.child = None;
        }
        status
    }

    /// Leaves out a variable at the next start.
    pub fn unset_variable(&mut self, name: &str) {
        self.setup.variables.remove(name);
    }

    /// Kills the server with SIGKILL and starts it again.
    pub fn kill_9_and_restart(&mut self) {
        self.kill_9();
        self.start_again();
    }

    /// Sets a variable for the next start.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.setup
            .variables
            .insert(name.to_owned(), value.to_owned());
    }

    /// The port of the environment protocol.
    pub(crate) fn environment_port(&self) -> u16 {
        self.ports.environment
    }

    /// The port of the core.
    pub(crate) fn core_port(&self) -> u16 {
        self.ports.core
    }

    /// The address of the environment protocol.
    #[must_use]
    pub fn environment(&self) -> Address {
        Address::Port(self.ports.environment)
    }

    /// The address of the core.
    #[must_use]
    pub fn core(&self) -> Address {
        Address::Port(self.ports.core)
    }

    /// The socket by which containers reach the core.
    #[must_use]
    pub fn core_socket(&self) -> Address {
        Address::Socket(self.data_dir().join("core.sock"))
    }

    /// Sends a request to the environment.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    #[track_caller]
    pub fn ask(&self, request: &Request) -> Answer {
        http::exchange(&self.environment(), request)
            .unwrap_or_else(|error| panic!("the environment did not answer {request:?}: {error}"))
    }

    /// Sends a request to the core.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    #[track_caller]
    pub fn ask_core(&self, request: &Request) -> Answer {
        http::exchange(&self.core(), request)
            .unwrap_or_else(|error| panic!("the core did not answer {request:?}: {error}"))
    }

    /// Everything that the server has written, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// All processes that are there because of this server.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        let me = i32::try_from(std::process::id()).expect("process ids fit");
        let mut found = processes::of_directory(self.place());
        found.retain(|process| process.pid != me);
        found
    }

    /// The processes that run an instance's program.
    #[must_use]
    pub fn processes_of(&self, instance_id: &str) -> Vec<Process> {
        let mut found = self.processes();
        found.retain(|process| {
            process.variable("RUNTARA_INSTANCE_ID").as_deref() == Some(instance_id)
        });
        found
    }

    /// The directory of this test: data, log and shared files.
    #[must_use]
    pub fn place(&self) -> &Path {
        self.setup.place.path()
    }

    fn log_path(&self) -> PathBuf {
        self.place().join("server.log")
    }

    fn end_of_log(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(self.log_path()) {
            let length = file.metadata().map_or(0, |found| found.len());
            let start = SeekFrom::Start(length.saturating_sub(LOG_SHOWN));
            let _whatever_can_be_read = file.seek(start).and_then(|_| file.read_to_end(&mut text));
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- the end of the server's log ---\n{}\n---",
                self.end_of_log()
            );
        }
        if let Some(mut child) = self.child.take() {
            let _ended_already = child.kill();
            let _ended_already = child.wait();
        }
        // The place kills what else there is; the database goes after its last user.
        processes::kill_all(self.place());
    }
}
