//! Who asks, and who gets to know it.

use std::path::PathBuf;

use runtara_oci_pull::{Credentials, PullError};
use serde_json::{Value, json};

use crate::content::Content;
use crate::fake::{Asked, End, Fake, Reply};
use crate::{opened, options, pulled, pulled_as};

/// `me:hunter2`.
const AUTH: &str = "bWU6aHVudGVyMg==";

/// The configuration of docker with one entry for the registry.
struct Config {
    directory: tempfile::TempDir,
}

impl Config {
    fn new(registry: &Fake, entry: &Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = json!({"auths": {registry.address.to_string(): entry}});
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        Self { directory }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("config.json")
    }

    async fn credentials(&self, reference: &str) -> Credentials {
        let reference = reference.parse().unwrap();
        Credentials::from_file(&self.file(), &reference)
            .await
            .unwrap()
    }
}

fn reference(registry: &Fake) -> String {
    format!("{}/team/app:1", registry.address)
}

/// A registry that wants to see this header, and otherwise challenges.
async fn guarded(wanted: &'static str, challenge: impl Into<String>) -> Fake {
    let (content, challenge) = (Content::simple(), challenge.into());
    Fake::start(move |asked| match asked.header("authorization") {
        Some(found) if found == wanted => content.answer(asked),
        _ => Reply::new(401, "").header("www-authenticate", challenge.clone()),
    })
    .await
}

fn bearer(tokens: &Fake) -> String {
    format!(
        "Bearer realm=\"http://{}/token\",service=\"reg\"",
        tokens.address
    )
}

async fn tokens(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Fake {
    Fake::start(answer).await
}

fn check_hidden(error: &PullError) {
    let told = format!("{error} {error:?}");
    for secret in ["hunter2", AUTH, "tttt"] {
        assert!(!told.contains(secret), "{told}");
    }
}

#[tokio::test]
async fn a_password_is_shown_to_the_registry_once_it_asks() {
    let registry = guarded("Basic bWU6aHVudGVyMg==", "Basic realm=\"x\"").await;
    let config = Config::new(&registry, &json!({"auth": AUTH}));
    let credentials = config.credentials(&reference(&registry)).await;
    let pulled = pulled_as(&reference(&registry), &credentials, &options()).await;
    assert_eq!(opened(pulled.unwrap(), "linux/amd64").0, "/app");
    let asked = registry.asked();
    assert_eq!(asked.len(), 5);
    assert_eq!(asked[0].header("authorization"), None);
    assert!(
        asked[1..]
            .iter()
            .all(|asked| asked.header("authorization").is_some())
    );
}

#[tokio::test]
async fn who_may_not_is_told_which_file_was_read_and_what_helps() {
    let registry = guarded("Basic bWU6b3RoZXI=", "Basic realm=\"x\"").await;
    let (host, reference) = (registry.address.to_string(), reference(&registry));
    let config = Config::new(&registry, &json!({"auth": AUTH}));
    let credentials = config.credentials(&reference).await;
    let error = pulled_as(&reference, &credentials, &options())
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{host} does not give {reference} (401): it was asked with the credentials that {} has for {host}; `docker login {host}` renews them",
            config.file().display()
        )
    );
    check_hidden(&error);
    assert_eq!(registry.lines().len(), 2, "it is not asked again and again");

    std::fs::write(config.file(), "{}").unwrap();
    let credentials = config.credentials(&reference).await;
    let error = pulled_as(&reference, &credentials, &options())
        .await
        .unwrap_err();
    let wanted = format!(
        "{} has no credentials for {host}; `docker login {host}` stores some",
        config.file().display()
    );
    assert!(error.to_string().contains(&wanted), "{error}");

    std::fs::remove_file(config.file()).unwrap();
    let credentials = config.credentials(&reference).await;
    let error = pulled_as(&reference, &credentials, &options())
        .await
        .unwrap_err();
    let wanted = format!("{} does not exist", config.file().display());
    assert!(error.to_string().contains(&wanted), "{error}");

    let forbidding = Fake::start(|_| Reply::new(403, "")).await;
    let error = pulled(&self::reference(&forbidding), &options())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("(403): it was asked without credentials"),
        "{error}"
    );
}

