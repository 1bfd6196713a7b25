//! Which image is meant: registry, repository, tag or digest.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::{Digest, PullError};

/// Longest reference: a host name (253, RFC 1035), a port, a repository (255), a tag (128) and a digest fit in.
const REFERENCE_BYTES: usize = 1_024;
/// Longest repository and longest tag (distribution, reference/regexp.go and reference/reference.go).
const REPOSITORY_BYTES: usize = 255;
const TAG_BYTES: usize = 128;
/// What Docker Hub is called in references.
const HUB: &str = "docker.io";
/// What it was called before.
const OLD_HUB: &str = "index.docker.io";
/// Where Docker Hub answers.
const HUB_HOST: &str = "registry-1.docker.io";
/// Under what `docker login` keeps the credentials of Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Names an image in a registry, as people write it for docker: `alpine` is `docker.io/library/alpine:latest`.
///
/// The grammar is that of distribution (reference/reference.go). The crate `oci-spec` reads it too, by a regular expression that
/// takes letters of all scripts, and seconds to be compiled where the program is not optimised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as references call it, with its port if one is given.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. With neither tag nor digest written it is `latest`.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one is given. It counts, and a tag beside it does not.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same image by its digest alone.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest),
        }
    }

    /// The host, with its port if one is given, at which the registry answers.
    pub(crate) fn host(&self) -> &str {
        match self.registry() {
            HUB => HUB_HOST,
            other => other,
        }
    }

    /// Under what the credentials of the registry are kept.
    pub(crate) fn credentials_key(&self) -> &str {
        match self.registry() {
            HUB => HUB_KEY,
            other => other,
        }
    }
}

impl FromStr for Reference {
    type Err = PullError;

    fn from_str(text: &str) -> Result<Self, PullError> {
        parse(text).map_err(|problem| PullError::Reference {
            found: text.chars().take(REFERENCE_BYTES).collect(),
            problem,
        })
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.len() > REFERENCE_BYTES {
        return Err(format!("it is longer than {REFERENCE_BYTES} bytes"));
    }
    if text.contains("://") {
        return Err("it has a scheme".to_owned());
    }
    let (named, digest) = match text.split_once('@') {
        Some((named, digest)) => (named, Some(digest.parse()?)),
        None => (text, None),
    };
    // A colon before the last slash is that of a port.
    let path = named.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match named[path..].split_once(':') {
        Some((last, tag)) => (&named[..path + last.len()], Some(tag)),
        None => (named, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, repository) = split(name);
    check_registry(&registry)?;
    check_repository(&repository)?;
    let tag = tag.or(if digest.is_none() {
        Some("latest")
    } else {
        None
    });
    Ok(Reference {
        registry,
        repository,
        tag: tag.map(str::to_owned),
        digest,
    })
}

/// Registry and repository. What stands before the first slash is a registry if it cannot be a name at Docker Hub.
fn split(name: &str) -> (String, String) {
    let (registry, rest) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (HUB, name),
    };
    match registry {
        HUB | OLD_HUB if !rest.contains('/') => (HUB.to_owned(), format!("library/{rest}")),
        HUB | OLD_HUB => (HUB.to_owned(), rest.to_owned()),
        other => (other.to_owned(), rest.to_owned()),
    }
}

fn check_registry(registry: &str) -> Result<(), String> {
    let refused = || Err(format!("{registry:?} is no host with or without a port"));
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    if port.is_some_and(|port| !is_number(port) || port.parse::<u16>().is_err()) {
        return refused();
    }
    if let Some(address) = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        return match address.parse::<Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(_) => refused(),
        };
    }
    let is_label = |label: &str| {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(is_letter)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.split('.').all(is_label) {
        Ok(())
    } else {
        refused()
    }
}

fn check_repository(repository: &str) -> Result<(), String> {
    if repository.len() > REPOSITORY_BYTES {
        return Err(format!(
            "its repository is longer than {REPOSITORY_BYTES} bytes"
        ));
    }
    if repository.split('/').all(is_component) {
        return Ok(());
    }
    Err(format!(
        "its repository {repository:?} is not of small letters and digits, with `.`, `_`, `__`, `-` or `/` between them"
    ))
}

/// Words of small letters and digits, with one dot, one or two underscores, or any number of dashes between them.
fn is_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separators = component.split(|letter: char| u8::try_from(letter).is_ok_and(is_word));
    let is_separator =
        |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    let is_within = |byte: Option<u8>| byte.is_some_and(is_word);
    is_within(component.bytes().next())
        && is_within(component.bytes().last())
        && separators.into_iter().all(is_separator)
}

