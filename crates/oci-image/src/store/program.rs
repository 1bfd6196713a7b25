//! A single program as an image.

use std::fs::File;
use std::io::{Read, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use runtara_domain::ImageDigest;
use runtara_images::{Detected, Machine, detect};
use rustix::fs::{Mode, OFlags};

use super::{Layer, LayerStore, UnpackedImage};
use crate::digest::Hashing;
use crate::metadata::MetadataRules;
use crate::tree::{Tree, set};
use crate::unpack::Contents;
use crate::{DiffId, EntryProblem, ImageError, Watch};

/// Where the program of an image lies that was made from a single one.
pub const PROGRAM_PATH: &str = "/program";

const COPY_BYTES: usize = 256 * 1024;

/// Directories that a container needs to mount something on, or that programs take for granted, and their modes.
const DIRECTORIES: [(&str, u32); 12] = [
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("etc", 0o755),
    ("tmp", 0o1777),
    ("run", 0o755),
    ("data", 0o755),
    ("home", 0o755),
    ("root", 0o700),
    ("var", 0o755),
    ("var/tmp", 0o1777),
    ("var/run", 0o755),
];

/// Files that a runtime mounts its own over, or that programs look into to find out who they are.
const FILES: [(&str, &str); 5] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n",
    ),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hosts", ""),
    ("etc/hostname", ""),
    ("etc/resolv.conf", ""),
];

impl LayerStore {
    /// Makes an image of one program, at [`PROGRAM_PATH`] with mode 0555.
    ///
    /// Alone it must be a statically linked ELF program, and the image has it, the directories that a container needs, and an
    /// `/etc` with root and nobody. On a base, another image, it may also be a dynamically linked one or a `#!` script, if the base
    /// has its loader or interpreter; then nothing but the program is added.
    ///
    /// `digest` is that of the program, and is verified while it is copied. The layer gets a name of its own, which
    /// depends on it: [`Layer::diff_id`] says which, for [`LayerStore::sweep`].
    ///
    /// # Errors
    /// - [`ImageError::Program`] if it cannot run so, with the name of what is missing.
    /// - [`ImageError::DigestMismatch`] if it has another digest.
    /// - [`ImageError::StorageFull`], [`ImageError::Io`] and [`ImageError::Stopped`] as with [`LayerStore::unpack`].
    pub fn program(
        &self,
        program: &File,
        digest: ImageDigest,
        base: Option<&UnpackedImage>,
        watch: Watch<'_>,
    ) -> Result<UnpackedImage, ImageError> {
        check(program, base)?;
        let diff_id = program_layer(digest, base.is_some());
        let layer = self.layer_or_make(diff_id, watch, |root| {
            self.fill_program(root, program, digest, base.is_none(), watch)
        })?;
        let mut layers: Vec<Layer> = base.map(|base| base.layers().to_vec()).unwrap_or_default();
        layers.push(layer);
        Ok(UnpackedImage::new(layers))
    }

    fn fill_program(
        &self,
        root: OwnedFd,
        program: &File,
        digest: ImageDigest,
        alone: bool,
        watch: Watch<'_>,
    ) -> Result<Contents, ImageError> {
        let ours = |problem| self.failed(problem);
        let mut tree = Tree::new(root, self.form, self.rules, 8).map_err(ours)?;
        if alone {
            skeleton(&mut tree, self.rules).map_err(ours)?;
        }
        let mut file = create(&mut tree, PROGRAM_PATH).map_err(ours)?;
        let bytes = copy(program, &mut file, digest, watch)?;
        let mode = self.rules.ours(0o555).map_err(ours)?;
        set(&OwnedFd::from(file), &mode).map_err(|error| {
            self.failed(crate::tree::failed("setting the program's mode")(error))
        })?;
        tree.finish()
            .map_err(ImageError::io("finish", &self.temporary))?;
        Ok(Contents {
            bytes,
            entries: 1,
            ..Contents::default()
        })
    }

