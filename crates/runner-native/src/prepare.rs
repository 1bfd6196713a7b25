//! Makes an image ready to be executed.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::unistd::{Gid, chown};
use runtara_domain::ImageDigest;
use runtara_images::{Detected, Machine, detect};
use runtara_runner::{ImageFiles, PrepareError};

use crate::NativeConfig;

/// Executable by all, writable by none.
const MODE: u32 = 0o555;

/// Gives the path of the executable. Blocking.
pub(crate) fn prepare(config: &NativeConfig, image: &ImageFiles) -> Result<PathBuf, PrepareError> {
    let (content, from) = (image.content, image.path.as_path());
    let host = |context: &'static str| move |source| PrepareError::host(content, context, source);
    if content.base.is_some() {
        return Err(PrepareError::Unfit {
            content,
            reason: "native programs are laid on no base: they see the files of the host"
                .to_owned(),
        });
    }
    let mut file = fs::File::open(from).map_err(host("its content could not be opened"))?;
    let detected = detect(&mut file).map_err(host("its content could not be read"))?;
    if let Some(reason) = misfit(&detected) {
        return Err(PrepareError::Unfit { content, reason });
    }
    let size = file
        .metadata()
        .map_err(host("its content could not be read"))?
        .len();
    let directory = directory(config);
    let path = directory.join(content.digest.to_string());
    // Under the name of its digest only ever comes what is whole; the size guards against a disk that forgot.
    if fs::metadata(&path).is_ok_and(|ready| ready.len() == size) {
        return Ok(path);
    }
    make_directory(config, &directory).map_err(host("there is no place for it"))?;
    put(from, &path).map_err(host("it could not be put into its place"))?;
    Ok(path)
}

/// Removes what was made ready of an image, also under other settings.
pub(crate) fn forget(config: &NativeConfig, digest: ImageDigest) -> io::Result<()> {
    for directory in [own_directory(config), shown_directory(config)] {
        match fs::remove_file(directory.join(digest.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Where images lie. A program may start itself again, or read what it carries in itself, so its user must be able to go there.
fn directory(config: &NativeConfig) -> PathBuf {
    match config.user {
        None => own_directory(config),
        Some(_) => shown_directory(config),
    }
}

fn own_directory(config: &NativeConfig) -> PathBuf {
    config.data_dir.join("cache/native")
}

fn shown_directory(config: &NativeConfig) -> PathBuf {
    config.work_root.join("images")
}

/// Makes the directory of images. Another user may pass, and can neither look around nor change anything.
fn make_directory(config: &NativeConfig, directory: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    if let Some((_, gid)) = config.user {
        // Set rather than made so: the server's umask may be anything.
        fs::set_permissions(&config.work_root, fs::Permissions::from_mode(0o711))?;
        chown(directory, None, Some(Gid::from_raw(gid)))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o710))?;
    }
    Ok(())
}

/// Why content cannot run here.
fn misfit(detected: &Detected) -> Option<String> {
    match detected {
        Detected::Elf(elf) => {
            if let Some(host) = Machine::host()
                && !host.runs(elf.machine)
            {
                return Some(format!(
                    "it is {elf}, and this is an {host} machine; build it for {host}"
                ));
            }
            let loader = elf.interpreter.as_deref()?;
            (!is_executable(loader)).then(|| {
                format!(
                    "it is {elf}, and there is no such loader on this machine; install it, or link the program statically"
                )
            })
        }
        Detected::Script { interpreter } => (!is_executable(interpreter)).then(|| {
            format!("it is {detected}, and there is no such program on this machine; install it")
        }),
        other => Some(format!(
            "it is {other}, and native images are ELF programs or `#!` scripts"
        )),
    }
}

fn is_executable(path: &str) -> bool {
    let metadata = fs::metadata(path);
    metadata.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Links content to its place, or copies it where that is not possible: another file system, another mode, too many links.
fn put(content: &Path, path: &Path) -> io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{number}", std::process::id()));
    let made = link(content, &temporary)
        .or_else(|_| copy(content, &temporary))
        .and_then(|()| fs::rename(&temporary, path));
    // If both names are links to one file, the rename leaves both (rename(2)).
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && made.is_ok() => Err(error),
        _ => made,
    }
}

fn link(content: &Path, temporary: &Path) -> io::Result<()> {
    if fs::metadata(content)?.permissions().mode() & 0o777 != MODE {
        // The mode belongs to the file, not to the link.
        return Err(io::ErrorKind::Unsupported.into());
    }
    fs::hard_link(content, temporary)
}

fn copy(content: &Path, temporary: &Path) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)?;
    io::copy(&mut fs::File::open(content)?, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use runtara_domain::ImageContent;

    use super::*;

    fn prepared(
        content: &[u8],
        mode: u32,
    ) -> (tempfile::TempDir, PathBuf, Result<PathBuf, PrepareError>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("content");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let config = NativeConfig::new(&directory.path().join("data"));
        let result = prepare(&config, &files(content, &path));
        (directory, path, result)
    }

    fn files(content: &[u8], path: &Path) -> ImageFiles {
        ImageFiles {
            content: ImageContent {
                digest: ImageDigest::of(content),
                base: None,
            },
            path: path.to_owned(),
            base: None,
        }
    }

    #[test]
    fn content_is_linked_if_it_has_the_mode_and_copied_if_not() {
        for (mode, links) in [(0o555, 2), (0o644, 1)] {
            let (_directory, content, path) = prepared(b"#!/bin/sh\n", mode);
            let path = path.unwrap();
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.nlink(), metadata.mode() & 0o777), (links, MODE));
            assert_eq!(fs::metadata(content).unwrap().mode() & 0o777, mode);
            let beside = fs::read_dir(path.parent().unwrap()).unwrap().count();
            assert_eq!(beside, 1, "no temporary file is left");
        }
    }

    #[test]
    fn it_is_prepared_as_often_as_wanted_and_forgotten() {
        let (directory, content, first) = prepared(b"#!/bin/sh\n", 0o555);
        let config = NativeConfig::new(&directory.path().join("data"));
        let digest = ImageDigest::of(b"#!/bin/sh\n");
        let second = prepare(&config, &files(b"#!/bin/sh\n", &content)).unwrap();
        assert_eq!(first.unwrap(), second);
        forget(&config, digest).unwrap();
        forget(&config, digest).unwrap();
        assert!(!second.exists());
    }

    #[test]
    fn what_cannot_run_here_is_refused_with_the_reason() {
        let mut foreign = fs::read("/bin/sh").unwrap();
        foreign[18..20].copy_from_slice(&22_u16.to_le_bytes());
        let mut lost = fs::read("/bin/sh").unwrap();
        let loader = lost
            .windows(4)
            .position(|window| window == b"/lib")
            .unwrap();
        lost[loader + 1..loader + 4].copy_from_slice(b"xyz");
        for (content, expected) in [
            (b"hello".as_slice(), "native images are ELF programs"),
            (b"#!/no/such/python\n", "/no/such/python"),
            (&foreign, "s390x"),
            (&lost, "/xyz"),
        ] {
            match prepared(content, 0o555).2 {
                Err(PrepareError::Unfit { reason, .. }) => {
                    assert!(reason.contains(expected), "{reason}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
