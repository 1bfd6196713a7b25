//! Where the shared image store is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use crate::BlobError;

/// The address of a shared image store: `file:///directory`, or `s3://bucket/prefix`.
///
/// It holds no secret, and cannot: keys are variables of the process (`AWS_…`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageStoreUrl(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Directory(PathBuf),
    S3 { bucket: String, prefix: String },
}

impl FromStr for ImageStoreUrl {
    type Err = String;

    /// The text that is refused is not repeated: somebody may have put a key into it.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("file://") {
            if !path.starts_with('/') || path.trim_end_matches('/').is_empty() {
                return Err(
                    "a directory is named by its absolute path, as file:///srv/images".to_owned(),
                );
            }
            return Ok(Self(Kind::Directory(path.into())));
        }
        let Some(rest) = text.strip_prefix("s3://") else {
            return Err("file:///directory or s3://bucket/prefix is wanted".to_owned());
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if bucket.is_empty() || !bucket.chars().all(allowed) {
            return Err(
                "after s3:// the name of a bucket is wanted, and nothing else: region, endpoint and keys are said by AWS_REGION, AWS_ENDPOINT, \
                 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                    .to_owned(),
            );
        }
        let prefix = prefix.trim_matches('/');
        let is_plain = |part: &str| part.chars().all(allowed) && part.chars().any(|c| c != '.');
        if !prefix.is_empty() && !prefix.split('/').all(is_plain) {
            return Err("a prefix in a bucket is made of letters, digits, '.', '-', '_', with '/' between its parts".to_owned());
        }
        Ok(Self(Kind::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
        }))
    }
}

impl fmt::Display for ImageStoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Directory(path) => write!(f, "file://{}", path.display()),
            Kind::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Kind::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl ImageStoreUrl {
    /// Whether this build can reach it: S3 is a feature.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), String> {
        match &self.0 {
            Kind::S3 { .. } if !cfg!(feature = "s3") => Err(
                "this server was built without the feature s3; name a shared directory, or build it with the feature".to_owned(),
            ),
            _ => Ok(()),
        }
    }

    /// The directory that it is, if it is one. Content is renamed there in one step.
    pub(super) fn directory(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Directory(path) => Some(path),
            Kind::S3 { .. } => None,
        }
    }

    pub(super) fn objects(&self) -> Result<Arc<dyn ObjectStore>, BlobError> {
        match &self.0 {
            Kind::Directory(path) => {
                // Not made if it is missing: it is most likely a mount that is not there.
                if !path.is_dir() {
                    return Err(BlobError::Shared {
                        action: "open the directory of",
                        reason: format!(
                            "there is no directory {}; mount or create it, and let this user write to it",
                            path.display()
                        ),
                    });
                }
                let directory = LocalFileSystem::new_with_prefix(path)
                    .map_err(|error| BlobError::shared("open the directory of", &error))?;
                // Of each pin a directory would be left.
                let directory = directory.with_fsync(true).with_automatic_cleanup(true);
                Ok(Arc::new(directory))
            }
            Kind::S3 { bucket, prefix } => s3(bucket, prefix),
        }
    }
}

#[cfg(feature = "s3")]
fn s3(bucket: &str, prefix: &str) -> Result<Arc<dyn ObjectStore>, BlobError> {
    use std::time::Duration;

    use object_store::aws::AmazonS3Builder;
    use object_store::prefix::PrefixStore;
    use object_store::{BackoffConfig, RetryConfig};

    // Of the whole process, unless it has one already: which of several is meant must be said.
    let _theirs_stays = rustls::crypto::ring::default_provider().install_default();
    // Each request ends after 30 s, connecting after 5, unless `AWS_TIMEOUT` and `AWS_CONNECT_TIMEOUT` say otherwise.
    let bucket = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_retry(RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(5),
                base: 2.0,
            },
            max_retries: 4,
            retry_timeout: Duration::from_secs(60),
        })
        .build()
        .map_err(|error| BlobError::shared("use the settings of", &error))?;
    if prefix.is_empty() {
        return Ok(Arc::new(bucket));
    }
    Ok(Arc::new(PrefixStore::new(bucket, prefix)))
}

#[cfg(not(feature = "s3"))]
fn s3(_bucket: &str, _prefix: &str) -> Result<Arc<dyn ObjectStore>, BlobError> {
    Err(BlobError::Shared {
        action: "reach",
        reason: "this server was built without the feature s3".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_and_buckets_are_understood() {
        for (text, shown) in [
            ("file:///srv/images", "file:///srv/images"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            (
                "s3://a.bucket-1/some/prefix/",
                "s3://a.bucket-1/some/prefix",
            ),
        ] {
            let url: ImageStoreUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
        }
    }

    #[test]
    fn what_is_refused_is_not_repeated() {
        for text in [
            "",
            "/srv/images",
            "file://",
            "file:///",
            "file://host/images",
            "http://host/bucket",
            "s3://",
            "s3:///prefix",
            "s3://key:secret@bucket/prefix",
            "s3://bucket?secret=1",
            "s3://bucket/a//b",
            "s3://bucket/../secret",
        ] {
            let error = text.parse::<ImageStoreUrl>().expect_err(text);
            assert!(!error.contains("secret="), "{error}");
            assert!(!error.contains("key:"), "{error}");
        }
    }
}
