//! Times, sizes and foreign text as people read them.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

/// Milliseconds since the epoch, now.
pub(crate) fn now_ms() -> i64 {
    let nanos = OffsetDateTime::now_utc().unix_timestamp_nanos();
    i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX)
}

/// A point in time in UTC, to the second: `2026-08-01 12:00:00Z`.
pub(crate) fn moment(ms: i64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000))
        .ok()
        .and_then(|time| time.format(&format).ok())
        .unwrap_or_else(|| format!("{ms} ms"))
}

/// Reads `2026-08-01T12:00:00Z` (RFC 3339) as milliseconds since the epoch.
pub(crate) fn parse_moment(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

/// How long ago, or how long until: `5s ago`, `in 3m`.
pub(crate) fn relative(ms: i64, now: i64) -> String {
    let distance = Duration::from_millis(now.abs_diff(ms));
    if distance < Duration::from_secs(1) {
        "now".to_owned()
    } else if ms < now {
        format!("{} ago", span(distance))
    } else {
        format!("in {}", span(distance))
    }
}

/// A length of time by its two largest units: `1.2s`, `3m 20s`, `5d 2h`.
pub(crate) fn span(length: Duration) -> String {
    let millis = length.as_millis();
    let seconds = length.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        0 => format!("{millis}ms"),
        1..=9 => format!("{}.{}s", seconds, millis % 1000 / 100),
        10..=59 => format!("{seconds}s"),
        60..=3_599 => two(minutes, "m", seconds % 60, "s"),
        3_600..=86_399 => two(hours, "h", minutes, "m"),
        _ => two(days, "d", hours, "h"),
    }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit} {small}{small_unit}")
    }
}

/// A number of bytes: `512 B`, `3.4 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    // From 1,023.95 on it would be rounded to 1024.0.
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

/// Foreign text in one line without control characters: what programs and other users wrote must not steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if is_steering(c) || c == '\n' || c == '\t' {
                ' '
            } else {
                c
            }
        })
        .collect()
}

/// Foreign text with its lines, and without control characters.
pub(crate) fn printable_lines(text: &str) -> String {
    text.chars()
        .map(|c| if is_steering(c) { '\u{fffd}' } else { c })
        .collect()
}

/// Control characters, and those that turn the direction of what follows.
fn is_steering(c: char) -> bool {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || (c.is_control() && c != '\n' && c != '\t')
}

/// The first `width` characters, the last of them an ellipsis if there are more.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        for (millis, wanted) in [
            (0, "0ms"),
            (999, "999ms"),
            (1_250, "1.2s"),
            (59_900, "59s"),
            (60_000, "1m"),
            (200_000, "3m 20s"),
            (3_600_000, "1h"),
            (90_000_000, "1d 1h"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), wanted);
        }
        assert_eq!(relative(10_000, 70_000), "1m ago");
        assert_eq!(relative(70_000, 10_000), "in 1m");
        assert_eq!(relative(5, 10), "now");
    }

    #[test]
    fn moments_are_utc_and_never_panic() {
        assert_eq!(moment(1_785_585_600_999), "2026-08-01 12:00:00Z");
        assert_eq!(moment(-1), "1969-12-31 23:59:59Z");
        assert_eq!(moment(i64::MAX), format!("{} ms", i64::MAX));
        assert_eq!(
            parse_moment("2026-08-01T14:00:00+02:00"),
            Some(1_785_585_600_000)
        );
        assert_eq!(parse_moment("tomorrow"), None);
    }

    #[test]
    fn sizes_read_well() {
        for (bytes, wanted) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1024 * 1024 - 1, "1.0 MiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(size(bytes), wanted);
        }
    }

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\r\n\u{202e}c"), "a [2Jb   c");
        assert_eq!(printable_lines("a\nb\u{7}"), "a\nb\u{fffd}");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(cut("abcd", 4), "abcd");
    }
}
