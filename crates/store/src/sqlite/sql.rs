//! Statements with their values, and rows read column by column.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use runtara_domain::Timestamp;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Executor as _, Row as _, Sqlite, Type};

use super::failure::{broken_by, failed};
use crate::StoreResult;

/// A value that a statement is given.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Int(i64),
    Text(Arc<str>),
    Blob(Bytes),
}

macro_rules! values {
    ($($from:ty => $value:ident => $made:expr),+ $(,)?) => {
        $(
            impl From<$from> for Value {
                fn from($value: $from) -> Self {
                    $made
                }
            }
        )+
    };
}

values! {
    i64 => number => Self::Int(number),
    u32 => number => Self::Int(number.into()),
    i32 => number => Self::Int(number.into()),
    &str => text => Self::Text(text.into()),
    String => text => Self::Text(text.into()),
    Bytes => bytes => Self::Blob(bytes),
    Vec<u8> => bytes => Self::Blob(bytes.into()),
    [u8; 32] => hash => Self::Blob(Bytes::copy_from_slice(&hash)),
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// One or more statements, run one after the other in one errand to the thread of the connection: such an errand costs two
/// switches between threads, which is more than what most statements do.
///
/// The text is put together of fixed parts only; values are always bound, to plain `?`, in the order in which they are given. So
/// there are few different texts, and the connection finds each prepared.
#[derive(Debug, Default, Clone)]
pub(super) struct Sql {
    text: String,
    values: Vec<Value>,
    statements: usize,
}

/// What an errand brought back.
pub(super) struct Errand {
    /// The rows of all statements.
    pub(super) rows: Vec<SqliteRow>,
    /// How many statements ended well.
    pub(super) done: usize,
    /// What the next one failed with.
    pub(super) failure: Option<sqlx::Error>,
}

impl Sql {
    /// Begins with this text.
    pub(super) fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            values: Vec::new(),
            statements: 1,
        }
    }

    /// Goes on with this text.
    pub(super) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Begins a further statement.
    pub(super) fn then(&mut self, text: &str) -> &mut Self {
        if !self.text.is_empty() {
            self.text.push_str(";\n");
        }
        self.statements += 1;
        self.push(text)
    }

    /// Goes on with these statements.
    pub(super) fn append(&mut self, other: Self) -> &mut Self {
        if other.is_empty() {
            return self;
        }
        self.then(&other.text);
        self.statements += other.statements - 1;
        self.values.extend(other.values);
        self
    }

    /// Gives the value of the next `?`.
    pub(super) fn bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        self
    }

    /// The same for a number that SQLite may not hold whole; it has no larger ones.
    pub(super) fn bind_u64(&mut self, value: u64) -> &mut Self {
        self.bind(i64::try_from(value).unwrap_or(i64::MAX))
    }

    pub(super) fn bind_time(&mut self, time: Timestamp) -> &mut Self {
        self.bind(time.0)
    }

    pub(super) fn bind_opt_time(&mut self, time: Option<Timestamp>) -> &mut Self {
        self.bind(time.map(|time| time.0))
    }

    pub(super) fn bind_bytes(&mut self, bytes: Option<&Bytes>) -> &mut Self {
        self.bind(bytes.cloned())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// How many statements there are.
    pub(super) fn statements(&self) -> usize {
        self.statements
    }

    /// Has the planner say how the statement would be carried out.
    #[cfg(test)]
    pub(super) fn explained(mut self) -> Self {
        self.text.insert_str(0, "explain query plan ");
        self
    }

    /// Runs the statements as far as they go.
    pub(super) async fn run(self, connection: &mut SqliteConnection) -> Errand {
        let mut values = SqliteArguments::default();
        for value in self.values {
            match value {
                Value::Null => values.add(None::<i64>),
                Value::Int(number) => values.add(number),
                Value::Text(text) => values.add(text),
                Value::Blob(bytes) => values.add(Vec::from(bytes)),
            }
            .expect("texts, bytes and integers always encode");
        }
        let query = sqlx::query_with(AssertSqlSafe(self.text), values);
        let mut errand = Errand {
            rows: Vec::new(),
            done: 0,
            failure: None,
        };
        let mut results = connection.fetch_many(query);
        while let Some(result) = results.next().await {
            match result {
                Ok(sqlx::Either::Left(_)) => errand.done += 1,
                Ok(sqlx::Either::Right(row)) => errand.rows.push(row),
                Err(error) => {
                    errand.failure = Some(error);
                    break;
                }
            }
        }
        errand
    }

    /// Runs the statements.
    pub(super) async fn execute(
        self,
        connection: &mut SqliteConnection,
        what: &str,
    ) -> StoreResult<()> {
        self.rows(connection, what).await.map(drop)
    }

    /// Runs the statements: all rows.
    pub(super) async fn rows(
        self,
        connection: &mut SqliteConnection,
        what: &str,
    ) -> StoreResult<Vec<SqliteRow>> {
        let errand = self.run(connection).await;
        match errand.failure {
            None => Ok(errand.rows),
            Some(error) => Err(failed(what, error)),
        }
    }

    /// Runs the statements: the first row.
    pub(super) async fn row(
        self,
        connection: &mut SqliteConnection,
        what: &str,
    ) -> StoreResult<Option<SqliteRow>> {
        let rows = self.rows(connection, what).await?;
        Ok(rows.into_iter().next())
    }
}

