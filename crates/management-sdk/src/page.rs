//! Lists come in pages.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

use serde::{Deserialize, Serialize};

use crate::Error;

/// One page of a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Page<T> {
    /// The rows of this page, in the order that was asked for.
    // Each list has a key of its own on the wire; no answer has two of them.
    #[serde(
        alias = "images",
        alias = "instances",
        alias = "checkpoints",
        alias = "events",
        alias = "steps"
    )]
    pub items: Vec<T>,
    /// How many rows match in all.
    #[serde(default)]
    pub total_count: u64,
    /// Whether `total_count` is exact: large totals are estimates.
    #[serde(default = "exact")]
    pub total_is_exact: bool,
    /// Where the next page begins, or `None` on the last one. Opaque: hand it back as it is.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// A server that does not speak of it counts each time.
fn exact() -> bool {
    true
}

type PageFuture<T> = Pin<Box<dyn Future<Output = Result<Page<T>, Error>> + Send>>;

/// Walks over all pages of a list, one call for each page, fetched when it is needed.
pub struct Pages<T> {
    fetch: Box<dyn FnMut(Option<String>) -> PageFuture<T> + Send>,
    rows: VecDeque<T>,
    cursor: Option<String>,
    is_last: bool,
}

impl<T> Pages<T> {
    pub(crate) fn new(fetch: impl FnMut(Option<String>) -> PageFuture<T> + Send + 'static) -> Self {
        Self {
            fetch: Box::new(fetch),
            rows: VecDeque::new(),
            cursor: None,
            is_last: false,
        }
    }

    /// The next row, or `None` behind the last one.
    ///
    /// # Errors
    ///
    /// Those of the list call. A further call asks for the same page again.
    pub async fn next(&mut self) -> Result<Option<T>, Error> {
        while self.rows.is_empty() && !self.is_last {
            let page = (self.fetch)(self.cursor.clone()).await?;
            // A cursor that does not move would walk in circles for ever.
            self.is_last = page.next_cursor.is_none() || page.next_cursor == self.cursor;
            self.cursor = page.next_cursor;
            self.rows = page.items.into();
        }
        Ok(self.rows.pop_front())
    }
}

impl<T> std::fmt::Debug for Pages<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages")
            .field("cursor", &self.cursor)
            .field("is_last", &self.is_last)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_list_has_its_key() {
        for key in ["images", "instances", "checkpoints", "events", "steps"] {
            let page: Page<u8> =
                serde_json::from_str(&format!(r#"{{"{key}":[1,2],"total_count":9}}"#)).unwrap();
            assert_eq!(
                (
                    page.items,
                    page.total_count,
                    page.total_is_exact,
                    page.next_cursor
                ),
                (vec![1, 2], 9, true, None)
            );
        }
        assert!(serde_json::from_str::<Page<u8>>(r#"{"rows":[]}"#).is_err());
    }

    #[tokio::test]
    async fn pages_are_walked_to_the_last_one() {
        let mut pages = Pages::new(|cursor| {
            Box::pin(async move {
                let (items, next_cursor) = match cursor.as_deref() {
                    None => (vec![1, 2], Some("a".to_owned())),
                    Some("a") => (vec![], Some("b".to_owned())),
                    Some("b") => (vec![3], None),
                    other => panic!("unexpected cursor {other:?}"),
                };
                Ok(Page {
                    items,
                    total_count: 3,
                    total_is_exact: true,
                    next_cursor,
                })
            })
        });
        let mut rows = Vec::new();
        while let Some(row) = pages.next().await.unwrap() {
            rows.push(row);
        }
        assert_eq!(rows, [1, 2, 3]);
    }
}
