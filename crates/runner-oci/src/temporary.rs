//! The `/tmp` of a container, mounted by the shim, which can look at it when all processes of the container are gone.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use crate::id_range::IdRange;
use crate::rootfs::{CONFINED, MemoryOptions, mount_in_memory};

const DESTINATION: &str = "/tmp";

/// Where it is, below the staging directory of a container.
pub(crate) fn place(staging: &Path) -> PathBuf {
    staging.join("tmp")
}

/// Mounts it as the configuration says, and has the configuration name what was mounted. One without it is left alone.
pub(crate) fn mount(configuration: &mut Spec, staging: &Path, ids: IdRange) -> io::Result<()> {
    let Some(mut mounts) = configuration.mounts().clone() else {
        return Ok(());
    };
    let is_it = |mount: &&mut Mount| {
        mount.destination() == Path::new(DESTINATION) && mount.typ().as_deref() == Some("tmpfs")
    };
    if let Some(mount) = mounts.iter_mut().find(is_it) {
        let place = place(staging);
        DirBuilder::new().mode(0o755).create(&place)?;
        let options = mount.options().clone().unwrap_or_default();
        let value = |name: &str| options.iter().find_map(|option| option.strip_prefix(name));
        let bytes = value("size=").and_then(|size| size.parse().ok());
        let bytes = bytes.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "its size is not bounded in bytes",
            )
        })?;
        mount_in_memory(
            &place,
            &MemoryOptions {
                bytes,
                mode: value("mode=").unwrap_or("1777"),
                owner: ids.first(),
                ..MemoryOptions::default()
            },
            CONFINED,
        )?;
        // What is left of the options are flags.
        let flags = options.iter().filter(|option| !option.contains('='));
        let flags = flags.cloned().chain(["bind", "private"].map(str::to_owned));
        mount
            .set_typ(Some("bind".to_owned()))
            .set_options(Some(flags.collect()))
            .set_source(Some(place));
    }
    configuration.set_mounts(Some(mounts));
    Ok(())
}
