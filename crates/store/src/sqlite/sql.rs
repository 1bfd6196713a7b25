//! Statements with their values, and rows read column by column.

use bytes::Bytes;
use runtara_domain::Timestamp;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, Encode, Row, Sqlite, Type};

use super::failure::{broken_by, failed};
use crate::StoreResult;

/// One or more statements, run one after the other in one errand to the thread of the connection.
///
/// The text is put together of fixed parts only; values are always bound, to plain `?`, in the order in which they are given. So
/// there are few different texts, and the connection finds each prepared.
#[derive(Default)]
pub(super) struct Sql {
    text: String,
    values: SqliteArguments,
}

impl Sql {
    /// Begins with this text.
    pub(super) fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            values: SqliteArguments::default(),
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
        self.push(text)
    }

    /// Puts a statement in front of those that are there. It takes no values.
    pub(super) fn put_first(&mut self, text: &str) {
        self.text.insert_str(0, ";\n");
        self.text.insert_str(0, text);
    }

    /// Gives the value of the next `?`.
    pub(super) fn bind<'t, T: Encode<'t, Sqlite> + Type<Sqlite>>(&mut self, value: T) -> &mut Self {
        self.values
            .add(value)
            .expect("texts, bytes and integers always encode");
        self
    }

    /// The same for a number that SQLite cannot hold whole; it has no larger ones.
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
        self.bind(bytes.map(|bytes| bytes.to_vec()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The text, for tests that ask how it is carried out.
    #[cfg(test)]
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Runs the statements: how many rows they changed together.
    pub(super) async fn execute(
        self,
        connection: &mut SqliteConnection,
        what: &str,
    ) -> StoreResult<u64> {
        sqlx::query_with(AssertSqlSafe(self.text), self.values)
            .execute(connection)
            .await
            .map(|done| done.rows_affected())
            .map_err(|error| failed(what, error))
    }

    /// Runs the statements: all rows.
    pub(super) async fn rows(
        self,
        connection: &mut SqliteConnection,
        what: &str,
    ) -> StoreResult<Vec<SqliteRow>> {
        sqlx::query_with(AssertSqlSafe(self.text), self.values)
            .fetch_all(connection)
            .await
            .map_err(|error| failed(what, error))
    }

    /// Runs the statements up to the first row.
    pub(super) async fn row(
        self,
        connection: &mut SqliteConnection,
        what: &str,
    ) -> StoreResult<Option<SqliteRow>> {
        sqlx::query_with(AssertSqlSafe(self.text), self.values)
            .fetch_optional(connection)
            .await
            .map_err(|error| failed(what, error))
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
