//! Reads single variables and gathers what is wrong with them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;

use runtara_images::ImageStoreUrl;
use tracing_subscriber::EnvFilter;

use super::{CoreMode, DatabaseUrl, LogFormat};

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

/// Reads variables and gathers what is wrong with them.
pub(super) struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<OsString>,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(lookup: &'a dyn Fn(&str) -> Option<OsString>) -> Self {
        Self {
            lookup,
            problems: Vec::new(),
        }
    }

    /// What a variable says, if it says anything.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        match (self.lookup)(name)?.into_string() {
            Ok(text) => Some(text).filter(|text| !text.trim().is_empty()),
            Err(_) => {
                // What was found is not repeated: it may be a secret.
                self.problem(name, "is set to bytes that are not UTF-8 text");
                None
            }
        }
    }

    pub(super) fn problem(&mut self, variable: &'static str, text: impl Into<String>) {
        let text = text.into();
        let problem = Problem { variable, text };
        // A variable may be looked at more than once.
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    pub(super) fn parsed<T: FromStr>(&mut self, name: &'static str, wanted: &str) -> Option<T> {
        let text = self.text(name)?;
        let parsed = text.trim().parse().ok();
        if parsed.is_none() {
            self.problem(name, format!("found {text:?}; {wanted} is wanted"));
        }
        parsed
    }

    /// A number that need not be given.
    pub(super) fn optional_number(
        &mut self,
        name: &'static str,
        least: u64,
        most: u64,
    ) -> Option<u64> {
        let wanted = format!("a whole number from {least} to {most}, or nothing");
        let found = self.parsed(name, &wanted)?;
        if !(least..=most).contains(&found) {
            self.problem(name, format!("found {found}; {wanted} is wanted"));
        }
        Some(found)
    }

    pub(super) fn number(
        &mut self,
        name: &'static str,
        default: u64,
        least: u64,
        most: u64,
    ) -> u64 {
        let wanted = format!("a whole number from {least} to {most}");
        let found = self.parsed(name, &wanted).unwrap_or(default);
        if !(least..=most).contains(&found) {
            self.problem(name, format!("found {found}; {wanted} is wanted"));
        }
        found
    }

    pub(super) fn flag(&mut self, name: &'static str, default: bool) -> bool {
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

    pub(super) fn database(&mut self) -> Option<DatabaseUrl> {
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

    pub(super) fn data_dir(&mut self) -> PathBuf {
        let named = self.text("DATA_DIR");
        named.unwrap_or_else(|| ".data".to_owned()).into()
    }

    pub(super) fn image_store(&mut self) -> Option<ImageStoreUrl> {
        const NAME: &str = "RUNTARA_IMAGE_STORE_URL";
        let text = self.text(NAME)?;
        let url = text.trim().parse::<ImageStoreUrl>();
        let usable = url.and_then(|url| url.check().map(|()| url));
        // What was found is not repeated: somebody may have put a key into it.
        usable.map_err(|problem| self.problem(NAME, problem)).ok()
    }

    pub(super) fn core_addr(&mut self) -> String {
        self.host_and_port("RUNTARA_CORE_ADDR")
            .unwrap_or_else(|| "127.0.0.1:8001".to_owned())
    }

    pub(super) fn host_and_port(&mut self, name: &'static str) -> Option<String> {
        let address = self.text(name)?;
        let has_port = address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !has_port {
            self.problem(name, format!("found {address:?}; host:port is wanted"));
        }
        Some(address)
    }

    pub(super) fn allowed_hosts(&mut self) -> Vec<String> {
        let name = "RUNTARA_ALLOWED_HOSTS";
        let text = self.text(name).unwrap_or_default();
        let mut hosts = Vec::new();
        for host in text
            .split(',')
            .map(str::trim)
            .filter(|host| !host.is_empty())
        {
            // An IPv6 address stands in brackets in a Host header.
            let host = match host.parse::<Ipv6Addr>() {
                Ok(address) => format!("[{address}]"),
                Err(_) => host.to_owned(),
            };
            let is_name = |host: &str| {
                host.chars()
                    .all(|letter| letter.is_ascii_alphanumeric() || "-._".contains(letter))
            };
            if is_name(&host) || host.starts_with('[') {
                hosts.push(host);
            } else {
                let text = format!(
                    "found {host:?}; a host name or an IP address, without a port, is wanted"
                );
                self.problem(name, text);
            }
        }
        hosts
    }

    pub(super) fn passed_env(&mut self) -> BTreeMap<String, String> {
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

    pub(super) fn core_mode(&mut self) -> CoreMode {
        match self.text("RUNTARA_CORE_MODE").as_deref().map(str::trim) {
            None | Some("auto") => CoreMode::Auto,
            Some("embedded") => CoreMode::Embedded,
            Some("external") => CoreMode::External,
            Some(other) => {
                let text = format!("found {other:?}; auto, embedded or external is wanted");
                self.problem("RUNTARA_CORE_MODE", text);
                CoreMode::Auto
            }
        }
    }

    pub(super) fn log_format(&mut self) -> LogFormat {
        match self.text("RUNTARA_LOG_FORMAT").as_deref().map(str::trim) {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => {
                let text = format!("found {other:?}; text or json is wanted");
                self.problem("RUNTARA_LOG_FORMAT", text);
                LogFormat::Text
            }
        }
    }

    pub(super) fn log_filter(&mut self) -> String {
        let default = || "info".to_owned();
        let Some(found) = self.text("RUST_LOG") else {
            return default();
        };
        if let Err(error) = EnvFilter::try_new(&found) {
            let wanted = "a filter such as info, or warn,runtara_scheduler=debug, is wanted";
            self.problem("RUST_LOG", format!("found {found:?} ({error}); {wanted}"));
            return default();
        }
        found
    }

    pub(super) fn oom_score_adj(&mut self, name: &'static str) -> i32 {
        let wanted = "a whole number from -1000 to 1000";
        let found: i32 = self.parsed(name, wanted).unwrap_or(500);
        if !(-1_000..=1_000).contains(&found) {
            self.problem(name, format!("found {found}; {wanted} is wanted"));
        }
        found
    }
}
