//! What images and starts ask of the box of their programs.

use runtara_domain::{HostRule, ResourceLimits, RunSettings, limits};
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
    allowed_hosts: Option<&[String]>,
    read_only: Option<bool>,
) -> Result<RunSettings, ApiError> {
    Ok(RunSettings {
        limits: limits.map(read_limits).transpose()?.unwrap_or_default(),
        network: network
            .filter(|word| !word.is_empty())
            .map(str::parse)
            .transpose()
            .map_err(|error| invalid(format!("network: {error}")))?,
        allowed_hosts: allowed_hosts.map(read_hosts).transpose()?,
        read_only,
    })
}

fn read_limits(json: &RawValue) -> Result<ResourceLimits, ApiError> {
    let failed = |error: serde_json::Error| invalid(format!("limits: {error}"));
    // Not read as limits at once: those would be taken from an array as well, in the order of their definition.
    let named: Option<Map<String, Value>> = serde_json::from_str(json.get()).map_err(failed)?;
    serde_json::from_value(Value::Object(named.unwrap_or_default())).map_err(failed)
}

fn read_hosts(texts: &[String]) -> Result<Vec<HostRule>, ApiError> {
    let bytes: usize = texts.iter().map(String::len).sum();
    if texts.len() > limits::ALLOWED_HOSTS || bytes > limits::ALLOWED_HOSTS_BYTES {
        return Err(invalid(format!(
            "allowed_hosts has {} entries of {bytes} bytes; at most {} of {} are allowed",
            texts.len(),
            limits::ALLOWED_HOSTS,
            limits::ALLOWED_HOSTS_BYTES
        )));
    }
    let rules = texts.iter().map(|text| text.parse());
    rules
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(format!("allowed_hosts: {error}")))
}

/// Reads the text of a form: a JSON list, or hosts with commas between them.
pub(super) fn split_hosts(text: &str) -> Vec<String> {
    if let Ok(list) = serde_json::from_str(text) {
        return list;
    }
    let words = text.split(',').map(str::trim);
    let words = words.filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// Reads the text of a form.
pub(super) fn read_flag(text: &str) -> Result<bool, ApiError> {
    text.parse()
        .map_err(|_| invalid(format!("read_only is {text:?}; true and false are allowed")))
}