#[tokio::test]
async fn a_token_is_fetched_as_the_challenge_says() {
    let answer = json!({"token": "tttt"}).to_string();
    let tokens = tokens(move |_| Reply::new(200, answer.clone())).await;
    let registry = guarded("Bearer tttt", bearer(&tokens)).await;
    let pulled = pulled(&reference(&registry), &options()).await;
    assert_eq!(opened(pulled.unwrap(), "linux/amd64").0, "/app");
    assert_eq!(
        tokens.lines(),
        ["GET /token?scope=repository%3Ateam%2Fapp%3Apull&service=reg"]
    );
    assert_eq!(tokens.asked()[0].header("authorization"), None);

    let config = Config::new(&registry, &json!({"auth": AUTH}));
    let credentials = config.credentials(&reference(&registry)).await;
    pulled_as(&reference(&registry), &credentials, &options())
        .await
        .unwrap();
    let asked = tokens.asked();
    assert_eq!(
        asked[1].header("authorization"),
        Some("Basic bWU6aHVudGVyMg==")
    );
    let shown = registry.asked();
    let of_password = shown.iter().filter(|asked| {
        asked
            .header("authorization")
            .is_some_and(|value| value.starts_with("Basic"))
    });
    assert_eq!(
        of_password.count(),
        0,
        "the password is for the token server alone"
    );

    let config = Config::new(&registry, &json!({"identitytoken": "hunter2"}));
    let credentials = config.credentials(&reference(&registry)).await;
    pulled_as(&reference(&registry), &credentials, &options())
        .await
        .unwrap();
    let last = tokens.asked().pop().unwrap();
    assert_eq!(last.line(), "POST /token");
    assert_eq!(
        String::from_utf8_lossy(&last.body),
        "scope=repository%3Ateam%2Fapp%3Apull&service=reg&grant_type=refresh_token&client_id=runtara&refresh_token=hunter2"
    );
}

#[tokio::test]
async fn a_token_that_runs_out_is_renewed() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let next = move || count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let tokens = tokens(move |_| {
        let token = format!("tttt{}", next());
        Reply::new(200, json!({"access_token": token}).to_string())
    })
    .await;
    let (content, challenge) = (Content::simple(), bearer(&tokens));
    let registry = Fake::start(move |asked| {
        // Content is for a newer token than the manifest.
        let wanted = if asked.target.contains("/blobs/") {
            "Bearer tttt1"
        } else {
            "Bearer tttt0"
        };
        match asked.header("authorization") {
            Some(found) if found == wanted => content.answer(asked),
            _ => Reply::new(401, "").header("www-authenticate", challenge.clone()),
        }
    })
    .await;
    pulled(&reference(&registry), &options()).await.unwrap();
    assert_eq!(tokens.lines().len(), 2);
}

#[tokio::test]
async fn a_token_server_that_fails_is_told() {
    let config = |registry: &Fake| Config::new(registry, &json!({"auth": AUTH}));
    for (reply, wanted) in [
        (
            Reply::new(401, "hunter2"),
            "(401): it was asked with the credentials that",
        ),
        (
            Reply::new(403, "hunter2"),
            "(403): it was asked with the credentials that",
        ),
        (Reply::new(200, "hunter2"), "holds no token"),
        (Reply::new(200, "{}"), "holds no token"),
        (Reply::new(200, "").ending(End::Never, 0), "a token: "),
        (
            Reply::new(307, "").header("location", "/elsewhere"),
            "answers 307 when asked for a token",
        ),
        (
            Reply::new(500, "hunter2"),
            "answers 500 when asked for a token",
        ),
    ] {
        let tokens = tokens(move |_| reply.clone()).await;
        let registry = guarded("Bearer tttt", bearer(&tokens)).await;
        let config = config(&registry);
        let credentials = config.credentials(&reference(&registry)).await;
        let error = pulled_as(&reference(&registry), &credentials, &options()).await;
        let error = error.unwrap_err();
        assert!(error.to_string().contains(wanted), "{wanted}: {error}");
        check_hidden(&error);
        assert!(tokens.lines().iter().all(|line| line.contains("/token")));
        assert!(tokens.lines().len() <= 4, "{wanted}: {:?}", tokens.lines());
    }
}

#[tokio::test]
async fn credentials_do_not_travel_over_plain_http_nor_to_where_content_is_kept() {
    let registry = guarded("", "Bearer realm=\"http://auth.example.com/token\"").await;
    let config = Config::new(&registry, &json!({"auth": AUTH}));
    let credentials = config.credentials(&reference(&registry)).await;
    let error = pulled_as(&reference(&registry), &credentials, &options())
        .await
        .unwrap_err();
    assert!(matches!(error, PullError::PlainHttp { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("sends us for a token over plain HTTP"),
        "{error}"
    );

    let content = Content::simple();
    let kept = content.clone();
    let store = Fake::start(move |asked| kept.answer(asked)).await;
    let target = format!("http://{}", store.address);
    let registry = Fake::start(move |asked| match asked.header("authorization") {
        None => Reply::new(401, "").header("www-authenticate", "Basic realm=\"x\""),
        Some(_) if asked.target.contains("/blobs/") => {
            Reply::new(307, "").header("location", format!("{target}{}", asked.target))
        }
        Some(_) => content.answer(asked),
    })
    .await;
    let config = Config::new(&registry, &json!({"auth": AUTH}));
    let credentials = config.credentials(&reference(&registry)).await;
    pulled_as(&reference(&registry), &credentials, &options())
        .await
        .unwrap();
    let asked = store.asked();
    assert_eq!(asked.len(), 3);
    for asked in asked {
        let told = format!("{:?}", asked.headers);
        assert!(asked.header("authorization").is_none(), "{told}");
        assert!(!told.contains(AUTH), "{told}");
    }
}
