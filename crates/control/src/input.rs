//! The input of a start as it is stored and given to the instance.
//!
//! Keys come in order and nothing stands between the words, so that the same input is the same text. It is written while it is read,
//! without a tree of values in between: such a tree is twenty times the text, and a text may have 48 MiB.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use runtara_domain::limits;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::{ControlError, ControlResult};

/// From this size on an input is read on a thread of its own: shorter ones take less than the change of the thread.
const LARGE_BYTES: usize = 64 * 1024;
/// The key under which an input has its variables, and the metadata of an image their defaults.
const VARIABLES: &str = "variables";

/// Completes an input: defaults of the image's metadata (its `variables` object) are added to `input.variables` where they are missing.
/// An input that is no object is left as it is; none, and null, become an empty object.
///
/// # Errors
/// [`ControlError::Invalid`]: `INPUT_TOO_LARGE`, `INVALID_INPUT`.
pub(crate) async fn complete(
    input: Option<Box<RawValue>>,
    metadata: Option<&str>,
) -> ControlResult<Bytes> {
    let length = input.as_ref().map_or(0, |input| input.get().len());
    check_size(length)?;
    let defaults = defaults(metadata);
    let write = move || written(input.as_deref().map_or("null", RawValue::get), &defaults);
    let text = if length < LARGE_BYTES {
        write()
    } else {
        tokio::task::spawn_blocking(write)
            .await
            .map_err(|error| ControlError::internal(&error))?
    }
    .map_err(|error| {
        ControlError::invalid(
            "INVALID_INPUT",
            format!("the input cannot be read: {error}"),
        )
    })?;
    check_size(text.len())?;
    Ok(text.into())
}

fn check_size(bytes: usize) -> ControlResult<()> {
    if bytes > limits::STATE_BYTES {
        return Err(ControlError::invalid(
            "INPUT_TOO_LARGE",
            format!(
                "the input has {bytes} bytes; at most {} are allowed",
                limits::STATE_BYTES
            ),
        ));
    }
    Ok(())
}

fn defaults(metadata: Option<&str>) -> Map<String, Value> {
    let metadata = metadata.and_then(|text| serde_json::from_str::<Value>(text).ok());
    match metadata.and_then(|mut metadata| metadata.get_mut(VARIABLES).map(Value::take)) {
        Some(Value::Object(defaults)) => defaults,
        _ => Map::new(),
    }
}

fn written(input: &str, defaults: &Map<String, Value>) -> serde_json::Result<Vec<u8>> {
    let input = if input.trim() == "null" { "{}" } else { input };
    let mut text = Vec::with_capacity(input.len());
    let mut reader = serde_json::Deserializer::from_str(input);
    let whole = Write {
        text: &mut text,
        missing: Missing::Variables(defaults),
    };
    whole.deserialize(&mut reader)?;
    reader.end()?;
    Ok(text)
}

