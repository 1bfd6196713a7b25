//! What a server is told about itself, read once, in one place.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use runtara_domain::limits;

use crate::Error;

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

/// A database address. It may hold a password, so it is shown without.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The whole address. A secret.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it names a SQLite file.
    #[must_use]
    pub fn is_sqlite(&self) -> bool {
        self.0.starts_with("sqlite:")
    }

    /// A SQLite file.
    #[must_use]
    pub fn sqlite(path: &std::path::Path) -> Self {
        Self(format!("sqlite:{}", path.display()))
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = ["postgres://", "postgresql://", "sqlite:"];
        if known.iter().any(|scheme| text.starts_with(scheme)) {
            Ok(Self(text.to_owned()))
        } else {
            // What was found is not repeated: it may be a password in the wrong place.
            Err("is none of `postgres://…` and `sqlite:…`".to_owned())
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_sqlite() {
            return f.write_str(&self.0);
        }
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("postgres", ""));
        let rest = rest.split('?').next().unwrap_or_default();
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        write!(f, "{scheme}://{host}")
    }
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
    /// What people call this node.
    pub node_name: String,
    /// Most runs at once.
    pub max_runs: usize,
    /// Largest content of an image, in bytes.
    pub max_image_bytes: u64,
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
    /// Whether a plain binary that is declared `oci` runs as a native process.
    pub native_for_oci: bool,
    /// Most open files of a native program.
    pub native_open_files: Option<u64>,
    /// Most processes of the user of native programs.
    pub native_processes: Option<u64>,
    /// Largest file that a native program may write, in bytes.
    pub native_file_bytes: Option<u64>,
    /// How willingly the kernel kills a native program when memory runs out: -1000 to 1000.
    pub native_oom_score_adj: Option<i32>,
    /// How much of each stream of a run is kept, in bytes.
    pub log_bytes: u64,
    /// Variables that every program is given.
    pub passed_env: BTreeMap<String, String>,
    /// How logs are written.
    pub log_format: LogFormat,
    /// What is logged, in the syntax of `tracing`'s filters.
    pub log_filter: String,
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable.
    pub variable: &'static str,
    /// What was found and what is allowed.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.variable, self.text)
    }
}

/// One variable, for help and documentation.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What holds if it is not set.
    pub default: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

const fn variable(name: &'static str, default: &'static str, meaning: &'static str) -> Variable {
    Variable {
        name,
        default,
        meaning,
    }
}

