//! The content of a layer, decompressed, and verified when all of it was read.

use std::cell::RefCell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use super::LayerSource;
use super::members::{Members, RangeReader};
use crate::compression::decompress;
use crate::digest::Hashing;
use crate::{ImageError, Watch};

/// How much is hashed at once.
const READ_BYTES: usize = 256 * 1024;

type Compressed<'a> = Rc<RefCell<Hashing<RangeReader<'a>>>>;

/// Reads a layer's uncompressed archive. [`LayerStream::verify`] says whether it was the right one.
pub(crate) struct LayerStream<'a> {
    layer: &'a LayerSource,
    /// What lies below the decompression, to verify it in the end.
    compressed: Compressed<'a>,
    plain: BufReader<Hashing<Box<dyn Read + 'a>>>,
}

/// The part of a stream that the decompression owns.
struct Shared<'a>(Compressed<'a>);

impl Read for Shared<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

fn unreadable(source: io::Error) -> ImageError {
    ImageError::Io {
        action: "read from the image archive",
        path: "a layer".into(),
        source,
    }
}

impl<'a> LayerStream<'a> {
    pub(super) fn open(members: &'a Members, layer: &'a LayerSource) -> Result<Self, ImageError> {
        let range = members.reader(layer.range);
        // Content that is not compressed has one digest; hashing it once will do.
        let hash = layer.digest.is_some_and(|digest| digest != layer.diff_id.0);
        let compressed = Rc::new(RefCell::new(match hash {
            true => Hashing::new(range),
            false => Hashing::counting(range),
        }));
        let decompressed = decompress(Shared(Rc::clone(&compressed))).map_err(unreadable)?;
        Ok(Self {
            layer,
            compressed,
            plain: BufReader::with_capacity(READ_BYTES, Hashing::new(decompressed.stream)),
        })
    }

    /// Compares digests. All of the stream must have been read; of what the decompression left below, the rest is read here.
    pub(crate) fn verify(self, watch: Watch<'_>) -> Result<(), ImageError> {
        let mut rest = vec![0; READ_BYTES];
        let mut compressed = self.compressed.borrow_mut();
        loop {
            watch.check()?;
            let read = compressed.read(&mut rest).map_err(unreadable)?;
            if read == 0 {
                break;
            }
        }
        if compressed.count() != self.layer.size {
            return Err(ImageError::SizeMismatch {
                what: "a layer",
                digest: self.layer.digest.unwrap_or(self.layer.diff_id.0),
                wanted: self.layer.size,
                found: compressed.count(),
            });
        }
        compare("a layer", self.layer.digest, compressed.digest())?;
        compare(
            "the uncompressed content of a layer",
            Some(self.layer.diff_id.0),
            self.plain.get_ref().digest(),
        )
    }
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.plain.read(buffer)
    }
}

fn compare(
    what: &'static str,
    wanted: Option<runtara_domain::ImageDigest>,
    found: Option<runtara_domain::ImageDigest>,
) -> Result<(), ImageError> {
    match (wanted, found) {
        (Some(wanted), Some(found)) if wanted != found => Err(ImageError::DigestMismatch {
            what,
            wanted,
            found,
        }),
        _ => Ok(()),
    }
}
