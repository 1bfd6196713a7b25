//! Small operations on text that more than one value needs.

/// The end of a text: at most `limit` bytes of it, cut at a character, with a mark where something was left out. The reason
/// of a failure usually stands last.
#[must_use]
pub fn tail(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    const MARK: &str = "…";
    let mut from = text.len() - limit.saturating_sub(MARK.len()).min(text.len());
    while !text.is_char_boundary(from) {
        from += 1;
    }
    format!("{MARK}{}", &text[from..])
}

/// The first `letters` characters of the lower-case base32 form (RFC 4648, without padding) of some bytes.
pub(crate) fn base32_letters(bytes: &[u8], letters: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1);
    (0..letters)
        .map(|letter| {
            let five = (0..5).fold(0, |value, offset| value << 1 | bit(letter * 5 + offset));
            char::from(ALPHABET[usize::from(five)])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_is_cut_at_a_character_and_keeps_the_end() {
        assert_eq!(tail("short", 10), "short");
        let cut = tail(&"ä".repeat(100), 20);
        assert!(
            cut.len() <= 20 && cut.starts_with('…') && cut.ends_with('ä'),
            "{cut}"
        );
    }

    #[test]
    fn base32_matches_the_rfc_vectors() {
        assert_eq!(base32_letters(b"foobar", 10), "mzxw6ytboi");
    }
}
