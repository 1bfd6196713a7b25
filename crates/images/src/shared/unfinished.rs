//! What writers that died have left in a directory that nodes share.
//!
//! An object is written under its name with `#` and a number behind it, and then renamed (`object_store`'s `LocalFileSystem`, whose lists leave such
//! names out).

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::age;
use crate::{BlobError, Swept};

/// How deep objects lie: `removed/<digest>/<name>`.
const DEPTH: usize = 3;

/// Removes what was begun so long ago and not finished, unless this is a dry run. Says how much that was. Blocking.
pub(super) fn sweep(root: &Path, older: Duration, dry_run: bool) -> Result<Swept, BlobError> {
    let now = SystemTime::now();
    let mut swept = Swept::default();
    let mut open = vec![(root.to_owned(), 1)];
    while let Some((directory, depth)) = open.pop() {
        let entries = match fs::read_dir(&directory) {
            // One goes with the last object in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries.map_err(BlobError::io("read", &directory))?,
        };
        for entry in entries {
            let entry = entry.map_err(BlobError::io("read", &directory))?;
            let Ok(found) = entry.metadata() else {
                continue;
            };
            if found.is_dir() && depth < DEPTH {
                open.push((entry.path(), depth + 1));
                continue;
            }
            let written = found.modified().unwrap_or(now);
            let name = entry.file_name();
            if !found.is_file()
                || !is_unfinished(&name.to_string_lossy())
                || age(written, now) < older
            {
                continue;
            }
            if !dry_run && let Err(error) = fs::remove_file(entry.path()) {
                let path = entry.path();
                tracing::warn!(path = %path.display(), %error, "what was not written whole could not be removed");
                continue;
            }
            swept.add(found.len());
        }
    }
    Ok(swept)
}

fn is_unfinished(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(object, number)| {
        !object.is_empty() && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_old_and_unfinished_goes() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        let old = SystemTime::now() - Duration::from_secs(7_200);
        for (path, is_old) in [
            ("sha256/ab/abcd#1", true),
            ("pins/abcd/one#22", true),
            ("database#1", true),
            ("sha256/ab/abce#1", false),
            ("sha256/ab/abcd", true),
            ("removed/abcd/x#", true),
            ("removed/abcd/x#y1", true),
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "half").unwrap();
            if is_old {
                let file = fs::File::options().write(true).open(&path).unwrap();
                file.set_modified(old).unwrap();
            }
        }
        let hour = Duration::from_secs(3_600);
        let expected = Swept {
            items: 3,
            bytes: 12,
        };
        assert_eq!(sweep(root, hour, true).unwrap(), expected);
        assert_eq!(sweep(root, hour, false).unwrap(), expected);
        assert_eq!(sweep(root, hour, false).unwrap(), Swept::default());
        for left in [
            "sha256/ab/abce#1",
            "sha256/ab/abcd",
            "removed/abcd/x#",
            "removed/abcd/x#y1",
        ] {
            assert!(root.join(left).exists(), "{left}");
        }
    }
}
