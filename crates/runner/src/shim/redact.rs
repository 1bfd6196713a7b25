//! Hides tokens in a stream of bytes, wherever it is cut into reads.

use std::borrow::Cow;

use runtara_domain::redact_tokens;

/// What precedes a token in the URL that a program is given.
const MARK: &[u8] = b"/r/";
/// Mark and token together: a token has 52 letters.
const WHOLE: usize = MARK.len() + 52;

/// Keeps back what may be the beginning of a token until it is known.
#[derive(Debug, Default)]
pub(crate) struct Redactor {
    kept: Vec<u8>,
}

impl Redactor {
    /// Takes what was read and gives what may be stored.
    pub(crate) fn take<'a>(&mut self, read: &'a [u8]) -> Cow<'a, [u8]> {
        let text = if self.kept.is_empty() {
            Cow::Borrowed(read)
        } else {
            let mut text = std::mem::take(&mut self.kept);
            text.extend_from_slice(read);
            Cow::Owned(text)
        };
        let certain = text.len() - beginning_of_token(&text);
        self.kept.extend_from_slice(&text[certain..]);
        match text {
            Cow::Borrowed(text) => redact_tokens(&text[..certain]),
            Cow::Owned(text) => Cow::Owned(redact_tokens(&text[..certain]).into_owned()),
        }
    }

    /// Gives what was kept back, at the end of the stream.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.kept)
    }
}

/// How many bytes at the end of a text could be the beginning of a mark with its token.
fn beginning_of_token(text: &[u8]) -> usize {
    let longest = text.len().min(WHOLE - 1);
    (1..=longest)
        .rev()
        .find(|length| could_begin(&text[text.len() - length..]))
        .unwrap_or(0)
}

fn could_begin(end: &[u8]) -> bool {
    let marked = end.len().min(MARK.len());
    let is_letter = |byte: &u8| byte.is_ascii_lowercase() || (b'2'..=b'7').contains(byte);
    end[..marked] == MARK[..marked] && end[marked..].iter().all(is_letter)
}

#[cfg(test)]
mod tests {
    use runtara_domain::RunToken;

    use super::*;

    fn in_pieces(text: &[u8], size: usize) -> Vec<u8> {
        let mut redactor = Redactor::default();
        let mut stored = Vec::new();
        for piece in text.chunks(size) {
            stored.extend_from_slice(&redactor.take(piece));
        }
        stored.extend(redactor.finish());
        stored
    }

    #[test]
    fn a_token_is_hidden_wherever_the_reads_are_cut() {
        let (one, two) = (RunToken::generate(), RunToken::generate());
        let (one, two) = (one.expose(), two.expose());
        let text = format!("/r//r/{one} http://h/r/{two}/x /r/{}", &one[..51]);
        let whole = redact_tokens(text.as_bytes()).into_owned();
        assert!(!whole.windows(52).any(|window| window == one.as_bytes()));
        for size in 1..=text.len() {
            let stored = in_pieces(text.as_bytes(), size);
            assert_eq!(
                String::from_utf8_lossy(&stored),
                String::from_utf8_lossy(&whole),
                "in pieces of {size}"
            );
        }
    }

    #[test]
    fn what_cannot_become_a_token_is_not_kept_back() {
        let mut redactor = Redactor::default();
        assert_eq!(redactor.take(b"done\n").as_ref(), b"done\n");
        assert_eq!(redactor.take(b"a path /r").as_ref(), b"a path ");
        assert_eq!(redactor.take(b"oot\n").as_ref(), b"/root\n");
        assert!(redactor.finish().is_empty());
    }
}