/// Reads a row from left to right.
pub(super) struct Columns<'r> {
    row: &'r SqliteRow,
    at: usize,
}

impl<'r> Columns<'r> {
    pub(super) fn of(row: &'r SqliteRow) -> Self {
        Self { row, at: 0 }
    }

    fn next<T: sqlx::Decode<'r, Sqlite> + Type<Sqlite>>(&mut self) -> StoreResult<T> {
        let at = self.at;
        self.at += 1;
        self.row
            .try_get(at)
            .map_err(|error| failed("reading a row", error))
    }

    /// Whether the next column holds anything. It is read again.
    pub(super) fn peek_is_some(&mut self) -> StoreResult<bool> {
        let found = self.opt_int()?.is_some();
        self.at -= 1;
        Ok(found)
    }

    pub(super) fn int(&mut self) -> StoreResult<i64> {
        self.next()
    }

    pub(super) fn opt_int(&mut self) -> StoreResult<Option<i64>> {
        self.next()
    }

    pub(super) fn opt_float(&mut self) -> StoreResult<Option<f64>> {
        self.next()
    }

    pub(super) fn flag(&mut self) -> StoreResult<bool> {
        Ok(self.int()? != 0)
    }

    /// A number of a narrower type.
    pub(super) fn number<T: TryFrom<i64>>(&mut self) -> StoreResult<T>
    where
        T::Error: std::error::Error + Send + Sync + 'static,
    {
        let found = self.int()?;
        T::try_from(found).map_err(|error| broken_by(format!("reading the number {found}"), error))
    }

    pub(super) fn opt_number<T: TryFrom<i64>>(&mut self) -> StoreResult<Option<T>>
    where
        T::Error: std::error::Error + Send + Sync + 'static,
    {
        let Some(found) = self.opt_int()? else {
            return Ok(None);
        };
        let number = T::try_from(found);
        number
            .map(Some)
            .map_err(|error| broken_by(format!("reading the number {found}"), error))
    }

    pub(super) fn time(&mut self) -> StoreResult<Timestamp> {
        self.int().map(Timestamp)
    }

    pub(super) fn opt_time(&mut self) -> StoreResult<Option<Timestamp>> {
        Ok(self.opt_int()?.map(Timestamp))
    }

    pub(super) fn text(&mut self) -> StoreResult<String> {
        self.next()
    }

    pub(super) fn opt_text(&mut self) -> StoreResult<Option<String>> {
        self.next()
    }

    /// A text that is an id or a word.
    pub(super) fn parsed<T: std::str::FromStr>(&mut self) -> StoreResult<T>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let text: &str = self.next()?;
        text.parse()
            .map_err(|error| broken_by("reading an id or a word", error))
    }

    pub(super) fn opt_parsed<T: std::str::FromStr>(&mut self) -> StoreResult<Option<T>>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let text: Option<&str> = self.next()?;
        let parsed = text.map(str::parse).transpose();
        parsed.map_err(|error| broken_by("reading an id or a word", error))
    }

    pub(super) fn bytes(&mut self) -> StoreResult<Bytes> {
        self.next::<Vec<u8>>().map(Bytes::from)
    }

    pub(super) fn opt_bytes(&mut self) -> StoreResult<Option<Bytes>> {
        Ok(self.next::<Option<Vec<u8>>>()?.map(Bytes::from))
    }

    /// Thirty-two bytes.
    pub(super) fn hash(&mut self) -> StoreResult<[u8; 32]> {
        let bytes: &[u8] = self.next()?;
        bytes
            .try_into()
            .map_err(|error| broken_by("reading a hash", error))
    }

    pub(super) fn opt_hash(&mut self) -> StoreResult<Option<[u8; 32]>> {
        let bytes: Option<&[u8]> = self.next()?;
        let hash = bytes.map(<[u8; 32]>::try_from).transpose();
        hash.map_err(|error| broken_by("reading a hash", error))
    }

    /// A value that is kept as JSON text; its default if there is none.
    pub(super) fn json<T: serde::de::DeserializeOwned + Default>(&mut self) -> StoreResult<T> {
        let text: Option<&str> = self.next()?;
        let Some(text) = text else {
            return Ok(T::default());
        };
        serde_json::from_str(text).map_err(|error| broken_by("reading JSON text", error))
    }
}

/// The JSON text of a value; nothing for one that is empty.
pub(super) fn json_text(
    value: &impl serde::Serialize,
    is_empty: bool,
) -> StoreResult<Option<String>> {
    if is_empty {
        return Ok(None);
    }
    serde_json::to_string(value)
        .map(Some)
        .map_err(|error| broken_by("writing JSON text", error))
}
