//! How the events of a long instance are bounded.
//!
//! Where a start says how many events are kept, the oldest of what the program has reported are folded into one, which says how many there
//! were, which numbers they had and when they came. It has the number of the last of them: whoever has read up to there has lost nothing,
//! and whoever has not comes upon it and is told. What the server has recorded of the instance's life is never folded.

use runtara_domain::{EventKind, NewEvent, RunNumber, Timestamp, subtype};
use serde_json::{Value, json};

/// What came of a demand to fold events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Folded {
    /// How many events are gone.
    pub events: u64,
    /// Whether there are still too many.
    pub more: bool,
}

/// An event that may be folded.
pub(crate) struct Foldable {
    pub(crate) seq: u64,
    pub(crate) created_at: Timestamp,
    pub(crate) run_number: RunNumber,
    /// What it says, if it stands for others itself.
    pub(crate) folded: Option<Value>,
}

/// Whether an event may be folded: what a program has reported, and what stands for such.
#[must_use]
pub(crate) fn is_foldable(kind: EventKind, of: Option<&str>) -> bool {
    let is_ours = of.is_some_and(|of| of.starts_with(subtype::RESERVED));
    let is_reported = matches!(of, Some(subtype::RETRY | subtype::FOLDED));
    kind == EventKind::Custom && (!is_ours || is_reported)
}

/// How many of the oldest events that may be folded are taken at once, at most `limit`; `None` if there are not too many. So many go that
/// a quarter of the bound is free then: folding is not for each event.
pub(crate) fn to_take(max_events: u32, kept: u64, limit: u32) -> Option<u32> {
    let max_events = u64::from(max_events);
    if kept <= max_events {
        return None;
    }
    let excess = kept - max_events * 3 / 4;
    let take = (excess + 1).min(u64::from(limit.max(2)));
    u32::try_from(take).ok()
}

/// The event that stands for these, in the place of the last of them; `None` if they are too few to be worth it.
pub(crate) fn fold(events: &[Foldable]) -> Option<NewEvent> {
    let (Some(first), Some(last)) = (events.first(), events.last()) else {
        return None;
    };
    if events.len() < 2 {
        return None;
    }
    let stood_for = |key: &str, otherwise: i64| {
        let said = first.folded.as_ref().and_then(|said| said[key].as_i64());
        said.unwrap_or(otherwise)
    };
    let seq = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
    let rest = i64::try_from(events.len() - 1).unwrap_or(i64::MAX);
    let said = json!({
        "count": stood_for("count", 1) + rest,
        "first_seq": stood_for("first_seq", seq(first.seq)),
        "last_seq": seq(last.seq),
        "first_at_ms": stood_for("first_at_ms", first.created_at.0),
        "last_at_ms": last.created_at.0,
    });
    Some(NewEvent::by_server(subtype::FOLDED, &said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_is_free_after_folding() {
        assert_eq!(to_take(100, 100, 1_000), None);
        // 101 events, of which 27 become one: 75 are left.
        assert_eq!(to_take(100, 101, 1_000), Some(27));
        assert_eq!(to_take(100, 5_000, 1_000), Some(1_000));
        assert_eq!(to_take(100, 101, 0), Some(2));
    }

    #[test]
    fn what_the_server_records_is_not_folded() {
        for (kind, of, wanted) in [
            (EventKind::Custom, None, true),
            (EventKind::Custom, Some("progress"), true),
            (EventKind::Custom, Some(subtype::RETRY), true),
            (EventKind::Custom, Some(subtype::FOLDED), true),
            (EventKind::Custom, Some(subtype::CRASHED), false),
            (EventKind::Custom, Some(subtype::INTERRUPTED), false),
            (EventKind::Started, None, false),
            (EventKind::Heartbeat, None, false),
        ] {
            assert_eq!(is_foldable(kind, of), wanted, "{kind:?} {of:?}");
        }
    }
}
