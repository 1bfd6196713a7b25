//! Paths and queries, percent-encoded (RFC 3986): all but the unreserved characters, so that no id can change the path.

use std::fmt::{Display, Write as _};

use crate::{Error, Labels};

/// Writes `text` behind `out`, encoded.
fn encode_into(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("writing to a String never fails");
        }
    }
}

/// A path under construction.
#[derive(Debug, Clone)]
pub(crate) struct Path {
    text: String,
    has_query: bool,
}

impl Path {
    /// Starts with a fixed path such as `/api/v1/images`.
    pub(crate) fn new(fixed: &str) -> Self {
        Self {
            text: fixed.to_owned(),
            has_query: false,
        }
    }

    /// Appends an id as one segment. `what` names it in the error for an id that cannot be a segment.
    pub(crate) fn id(mut self, what: &'static str, id: &str) -> Result<Self, Error> {
        // `.` and `..` would be removed by whatever normalises the path on the way, and they are unreserved.
        if id.is_empty() || id == "." || id == ".." {
            return Err(Error::InvalidRequest {
                what,
                found: id.to_owned(),
                wanted: "a non-empty id other than `.` and `..`",
            });
        }
        self.text.push('/');
        encode_into(&mut self.text, id);
        Ok(self)
    }

    /// Appends a fixed part such as `/signals`.
    pub(crate) fn then(mut self, fixed: &str) -> Self {
        self.text.push_str(fixed);
        self
    }

    /// Appends `key=value` to the query if there is a value.
    pub(crate) fn with(mut self, key: &str, value: Option<impl Display>) -> Self {
        if let Some(value) = value {
            self.text.push(if self.has_query { '&' } else { '?' });
            self.has_query = true;
            self.text.push_str(key);
            self.text.push('=');
            encode_into(&mut self.text, &value.to_string());
        }
        self
    }

    /// Appends one `label=` for each selector (`key=value` or `key`).
    pub(crate) fn with_labels(self, selectors: Option<&Vec<String>>) -> Self {
        selectors
            .into_iter()
            .flatten()
            .fold(self, |path, selector| path.with("label", Some(selector)))
    }

    /// The whole, query included.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// The path without its query, for messages: queries hold what callers look for.
    pub(crate) fn without_query(&self) -> &str {
        self.text.split('?').next().unwrap_or_default()
    }
}

/// Tells whether there is anything to send.
pub(crate) fn non_empty(labels: &Labels) -> Option<&Labels> {
    (!labels.is_empty()).then_some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_change_the_path() {
        let path = Path::new("/api/v1/instances")
            .id("instance id", "a/b?c#d%e ä")
            .unwrap()
            .then("/stop");
        assert_eq!(
            path.as_str(),
            "/api/v1/instances/a%2Fb%3Fc%23d%25e%20%C3%A4/stop"
        );
    }

    #[test]
    fn ids_that_vanish_from_a_path_are_refused() {
        for id in ["", ".", ".."] {
            let error = Path::new("/x").id("instance id", id).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::InvalidRequest {
                        what: "instance id",
                        ..
                    }
                ),
                "{id:?}: {error}"
            );
        }
    }

    #[test]
    fn only_given_values_are_asked_for() {
        let path = Path::new("/x")
            .with("status", None::<&str>)
            .with("limit", Some(5))
            .with_labels(Some(&vec!["team=a b".to_owned(), "urgent".to_owned()]));
        assert_eq!(path.as_str(), "/x?limit=5&label=team%3Da%20b&label=urgent");
        assert_eq!(path.without_query(), "/x");
    }
}
