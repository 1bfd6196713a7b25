//! Whether to go on, and how far the work is.

use crate::ImageError;

/// How far an image is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The layer at work, from 0, the lowest.
    pub layer: usize,
    /// How many layers the image has.
    pub layers: usize,
    /// How much of the layer's archive was unpacked, in uncompressed bytes.
    pub bytes: u64,
}

/// What a long operation asks and tells while it works.
///
/// The calls here block for as long as the work takes. They ask `stop` before each archive entry and at least once for each
/// 256 KiB of content, and end with [`ImageError::Stopped`] soon after it answers true; what was begun is removed. So a
/// shutdown flag, a deadline or both are a closure:
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use std::time::{Duration, Instant};
/// use runtara_oci_image::Watch;
///
/// let stopping = AtomicBool::new(false);
/// let deadline = Instant::now() + Duration::from_secs(600);
/// let stop = || stopping.load(Ordering::Relaxed) || Instant::now() > deadline;
/// let watch = Watch::new(&stop, &|progress| println!("{progress:?}"));
/// # let _ = watch;
/// ```
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    stop: &'a (dyn Fn() -> bool + Sync),
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl<'a> Watch<'a> {
    /// Asks one closure and tells the other. Both should return at once: they are called often.
    #[must_use]
    pub fn new(
        stop: &'a (dyn Fn() -> bool + Sync),
        progress: &'a (dyn Fn(Progress) + Sync),
    ) -> Self {
        Self { stop, progress }
    }

    /// Never stops, and tells nobody.
    #[must_use]
    pub fn none() -> Watch<'static> {
        Watch {
            stop: &|| false,
            progress: &|_| (),
        }
    }

    /// Goes on, or ends with [`ImageError::Stopped`].
    pub(crate) fn check(&self) -> Result<(), ImageError> {
        match (self.stop)() {
            true => Err(ImageError::Stopped),
            false => Ok(()),
        }
    }

    pub(crate) fn tell(&self, progress: Progress) {
        (self.progress)(progress);
    }
}
