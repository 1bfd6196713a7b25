//! One repository of a registry: requests with credentials, redirects and repetitions.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, Response, StatusCode, Url};

use crate::answer::{message, refusal, stalled};
use crate::challenge::Challenge;
use crate::client::{check_address, client, failed, host, is_loopback, is_same_origin};
use crate::credentials::Secret;
use crate::options::{ATTEMPTS, LONGEST_PAUSE, REDIRECTS};
use crate::token::TokenRequest;
use crate::{Credentials, PullError, PullOptions, Reference};

/// A repository, and what its registry has let us know of how it wants to be asked.
pub(crate) struct Registry<'a> {
    client: Client,
    base: Url,
    pub(crate) reference: &'a Reference,
    credentials: &'a Credentials,
    pub(crate) options: &'a PullOptions,
    /// What the registry wants to see, once it has said so.
    authorization: Option<HeaderValue>,
}

/// What is asked for.
pub(crate) struct Wanted<'a> {
    /// Its path within the repository.
    pub(crate) path: &'a str,
    /// The media types that are understood.
    pub(crate) accept: &'static str,
    /// How many bytes of it are there already.
    pub(crate) from: u64,
    /// What errors call it.
    pub(crate) what: &'a str,
    /// Whether the whole image is not there if this is not.
    pub(crate) is_image: bool,
}

impl<'a> Registry<'a> {
    pub(crate) fn new(
        reference: &'a Reference,
        credentials: &'a Credentials,
        options: &'a PullOptions,
    ) -> Result<Self, PullError> {
        let base = base(reference, options)?;
        Ok(Self {
            client: client(&base, options)?,
            base,
            reference,
            credentials,
            options,
            authorization: None,
        })
    }

    /// Begins an answer; its body is still to be read.
    pub(crate) async fn get(&mut self, wanted: &Wanted<'_>) -> Result<Response, PullError> {
        let url = self.base.join(wanted.path);
        let mut url = url.map_err(|error| self.malformed_address(&error.to_string()))?;
        let mut is_renewed = false;
        let mut redirects = 0;
        loop {
            let response = self.send(&url, wanted).await?;
            let is_ours = is_same_origin(&url, &self.base);
            match response.status() {
                StatusCode::OK => return Ok(response),
                StatusCode::PARTIAL_CONTENT if wanted.from > 0 => return Ok(response),
                // A token may have run out since the last answer. Once only: what it does not take now it never will.
                StatusCode::UNAUTHORIZED if is_ours && !is_renewed => {
                    is_renewed = true;
                    self.authorize(&url, &response).await?;
                }
                status if is_redirect(status) && redirects < REDIRECTS => {
                    redirects += 1;
                    url = self.target(&url, &response)?;
                }
                status => return Err(self.refused(&url, status, response, wanted).await),
            }
        }
    }

    /// Pauses before something is asked for again, if that may help.
    ///
    /// # Errors
    /// The error itself if it will not pass, if `attempt` was the last one, or if the registry asks for more patience than we have.
    pub(crate) async fn pause(&self, error: PullError, attempt: u32) -> Result<(), PullError> {
        if attempt >= ATTEMPTS || !error.may_pass() {
            return Err(error);
        }
        let ours = self.options.first_pause * 2_u32.saturating_pow(attempt - 1);
        let pause = match &error {
            PullError::Busy {
                after: Some(after), ..
            } if *after > LONGEST_PAUSE => return Err(error),
            PullError::Busy {
                after: Some(after), ..
            } => ours.max(*after),
            _ => ours,
        };
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn send(&self, url: &Url, wanted: &Wanted<'_>) -> Result<Response, PullError> {
        let mut request = self.client.get(url.clone()).header(ACCEPT, wanted.accept);
        if wanted.from > 0 {
            request = request.header(RANGE, format!("bytes={}-", wanted.from));
        }
        // To the registry alone: where it redirects to is somebody else.
        if let Some(value) = self
            .authorization
            .as_ref()
            .filter(|_| is_same_origin(url, &self.base))
        {
            request = request.header(AUTHORIZATION, value);
        }
        let idle = self.options.deadlines.idle;
        match tokio::time::timeout(idle, request.send()).await {
            Ok(sent) => sent.map_err(|error| failed(url, error)),
            Err(_) => Err(stalled(url, wanted.what, idle)),
        }
    }

    /// Learns from a challenge what the registry wants to see.
    async fn authorize(&mut self, url: &Url, response: &Response) -> Result<(), PullError> {
        let tokens = self.tokens();
        let value = match (
            Challenge::best(response.headers()),
            &self.credentials.secret,
        ) {
            (Some(Challenge::Bearer { realm, service }), _) => tokens.get(realm, service).await?,
            (Some(Challenge::Basic), Some(Secret::Password { username, password })) => {
                basic(username, password)
            }
            _ => return Err(tokens.denied(url, response.status())),
        };
        self.authorization = Some(value);
        Ok(())
    }

    fn tokens(&self) -> TokenRequest<'_> {
        TokenRequest {
            client: &self.client,
            base: &self.base,
            reference: self.reference,
            credentials: self.credentials,
            options: self.options,
        }
    }

