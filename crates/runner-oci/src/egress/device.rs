//! The device `/dev/net/tun`, for a helper that is nobody on the host.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, chmodat, makedev, mknodat};
use rustix::mount::{MountAttrFlags, mount_bind};

use crate::rootfs::{MemoryOptions, mount_in_memory};

const DEVICE: &str = "/dev/net/tun";
/// A device takes no more than its name.
const DEVICE_BYTES: u64 = 4096;
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
    let options = MemoryOptions {
        bytes: DEVICE_BYTES,
        ..MemoryOptions::default()
    };
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = mount_in_memory(&place, &options, attributes)?;
    let (mode, numbers) = (Mode::from_raw_mode(FOR_ALL), makedev(NUMBERS.0, NUMBERS.1));
    mknodat(&mount, "tun", FileType::CharacterDevice, mode, numbers)?;
    // Whatever the mask of this process takes away.
    chmodat(&mount, "tun", mode, AtFlags::empty())?;
    mount_bind(place.join("tun"), DEVICE)?;
    Ok(())
}
