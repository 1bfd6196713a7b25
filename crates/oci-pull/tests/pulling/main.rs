//! Pulling from a registry that answers as a test says, and from a real one.
//!
//! The real one is the program `docker-registry`, filled by `skopeo`: both are packages of Debian, and a test that misses one says so.

#![expect(clippy::unwrap_used, reason = "a test that meets an error has failed")]

mod broken;
mod content;
mod credentials;
mod failures;
mod fake;
mod limits;
mod real;
mod real_registry;

use std::time::Duration;

use runtara_oci_image::{Archive, ArchiveOptions, Platform, Watch};
use runtara_oci_pull::{Credentials, PullError, PullOptions, Pulled, pull};

/// Short deadlines and pauses, and the first platform of the contents.
pub(crate) fn options() -> PullOptions {
    let mut options = PullOptions::default();
    options.platform = "linux/amd64".parse().unwrap();
    options.first_pause = Duration::from_millis(10);
    options.deadlines.idle = Duration::from_millis(500);
    options.deadlines.document = Duration::from_secs(2);
    options.deadlines.total = Duration::from_secs(60);
    options
}

/// Pulls without credentials.
pub(crate) async fn pulled(reference: &str, options: &PullOptions) -> Result<Pulled, PullError> {
    pulled_as(reference, &Credentials::anonymous(), options).await
}

pub(crate) async fn pulled_as(
    reference: &str,
    credentials: &Credentials,
    options: &PullOptions,
) -> Result<Pulled, PullError> {
    let file = tempfile::tempfile().unwrap();
    pull(&reference.parse()?, credentials, options, file, |_| {}).await
}

/// Opens what was pulled as the server opens it, which verifies manifest and configuration. Gives the path that the image runs, by
/// which the contents tell themselves apart, and the archive.
pub(crate) fn opened(pulled: Pulled, platform: &str) -> (String, Archive) {
    let parts: Vec<&str> = platform.split('/').collect();
    let scratch = tempfile::tempdir().unwrap();
    let mut options = ArchiveOptions::new(scratch.path());
    options.platform = Platform {
        os: parts[0].to_owned(),
        architecture: parts[1].to_owned(),
        variant: parts.get(2).map(|&variant| variant.to_owned()),
    };
    assert_eq!(pulled.archive.metadata().unwrap().len(), pulled.bytes);
    let archive = Archive::open(pulled.archive, &options, Watch::none()).unwrap();
    (archive.config().entrypoint.join(" "), archive)
}
