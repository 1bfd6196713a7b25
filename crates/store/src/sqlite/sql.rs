//! Statements with their values, and rows read column by column.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use runtara_domain::Timestamp;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Decode, Row as _, Sqlite, TypeInfo as _, ValueRef as _};

use super::failure::{broken, broken_by, failed};
use super::tx::Tx;
use crate::StoreResult;

/// A value that a statement is given.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Int(i64),
    Real(f64),
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

impl Value {
    /// How large it is, beyond what each value takes.
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Blob(bytes) => bytes.len(),
            Self::Null | Self::Int(_) | Self::Real(_) => 0,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Int(_) => "a whole number",
            Self::Real(_) => "a fraction",
            Self::Text(_) => "a text",
            Self::Blob(_) => "bytes",
        }
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Int(number) => ValueRef::Integer(*number),
            Self::Real(number) => ValueRef::Real(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl FromSql for Value {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(number) => Self::Int(number),
            ValueRef::Real(number) => Self::Real(number),
            ValueRef::Text(text) => std::str::from_utf8(text)
                .map(Self::from)
                .map_err(FromSqlError::other)?,
            ValueRef::Blob(bytes) => Self::Blob(Bytes::copy_from_slice(bytes)),
        })
    }
}

/// One or more statements, run one after the other.
///
/// Their texts are put together of fixed parts only; values are always bound, to plain `?`, in the order in which they are given. So
/// there are few different texts, and a connection finds each prepared.
#[derive(Debug, Default)]
pub(super) struct Sql {
    statements: Vec<Statement>,
}

#[derive(Debug)]
struct Statement {
    text: Cow<'static, str>,
    values: Vec<Value>,
}

impl Sql {
    /// Begins with this text.
    pub(super) fn new(text: impl Into<Cow<'static, str>>) -> Self {
        let mut sql = Self::default();
        sql.then(text);
        sql
    }

    /// Goes on with this text.
    pub(super) fn push(&mut self, text: &'static str) -> &mut Self {
        match self.statements.last_mut() {
            Some(statement) => statement.text.to_mut().push_str(text),
            None => return self.then(text),
        }
        self
    }

    /// Begins a further statement.
    pub(super) fn then(&mut self, text: impl Into<Cow<'static, str>>) -> &mut Self {
        self.statements.push(Statement {
            text: text.into(),
            values: Vec::new(),
        });
        self
    }

    /// Gives the value of the next `?`.
    pub(super) fn bind(&mut self, value: impl Into<Value>) -> &mut Self {
        if let Some(statement) = self.statements.last_mut() {
            statement.values.push(value.into());
        }
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
        self.statements.is_empty()
    }

    /// The texts of the statements and their values.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&str, &[Value])> {
        let parts = self.statements.iter();
        parts.map(|statement| (statement.text.as_ref(), statement.values.as_slice()))
    }

    /// About how large its values are.
    pub(super) fn bytes(&self) -> usize {
        let values = self.statements.iter().flat_map(|it| &it.values);
        values.map(Value::bytes).sum()
    }

    /// Has the planner say how the statement would be carried out.
    #[cfg(test)]
    pub(super) fn explained(mut self) -> Self {
        for statement in &mut self.statements {
            statement.text.to_mut().insert_str(0, "explain query plan ");
        }
        self
    }

    /// Runs the statements on this thread: all rows of the last.
    pub(super) fn run_here(
        &self,
        connection: &rusqlite::Connection,
        what: &str,
    ) -> StoreResult<Vec<Row>> {
        let mut rows = Vec::new();
        for statement in &self.statements {
            let found = statement.run_here(connection);
            rows = found.map_err(|error| failed(what, error))?;
        }
        Ok(rows)
    }

    /// Runs the statements.
    pub(super) async fn execute(
        self,
        connection: &mut SqliteConnection,
        what: &str,
    ) -> StoreResult<()> {
        self.rows(connection, what).await.map(drop)
    }

    /// Runs the statements: all rows of the last.
    pub(super) async fn rows(
        self,
        connection: &mut SqliteConnection,
        what: &str,
    ) -> StoreResult<Vec<Row>> {
        let mut rows = Vec::new();
        for statement in self.statements {
            let found = statement.run(connection).await;
            rows = found.map_err(|error| failed(what, error))?;
        }
        Ok(rows)
    }

    /// Runs the statements: the first row of the last.
    pub(super) async fn row(
        self,
        connection: &mut SqliteConnection,
        what: &str,
    ) -> StoreResult<Option<Row>> {
        let rows = self.rows(connection, what).await?;
        Ok(rows.into_iter().next())
    }
}

