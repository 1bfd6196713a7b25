//! The clock that goes on while the machine is suspended.

use std::io;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId as Clock, clock_gettime};
use tokio::io::Interest;

use crate::shim::watch::watch;

/// A moment on CLOCK_BOOTTIME, in milliseconds: a lease must not seem to last while the machine is suspended (clock_gettime(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootTime(u64);

impl BootTime {
    /// Now.
    ///
    /// # Panics
    /// If the kernel does not have the clock, which all have since 2.6.39.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(Clock::CLOCK_BOOTTIME).expect("the kernel has this clock");
        let millis = Duration::from(now).as_millis();
        Self(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    /// So many milliseconds later.
    #[must_use]
    pub fn plus_millis(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// In milliseconds since the machine was started.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        self.0
    }

    /// Waits until this moment. Within a tokio runtime.
    ///
    /// # Errors
    /// What the system said, if there is no descriptor for a timer.
    pub async fn wait(self) -> io::Result<()> {
        let timer = TimerFd::new(
            ClockId::CLOCK_BOOTTIME,
            TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
        )?;
        // A moment of nothing would disarm it.
        let at = Duration::from_millis(self.0.max(1));
        let once = Expiration::OneShot(TimeSpec::from_duration(at));
        timer.set(once, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
        let timer = watch(timer.into(), Interest::READABLE)?;
        let _readable = timer.readable().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_moment_is_waited_for() {
        let at = BootTime::now().plus_millis(50);
        at.wait().await.unwrap();
        assert!(BootTime::now() >= at);
        // One that is over is not waited for.
        at.wait().await.unwrap();
        BootTime(0).wait().await.unwrap();
    }
}
