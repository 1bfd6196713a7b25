//! Compiled images on disk.
//!
//! `<data>/cache/wasm/<engine>/<digest>` names the file beside it that has the code, `<SHA-256 of it>.code`. What another engine has
//! compiled lies in another directory, and is removed at the start. Code is executed as it is found, so it is mapped only if its checksum
//! is right; only the server's user can write here.

use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use runtara_domain::ImageDigest;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// How the names of files end that are being written.
const ASIDE: &str = ".new";

/// The directory of compiled images of one engine.
pub(crate) struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// Opens it, and removes what other engines have compiled. Blocking.
    ///
    /// # Errors
    /// What the system reported.
    pub(crate) fn open(root: &Path, engine: &Engine) -> io::Result<Self> {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let directory = root.join(format!("{:016x}", hasher.finish()));
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        for entry in fs::read_dir(root)? {
            let path = entry?.path();
            if path != directory {
                runtara_runner::remove_tree(&path)?;
            }
        }
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            // Of a server that was killed: the directory is that of one server at a time.
            if path
                .as_os_str()
                .as_encoded_bytes()
                .ends_with(ASIDE.as_bytes())
            {
                fs::remove_file(path)?;
            }
        }
        Ok(Self { directory })
    }

    /// What was compiled of an image, if it is there and whole. Blocking.
    pub(crate) fn load(&self, engine: &Engine, digest: ImageDigest) -> Option<Component> {
        let name = fs::read_to_string(self.directory.join(digest.to_string())).ok()?;
        if name.len() != 64 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let code = self.code(&name);
        if checksum(&code).ok()? != name {
            return None;
        }
        map(engine, &code).ok()
    }

    /// Keeps what was compiled of an image, and maps it. Blocking.
    ///
    /// # Errors
    /// What the system reported, or that this engine can give no guest what the image needs.
    pub(crate) fn keep(
        &self,
        engine: &Engine,
        digest: ImageDigest,
        code: &[u8],
    ) -> Result<Component, KeepError> {
        let name = hex(&Sha256::digest(code));
        let path = self.code(&name);
        self.write(&path, code)?;
        // The engine looks only now at what the image needs: compiled code may be run by engines with other settings.
        let component = map(engine, &path).map_err(|error| {
            let _stays_until_the_next_engine = fs::remove_file(&path);
            KeepError::NotAllowed(format!("{error:#}"))
        })?;
        self.write(&self.directory.join(digest.to_string()), name.as_bytes())?;
        Ok(component)
    }

    /// Removes what was compiled of an image. What is mapped of it stays mapped. Blocking.
    ///
    /// # Errors
    /// What the system reported.
    pub(crate) fn forget(&self, digest: ImageDigest) -> io::Result<()> {
        let index = self.directory.join(digest.to_string());
        let name = match fs::read_to_string(&index) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            name => name?,
        };
        fs::remove_file(&index)?;
        match fs::remove_file(self.code(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn code(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.code"))
    }

    /// Whole or not at all, as far as the server is concerned. After a power cut it may be anything, which the checksum tells.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".{}{ASIDE}", number()));
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| fs::rename(&aside, path));
        if written.is_err() {
            let _stays_until_the_next_engine = fs::remove_file(&aside);
        }
        written
    }
}

/// Why what was compiled is not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    /// The system did not store it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It needs more than the engine gives to a guest, in the engine's words.
    #[error("{0}")]
    NotAllowed(String),
}

/// A number that no other write of this process has.
fn number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[expect(
    unsafe_code,
    reason = "code from a file is executed as it is: there is no safe way to take it"
)]
fn map(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: an engine of this version and these settings has written it, in a directory of that engine's own into which nobody but the
    // server's user can write, and it is whole: its checksum was just found to be that of what was written.
    unsafe { Component::deserialize_file(engine, path) }
}

fn checksum(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            length => hasher.update(&buffer[..length]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(engine: &Engine) -> Vec<u8> {
        engine
            .precompile_component(b"(component)")
            .unwrap_or_else(|_| {
                let bytes = wat::parse_str("(component)").unwrap();
                engine.precompile_component(&bytes).unwrap()
            })
    }

    fn engine() -> Engine {
        Engine::default()
    }

    #[test]
    fn what_was_kept_is_found_again() {
        let (directory, engine) = (tempfile::tempdir().unwrap(), engine());
        let cache = Cache::open(directory.path(), &engine).unwrap();
        let digest = ImageDigest::of(b"image");
        assert!(cache.load(&engine, digest).is_none());
        cache.keep(&engine, digest, &compiled(&engine)).unwrap();
        assert!(cache.load(&engine, digest).is_some());
        cache.forget(digest).unwrap();
        cache.forget(digest).unwrap();
        assert!(cache.load(&engine, digest).is_none());
        let left = fs::read_dir(&cache.directory).unwrap().count();
        assert_eq!(left, 0);
    }

    #[test]
    fn what_a_killed_server_was_writing_goes_with_the_next_start() {
        let (directory, engine) = (tempfile::tempdir().unwrap(), engine());
        let cache = Cache::open(directory.path(), &engine).unwrap();
        let digest = ImageDigest::of(b"image");
        cache.keep(&engine, digest, &compiled(&engine)).unwrap();
        let half = cache.directory.join(format!("half.0{ASIDE}"));
        fs::write(&half, "half").unwrap();
        let next = Cache::open(directory.path(), &engine).unwrap();
        assert!(!half.exists());
        assert!(next.load(&engine, digest).is_some());
    }

    #[test]
    fn what_needs_more_than_guests_are_given_is_not_kept() {
        let directory = tempfile::tempdir().unwrap();
        let mut pool = wasmtime::PoolingAllocationConfig::new();
        pool.max_memories_per_module(1)
            .total_memories(1)
            .total_core_instances(1);
        let mut settings = wasmtime::Config::new();
        settings.allocation_strategy(wasmtime::InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&settings).unwrap();
        let cache = Cache::open(directory.path(), &engine).unwrap();
        let bytes = wat::parse_str("(component (core module (memory 1) (memory 1)))").unwrap();
        let code = engine.precompile_component(&bytes).unwrap();
        let kept = cache.keep(&engine, ImageDigest::of(b"image"), &code);
        let Err(KeepError::NotAllowed(reason)) = kept else {
            panic!("it was kept")
        };
        assert!(reason.contains("memories"), "{reason}");
        assert_eq!(fs::read_dir(&cache.directory).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_one_is_not_mapped() {
        let (directory, engine) = (tempfile::tempdir().unwrap(), engine());
        let cache = Cache::open(directory.path(), &engine).unwrap();
        let digest = ImageDigest::of(b"image");
        let code = compiled(&engine);
        cache.keep(&engine, digest, &code).unwrap();
        let path = cache.code(&hex(&Sha256::digest(&code)));
        let mut damaged = code.clone();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert!(cache.load(&engine, digest).is_none());
        fs::write(&path, &code[..last]).unwrap();
        assert!(cache.load(&engine, digest).is_none());
        fs::write(cache.directory.join(digest.to_string()), "../../etc/passwd").unwrap();
        assert!(cache.load(&engine, digest).is_none());
    }

    #[test]
    fn that_of_another_engine_is_removed() {
        let (directory, engine) = (tempfile::tempdir().unwrap(), engine());
        let other = directory.path().join("0123456789abcdef");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("code"), "old").unwrap();
        Cache::open(directory.path(), &engine).unwrap();
        assert!(!other.exists());
    }
}
