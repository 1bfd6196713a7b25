//! What an image was built for.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

use crate::PullError;

/// An operating system, a kind of processor, and the variant of it, in the words of Go (OCI image specification, image-index.md,
/// "Platform Variants"). Written `linux/amd64` or `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Such as `linux`.
    pub os: String,
    /// Such as `amd64` or `arm64`.
    pub architecture: String,
    /// Such as `v8`; `None` means the first one that the architecture had.
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on this machine's kind of processor, of which the first variant: containers run on Linux, and the server may be
    /// another machine than this one.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            same => same,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// How well a program for the other platform does on this one: the smallest is the best, `None` if it does not run.
    pub(crate) fn rank(&self, other: &Self) -> Option<Reverse<u32>> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        let level = other.level()?;
        (level <= self.level()?).then_some(Reverse(level))
    }

    /// The variant as a number. `None` if it is none that is known.
    fn level(&self) -> Option<u32> {
        match &self.variant {
            Some(variant) if !variant.is_empty() => {
                variant.strip_prefix('v').unwrap_or(variant).parse().ok()
            }
            // As containerd reads a missing variant.
            _ => Some(match self.architecture.as_str() {
                "arm64" => 8,
                "arm" => 7,
                _ => 1,
            }),
        }
    }
}

impl FromStr for Platform {
    type Err = PullError;

    fn from_str(text: &str) -> Result<Self, PullError> {
        let refused = || PullError::Platform {
            found: text.to_owned(),
        };
        let is_word = |part: &&str| {
            (1..=64).contains(&part.len())
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_')
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(is_word) {
            return Err(refused());
        }
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant.to_owned())),
            _ => return Err(refused()),
        };
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A registry says what it likes here.
        let (os, architecture) = (self.os.escape_debug(), self.architecture.escape_debug());
        write!(f, "{os}/{architecture}")?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{}", variant.escape_debug()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn platforms_are_read_as_they_are_written() {
        for text in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(platform(text).to_string(), text);
        }
        for text in [
            "",
            "linux",
            "linux/",
            "/arm64",
            "linux/arm/v7/x",
            "linux/a b",
        ] {
            let error = text.parse::<Platform>().unwrap_err().to_string();
            assert!(error.contains("like linux/arm64"), "{text}: {error}");
        }
        assert_eq!(Platform::host().os, "linux");
    }

    #[test]
    fn a_processor_runs_its_variant_and_those_before_the_newest_first() {
        let wanted = platform("linux/arm/v7");
        assert_eq!(wanted.rank(&platform("linux/arm/v8")), None);
        assert!(wanted.rank(&platform("linux/arm")) < wanted.rank(&platform("linux/arm/v6")));
        assert_eq!(wanted.rank(&platform("linux/arm64")), None);
        assert!(
            platform("linux/arm64")
                .rank(&platform("linux/arm64/v8"))
                .is_some()
        );
        // Who says nothing of the variant gets what runs everywhere.
        assert_eq!(
            platform("linux/amd64").rank(&platform("linux/amd64/v3")),
            None
        );
        assert_eq!(
            platform("linux/amd64").rank(&platform("unknown/unknown")),
            None
        );
    }
}
