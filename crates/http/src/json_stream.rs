//! Takes one large text out of a JSON object while it streams by.

/// Most bytes of everything beside the text.
const REST_BYTES: usize = 1024 * 1024;
/// Deepest nesting that is followed.
const DEPTH: u32 = 128;

/// Says why a body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("the fields beside the binary have more than {REST_BYTES} bytes")]
    RestTooLarge,
    #[error("the body is nested deeper than {DEPTH} levels")]
    TooDeep,
    #[error("the binary holds an escape that no base64 text needs")]
    BadEscape,
    #[error("the field is given twice")]
    Twice,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between texts.
    Between,
    /// In a text that is kept.
    Text {
        escaped: bool,
    },
    /// In the text that is taken out; `escape` counts what has come of an escape, and holds its value.
    Binary,
    Escape,
    Unicode {
        digits: u8,
        value: u16,
    },
}

/// Splits the bytes of a JSON object into the value of one field of it, if that is a text, and everything else. What comes out beside
/// is JSON again, with an empty text in place of the value; whether it is well-formed is found out by whoever parses it.
#[derive(Debug)]
pub(crate) struct BinaryField {
    name: &'static str,
    rest: Vec<u8>,
    state: State,
    depth: u32,
    /// Where the last text at the top level began in `rest`, and where it ended.
    text: (usize, usize),
    /// Whether the next text at the top level would be the value of the field.
    expects_value: bool,
    found: bool,
}

impl BinaryField {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            rest: Vec::new(),
            state: State::Between,
            depth: 0,
            text: (0, 0),
            expects_value: false,
            found: false,
        }
    }

    /// Everything beside the value of the field, once all has come.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Takes the next bytes; those of the value are appended to `binary`.
    pub(crate) fn push(&mut self, bytes: &[u8], binary: &mut Vec<u8>) -> Result<(), StreamError> {
        let mut bytes = bytes;
        while let Some((&byte, after)) = bytes.split_first() {
            if self.state == State::Binary {
                let run = bytes
                    .iter()
                    .position(|byte| matches!(byte, b'"' | b'\\'))
                    .unwrap_or(bytes.len());
                if run > 0 {
                    binary.extend_from_slice(&bytes[..run]);
                    bytes = &bytes[run..];
                    continue;
                }
            }
            self.step(byte, binary)?;
            bytes = after;
        }
        Ok(())
    }

    fn step(&mut self, byte: u8, binary: &mut Vec<u8>) -> Result<(), StreamError> {
        match self.state {
            State::Between => self.between(byte),
            State::Text { escaped } => {
                self.keep(byte)?;
                if byte == b'"' && !escaped {
                    self.state = State::Between;
                    self.text.1 = self.rest.len();
                } else {
                    let escaped = byte == b'\\' && !escaped;
                    self.state = State::Text { escaped };
                }
                Ok(())
            }
            State::Binary if byte == b'"' => {
                self.state = State::Between;
                self.keep(byte)
            }
            State::Binary => {
                self.state = State::Escape;
                Ok(())
            }
            State::Escape => {
                self.state = match byte {
                    b'/' => {
                        binary.push(byte);
                        State::Binary
                    }
                    b'u' => State::Unicode {
                        digits: 0,
                        value: 0,
                    },
                    _ => return Err(StreamError::BadEscape),
                };
                Ok(())
            }
            State::Unicode { digits, value } => {
                let digit = char::from(byte)
                    .to_digit(16)
                    .ok_or(StreamError::BadEscape)?;
                let value = value << 4 | digit as u16;
                self.state = if digits < 3 {
                    State::Unicode {
                        digits: digits + 1,
                        value,
                    }
                } else {
                    let ascii = u8::try_from(value).map_err(|_| StreamError::BadEscape)?;
                    binary.push(ascii);
                    State::Binary
                };
                Ok(())
            }
        }
    }

    fn between(&mut self, byte: u8) -> Result<(), StreamError> {
        match byte {
            b'"' if self.expects_value => {
                if self.found {
                    return Err(StreamError::Twice);
                }
                self.found = true;
                self.expects_value = false;
                self.state = State::Binary;
            }
            b'"' => {
                if self.depth == 1 {
                    self.text.0 = self.rest.len();
                }
                self.state = State::Text { escaped: false };
            }
            b':' if self.depth == 1 => {
                let text = self.rest.get(self.text.0..self.text.1).unwrap_or_default();
                self.expects_value = text
                    .strip_prefix(b"\"")
                    .and_then(|text| text.strip_suffix(b"\""))
                    .is_some_and(|text| text == self.name.as_bytes());
            }
            b'{' | b'[' => {
                self.depth += 1;
                if self.depth > DEPTH {
                    return Err(StreamError::TooDeep);
                }
                self.expects_value = false;
            }
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            b' ' | b'\t' | b'\r' | b'\n' => {}
            _ => self.expects_value = false,
        }
        self.keep(byte)
    }

    fn keep(&mut self, byte: u8) -> Result<(), StreamError> {
        if self.rest.len() >= REST_BYTES {
            return Err(StreamError::RestTooLarge);
        }
        self.rest.push(byte);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(body: &str, piece: usize) -> Result<(String, String), StreamError> {
        let mut field = BinaryField::new("binary");
        let mut binary = Vec::new();
        for bytes in body.as_bytes().chunks(piece) {
            field.push(bytes, &mut binary)?;
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Ok((text(field.rest()), text(&binary)))
    }

    #[test]
    fn the_field_is_taken_out_wherever_the_pieces_are_cut() {
        let body = r#"{"name":"a\"binary\":","x":{"binary":"no"}, "binary" : "QUJD\/\u002b==" ,"y":["binary"]}"#;
        for piece in 1..body.len() {
            let (rest, binary) = split(body, piece).unwrap();
            assert_eq!(binary, "QUJD/+==", "pieces of {piece}");
            assert_eq!(
                rest,
                r#"{"name":"a\"binary\":","x":{"binary":"no"}, "binary" : "" ,"y":["binary"]}"#
            );
        }
    }

    #[test]
    fn a_value_that_is_no_text_is_left_to_the_parser() {
        let (rest, binary) = split(r#"{"binary":null,"name":"x"}"#, 5).unwrap();
        assert_eq!(
            (rest.as_str(), binary.as_str()),
            (r#"{"binary":null,"name":"x"}"#, "")
        );
    }

    #[test]
    fn what_could_be_hostile_is_bounded() {
        assert_eq!(split(&"[".repeat(1_000), 100), Err(StreamError::TooDeep));
        let large = format!(r#"{{"name":"{}"}}"#, "x".repeat(REST_BYTES));
        assert_eq!(split(&large, 4_096), Err(StreamError::RestTooLarge));
        assert_eq!(
            split(r#"{"binary":"a","binary":"b"}"#, 3),
            Err(StreamError::Twice)
        );
        assert_eq!(split(r#"{"binary":"\n"}"#, 3), Err(StreamError::BadEscape));
    }
}
