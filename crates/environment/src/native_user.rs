//! As whom native programs run.

use nix::unistd::{User, geteuid};

/// The user and the group that native programs are to run as; `None` for those of this server.
///
/// # Errors
/// Why a server that runs as this one does cannot run programs as that user.
pub(crate) fn find(name: &str) -> Result<Option<(u32, u32)>, String> {
    let found = User::from_name(name)
        .map_err(|error| format!("{name:?} cannot be looked up: {error}"))?
        .ok_or_else(|| format!("there is no user {name:?} on this machine"))?;
    let me = geteuid();
    if found.uid == me {
        return Ok(None);
    }
    if !me.is_root() {
        return Err(format!(
            "only a server that runs as root can run programs as {name:?}; this one runs as user {me}"
        ));
    }
    Ok(Some((found.uid.as_raw(), found.gid.as_raw())))
}
