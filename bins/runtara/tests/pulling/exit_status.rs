//! Each way to fail has its exit status, and says what to do.

use serde_json::{Value, json};

use crate::content::Content;
use crate::fake::{Fake, Reply};
use crate::{Person, environment, registry};

#[tokio::test]
async fn what_the_registry_does_not_have_is_status_3() {
    let (registry, reference) = registry().await;
    let server = environment().await;
    let person = Person::of(&server);
    let other = reference.replace(":1", ":2");
    let ran = person.pull(&["web", "--from", &other]).await;
    let told = format!(
        "error: {0} has no image {0}/team/app:2: MANIFEST_UNKNOWN: manifest unknown\n",
        registry.address
    );
    assert_eq!((ran.code, ran.stderr), (Some(3), told));
    let ran = person
        .pull(&["web", "--from", &reference, "--platform", "linux/s390x"])
        .await;
    let told = format!(
        "error: {reference} is not there for linux/s390x, but for linux/amd64; --platform chooses\n"
    );
    assert_eq!((ran.code, ran.stderr), (Some(3), told));
    assert!(server.lines().iter().all(|line| line.starts_with("GET ")));
}

#[tokio::test]
async fn what_cannot_be_is_status_2() {
    let server = environment().await;
    let person = Person::of(&server);
    for arguments in [
        &["web"][..],
        &["web", "--from", "https://ghcr.io/a"],
        &["web", "--from", "Alpine"],
        &["web", "--from", "127.0.0.1:1/a", "--platform", "arm64"],
    ] {
        let ran = person.pull(arguments).await;
        assert_eq!(ran.code, Some(2), "{arguments:?}: {ran:?}");
    }
    std::fs::write(person.docker_config(), r#"{"auths": "hunter2"}"#).unwrap();
    let ran = person.pull(&["web", "--from", "127.0.0.1:1/a"]).await;
    let told = format!(
        "error: cannot take credentials from {}: it is not the JSON that docker writes (line 1, column 19)\n",
        person.docker_config().display()
    );
    assert_eq!((ran.code, ran.stderr), (Some(2), told));
}

#[tokio::test]
async fn who_may_not_have_it_is_told_what_helps() {
    let registry =
        Fake::start(|_| Reply::new(401, "").header("www-authenticate", "Basic realm=\"x\"")).await;
    let (host, server) = (registry.address, environment().await);
    let reference = format!("{host}/team/app:1");
    let person = Person::of(&server);
    let file = person.docker_config();
    let file = file.display();
    let ran = person.pull(&["web", "--from", &reference]).await;
    let told = format!(
        "error: {host} does not give {reference} (401): there are no credentials, for {file} does not exist; `docker login {host}` stores some. Registries answer so for what does not exist, too\n"
    );
    assert_eq!((ran.code, ran.stderr), (Some(1), told));
    let config = json!({"auths": {host.to_string(): {"auth": "bWU6aHVudGVyMg=="}}});
    std::fs::write(person.docker_config(), config.to_string()).unwrap();
    let ran = person.pull(&["--json", "web", "--from", &reference]).await;
    let told: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(told["code"], "FAILED");
    let wanted = format!("it was asked with the credentials that {file} has for {host}");
    assert!(told["error"].as_str().unwrap().contains(&wanted), "{told}");
    assert!(
        !ran.stderr.contains("hunter2") && !ran.stderr.contains("bWU6"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn content_that_is_not_what_it_is_called_is_not_registered() {
    let content = Content::simple();
    let layer = content.layer(1);
    let registry = Fake::start(move |asked| {
        let mut reply = content.answer(asked);
        if asked.target.ends_with(&layer) {
            reply.body[15] ^= 1;
        }
        reply
    })
    .await;
    let server = environment().await;
    let reference = format!("{}/team/app:1", registry.address);
    let ran = Person::of(&server)
        .pull(&["web", "--from", &reference])
        .await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr
            .starts_with("error: the content of the layer sha256:"),
        "{ran:?}"
    );
    assert!(server.lines().iter().all(|line| line.starts_with("GET ")));
}

#[tokio::test]
async fn who_is_away_is_status_4() {
    // Bound and dropped: nothing listens there now.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let server = environment().await;
    let reference = format!("{address}/team/app:1");
    let ran = Person::of(&server)
        .pull(&["web", "--from", &reference])
        .await;
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(
        ran.stderr
            .starts_with(&format!("error: no answer from {address}: ")),
        "{ran:?}"
    );
    assert!(
        !ran.stderr.contains("hint: `runtara-environment dev`"),
        "{ran:?}"
    );

    // A name that cannot be (RFC 2606).
    let ran = Person::of(&server)
        .pull(&["web", "--from", "registry.invalid/a"])
        .await;
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(
        ran.stderr
            .starts_with("error: no answer from registry.invalid: "),
        "{ran:?}"
    );

    // Without a server, no registry is bothered.
    let (registry, reference) = registry().await;
    let person = Person::of(&server).with("RUNTARA_ENVIRONMENT_ADDR", address.to_string());
    let ran = person.pull(&["web", "--from", &reference]).await;
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(
        ran.stderr.contains("hint: `runtara-environment dev`"),
        "{ran:?}"
    );
    assert_eq!(registry.lines().len(), 0);
}

#[tokio::test]
async fn the_server_may_refuse_it() {
    let (_registry, reference) = registry().await;
    let server = Fake::start(|_| {
        let error =
            json!({"success": false, "error": "it has no runner for oci", "code": "NO_RUNNER"});
        Reply::new(400, error.to_string()).header("content-type", "application/json")
    })
    .await;
    let ran = Person::of(&server)
        .pull(&["web", "--from", &reference])
        .await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr
            .ends_with("error: it has no runner for oci (NO_RUNNER)\n"),
        "{ran:?}"
    );
}
