//! Connections: how they are made, where they may lead, and what it means when they fail.

use std::error::Error as _;
use std::fmt::Write as _;
use std::net::IpAddr;

use reqwest::{Client, Url, redirect};
use rustls::{InvalidMessage, crypto::ring};

use crate::error::Shown;
use crate::{PullError, PullOptions};

/// Who we say that we are.
const USER_AGENT: &str = concat!("runtara/", env!("CARGO_PKG_VERSION"));

/// Makes a client for the registry at `base`. It follows no redirects: see [`crate::registry`].
pub(crate) fn client(base: &Url, options: &PullOptions) -> Result<Client, PullError> {
    // The first one counts for the whole process: if the program has chosen one, that one serves here as well.
    let _ = ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(options.deadlines.connect);
    if is_loopback(base) {
        // A proxy is another machine, and could not reach it.
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| PullError::Client {
        problem: causes(&error),
    })
}

/// Whether this is the machine itself, by its address: what a name server says of other names does not count.
pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Whether credentials of the one are meant for the other.
pub(crate) fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}

/// Refuses an address that a registry names if it is none for us: another protocol, or plain HTTP where `base` is not, too.
pub(crate) fn check_address(
    url: &Url,
    base: &Url,
    options: &PullOptions,
    what: &'static str,
) -> Result<(), PullError> {
    let is_plain_allowed = base.scheme() == "http" && (options.plain_http || is_loopback(url));
    match url.scheme() {
        "https" => Ok(()),
        "http" if is_plain_allowed => Ok(()),
        "http" => Err(PullError::PlainHttp {
            host: host(base),
            what,
        }),
        other => Err(PullError::Malformed {
            what: format!("an address that {} names", host(base)),
            problem: format!(
                "is neither HTTPS nor HTTP, but {:?}",
                Shown(other).to_string()
            ),
        }),
    }
}

/// Host and port, as errors name them.
pub(crate) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Says what a failed request means.
pub(crate) fn failed(url: &Url, error: reqwest::Error) -> PullError {
    let host = host(url);
    match tls_error(&error) {
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            PullError::PlainHttp {
                host,
                what: "does not speak TLS, so that it would have to be asked",
            }
        }
        Some(error) => PullError::Tls {
            host,
            problem: error.to_string(),
        },
        None => PullError::Unreachable {
            host,
            problem: causes(&error.without_url()),
        },
    }
}

fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // What an I/O error wraps is not its source.
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(|error| error.get_ref());
        cause = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// The causes of an error, the outermost first, each once. The error itself only says that a request failed.
fn causes(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if text.is_empty() {
            text = more;
        } else if !text.ends_with(&more) {
            let _ = write!(text, ": {more}");
        }
        cause = error.source();
    }
    if text.is_empty() {
        text = error.to_string();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn loopback_is_an_address_not_a_name_that_leads_there() {
        for text in [
            "http://127.0.0.1:5000/",
            "http://127.8.9.1/",
            "http://[::1]:5/",
            "http://localhost/",
        ] {
            assert!(is_loopback(&url(text)), "{text}");
        }
        for text in [
            "http://10.0.0.1/",
            "http://0.0.0.0/",
            "http://localhost.example.com/",
            "http://127.0.0.1.example.com/",
            "http://[::2]/",
        ] {
            assert!(!is_loopback(&url(text)), "{text}");
        }
    }

    #[test]
    fn plain_http_is_reached_from_plain_http_only() {
        let mut options = PullOptions::default();
        let check = |to: &str, from: &str, options: &PullOptions| {
            check_address(&url(to), &url(from), options, "redirects").is_ok()
        };
        assert!(check("https://a/", "https://b/", &options));
        assert!(check("https://a/", "http://127.0.0.1/", &options));
        assert!(check(
            "http://127.0.0.1:1/",
            "http://127.0.0.1:2/",
            &options
        ));
        assert!(!check("http://a/", "http://127.0.0.1:2/", &options));
        assert!(!check("http://127.0.0.1/", "https://a/", &options));
        assert!(!check("ftp://a/", "https://a/", &options));
        assert!(!check("file:///etc/passwd", "https://a/", &options));
        options.plain_http = true;
        assert!(check("http://a/", "http://b/", &options));
        assert!(!check("http://a/", "https://a/", &options));
    }
}
