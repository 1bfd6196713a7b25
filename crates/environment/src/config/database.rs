//! The address of a database.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use runtara_store::StoreError;
use runtara_store::sqlite::SqliteOptions;

/// A database address. It may hold a password, so it is shown without.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The whole address. A secret.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether it names a SQLite file.
    #[must_use]
    pub fn is_sqlite(&self) -> bool {
        self.0.starts_with("sqlite:")
    }

    /// A SQLite file.
    #[must_use]
    pub fn sqlite(path: &Path) -> Self {
        Self(format!("sqlite:{}", path.display()))
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = ["postgres://", "postgresql://", "sqlite:"];
        if !known.iter().any(|scheme| text.starts_with(scheme)) {
            // What was found is not repeated: it may be a password in the wrong place.
            return Err("is none of `postgres://…` and `sqlite:…`".to_owned());
        }
        let url = Self(text.to_owned());
        if url.is_sqlite() {
            SqliteOptions::new(text).map_err(reason)?;
        }
        Ok(url)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_sqlite() {
            return f.write_str(&self.0);
        }
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("postgres", ""));
        let rest = rest.split('?').next().unwrap_or_default();
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        write!(f, "{scheme}://{host}")
    }
}

/// What a store says is wrong with an address.
fn reason(error: StoreError) -> String {
    match error {
        StoreError::Broken { context, .. } => context,
        other => other.to_string(),
    }
}
