//! Pages of lists.

use runtara_domain::{Cursor, CursorError, LabelFilter, Timestamp, limits};
use runtara_store::{Page, PageRequest, PageStart};
use serde::Serialize;

use crate::ApiError;
use crate::extract::Query;

/// By what the rows of a list are ordered, and so what its cursors hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OrderedBy {
    /// By a time that every row has.
    Time,
    /// By the time of the end, which not every row has.
    End,
    /// By the number that a row has within its instance.
    Number,
}

impl OrderedBy {
    /// Whether a cursor can be of such a list. One of another list would silently give no rows, or the wrong ones.
    fn gives(self, cursor: &Cursor) -> bool {
        match self {
            Self::Time => cursor.value.is_some(),
            Self::End => true,
            Self::Number => cursor.value.is_none() && cursor.key.parse::<u64>().is_ok(),
        }
    }
}

/// Which page of a list a query asks for.
pub(super) fn page_request(query: &Query, order: OrderedBy) -> Result<PageRequest, ApiError> {
    let limit: u64 = query
        .parsed("limit")?
        .unwrap_or(u64::from(limits::PAGE_ROWS_DEFAULT));
    let limit =
        u32::try_from(limit).map_or(limits::PAGE_ROWS, |limit| limit.min(limits::PAGE_ROWS));
    let offset: Option<u64> = query.parsed("offset")?;
    let start = match (query.text("cursor"), offset) {
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request(
                "INVALID_QUERY",
                "cursor and offset are both given; give one of them",
            ));
        }
        (Some(cursor), None) => {
            let decoded = Cursor::decode(cursor);
            let cursor = decoded.and_then(|cursor| match order.gives(&cursor) {
                true => Ok(cursor),
                false => Err(CursorError),
            });
            PageStart::After(
                cursor.map_err(|error| ApiError::bad_request("INVALID_CURSOR", error))?,
            )
        }
        (None, offset) => {
            let offset = offset.unwrap_or(0);
            if i64::try_from(offset).is_err() {
                return Err(ApiError::bad_request(
                    "INVALID_QUERY",
                    format!("offset={offset} is beyond any list"),
                ));
            }
            PageStart::Offset(offset)
        }
    };
    Ok(PageRequest { start, limit })
}

/// The labels that a query demands.
pub(super) fn labels(query: &Query) -> Result<Vec<LabelFilter>, ApiError> {
    let filters: Vec<_> = query
        .all("label")
        .map(|text| {
            LabelFilter::parse(text).map_err(|error| ApiError::bad_request("INVALID_LABEL", error))
        })
        .collect::<Result<_, _>>()?;
    if filters.len() > limits::LABELS {
        return Err(ApiError::bad_request(
            "INVALID_LABEL",
            format!(
                "{} labels are asked for; at most {}",
                filters.len(),
                limits::LABELS
            ),
        ));
    }
    Ok(filters)
}

/// A time in a query, in milliseconds since the epoch.
pub(super) fn time(query: &Query, key: &str) -> Result<Option<Timestamp>, ApiError> {
    Ok(query.parsed(key)?.map(Timestamp))
}

/// What every list says beside its rows.
#[derive(Serialize)]
pub(super) struct PageInfo {
    /// How many rows match, over all pages; see `total_is_exact`.
    total_count: u32,
    /// Whether that is exact: always up to 10,000.
    total_is_exact: bool,
    /// Where the next page begins.
    next_cursor: Option<String>,
    /// Most rows of this page.
    limit: i64,
    /// Rows before this page, if it was asked for by offset.
    offset: i64,
}

impl PageInfo {
    pub(super) fn new<T>(page: &Page<T>, request: &PageRequest) -> Self {
        let offset = match &request.start {
            PageStart::Offset(offset) => i64::try_from(*offset).unwrap_or(i64::MAX),
            PageStart::After(_) => 0,
        };
        Self {
            total_count: u32::try_from(page.total.count).unwrap_or(u32::MAX),
            total_is_exact: page.total.exact,
            next_cursor: page.next.as_ref().map(Cursor::encode),
            limit: i64::from(request.limit),
            offset,
        }
    }
}
