//! The time of this machine: what is saved must mean the same in another process.

use time::OffsetDateTime;

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let now = OffsetDateTime::now_utc();
    i64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// Milliseconds from now to that moment; 0 if it has passed.
pub(crate) fn remaining(until_ms: i64) -> u64 {
    u64::try_from(until_ms.saturating_sub(now_ms())).unwrap_or(0)
}
