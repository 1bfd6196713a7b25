//! The overlay: layers below, what the container changes above.

use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

use super::staging::Staging;
use super::{CONFINED, MountError};
use crate::kernel;

/// What the files of a layer say about the overlay itself is not heeded: an image could name directories of another layer as its own.
const DISTRUST: [(&str, &str); 3] = [
    ("redirect_dir", "nofollow"),
    ("metacopy", "off"),
    ("index", "off"),
];
/// Options of mount(2) fit into a page, with the byte that ends them.
const OPTION_BYTES: usize = 4095;

/// Since when overlayfs knows the interface of file system contexts. It says so of single layers since 6.7 only, see
/// [`Stage::may_be_of_older_kernel`].
const OPTIONS_SINCE: kernel::Release = (6, 5);

/// The mounted overlay.
pub(super) struct Overlay {
    /// Its root.
    pub(super) directory: OwnedFd,
    attached: bool,
}

impl Overlay {
    /// Puts it to where the container's root is.
    pub(super) fn attach(&self, staging: &Staging) -> Result<(), MountError> {
        if self.attached {
            return Ok(());
        }
        let place = staging.root();
        place
            .and_then(|place| super::attach(&self.directory, &place))
            .map_err(MountError::at("attaching the overlay"))
    }
}

/// Mounts the overlay over layers, the lowest first.
pub(super) fn mount(layers: &[OwnedFd], staging: &Staging) -> Result<Overlay, MountError> {
    let parts = Parts {
        layers,
        upper: staging
            .upper()
            .map_err(MountError::at("opening the upper directory"))?,
        work: staging
            .work()
            .map_err(MountError::at("opening the work directory"))?,
    };
    // Asked although it cannot know them, the kernel would write a line into its log for each container.
    if kernel::is_older_than(OPTIONS_SINCE) {
        return parts.mount_by_string(staging);
    }
    match parts.mount_by_options() {
        Err((errno, stage)) if stage.may_be_of_older_kernel(errno) => {
            parts.mount_by_string(staging)
        }
        Err((errno, stage)) => Err(MountError {
            step: format!("mounting the overlay of {} layers, {stage}", layers.len()),
            source: errno.into(),
        }),
        Ok(directory) => Ok(Overlay {
            directory,
            attached: false,
        }),
    }
}

/// How far mounting had come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Opening,
    FirstLayer,
    Option(String),
    /// With what the kernel said about it.
    Creating(String),
}

impl Stage {
    /// Whether it may be that the kernel does not know single layers, which it does since 6.7. Those of 6.5 and 6.6 refuse the option. Older
    /// ones take whatever they are told, refuse all of it together when the overlay is to be made, and have no words for it. Those that say
    /// who they are were not asked.
    fn may_be_of_older_kernel(&self, errno: Errno) -> bool {
        let refused = match self {
            Self::FirstLayer => true,
            Self::Creating(words) => words.is_empty(),
            Self::Opening | Self::Option(_) => false,
        };
        refused && errno == Errno::INVAL
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Opening => f.write_str("for which the kernel needs overlayfs"),
            Self::FirstLayer => f.write_str("at the first layer"),
            Self::Option(option) => write!(f, "at its option {option}"),
            Self::Creating(words) => write!(f, "of which the kernel says '{words}'"),
        }
    }
}

struct Parts<'a> {
    layers: &'a [OwnedFd],
    upper: OwnedFd,
    work: OwnedFd,
}

impl Parts<'_> {
    /// Mounts it by the interface of file system contexts (Linux 5.2), without attaching it.
    fn mount_by_options(&self) -> Result<OwnedFd, (Errno, Stage)> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| (errno, Stage::Opening))?;
        let set = |name: &str, value: &str, stage: Stage| {
            fsconfig_set_string(context.as_fd(), name, value).map_err(|errno| (errno, stage))
        };
        // The kernel reads them from the top.
        for (index, layer) in self.layers.iter().rev().enumerate() {
            let stage = match index {
                0 => Stage::FirstLayer,
                _ => Stage::Option("lowerdir+".to_owned()),
            };
            set("lowerdir+", &path(layer), stage)?;
        }
        let own = [
            ("upperdir", path(&self.upper)),
            ("workdir", path(&self.work)),
        ];
        let own = own.iter().map(|(name, value)| (*name, value.as_str()));
        for (name, value) in own.chain(DISTRUST).chain([("source", "overlay")]) {
            set(name, value, Stage::Option(name.to_owned()))?;
        }
        let created = fsconfig_create(context.as_fd())
            .and_then(|()| fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, CONFINED));
        created.map_err(|errno| (errno, Stage::Creating(words(&context))))
    }

    /// Mounts it by mount(2), at its place.
    fn mount_by_string(&self, staging: &Staging) -> Result<Overlay, MountError> {
        let options = self.options();
        let step = format!("mounting the overlay of {} layers", self.layers.len());
        if options.len() > OPTION_BYTES {
            return Err(MountError::at(format!(
                "{step}, which are too many for a kernel before 6.7"
            ))(Errno::TOOBIG));
        }
        let mount = || -> rustix::io::Result<OwnedFd> {
            let options = CString::new(options).map_err(|_| Errno::INVAL)?;
            let place = staging.root()?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            let options = options.as_c_str();
            rustix::mount::mount("overlay", path(&place), "overlay", flags, options)?;
            // Opened again, the place is what was mounted there.
            staging.root()
        };
        Ok(Overlay {
            directory: mount().map_err(MountError::at(step))?,
            attached: true,
        })
    }

    fn options(&self) -> String {
        let layers: Vec<_> = self.layers.iter().rev().map(path).collect();
        let mut options = format!(
            "lowerdir={},upperdir={},workdir={}",
            layers.join(":"),
            path(&self.upper),
            path(&self.work)
        );
        for (name, value) in DISTRUST {
            options.push_str(&format!(",{name}={value}"));
        }
        options
    }
}

