//! Points that act, in a process of their own each.
#![cfg(feature = "enabled")]

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output};

use runtara_failpoints::{Point, VARIABLE, begin, pass};

/// Says to this test that it is the process that is to be killed.
const CHILD: &str = "RUNTARA_TEST_PASSES_POINTS";

/// Not a test of its own: what [`passing`] has another process do.
#[test]
fn passes_a_point_five_times_if_it_is_told_to() {
    if std::env::var_os(CHILD).is_some() {
        begin();
        for number in 1..=5 {
            println!("passing {number}");
            pass(Point::AfterClaim);
        }
    }
}

/// Has another process pass a point five times, with these settings.
fn passing(settings: &str) -> Output {
    let me = std::env::current_exe().expect("a process can tell its own program");
    Command::new(me)
        .args(["--exact", "passes_a_point_five_times_if_it_is_told_to"])
        .arg("--nocapture")
        .env(CHILD, "1")
        .env(VARIABLE, settings)
        .output()
        .expect("this very program can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_point_kills_at_the_passing_that_is_asked_for() {
    let killed = passing("after_claim=2*off->1*return(kill)");
    assert_eq!(killed.status.signal(), Some(9), "{killed:?}");
    let said = text(&killed.stdout);
    assert!(
        said.contains("passing 3") && !said.contains("passing 4"),
        "{said}"
    );
    assert!(text(&killed.stderr).contains("killed at the point after_claim"));
}

#[test]
fn other_points_do_nothing() {
    let passed = passing("before_launch=return(kill)");
    assert!(passed.status.success(), "{passed:?}");
    assert!(text(&passed.stdout).contains("passing 5"));
}

#[test]
fn settings_that_nobody_understands_are_refused() {
    for settings in [
        "after_claims=return(kill)",
        "after_claim=die",
        "after_claim",
    ] {
        let refused = passing(settings);
        assert!(!refused.status.success(), "{settings}: {refused:?}");
        assert!(text(&refused.stderr).contains(VARIABLE), "{settings}");
    }
}
