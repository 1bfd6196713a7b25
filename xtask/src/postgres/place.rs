//! Where PostgreSQL's programs are, where clusters may lie, and as whom the server runs.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{User, geteuid};

use crate::command::{root, target};
use crate::error::Error;
use crate::requirements::in_path;

/// The oldest major version that can make a cluster with an ICU collation.
const OLDEST_VERSION: u32 = 15;
/// The user that runs the server when we are root, which PostgreSQL refuses to be.
pub(super) const SERVER_USER: &str = "postgres";

/// Finds the directory of the newest server programs of this machine.
pub(crate) fn binaries() -> Result<PathBuf, Error> {
    let complete = |directory: &PathBuf| {
        ["initdb", "pg_ctl"]
            .iter()
            .all(|it| directory.join(it).exists())
    };
    let debian = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let newest = debian
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .filter(|(version, _): &(u32, PathBuf)| *version >= OLDEST_VERSION)
        .map(|(version, path)| (version, path.join("bin")))
        .filter(|(_, directory)| complete(directory))
        .max_by_key(|(version, _)| *version)
        .map(|(_, directory)| directory);
    let in_path = || in_path("pg_ctl").and_then(|file| Some(file.parent()?.to_path_buf()));
    newest
        .or_else(|| in_path().filter(complete))
        .ok_or_else(|| {
            Error::Unmet(format!(
                "no initdb and pg_ctl of PostgreSQL {OLDEST_VERSION} or newer in \
             /usr/lib/postgresql/*/bin or PATH: sudo apt-get install postgresql"
            ))
        })
}

/// Gives the directory of all clusters: under the target directory, unless we are root and the
/// server's user cannot get there (a checkout below /root).
pub(super) fn base() -> Result<PathBuf, Error> {
    let ours = target().join("postgres");
    make_directory(&ours, 0o755)?;
    if !geteuid().is_root() || can_be_reached(&ours) {
        return Ok(ours);
    }
    let name: String = root()
        .to_string_lossy()
        .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    let elsewhere = PathBuf::from(format!("/var/tmp/runtara-postgres{name}"));
    make_directory(&elsewhere, 0o755)?;
    // Anybody may make directories there: one that is not ours could hold a pg_ctl for root to run.
    let found = fs::symlink_metadata(&elsewhere)
        .map_err(Error::io(format!("look at {}", elsewhere.display())))?;
    if found.is_dir() && found.uid() == 0 {
        Ok(elsewhere)
    } else {
        Err(Error::Unmet(format!(
            "{} is not root's directory: remove it",
            elsewhere.display()
        )))
    }
}

fn can_be_reached(directory: &Path) -> bool {
    directory
        .ancestors()
        .all(|it| it.metadata().is_ok_and(|found| found.mode() & 0o001 != 0))
}

/// Gives the user that must run the server, when it cannot be us.
pub(super) fn server_user() -> Result<Option<User>, Error> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let found = User::from_name(SERVER_USER)
        .map_err(|errno| Error::io(format!("look up {SERVER_USER}"))(errno.into()))?;
    found.map(Some).ok_or_else(|| {
        Error::Unmet(format!(
            "PostgreSQL refuses to run as root and there is no user {SERVER_USER}: \
             useradd --system {SERVER_USER}"
        ))
    })
}

pub(super) fn as_server_user(program: &Path, as_root: bool) -> Command {
    let mut command = Command::new(if as_root {
        Path::new("runuser")
    } else {
        program
    });
    if as_root {
        command.args(["-u", SERVER_USER, "--"]).arg(program);
    }
    command.current_dir("/");
    command
}

pub(super) fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    let action = || format!("make {}", path.display());
    fs::create_dir_all(path).map_err(Error::io(action()))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::io(action()))
}