/// A question of one statement, and how its first row is read. Either kind of connection can be asked.
pub(super) struct Question<T> {
    sql: Sql,
    what: &'static str,
    read: Read<T>,
}

type Read<T> = Box<dyn FnOnce(Option<&Row>) -> StoreResult<T> + Send>;

impl<T> Question<T> {
    pub(super) fn new(
        sql: Sql,
        what: &'static str,
        read: impl FnOnce(Option<&Row>) -> StoreResult<T> + Send + 'static,
    ) -> Self {
        let read = Box::new(read);
        Self { sql, what, read }
    }

    /// Asks a connection that reads.
    pub(super) async fn ask(self, connection: &mut SqliteConnection) -> StoreResult<T> {
        let row = self.sql.row(connection, self.what).await?;
        (self.read)(row.as_ref())
    }

    /// Asks the connection that writes: it knows what the others do not see yet.
    pub(super) fn ask_writer(self, tx: &mut Tx) -> StoreResult<T> {
        let row = tx.row(&self.sql, self.what)?;
        tx.bytes_held += row.as_ref().map_or(0, Row::bytes);
        (self.read)(row.as_ref())
    }
}

impl Statement {
    fn run_here(&self, connection: &rusqlite::Connection) -> rusqlite::Result<Vec<Row>> {
        let mut prepared = connection.prepare_cached(&self.text)?;
        let columns = prepared.column_count();
        let mut found = prepared.query(rusqlite::params_from_iter(&self.values))?;
        let mut rows = Vec::new();
        while let Some(row) = found.next()? {
            let values = (0..columns).map(|at| row.get::<_, Value>(at));
            rows.push(Row(values.collect::<Result<_, _>>()?));
        }
        Ok(rows)
    }

    async fn run(self, connection: &mut SqliteConnection) -> sqlx::Result<Vec<Row>> {
        let mut values = SqliteArguments::default();
        for value in self.values {
            match value {
                Value::Null => values.add(None::<i64>),
                Value::Int(number) => values.add(number),
                Value::Real(number) => values.add(number),
                Value::Text(text) => values.add(text),
                Value::Blob(bytes) => values.add(Vec::from(bytes)),
            }
            .map_err(sqlx::Error::Encode)?;
        }
        let query = sqlx::query_with(AssertSqlSafe(self.text.into_owned()), values);
        let rows = query.fetch_all(connection).await?;
        rows.iter().map(Row::of).collect()
    }
}

/// A row that was found: its values from left to right.
pub(super) struct Row(Vec<Value>);

impl Row {
    /// About how large its values are.
    fn bytes(&self) -> usize {
        self.0.iter().map(Value::bytes).sum()
    }

    fn of(row: &SqliteRow) -> sqlx::Result<Self> {
        let values = (0..row.len()).map(|at| {
            let value = row.try_get_raw(at)?;
            let decoded = match value.type_info().name() {
                _ if value.is_null() => Ok(Value::Null),
                "REAL" => <f64 as Decode<Sqlite>>::decode(value).map(Value::Real),
                "TEXT" => <&str as Decode<Sqlite>>::decode(value).map(Value::from),
                "BLOB" => <&[u8] as Decode<Sqlite>>::decode(value)
                    .map(|bytes| Value::Blob(Bytes::copy_from_slice(bytes))),
                _ => <i64 as Decode<Sqlite>>::decode(value).map(Value::Int),
            };
            decoded.map_err(sqlx::Error::Decode)
        });
        values.collect::<Result<_, _>>().map(Self)
    }
}

/// Reads a row from left to right.
pub(super) struct Columns<'r> {
    row: &'r Row,
    at: usize,
}