fn check_tag(tag: &str) -> Result<(), String> {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let is_tag = (1..=TAG_BYTES).contains(&tag.len())
        && tag.bytes().all(is_letter)
        && !tag.starts_with(['.', '-']);
    if is_tag {
        return Ok(());
    }
    Err(format!(
        "its tag {tag:?} is not of at most {TAG_BYTES} letters, digits, `_`, `.` and `-`, of which the last two cannot be the first"
    ))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_names_are_those_of_docker_hub() {
        for (text, whole, host) in [
            ("alpine", "docker.io/library/alpine:latest", HUB_HOST),
            ("alpine:3.20", "docker.io/library/alpine:3.20", HUB_HOST),
            ("team/app", "docker.io/team/app:latest", HUB_HOST),
            (
                "index.docker.io/team/app",
                "docker.io/team/app:latest",
                HUB_HOST,
            ),
            ("localhost/app:1", "localhost/app:1", "localhost"),
            (
                "127.0.0.1:5000/a/b",
                "127.0.0.1:5000/a/b:latest",
                "127.0.0.1:5000",
            ),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000"),
            ("[::1]/a:2", "[::1]/a:2", "[::1]"),
            (
                "Registry.Example.com/a_b/c__d/e.f/g--h:V1_x.y-z",
                "Registry.Example.com/a_b/c__d/e.f/g--h:V1_x.y-z",
                "Registry.Example.com",
            ),
            ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1", "ghcr.io"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), whole, "{text}");
            assert_eq!(reference.host(), host, "{text}");
            assert_eq!(reference.digest(), None, "{text}");
        }
        let hub: Reference = "alpine".parse().unwrap();
        assert_eq!(hub.credentials_key(), HUB_KEY);
    }

    #[test]
    fn a_digest_pins() {
        let text = format!("ghcr.io/a/b:v1@{DIGEST}");
        let reference: Reference = text.parse().unwrap();
        assert_eq!(reference.to_string(), text);
        assert_eq!(reference.tag(), Some("v1"));
        let digest = reference.digest().unwrap();
        let pinned = reference.pinned(digest);
        assert_eq!(pinned.to_string(), format!("ghcr.io/a/b@{DIGEST}"));
        assert_eq!(pinned.to_string().parse::<Reference>().unwrap(), pinned);
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_reason() {
        let long = format!("a/{}", "b".repeat(300));
        let longer = "a".repeat(2_000);
        let tag = format!("a:{}", "b".repeat(129));
        let other = format!("a@sha512:{}", "0".repeat(128));
        for (text, part) in [
            ("", "its repository \"library/\""),
            ("https://ghcr.io/a", "it has a scheme"),
            ("Alpine", "is not of small letters"),
            ("a b", "is not of small letters"),
            ("ä", "is not of small letters"),
            ("ghcr.io/../a", "is not of small letters"),
            ("ghcr.io//a", "is not of small letters"),
            ("ghcr.io/", "is not of small letters"),
            ("a..b", "is not of small letters"),
            ("a___b", "is not of small letters"),
            ("a-", "is not of small letters"),
            ("a:", "its tag \"\""),
            ("a:.b", "its tag \".b\""),
            ("a:b:c", "its tag \"b:c\""),
            ("a:ä", "its tag"),
            (&tag, "its tag"),
            ("a.b:99999/c", "is no host"),
            ("a.b:/c", "is no host"),
            ("me@a.b/c", "is not sha256:"),
            (".a/b", "is no host"),
            ("-a.b/c", "is no host"),
            ("a_b.c/d", "is no host"),
            ("[::g]:5/a", "is no host"),
            ("a@sha256:12", "is not sha256:"),
            ("a@", "is not sha256:"),
            (&other, "is not sha256:"),
            (&long, "longer than 255 bytes"),
            (&longer, "longer than 1024 bytes"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(error.contains("wanted is one like alpine:3.20"), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_read_is_written_so_that_it_is_read_again(
            letters in proptest::collection::vec(proptest::sample::select("aB1.-_/:@[]ä ".chars().collect::<Vec<_>>()), 0..20)
        ) {
            let text: String = letters.into_iter().collect();
            if let Ok(reference) = text.parse::<Reference>() {
                assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
                let url = format!("https://{}/v2/{}/", reference.host(), reference.repository());
                assert!(!url.contains(".."), "{url}");
            }
        }
    }
}
