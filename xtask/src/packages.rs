//! Which packages are built for what.

/// What `up` builds: the server, the command line and the sample. Heavy parts stay out of it, since
/// this is the first thing that a newcomer waits for.
pub(crate) const UP: &[&str] = &["runtara-environment-server", "runtara", "order-workflow"];

/// What the black-box suites start beside that.
pub(crate) const TEST_PROGRAMS: &[&str] = &["runtara-test-programs"];

/// Gives `-p` for each of the packages.
pub(crate) fn selected(packages: &[&[&'static str]]) -> Vec<&'static str> {
    packages
        .iter()
        .flat_map(|list| list.iter())
        .flat_map(|name| ["-p", name])
        .collect()
}
