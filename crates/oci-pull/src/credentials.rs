//! Who asks: what `docker login` keeps.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use crate::error::Known;
use crate::{PullError, Reference, helper};

/// Largest configuration that is read, in bytes. Docker's own has some hundreds.
const FILE_BYTES: u64 = 1024 * 1024;

/// What one registry is told of who asks: found in the configuration of docker, or nothing.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) secret: Option<Secret>,
    pub(crate) known: Known,
}

/// What proves who asks.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    /// For the registry, or for its token server.
    Password { username: String, password: String },
    /// For the token server alone, which gives a token for it (OAuth 2.0 refresh token).
    IdentityToken(String),
}

/// The part of docker's `config.json` that is about credentials.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl Credentials {
    /// None: the registry is asked as anybody may.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            secret: None,
            known: Known::Nothing,
        }
    }

    /// Looks where docker does: in `$DOCKER_CONFIG/config.json`, else in `~/.docker/config.json`. Where there is none for the
    /// registry, it is asked as anybody may.
    ///
    /// A program that the file names to keep credentials (`docker-credential-…`) is asked for those of this registry.
    ///
    /// # Errors
    /// [`PullError::CredentialsFile`] if the file is there and cannot be used, [`PullError::CredentialHelper`] if the program
    /// does not answer as it should, within a minute.
    pub async fn find(reference: &Reference) -> Result<Self, PullError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let directory = set("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".docker")));
        match directory {
            Some(directory) => Self::from_file(&directory.join("config.json"), reference).await,
            None => Ok(Self {
                secret: None,
                known: Known::NoFile(None),
            }),
        }
    }

    /// Looks in this file: see [`Credentials::find`].
    ///
    /// # Errors
    /// As there.
    pub async fn from_file(file: &Path, reference: &Reference) -> Result<Self, PullError> {
        let Some(config) = read(file)? else {
            return Ok(Self {
                secret: None,
                known: Known::NoFile(Some(file.to_owned())),
            });
        };
        let key = reference.credentials_key();
        let secret = if let Some(name) = config.cred_helpers.get(key) {
            helper::ask(name, key, file).await?
        } else if let Some(secret) = config.stored(key, file)? {
            Some(secret)
        } else if let Some(name) = &config.creds_store {
            helper::ask(name, key, file).await?
        } else {
            None
        };
        let known = match secret {
            Some(_) => Known::From(file.to_owned()),
            None => Known::NotIn(file.to_owned()),
        };
        Ok(Self { secret, known })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(…)",
            Self::IdentityToken(_) => "IdentityToken(…)",
        })
    }
}

impl Config {
    /// What the file itself has for the registry. Beside a program that keeps them, docker writes entries with nothing in them.
    fn stored(&self, key: &str, file: &Path) -> Result<Option<Secret>, PullError> {
        let entry = match self.auths.get(key) {
            Some(entry) => Some(entry),
            None => self
                .auths
                .iter()
                .find(|(name, _)| host_of(name) == host_of(key))
                .map(|(_, entry)| entry),
        };
        entry.map_or(Ok(None), |entry| {
            entry
                .secret()
                .map_err(|problem| PullError::CredentialsFile {
                    file: file.to_owned(),
                    problem: format!("the entry for {key} {problem}"),
                })
        })
    }
}

impl Entry {
    fn secret(&self) -> Result<Option<Secret>, &'static str> {
        let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Secret::IdentityToken(token)));
        }
        if let Some(auth) = given(&self.auth) {
            return decoded(&auth).map(Some);
        }
        let pair = given(&self.username).zip(given(&self.password));
        Ok(pair.map(|(username, password)| Secret::Password { username, password }))
    }
}

fn decoded(auth: &str) -> Result<Secret, &'static str> {
    const WANTED: &str = "has an `auth` that is not user:password in Base64";
    let lenient =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let bytes = GeneralPurpose::new(&STANDARD, lenient)
        .decode(auth)
        .map_err(|_| WANTED)?;
    let text = String::from_utf8(bytes).map_err(|_| WANTED)?;
    let (username, password) = text.split_once(':').ok_or(WANTED)?;
    Ok(Secret::Password {
        username: username.to_owned(),
        // Docker for Windows has ended it with NUL.
        password: password.trim_end_matches('\0').to_owned(),
    })
}

/// The host of a key as people and older versions of docker write it: `https://host/v1/`. A path that is none of the protocol's
/// belongs to the name, for other tools keep credentials of a part of a registry so.
fn host_of(key: &str) -> &str {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let host = match bare.trim_end_matches('/').split_once('/') {
        Some((host, "v1" | "v2")) => host,
        _ => bare.trim_end_matches('/'),
    };
    match host {
        "docker.io" | "registry-1.docker.io" => "index.docker.io",
        other => other,
    }
}