impl<'r> Columns<'r> {
    pub(super) fn of(row: &'r Row) -> Self {
        Self { row, at: 0 }
    }

    /// The last column alone.
    pub(super) fn last(row: &'r Row) -> Self {
        let at = row.0.len().saturating_sub(1);
        Self { row, at }
    }

    fn next(&mut self) -> StoreResult<&'r Value> {
        let value = self.row.0.get(self.at);
        self.at += 1;
        value.ok_or_else(|| broken(format!("a row has no column {}", self.at)))
    }

    fn odd<T>(&self, found: &Value, wanted: &str) -> StoreResult<T> {
        let found = found.kind();
        Err(broken(format!(
            "column {} of a row is {found}, where {wanted} is wanted",
            self.at
        )))
    }

    /// Whether the next column holds anything. It is read again.
    pub(super) fn peek_is_some(&mut self) -> StoreResult<bool> {
        let found = self.next()?;
        self.at -= 1;
        Ok(!matches!(found, Value::Null))
    }

    /// Whether the next column holds nothing; then it is passed.
    fn is_null(&mut self) -> StoreResult<bool> {
        let is_null = !self.peek_is_some()?;
        self.at += usize::from(is_null);
        Ok(is_null)
    }

    pub(super) fn int(&mut self) -> StoreResult<i64> {
        match self.next()? {
            Value::Int(number) => Ok(*number),
            other => self.odd(other, "a whole number"),
        }
    }

    pub(super) fn opt_int(&mut self) -> StoreResult<Option<i64>> {
        if self.is_null()? {
            return Ok(None);
        }
        self.int().map(Some)
    }

    pub(super) fn opt_float(&mut self) -> StoreResult<Option<f64>> {
        match self.next()? {
            Value::Null => Ok(None),
            Value::Real(number) => Ok(Some(*number)),
            other => self.odd(other, "a number"),
        }
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

    fn str(&mut self) -> StoreResult<&'r str> {
        match self.next()? {
            Value::Text(text) => Ok(text),
            other => self.odd(other, "a text"),
        }
    }

    fn opt_str(&mut self) -> StoreResult<Option<&'r str>> {
        if self.is_null()? {
            return Ok(None);
        }
        self.str().map(Some)
    }

    pub(super) fn text(&mut self) -> StoreResult<String> {
        self.str().map(str::to_owned)
    }

    pub(super) fn opt_text(&mut self) -> StoreResult<Option<String>> {
        Ok(self.opt_str()?.map(str::to_owned))
    }

    /// A text that is an id or a word.
    pub(super) fn parsed<T: std::str::FromStr>(&mut self) -> StoreResult<T>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let parsed = self.str()?.parse();
        parsed.map_err(|error| broken_by("reading an id or a word", error))
    }

    pub(super) fn opt_parsed<T: std::str::FromStr>(&mut self) -> StoreResult<Option<T>>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        if self.is_null()? {
            return Ok(None);
        }
        self.parsed().map(Some)
    }

    pub(super) fn bytes(&mut self) -> StoreResult<Bytes> {
        match self.next()? {
            Value::Blob(bytes) => Ok(bytes.clone()),
            other => self.odd(other, "bytes"),
        }
    }

    pub(super) fn opt_bytes(&mut self) -> StoreResult<Option<Bytes>> {
        if self.is_null()? {
            return Ok(None);
        }
        self.bytes().map(Some)
    }

    /// Thirty-two bytes.
    pub(super) fn hash(&mut self) -> StoreResult<[u8; 32]> {
        let hash = self.bytes()?.as_ref().try_into();
        hash.map_err(|error| broken_by("reading a hash", error))
    }

    pub(super) fn opt_hash(&mut self) -> StoreResult<Option<[u8; 32]>> {
        if self.is_null()? {
            return Ok(None);
        }
        self.hash().map(Some)
    }

    /// A value that is kept as JSON text; its default if there is none.
    pub(super) fn json<T: serde::de::DeserializeOwned + Default>(&mut self) -> StoreResult<T> {
        let Some(text) = self.opt_str()? else {
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