/// A path that leads to an open directory, and says nothing of where it is.
fn path(directory: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", directory.as_raw_fd())
}

/// What the kernel has to say about a context, its last words last.
fn words(context: &OwnedFd) -> String {
    let mut words = Vec::new();
    let mut line = [0_u8; 1024];
    // Each read gives a message, and none is left at last (ENODATA).
    while let Ok(length) = rustix::io::read(context, &mut line) {
        let Some(text) = line.get(..length).filter(|text| !text.is_empty()) else {
            break;
        };
        words.push(String::from_utf8_lossy(text).trim().to_owned());
    }
    words.join("; ")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::id_range::{IdRange, USUAL_BASE};
    use crate::rootfs::{
        RootKind, RootfsPlan, TreeSize, UserNamespace, enter_private_mounts, layers,
    };

    /// Mounts many layers by the interface of older kernels, and says what became of it.
    fn mount_old(count: u32) -> Result<String, MountError> {
        enter_private_mounts().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let staging = directory.path().join("staging");
        fs::create_dir(&staging).unwrap();
        let make = |index: u32| {
            let layer = directory.path().join(format!("layer-{index}"));
            fs::create_dir(&layer).unwrap();
            fs::write(layer.join("newest"), index.to_string()).unwrap();
            layer
        };
        let layers: Vec<PathBuf> = (0..count).map(make).collect();
        let ids = IdRange::starting_at(USUAL_BASE).unwrap();
        let owners = UserNamespace::new(ids).unwrap();
        let plan = RootfsPlan {
            staging: &staging,
            layers: &layers,
            root: RootKind::Overlay,
            // Refused as layers of an overlay before.
            shift_owners: (!kernel::is_older_than((5, 19))).then(|| owners.descriptor()),
            ids,
            writable_bytes: 1024 * 1024,
            user: (0, 0),
            wishes: None,
            files: &[],
        };
        let mounted = Staging::mount(&plan, TreeSize::default()).unwrap();
        let layers = layers::attach(&plan, &mounted).unwrap();
        let parts = Parts {
            layers: &layers,
            upper: mounted.upper().unwrap(),
            work: mounted.work().unwrap(),
        };
        let overlay = parts.mount_by_string(&mounted);
        let read = overlay.map(|overlay| {
            overlay.attach(&mounted).unwrap();
            let place = staging.join("root");
            fs::write(place.join("written"), "").unwrap();
            assert!(staging.join("upper/written").exists());
            fs::read_to_string(PathBuf::from(path(&overlay.directory)).join("newest")).unwrap()
        });
        rustix::mount::unmount(&staging, rustix::mount::UnmountFlags::DETACH).unwrap();
        read
    }

    #[test]
    fn an_older_kernel_gets_all_layers_in_one_string() {
        assert_eq!(mount_old(1).unwrap(), "0");
        assert_eq!(mount_old(128).unwrap(), "127");
    }

    #[test]
    fn a_kernel_is_known_as_an_older_one_by_when_it_refuses() {
        let told = |words: &str| Stage::Creating(words.to_owned());
        // 6.5 and 6.6; 5.10 to 6.4.
        for stage in [Stage::FirstLayer, told("")] {
            assert!(stage.may_be_of_older_kernel(Errno::INVAL), "{stage}");
            assert!(!stage.may_be_of_older_kernel(Errno::PERM), "{stage}");
        }
        let other = Stage::Option("upperdir".to_owned());
        for stage in [other, Stage::Opening, told("overlay: upper fs is full")] {
            assert!(!stage.may_be_of_older_kernel(Errno::INVAL), "{stage}");
        }
    }

    #[test]
    fn layers_that_do_not_fit_into_a_string_are_refused() {
        let error = mount_old(300).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("300 layers, which are too many for a kernel"),
            "{error}"
        );
    }
}