/// All variables that a server reads.
pub const VARIABLES: &[Variable] = &[
    variable(
        "RUNTARA_ENVIRONMENT_DATABASE_URL",
        "-",
        "postgres://… or sqlite:…; required by serve",
    ),
    variable(
        "RUNTARA_DATABASE_URL",
        "-",
        "the same, if the one above is not set",
    ),
    variable(
        "RUNTARA_ENV_HTTP_PORT",
        "8002",
        "port of the environment protocol",
    ),
    variable("RUNTARA_ENV_HTTP_BIND", "127.0.0.1", "its address"),
    variable(
        "RUNTARA_CORE_ADDR",
        "127.0.0.1:8001",
        "address of the instance protocol",
    ),
    variable("RUNTARA_CORE_MODE", "auto", "auto, embedded or external"),
    variable(
        "RUNTARA_CORE_HTTP_PORT",
        "- (dev: 8003)",
        "a second port of the instance protocol, on loopback",
    ),
    variable(
        "DATA_DIR",
        ".data",
        "images, run directories, embedded database",
    ),
    variable(
        "RUNTARA_ALLOW_UNAUTHENTICATED",
        "false",
        "allow listening on anything but loopback although nobody is asked who he is",
    ),
    variable(
        "RUNTARA_SKIP_CERT_VERIFICATION",
        "false",
        "handed on to instances: skip TLS verification",
    ),
    variable(
        "RUNTARA_NODE_NAME",
        "host name",
        "what people call this node",
    ),
    variable("RUNTARA_MAX_RUNS", "1000", "most runs at once"),
    variable("RUNTARA_MAX_IMAGE_BYTES", "2147483648", "largest image"),
    variable(
        "RUNTARA_SLEEP_HOLD_MS",
        "10000",
        "a sleep this near to its end is held; a farther one frees its process",
    ),
    variable(
        "RUNTARA_DB_POOL_SIZE",
        "20",
        "most connections to PostgreSQL",
    ),
    variable(
        "RUNTARA_DB_REQUEST_TIMEOUT_MS",
        "30000",
        "longest statement",
    ),
    variable("RUNTARA_SHUTDOWN_GRACE_MS", "10000", "longest orderly end"),
    variable(
        "RUNTARA_NATIVE_USER",
        "- (not root: this user)",
        "user of native programs; a root server without it refuses native images",
    ),
    variable(
        "RUNTARA_NATIVE_FOR_OCI",
        "false (dev: true)",
        "run plain binaries that are declared oci as native programs",
    ),
    variable(
        "RUNTARA_NATIVE_OPEN_FILES",
        "-",
        "most open files of a native program",
    ),
    variable(
        "RUNTARA_NATIVE_PROCESSES",
        "-",
        "most processes of their user",
    ),
    variable(
        "RUNTARA_NATIVE_FILE_BYTES",
        "-",
        "largest file that one may write",
    ),
    variable(
        "RUNTARA_NATIVE_OOM_SCORE_ADJ",
        "500",
        "how willingly the kernel kills one when memory runs out",
    ),
    variable(
        "RUNTARA_LOG_BYTES",
        "10485760",
        "how much of each stream of a run is kept",
    ),
    variable(
        "RUNTARA_CONNECTION_SERVICE_URL",
        "-",
        "handed on as CONNECTION_SERVICE_URL",
    ),
    variable("RUNTARA_OBJECT_MODEL_URL", "-", "handed on"),
    variable("RUNTARA_SDK_BACKEND", "-", "handed on"),
    variable("RUNTARA_LOG_FORMAT", "text", "text or json"),
    variable("RUST_LOG", "info", "what is logged"),
];

/// Reads variables and gathers what is wrong with them.
struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn text(&self, name: &'static str) -> Option<String> {
        (self.lookup)(name).filter(|value| !value.trim().is_empty())
    }

    fn problem(&mut self, variable: &'static str, text: impl Into<String>) {
        let text = text.into();
        self.problems.push(Problem { variable, text });
    }

    fn parsed<T: FromStr>(&mut self, name: &'static str, wanted: &str) -> Option<T> {
        let text = self.text(name)?;
        let parsed = text.trim().parse().ok();
        if parsed.is_none() {
            self.problem(name, format!("found {text:?}; {wanted} is wanted"));
        }
        parsed
    }

    fn number(&mut self, name: &'static str, default: u64, least: u64, most: u64) -> u64 {
        let wanted = format!("a whole number from {least} to {most}");
        let found = self.parsed(name, &wanted).unwrap_or(default);
        if !(least..=most).contains(&found) {
            self.problem(name, format!("found {found}; {wanted} is wanted"));
        }
        found
    }

    fn flag(&mut self, name: &'static str, default: bool) -> bool {
        match self.text(name).as_deref().map(str::trim) {
            None => default,
            Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(other) => {
                self.problem(name, format!("found {other:?}; true or false is wanted"));
                default
            }
        }
    }

    fn database(&mut self) -> Option<DatabaseUrl> {
        for name in ["RUNTARA_ENVIRONMENT_DATABASE_URL", "RUNTARA_DATABASE_URL"] {
            if let Some(text) = self.text(name) {
                return match text.trim().parse() {
                    Ok(url) => Some(url),
                    Err(error) => {
                        self.problem(name, error);
                        None
                    }
                };
            }
        }
        None
    }

    fn core_addr(&mut self) -> String {
        let name = "RUNTARA_CORE_ADDR";
        let address = self
            .text(name)
            .unwrap_or_else(|| "127.0.0.1:8001".to_owned());
        let has_port = address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !has_port {
            self.problem(name, format!("found {address:?}; host:port is wanted"));
        }
        address
    }

    fn passed_env(&mut self) -> BTreeMap<String, String> {
        let mut passed = BTreeMap::new();
        for (name, as_name) in [
            ("RUNTARA_CONNECTION_SERVICE_URL", "CONNECTION_SERVICE_URL"),
            ("RUNTARA_OBJECT_MODEL_URL", "RUNTARA_OBJECT_MODEL_URL"),
            ("RUNTARA_SDK_BACKEND", "RUNTARA_SDK_BACKEND"),
        ] {
            if let Some(value) = self.text(name) {
                passed.insert(as_name.to_owned(), value);
            }
        }
        if self.flag("RUNTARA_SKIP_CERT_VERIFICATION", false) {
            passed.insert(
                "RUNTARA_SKIP_CERT_VERIFICATION".to_owned(),
                "true".to_owned(),
            );
        }
        passed
    }
}

