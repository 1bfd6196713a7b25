//! Several layers seen as one tree, without mounting them.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags, Stat};

use crate::config::forbidden;
use crate::overlay::{OverlayForm, open_directory};
use crate::store::Layer;
use crate::tree::open_root;
use crate::user::{self, ResolvedUser, UserProblem, Whom};
use crate::{ConfigProblem, ImageError};

/// Most links that one path may lead through (`MAXSYMLINKS` of Linux, path_resolution(7)).
const LINKS: usize = 40;
/// Most components of one path, those of links included.
const COMPONENTS: usize = 4_096;
/// Largest `/etc/passwd` or `/etc/group` that is read, in bytes: some 50,000 users.
const USERS_BYTES: u64 = 4 * 1024 * 1024;

/// The tree that a container sees, as overlayfs would show it. Links are followed within it, with its root for `/`.
#[derive(Debug)]
pub struct MergedLayers {
    /// The highest first.
    layers: Vec<View>,
}

#[derive(Debug)]
struct View {
    root: OwnedFd,
    path: PathBuf,
    form: OverlayForm,
    opaque_root: bool,
}

/// What lies at a path.
#[derive(Debug)]
enum Found {
    /// Open for reading.
    Directory(OwnedFd),
    Link(Vec<u8>),
    /// Open for reading, too.
    File(File),
    /// Something that has no content to read.
    Other,
}

/// Where a path leads.
struct Resolved {
    /// Without links.
    path: Vec<Vec<u8>>,
    /// What the last component names; `None` if there is nothing, or if it is `..` or a link to `/`.
    found: Option<Found>,
}

/// What one layer says about a path.
struct Said {
    found: Option<Found>,
    /// Whether lower layers have no say.
    hides: bool,
}

impl MergedLayers {
    /// Opens layers, given from the lowest to the highest.
    ///
    /// # Errors
    /// [`ImageError::Io`] if a layer's directory cannot be opened.
    pub fn open<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> Result<Self, ImageError> {
        let open = |layer: &Layer| {
            Ok(View {
                root: open_root(layer.directory())
                    .map_err(ImageError::io("open", layer.directory()))?,
                path: layer.directory().to_owned(),
                form: layer.form(),
                opaque_root: layer.hides_all_below(),
            })
        };
        let mut layers: Vec<View> = layers
            .into_iter()
            .map(open)
            .collect::<Result<_, ImageError>>()?;
        layers.reverse();
        Ok(Self { layers })
    }

    /// Resolves the user that an image names, in the image's own `/etc/passwd` and `/etc/group`: `name`, `uid`, `name:group`,
    /// `uid:gid`, nothing for root. A number need not be listed.
    ///
    /// # Errors
    /// [`ImageError::User`] if a name is not listed, a number is too large or a file is; [`ImageError::Io`] if a file cannot be
    /// read.
    pub fn user(&self, text: &str) -> Result<ResolvedUser, ImageError> {
        let passwd = self.list(Whom::User)?;
        let group = self.list(Whom::Group)?;
        Ok(user::resolve(text, &passwd, &group)?)
    }

    /// Follows the links of a working directory, and answers with where it leads; it need not be there. Beside the text, which
    /// [`crate::ImageConfig`] has checked, this finds links into `/proc` and `/sys`.
    ///
    /// # Errors
    /// [`ImageError::Config`] if it leads there, or through more links than Linux follows; [`ImageError::Io`] if a layer cannot
    /// be read.
    pub fn working_directory(&self, text: &str) -> Result<PathBuf, ImageError> {
        let refuse = |forbidden| {
            ImageError::Config(ConfigProblem::WorkingDirectory {
                found: text.to_owned(),
                forbidden,
            })
        };
        let Some(Resolved { path: resolved, .. }) = self.resolve(text.as_bytes())? else {
            return Err(refuse("a circle of links"));
        };
        let first = resolved
            .first()
            .and_then(|first| str::from_utf8(first).ok());
        match forbidden(first) {
            Some(forbidden) => Err(refuse(forbidden)),
            None => {
                let joined = [b"/".as_slice(), &resolved.join(&b'/')].concat();
                Ok(PathBuf::from(OsString::from_vec(joined)))
            }
        }
    }

    /// Whether there is a file at a path.
    ///
    /// # Errors
    /// [`ImageError::Io`] if a layer cannot be read.
    pub fn has_file(&self, path: &str) -> Result<bool, ImageError> {
        let resolved = self.resolve(path.as_bytes())?;
        Ok(resolved.is_some_and(|resolved| matches!(resolved.found, Some(Found::File(_)))))
    }

