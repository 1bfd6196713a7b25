//! Places in a list.

/// Where a page ended: the value that the list is ordered by, and the row's own key, which settles ties. Opaque to callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The value that the list is ordered by, usually a time; `None` where rows without one come last.
    pub value: Option<i64>,
    /// The key of the last row.
    pub key: String,
}

/// Says that a text is no cursor of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the cursor is not one that a list gave; take `next_cursor` of the page before, unchanged")]
pub struct CursorError;

impl Cursor {
    /// The text that is given to callers.
    #[must_use]
    pub fn encode(&self) -> String {
        use base64::Engine as _;
        let value = self.value.map_or_else(String::new, |v| v.to_string());
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(format!("{value}:{}", self.key))
    }

    /// Reads the text back.
    ///
    /// # Errors
    /// [`CursorError`] if it was not made by [`Cursor::encode`].
    pub fn decode(text: &str) -> Result<Self, CursorError> {
        use base64::Engine as _;
        if text.len() > 4 * crate::limits::CHECKPOINT_ID_BYTES {
            return Err(CursorError);
        }
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| CursorError)?;
        let text = String::from_utf8(bytes).map_err(|_| CursorError)?;
        let (value, key) = text.split_once(':').ok_or(CursorError)?;
        let value = match value {
            "" => None,
            number => Some(number.parse().map_err(|_| CursorError)?),
        };
        if key.contains('\0') {
            return Err(CursorError);
        }
        Ok(Self {
            value,
            key: key.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_back_and_foreign_ones_are_refused() {
        for value in [None, Some(-1), Some(1_700_000_000_000)] {
            let cursor = Cursor {
                value,
                key: "an:id".to_owned(),
            };
            assert_eq!(Cursor::decode(&cursor.encode()), Ok(cursor));
        }
        for bad in ["", "!!", "bm9jb2xvbg", &"A".repeat(10_000)] {
            assert_eq!(Cursor::decode(bad), Err(CursorError), "{bad}");
        }
    }
}
