//! Base64 that arrives in pieces.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::{DecodeError, DecodeSliceError};

/// Says where a text stops being base64 (RFC 4648 section 4: the standard alphabet, with padding). Positions count characters
/// from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Base64Error {
    /// A character outside of the alphabet, or a `=` before the end.
    #[error(
        "not base64: '{}' at position {position}; the standard alphabet with padding is wanted",
        char::from(*found).escape_default()
    )]
    BadCharacter {
        /// Where.
        position: u64,
        /// The character, as a byte.
        found: u8,
    },
    /// More text after the padding.
    #[error("not base64: text after the padding, at position {position}")]
    AfterPadding {
        /// Where the further text begins.
        position: u64,
    },
    /// The last character carries bits that belong to no byte: the text was cut or changed.
    #[error("not base64: the last character, at position {position}, carries bits of no byte")]
    StrayBits {
        /// Where.
        position: u64,
    },
    /// The text ends inside a group of four.
    #[error("not base64: the text ends after {length} characters, which is not a multiple of four")]
    CutOff {
        /// The length of the text.
        length: u64,
    },
}

/// Decodes base64 text that arrives in pieces of any size, without keeping more than three characters in between.
///
/// ```
/// let mut decoder = runtara_images::Base64Decoder::default();
/// let mut content = Vec::new();
/// decoder.decode(b"aGVsb", &mut content)?;
/// decoder.decode(b"G8=", &mut content)?;
/// decoder.finish()?;
/// assert_eq!(content, b"hello");
/// # Ok::<(), runtara_images::Base64Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Base64Decoder {
    /// The beginning of a group of four that is not whole yet.
    carry: [u8; 4],
    carried: usize,
    /// Characters before the carried ones.
    position: u64,
    padded: bool,
}

impl Base64Decoder {
    /// Decodes the next piece of text and appends the bytes. After an error the decoder is of no further use.
    ///
    /// # Errors
    /// [`Base64Error`] with the position in the whole text.
    pub fn decode(&mut self, mut text: &[u8], content: &mut Vec<u8>) -> Result<(), Base64Error> {
        if self.carried > 0 {
            let missing = (4 - self.carried).min(text.len());
            let (head, rest) = text.split_at(missing);
            self.carry[self.carried..self.carried + missing].copy_from_slice(head);
            self.carried += missing;
            text = rest;
            if self.carried < 4 {
                return Ok(());
            }
            self.carried = 0;
            self.decode_groups(&self.carry.clone(), content)?;
        }
        let (groups, rest) = text.split_at(text.len() / 4 * 4);
        self.decode_groups(groups, content)?;
        if self.padded && !rest.is_empty() {
            return Err(Base64Error::AfterPadding {
                position: self.position,
            });
        }
        self.carry[..rest.len()].copy_from_slice(rest);
        self.carried = rest.len();
        Ok(())
    }

    /// Says whether the text was whole.
    ///
    /// # Errors
    /// [`Base64Error::CutOff`] if it ended inside a group of four.
    pub fn finish(&self) -> Result<(), Base64Error> {
        if self.carried == 0 {
            return Ok(());
        }
        Err(Base64Error::CutOff {
            length: self.position + self.carried as u64,
        })
    }

    fn decode_groups(&mut self, groups: &[u8], content: &mut Vec<u8>) -> Result<(), Base64Error> {
        if groups.is_empty() {
            return Ok(());
        }
        if self.padded {
            return Err(Base64Error::AfterPadding {
                position: self.position,
            });
        }
        let start = content.len();
        content.resize(start + groups.len() / 4 * 3, 0);
        let decoded = STANDARD.decode_slice(groups, &mut content[start..]);
        content.truncate(start + *decoded.as_ref().unwrap_or(&0));
        decoded.map_err(|error| self.locate(groups, &error))?;
        self.padded = groups.ends_with(b"=");
        self.position += groups.len() as u64;
        Ok(())
    }

    fn locate(&self, groups: &[u8], error: &DecodeSliceError) -> Base64Error {
        let at = |offset: usize| self.position + offset as u64;
        match *error {
            DecodeSliceError::DecodeError(DecodeError::InvalidByte(offset, found)) => {
                Base64Error::BadCharacter {
                    position: at(offset),
                    found,
                }
            }
            DecodeSliceError::DecodeError(DecodeError::InvalidLastSymbol { offset, .. }) => {
                Base64Error::StrayBits {
                    position: at(offset),
                }
            }
            // Whole groups into room for all of them: nothing else is wrong with them than their padding.
            _ => Base64Error::BadCharacter {
                position: at(groups.len() - 1),
                found: groups[groups.len() - 1],
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(pieces: &[&[u8]]) -> Result<Vec<u8>, Base64Error> {
        let mut decoder = Base64Decoder::default();
        let mut content = Vec::new();
        for piece in pieces {
            decoder.decode(piece, &mut content)?;
        }
        decoder.finish()?;
        Ok(content)
    }

    #[test]
    fn the_vectors_of_rfc_4648_section_10() {
        for (text, content) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
        ] {
            assert_eq!(decode(&[text.as_bytes()]).unwrap(), content.as_bytes());
        }
    }

    #[test]
    fn faults_are_named_with_their_position_in_the_whole_text() {
        let bad = |position, found| Err(Base64Error::BadCharacter { position, found });
        assert_eq!(decode(&[b"Zm9v", b"Ym\nFy"]), bad(6, b'\n'));
        assert_eq!(decode(&[b"Zm9vY", b"-Fy"]), bad(5, b'-'));
        assert_eq!(decode(&[b"Zg=v"]), bad(2, b'='));
        assert_eq!(
            decode(&[b"Zg==", b"Zg=="]),
            Err(Base64Error::AfterPadding { position: 4 })
        );
        assert_eq!(
            decode(&[b"Zg==Z"]),
            Err(Base64Error::AfterPadding { position: 4 })
        );
        assert_eq!(
            decode(&[b"Zm9vZh=="]),
            Err(Base64Error::StrayBits { position: 5 })
        );
        assert_eq!(decode(&[b"Zm9vZg"]), Err(Base64Error::CutOff { length: 6 }));
        assert_eq!(
            decode(&[b"Zm9vYm\0y"]).unwrap_err().to_string(),
            "not base64: '\\u{0}' at position 6; the standard alphabet with padding is wanted"
        );
    }

    fn pieces(text: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let mut rest = text;
        let mut pieces = Vec::new();
        for cut in cuts {
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece.to_vec());
            rest = tail;
        }
        pieces.push(rest.to_vec());
        pieces
    }

    proptest! {
        #[test]
        fn content_survives_however_its_text_is_cut(
            content in proptest::collection::vec(any::<u8>(), 0..400),
            cuts in proptest::collection::vec(0_usize..60, 0..12),
        ) {
            let text = STANDARD.encode(&content);
            let pieces = pieces(text.as_bytes(), &cuts);
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(decode(&pieces), Ok(content));
        }

        #[test]
        fn any_text_is_judged_as_by_a_decoder_that_sees_all_of_it(
            text in "[A-D/+=\\-\n]{0,24}",
            cuts in proptest::collection::vec(0_usize..6, 0..12),
        ) {
            let pieces = pieces(text.as_bytes(), &cuts);
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(decode(&pieces).ok(), STANDARD.decode(&text).ok());
        }
    }
}
