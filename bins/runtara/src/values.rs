//! Values that are typed: lengths of time, points in time, labels, JSON from several places.

use std::io::Read as _;
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::failure::Failure;
use crate::text::{now_ms, parse_moment};

/// Most that is read from a file or standard input: what the server takes as one input.
const INPUT_BYTES: u64 = 48 * 1024 * 1024;

/// Reads `5s`, `500ms`, `1h30m`, `2d`, or a number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wanted =
        || format!("{text:?} is no length of time, wanted is one like 500ms, 5s, 1h30m or 2d");
    let mut rest = text.trim();
    if let Ok(seconds) = rest.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wanted());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit())
            .ok_or_else(wanted)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wanted())?;
        let behind = &rest[digits..];
        let unit = behind
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(behind.len());
        let millis: u64 = match &behind[..unit] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return Err(wanted()),
        };
        let part = number.checked_mul(millis).map(Duration::from_millis);
        total = part
            .and_then(|part| total.checked_add(part))
            .ok_or_else(wanted)?;
        rest = &behind[unit..];
    }
    Ok(total)
}

/// Reads `256M`, `64K`, `2G`, or a number of bytes; each unit is 1024 of the one before.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let wanted =
        || format!("{text:?} is no size, wanted is one like 65536, 64K, 256M or 2G (of 1024 each)");
    let unit: u32 = match text.chars().last() {
        Some('k' | 'K') => 1,
        Some('m' | 'M') => 2,
        Some('g' | 'G') => 3,
        _ => 0,
    };
    let number = &text[..text.len() - usize::from(unit > 0)];
    let number: u64 = number.parse().map_err(|_| wanted())?;
    number.checked_mul(1024_u64.pow(unit)).ok_or_else(wanted)
}

/// Reads a number of processors, such as `2` or `0.5`, as thousandths of one.
pub(crate) fn millicores(text: &str) -> Result<u64, String> {
    let wanted = || {
        format!(
            "{text:?} is no number of processors, wanted is one like 2 or 0.5, with at most three decimals"
        )
    };
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    if !(1..=3).contains(&part.len()) {
        return Err(wanted());
    }
    let digits = format!("{part:0<3}");
    let whole: u64 = whole.parse().map_err(|_| wanted())?;
    let thousandths: u64 = digits.parse().map_err(|_| wanted())?;
    let all = whole.checked_mul(1000);
    all.and_then(|all| all.checked_add(thousandths))
        .ok_or_else(wanted)
}

/// Reads a point in time as milliseconds since the epoch: RFC 3339, or a length of time before now.
pub(crate) fn moment(text: &str) -> Result<i64, String> {
    if let Some(at) = parse_moment(text) {
        return Ok(at);
    }
    let before = duration(text).map_err(|_| {
        format!(
            "{text:?} is no time, wanted is one like 2026-08-01T12:00:00Z, or 2h for two hours ago"
        )
    })?;
    Ok(now_ms().saturating_sub(i64::try_from(before.as_millis()).unwrap_or(i64::MAX)))
}

/// Reads a point in time as milliseconds since the epoch, by RFC 3339 alone.
pub(crate) fn exact_moment(text: &str) -> Result<i64, String> {
    parse_moment(text)
        .ok_or_else(|| format!("{text:?} is no time, wanted is one like 2026-08-01T12:00:00Z"))
}

/// A point in time, in milliseconds since the epoch, as RFC 3339 has it.
pub(crate) fn rfc3339(at_ms: i64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ms) * 1_000_000);
    let text = moment.ok().and_then(|moment| moment.format(&Rfc3339).ok());
    // What was read by `exact_moment` is in the range of both.
    text.unwrap_or_default()
}

/// Reads `key=value`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is no pair, wanted is key=value")),
    }
}

/// Reads `NAME=VALUE`, or `NAME` alone for the value it has here: so a secret need not stand on a command line, where every user of
/// the machine can read it.
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    if text.contains('=') {
        return pair(text);
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(_) => Err(format!(
            "{text} is not set here, wanted is NAME=VALUE, or the name of a variable that is set"
        )),
    }
}

