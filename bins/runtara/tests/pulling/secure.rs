//! TLS, and plain HTTP where it is allowed.
//!
//! 0.0.0.0 is the address here: connections to it reach this machine on Linux, and it is no address of loopback.

use std::path::PathBuf;
use std::process::Command;

use crate::content::Content;
use crate::fake::{Fake, Reply};
use crate::real::Registry;
use crate::{Person, environment, registry};

/// The certificate of a server, where openssl would make one of an authority.
const REQUEST: &str = "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = server\n[name]\nCN = test\n\
[server]\nbasicConstraints = critical, CA:FALSE\nsubjectAltName = IP:0.0.0.0\n";

/// A certificate for 0.0.0.0 that nobody vouches for but itself.
struct Certificate {
    directory: tempfile::TempDir,
}

impl Certificate {
    fn new() -> Self {
        let certificate = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        std::fs::write(certificate.path("request.conf"), REQUEST).unwrap();
        let output = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args(["-nodes", "-days", "2", "-config"])
            .arg(certificate.path("request.conf"))
            .arg("-keyout")
            .arg(certificate.path("key.pem"))
            .arg("-out")
            .arg(certificate.path("certificate.pem"))
            .output()
            .unwrap_or_else(|error| {
                panic!("cannot run openssl ({error}); install the package openssl")
            });
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl: {told}");
        certificate
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

#[tokio::test]
async fn a_certificate_counts_if_the_system_trusts_who_made_it() {
    let certificate = Certificate::new();
    let (key, public) = (
        certificate.path("key.pem"),
        certificate.path("certificate.pem"),
    );
    let tls = format!(
        "  tls:\n    certificate: {}\n    key: {}",
        public.display(),
        key.display()
    );
    let registry = Registry::start(&tls, "");
    registry.fill(&Content::simple(), "1", &[]);
    let reference = format!("0.0.0.0:{}/team/app:1", registry.address.port());
    let server = environment().await;
    let ran = Person::of(&server)
        .with("SSL_CERT_FILE", public.to_str().unwrap())
        .pull(&["web", "--from", &reference])
        .await;
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "4f3c\n"),
        "{ran:?}"
    );

    let ran = Person::of(&server)
        .pull(&["web", "--from", &reference])
        .await;
    assert_eq!(ran.code, Some(4), "{ran:?}");
    let wanted = format!(
        "error: no secure connection to 0.0.0.0:{}: ",
        registry.address.port()
    );
    assert!(ran.stderr.starts_with(&wanted), "{ran:?}");
    assert!(ran.stderr.contains("certificate"), "{ran:?}");
}

#[tokio::test]
async fn plain_http_is_refused_until_it_is_allowed() {
    let (fake, _) = registry().await;
    let reference = format!("0.0.0.0:{}/team/app:1", fake.address.port());
    let server = environment().await;
    let person = Person::of(&server);
    let ran = person.pull(&["web", "--from", &reference]).await;
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(ran.stderr.contains("does not speak TLS"), "{ran:?}");
    assert!(ran.stderr.contains("--plain-http"), "{ran:?}");
    assert_eq!(fake.lines().len(), 0);
    let ran = person
        .pull(&["web", "--from", &reference, "--plain-http"])
        .await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[tokio::test]
async fn a_proxy_is_asked_for_other_machines_and_not_for_this_one() {
    let proxy = Fake::start(|_| Reply::new(502, "")).await;
    let address = format!("http://{}", proxy.address);
    let (_registry, reference) = registry().await;
    let server = environment().await;
    let person = Person::of(&server)
        .with("HTTP_PROXY", &address)
        .with("http_proxy", &address)
        .with("HTTPS_PROXY", &address);
    let ran = person.pull(&["web", "--from", &reference]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(proxy.lines().len(), 0);
    let ran = person.pull(&["web", "--from", "registry.invalid/a"]).await;
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert_eq!(proxy.lines()[0], "CONNECT registry.invalid:443");
}