    /// What the highest layer that describes a directory says of it, and whether a higher one has it without describing it.
    /// `None` if no layer describes it.
    pub(crate) fn description(&self, path: &[Vec<u8>]) -> Result<Option<(Stat, bool)>, ImageError> {
        let mut implied_above = false;
        for layer in &self.layers {
            let looking = ImageError::io("look into the layer", &layer.path);
            let said = layer.look(path).map_err(&looking)?;
            match said.found {
                Some(Found::Directory(directory)) => {
                    let describes = layer.form.is_implied(&directory).map(|implied| !implied);
                    if describes.map_err(Into::into).map_err(&looking)? {
                        let stat = rustix::fs::fstat(&directory).map_err(Into::into);
                        return Ok(Some((stat.map_err(looking)?, implied_above)));
                    }
                    implied_above = true;
                }
                Some(_) => return Ok(None),
                None => {}
            }
            if said.hides {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Reads a list of users or groups; an image without one has none.
    fn list(&self, whom: Whom) -> Result<Vec<u8>, ImageError> {
        let Some(Resolved {
            found: Some(Found::File(file)),
            ..
        }) = self.resolve(whom.file().as_bytes())?
        else {
            return Ok(Vec::new());
        };
        let mut bytes = Vec::new();
        file.take(USERS_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(ImageError::io("read from an image", whom.file().as_ref()))?;
        if bytes.len() as u64 > USERS_BYTES {
            return Err(UserProblem::FileTooLarge {
                what: whom,
                limit: USERS_BYTES,
            }
            .into());
        }
        Ok(bytes)
    }

    /// Whether there is a directory at a path, and not a link to one.
    ///
    /// # Errors
    /// [`ImageError::Io`] if a layer cannot be read.
    pub fn has_directory(&self, path: &str) -> Result<bool, ImageError> {
        let parts: Vec<_> = components(path.as_bytes()).into();
        Ok(matches!(self.look(&parts)?, Some(Found::Directory(_))))
    }

    /// Whether a directory is at a path, or could be made there: neither it nor anything above it is something else.
    ///
    /// # Errors
    /// [`ImageError::Io`] if a layer cannot be read.
    pub fn has_room_for_directory(&self, path: &str) -> Result<bool, ImageError> {
        let path = path.trim_end_matches('/');
        let ends = path
            .match_indices('/')
            .map(|(at, _)| at)
            .filter(|at| *at > 0);
        for end in ends.chain([path.len()]) {
            let fits = match self.resolve(&path.as_bytes()[..end])? {
                Some(Resolved { found, .. }) => matches!(found, None | Some(Found::Directory(_))),
                None => false,
            };
            if !fits {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Where a path leads, without links, and what is there. `None` if it leads through too many.
    fn resolve(&self, path: &[u8]) -> Result<Option<Resolved>, ImageError> {
        let mut ahead: VecDeque<Vec<u8>> = components(path);
        let mut resolved: Vec<Vec<u8>> = Vec::new();
        let mut found = None;
        let mut links = 0;
        let mut steps = 0;
        while let Some(component) = ahead.pop_front() {
            steps += 1;
            if steps > COMPONENTS {
                return Ok(None);
            }
            if component == b".." {
                resolved.pop();
                found = None;
                continue;
            }
            resolved.push(component);
            found = self.look(&resolved)?;
            if let Some(Found::Link(target)) = &found {
                links += 1;
                if links > LINKS {
                    return Ok(None);
                }
                resolved.pop();
                if target.starts_with(b"/") {
                    resolved.clear();
                }
                for component in components(target).into_iter().rev() {
                    ahead.push_front(component);
                }
                found = None;
            }
        }
        Ok(Some(Resolved {
            path: resolved,
            found,
        }))
    }

    /// What is at a path without links, in the highest layer that has a say.
    fn look(&self, path: &[Vec<u8>]) -> Result<Option<Found>, ImageError> {
        for layer in &self.layers {
            let said = layer
                .look(path)
                .map_err(ImageError::io("look into the layer", &layer.path))?;
            if said.found.is_some() || said.hides {
                return Ok(said.found);
            }
        }
        Ok(None)
    }
}

/// The components of a path, `..` among them.
fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|component| !matches!(*component, b"" | b"."))
        .map(<[u8]>::to_vec)
        .collect()
}

impl View {
    fn look(&self, path: &[Vec<u8>]) -> io::Result<Said> {
        let mut said = Said {
            found: None,
            hides: self.opaque_root,
        };
        let mut directory = open_directory(&self.root, b".")?;
        for (index, name) in path.iter().enumerate() {
            let Some(stat) = crate::tree::stat(directory.as_fd(), name)? else {
                return Ok(said);
            };
            let is_last = index + 1 == path.len();
            match FileType::from_raw_mode(stat.st_mode) {
                _ if self.form.is_whiteout(&directory, name, &stat)? => {
                    return Ok(Said {
                        found: None,
                        hides: true,
                    });
                }
                FileType::Directory => {
                    directory = open_directory(&directory, name)?;
                    said.hides |= self.form.is_opaque(&directory)?;
                }
                // A file where a higher layer has a directory, of which it is no part.
                _ if !is_last => {
                    return Ok(Said {
                        found: None,
                        hides: true,
                    });
                }
                kind => {
                    said.found = Some(open(&directory, name, kind)?);
                    return Ok(said);
                }
            }
        }
        said.found = Some(Found::Directory(directory));
        Ok(said)
    }
}

fn open(directory: &OwnedFd, name: &[u8], kind: FileType) -> io::Result<Found> {
    Ok(match kind {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(directory, name, Vec::new())?;
            Found::Link(target.into_bytes())
        }
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
            Found::File(File::from(file))
        }
        _ => Found::Other,
    })
}
