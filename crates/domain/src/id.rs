//! Ids that validate when they are made, so that nothing behind them checks again.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::limits;
use crate::text::base32_letters;

/// Says why a text cannot serve as an id: which id, what was found, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The text was empty.
    #[error("{what} is empty; give it at least one character")]
    Empty {
        /// Which id was meant, such as `instance id`.
        what: &'static str,
    },
    /// The text was longer than allowed.
    #[error("{what} has {found} bytes; at most {limit} are allowed")]
    TooLong {
        /// Which id was meant.
        what: &'static str,
        /// Its length in bytes.
        found: usize,
        /// The longest that is accepted, in bytes.
        limit: usize,
    },
    /// The text holds a character that cannot travel in a URL path or a log line.
    #[error("{what} holds {found:?}; control characters{also} are not allowed")]
    Forbidden {
        /// Which id was meant.
        what: &'static str,
        /// The first character that is refused.
        found: char,
        /// What else is refused beside control characters.
        also: &'static str,
    },
    /// The text begins or ends with white space, which URL libraries remove from the end of an address and people do not see.
    #[error(
        "{what} is {found:?}; white space at the beginning or the end is not allowed, so take it away"
    )]
    Spaced {
        /// Which id was meant.
        what: &'static str,
        /// The text itself.
        found: String,
    },
    /// The text holds the character NUL, which databases cannot keep in a text.
    #[error("{what} holds NUL, which is not allowed")]
    Nul {
        /// Which id was meant.
        what: &'static str,
    },
    /// The text is `.` or `..`, which URL libraries remove from a path.
    #[error("{what} is {found:?}, which cannot stand in a URL path; choose another")]
    DotSegment {
        /// Which id was meant.
        what: &'static str,
        /// The text itself.
        found: String,
    },
    /// The text is not of the fixed form that this id has.
    #[error("{what} is not {wanted}")]
    Malformed {
        /// Which id was meant.
        what: &'static str,
        /// The form that was wanted.
        wanted: &'static str,
    },
}

fn check_length(what: &'static str, text: &str, limit: usize) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty { what });
    }
    if text.len() > limit {
        return Err(IdError::TooLong {
            what,
            found: text.len(),
            limit,
        });
    }
    Ok(())
}

fn check_ends(what: &'static str, text: &str) -> Result<(), IdError> {
    if text.trim() == text {
        return Ok(());
    }
    Err(IdError::Spaced {
        what,
        found: text.to_owned(),
    })
}

fn check_path_segment(what: &'static str, text: &str, limit: usize) -> Result<(), IdError> {
    check_length(what, text, limit)?;
    if text == "." || text == ".." {
        return Err(IdError::DotSegment {
            what,
            found: text.to_owned(),
        });
    }
    match text
        .chars()
        .find(|c| c.is_control() || matches!(c, '/' | '?' | '#' | '%'))
    {
        None => check_ends(what, text),
        Some(found) => Err(IdError::Forbidden {
            what,
            found,
            also: " and / ? # %",
        }),
    }
}

fn check_plain(what: &'static str, text: &str, limit: usize) -> Result<(), IdError> {
    check_length(what, text, limit)?;
    match text.chars().find(|c| c.is_control()) {
        None => check_ends(what, text),
        Some(found) => Err(IdError::Forbidden {
            what,
            found,
            also: "",
        }),
    }
}

fn check_any(what: &'static str, text: &str, limit: usize) -> Result<(), IdError> {
    check_length(what, text, limit)?;
    match text.contains('\0') {
        false => Ok(()),
        true => Err(IdError::Nul { what }),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $limit:expr, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Makes the id of a text.
            ///
            /// # Errors
            /// [`IdError`] if the text is empty, too long, or holds or ends with what is not allowed.
            pub fn new(text: impl AsRef<str>) -> Result<Self, IdError> {
                let text = text.as_ref();
                $check($what, text, $limit)?;
                Ok(Self(text.into()))
            }

            /// The text of the id.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.as_ref().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// The owner of images and instances. At most 255 bytes; no control characters, none of `/ ? # %`, and no white space at
    /// its ends, because it stands in URL paths that published clients do not encode.
    TenantId, "tenant id", limits::ID_BYTES, check_path_segment
);
text_id!(
    /// One durable execution of an image; global over all tenants. Same form as [`TenantId`]. Never used as a path: see
    /// [`InstanceId::letters`].
    InstanceId, "instance id", limits::ID_BYTES, check_path_segment
);
text_id!(
    /// One registration of an image. Same form as [`TenantId`].
    ImageId, "image id", limits::ID_BYTES, check_path_segment
);
text_id!(
    /// The name under which a tenant registers an image. At most 255 bytes, no control characters, no white space at its
    /// ends: names that look alike are the same.
    ImageName, "image name", limits::ID_BYTES, check_plain
);
text_id!(
    /// The name of a checkpoint within its instance. At most 2,048 bytes, no NUL: programs make such names of whatever text they
    /// have, and every place that takes one encodes it.
    CheckpointId, "checkpoint id", limits::CHECKPOINT_ID_BYTES, check_any
);
text_id!(
    /// The name of a custom signal within its instance. Same form as [`CheckpointId`].
    SignalId, "signal id", limits::CHECKPOINT_ID_BYTES, check_any
);

impl ImageId {
    /// Makes a new random id (a version 4 UUID).
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::new_v4().to_string().into())
    }
}

