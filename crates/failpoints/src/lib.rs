//! Named points at which a server built for tests kills itself.
//!
//! A point stands where two things must not come apart, and a crash in between has to be mended by whoever comes next. Without the
//! feature `enabled` a point is nothing at all. With it, the variable `FAILPOINTS` of a server says what happens at which:
//!
//! ```text
//! FAILPOINTS='after_claim=3*off->1*return(kill);store_committed=1%return(kill);mid_upload=sleep(200)'
//! ```
//!
//! kills the server with SIGKILL at the fourth claim, at one in a hundred commits of the store, and has each piece of an upload
//! take 200 ms. The form is that of the crate `fail`: actions after each other with `->`, each with a probability (`1%`), a most
//! number of times (`3*`), or both; `return(kill)` kills, `sleep(ms)`, `delay(ms)` and `yield` hold up the thread, `off` does nothing.
//! A shim reads the variable as the server that started it was given it, and counts for itself.

#[cfg(all(feature = "enabled", not(debug_assertions)))]
compile_error!(
    "failpoints are for tests; a release build must not have the feature `enabled` of runtara-failpoints"
);

/// Makes the points and their names in one list.
macro_rules! points {
    ($($(#[doc = $meaning:literal])+ $point:ident = $name:literal,)+) => {
        /// Where a server may be killed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $($(#[doc = $meaning])+ $point,)+
        }

        impl Point {
            /// All points.
            pub const ALL: &'static [Self] = &[$(Self::$point,)+];

            /// By this name `FAILPOINTS` knows it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)+
                }
            }
        }
    };
}

points! {
    /// A claim is durable, and nobody knows of it yet.
    AfterClaim = "after_claim",
    /// A claimed instance is ready to be launched, and was not.
    BeforeLaunch = "before_launch",
    /// A run was launched, and the scheduler has not noted it.
    AfterLaunch = "after_launch",
    /// A run has exited, and its exit is not recorded.
    BeforeExitRecord = "before_exit_record",
    /// An exit is recorded, and what the run has left is still there.
    AfterExitRecord = "after_exit_record",
    /// A batch of calls is about to be written to the store.
    StoreWriting = "store_writing",
    /// A change of the store is durable, and nobody was answered.
    StoreCommitted = "store_committed",
    /// A record of SQLite's redo log is written, and not flushed.
    RedoWritten = "redo_written",
    /// SQLite has committed what its redo log has, and nobody knows.
    RedoTakenOver = "redo_taken_over",
    /// A part of an image has come, and more follows.
    MidUpload = "mid_upload",
    /// An image is whole under its temporary name.
    UploadWhole = "upload_whole",
    /// An image is in its place, and its registration is not in the store.
    UploadPlaced = "upload_placed",
    /// An entry of a layer was unpacked, and more follow.
    MidUnpack = "mid_unpack",
    /// A layer is whole under its temporary name.
    UnpackWhole = "unpack_whole",
    /// In a shim: its program was started, and the server was not told.
    ShimStarted = "shim_started",
    /// In a shim: its program is gone, and `exit.json` is not written.
    ShimExitUnwritten = "shim_exit_unwritten",
    /// In a shim: `exit.json` is written aside, and not in its place.
    ShimExitAside = "shim_exit_aside",
    /// In a shim: `exit.json` is in its place, and the server was not told.
    ShimExitPlaced = "shim_exit_placed",
    /// A server that leaves has stopped claiming.
    ShutdownBegun = "shutdown_begun",
    /// A server that leaves has left its runs to their shims, and not released its lease.
    ShutdownRunsLeft = "shutdown_runs_left",
}

/// The variable that says what happens at which point.
pub const VARIABLE: &str = "FAILPOINTS";

/// Reads [`VARIABLE`]. Without it, and without the feature, nothing ever happens at any point.
///
/// # Panics
/// If what it says cannot be read, or names no point that there is: a test must not believe in faults that never come.
pub fn begin() {
    #[cfg(feature = "enabled")]
    enabled::begin();
}

/// What a process that is started by this one, and passes points too, must be given with its variables.
#[must_use]
pub fn handed_on() -> Option<(&'static str, std::ffi::OsString)> {
    cfg!(feature = "enabled")
        .then(|| std::env::var_os(VARIABLE))
        .flatten()
        .map(|settings| (VARIABLE, settings))
}

/// Passes a point: does what [`VARIABLE`] says of it.
#[cfg_attr(
    not(feature = "enabled"),
    inline(always),
    expect(clippy::missing_const_for_fn, reason = "with the feature it is none")
)]
pub fn pass(point: Point) {
    #[cfg(feature = "enabled")]
    enabled::pass(point);
    #[cfg(not(feature = "enabled"))]
    let _nothing_happens = point;
}

#[cfg(feature = "enabled")]
mod enabled {
    use std::sync::atomic::{AtomicBool, Ordering};

    use fail::fail_point;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::{Point, VARIABLE};

    /// Whether anything was asked for: a server without the variable is not to be slower for being able to.
    static IS_ON: AtomicBool = AtomicBool::new(false);

    pub(super) fn begin() {
        let Ok(settings) = std::env::var(VARIABLE) else {
            return;
        };
        for setting in settings.split(';').filter(|it| !it.trim().is_empty()) {
            let (name, actions) = setting
                .split_once('=')
                .unwrap_or_else(|| panic!("{VARIABLE}: {setting:?} is not name=actions"));
            let is_known = Point::ALL.iter().any(|point| point.name() == name.trim());
            assert!(
                is_known,
                "{VARIABLE}: there is no point {name:?}; there are {:?}",
                Point::ALL.iter().map(|it| it.name()).collect::<Vec<_>>()
            );
            if let Err(error) = fail::cfg(name.trim(), actions.trim()) {
                panic!("{VARIABLE}: {setting:?}: {error}");
            }
        }
        IS_ON.store(true, Ordering::Relaxed);
    }

    pub(super) fn pass(point: Point) {
        if IS_ON.load(Ordering::Relaxed) {
            fail_point!(point.name(), |action| act(point, action.as_deref()));
        }
    }

    fn act(point: Point, action: Option<&str>) {
        assert_eq!(
            action,
            Some("kill"),
            "{VARIABLE}: {} can return nothing but `kill`",
            point.name()
        );
        // As the kernel writes it, and not by way of what this process has buffered.
        let said = format!("killed at the point {}\n", point.name());
        let _nobody_reads = nix::unistd::write(std::io::stderr(), said.as_bytes());
        let _cannot_fail = kill(Pid::this(), Signal::SIGKILL);
        loop {
            std::thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_point_has_a_name_of_its_own() {
        let names: BTreeSet<_> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }

    #[test]
    fn nothing_happens_unless_it_is_asked_for() {
        for point in Point::ALL {
            pass(*point);
        }
    }
}
