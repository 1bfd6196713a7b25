//! The wish to end a run, as the value of a queued signal.

use std::time::Duration;

use runtara_domain::EndedBy;

use super::sys::Signal;

/// The signal by which the server asks a shim to end its run. Real-time signals queue, so that no wish is lost behind another
/// (signal(7)); the first few belong to the C library.
pub(crate) const REQUEST_SIGNAL: i32 = 40;

/// The bits of the grace period: milliseconds up to 69 minutes.
const GRACE_BITS: u32 = 22;
const GRACE_MAX: u32 = (1 << GRACE_BITS) - 1;

/// A wish to end a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) grace: Duration,
    pub(crate) ended_by: EndedBy,
}

const CODES: [EndedBy; 5] = [
    EndedBy::Deadline,
    EndedBy::Stop,
    EndedBy::Leaving,
    EndedBy::Host,
    EndedBy::OutOfMemory,
];

impl Request {
    /// What a plain SIGTERM means, as a machine that goes down sends it. The program is not asked: it could report a failure that is
    /// not its own.
    pub(crate) const FOREIGN: Self = Self {
        grace: Duration::ZERO,
        ended_by: EndedBy::Host,
    };

    /// What a signal asks for, if it asks for an end.
    pub(crate) fn of(signal: &Signal) -> Option<Self> {
        match signal.number {
            REQUEST_SIGNAL => signal.value.and_then(Self::unpack),
            libc::SIGTERM | libc::SIGINT => Some(Self::FOREIGN),
            _ => None,
        }
    }

    /// The value that carries it. A grace period that does not fit becomes the longest that does.
    pub(crate) fn pack(self) -> i32 {
        let grace = u32::try_from(self.grace.as_millis()).map_or(GRACE_MAX, |ms| ms.min(GRACE_MAX));
        let code = CODES.iter().position(|code| *code == self.ended_by);
        let code = code.and_then(|code| u32::try_from(code).ok()).unwrap_or(0);
        (code << GRACE_BITS | grace).cast_signed()
    }

    /// Reads a value; `None` if it is none of ours.
    pub(crate) fn unpack(value: i32) -> Option<Self> {
        let value = value.cast_unsigned();
        Some(Self {
            grace: Duration::from_millis((value & GRACE_MAX).into()),
            ended_by: *CODES.get((value >> GRACE_BITS) as usize)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_signal() {
        for ended_by in CODES {
            for ms in [0, 1, 10_000, runtara_domain::limits::GRACE_MAX_MS] {
                let request = Request {
                    grace: Duration::from_millis(ms),
                    ended_by,
                };
                assert_eq!(Request::unpack(request.pack()), Some(request));
            }
        }
        assert_eq!(Request::unpack(-1), None);
    }
}
