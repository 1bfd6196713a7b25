//! What is kept, and for how long.

use std::fmt::Display;
use std::str::FromStr;

use runtara_domain::{Keep, limits};
use runtara_scheduler::UpkeepConfig;

use super::reader::Reader;

/// Reads what the variables say about what is kept.
pub(super) fn read(reader: &mut Reader<'_>) -> UpkeepConfig {
    let default = UpkeepConfig::default();
    UpkeepConfig {
        retention: setting(reader, "RUNTARA_RETENTION", default.retention),
        logs_max_age: setting(reader, "RUNTARA_LOGS_MAX_AGE", default.logs_max_age),
        logs_max_bytes: logs_max_bytes(reader).or(default.logs_max_bytes),
        images_unused: images_unused(reader).unwrap_or(default.images_unused),
    }
}

/// A setting that says itself what is wrong with it.
fn setting<T>(reader: &mut Reader<'_>, name: &'static str, default: T) -> T
where
    T: FromStr<Err: Display>,
{
    let Some(text) = reader.text(name) else {
        return default;
    };
    text.trim().parse().unwrap_or_else(|error: T::Err| {
        reader.problem(name, error.to_string());
        default
    })
}

fn logs_max_bytes(reader: &mut Reader<'_>) -> Option<u64> {
    let name = "RUNTARA_LOGS_MAX_BYTES";
    reader.text(name)?;
    Some(reader.number(name, 0, 1 << 20, 1 << 60))
}

fn images_unused(reader: &mut Reader<'_>) -> Option<Keep> {
    let name = "RUNTARA_IMAGES_UNUSED";
    reader.text(name)?;
    let found = setting(reader, name, Keep::Forever);
    if found < Keep::For(3_600_000) {
        // Between an upload and the first start of an image a person may think for a while.
        reader.problem(
            name,
            format!("found {found}; at least 1h, or forever, is wanted"),
        );
    }
    Some(found)
}

/// How many events of an instance are kept.
pub(super) fn max_events(reader: &mut Reader<'_>) -> Option<u32> {
    let name = "RUNTARA_MAX_EVENTS";
    reader.text(name)?;
    let least = u64::from(limits::MAX_EVENTS_LEAST);
    let found = reader.number(name, least, least, i32::MAX as u64);
    u32::try_from(found).ok()
}