/// Text that is given in place, as `@file`, or as `-` for standard input.
pub(crate) async fn text_from(given: &str) -> Result<String, Failure> {
    let given = given.to_owned();
    let read = tokio::task::spawn_blocking(move || match given.as_str() {
        "-" => bounded("standard input", std::io::stdin()),
        text => match text.strip_prefix('@') {
            Some(path) => match std::fs::File::open(path) {
                Ok(file) => bounded(path, file),
                Err(error) => Err(Failure::Usage(format!("cannot open {path}: {error}"))),
            },
            None => Ok(text.to_owned()),
        },
    });
    read.await
        .map_err(|error| Failure::Io(std::io::Error::other(error)))?
}

fn bounded(name: &str, source: impl std::io::Read) -> Result<String, Failure> {
    let mut text = String::new();
    let read = source.take(INPUT_BYTES + 1).read_to_string(&mut text);
    read.map_err(|error| Failure::Usage(format!("cannot read {name}: {error}")))?;
    if text.len() as u64 > INPUT_BYTES {
        return Err(Failure::Usage(format!(
            "{name} is longer than {INPUT_BYTES} bytes"
        )));
    }
    Ok(text)
}

/// JSON that is given in place, as `@file`, or as `-`.
pub(crate) async fn json_from(given: &str) -> Result<Value, Failure> {
    let text = text_from(given).await?;
    serde_json::from_str(&text).map_err(|error| {
        let shown = crate::text::cut(&crate::text::printable(text.trim()), 60);
        Failure::Usage(format!(
            "the input is not JSON: {error}, found {shown:?}; a text is written as '\"text\"', a file as @file"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_have_units() {
        for (text, millis) in [
            ("5", 5_000),
            ("0", 0),
            ("500ms", 500),
            ("5s", 5_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("1w", 604_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "s",
            "5x",
            "1.5h",
            "-3s",
            "5s3",
            "99999999999999999999s",
            "999999999999999999w",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, wanted) in [
            ("0", 0),
            ("65536", 65_536),
            ("64K", 65_536),
            ("256m", 256 << 20),
            ("2G", 2 << 30),
        ] {
            assert_eq!(bytes(text), Ok(wanted), "{text}");
        }
        for text in [
            "",
            "M",
            "1.5G",
            "-1",
            "5T",
            "5 M",
            "64MB",
            "17179869184G",
            "ü",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn processors_are_counted_in_thousandths() {
        for (text, wanted) in [("2", 2_000), ("0.5", 500), ("1.25", 1_250), ("0.001", 1)] {
            assert_eq!(millicores(text), Ok(wanted), "{text}");
        }
        for text in [
            "",
            ".5",
            "1.",
            "0.0001",
            "-1",
            "0.-5",
            "1,5",
            "half",
            "99999999999999999999",
        ] {
            assert!(millicores(text).is_err(), "{text}");
        }
    }

    #[test]
    fn points_in_time_are_exact_or_before_now() {
        assert_eq!(moment("1970-01-01T00:00:01Z"), Ok(1_000));
        let hour_ago = moment("1h").unwrap();
        assert!((now_ms() - 3_600_000).abs_diff(hour_ago) < 60_000);
        assert!(
            moment("yesterday")
                .unwrap_err()
                .contains("2h for two hours ago")
        );
        assert!(exact_moment("1h").is_err());
    }

    #[test]
    fn pairs_have_a_key() {
        assert_eq!(pair("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(pair("a="), Ok(("a".to_owned(), String::new())));
        assert!(pair("=b").is_err() && pair("a").is_err());
        // Set by cargo for every test.
        assert!(variable("CARGO_PKG_NAME").is_ok_and(|(_, value)| value == "runtara"));
        assert!(variable("RUNTARA_SURELY_NOT_SET").is_err());
    }

    #[tokio::test]
    async fn json_comes_from_where_it_is_said() {
        assert_eq!(json_from(r#"{"a":1}"#).await.unwrap()["a"], 1);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[1]").unwrap();
        assert_eq!(
            json_from(&format!("@{}", file.path().display()))
                .await
                .unwrap()[0],
            1
        );
        for bad in ["hello", "@/does/not/exist"] {
            let failure = json_from(bad).await.unwrap_err();
            assert_eq!(failure.exit_code(), 2, "{failure}");
        }
    }
}
