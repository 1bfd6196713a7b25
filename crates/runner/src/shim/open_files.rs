//! How many descriptors the server may have, and its programs.

use std::io;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Tells the launcher what the soft limit was before the server raised its own.
pub(crate) const VARIABLE: &str = "RUNTARA_LAUNCHER_OPEN_FILES";

/// What the soft limit was before it was raised.
static BEFORE: OnceLock<u64> = OnceLock::new();

/// Raises the soft limit of this process on open files to the hard one, and answers with that: the usual soft limit of 1,024 is for
/// programs that use `select`, which knows no higher numbers (select(2)), and a server has a descriptor for each connection.
///
/// Programs of runs keep the limit that was there before: some of them may use `select`, and some close each number that they may have.
///
/// # Errors
/// As the system says.
pub fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    BEFORE.get_or_init(|| soft);
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

/// What the launcher is to be told.
pub(crate) fn before() -> Option<String> {
    BEFORE.get().map(u64::to_string)
}

/// Takes the limit that the launcher was told. A limit that cannot be taken is no reason to launch nothing.
pub(crate) fn lower() {
    let told = std::env::var(VARIABLE).ok();
    let soft = told.and_then(|soft| soft.parse::<u64>().ok());
    if let (Some(soft), Ok((_, hard))) = (soft, getrlimit(Resource::RLIMIT_NOFILE)) {
        let _as_it_was = setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard);
    }
}
