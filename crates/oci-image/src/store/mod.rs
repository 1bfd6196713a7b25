//! Layers on disk, each once.
//!
//! ```text
//! <root>/lock                      held by the one process that has the store open
//! <root>/layers/<hex>[-variant]/   a whole layer: `root`, the tree, and `layer.json`, what is known of it
//! <root>/temporary/<name>/         a layer in the making, or one that is being removed
//! ```
//!
//! A layer is unpacked under a temporary name, synced, and renamed: what is under `layers` is whole, whatever was killed when.
//! The variant tells how it was unpacked, where that is not the ordinary way, so that a change of options never meets a layer
//! of the old ones.

mod claims;
mod image;
mod making;
mod program;
mod restored;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use runtara_domain::ImageDigest;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::metadata::MetadataRules;
use crate::overlay::OverlayForm;
use crate::unpack::Contents;
use crate::{DiffId, ImageError, OverlayAttributes, Ownership, Whiteouts};
use claims::{Claims, Pin};
pub use image::UnpackedImage;
pub use program::PROGRAM_PATH;

/// Largest record of a layer, in bytes; ours have some hundreds.
const RECORD_BYTES: u64 = 64 * 1024;

/// How layers are unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreOptions {
    /// Who owns the files.
    pub ownership: Ownership,
    /// Whether setuid and setgid bits are kept. Without them no program in a container runs as another user than it was
    /// started as.
    pub keep_setuid: bool,
    /// How removed files are recorded; `None` finds out what this process can write and prefers what most kernels
    /// understand.
    pub form: Option<OverlayForm>,
}

impl Default for StoreOptions {
    /// Owners as [`Ownership::of_this_process`] says, no setuid.
    fn default() -> Self {
        Self {
            ownership: Ownership::of_this_process(),
            keep_setuid: false,
            form: None,
        }
    }
}

/// Keeps unpacked layers, each once, shared by all images that have it.
///
/// One process may have a store open at a time; its threads may use it at once. All methods block.
#[derive(Debug)]
pub struct LayerStore {
    layers: PathBuf,
    temporary: PathBuf,
    form: OverlayForm,
    rules: MetadataRules,
    variant: String,
    claims: Arc<Claims>,
    /// Locked for as long as the store is open.
    _lock: File,
}

/// A layer of a store. While it lives, [`LayerStore::sweep`] leaves the layer where it is.
#[derive(Debug, Clone)]
pub struct Layer {
    diff_id: DiffId,
    directory: PathBuf,
    form: OverlayForm,
    record: Record,
    _pin: Arc<Pin>,
}

impl Layer {
    /// The digest of its content.
    #[must_use]
    pub fn diff_id(&self) -> DiffId {
        self.diff_id
    }

    /// The tree, to be mounted as a lower layer of overlayfs. Never change it: other images share it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How it records what it removes.
    #[must_use]
    pub fn form(&self) -> OverlayForm {
        self.form
    }

    /// What it counts against [`crate::Limits::image_bytes`].
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.record.bytes
    }

    /// How many entries its archive has.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.record.entries
    }

    /// How many devices, fifos and the like were left out.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.record.skipped
    }

    /// Whether its root is opaque. Overlayfs does not look at the mark there, so that layers below must not be mounted:
    /// [`UnpackedImage::lower_directories`] leaves them out.
    #[must_use]
    pub fn hides_all_below(&self) -> bool {
        self.record.opaque_root
    }
}

/// What is written beside a layer's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    version: u32,
    bytes: u64,
    entries: u64,
    skipped: u64,
    implied: u64,
    opaque_root: bool,
}

impl From<Contents> for Record {
    fn from(contents: Contents) -> Self {
        Self {
            version: 1,
            bytes: contents.bytes,
            entries: contents.entries,
            skipped: contents.skipped,
            implied: contents.implied,
            opaque_root: contents.opaque_root,
        }
    }
}

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// The layers that went.
    pub removed: Vec<DiffId>,
    /// Layers that no caller named, and that stay because a [`Layer`] of them lives.
    pub in_use: Vec<DiffId>,
}

impl LayerStore {
    /// Opens the store in a directory, which is made if it is not there, and removes what unfinished work left.
    ///
    /// # Errors
    /// [`ImageError::InUse`] if another process, or this one, has it open; [`ImageError::WhiteoutsUnsupported`] if the file system
    /// cannot record removed files; [`ImageError::Io`] if it cannot be made or read.
    pub fn open(root: &Path, options: &StoreOptions) -> Result<Self, ImageError> {
        let layers = root.join("layers");
        let temporary = root.join("temporary");
        for directory in [root, &layers, &temporary] {
            make_private(directory).map_err(ImageError::io("make", directory))?;
        }
        let lock = lock(root)?;
        clear(&temporary)?;
        let form = match options.form {
            Some(form) => form,
            None => OverlayForm::probe(&temporary)?,
        };
        Ok(Self {
            layers,
            temporary,
            form,
            rules: MetadataRules {
                ownership: options.ownership,
                keep_setuid: options.keep_setuid,
            },
            variant: variant(options, form),
            claims: Arc::default(),
            _lock: lock,
        })
    }