impl Config {
    /// Reads the configuration from this process's environment.
    ///
    /// # Errors
    /// [`Error::Configuration`] with everything that is wrong.
    pub fn from_env(mode: Mode) -> Result<Self, Error> {
        Self::read(mode, &|name| std::env::var(name).ok())
    }

    /// Reads the configuration from wherever variables come from.
    ///
    /// # Errors
    /// [`Error::Configuration`] with everything that is wrong.
    pub fn read(mode: Mode, lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let mut reader = Reader {
            lookup,
            problems: Vec::new(),
        };
        let config = Self::gather(mode, &mut reader);
        if reader.problems.is_empty() {
            Ok(config)
        } else {
            Err(Error::Configuration {
                problems: reader.problems,
            })
        }
    }

    fn gather(mode: Mode, reader: &mut Reader<'_>) -> Self {
        let dev = mode == Mode::Dev;
        let known_problems = reader.problems.len();
        let database = reader.database();
        if database.is_none() && !dev && reader.problems.len() == known_problems {
            reader.problem(
                "RUNTARA_ENVIRONMENT_DATABASE_URL",
                "is not set, nor is RUNTARA_DATABASE_URL; name a database (`postgres://…` or `sqlite:…`), or use `runtara-environment dev`, which needs none",
            );
        }
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
            data_dir: reader
                .text("DATA_DIR")
                .unwrap_or_else(|| ".data".to_owned())
                .into(),
            env_addr: SocketAddr::new(bind, port as u16),
            core_addr: reader.core_addr(),
            core_mode: Self::core_mode(reader),
            core_http_port,
            allow_unauthenticated: reader.flag("RUNTARA_ALLOW_UNAUTHENTICATED", false),
            node_name: reader.text("RUNTARA_NODE_NAME").unwrap_or_else(host_name),
            max_runs: reader.number("RUNTARA_MAX_RUNS", 1_000, 1, 1_000_000) as usize,
            max_image_bytes: reader.number("RUNTARA_MAX_IMAGE_BYTES", 2 << 30, 1, 1 << 50),
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
            native_oom_score_adj: Self::oom_score_adj(reader),
            log_bytes: reader.number("RUNTARA_LOG_BYTES", 10 << 20, 64 << 10, 1 << 40),
            passed_env: reader.passed_env(),
            log_format: Self::log_format(reader),
            log_filter: reader.text("RUST_LOG").unwrap_or_else(|| "info".to_owned()),
        };
        config.check_exposure(reader);
        config
    }

    fn core_mode(reader: &mut Reader<'_>) -> CoreMode {
        match reader.text("RUNTARA_CORE_MODE").as_deref().map(str::trim) {
            None | Some("auto") => CoreMode::Auto,
            Some("embedded") => CoreMode::Embedded,
            Some("external") => CoreMode::External,
            Some(other) => {
                let text = format!("found {other:?}; auto, embedded or external is wanted");
                reader.problem("RUNTARA_CORE_MODE", text);
                CoreMode::Auto
            }
        }
    }

    fn log_format(reader: &mut Reader<'_>) -> LogFormat {
        match reader.text("RUNTARA_LOG_FORMAT").as_deref().map(str::trim) {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => {
                let text = format!("found {other:?}; text or json is wanted");
                reader.problem("RUNTARA_LOG_FORMAT", text);
                LogFormat::Text
            }
        }
    }

    fn oom_score_adj(reader: &mut Reader<'_>) -> Option<i32> {
        let name = "RUNTARA_NATIVE_OOM_SCORE_ADJ";
        let wanted = "a whole number from -1000 to 1000";
        let found: i32 = reader.parsed(name, wanted).unwrap_or(500);
        if !(-1_000..=1_000).contains(&found) {
            reader.problem(name, format!("found {found}; {wanted} is wanted"));
        }
        Some(found)
    }

    /// Nobody is asked who he is: so only this machine may call, unless the operator says otherwise.
    fn check_exposure(&self, reader: &mut Reader<'_>) {
        if self.allow_unauthenticated {
            return;
        }
        let advice = "is not a loopback address, and callers are not authenticated: set RUNTARA_ALLOW_UNAUTHENTICATED=true if only trusted programs can reach it";
        if !self.env_addr.ip().is_loopback() {
            let text = format!("{} {advice}", self.env_addr.ip());
            reader.problem("RUNTARA_ENV_HTTP_BIND", text);
        }
        let core: Option<SocketAddr> = self.core_addr.parse().ok();
        if self.core_mode != CoreMode::External && core.is_some_and(|core| !core.ip().is_loopback())
        {
            reader.problem("RUNTARA_CORE_ADDR", format!("{} {advice}", self.core_addr));
        }
    }
}

