//! What the tests of images share: archives written by hand, tools that write real ones, and trees to compare.

#![allow(unreachable_pub, reason = "a module of several test programs")]
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::allow_attributes,
    reason = "an expectation would not be met in every test file"
)]
#![allow(clippy::unwrap_used, reason = "a test that meets an error has failed")]

pub mod layout;
pub mod replay;
pub mod tar_writer;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use runtara_oci_image::{
    Archive, ArchiveOptions, ImageError, LayerStore, Limits, StoreOptions, UnpackedImage, Watch,
};

/// A directory with a store in it, and beside the store what nothing may touch.
pub struct Ground {
    pub directory: tempfile::TempDir,
    pub store: LayerStore,
}

impl Ground {
    pub fn new() -> Self {
        Self::with(&StoreOptions::default())
    }

    pub fn with(options: &StoreOptions) -> Self {
        Self::within(tempfile::tempdir().unwrap(), options)
    }

    /// In memory if there is a place for it, for tests that unpack often: syncing a busy disk takes long.
    pub fn in_memory() -> Self {
        Self::within(memory(), &StoreOptions::default())
    }

    fn within(directory: tempfile::TempDir, options: &StoreOptions) -> Self {
        let sentinel = directory.path().join("sentinel");
        fs::create_dir(&sentinel).unwrap();
        fs::write(sentinel.join("file"), "untouched").unwrap();
        let store = LayerStore::open(&directory.path().join("store"), options).unwrap();
        Self { directory, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn open(&self, archive: &[u8]) -> Result<Archive, ImageError> {
        let path = self.path("archive");
        fs::write(&path, archive).unwrap();
        Archive::open_path(
            &path,
            &ArchiveOptions::new(self.store.scratch()),
            Watch::none(),
        )
    }

    pub fn unpack(&self, archive: &[u8]) -> Result<UnpackedImage, ImageError> {
        self.unpack_within(archive, &Limits::default())
    }

    pub fn unpack_within(
        &self,
        archive: &[u8],
        limits: &Limits,
    ) -> Result<UnpackedImage, ImageError> {
        self.store
            .unpack(&self.open(archive)?, limits, Watch::none())
    }

    /// Unpacks an image of one layer, and answers with the layer's tree.
    pub fn unpack_layer(&self, layer: &[u8]) -> Result<PathBuf, ImageError> {
        let image = self.unpack(&layout::image(&[layer]))?;
        Ok(image.layers()[0].directory().to_owned())
    }

    pub fn flatten(&self, image: &UnpackedImage) -> PathBuf {
        let target = self.path(&format!("flat-{}", uuid()));
        image.flatten(&target, Watch::none()).unwrap();
        target
    }

    /// Nothing lies beside the store that was not there before, and nothing half made is in it.
    pub fn assert_untouched(&self) {
        let sentinel = self.path("sentinel");
        let found: Vec<_> = fs::read_dir(&sentinel)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(found, ["file"]);
        assert_eq!(
            fs::read_to_string(sentinel.join("file")).unwrap(),
            "untouched"
        );
        assert_eq!(
            fs::metadata(sentinel.join("file")).unwrap().nlink(),
            1,
            "the sentinel was linked to"
        );
        let unfinished = fs::read_dir(self.store.scratch()).unwrap().count();
        assert_eq!(unfinished, 0, "unfinished layers were left");
        for entry in fs::read_dir(self.directory.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let expected = ["sentinel", "store", "archive"].contains(&name.as_str())
                || name.starts_with("flat-");
            assert!(expected, "{name} appeared beside the store");
        }
    }
}

/// A temporary directory in memory, where that takes what layers need: extended attributes of users only since Linux 6.6.
pub fn memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() && is_root() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    }
    .unwrap()
}

fn uuid() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed).to_string()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a program that the test needs, and fails with the name of its package if it is missing.
pub fn run(package: &str, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot run `{program}` ({error}); install the package {package}")
        });
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The error and its causes, as they are told.
pub fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A tree as text, path by path: kind, mode, owner, seconds, content. Hard links are told by the first of their names.
pub fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    list(root, root, &mut inodes, &mut found);
    found
}

fn list(
    root: &Path,
    directory: &Path,
    inodes: &mut BTreeMap<u64, String>,
    found: &mut BTreeMap<String, String>,
) {
    let mut entries: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path
            .strip_prefix(root)
            .unwrap()
            .to_string_lossy()
            .into_owned();
        let stat = fs::symlink_metadata(&path).unwrap();
        let kind = stat.file_type();
        let what = if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_char_device() {
            format!("device {}", stat.rdev())
        } else {
            let first = inodes
                .entry(stat.ino())
                .or_insert_with(|| name.clone())
                .clone();
            if first == name {
                let content = fs::read(&path).unwrap();
                match content.len() {
                    0..100 => format!("{:?}", String::from_utf8_lossy(&content)),
                    length => format!("{length} bytes, {}", &layout::sha256(&content)[..16]),
                }
            } else {
                format!("= {first}")
            }
        };
        // A whiteout has no time of its own.
        let modified = if kind.is_char_device() {
            0
        } else {
            stat.mtime()
        };
        let mode = if kind.is_symlink() {
            0
        } else {
            stat.mode() & 0o7777
        };
        found.insert(
            name,
            format!("{mode:o} {}:{} {} {what}", stat.uid(), stat.gid(), modified),
        );
        if kind.is_dir() {
            list(root, &path, inodes, found);
        }
    }
}
