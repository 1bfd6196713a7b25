//! Many workers at once, for a while, and how long each of their calls took.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::error::Error;
use crate::interrupt;

/// What a load came to.
pub(super) struct Load {
    /// Calls in a second.
    pub(super) rate: f64,
    /// Milliseconds for each call, in order.
    pub(super) millis: Vec<f64>,
    /// CPU microseconds that the load itself spent for each call.
    pub(super) own_cpu_us: f64,
}

impl Load {
    /// Half of the calls took at most so many milliseconds.
    pub(super) fn p50(&self) -> f64 {
        quantile(&self.millis, 0.50)
    }

    /// 99 % of the calls took at most so many milliseconds.
    pub(super) fn p99(&self) -> f64 {
        quantile(&self.millis, 0.99)
    }
}

/// Lets every worker repeat its call until the time is over. Calls that end later do not count.
///
/// # Errors
/// The first failure of a call, and the developer's wish to end.
pub(super) fn drive<W>(workers: Vec<W>, time: Duration) -> Result<Load, Error>
where
    W: FnMut() -> Result<(), Error> + Send,
{
    let works = workers
        .into_iter()
        .map(|worker| move |over: &dyn Fn() -> bool| repeat(worker, over))
        .collect();
    drive_threads(works, time)
}

/// Lets every work go on in a thread of its own until it is told that the time is over; each gives the milliseconds of its calls.
///
/// # Errors
/// The first failure of a work, and the developer's wish to end.
pub(super) fn drive_threads<W>(works: Vec<W>, time: Duration) -> Result<Load, Error>
where
    W: FnOnce(&dyn Fn() -> bool) -> Result<Vec<f64>, Error> + Send,
{
    let over = AtomicBool::new(false);
    let ready = Barrier::new(works.len() + 1);
    let outcome = thread::scope(|scope| {
        let (over, ready) = (&over, &ready);
        let threads: Vec<_> = works
            .into_iter()
            .map(|work| {
                scope.spawn(move || {
                    ready.wait();
                    work(&|| over.load(Ordering::Relaxed))
                })
            })
            .collect();
        ready.wait();
        let (began, cpu_before) = (Instant::now(), own_cpu_seconds());
        let waited = interrupt::pause(time);
        over.store(true, Ordering::Relaxed);
        let (took, cpu) = (began.elapsed(), own_cpu_seconds() - cpu_before);
        let mut millis = Vec::new();
        let mut failure = None;
        for thread in threads {
            match thread.join().expect("workers do not panic") {
                Ok(part) => millis.extend(part),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        waited?;
        failure.map_or(Ok((millis, took, cpu)), Err)
    });
    let (mut millis, took, cpu) = outcome?;
    if millis.is_empty() {
        let seconds = time.as_secs_f64();
        return Err(Error::Unmet(format!("no call ended within {seconds} s")));
    }
    millis.sort_by(f64::total_cmp);
    Ok(Load {
        rate: millis.len() as f64 / took.as_secs_f64(),
        own_cpu_us: cpu * 1e6 / millis.len() as f64,
        millis,
    })
}

/// CPU time of this process so far, which is the load and little else.
fn own_cpu_seconds() -> f64 {
    let used = getrusage(UsageWho::RUSAGE_SELF).expect("a process may ask for its own usage");
    let seconds = |time: TimeVal| time.num_microseconds() as f64 / 1e6;
    seconds(used.user_time()) + seconds(used.system_time())
}

fn repeat(
    mut worker: impl FnMut() -> Result<(), Error>,
    over: &dyn Fn() -> bool,
) -> Result<Vec<f64>, Error> {
    let mut millis = Vec::with_capacity(1 << 16);
    loop {
        let began = Instant::now();
        let outcome = worker();
        if over() {
            return Ok(millis);
        }
        outcome?;
        millis.push(began.elapsed().as_secs_f64() * 1e3);
    }
}

/// The smallest of the sorted values that is not exceeded by that share of them.
pub(super) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.clamp(1, sorted.len().max(1)) - 1)
        .copied()
        .unwrap_or(f64::NAN)
}

/// The one in the middle, or the mean of the two there.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&hundred, 0.50), 50.0);
        assert_eq!(quantile(&hundred, 0.99), 99.0);
        assert_eq!(quantile(&hundred, 1.0), 100.0);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn calls_are_counted_until_the_time_is_over() {
        let worker = || {
            thread::sleep(Duration::from_millis(5));
            Ok(())
        };
        let load = drive(vec![worker, worker], Duration::from_millis(100)).expect("they work");
        assert!(
            !load.millis.is_empty() && load.millis.len() <= 40,
            "{} calls",
            load.millis.len()
        );
        assert!(load.p50() >= 5.0 && load.p99() >= load.p50());
    }

    #[test]
    fn a_failed_call_fails_the_load() {
        let worker = || Err(Error::Unmet("refused".to_owned()));
        let outcome = drive(vec![worker], Duration::from_millis(50));
        assert!(outcome.is_err());
    }
}
