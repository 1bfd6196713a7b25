//! Tokens (distribution, "Token Authentication Specification" and "OAuth2 Token Authentication").

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;

use crate::answer::{document, refusal, stalled};
use crate::client::{check_address, failed, host};
use crate::credentials::Secret;
use crate::registry::basic;
use crate::{Credentials, PullError, PullOptions, Reference};

/// Most that is read of a token server's answer, in bytes. Tokens have some thousands.
const ANSWER_BYTES: u64 = 256 * 1024;
/// What errors call it.
const WHAT: &str = "a token";
/// What we call ourselves; the specification demands a name and gives it no meaning.
const CLIENT_ID: &str = "runtara";

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// Who wants a token, and for what.
pub(crate) struct TokenRequest<'a> {
    pub(crate) client: &'a Client,
    /// The registry.
    pub(crate) base: &'a Url,
    pub(crate) reference: &'a Reference,
    pub(crate) credentials: &'a Credentials,
    pub(crate) options: &'a PullOptions,
}

impl TokenRequest<'_> {
    /// Gets a token that lets the repository be read, as a header.
    pub(crate) async fn get(
        &self,
        mut realm: Url,
        service: Option<String>,
    ) -> Result<HeaderValue, PullError> {
        check_address(&realm, self.base, self.options, "sends us for a token")?;
        // They would be shown in errors, and are none of ours.
        let _ = realm.set_username("");
        let _ = realm.set_password(None);
        let scope = format!("repository:{}:pull", self.reference.repository());
        let mut words = vec![("scope", scope)];
        words.extend(service.map(|service| ("service", service)));
        let request = match &self.credentials.secret {
            Some(Secret::IdentityToken(token)) => {
                words.push(("grant_type", "refresh_token".to_owned()));
                words.push(("client_id", CLIENT_ID.to_owned()));
                words.push(("refresh_token", token.clone()));
                self.client
                    .post(realm.clone())
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form(&words))
            }
            Some(Secret::Password { username, password }) => self
                .client
                .get(with_query(&realm, &words))
                .header(AUTHORIZATION, basic(username, password)),
            None => self.client.get(with_query(&realm, &words)),
        };
        let idle = self.options.deadlines.idle;
        let response = match tokio::time::timeout(idle, request.send()).await {
            Ok(sent) => sent.map_err(|error| failed(&realm, error))?,
            Err(_) => return Err(stalled(&realm, WHAT, idle)),
        };
        let status = response.status();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(self.denied(&realm, status));
        }
        // A redirect is not followed: with the form, the secret would go along.
        if status != StatusCode::OK {
            return Err(refusal(response, WHAT, self.options).await);
        }
        let body = document(response, WHAT, ANSWER_BYTES, self.options).await?;
        header(&body).ok_or_else(|| PullError::Malformed {
            what: format!("the answer of {}", host(&realm)),
            problem: "holds no token".to_owned(),
        })
    }

    /// Says that whoever asks may not have it.
    pub(crate) fn denied(&self, url: &Url, status: StatusCode) -> PullError {
        PullError::Denied {
            host: host(url),
            reference: self.reference.to_string(),
            registry: self.reference.registry().to_owned(),
            status: status.as_u16(),
            known: self.credentials.known.clone(),
        }
    }
}

fn header(body: &[u8]) -> Option<HeaderValue> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token = [answer.token, answer.access_token]
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty())?;
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn with_query(realm: &Url, words: &[(&str, String)]) -> Url {
    let mut url = realm.clone();
    url.query_pairs_mut().extend_pairs(words);
    url
}

/// Words in the form of a query, which is that of a form, too.
fn form(words: &[(&str, String)]) -> String {
    let mut url = Url::parse("http://form.invalid/").expect("an address that is fixed");
    url.query_pairs_mut().extend_pairs(words);
    url.query().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_name_of_the_token_is_taken_and_it_is_not_shown() {
        for body in [
            r#"{"token": "tttt"}"#,
            r#"{"access_token": "tttt", "expires_in": 60}"#,
            r#"{"token": "", "access_token": "tttt"}"#,
            r#"{"token": "tttt", "access_token": "other"}"#,
        ] {
            let value = header(body.as_bytes()).unwrap();
            assert_eq!(value.as_bytes(), b"Bearer tttt");
            assert!(!format!("{value:?}").contains("tttt"));
        }
        for body in ["", "{}", r#"{"token": ""}"#, r#"{"token": "a\nb"}"#, "[]"] {
            assert!(header(body.as_bytes()).is_none(), "{body}");
        }
    }

    #[test]
    fn words_of_a_form_are_escaped() {
        let words = [
            ("scope", "repository:a/b:pull".to_owned()),
            ("refresh_token", "a&b=c d+".to_owned()),
        ];
        assert_eq!(
            form(&words),
            "scope=repository%3Aa%2Fb%3Apull&refresh_token=a%26b%3Dc+d%2B"
        );
    }
}