/// What is added to an object where it is missing.
#[derive(Clone, Copy)]
enum Missing<'a> {
    Nothing,
    /// The object is the input: these are the defaults of what it has under `variables`.
    Variables(&'a Map<String, Value>),
    /// The object is what stands there.
    Entries(&'a Map<String, Value>),
}

/// Appends the next value to a text.
struct Write<'t, 'a> {
    text: &'t mut Vec<u8>,
    missing: Missing<'a>,
}

/// Where an entry of an object stands in the text. An input is far shorter than 4 GiB.
struct Entry {
    start: u32,
    value: u32,
    end: u32,
}

impl Write<'_, '_> {
    fn put<E: serde::de::Error>(self, value: impl serde::Serialize) -> Result<(), E> {
        serde_json::to_writer(self.text, &value).map_err(E::custom)
    }
}

impl<'de> DeserializeSeed<'de> for Write<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Write<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.put(())
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.put(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        self.put(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<(), E> {
        self.put(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        self.put(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<(), E> {
        self.put(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        self.text.push(b'[');
        let start = self.text.len();
        loop {
            let before = self.text.len();
            if before > start {
                self.text.push(b',');
            }
            let element = Write {
                text: &mut *self.text,
                missing: Missing::Nothing,
            };
            if elements.next_element_seed(element)?.is_none() {
                self.text.truncate(before);
                break;
            }
        }
        self.text.push(b']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        let Self { text, missing } = self;
        let mut left: BTreeMap<&str, Default<'_>> = match missing {
            Missing::Nothing => BTreeMap::new(),
            Missing::Variables(defaults) if defaults.is_empty() => BTreeMap::new(),
            Missing::Variables(defaults) => [(VARIABLES, Default::Whole(defaults))].into(),
            Missing::Entries(defaults) => {
                let entries = defaults.iter();
                entries
                    .map(|(key, value)| (key.as_str(), Default::One(value)))
                    .collect()
            }
        };
        let mut entries = Vec::new();
        let start = text.len();
        while let Some(key) = object.next_key::<Cow<'de, str>>()? {
            let given = left.remove(&*key);
            let begin = text.len();
            serde_json::to_writer(&mut *text, &key).map_err(A::Error::custom)?;
            let value = text.len();
            object.next_value_seed(Write {
                text: &mut *text,
                missing: match (given, missing) {
                    (_, Missing::Variables(defaults)) if key == VARIABLES => {
                        Missing::Entries(defaults)
                    }
                    _ => Missing::Nothing,
                },
            })?;
            entries.push(Entry::new(begin, value, text.len())?);
        }
        for (key, default) in left {
            let begin = text.len();
            serde_json::to_writer(&mut *text, key).map_err(A::Error::custom)?;
            let value = text.len();
            serde_json::to_writer(&mut *text, &default).map_err(A::Error::custom)?;
            entries.push(Entry::new(begin, value, text.len())?);
        }
        arrange(text, start, entries);
        Ok(())
    }
}

/// What is added where a key is missing.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum Default<'a> {
    One(&'a Value),
    Whole(&'a Map<String, Value>),
}

impl Entry {
    fn new<E: serde::de::Error>(start: usize, value: usize, end: usize) -> Result<Self, E> {
        let place = |at: usize| u32::try_from(at).map_err(E::custom);
        Ok(Self {
            start: place(start)?,
            value: place(value)?,
            end: place(end)?,
        })
    }

    fn key<'t>(&self, text: &'t [u8]) -> &'t [u8] {
        &text[self.start as usize..self.value as usize]
    }
}

/// Makes an object of the entries that stand from `start` on: in the order of their keys; of those with the same key the last.
fn arrange(text: &mut Vec<u8>, start: usize, mut entries: Vec<Entry>) {
    let unordered = text.split_off(start);
    let base = start as u32;
    for entry in &mut entries {
        entry.start -= base;
        entry.value -= base;
        entry.end -= base;
    }
    entries.sort_by(|one, other| by_key(one.key(&unordered), other.key(&unordered)));
    text.push(b'{');
    let mut entries = entries.iter().peekable();
    while let Some(entry) = entries.next() {
        let key = entry.key(&unordered);
        if entries
            .peek()
            .is_some_and(|next| next.key(&unordered) == key)
        {
            continue;
        }
        if text.last() != Some(&b'{') || text.len() > start + 1 {
            text.push(b',');
        }
        text.extend_from_slice(key);
        text.push(b':');
        text.extend_from_slice(&unordered[entry.value as usize..entry.end as usize]);
    }
    text.push(b'}');
}

/// Compares keys as they are written: what they mean is compared, which differs only where something is escaped.
fn by_key(one: &[u8], other: &[u8]) -> Ordering {
    if !one.contains(&b'\\') && !other.contains(&b'\\') {
        // The quotation mark at the end would stand above a blank.
        return unquoted(one).cmp(unquoted(other));
    }
    let meaning = |key| serde_json::from_slice::<String>(key).unwrap_or_default();
    meaning(one).cmp(&meaning(other))
}

fn unquoted(key: &[u8]) -> &[u8] {
    key.get(1..key.len() - 1).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(input: &str, metadata: &Value) -> String {
        let defaults = defaults(Some(&metadata.to_string()));
        String::from_utf8(written(input, &defaults).unwrap()).unwrap()
    }

    fn completed(input: &Value, metadata: &Value) -> Value {
        serde_json::from_str(&text(&input.to_string(), metadata)).unwrap()
    }

    #[test]
    fn defaults_fill_in_what_is_missing_and_nothing_else() {
        let metadata = json!({ "variables": { "a": 1, "_b": 2 } });
        assert_eq!(
            completed(
                &json!({ "x": 1, "variables": { "a": 7, "_c": 3 } }),
                &metadata
            ),
            json!({ "x": 1, "variables": { "a": 7, "_b": 2, "_c": 3 } })
        );
        assert_eq!(
            completed(&Value::Null, &metadata),
            json!({ "variables": { "a": 1, "_b": 2 } })
        );
        // Only at the top.
        let deep = json!({ "x": { "variables": {} }, "variables": { "variables": {} } });
        let wanted =
            json!({ "x": { "variables": {} }, "variables": { "variables": {}, "a": 1, "_b": 2 } });
        assert_eq!(completed(&deep, &metadata), wanted);
    }

    #[test]
    fn an_input_that_is_no_object_is_left_as_it_is() {
        let metadata = json!({ "variables": { "a": 1 } });
        for input in [
            json!([1]),
            json!("text"),
            json!(7),
            json!({ "variables": 3 }),
            json!({ "variables": null }),
        ] {
            assert_eq!(completed(&input, &metadata), input);
        }
        assert_eq!(
            completed(&json!({}), &json!({ "variables": [1] })),
            json!({})
        );
    }

    #[test]
    fn the_same_input_is_the_same_text() {
        let none = json!({});
        let one = text(r#"{"b":[1,{"d":2,"c":1.50}],"a":2}"#, &none);
        let two = text("{ \"a\": 2,\n \"b\": [1, {\"c\": 1.5, \"d\": 2}] }", &none);
        assert_eq!(one, two);
        assert_eq!(one, r#"{"a":2,"b":[1,{"c":1.5,"d":2}]}"#);
    }

    #[test]
    fn the_text_is_that_of_a_tree_of_values() {
        for input in [
            "null",
            " true ",
            "-7",
            "18446744073709551615",
            "1e300",
            r#""\u0041\n\"é\ud83d\ude00""#,
            "[]",
            "[[],{},[{}]]",
            r#"{"a b":1,"a":2,"a!":3,"A":4,"\u0001":5,"\"":6,"!":7,"é":8,"":9}"#,
            r#"{"a":1,"b":{"z":1,"y":[3,2]},"a":{"c":[]}}"#,
        ] {
            let wanted = match serde_json::from_str(input).unwrap() {
                Value::Null => json!({}),
                other => other,
            };
            assert_eq!(text(input, &json!({})), wanted.to_string(), "{input}");
        }
    }

    #[test]
    fn what_is_nested_too_deeply_is_refused() {
        let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
        assert!(written(&deep, &Map::new()).is_err());
    }

    #[tokio::test]
    async fn what_is_too_long_is_refused_unread() {
        let long = format!("\"{}\"", "x".repeat(limits::STATE_BYTES));
        let refused = complete(Some(RawValue::from_string(long).unwrap()), None).await;
        let invalid = |error| {
            matches!(
                error,
                ControlError::Invalid {
                    code: "INPUT_TOO_LARGE",
                    ..
                }
            )
        };
        assert!(invalid(refused.unwrap_err()));
    }
}
