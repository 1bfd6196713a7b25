//! Which Linux this is, where nothing else tells what it can do.

use std::fs;

/// A release of Linux: its first two numbers.
pub(crate) type Release = (u32, u32);

/// The release of the running kernel (proc_sys_kernel(5)), if it is understood.
pub(crate) fn release() -> Option<Release> {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    read(&text)
}

/// Whether the running kernel says that it is older than a release; one that is not understood is not.
pub(crate) fn is_older_than(wanted: Release) -> bool {
    release().is_some_and(|release| release < wanted)
}

fn read(text: &str) -> Option<Release> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    Some((next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_compared_by_its_numbers() {
        for (text, numbers) in [
            ("5.10.0-32-amd64\n", (5, 10)),
            ("4.18.0-553.el8_10.x86_64", (4, 18)),
            ("6.4", (6, 4)),
            ("7.0-rc1", (7, 0)),
        ] {
            assert_eq!(read(text), Some(numbers), "{text}");
        }
        for text in ["", "next", "6", "x.1", "99999999999.1"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn this_kernel_is_understood() {
        assert!(is_older_than((u32::MAX, 0)));
        assert!(!is_older_than((2, 6)));
    }
}
