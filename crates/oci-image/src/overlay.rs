//! How overlayfs is told what a layer removes (kernel documentation, filesystems/overlayfs.rst, "whiteouts and opaque
//! directories").

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use crate::ImageError;

/// The prefix of the extended attributes that overlayfs looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayAttributes {
    /// `trusted.overlay.`, which needs CAP_SYS_ADMIN in the first user namespace to write, and which no program in a container
    /// can.
    Trusted,
    /// `user.overlay.`: the mount option `userxattr` must be given.
    User,
}

/// How a removed file is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// A character device 0/0. Anybody may make one since Linux 5.8, unless a filter of system calls forbids it.
    Device,
    /// An empty file with the attribute `overlay.whiteout`, in a directory whose `overlay.opaque` is `x`. Mounting such
    /// layers needs Linux 6.7.
    Attribute,
}

/// The form of a store's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverlayForm {
    /// Which attributes.
    pub attributes: OverlayAttributes,
    /// Which whiteouts.
    pub whiteouts: Whiteouts,
}

/// What an opaque directory's attribute says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opaque {
    /// It hides what lower layers have in it.
    Yes,
    /// It has whiteouts in the form of files.
    HasWhiteouts,
}

impl OverlayForm {
    /// Finds out what this process can write in a directory.
    pub(crate) fn probe(directory: &Path) -> Result<Self, ImageError> {
        let io = ImageError::io("try extended attributes and devices in", directory);
        let open = File::open(directory).map_err(&io)?;
        let probe = format!("probe-{}", uuid::Uuid::new_v4().simple());
        let attributes = rustix::fs::mkdirat(&open, &probe, Mode::RWXU)
            .and_then(|()| open_directory(&open, probe.as_bytes()))
            .map_err(io::Error::from)
            .map_err(&io)
            .map(|directory| probe_attributes(&directory));
        let removed = rustix::fs::unlinkat(&open, &probe, AtFlags::REMOVEDIR);
        removed.map_err(io::Error::from).map_err(&io)?;
        let attributes = attributes?;

        let device = make_device(&open, probe.as_bytes());
        let whiteouts = match device {
            Ok(()) => {
                rustix::fs::unlinkat(&open, &probe, AtFlags::empty())
                    .map_err(io::Error::from)
                    .map_err(&io)?;
                Some(Whiteouts::Device)
            }
            Err(_) => attributes.map(|_| Whiteouts::Attribute),
        };
        match (attributes, whiteouts) {
            (Some(attributes), Some(whiteouts)) => Ok(Self {
                attributes,
                whiteouts,
            }),
            _ => Err(ImageError::WhiteoutsUnsupported {
                path: directory.to_owned(),
            }),
        }
    }

    fn name(self, what: &str) -> String {
        match self.attributes {
            OverlayAttributes::Trusted => format!("trusted.overlay.{what}"),
            OverlayAttributes::User => format!("user.overlay.{what}"),
        }
    }

    /// Marks a directory. One that hides everything needs no mark for its whiteouts.
    pub(crate) fn set_opaque(self, directory: impl AsFd, opaque: Opaque) -> Result<(), Errno> {
        if opaque == Opaque::HasWhiteouts && self.is_opaque(&directory)? {
            return Ok(());
        }
        let value: &[u8] = match opaque {
            Opaque::Yes => b"y",
            Opaque::HasWhiteouts => b"x",
        };
        rustix::fs::fsetxattr(directory, self.name("opaque"), value, XattrFlags::empty())
    }

    /// Whether a directory hides what lower layers have in it.
    pub(crate) fn is_opaque(self, directory: impl AsFd) -> Result<bool, Errno> {
        let mut value = [0; 2];
        match rustix::fs::fgetxattr(directory, self.name("opaque"), &mut value) {
            Ok(length) => Ok(&value[..length] == b"y"),
            Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Marks a directory that no entry of its layer describes, so that what lower layers say of it can be told.
    pub(crate) fn set_implied(self, directory: impl AsFd) -> Result<(), Errno> {
        rustix::fs::fsetxattr(directory, self.implied(), b"y", XattrFlags::empty())
    }

    /// Whether no entry of its layer describes a directory.
    pub(crate) fn is_implied(self, directory: impl AsFd) -> Result<bool, Errno> {
        match rustix::fs::fgetxattr(directory, self.implied(), &mut [0; 1]) {
            Ok(_) => Ok(true),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn implied(self) -> &'static str {
        match self.attributes {
            OverlayAttributes::Trusted => "trusted.runtara.implied",
            OverlayAttributes::User => "user.runtara.implied",
        }
    }

    /// Makes a whiteout where there is nothing.
    pub(crate) fn make_whiteout(self, directory: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        match self.whiteouts {
            Whiteouts::Device => make_device(directory, name),
            Whiteouts::Attribute => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                let file = rustix::fs::openat(&directory, name, flags, mode)?;
                rustix::fs::fsetxattr(file, self.name("whiteout"), b"y", XattrFlags::empty())?;
                let readable = open_directory(directory, b".")?;
                self.set_opaque(readable, Opaque::HasWhiteouts)
            }
        }
    }

    /// Whether what lies under a name is a whiteout.
    pub(crate) fn is_whiteout(
        self,
        directory: impl AsFd,
        name: &[u8],
        stat: &Stat,
    ) -> Result<bool, Errno> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        match self.whiteouts {
            Whiteouts::Device => Ok(kind == FileType::CharacterDevice && stat.st_rdev == 0),
            Whiteouts::Attribute if kind == FileType::RegularFile && stat.st_size == 0 => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
                    Ok(file) => file,
                    // Whiteouts can be read by their owner.
                    Err(Errno::ACCESS) => return Ok(false),
                    Err(error) => return Err(error),
                };
                let found = rustix::fs::fgetxattr(file, self.name("whiteout"), &mut [0; 1]);
                Ok(matches!(found, Ok(_) | Err(Errno::RANGE)))
            }
            Whiteouts::Attribute => Ok(false),
        }
    }
}

fn probe_attributes(directory: &impl AsFd) -> Option<OverlayAttributes> {
    [OverlayAttributes::Trusted, OverlayAttributes::User]
        .into_iter()
        .find(|attributes| {
            let form = OverlayForm {
                attributes: *attributes,
                whiteouts: Whiteouts::Device,
            };
            form.set_opaque(directory, Opaque::Yes).is_ok()
        })
}

fn make_device(directory: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::mknodat(
        directory,
        name,
        FileType::CharacterDevice,
        Mode::empty(),
        rustix::fs::makedev(0, 0),
    )
}

/// Opens a directory for reading it and its attributes; `name` is one component.
pub(crate) fn open_directory(
    parent: impl AsFd,
    name: &[u8],
) -> Result<std::os::fd::OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}
