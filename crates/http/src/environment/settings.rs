//! What images and starts ask of the box of their programs.

use runtara_domain::{ResourceLimits, RunSettings};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::ApiError;

fn invalid(message: String) -> ApiError {
    ApiError::bad_request("INVALID_SETTINGS", message)
}

/// Reads settings as they stand in a request, each of which may be absent.
pub(super) fn settings(
    limits: Option<&RawValue>,
    network: Option<&str>,
    read_only: Option<bool>,
) -> Result<RunSettings, ApiError> {
    Ok(RunSettings {
        limits: limits.map(read_limits).transpose()?.unwrap_or_default(),
        network: network
            .filter(|word| !word.is_empty())
            .map(str::parse)
            .transpose()
            .map_err(|error| invalid(format!("network: {error}")))?,
        read_only,
    })
}

fn read_limits(json: &RawValue) -> Result<ResourceLimits, ApiError> {
    let failed = |error: serde_json::Error| invalid(format!("limits: {error}"));
    // Not read as limits at once: those would be taken from an array as well, in the order of their definition.
    let named: Option<Map<String, Value>> = serde_json::from_str(json.get()).map_err(failed)?;
    serde_json::from_value(Value::Object(named.unwrap_or_default())).map_err(failed)
}

/// Reads the text of a form.
pub(super) fn read_flag(text: &str) -> Result<bool, ApiError> {
    text.parse()
        .map_err(|_| invalid(format!("read_only is {text:?}; true and false are allowed")))
}
