//! How all stores cut lists into pages and count them, and what is read from payloads.
//!
//! A cursor is the place of the last row of a page:
//!
//! | list | `value` | `key` |
//! |---|---|---|
//! | instances | `created_at` or `finished_at`, whichever the list is ordered by; `None` for a row that has not ended | instance id |
//! | images | `created_at` | image id |
//! | checkpoints, events, steps | `None` | the row's `seq`, as decimal text |
//!
//! Texts are compared byte by byte. A page has a `next` only if more rows follow it, and at most
//! [`limits::PAGE_ROWS`] rows, whatever was asked for. One of events or steps also ends where what they carry reaches
//! [`limits::PAGE_BYTES`]; no store reads more than that.

use runtara_domain::{Cursor, limits};

use crate::{Page, PageRequest, PageStart, Total};

/// Up to how many matches are counted: one more than is exact, to know that there are more.
pub const COUNTED: u64 = limits::EXACT_TOTAL + 1;

/// How many rows a page has at most.
#[must_use]
pub fn rows(page: &PageRequest) -> u32 {
    page.limit.min(limits::PAGE_ROWS)
}

/// The total of a list of which `counted` matches were counted, at most [`COUNTED`]. `kept` is the kept count, where there is one
/// for just this list.
#[must_use]
pub fn total(counted: u64, kept: Option<u64>) -> Total {
    if counted < COUNTED {
        return Total {
            count: counted,
            exact: true,
        };
    }
    Total {
        // A kept count lags behind; what was counted is certain.
        count: kept.map_or(COUNTED, |kept| kept.max(COUNTED)),
        exact: false,
    }
}

/// Makes a page of the rows from its beginning on: as many as it may have, and one more if there are more.
#[must_use]
pub fn page<T>(
    found: Vec<T>,
    request: &PageRequest,
    total: Total,
    cursor: impl Fn(&T) -> Cursor,
) -> Page<T> {
    let there = found.len();
    page_of(found, there, request, total, cursor)
}

/// Makes a page of rows of which only the first were read, as many as [`within_bytes`] lets pass. `there` is how many there would have
/// been, and one more if there are more.
#[must_use]
pub fn page_of<T>(
    mut found: Vec<T>,
    there: usize,
    request: &PageRequest,
    total: Total,
    cursor: impl Fn(&T) -> Cursor,
) -> Page<T> {
    let most = rows(request) as usize;
    let more = there > most || found.len() < there;
    found.truncate(most);
    let next = found.last().filter(|_| more).map(cursor);
    Page {
        rows: found,
        next,
        total,
    }
}

/// How many rows of these sizes a page has: it ends with the row that reaches [`limits::PAGE_BYTES`].
#[must_use]
pub fn within_bytes(sizes: impl Iterator<Item = u64>) -> usize {
    let mut before = 0;
    sizes
        .take_while(|size| {
            let fits = before < limits::PAGE_BYTES;
            before += size;
            fits
        })
        .count()
}

/// The place of a row that has a number within its instance.
#[must_use]
pub fn cursor_at(seq: u64) -> Cursor {
    Cursor {
        value: None,
        key: seq.to_string(),
    }
}

/// The number at which a page of numbered rows begins, as far as it begins after a row. A cursor of another list stands after the
/// last row in either direction: there is nothing to be found.
///
/// # Errors
/// [`NoSuchPlace`] for a cursor of another list: the page is empty.
pub fn seq_after(start: &PageStart) -> Result<Option<u64>, NoSuchPlace> {
    match start {
        PageStart::Offset(_) => Ok(None),
        PageStart::After(cursor) => cursor.key.parse().map(Some).map_err(|_| NoSuchPlace),
    }
}

/// Says that a cursor belongs to another list, so that no row of this one comes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchPlace;

/// Whether a payload holds a text. Letters of ASCII match in either case; a payload that is not UTF-8 holds no text.
#[must_use]
pub fn payload_contains(payload: &[u8], text: &str) -> bool {
    let lower = |text: &str| text.to_ascii_lowercase();
    std::str::from_utf8(payload).is_ok_and(|payload| lower(payload).contains(&lower(text)))
}

/// Whether the payload of the event by which a step ended says that it failed: it has an `error` that is not null.
#[must_use]
pub fn is_failed_end(payload: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct End {
        #[serde(default)]
        error: serde_json::Value,
    }
    // An array would be read as the fields of the struct in their order.
    let is_object = payload.trim_ascii_start().starts_with(b"{");
    is_object && serde_json::from_slice::<End>(payload).is_ok_and(|end| !end.error.is_null())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_exact_up_to_the_limit_and_never_less_than_what_was_counted() {
        let exact = |count| Total { count, exact: true };
        let about = |count| Total {
            count,
            exact: false,
        };
        assert_eq!(total(0, Some(7)), exact(0));
        assert_eq!(total(10_000, None), exact(10_000));
        assert_eq!(total(COUNTED, None), about(10_001));
        assert_eq!(total(COUNTED, Some(90_000)), about(90_000));
        assert_eq!(total(COUNTED, Some(9)), about(10_001));
    }

    #[test]
    fn a_page_names_the_next_only_if_there_is_one() {
        let request = PageRequest::first(2);
        let cut = |found: Vec<u64>| {
            let page = page(found, &request, total(3, None), |seq| cursor_at(*seq));
            (page.rows, page.next.map(|next| next.key))
        };
        assert_eq!(cut(vec![1, 2, 3]), (vec![1, 2], Some("2".to_owned())));
        assert_eq!(cut(vec![1, 2]), (vec![1, 2], None));
        let none = PageRequest::first(0);
        let empty = page(vec![1], &none, total(3, None), |seq| cursor_at(*seq));
        assert_eq!((empty.rows.len(), empty.next), (0, None));
    }

    #[test]
    fn a_page_that_ends_by_its_bytes_names_the_next() {
        let large = limits::PAGE_BYTES / 2;
        assert_eq!(within_bytes([large, large, 1].into_iter()), 2);
        assert_eq!(within_bytes([2 * limits::PAGE_BYTES, 1].into_iter()), 1);
        assert_eq!(within_bytes([1, 1].into_iter()), 2);
        let request = PageRequest::first(9);
        let cut = page_of(vec![1, 2], 3, &request, total(3, None), |seq| {
            cursor_at(*seq)
        });
        assert_eq!(cut.next, Some(cursor_at(2)));
    }

    #[test]
    fn a_cursor_of_another_list_finds_nothing() {
        let of = |key: &str| {
            PageStart::After(Cursor {
                value: None,
                key: key.to_owned(),
            })
        };
        assert_eq!(seq_after(&of("7")), Ok(Some(7)));
        assert_eq!(seq_after(&of("order-7")), Err(NoSuchPlace));
        assert_eq!(seq_after(&PageStart::Offset(3)), Ok(None));
    }

    #[test]
    fn payloads_are_searched_as_text() {
        assert!(payload_contains("Größe: ABC".as_bytes(), "größe: abc"));
        assert!(
            !payload_contains("GRÖSSE".as_bytes(), "grösse"),
            "only ASCII folds"
        );
        assert!(!payload_contains(b"\xffabc", "abc"));
    }

    #[test]
    fn an_end_fails_by_an_error_that_is_not_null() {
        assert!(is_failed_end(br#"{"error":"no"}"#));
        assert!(is_failed_end(br#"{"error":false}"#));
        for fine in [&br#"{"error":null}"#[..], b"{}", b"error", b"[1]", b""] {
            assert!(!is_failed_end(fine), "{fine:?}");
        }
    }
}