fn host_name() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "node".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mode: Mode, variables: &[(&str, &str)]) -> Result<Config, Error> {
        Config::read(mode, &|name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn serve_demands_a_database_and_dev_does_not() {
        let error = read(Mode::Serve, &[]).unwrap_err().to_string();
        assert!(
            error.contains("RUNTARA_ENVIRONMENT_DATABASE_URL") && error.contains("dev"),
            "{error}"
        );
        assert!(read(Mode::Dev, &[]).unwrap().database.is_none());
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let error = read(
            Mode::Serve,
            &[
                ("RUNTARA_DATABASE_URL", "mysql://root:hunter2@db/x"),
                ("RUNTARA_ENV_HTTP_PORT", "eight"),
                ("RUNTARA_CORE_ADDR", "nowhere"),
                ("RUNTARA_MAX_RUNS", "0"),
                ("RUNTARA_ALLOW_UNAUTHENTICATED", "maybe"),
            ],
        )
        .unwrap_err();
        let text = error.to_string();
        for name in [
            "RUNTARA_DATABASE_URL",
            "RUNTARA_ENV_HTTP_PORT",
            "RUNTARA_CORE_ADDR",
            "RUNTARA_MAX_RUNS",
            "RUNTARA_ALLOW_UNAUTHENTICATED",
        ] {
            assert!(text.contains(name), "{name} is missing in {text}");
        }
        assert!(!text.contains("hunter2"), "a password is shown: {text}");
    }

    #[test]
    fn listening_to_others_must_be_allowed() {
        let exposed = [
            ("RUNTARA_ENV_HTTP_BIND", "0.0.0.0"),
            ("RUNTARA_CORE_ADDR", "10.0.0.1:8001"),
        ];
        let text = read(Mode::Dev, &exposed).unwrap_err().to_string();
        assert!(text.contains("RUNTARA_ENV_HTTP_BIND") && text.contains("RUNTARA_CORE_ADDR"));
        let mut allowed = exposed.to_vec();
        allowed.push(("RUNTARA_ALLOW_UNAUTHENTICATED", "true"));
        assert!(read(Mode::Dev, &allowed).is_ok());
    }

    #[test]
    fn passwords_are_not_shown() {
        let url: DatabaseUrl = "postgres://me:secret@db:5432/app?password=secret"
            .parse()
            .unwrap();
        assert_eq!(
            format!("{url} {url:?}"),
            "postgres://db:5432/app postgres://db:5432/app"
        );
    }

    #[test]
    fn the_readme_lists_every_variable() {
        let readme = include_str!("../../../README.md");
        for variable in VARIABLES {
            let row = format!(
                "| `{}` | {} | {} |",
                variable.name, variable.default, variable.meaning
            );
            assert!(readme.contains(&row), "the README has no row {row}");
        }
    }

    #[test]
    fn every_variable_that_is_listed_is_read() {
        use std::cell::RefCell;
        let asked = RefCell::new(Vec::new());
        let lookup = |name: &str| {
            asked.borrow_mut().push(name.to_owned());
            None
        };
        let _config = Config::read(Mode::Dev, &lookup);
        for variable in VARIABLES {
            assert!(
                asked.borrow().iter().any(|name| name == variable.name),
                "{}",
                variable.name
            );
        }
    }
}
