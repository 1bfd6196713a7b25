//! The directory of one test, gone with it.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::wait::eventually;
use crate::{containers, processes};

const PREFIX: &str = "runtara-test-";

/// A directory that is removed with this value, after the processes that have to do with it. What a killed test has left is
/// removed by the next one.
pub(crate) struct Place {
    directory: TempDir,
    /// Held for the whole life: a place whose lock is free has lost its test.
    _alive: File,
}

impl Place {
    pub(crate) fn make() -> Self {
        // Short, because the path of a socket in it must be: unix(7) has room for 108 bytes. And where every user can get,
        // because programs run as another one.
        let base = Path::new("/tmp");
        sweep(base);
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(base)
            .expect("a directory can be made in /tmp");
        // Locked before it has its name: whoever sees it unlocked knows that its test is dead.
        let (unnamed, named) = (directory.path().join("new"), directory.path().join("alive"));
        let alive = File::create(&unnamed).expect("the directory is ours");
        alive.try_lock().expect("nobody else knows this file");
        fs::rename(&unnamed, &named).expect("the directory is ours");
        Self {
            directory,
            _alive: alive,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        processes::kill_all(self.path());
        remove_cgroups(self.path());
        containers::remove(self.path());
        unmount_disk(self.path());
        if std::thread::panicking() && std::env::var_os("RUNTARA_TEST_KEEP").is_some() {
            self.directory.disable_cleanup(true);
            eprintln!("kept: {}", self.path().display());
        }
    }
}

/// Removes the empty cgroups that killed shims have left: nobody comes to recover their runs.
fn remove_cgroups(place: &Path) {
    let node = fs::read_to_string(place.join("data/node")).unwrap_or_default();
    let prefix = format!("runtara-{}-", node.trim());
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for line in own.lines().filter(|_| !node.is_empty()) {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(own)) = (parts.next(), parts.next()) else {
            continue;
        };
        let hierarchy = Path::new("/sys/fs/cgroup").join(controllers);
        let directory = hierarchy.join(own.trim_start_matches('/'));
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _stays = fs::remove_dir(entry.path());
            }
        }
    }
}

/// Removes what tests have left that were killed: processes, mounts, cgroups and files.
pub fn clean_up_after_the_dead() {
    sweep(Path::new("/tmp"));
}

/// Makes a directory a disk of its own, in memory.
pub(crate) fn mount_disk(directory: &Path, mebibytes: u32) {
    let options = format!("size={mebibytes}m,mode=0700");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &options, "runtara-test"])
        .arg(directory)
        .status();
    assert!(
        mounted.is_ok_and(|status| status.success()),
        "a tmpfs cannot be mounted on {}; run this as root",
        directory.display()
    );
}

/// Unmounts the disk of a server, if it has one of its own.
fn unmount_disk(place: &Path) {
    let data = place.join("data");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let is_mounted = |line: &str| line.split(' ').nth(1).map(Path::new) == Some(&data);
    if mounts.lines().any(is_mounted) {
        // What is still open keeps its files until it is closed.
        let _stays = Command::new("umount").arg("--lazy").arg(&data).status();
    }
}

/// Removes the places of tests that were killed. One test at a time: it must not take another that looks at the same place for one
/// of its processes.
fn sweep(base: &Path) {
    let Ok(only_one) = File::create(base.join("runtara-tests.lock")) else {
        return;
    };
    if only_one.try_lock().is_err() {
        return;
    }
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(PREFIX) {
            continue;
        }
        let Ok(alive) = File::open(path.join("alive")) else {
            continue;
        };
        if alive.try_lock().is_ok() {
            processes::kill_all(&path);
            remove_cgroups(&path);
            containers::remove(&path);
            unmount_disk(&path);
            // Whatever cannot be removed now is found again.
            let _removed_or_later = fs::remove_dir_all(&path);
        }
    }
}

/// Files by which a test and the programs that it starts tell each other how far they are. Every user may write here: programs run
/// as another one.
pub struct Shared(PathBuf);

impl Shared {
    pub(crate) fn make(place: &Path) -> Self {
        let path = place.join("shared");
        if !path.exists() {
            fs::create_dir(&path).expect("the directory is ours");
            fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("it is ours");
        }
        Self(path)
    }

    /// The path of a file, for the program.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Makes a file, for a program that waits for it.
    pub fn touch(&self, name: &str) {
        fs::write(self.0.join(name), "").expect("the directory is ours");
    }

    /// What is in a file now, if there is one.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.0.join(name)).ok()
    }

    /// The lines of a file now.
    #[must_use]
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = self.text(name).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until a file is there, and gives its text.
    #[must_use]
    pub fn wait_for(&self, name: &str) -> String {
        eventually(&format!("the file '{name}' of a program"), || {
            self.text(name).ok_or("nothing")
        })
    }

    /// Waits until a file has that many lines, and gives them.
    #[must_use]
    pub fn wait_for_lines(&self, name: &str, count: usize) -> Vec<String> {
        eventually(&format!("{count} lines in the file '{name}'"), || {
            let lines = self.lines(name);
            if lines.len() >= count {
                Ok(lines)
            } else {
                Err(lines)
            }
        })
    }
}