impl InstanceId {
    /// Makes a new random id (a version 4 UUID).
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::new_v4().to_string().into())
    }

    /// Derives the id of a start that gives an idempotency key in place of an id: the version 5 UUID of tenant and key, so
    /// that the same key of the same tenant is the same instance.
    #[must_use]
    pub fn from_idempotency_key(tenant: &TenantId, key: &str) -> Self {
        let space = Uuid::new_v5(&Uuid::NAMESPACE_URL, b"runtara:idempotency-key");
        // The length keeps (tenant, key) pairs apart that would join to the same text.
        let name = format!("{}:{tenant}{key}", tenant.as_str().len());
        Self(Uuid::new_v5(&space, name.as_bytes()).to_string().into())
    }

    /// Twenty-six letters and digits that stand for this id in paths, container ids and host names: 130 bits of its SHA-256 in
    /// lower-case base32, so that no id can name a path of its own choice and no two ids share one.
    #[must_use]
    pub fn letters(&self) -> String {
        base32_letters(&Sha256::digest(self.0.as_bytes()), 26)
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// Makes a new random id.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::parse_str(text).map(Self).map_err(|_| IdError::Malformed {
                    what: $what,
                    wanted: "a UUID",
                })
            }
        }
    };
}

uuid_id!(
    /// One server process with a data directory; kept in that directory.
    NodeId,
    "node id"
);
uuid_id!(
    /// One database, told from every other by an id that is written into it when it is made.
    DatabaseId,
    "database id"
);

/// The number of a run within its instance: 0 before the first launch, then only growing.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RunNumber(pub u32);

impl RunNumber {
    /// The number of the next run.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for RunNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The SHA-256 of an image's content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageDigest(pub [u8; 32]);

impl ImageDigest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }

    /// Reads sixty-four hexadecimal digits of either case.
    ///
    /// # Errors
    /// [`IdError::Malformed`] for anything else.
    pub fn from_hex(text: &str) -> Result<Self, IdError> {
        let malformed = IdError::Malformed {
            what: "sha256 digest",
            wanted: "64 hexadecimal digits",
        };
        let bytes = text.as_bytes();
        if bytes.len() != 64 {
            return Err(malformed);
        }
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(bytes.chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16);
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => *byte = (high * 16 + low) as u8,
                _ => return Err(malformed),
            }
        }
        Ok(Self(digest))
    }

    /// Sixty-four lower-case hexadecimal digits.
    #[must_use]
    pub fn to_hex(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for ImageDigest {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::from_hex(&text)
    }
}

impl From<ImageDigest> for String {
    fn from(digest: ImageDigest) -> Self {
        digest.to_hex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_would_change_a_url_path_are_refused() {
        for bad in ["", "a/b", "a?b", "a#b", "a%41", "a\nb", "a\0b", ".", ".."] {
            assert!(InstanceId::new(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["order-1", "Bestellung Größe 7", "a.b", "...", "名前"] {
            assert_eq!(InstanceId::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn white_space_may_stand_within_an_id_and_not_around_it() {
        for bad in [
            " ",
            "\u{a0}",
            "\u{3000}",
            " order-1",
            "order-1 ",
            "a b\u{2003}",
        ] {
            let spaced = |what| {
                Err(IdError::Spaced {
                    what,
                    found: bad.to_owned(),
                })
            };
            assert_eq!(InstanceId::new(bad).map(drop), spaced("instance id"));
            assert_eq!(TenantId::new(bad).map(drop), spaced("tenant id"));
            assert_eq!(ImageName::new(bad).map(drop), spaced("image name"));
            // Names that programs make of whatever text they have.
            assert!(CheckpointId::new(bad).is_ok() && SignalId::new(bad).is_ok());
        }
        assert!(InstanceId::new("a b").is_ok() && ImageName::new("my work").is_ok());
        assert_eq!(
            InstanceId::new(" ").unwrap_err().to_string(),
            "instance id is \" \"; white space at the beginning or the end is not allowed, so take it away"
        );
    }

    #[test]
    fn the_longest_id_is_accepted_and_one_byte_more_is_not() {
        assert!(InstanceId::new("x".repeat(255)).is_ok());
        assert_eq!(
            InstanceId::new("x".repeat(256)),
            Err(IdError::TooLong {
                what: "instance id",
                found: 256,
                limit: 255
            })
        );
        assert!(CheckpointId::new("x".repeat(2048)).is_ok());
        assert!(CheckpointId::new("x".repeat(2049)).is_err());
    }

    #[test]
    fn checkpoint_ids_may_hold_what_is_percent_encoded_in_a_path() {
        assert!(CheckpointId::new("durable::charge::order/7?x=%41#1").is_ok());
        assert!(CheckpointId::new("two\nlines").is_ok());
        assert!(CheckpointId::new("a\0b").is_err());
    }

    #[test]
    fn letters_are_a_safe_path_whatever_the_id() {
        let letters = InstanceId::new("../../etc").map_or_else(
            |_| InstanceId::new("..x..etc").unwrap().letters(),
            |id| id.letters(),
        );
        assert_eq!(letters.len(), 26);
        assert!(
            letters
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        );
    }

    #[test]
    fn idempotency_keys_of_different_tenants_do_not_meet() {
        let (a, ab) = (TenantId::new("a").unwrap(), TenantId::new("ab").unwrap());
        let of = InstanceId::from_idempotency_key;
        assert_eq!(of(&a, "key"), of(&a, "key"));
        assert_ne!(of(&a, "bkey"), of(&ab, "key"));
    }

    #[test]
    fn digests_read_either_case_and_write_lower() {
        let digest = ImageDigest::of(b"x");
        let hex = digest.to_hex();
        assert_eq!(ImageDigest::from_hex(&hex.to_uppercase()).unwrap(), digest);
        assert!(ImageDigest::from_hex(&hex[1..]).is_err());
        assert!(ImageDigest::from_hex(&format!("g{}", &hex[1..])).is_err());
    }
}
