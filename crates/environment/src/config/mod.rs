//! What a server is told about itself, read once, in one place.

mod checks;
mod containers;
mod database;
mod guests;
mod node;
mod reader;
#[cfg(test)]
mod tests;
mod upkeep;
mod variables;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use runtara_domain::limits;
use runtara_images::ImageStoreUrl;
use runtara_scheduler::UpkeepConfig;

use self::reader::Reader;
use crate::Error;

pub use self::containers::ContainerSettings;
pub use self::database::DatabaseUrl;
pub use self::guests::GuestSettings;
pub use self::node::NodeSettings;
pub use self::reader::Problem;
pub use self::variables::{VARIABLES, Variable};

/// How a server is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// For use: a database must be named, and nothing is allowed that was not asked for.
    Serve,
    /// For trying out: SQLite in the data directory, native programs as this user, and the port of published clients' default.
    Dev,
}

/// Where the instance protocol is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CoreMode {
    /// Found out: here if the address can be bound, elsewhere if a core of the same database answers there.
    Auto,
    /// Here.
    Embedded,
    /// Elsewhere.
    External,
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything a server is told about itself.
#[derive(Debug, Clone)]
pub struct Config {
    /// How it is run.
    pub mode: Mode,
    /// Where durable state is; `None` in dev for SQLite in the data directory.
    pub database: Option<DatabaseUrl>,
    /// Where it keeps images, run directories and the embedded database.
    pub data_dir: PathBuf,
    /// Where the environment protocol is served.
    pub env_addr: SocketAddr,
    /// Where the instance protocol is served, as `host:port`.
    pub core_addr: String,
    /// By whom.
    pub core_mode: CoreMode,
    /// A second port for it, on loopback.
    pub core_http_port: Option<u16>,
    /// Whether others than this machine may call although nobody is asked who he is.
    pub allow_unauthenticated: bool,
    /// Names and addresses under which others know the ports that are not on loopback.
    pub allowed_hosts: Vec<String>,
    /// What people call this node.
    pub node_name: String,
    /// What it is among other nodes.
    pub node: NodeSettings,
    /// The room for runs: so many of weight 1 at once.
    pub max_runs: usize,
    /// Most runs of one tenant at once, over all nodes.
    pub max_runs_per_tenant: Option<u32>,
    /// Most pending instances of one tenant.
    pub max_pending_per_tenant: Option<u64>,
    /// Most bytes of all images of one tenant, each content counted once.
    pub max_image_bytes_per_tenant: Option<u64>,
    /// For how long an instance that registered itself may be silent.
    pub self_registered_timeout: Option<Duration>,
    /// Largest content of an image, in bytes.
    pub max_image_bytes: u64,
    /// Where images are that several nodes share.
    pub image_store: Option<ImageStoreUrl>,
    /// How many bytes of them may be here.
    pub image_cache_bytes: u64,
    /// Most bytes of all layers of a container image, unpacked.
    pub max_unpacked_image_bytes: u64,
    /// Up to how many milliseconds from its end a sleep is held.
    pub sleep_hold_ms: u64,
    /// Most connections to PostgreSQL.
    pub database_connections: u32,
    /// How long one statement may take.
    pub database_timeout: Duration,
    /// How long an orderly end may take.
    pub shutdown_grace: Duration,
    /// As whom native programs run.
    pub native_user: Option<String>,
    /// Whether a plain binary that is declared `oci` runs as a native process where no containers can be made.
    pub native_for_oci: bool,
    /// Most open files of a native program.
    pub native_open_files: Option<u64>,
    /// Most processes of the user of native programs.
    pub native_processes: Option<u64>,
    /// Largest file that a native program may write, in bytes.
    pub native_file_bytes: Option<u64>,
    /// How willingly the kernel kills a native program when memory runs out: -1000 to 1000.
    pub native_oom_score_adj: i32,
    /// What containers are told.
    pub containers: ContainerSettings,
    /// What WebAssembly guests are told.
    pub guests: GuestSettings,
    /// How much of each stream of a run is kept, in bytes.
    pub log_bytes: u64,
    /// What is kept, and for how long.
    pub upkeep: UpkeepConfig,
    /// How many events of an instance are kept where its start does not say; `None` for all.
    pub max_events: Option<u32>,
    /// Variables that every program is given.
    pub passed_env: BTreeMap<String, String>,
    /// How logs are written.
    pub log_format: LogFormat,
    /// What is logged, in the syntax of `tracing`'s filters.
    pub log_filter: String,
}

impl Config {
    /// Reads the configuration from this process's environment.
    ///
    /// # Errors
    /// [`Error::Configuration`] with everything that is wrong.
    pub fn from_env(mode: Mode) -> Result<Self, Error> {
        Self::read(mode, &|name| std::env::var_os(name))
    }

