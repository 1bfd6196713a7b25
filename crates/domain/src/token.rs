//! The unguessable token of a run.

use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::secret;

/// The secret by which a run proves which run it is. It is given to the program and kept nowhere else; the store knows only
/// its [`TokenHash`]. It does not implement `Display`, and its `Debug` form shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct RunToken(String);

impl RunToken {
    const LETTERS: usize = secret::LETTERS;

    /// Makes a new token of 256 random bits.
    ///
    /// # Panics
    /// If the operating system has no randomness to give, which Linux rules out after boot.
    #[must_use]
    pub fn generate() -> Self {
        Self(secret::generate())
    }

    /// Takes a text for a token if it has the form of one: 52 lower-case letters and digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        secret::has_form(text).then(|| Self(text.to_owned()))
    }

    /// The text that goes into the program's URL. A secret: it must reach no log and no answer.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What the store keeps of it.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl fmt::Debug for RunToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunToken(redacted)")
    }
}

/// The SHA-256 of a run's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

/// Hides the tokens in what a program wrote: programs print the URL they were given when a call fails, and what they print is
/// stored and shown. Every `/r/` followed by the letters of a token becomes `/r/<redacted>`.
#[must_use]
pub fn redact_tokens(text: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    const MARK: &[u8] = b"/r/";
    let mut clean = Vec::new();
    let mut kept_from = 0;
    let mut at = 0;
    while let Some(found) = text[at..]
        .windows(MARK.len())
        .position(|window| window == MARK)
    {
        let letters = at + found + MARK.len();
        let end = letters + RunToken::LETTERS;
        let is_token = text
            .get(letters..end)
            .and_then(|letters| std::str::from_utf8(letters).ok())
            .is_some_and(|letters| RunToken::parse(letters).is_some());
        if is_token {
            clean.extend_from_slice(&text[kept_from..letters]);
            clean.extend_from_slice(b"<redacted>");
            kept_from = end;
            at = end;
        } else {
            at = letters;
        }
    }
    if clean.is_empty() {
        return text.into();
    }
    clean.extend_from_slice(&text[kept_from..]);
    clean.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_shows_nothing_of_itself() {
        let token = RunToken::generate();
        assert_eq!(RunToken::parse(token.expose()), Some(token.clone()));
        assert!(!format!("{token:?}").contains(token.expose()));
        assert_ne!(token.hash(), RunToken::generate().hash());
        assert_eq!(RunToken::parse("short"), None);
        assert_eq!(RunToken::parse(&"A".repeat(52)), None);
    }

    #[test]
    fn tokens_in_a_text_are_hidden_and_everything_else_is_kept() {
        let (one, two) = (RunToken::generate(), RunToken::generate());
        let (one, two) = (one.expose(), two.expose());
        let text = format!("GET http://h/r/{one}/health: /r/short, /r//r/{two}");
        assert_eq!(
            redact_tokens(text.as_bytes()).as_ref(),
            b"GET http://h/r/<redacted>/health: /r/short, /r//r/<redacted>"
        );
        assert!(matches!(
            redact_tokens(b"nothing /r/ here"),
            std::borrow::Cow::Borrowed(_)
        ));
    }
}