    /// A failure of the system while a tree of our own is made.
    pub(super) fn failed(&self, problem: EntryProblem) -> ImageError {
        match problem {
            EntryProblem::System { source, .. } => {
                ImageError::io("unpack a program into", &self.temporary)(source)
            }
            problem => ImageError::Program {
                what: problem.to_string(),
            },
        }
    }
}

/// Names a program's layer. It has no archive that could be hashed, so its name is the digest of what it is made from; the
/// version stands for what is put beside the program.
fn program_layer(digest: ImageDigest, on_base: bool) -> DiffId {
    let what = if on_base { "on a base" } else { "alone" };
    let text = format!("layer of a program, version 1, {what}, {digest}\n");
    DiffId(ImageDigest::of(text.as_bytes()))
}

/// Says whether a program could run there.
fn check(mut program: &File, base: Option<&UnpackedImage>) -> Result<(), ImageError> {
    let reading = ImageError::io("read", "the program".as_ref());
    let detected = detect(&mut program).map_err(reading)?;
    let refuse = |what| Err(ImageError::Program { what });
    let needed = match &detected {
        Detected::Elf(elf) => {
            if let Some(host) = Machine::host()
                && !host.runs(elf.machine)
            {
                return refuse(format!(
                    "it is {detected}, and this is an {host} machine; build it for {host}"
                ));
            }
            elf.interpreter.as_deref()
        }
        Detected::Script { interpreter } => Some(interpreter.as_str()),
        other => {
            return refuse(format!(
                "it is {other}, which is not an ELF program or a script"
            ));
        }
    };
    match (needed, base) {
        (None, _) => Ok(()),
        (Some(needed), None) => refuse(format!(
            "it needs {}, and would be alone in its image; link it statically, or name a base image that has it",
            needed.escape_debug()
        )),
        (Some(needed), Some(base)) => match base.merged()?.has_file(needed)? {
            true => Ok(()),
            false => refuse(format!(
                "it needs {}, which the base image does not have",
                needed.escape_debug()
            )),
        },
    }
}

fn skeleton(tree: &mut Tree, rules: MetadataRules) -> Result<(), EntryProblem> {
    for (path, mode) in DIRECTORIES {
        let path = components(path);
        if let Some((name, parent)) = path.split_last() {
            let place = tree.reach(parent)?;
            tree.directory(&place, name, rules.ours(mode)?)?;
        }
    }
    for (path, content) in FILES {
        let mut file = create(tree, path)?;
        file.write_all(content.as_bytes())
            .map_err(|source| EntryProblem::System {
                action: "writing a file of the image",
                source,
            })?;
        set(&OwnedFd::from(file), &rules.ours(0o644)?)
            .map_err(crate::tree::failed("setting a file's mode"))?;
    }
    Ok(())
}

fn components(path: &str) -> Vec<Vec<u8>> {
    path.split('/')
        .filter(|name| !name.is_empty())
        .map(|name| name.as_bytes().to_vec())
        .collect()
}

fn create(tree: &mut Tree, path: &str) -> Result<File, EntryProblem> {
    let path = components(path);
    let (parent, name) = match path.split_last() {
        Some((name, parent)) => (tree.reach(parent)?, name),
        None => (tree.reach(&[])?, &path[0]),
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(
        parent.fd().as_fd(),
        name.as_slice(),
        flags,
        Mode::RUSR | Mode::WUSR,
    )
    .map(File::from)
    .map_err(crate::tree::failed("making a file of the image"))
}

/// Copies the program and compares its digest. Answers with its size in bytes.
fn copy(
    mut program: &File,
    target: &mut File,
    wanted: ImageDigest,
    watch: Watch<'_>,
) -> Result<u64, ImageError> {
    let io = ImageError::io("copy", "the program".as_ref());
    program.rewind().map_err(&io)?;
    let mut source = Hashing::new(program);
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        watch.check()?;
        let read = source.read(&mut buffer).map_err(&io)?;
        if read == 0 {
            break;
        }
        target.write_all(&buffer[..read]).map_err(&io)?;
    }
    match source.digest() {
        Some(found) if found != wanted => Err(ImageError::DigestMismatch {
            what: "the program",
            wanted,
            found,
        }),
        _ => Ok(source.count()),
    }
}
