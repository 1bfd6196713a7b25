//! Waits for conditions.

use std::fmt::Debug;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long anything that should happen soon may take. Generous: the machine may be busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(30);

const PAUSE: Duration = Duration::from_millis(20);

/// Looks until there is something to be found, and gives it.
///
/// # Panics
/// When [`DEADLINE`] has passed, with what was waited for and what was found last.
pub fn eventually<T, E: Debug>(what: &str, look: impl FnMut() -> Result<T, E>) -> T {
    eventually_within(DEADLINE, what, look)
}

/// Looks until there is something to be found, for at most that long.
///
/// # Panics
/// When the time is over, with what was waited for and what was found last.
pub fn eventually_within<T, E: Debug>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let end = Instant::now() + limit;
    loop {
        match look() {
            Ok(found) => return found,
            Err(found) if Instant::now() >= end => {
                panic!("{what} did not come within {limit:?}; found last: {found:#?}")
            }
            Err(_) => sleep(PAUSE),
        }
    }
}

/// Looks again and again for that long that something holds: for promises that something does not happen.
///
/// # Panics
/// As soon as it does not hold, with what was found.
pub fn holds_for<E: Debug>(time: Duration, what: &str, mut look: impl FnMut() -> Result<(), E>) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if let Err(found) = look() {
            panic!("{what} ended before its time; found: {found:#?}");
        }
        sleep(PAUSE);
    }
}
