//! What an image says about its program.

use serde::{Deserialize, Serialize};

/// What an image says about its program (OCI image specification, "Image Configuration").
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments that a start may replace; the program too, if there is no entrypoint.
    pub cmd: Vec<String>,
    /// Variables, as `NAME=value`.
    pub env: Vec<String>,
    /// Where the program starts; empty if the image does not say.
    pub working_dir: String,
    /// Who the program is.
    pub user: ImageUser,
    /// The number of the signal that asks it to leave; SIGTERM if the image does not say.
    pub stop_signal: Option<i32>,
}

/// Who a program is in its container. The numbers are those of the image: root is 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageUser {
    /// Its user.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// Its further groups.
    pub additional_gids: Vec<u32>,
    /// Its home, as the image's own `/etc/passwd` names it.
    pub home: Option<String>,
}

/// The number of a stop signal as images write it: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`. `None` if there is no such signal.
#[must_use]
pub fn signal_number(text: &str) -> Option<i32> {
    /// Signals are numbered from 1 to 64; of the real-time ones the C library keeps two to itself (signal(7)).
    const LAST: i32 = 64;
    const REAL_TIME: i32 = 34;
    let in_bounds = |number: &i32| (1..=LAST).contains(number);
    if let Ok(number) = text.parse::<i32>() {
        return Some(number).filter(in_bounds);
    }
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let (base, distance) = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(distance), _) => (REAL_TIME, distance),
        (_, Some(distance)) => (LAST, distance),
        _ => {
            let signal = format!("SIG{name}").parse::<nix::sys::signal::Signal>();
            return signal.ok().map(|signal| signal as i32);
        }
    };
    let distance = match distance {
        "" => 0,
        distance => distance.parse::<i32>().ok()?,
    };
    base.checked_add(distance)
        .filter(|number| (REAL_TIME..=LAST).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_read_as_images_write_it() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("TERM", Some(15)),
            ("15", Some(15)),
            ("SIGQUIT", Some(3)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("SIGRTMAX-1", Some(63)),
            ("SIGRTMIN+99", None),
            ("SIGRTMIN-1", None),
            ("0", None),
            ("65", None),
            ("-9", None),
            ("", None),
            ("NOSUCH", None),
        ] {
            assert_eq!(signal_number(text), number, "{text:?}");
        }
    }
}