    /// Reads the configuration from wherever variables come from.
    ///
    /// # Errors
    /// [`Error::Configuration`] with everything that is wrong.
    pub fn read(mode: Mode, lookup: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Error> {
        let mut reader = Reader::new(lookup);
        let database = reader.database();
        if database.is_none() && mode == Mode::Serve && reader.problems.is_empty() {
            reader.problem(
                "RUNTARA_ENVIRONMENT_DATABASE_URL",
                "is not set, nor is RUNTARA_DATABASE_URL; name a database (`postgres://…` or `sqlite:…`), or use `runtara-environment dev`, which needs none",
            );
        }
        let config = Self::gather(mode, database, &mut reader);
        if reader.problems.is_empty() {
            Ok(config)
        } else {
            Err(Error::Configuration {
                problems: reader.problems,
            })
        }
    }

    /// Reads the configuration of `serve` for somebody who only asks about the machine: no database is demanded, and what is wrong stands
    /// beside what would be without it.
    pub(crate) fn read_leniently(
        lookup: &dyn Fn(&str) -> Option<OsString>,
    ) -> (Self, Vec<Problem>) {
        let mut reader = Reader::new(lookup);
        let database = reader.database();
        let config = Self::gather(Mode::Serve, database, &mut reader);
        (config, reader.problems)
    }

    /// Where the data directory of a server with these variables is. Nothing else of them is looked at.
    pub(crate) fn data_dir_of(lookup: &dyn Fn(&str) -> Option<OsString>) -> PathBuf {
        Reader::new(lookup).data_dir()
    }

    fn gather(mode: Mode, database: Option<DatabaseUrl>, reader: &mut Reader<'_>) -> Self {
        let dev = mode == Mode::Dev;
        let bind: IpAddr = reader
            .parsed("RUNTARA_ENV_HTTP_BIND", "an IP address")
            .unwrap_or(Ipv4Addr::LOCALHOST.into());
        let port = reader.number("RUNTARA_ENV_HTTP_PORT", 8002, 0, 65_535);
        let core_http_port = match reader.text("RUNTARA_CORE_HTTP_PORT") {
            None => dev.then_some(8003),
            Some(_) => Some(reader.number("RUNTARA_CORE_HTTP_PORT", 0, 0, 65_535) as u16),
        };
        let config = Self {
            mode,
            database,
            data_dir: reader.data_dir(),
            env_addr: SocketAddr::new(bind, port as u16),
            core_addr: reader.core_addr(),
            core_mode: reader.core_mode(),
            core_http_port,
            allow_unauthenticated: reader.flag("RUNTARA_ALLOW_UNAUTHENTICATED", false),
            allowed_hosts: reader.allowed_hosts(),
            node_name: reader.text("RUNTARA_NODE_NAME").unwrap_or_else(host_name),
            node: NodeSettings::read(reader),
            max_runs: reader.number("RUNTARA_MAX_RUNS", 1_000, 1, 1_000_000) as usize,
            max_runs_per_tenant: reader
                .optional_number("RUNTARA_MAX_RUNS_PER_TENANT", 1, 1_000_000)
                .map(|most| most as u32),
            max_pending_per_tenant: reader.optional_number(
                "RUNTARA_MAX_PENDING_PER_TENANT",
                1,
                1_000_000_000,
            ),
            max_image_bytes_per_tenant: reader.optional_number(
                "RUNTARA_MAX_IMAGE_BYTES_PER_TENANT",
                1,
                1 << 60,
            ),
            self_registered_timeout: reader
                .optional_number("RUNTARA_SELF_REGISTERED_TIMEOUT", 10, 4_294_967_295)
                .map(Duration::from_secs),
            max_image_bytes: reader.number("RUNTARA_MAX_IMAGE_BYTES", 2 << 30, 1, 1 << 50),
            image_store: reader.image_store(),
            image_cache_bytes: reader.number("RUNTARA_IMAGE_CACHE_BYTES", 10 << 30, 1, 1 << 50),
            max_unpacked_image_bytes: reader.number(
                "RUNTARA_MAX_UNPACKED_IMAGE_BYTES",
                32 << 30,
                1,
                1 << 50,
            ),
            sleep_hold_ms: reader.number("RUNTARA_SLEEP_HOLD_MS", limits::HOLD_MS, 0, 600_000),
            database_connections: reader.number("RUNTARA_DB_POOL_SIZE", 20, 2, 1_000) as u32,
            database_timeout: Duration::from_millis(reader.number(
                "RUNTARA_DB_REQUEST_TIMEOUT_MS",
                30_000,
                100,
                3_600_000,
            )),
            shutdown_grace: Duration::from_millis(reader.number(
                "RUNTARA_SHUTDOWN_GRACE_MS",
                10_000,
                0,
                3_600_000,
            )),
            native_user: reader.text("RUNTARA_NATIVE_USER"),
            native_for_oci: reader.flag("RUNTARA_NATIVE_FOR_OCI", dev),
            native_open_files: reader.parsed("RUNTARA_NATIVE_OPEN_FILES", "a whole number"),
            native_processes: reader.parsed("RUNTARA_NATIVE_PROCESSES", "a whole number"),
            native_file_bytes: reader.parsed("RUNTARA_NATIVE_FILE_BYTES", "a whole number"),
            native_oom_score_adj: reader.oom_score_adj("RUNTARA_NATIVE_OOM_SCORE_ADJ"),
            containers: ContainerSettings::read(reader),
            guests: GuestSettings::read(reader),
            log_bytes: reader.number("RUNTARA_LOG_BYTES", 10 << 20, 64 << 10, 1 << 40),
            upkeep: upkeep::read(reader),
            max_events: upkeep::max_events(reader),
            passed_env: reader.passed_env(),
            log_format: reader.log_format(),
            log_filter: reader.log_filter(),
        };
        config.check(reader);
        config
    }
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "node".to_owned())
}
