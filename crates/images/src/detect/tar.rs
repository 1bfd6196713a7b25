//! Tar archives, as far as it takes to find out whether they are container images.
//!
//! Rules: POSIX.1-2017 pax, "ustar Interchange Format"; tar(5) for what GNU tar does differently.

use std::io::{self, Read, Seek};

use super::{Detected, Source};

const BLOCK: u64 = 512;
/// How many members are looked at. A container image has some for each layer, and at most a few hundred layers.
const MEMBERS: u32 = 4_096;

/// Reads a tar archive, or answers `None` if the content is none.
pub(super) fn detect<R: Read + Seek>(source: &mut Source<'_, R>) -> io::Result<Option<Detected>> {
    let mut offset = 0;
    let mut docker = false;
    for index in 0..MEMBERS {
        let block = source.read_exact(offset, BLOCK as usize)?;
        let Some(member) = block.as_deref().and_then(Member::parse) else {
            if index == 0 {
                return Ok(None);
            }
            // The end of the archive, or damage. What was found until here decides.
            break;
        };
        // Newer docker archives are OCI layouts as well, and those say more. Older ones have only the manifest, at the end.
        if member.is_file("oci-layout") {
            return Ok(Some(Detected::OciLayout));
        }
        docker |= member.is_file("manifest.json");
        let next = member
            .size
            .checked_next_multiple_of(BLOCK)
            .and_then(|content| offset.checked_add(BLOCK)?.checked_add(content));
        match next {
            Some(next) if next < source.size => offset = next,
            _ => break,
        }
    }
    Ok(Some(match docker {
        true => Detected::DockerArchive,
        false => Detected::Tar,
    }))
}

struct Member<'a> {
    /// As it stands in the archive, without a leading `./`. Longer names than fit here are none that we look for.
    name: &'a [u8],
    regular: bool,
    size: u64,
}

impl<'a> Member<'a> {
    fn parse(block: &'a [u8]) -> Option<Self> {
        let field = |from: usize, to: usize| block.get(from..to);
        if field(257, 262)? != b"ustar" || octal(field(148, 156)?)? != checksum(block) {
            return None;
        }
        // GNU tar, whose magic goes on with spaces, uses the place of the prefix for other things.
        let prefixed = field(257, 263)? == b"ustar\0" && field(345, 346)? != [0];
        let name = until_nul(field(0, 100)?);
        Some(Self {
            name: name.strip_prefix(b"./").unwrap_or(name),
            regular: !prefixed && matches!(block.get(156)?, b'0' | 0),
            size: size(field(124, 136)?)?,
        })
    }

    fn is_file(&self, name: &str) -> bool {
        self.regular && self.name == name.as_bytes()
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The sum of all bytes of the header, its own field counted as spaces.
fn checksum(block: &[u8]) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().copied().map(u64::from).sum::<u64>();
    sum(&block[..148]) + 8 * u64::from(b' ') + sum(&block[156..])
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = until_nul(field).trim_ascii();
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// A size: octal, or from 8 GiB on the GNU way, big-endian after a first byte of 0x80.
fn size(field: &[u8]) -> Option<u64> {
    match field {
        [0x80, zeroes @ .., _, _, _, _, _, _, _, _] if field.len() == 12 => {
            let low = field.last_chunk().copied().map(u64::from_be_bytes)?;
            zeroes.iter().all(|byte| *byte == 0).then_some(low)
        }
        field => octal(field),
    }
}
