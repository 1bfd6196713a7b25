//! Extended headers of the pax format: records that override or extend the header that follows.

use super::Time;
use super::header::malformed;
use super::sparse::PaxSparse;
use crate::EntryProblem;

/// What the records of one extended header say. `None` where there is no such record.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) target: Option<Vec<u8>>,
    pub(super) size: Option<i64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) modified: Option<Time>,
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

impl Pax {
    /// Takes in the records of an extended header; of two records of one key the later counts.
    pub(super) fn read(&mut self, mut records: &[u8]) -> Result<(), EntryProblem> {
        while !records.is_empty() {
            let (record, rest) = split_record(records)?;
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or(malformed("a record of its extended header has no `=`"))?;
            self.record(&record[..equals], &record[equals + 1..])?;
            records = rest;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), EntryProblem> {
        // An empty value withdraws what an earlier record said.
        let some = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = some.map(without_nul).transpose()?,
            b"linkpath" => self.target = some.map(without_nul).transpose()?,
            b"size" => self.size = some.map(decimal).transpose()?,
            b"uid" => self.uid = some.map(decimal).transpose()?,
            b"gid" => self.gid = some.map(decimal).transpose()?,
            b"mtime" => self.modified = some.map(time).transpose()?,
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attributes.push((without_nul(name)?, value.to_vec()));
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.record(key, value)?;
                }
            }
        }
        Ok(())
    }
}

/// Splits `"<length> <record>\n"` off; the length counts itself, the space and the newline.
fn split_record(records: &[u8]) -> Result<(&[u8], &[u8]), EntryProblem> {
    let broken = || malformed("a record of its extended header has a wrong length");
    let space = records
        .iter()
        .take(20)
        .position(|byte| *byte == b' ')
        .ok_or_else(broken)?;
    let length = decimal(&records[..space])
        .ok()
        .and_then(|length| usize::try_from(length).ok())
        .filter(|length| *length > space + 1 && *length <= records.len())
        .ok_or_else(broken)?;
    let (record, rest) = records.split_at(length);
    match record[space + 1..].split_last() {
        Some((b'\n', record)) => Ok((record, rest)),
        _ => Err(broken()),
    }
}

fn without_nul(value: &[u8]) -> Result<Vec<u8>, EntryProblem> {
    match value.contains(&0) {
        true => Err(malformed("a name in its extended header has a NUL")),
        false => Ok(value.to_vec()),
    }
}

pub(super) fn decimal(value: &[u8]) -> Result<i64, EntryProblem> {
    str::from_utf8(value)
        .ok()
        .filter(|text| !text.starts_with('+'))
        .and_then(|text| text.parse().ok())
        .ok_or(malformed("a number in its extended header is none"))
}

/// Seconds with a fraction, `-1.5` being one and a half before 1970. What is out of range becomes the end of the range.
fn time(value: &[u8]) -> Result<Time, EntryProblem> {
    let wrong = || malformed("a time in its extended header is none");
    let text = str::from_utf8(value).map_err(|_| wrong())?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return Err(wrong());
    }
    // Digits only: what does not parse is too large.
    let seconds = whole.parse::<i64>().unwrap_or(i64::MAX);
    let nanoseconds = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0_u32, |number, digit| number * 10 + u32::from(digit - b'0'));
    Ok(match (negative, nanoseconds) {
        (false, _) => Time {
            seconds,
            nanoseconds,
        },
        (true, 0) => Time {
            seconds: -seconds,
            nanoseconds: 0,
        },
        (true, _) => Time {
            seconds: (-seconds).saturating_sub(1),
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}
