//! Who the instance is, and where its server is.

use std::fmt;
use std::time::Duration;

use http::Uri;
use http::uri::{Authority, Scheme};

use crate::Error;

/// Who the instance is, where its server is, and how patient to be.
///
/// A launched program takes them from its environment ([`Settings::from_env`]). The address holds the secret of the run, so it
/// is printed without it. In a WebAssembly component the address and the times mean nothing: the host is called.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(crate) instance_id: String,
    pub(crate) tenant_id: String,
    pub(crate) run_number: u32,
    pub(crate) endpoint: Endpoint,
    pub(crate) request_timeout: Duration,
    pub(crate) retry_deadline: Duration,
}

impl Settings {
    /// Gives settings for an instance that registers itself, or for a test.
    ///
    /// # Errors
    /// [`Error::Settings`] if the address is not `http://host:port`, with or without a path.
    pub fn new(
        instance_id: impl Into<String>,
        tenant_id: impl Into<String>,
        http_url: &str,
    ) -> Result<Self, Error> {
        Ok(Self {
            instance_id: instance_id.into(),
            tenant_id: tenant_id.into(),
            run_number: 1,
            endpoint: Endpoint::parse("RUNTARA_HTTP_URL", http_url)?,
            request_timeout: Duration::from_secs(30),
            retry_deadline: Duration::from_secs(600),
        })
    }

    /// Reads the variables that the environment gives to the programs it launches.
    ///
    /// | variable | |
    /// |---|---|
    /// | `RUNTARA_INSTANCE_ID`, `RUNTARA_TENANT_ID` | required |
    /// | `RUNTARA_RUN_NUMBER` | which run of the instance this is; 1 |
    /// | `RUNTARA_HTTP_URL` | the server, a path in front of every call included |
    /// | `RUNTARA_SERVER_ADDR` | used if that is not set: `host:port`, where HTTP is two ports further up |
    /// | `RUNTARA_CORE_HTTP_PORT` | the port, in place of that rule |
    /// | `RUNTARA_REQUEST_TIMEOUT_MS` | for one attempt of one call; 30000 |
    ///
    /// Without an address it is `http://127.0.0.1:8003`.
    ///
    /// # Errors
    /// [`Error::Settings`] with the name of the variable.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// Like [`Settings::from_env`], with variables from elsewhere.
    ///
    /// # Errors
    /// [`Error::Settings`] with the name of the variable.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let get = |name: &str| variable(name).filter(|value| !value.is_empty());
        let required = |name: &'static str| {
            get(name).ok_or(Error::Settings {
                variable: name,
                found: "not set".to_owned(),
                wanted: "the id that the environment gives to a program it launches",
            })
        };
        let mut settings = Self::new(
            required("RUNTARA_INSTANCE_ID")?,
            required("RUNTARA_TENANT_ID")?,
            "http://127.0.0.1:8003",
        )?;
        settings.endpoint = endpoint(get)?;
        let number = |name: &'static str, wanted| {
            let parse = |text: String| {
                let number = text.parse::<u32>().ok().filter(|number| *number > 0);
                number.ok_or_else(|| Error::Settings {
                    variable: name,
                    found: format!("{text:?}"),
                    wanted,
                })
            };
            get(name).map(parse).transpose()
        };
        if let Some(run) = number("RUNTARA_RUN_NUMBER", "a number above 0")? {
            settings.run_number = run;
        }
        let timeout = number(
            "RUNTARA_REQUEST_TIMEOUT_MS",
            "a number of milliseconds from 1 to 4294967295",
        )?;
        if let Some(millis) = timeout {
            settings.request_timeout = Duration::from_millis(millis.into());
        }
        Ok(settings)
    }

    /// Sets how long one attempt of one call may take. A call that the server holds (a sleep) is asked again after it.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets for how long a call that does not get through is tried again. Ten minutes unless set: a server that restarts, or
    /// waits for its database, is not noticed.
    #[must_use]
    pub fn retry_deadline(mut self, deadline: Duration) -> Self {
        self.retry_deadline = deadline;
        self
    }
}

fn endpoint(get: impl Fn(&str) -> Option<String>) -> Result<Endpoint, Error> {
    if let Some(url) = get("RUNTARA_HTTP_URL") {
        return Endpoint::parse("RUNTARA_HTTP_URL", &url);
    }
    let port = |variable: &'static str, text: &str| {
        text.parse::<u16>().map_err(|_| Error::Settings {
            variable,
            found: format!("{text:?}"),
            wanted: "a port number",
        })
    };
    let chosen = get("RUNTARA_CORE_HTTP_PORT")
        .map(|text| port("RUNTARA_CORE_HTTP_PORT", &text))
        .transpose()?;
    let (host, port) = match get("RUNTARA_SERVER_ADDR") {
        Some(address) => {
            let wrong = || Error::Settings {
                variable: "RUNTARA_SERVER_ADDR",
                found: format!("{address:?}"),
                wanted: "host:port",
            };
            let (host, text) = address.rsplit_once(':').ok_or_else(wrong)?;
            let above = port("RUNTARA_SERVER_ADDR", text)?.checked_add(2);
            (host.to_owned(), chosen.or(above).ok_or_else(wrong)?)
        }
        None => ("127.0.0.1".to_owned(), chosen.unwrap_or(8003)),
    };
    Endpoint::parse("RUNTARA_SERVER_ADDR", &format!("http://{host}:{port}"))
}

