//! Bytes that travel as base64, most of them JSON.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::Error;

/// The bytes of an input, an output, a checkpoint or an event, mostly JSON.
///
/// It serializes as the JSON it holds, or as `{"base64": "…"}` where it holds something else.
///
/// ```
/// use runtara_management_sdk::Payload;
///
/// let payload = Payload::from(br#"{"total": 3}"#.to_vec());
/// assert_eq!(payload.to_value().unwrap()["total"], 3);
/// ```
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Payload(Bytes);

impl Payload {
    /// The bytes themselves.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads the bytes as JSON of type `T`.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] if they are something else.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.0)
            .map_err(|source| Error::decode("a payload", &self.0, source))
    }

    /// The JSON value, or `None` if the bytes are not JSON.
    #[must_use]
    pub fn to_value(&self) -> Option<Value> {
        serde_json::from_slice(&self.0).ok()
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Payload {
    /// Shows only the size: payloads hold what programs were given, secrets among it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.to_value() {
            Some(value) => value.serialize(serializer),
            None => serde_json::json!({ "base64": STANDARD.encode(&self.0) }).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match STANDARD.decode(&text) {
            Ok(bytes) => Ok(Self(bytes.into())),
            Err(error) => Err(D::Error::custom(format!("expected base64: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_base64_and_shows_json() {
        let payload: Payload = serde_json::from_str(r#""eyJhIjoxfQ==""#).unwrap();
        assert_eq!(payload.as_bytes(), br#"{"a":1}"#);
        assert_eq!(serde_json::to_string(&payload).unwrap(), r#"{"a":1}"#);
        assert!(payload.json::<Vec<u8>>().is_err());
    }

    #[test]
    fn bytes_that_are_not_json_show_as_base64() {
        let payload = Payload::from(vec![0xff, 0]);
        assert_eq!(
            serde_json::to_string(&payload).unwrap(),
            r#"{"base64":"/wA="}"#
        );
        assert_eq!(format!("{payload:?}"), "Payload(2 bytes)");
    }

    #[test]
    fn what_is_not_base64_is_an_error() {
        let error = serde_json::from_str::<Payload>(r#""{}""#).unwrap_err();
        assert!(error.to_string().contains("expected base64"), "{error}");
    }
}
