//! The device `/dev/net/tun`, for a helper that is nobody on the host.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, chmodat, makedev, mknodat, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, mount_bind,
};

const DEVICE: &str = "/dev/net/tun";
/// Its numbers (`Documentation/networking/tuntap.rst` of the kernel).
const NUMBERS: (u32, u32) = (10, 200);
/// Reading and writing for all.
const FOR_ALL: u32 = 0o666;

/// Puts a device that all may open over one that only root may, in mounts of this process's own. udev lets all open it, as the device gives
/// nobody a right that they have not; a machine without udev does not.
pub(super) fn let_helper_open_it(staging: &Path) -> io::Result<()> {
    let metadata = fs::metadata(DEVICE)?;
    if !metadata.file_type().is_char_device() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if metadata.permissions().mode() & 0o006 == 0o006 {
        return Ok(());
    }
    let place = staging.join("device");
    DirBuilder::new().mode(0o755).create(&place)?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "size", "4096")?;
    fsconfig_set_string(context.as_fd(), "mode", "0755")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, &place, flags, Mode::empty())?;
    crate::rootfs::attach(&mount, &directory)?;
    let (mode, numbers) = (Mode::from_raw_mode(FOR_ALL), makedev(NUMBERS.0, NUMBERS.1));
    mknodat(&mount, "tun", FileType::CharacterDevice, mode, numbers)?;
    // Whatever the mask of this process takes away.
    chmodat(&mount, "tun", mode, AtFlags::empty())?;
    mount_bind(place.join("tun"), DEVICE)?;
    Ok(())
}