    /// How this store's layers record removed files: with [`OverlayAttributes::User`] they must be mounted with `userxattr`.
    #[must_use]
    pub fn form(&self) -> OverlayForm {
        self.form
    }

    /// A directory on the same file system for temporary files, cleared when the store is opened.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        &self.temporary
    }

    /// The layer of a digest, if it is here.
    ///
    /// # Errors
    /// [`ImageError::Io`] if that cannot be told.
    pub fn layer(&self, diff_id: DiffId) -> Result<Option<Layer>, ImageError> {
        let key = self.key(diff_id);
        // Before looking, so that a sweep cannot come in between.
        let pin = Claims::pin(&self.claims, &key);
        let directory = self.layers.join(&key);
        Ok(read_record(&directory)?.map(|record| Layer {
            diff_id,
            directory: directory.join("root"),
            form: self.form,
            record,
            _pin: Arc::new(pin),
        }))
    }

    /// Removes the layers that are not needed, and says which. A layer stays in all variants while it is needed, and while
    /// a [`Layer`] of it lives: ask which are needed after the last image was registered, and before calling this.
    ///
    /// A layer that goes is renamed first, so that nobody who begins to need it meanwhile meets half of it; several may sweep at once. It
    /// takes as long as the file system needs to remove what may be many files.
    ///
    /// A container that still runs needs its layers, though nothing here knows of it.
    ///
    /// # Errors
    /// [`ImageError::Io`] if the store cannot be read or a layer cannot be removed.
    pub fn sweep(&self, needed: &BTreeSet<DiffId>) -> Result<Swept, ImageError> {
        let mut swept = Swept::default();
        let reading = ImageError::io("list the layers in", &self.layers);
        for entry in fs::read_dir(&self.layers).map_err(&reading)? {
            let name = entry.map_err(&reading)?.file_name();
            let Some((key, diff_id)) = name.to_str().and_then(|key| Some((key, digest_of(key)?)))
            else {
                continue;
            };
            if needed.contains(&diff_id) {
                continue;
            }
            let path = self.layers.join(key);
            let removed = self.temporary.join(making::temporary_name());
            let renamed = self
                .claims
                .unless_claimed(key, || fs::rename(&path, &removed));
            match renamed {
                None => swept.in_use.push(diff_id),
                // Another sweep was quicker.
                Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Some(renamed) => {
                    renamed.map_err(ImageError::io("remove", &path))?;
                    remove(&removed)?;
                    swept.removed.push(diff_id);
                }
            }
        }
        if !swept.removed.is_empty() {
            tracing::info!(
                removed = swept.removed.len(),
                "removed layers that no image needs"
            );
        }
        Ok(swept)
    }

    fn key(&self, diff_id: DiffId) -> String {
        format!("{}{}", diff_id.0, self.variant)
    }
}

/// How layers are unpacked, in the name of their directory; nothing for the ordinary way.
fn variant(options: &StoreOptions, form: OverlayForm) -> String {
    let mut variant = String::new();
    match options.ownership {
        Ownership::Kept => {}
        Ownership::Shifted { by, count } => variant += &format!("-shifted-{by}-{count}"),
        Ownership::Discarded => variant += "-discarded",
    }
    if options.keep_setuid {
        variant += "-setuid";
    }
    if form.attributes == OverlayAttributes::User {
        variant += "-user";
    }
    if form.whiteouts == Whiteouts::Attribute {
        variant += "-files";
    }
    variant
}

fn digest_of(key: &str) -> Option<DiffId> {
    let hex = key.split('-').next()?;
    ImageDigest::from_hex(hex).ok().map(DiffId)
}

/// Makes a directory for this user alone: layers have files of all users in them, some of which may be too open.
fn make_private(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

fn lock(root: &Path) -> Result<File, ImageError> {
    let path = root.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(ImageError::io("open", &path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ImageError::InUse {
            path: root.to_owned(),
        }),
        Err(error) => Err(ImageError::io("lock", &path)(error.into())),
    }
}

/// Removes what unfinished work left.
fn clear(temporary: &Path) -> Result<(), ImageError> {
    let reading = ImageError::io("list", temporary);
    let mut removed = 0;
    for entry in fs::read_dir(temporary).map_err(&reading)? {
        remove(&entry.map_err(&reading)?.path())?;
        removed += 1;
    }
    if removed > 0 {
        tracing::info!(removed, "removed what unfinished unpacking left");
    }
    Ok(())
}

/// Removes a tree of ours, or a file.
fn remove(path: &Path) -> Result<(), ImageError> {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    match is_directory {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
    .map_err(ImageError::io("remove", path))
}

/// What is known of a layer; `None` if it is not here.
fn read_record(directory: &Path) -> Result<Option<Record>, ImageError> {
    let path = directory.join("layer.json");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ImageError::io("open", &path)(error)),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, RECORD_BYTES), &mut bytes)
        .map_err(ImageError::io("read", &path))?;
    match serde_json::from_slice::<Record>(&bytes) {
        Ok(record) if record.version == 1 => Ok(Some(record)),
        // Of a newer version, or damaged: not to be trusted, and made anew by whoever needs it.
        _ => Ok(None),
    }
}
