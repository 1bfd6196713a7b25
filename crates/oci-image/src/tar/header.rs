//! One header block.

use super::{BLOCK, Time};
use crate::EntryProblem;

/// What a block says, without what extended headers change.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) target: Vec<u8>,
    pub(super) flag: u8,
    pub(super) size: i64,
    pub(super) mode: u32,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) modified: Time,
}

/// Which of the two ways of using the end of the block.
#[derive(PartialEq, Eq)]
enum Format {
    /// Before POSIX: nothing there.
    Old,
    /// POSIX: a prefix of the name.
    Ustar,
    /// J. Schilling's: a shorter prefix.
    Star,
    /// GNU: other things, no prefix.
    Gnu,
}

impl Header {
    /// Reads a block that is not all zeroes.
    pub(super) fn parse(block: &[u8; BLOCK as usize]) -> Result<Self, EntryProblem> {
        let stored = number(&block[148..156], "its checksum is not a number")?;
        let (unsigned, signed) = checksums(block);
        if stored != unsigned && stored != signed {
            return Err(malformed("its header has a wrong checksum"));
        }
        let format = format(block);
        let prefix = match format {
            Format::Ustar => until_nul(&block[345..500]),
            Format::Star => until_nul(&block[345..476]),
            Format::Old | Format::Gnu => &[],
        };
        let name = until_nul(&block[0..100]);
        Ok(Self {
            name: match prefix {
                [] => name.to_vec(),
                prefix => [prefix, name].join(&b'/'),
            },
            target: until_nul(&block[157..257]).to_vec(),
            flag: block[156],
            size: number(&block[124..136], "its size is not a number")?,
            mode: (number(&block[100..108], "its mode is not a number")? & 0o7777) as u32,
            uid: number(&block[108..116], "its user is not a number")?,
            gid: number(&block[116..124], "its group is not a number")?,
            modified: Time {
                seconds: number(&block[136..148], "its time is not a number")?,
                nanoseconds: 0,
            },
        })
    }
}

pub(super) fn malformed(what: &'static str) -> EntryProblem {
    EntryProblem::Malformed { what }
}

fn format(block: &[u8]) -> Format {
    match &block[257..265] {
        b"ustar  \0" => Format::Gnu,
        [b'u', b's', b't', b'a', b'r', 0, ..] if &block[508..512] == b"tar\0" => Format::Star,
        [b'u', b's', b't', b'a', b'r', 0, ..] => Format::Ustar,
        _ => Format::Old,
    }
}

pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The sum of all bytes of the header, its own field counted as spaces; the second as old writers computed it, with bytes that
/// have signs.
fn checksums(block: &[u8]) -> (i64, i64) {
    let counted = || {
        block
            .iter()
            .enumerate()
            .map(|(at, byte)| match (148..156).contains(&at) {
                true => b' ',
                false => *byte,
            })
    };
    (
        counted().map(i64::from).sum(),
        counted().map(|byte| i64::from(byte.cast_signed())).sum(),
    )
}

/// A number: octal digits among spaces and NULs, or, if the first bit is set, big-endian in two's complement (GNU).
pub(super) fn number(field: &[u8], otherwise: &'static str) -> Result<i64, EntryProblem> {
    let parsed = match field {
        [first, ..] if first & 0x80 != 0 => binary(field),
        _ => octal(field),
    };
    parsed.ok_or(malformed(otherwise))
}

fn binary(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    // The first bit is the mark, the second the sign.
    let negative = first & 0x40 != 0;
    let start = i64::from(match negative {
        true => (first | 0x80).cast_signed(),
        false => (first & 0x7f).cast_signed(),
    });
    rest.iter().try_fold(start, |number, byte| {
        number.checked_mul(256)?.checked_add(i64::from(*byte))
    })
}

fn octal(field: &[u8]) -> Option<i64> {
    let digits = until_nul(trim(field));
    let digits = trim(digits);
    digits.iter().try_fold(0_i64, |number, digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn trim(mut field: &[u8]) -> &[u8] {
    while let [b' ' | 0, rest @ ..] = field {
        field = rest;
    }
    while let [rest @ .., b' ' | 0] = field {
        field = rest;
    }
    field
}
