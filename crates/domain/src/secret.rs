//! The form of secrets that travel as text: 256 random bits as 52 lower-case letters and digits.

use crate::text::base32_letters;

/// How long one is.
pub(crate) const LETTERS: usize = 52;

/// Makes a new one.
pub(crate) fn generate() -> String {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes after boot");
    base32_letters(&bytes, LETTERS)
}

/// Whether a text may be one.
pub(crate) fn has_form(text: &str) -> bool {
    let is_letter = |b: u8| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b);
    text.len() == LETTERS && text.bytes().all(is_letter)
}
