//! Small indexed maps of text by which images and instances are found.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits;

/// Labels of an image or an instance, ordered by key. They validate when they are made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<String, String>",
    into = "BTreeMap<String, String>"
)]
pub struct Labels(BTreeMap<String, String>);

/// Says why labels are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// There are too many.
    #[error("{found} labels; at most {} are allowed", limits::LABELS)]
    TooMany {
        /// How many there were.
        found: usize,
    },
    /// A key is empty, too long or holds a character that a filter could not name.
    #[error(
        "label key {found:?} is not 1 to {} letters, digits or any of . _ - /",
        limits::LABEL_KEY_BYTES
    )]
    Key {
        /// The key, shortened.
        found: String,
    },
    /// A value is too long or holds a control character.
    #[error(
        "the value of label {key:?} is longer than {} bytes or holds a control character",
        limits::LABEL_VALUE_BYTES
    )]
    Value {
        /// The key of the value.
        key: String,
    },
}

fn check_key(key: &str) -> Result<(), LabelError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/');
    if key.is_empty() || key.len() > limits::LABEL_KEY_BYTES || !key.chars().all(allowed) {
        return Err(LabelError::Key {
            found: key.chars().take(80).collect(),
        });
    }
    Ok(())
}

fn check_value(key: &str, value: &str) -> Result<(), LabelError> {
    if value.len() > limits::LABEL_VALUE_BYTES || value.chars().any(char::is_control) {
        return Err(LabelError::Value {
            key: key.to_owned(),
        });
    }
    Ok(())
}

impl Labels {
    /// Makes labels of pairs.
    ///
    /// # Errors
    /// [`LabelError`] if there are too many, or one has a key or value that is not allowed.
    pub fn new(pairs: BTreeMap<String, String>) -> Result<Self, LabelError> {
        if pairs.len() > limits::LABELS {
            return Err(LabelError::TooMany { found: pairs.len() });
        }
        for (key, value) in &pairs {
            check_key(key)?;
            check_value(key, value)?;
        }
        Ok(Self(pairs))
    }

    /// The pairs, ordered by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = LabelError;
    fn try_from(pairs: BTreeMap<String, String>) -> Result<Self, LabelError> {
        Self::new(pairs)
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

/// A demand on labels: `key` (present, with any value) or `key=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelFilter {
    /// The key that must be there.
    pub key: String,
    /// The value it must have, if that matters.
    pub value: Option<String>,
}

impl LabelFilter {
    /// Reads `key` or `key=value`.
    ///
    /// # Errors
    /// [`LabelError`] if no label can have that key or value.
    pub fn parse(text: &str) -> Result<Self, LabelError> {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (text, None),
        };
        check_key(key)?;
        if let Some(value) = value {
            check_value(key, value)?;
        }
        Ok(Self {
            key: key.to_owned(),
            value: value.map(str::to_owned),
        })
    }

    /// Whether labels meet the demand.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        match (labels.get(&self.key), &self.value) {
            (Some(found), Some(wanted)) => found == wanted,
            (found, None) => found.is_some(),
            (None, Some(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Result<Labels, LabelError> {
        Labels::new(
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn filters_match_by_key_or_by_pair() {
        let found = labels(&[("team", "billing"), ("env", "")]).unwrap();
        for (filter, expected) in [
            ("team", true),
            ("team=billing", true),
            ("team=", false),
            ("env=", true),
            ("other", false),
        ] {
            let filter = LabelFilter::parse(filter).unwrap();
            assert_eq!(filter.matches(&found), expected, "{filter:?}");
        }
    }

    #[test]
    fn keys_and_values_that_cannot_be_named_are_refused() {
        assert!(matches!(
            labels(&[("a b", "x")]),
            Err(LabelError::Key { .. })
        ));
        assert!(matches!(
            labels(&[("a", "x\n")]),
            Err(LabelError::Value { .. })
        ));
        assert!(labels(&[("example.org/team_a-1", "any text, ä")]).is_ok());
    }
}
