//! What nodes show one another.

use std::fmt;

use crate::secret;

/// The secret by which the nodes of one database know each other: each makes one for itself, and the others read it there. It does not
/// implement `Display`, and its `Debug` form shows nothing.
#[derive(Clone)]
pub struct NodeKey(String);

impl NodeKey {
    /// Makes a new key of 256 random bits.
    ///
    /// # Panics
    /// If the operating system has no randomness to give, which Linux rules out after boot.
    #[must_use]
    pub fn generate() -> Self {
        Self(secret::generate())
    }

    /// Takes a text for a key if it has the form of one: 52 lower-case letters and digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        secret::has_form(text).then(|| Self(text.to_owned()))
    }

    /// The text that travels. A secret: it must reach no log and no answer.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl PartialEq for NodeKey {
    /// Takes as long whatever the first difference is, so that a key cannot be found letter by letter.
    fn eq(&self, other: &Self) -> bool {
        let letters = self.0.bytes().zip(other.0.bytes());
        let differences = letters.fold(0, |all, (one, other)| all | (one ^ other));
        self.0.len() == other.0.len() && differences == 0
    }
}

impl Eq for NodeKey {}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_back_and_shows_nothing() {
        let key = NodeKey::generate();
        assert_eq!(NodeKey::parse(key.expose()), Some(key.clone()));
        assert_ne!(NodeKey::generate(), key);
        assert_eq!(format!("{key:?}"), "NodeKey(redacted)");
        for wrong in ["", "short", &"A".repeat(52), &"a".repeat(53)] {
            assert_eq!(NodeKey::parse(wrong), None, "{wrong}");
        }
    }
}
