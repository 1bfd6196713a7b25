//! Ctrl-C, SIGTERM and SIGHUP as a state that waits can see.
//!
//! A chore that was interrupted returns through its callers, so that whatever it started is stopped
//! by the ordinary `Drop`. That is why nothing here exits the process.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;

static SIGNALS: Mutex<u32> = Mutex::new(0);
static ARRIVED: Condvar = Condvar::new();

/// Begins to count signals in place of dying from them. To be called once, first.
pub(crate) fn install() {
    ctrlc::set_handler(|| {
        *signals() += 1;
        ARRIVED.notify_all();
    })
    .expect("no other handler can have been installed before the first line of main");
}

/// Tells how often the developer asked to end.
pub(crate) fn count() -> u32 {
    *signals()
}

/// Fails when the developer has asked to end.
pub(crate) fn check() -> Result<(), Error> {
    if count() > 0 {
        Err(Error::Interrupted)
    } else {
        Ok(())
    }
}

/// Waits, and fails at once when the developer asks to end.
pub(crate) fn pause(duration: Duration) -> Result<(), Error> {
    let end = Instant::now() + duration;
    let mut signals = signals();
    while *signals == 0 {
        let Some(left) = end.checked_duration_since(Instant::now()) else {
            return Ok(());
        };
        signals = ARRIVED
            .wait_timeout(signals, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
    }
    Err(Error::Interrupted)
}

/// Asks again and again until there is an answer; fails after `limit`, naming `what` was awaited.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            let seconds = limit.as_secs();
            return Err(Error::Unmet(format!(
                "waited {seconds} s in vain for {what}"
            )));
        }
        pause(Duration::from_millis(50))?;
    }
}

fn signals() -> MutexGuard<'static, u32> {
    SIGNALS.lock().unwrap_or_else(PoisonError::into_inner)
}
