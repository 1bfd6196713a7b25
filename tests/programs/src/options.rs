//! What a simple program is told.

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::str::FromStr;
use std::thread;

use serde_json::Value;

/// What a simple program is told, from wherever it comes first: an argument `--name=value`, a variable `NAME`, a field `name` of
/// the input.
pub struct Options {
    input: Value,
}

impl Options {
    /// Reads the input, if there is one.
    #[must_use]
    pub fn read() -> Self {
        let input = env::var_os("RUNTARA_INPUT_FILE").and_then(|path| fs::read(path).ok());
        let input = input.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            input: input.unwrap_or_default(),
        }
    }

    /// The text of an option.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        let start = format!("--{name}=");
        env::args()
            .find_map(|argument| argument.strip_prefix(&start).map(str::to_owned))
            .or_else(|| env::var(name.to_uppercase()).ok())
            .or_else(|| match self.input.get(name)? {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            })
    }

    /// An option of another type.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn get<T: FromStr>(&self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        let value = text.parse().ok();
        Some(value.unwrap_or_else(|| panic!("option {name} is {text:?}, which does not parse")))
    }
}

/// Gives the result of a program without an SDK.
///
/// # Errors
/// If it cannot be written.
pub fn print_result(result: &Value) -> io::Result<()> {
    match env::var_os("RUNTARA_OUTPUT_FILE") {
        Some(path) => fs::write(path, result.to_string()),
        None => writeln!(io::stdout(), "{result}"),
    }
}

/// Does nothing, until somebody ends the process.
pub fn sleep_forever() -> ! {
    loop {
        thread::park();
    }
}