/// Reads the configuration. `None` if there is no such file.
fn read(file: &Path) -> Result<Option<Config>, PullError> {
    let refused = |problem: String| PullError::CredentialsFile {
        file: file.to_owned(),
        problem,
    };
    let opened = match std::fs::File::open(file) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other.map_err(|error| refused(error.to_string()))?,
    };
    let mut text = Vec::new();
    opened
        .take(FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|error| refused(error.to_string()))?;
    if text.len() as u64 > FILE_BYTES {
        return Err(refused(format!("it is longer than {FILE_BYTES} bytes")));
    }
    let config = serde_json::from_slice(&text);
    // The parser's own words hold what it found, which may be a secret.
    config.map(Some).map_err(|error| {
        refused(format!(
            "it is not the JSON that docker writes (line {}, column {})",
            error.line(),
            error.column()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    async fn found(config: &Value, reference: &str) -> Result<Credentials, PullError> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        std::fs::write(&file, config.to_string()).unwrap();
        Credentials::from_file(&file, &reference.parse().unwrap()).await
    }

    fn password(username: &str, password: &str) -> Option<Secret> {
        Some(Secret::Password {
            username: username.to_owned(),
            password: password.to_owned(),
        })
    }

    #[tokio::test]
    async fn entries_of_the_file_are_found_by_the_host() {
        let config = json!({"auths": {
            "ghcr.io": {"auth": "bWU6c2VjOnJldA=="},
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "https://old.example.com/v2/": {"username": "u", "password": "p"},
            "token.example.com:5000": {"auth": "PHRva2VuPjo=", "identitytoken": "tttt"},
            "quay.io/team": {"auth": "bWU6c2VjOnJldA=="},
            "empty.example.com": {},
        }});
        for (reference, secret) in [
            ("ghcr.io/a/b", password("me", "sec:ret")),
            ("alpine", password("hub", "pw")),
            ("docker.io/team/app", password("hub", "pw")),
            ("old.example.com/a", password("u", "p")),
            (
                "token.example.com:5000/a",
                Some(Secret::IdentityToken("tttt".to_owned())),
            ),
            ("token.example.com/a", None),
            ("quay.io/a", None),
            ("empty.example.com/a", None),
        ] {
            let credentials = found(&config, reference).await.unwrap();
            assert!(credentials.secret == secret, "{reference}: {credentials:?}");
            let is_known = matches!(credentials.known, Known::From(_));
            assert_eq!(is_known, secret.is_some(), "{reference}");
        }
    }

    #[tokio::test]
    async fn no_file_is_no_credentials_and_a_broken_one_is_an_error_without_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let reference = "ghcr.io/a".parse().unwrap();
        let file = directory.path().join("none/config.json");
        let none = Credentials::from_file(&file, &reference).await.unwrap();
        assert_eq!(none.known, Known::NoFile(Some(file)));
        for (text, problem) in [
            (r#"{"auths": {"ghcr.io": "hunter2"}}"#, "line 1, column 31"),
            (r#"{"auths": {"ghcr.io": {"auth": 42}}}"#, "line 1"),
            (r#"{"auths": {"ghcr.io": {"auth": "hunter2"}}}"#, "Base64"),
            (
                r#"{"auths": {"ghcr.io": {"auth": "aHVudGVyMg=="}}}"#,
                "Base64",
            ),
            ("", "line 1, column 0"),
        ] {
            let file = directory.path().join("config.json");
            std::fs::write(&file, text).unwrap();
            let error = Credentials::from_file(&file, &reference).await.unwrap_err();
            let told = format!("{error} {error:?}");
            assert!(told.contains(problem), "{told}");
            assert!(told.contains(&file.display().to_string()), "{told}");
            assert!(!told.contains("hunter2") && !told.contains("42"), "{told}");
            assert!(error.is_usage());
        }
    }

    #[tokio::test]
    async fn a_file_without_end_is_not_read_to_its_end() {
        let reference = "ghcr.io/a".parse().unwrap();
        let error = Credentials::from_file(Path::new("/dev/zero"), &reference).await;
        let text = error.unwrap_err().to_string();
        assert!(text.contains("longer than 1048576 bytes"), "{text}");
    }

    #[tokio::test]
    async fn no_secret_is_shown() {
        let config = json!({"auths": {
            "ghcr.io": {"auth": "bWU6aHVudGVyMg=="}, "quay.io": {"identitytoken": "hunter2"}
        }});
        for reference in ["ghcr.io/a", "quay.io/a"] {
            let credentials = found(&config, reference).await.unwrap();
            let told = format!("{credentials:?} {:?}", credentials.secret);
            assert!(
                !told.contains("hunter2") && !told.contains("bWU6"),
                "{told}"
            );
        }
    }

    #[tokio::test]
    async fn helpers_come_before_the_file_and_the_store_after_it() {
        let missing = "surely-not-installed";
        let entry = json!({"ghcr.io": {"auth": "bWU6cHc="}});
        let config = json!({"auths": entry, "credHelpers": {"ghcr.io": missing}});
        let error = found(&config, "ghcr.io/a").await.unwrap_err().to_string();
        assert!(
            error.contains("docker-credential-surely-not-installed")
                && error.contains("cannot be started"),
            "{error}"
        );
        let config = json!({"auths": entry, "credsStore": missing});
        let credentials = found(&config, "ghcr.io/a").await.unwrap();
        assert!(credentials.secret == password("me", "pw"));
        assert!(found(&config, "quay.io/a").await.is_err());
        let config = json!({"credsStore": "../../bin/sh"});
        let error = found(&config, "ghcr.io/a").await.unwrap_err().to_string();
        assert!(error.contains("no name of a program"), "{error}");
    }
}
