//! What a program was built for.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;

/// An operating system, a kind of processor, and the variant of it, in the words of Go (OCI image specification,
/// image-index.md, "Platform Variants"). Written `linux/amd64` or `linux/arm/v7`.
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
    /// The platform of this machine.
    #[must_use]
    pub fn host() -> Self {
        Self {
            variant: host_variant(),
            ..Self::least_host()
        }
    }

    /// Linux on this machine's kind of processor, of which the first variant: what runs on every machine of that kind.
    #[must_use]
    pub fn least_host() -> Self {
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
    #[must_use]
    pub fn rank(&self, other: &Self) -> Option<Reverse<u32>> {
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

/// What was written is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is no platform, wanted is os/architecture or os/architecture/variant, like linux/arm64 or linux/arm/v7"
)]
pub struct UnknownPlatform {
    /// What was written.
    pub found: String,
}

impl FromStr for Platform {
    type Err = UnknownPlatform;

    fn from_str(text: &str) -> Result<Self, UnknownPlatform> {
        let refused = || UnknownPlatform {
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
        // Archives and registries say what they like here.
        write!(
            f,
            "{}/{}",
            self.os.escape_debug(),
            self.architecture.escape_debug()
        )?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{}", variant.escape_debug()),
            _ => Ok(()),
        }
    }
}

/// The level of the processor (x86-64 psABI, "Micro-Architecture Levels"). Only so much is looked at as tells the levels apart
/// on real processors.
#[cfg(target_arch = "x86_64")]
fn host_variant() -> Option<String> {
    let level = if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
        4
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") {
        3
    } else if is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("popcnt") {
        2
    } else {
        1
    };
    Some(format!("v{level}"))
}

#[cfg(not(target_arch = "x86_64"))]
fn host_variant() -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(architecture: &str, variant: Option<&str>) -> Platform {
        Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    #[test]
    fn a_processor_runs_its_variant_and_those_before_the_newest_first() {
        let host = platform("arm", Some("v7"));
        assert_eq!(host.rank(&platform("arm", Some("v8"))), None);
        assert!(host.rank(&platform("arm", None)) < host.rank(&platform("arm", Some("v6"))));
        assert_eq!(host.rank(&platform("arm64", None)), None);
        assert!(
            platform("arm64", None)
                .rank(&platform("arm64", Some("v8")))
                .is_some()
        );
        assert!(
            platform("amd64", Some("v3"))
                .rank(&platform("amd64", None))
                .is_some()
        );
        assert_eq!(
            platform("amd64", None).rank(&platform("amd64", Some("v2"))),
            None
        );
    }

    #[test]
    fn this_machine_runs_what_is_built_for_it() {
        let host = Platform::host();
        assert!(host.rank(&host).is_some(), "{host}");
    }

    fn written(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn platforms_are_read_as_they_are_written() {
        for text in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(written(text).to_string(), text);
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
        assert_eq!(Platform::least_host().os, "linux");
    }

    #[test]
    fn what_is_written_is_compared_the_same_way() {
        let wanted = written("linux/arm/v7");
        assert_eq!(wanted.rank(&written("linux/arm/v8")), None);
        assert!(wanted.rank(&written("linux/arm")) < wanted.rank(&written("linux/arm/v6")));
        assert_eq!(wanted.rank(&written("linux/arm64")), None);
        assert!(
            written("linux/arm64")
                .rank(&written("linux/arm64/v8"))
                .is_some()
        );
        // Who says nothing of the variant gets what runs everywhere.
        assert_eq!(
            written("linux/amd64").rank(&written("linux/amd64/v3")),
            None
        );
        assert_eq!(
            written("linux/amd64").rank(&written("unknown/unknown")),
            None
        );
    }
}