/// Where calls go: an address and the path in front of every call. The path holds a secret.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) authority: Authority,
    pub(crate) prefix: String,
}

impl Endpoint {
    fn parse(variable: &'static str, url: &str) -> Result<Self, Error> {
        let parsed: Option<Uri> = url.parse().ok();
        parsed
            .filter(|uri| uri.scheme() == Some(&Scheme::HTTP) && uri.query().is_none())
            .and_then(|uri| {
                Some(Self {
                    authority: uri.authority()?.clone(),
                    prefix: uri.path().trim_end_matches('/').to_owned(),
                })
            })
            .ok_or_else(|| Error::Settings {
                variable,
                found: format!("{:?}", redact(url)),
                wanted: "http://host:port (plain HTTP), with a path or without",
            })
    }

    /// Takes the secret out of a text that may hold it.
    pub(crate) fn redact(&self, text: &str) -> String {
        let text = match self.prefix.as_str() {
            "" => text.to_owned(),
            prefix => text.replace(prefix, &redact(prefix)),
        };
        redact(&text)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, redact(&self.prefix))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Replaces what follows each `/r/`, up to the end of that part of the path.
fn redact(text: &str) -> String {
    let mut parts = text.split("/r/");
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part
            .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.' | '~'))
            .unwrap_or(part.len());
        whole.push_str("/r/");
        if end > 0 {
            whole.push_str("<redacted>");
        }
        whole.push_str(&part[end..]);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, Error> {
        let ids = [("RUNTARA_INSTANCE_ID", "i"), ("RUNTARA_TENANT_ID", "t")];
        let all: Vec<_> = ids.iter().chain(variables).copied().collect();
        Settings::from_variables(|name| {
            all.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    fn address(variables: &[(&str, &str)]) -> String {
        read(variables).unwrap().endpoint.to_string()
    }

    #[test]
    fn the_address_is_found_as_published_programs_find_it() {
        assert_eq!(address(&[]), "http://127.0.0.1:8003");
        assert_eq!(
            address(&[("RUNTARA_SERVER_ADDR", "core:8001")]),
            "http://core:8003"
        );
        let port = ("RUNTARA_CORE_HTTP_PORT", "9000");
        assert_eq!(
            address(&[("RUNTARA_SERVER_ADDR", "core:8001"), port]),
            "http://core:9000"
        );
        assert_eq!(address(&[port]), "http://127.0.0.1:9000");
        let url = ("RUNTARA_HTTP_URL", "http://core:1/base/");
        assert_eq!(address(&[url, port]), "http://core:1/base");
    }

    #[test]
    fn the_secret_is_never_printed() {
        let settings = read(&[("RUNTARA_HTTP_URL", "http://127.0.0.1:8001/r/s3cr-3t_X/")]).unwrap();
        assert_eq!(settings.endpoint.prefix, "/r/s3cr-3t_X");
        assert!(!format!("{settings:?}").contains("s3cr"));
        assert_eq!(
            settings.endpoint.to_string(),
            "http://127.0.0.1:8001/r/<redacted>"
        );
        let text = settings
            .endpoint
            .redact("GET http://h/r/s3cr-3t_X/api failed, see /r/other");
        assert_eq!(
            text,
            "GET http://h/r/<redacted>/api failed, see /r/<redacted>"
        );
        let wrong = Settings::new("i", "t", "https://h/r/s3cr").unwrap_err();
        assert!(!format!("{wrong} {wrong:?}").contains("s3cr"), "{wrong}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let missing = Settings::from_variables(|_| None).unwrap_err().to_string();
        assert!(
            missing.starts_with("RUNTARA_INSTANCE_ID is not set"),
            "{missing}"
        );
        for (variable, value) in [
            ("RUNTARA_REQUEST_TIMEOUT_MS", "0"),
            ("RUNTARA_RUN_NUMBER", "first"),
            ("RUNTARA_HTTP_URL", "core:8001"),
            ("RUNTARA_SERVER_ADDR", "core"),
            ("RUNTARA_SERVER_ADDR", "core:65534"),
            ("RUNTARA_CORE_HTTP_PORT", "many"),
        ] {
            let error = read(&[(variable, value)]).unwrap_err().to_string();
            assert!(error.starts_with(variable), "{error}");
        }
    }
}
