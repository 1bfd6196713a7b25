//! Decompression, chosen by the content's first bytes.

use std::io::{self, BufRead as _, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use runtara_images::Compression;

/// How much is read from below at once.
const READ_BYTES: usize = 256 * 1024;
/// Largest window of Zstandard, as a power of two: 128 MiB of memory, which is what the `zstd` program takes without being
/// told otherwise, and what its highest level writes.
const ZSTD_WINDOW_LOG: u32 = 27;

/// A decompressed stream, and how it was compressed.
pub(crate) struct Decompressed<'a> {
    pub(crate) stream: Box<dyn Read + 'a>,
    pub(crate) compression: Option<Compression>,
}

/// Decompresses gzip (of several members, too) and Zstandard (of several frames, too); hands anything else on as it is.
///
/// The media type of a layer is not asked: archives of all kinds are about whose layers are compressed otherwise than they say,
/// and the digests tell whether the right bytes came out.
pub(crate) fn decompress<'a>(compressed: impl Read + 'a) -> io::Result<Decompressed<'a>> {
    let mut buffered = BufReader::with_capacity(READ_BYTES, compressed);
    let compression = match buffered.fill_buf()? {
        [0x1f, 0x8b, 8, ..] => Some(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
        // A skippable frame (RFC 8878, 3.1.2), with which seekable archives may begin.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Compression::Zstd),
        _ => None,
    };
    let stream: Box<dyn Read + 'a> = match compression {
        Some(Compression::Gzip) => Box::new(MultiGzDecoder::new(buffered)),
        Some(Compression::Zstd) => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        _ => Box::new(buffered),
    };
    Ok(Decompressed {
        stream,
        compression,
    })
}
