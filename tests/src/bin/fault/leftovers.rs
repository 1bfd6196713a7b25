//! Files that nobody needs once nothing runs any more, and what is wrong with those that are needed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

/// What is in a directory; nothing if there is none.
pub(crate) fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// All files in a directory and below it.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let (mut files, mut open) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = open.pop() {
        let (directories, others): (Vec<_>, _) =
            entries(&directory).into_iter().partition(|it| it.is_dir());
        open.extend(directories);
        files.extend(others);
    }
    files.sort();
    files
}

/// The last part of a path.
pub(crate) fn name_of_file(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// What runs that have ended have left beside what they wrote, which stays for as long as their instance, and the file that says whose it is:
/// without that, nobody will ever remove it. An empty directory goes with its instance.
pub(crate) fn of_runs(data_dir: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for instance in entries(&data_dir.join("runs")) {
        let owner = instance.join("instance");
        if !owner.is_file() {
            left.push(format!("runs of nobody: {}", instance.display()));
        }
        for run in entries(&instance).into_iter().filter(|it| *it != owner) {
            if !run.is_dir() {
                left.push(format!("beside ended runs: {}", run.display()));
            }
            let is_log = |name: &str| name.starts_with("stdout.") || name.starts_with("stderr.");
            for file in entries(&run) {
                if !is_log(&name_of_file(&file)) {
                    left.push(format!("of an ended run: {}", file.display()));
                }
            }
        }
    }
    left
}

/// What broken registrations have left in the directory of a server: content that was not received whole, and layers that were not unpacked
/// whole or not removed whole.
pub(crate) fn of_images(data_dir: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for (place, what) in [
        ("blobs/uploads", "half an upload"),
        ("cache/oci/temporary", "half a layer"),
    ] {
        for path in entries(&data_dir.join(place)) {
            left.push(format!("{what}: {}", path.display()));
        }
    }
    left
}

/// What lies in the store of images that servers share and is no whole content of an image, nor the name of their database.
pub(crate) fn in_shared(directory: &Path) -> Vec<String> {
    let mut left = Vec::new();
    for path in files_below(directory) {
        let name = path.strip_prefix(directory).unwrap_or(&path);
        if name == Path::new("database") {
            continue;
        }
        let Some(digest) = digest_in_name(name) else {
            left.push(format!("in the shared store: {}", name.display()));
            continue;
        };
        match fs::read(&path).map(|content| digest_of(&content)) {
            Ok(found) if found == digest => {}
            Ok(found) => left.push(format!(
                "in the shared store: {digest}, whose content has the digest {found}"
            )),
            Err(error) => left.push(format!(
                "in the shared store: {digest}, which cannot be read: {error}"
            )),
        }
    }
    left
}

/// Those of these digests whose content is not in the store of images that servers share.
pub(crate) fn not_in_shared<'a>(
    directory: &Path,
    digests: impl Iterator<Item = &'a str>,
) -> Vec<&'a str> {
    let is_there = |digest: &str| directory.join(name_in_shared(digest)).is_file();
    digests.filter(|digest| !is_there(digest)).collect()
}

fn name_in_shared(digest: &str) -> PathBuf {
    let (shard, rest) = digest.split_at(digest.len().min(2));
    ["sha256", shard, rest].iter().collect()
}

/// The digest whose content has this name in the shared store, if it is such a name.
fn digest_in_name(name: &Path) -> Option<String> {
    let digest: String = name.strip_prefix("sha256").ok()?.to_str()?.replace('/', "");
    let is_one = digest.len() == 64 && digest.bytes().all(|it| it.is_ascii_hexdigit());
    (is_one && name_in_shared(&digest) == name).then_some(digest)
}

/// The digest of content, as images are told by it.
pub(crate) fn digest_of(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Has all files in a directory and below it look as if they had been written so much earlier than now.
///
/// # Errors
/// What stood in the way, with the file.
pub(crate) fn age(directory: &Path, by: Duration) -> Result<(), String> {
    let written = SystemTime::now() - by;
    for path in files_below(directory) {
        File::open(&path)
            .and_then(|file| file.set_modified(written))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A directory with these files in it.
    fn with(files: &[(&str, &str)]) -> TempDir {
        let place = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = place.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        place
    }

    #[test]
    fn what_ended_runs_wrote_may_stay_and_nothing_else() {
        let fine = [
            ("runs/abc/instance", "a"),
            ("runs/abc/1/stdout.0", "hello"),
            ("runs/abc/2/stderr.4096", "hello"),
            ("runs.json", ""),
        ];
        let place = with(&fine);
        fs::create_dir(place.path().join("runs/abc/3")).unwrap();
        assert_eq!(of_runs(place.path()), [""; 0]);
        for wrong in [
            "runs/abc/2/run.json",
            "runs/abc/2/exit.json",
            "runs/abc/1/work/file",
            "runs/abc/instance.new",
            "runs/def/1/stdout.0",
            "runs/file",
        ] {
            let place = with(&[&fine[..], &[(wrong, "")]].concat());
            let left = of_runs(place.path());
            assert_eq!(left.len(), 1, "{wrong}: {left:?}");
        }
    }

    #[test]
    fn half_uploads_and_half_layers_are_found() {
        let fine = [
            ("blobs/sha256/ab/cd", ""),
            ("blobs/locks/ab", ""),
            ("cache/oci/layers/abc/layer.json", ""),
        ];
        assert_eq!(of_images(with(&fine).path()), [""; 0]);
        for wrong in ["blobs/uploads/1.part", "cache/oci/temporary/1/root/file"] {
            let left = of_images(with(&[&fine[..], &[(wrong, "")]].concat()).path());
            assert_eq!(left.len(), 1, "{wrong}: {left:?}");
        }
    }

    #[test]
    fn only_whole_content_belongs_into_the_shared_store() {
        let whole = digest_of(b"content");
        assert!(whole.starts_with("ed7002b439e9ac84"), "{whole}");
        let name = name_in_shared(&whole).display().to_string();
        let fine = [("database", "id"), (name.as_str(), "content")];
        let place = with(&fine);
        assert_eq!(in_shared(place.path()), [""; 0]);
        let other = digest_of(b"other");
        let digests = [whole.as_str(), other.as_str()];
        assert_eq!(
            not_in_shared(place.path(), digests.into_iter()),
            [other.as_str()]
        );
        let half = format!("{name}#1");
        let split = format!("sha256/{}/{}", &whole[..4], &whole[4..]);
        let renamed = name_in_shared(&other).display().to_string();
        for wrong in [
            "pins/ab/1",
            "removed/ab/1",
            "probes/1",
            "database#1",
            "sha256/ab/cd",
            &half,
            &split,
            &renamed,
        ] {
            let left = in_shared(with(&[&fine[..], &[(wrong, "content")]].concat()).path());
            assert_eq!(left.len(), 1, "{wrong}: {left:?}");
        }
    }

    #[test]
    fn files_are_made_to_look_old() {
        let place = with(&[("a/b/c", "")]);
        age(place.path(), Duration::from_secs(1_000)).unwrap();
        let written = fs::metadata(place.path().join("a/b/c")).unwrap();
        let age = written.modified().unwrap().elapsed().unwrap();
        assert!((1_000..1_100).contains(&age.as_secs()), "{age:?}");
    }
}
