//! The names of content.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::PullError;

/// A SHA-256, written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of these bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Of what went into the hash.
    pub(crate) fn from_hash(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }

    /// The digits alone.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Refuses another digest than this one.
    pub(crate) fn check(self, what: &str, found: Self) -> Result<(), PullError> {
        if found == self {
            return Ok(());
        }
        Err(PullError::DigestMismatch {
            what: what.to_owned(),
            wanted: self,
            found,
        })
    }
}

impl FromStr for Digest {
    type Err = String;

    /// Reads the only algorithm that registries use; the specification registers SHA-512 beside it (descriptor.md, "Registered
    /// Algorithms").
    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || {
            let shown: String = text.chars().take(80).collect();
            format!("the digest {shown:?} is not sha256: and 64 hexadecimal digits")
        };
        let hex = text.strip_prefix("sha256:").ok_or_else(wanted)?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() != 64 || !hex.bytes().all(is_hex) {
            return Err(wanted());
        }
        let mut bytes = [0; 32];
        for (place, byte) in bytes.iter_mut().enumerate() {
            let digits = &hex[2 * place..2 * place + 2];
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wanted())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_as_they_are_written() {
        let digest = Digest::of(b"");
        let text = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
    }

    #[test]
    fn what_is_no_digest_could_be_a_path_and_is_refused() {
        for text in [
            "",
            "sha256:",
            "sha256:../../etc/passwd",
            "sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
            "sha512:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "sha256:+3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