    /// Where a redirect leads.
    fn target(&self, url: &Url, response: &Response) -> Result<Url, PullError> {
        let location = response.headers().get(LOCATION);
        let location = location.and_then(|value| value.to_str().ok());
        let target = location.and_then(|location| url.join(location).ok());
        let target = target.ok_or_else(|| self.malformed_address("leads nowhere"))?;
        check_address(&target, &self.base, self.options, "keeps content")?;
        Ok(target)
    }

    fn malformed_address(&self, problem: &str) -> PullError {
        PullError::Malformed {
            what: format!("an address of {}", host(&self.base)),
            problem: problem.to_owned(),
        }
    }

    async fn refused(
        &self,
        url: &Url,
        status: StatusCode,
        response: Response,
        wanted: &Wanted<'_>,
    ) -> PullError {
        let is_ours = is_same_origin(url, &self.base);
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if is_ours => {
                self.tokens().denied(url, status)
            }
            StatusCode::NOT_FOUND if is_ours && wanted.is_image => PullError::NotFound {
                host: host(url),
                reference: self.reference.to_string(),
                message: message(response, self.options).await,
            },
            _ => refusal(response, wanted.what, self.options).await,
        }
    }
}

/// The address of the repository.
fn base(reference: &Reference, options: &PullOptions) -> Result<Url, PullError> {
    let (host, repository) = (reference.host(), reference.repository());
    let address = |scheme: &str| {
        format!("{scheme}://{host}/v2/{repository}/")
            .parse()
            .map_err(|error| PullError::Reference {
                found: reference.to_string(),
                problem: format!("its registry is no host: {error}"),
            })
    };
    let plain: Url = address("http")?;
    if options.plain_http || is_loopback(&plain) {
        return Ok(plain);
    }
    address("https")
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// User and password as a header.
pub(crate) fn basic(username: &str, password: &str) -> HeaderValue {
    let encoded = STANDARD.encode(format!("{username}:{password}"));
    let mut value = HeaderValue::from_str(&format!("Basic {encoded}"))
        .expect("Base64 has only what a header may have");
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_for_who_asks_for_it() {
        let mut options = PullOptions::default();
        let address = |reference: &str, options: &PullOptions| {
            base(&reference.parse().unwrap(), options)
                .unwrap()
                .to_string()
        };
        assert_eq!(
            address("alpine", &options),
            "https://registry-1.docker.io/v2/library/alpine/"
        );
        assert_eq!(
            address("10.0.0.1:5000/a/b", &options),
            "https://10.0.0.1:5000/v2/a/b/"
        );
        assert_eq!(
            address("localhost:5000/a", &options),
            "http://localhost:5000/v2/a/"
        );
        assert_eq!(
            address("127.0.0.1:5000/a", &options),
            "http://127.0.0.1:5000/v2/a/"
        );
        options.plain_http = true;
        assert_eq!(address("ghcr.io/a", &options), "http://ghcr.io/v2/a/");
    }

    #[test]
    fn a_password_is_not_shown() {
        let value = basic("me", "hunter2");
        assert_eq!(value.as_bytes(), b"Basic bWU6aHVudGVyMg==");
        assert!(!format!("{value:?}").contains("bWU6"));
    }
}
