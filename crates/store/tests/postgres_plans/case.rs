//! What is asked, and what it may cost.

use std::pin::Pin;

use runtara_store::postgres::PostgresStore;

/// So often each method is called: the server plans for each call at first and settles on one plan after five.
pub(crate) const CALLS: i64 = 8;

/// Two pages with their totals, each counted to 10,001, and their rows.
pub(crate) const PAGES: i64 = 2 * (10_001 + 120);

pub(crate) type Done<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

pub(crate) struct Case {
    pub(crate) what: &'static str,
    pub(crate) index: &'static str,
    /// Most index entries of one call.
    pub(crate) entries: i64,
    pub(crate) call: for<'a> fn(&'a PostgresStore, usize) -> Done<'a>,
}
