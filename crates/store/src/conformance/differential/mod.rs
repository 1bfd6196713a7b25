//! The same random history on two stores: every answer and, at the end, all that can be seen must be equal.
//!
//! A history is a list of acts over a handful of names, so that they meet: starts of a taken id, saves of a known name, calls of
//! superseded runs, signals for who waits. Two of them are never told apart by what a store chooses freely: ids and tokens are
//! given, and tokens are compared by the run they belong to.

mod act;
mod look;
mod names;
mod play;

use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

pub use act::{History, histories};
use play::Player;

use super::Harness;

/// Names how many histories are played, in place of what a test asks for.
pub const CASES: &str = "RUNTARA_TEST_DIFFERENTIAL_CASES";

/// Plays a history on both stores.
///
/// # Errors
/// The first difference, in words.
pub async fn compare(
    one: &dyn Harness,
    other: &dyn Harness,
    history: &History,
) -> Result<(), String> {
    let (mut one, mut other) = (Player::new(one), Player::new(other));
    let acts = act::beginning()
        .into_iter()
        .chain(history.0.iter().cloned())
        .chain(act::ending())
        .flat_map(act::expand);
    for (n, act) in acts.enumerate() {
        differ(
            &format!("act {n}, {act:?}"),
            &one.play(&act).await,
            &other.play(&act).await,
        )?;
        let (seen, also_seen) = (one.look_at(&act).await, other.look_at(&act).await);
        differ(&format!("after act {n}, {act:?}"), &seen, &also_seen)?;
    }
    differ(
        "at the end",
        &one.look_at_all().await,
        &other.look_at_all().await,
    )
}

fn differ(when: &str, one: &str, other: &str) -> Result<(), String> {
    if one == other {
        return Ok(());
    }
    let (one, other) = (one.lines(), other.lines());
    let first = one
        .clone()
        .zip(other.clone())
        .position(|(one, other)| one != other);
    let first = first.unwrap_or_else(|| one.clone().count().min(other.clone().count()));
    let excerpt = |lines: std::str::Lines<'_>| {
        let lines = lines.skip(first.saturating_sub(3)).take(7);
        lines.collect::<Vec<_>>().join("\n    ")
    };
    Err(format!(
        "{when}\n  one:\n    {}\n  other:\n    {}",
        excerpt(one),
        excerpt(other)
    ))
}

/// Plays random histories, each on two fresh stores, and shrinks one that tells them apart.
///
/// `play` is given each history and calls [`compare`]; it blocks.
///
/// # Panics
/// If the stores differ: with the shortest history that was found, and the difference.
pub fn check(cases: u32, play: impl Fn(&History) -> Result<(), String>) {
    let asked = std::env::var(CASES).ok();
    let asked = asked.map(|asked| {
        asked
            .parse()
            .unwrap_or_else(|_| panic!("{CASES} is {asked:?}, which is no number"))
    });
    let config = Config {
        cases: asked.unwrap_or(cases),
        failure_persistence: None,
        max_shrink_iters: 1_000,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&histories(), |history| {
        play(&history).map_err(TestCaseError::fail)
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(difference, history)) => {
            panic!("the stores differ: {difference}\nafter\n{history:?}");
        }
        Err(error) => panic!("no histories could be made: {error}"),
    }
}
