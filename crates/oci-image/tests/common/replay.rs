//! What the fuzz targets do with their input, and the replay of what they found.

use runtara_oci_image::{Limits, Watch};

use super::{Ground, layout};

/// Small limits, so that a run is short.
fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.layer_bytes = 1 << 20;
    limits.image_bytes = 1 << 20;
    limits.file_bytes = 1 << 20;
    limits.image_entries = 256;
    limits.depth = 16;
    limits
}

/// Unpacks any bytes as a layer upon another, whose files it may try to misuse.
pub fn layer(bytes: &[u8]) {
    let ground = Ground::in_memory();
    let lower = super::tar_writer::archive(&[
        super::tar_writer::directory("d"),
        super::tar_writer::file("d/f", "lower"),
        super::tar_writer::symlink("out", "../../../../sentinel"),
    ]);
    if let Ok(image) = ground.unpack_within(&layout::image(&[&lower, bytes]), &limits()) {
        ground.flatten(&image);
        let merged = image.merged().unwrap();
        let _ = merged.user("root:root");
        let _ = merged.working_directory("/d/out/f");
    }
    ground.assert_untouched();
}

/// Reads any bytes as an archive, and unpacks it if it is one.
pub fn archive(bytes: &[u8]) {
    let ground = Ground::in_memory();
    if let Ok(archive) = ground.open(bytes) {
        let _ = ground.store.unpack(&archive, &limits(), Watch::none());
    }
    ground.assert_untouched();
}
