//! The log of what has been written and answered, but not committed by SQLite yet.
//!
//! A commit of SQLite writes every page that was touched, and rows of different instances lie on different pages. So the thread that
//! writes keeps a transaction open over many batches of requests: what makes a batch durable is a record in this file, with the
//! statements of the batch and their values, and one flush. SQLite itself commits when somebody wants to read elsewhere what
//! was written, and every so often; then without a flush of its own. After a crash the statements that SQLite has not kept are run
//! again, in the same order on the same state, so they do the same.
//!
//! - A *lap* begins with a commit that SQLite has flushed. It notes a new random number for the lap, and the file is written from
//!   its begin again. So a file of another database, or of another time of this one, is never taken for this lap's.
//! - Each later commit of SQLite notes how many records of the lap it has taken over.
//! - A record is its length, a checksum and its content. The checksum covers the lap and the record's number too: what an
//!   earlier lap has left behind, and what was not written whole, is the end of the log.
//!
//! Nothing is answered before the flush of its record, and SQLite takes over nothing that is not flushed here. So a record that is
//! not whole was never answered, and a database that knows more records than the file is one whose file was taken away.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rusqlite::Connection;

use super::failure::{broken, broken_by, unavailable_by};
use super::file::{beside, open_as_it_is};
use super::sql::{Columns, Sql, Value};
use crate::StoreResult;

/// Most bytes of a lap.
const LAP: usize = 8 * 1024 * 1024;
/// A larger record is not worth writing twice: SQLite commits and flushes it at once.
const LARGEST: usize = 1024 * 1024;
/// By how much the file grows. Within what is there already a flush writes nothing but the records.
const STEP: usize = 256 * 1024;
/// Length and checksum.
const HEAD: usize = 8;

/// What a lap is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lap(pub(super) u64);

impl Lap {
    pub(super) fn new() -> Self {
        Self(uuid::Uuid::new_v4().as_u64_pair().0)
    }
}

/// How far SQLite has taken over a lap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) lap: Lap,
    /// How many of its records.
    pub(super) records: u64,
}

impl Mark {
    /// As it is kept in the database.
    fn to_text(self) -> String {
        format!("{:016x}:{}", self.lap.0, self.records)
    }

    fn of_text(text: &str) -> StoreResult<Self> {
        let parsed = text.split_once(':').and_then(|(lap, records)| {
            Some(Self {
                lap: Lap(u64::from_str_radix(lap, 16).ok()?),
                records: records.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| {
            broken(format!(
                "the database says {text:?} of its redo log; a lap and a number of records are wanted"
            ))
        })
    }
}

/// The path of the log of a database.
fn path_of(database: &Path) -> PathBuf {
    beside(database, ".redo")
}

/// The log, while it is written.
pub(super) struct Redo {
    file: File,
    path: PathBuf,
    lap: Lap,
    /// How many records the lap has.
    records: u64,
    /// Where the next one goes.
    end: usize,
    /// How far the file has been filled, with whatever.
    size: usize,
    /// Texts of statements that the lap has, and their numbers.
    texts: HashMap<String, u32>,
    record: Vec<u8>,
}

impl Redo {
    /// Opens the log of a database, or makes it. It must be [begun](Self::begin) before it is written.
    pub(super) fn open(database: &Path) -> StoreResult<Self> {
        let path = path_of(database);
        let failed = |error| broken_by(format!("opening the redo log {}", path.display()), error);
        let file = open_as_it_is(&path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        // A file that is new is there after a power failure only if its directory says so.
        let directory = match path.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => directory,
            _ => Path::new("."),
        };
        let listed = File::open(directory).and_then(|directory| directory.sync_all());
        listed.map_err(failed)?;
        Ok(Self {
            file,
            lap: Lap::new(),
            records: 0,
            end: 0,
            size: usize::try_from(size).unwrap_or(0),
            texts: HashMap::new(),
            record: Vec::new(),
            path,
        })
    }

    /// Begins a lap.
    pub(super) fn begin(&mut self, lap: Lap) {
        self.lap = lap;
        self.records = 0;
        self.end = 0;
        self.texts.clear();
    }

    /// All records of the lap.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            lap: self.lap,
            records: self.records,
        }
    }

    /// Writes a record of these statements and flushes it. Says `false`, and has done nothing, if there is no room for it in the
    /// lap.
    ///
    /// # Errors
    /// [`crate::StoreError::Unavailable`] if it could not be written or flushed. It may come to be part of the log all the same, unless another
    /// is written in its place.
    pub(super) fn append<'a>(
        &mut self,
        statements: impl Iterator<Item = &'a Sql> + Clone,
    ) -> StoreResult<bool> {
        let values: usize = statements.clone().map(Sql::bytes).sum();
        if values > LARGEST {
            return Ok(false);
        }
        let known = self.texts.len();
        let done = self.try_append(statements);
        if !matches!(done, Ok(true)) {
            self.texts.retain(|_, number| (*number as usize) < known);
        }
        done.map_err(|error| {
            unavailable_by(
                format!("writing to the redo log {}", self.path.display()),
                error,
            )
        })
    }

    fn try_append<'a>(&mut self, statements: impl Iterator<Item = &'a Sql>) -> io::Result<bool> {
        self.record.clear();
        self.record.resize(HEAD, 0);
        for (text, values) in statements.flat_map(Sql::parts) {
            self.put_text(text);
            put_length(&mut self.record, values.len());
            for value in values {
                put_value(&mut self.record, value);
            }
        }
        if self.end + self.record.len() > LAP {
            return Ok(false);
        }
        let (head, content) = self.record.split_at_mut(HEAD);
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
        head[..4].copy_from_slice(&length.to_le_bytes());
        let checksum = checksum(self.lap, self.records, content);
        head[4..].copy_from_slice(&checksum.to_le_bytes());
        let end = self.end + self.record.len();
        while end > self.size {
            self.file.write_all_at(&vec![0; STEP], self.size as u64)?;
            self.size += STEP;
        }
        self.file.write_all_at(&self.record, self.end as u64)?;
        runtara_failpoints::pass(runtara_failpoints::Point::RedoWritten);
        self.file.sync_data()?;
        self.end = end;
        self.records += 1;
        Ok(true)
    }

    fn put_text(&mut self, text: &str) {
        if let Some(number) = self.texts.get(text) {
            self.record.extend_from_slice(&number.to_le_bytes());
            return;
        }
        let number = u32::try_from(self.texts.len()).unwrap_or(u32::MAX);
        self.texts.insert(text.to_owned(), number);
        self.record.extend_from_slice(&number.to_le_bytes());
        put_bytes(&mut self.record, text.as_bytes());
    }

    /// The statements of the records that SQLite has not taken over.
    ///
    /// # Errors
    /// [`crate::StoreError::Broken`] if the file cannot be read, or does not have what was written to it.
    fn after(&self, mark: Mark) -> StoreResult<Vec<Sql>> {
        let mut found = read(&self.path, mark)?;
        let wanted = usize::try_from(self.records.saturating_sub(mark.records)).unwrap_or(0);
        if mark.lap != self.lap || found.len() < wanted {
            return Err(broken(format!(
                "the redo log {} has {} records for the database to take over, and {wanted} were written",
                self.path.display(),
                found.len()
            )));
        }
        // One more may be there whole: it was written, and could not be flushed.
        found.truncate(wanted);
        Ok(found)
    }

    /// Has the database take over what it lacks of the lap.
    ///
    /// # Errors
    /// As the database and the file answer. Nothing has happened then.
    pub(super) fn catch_up(&self, connection: &Connection, mark: Mark) -> StoreResult<()> {
        take_over(connection, &self.after(mark)?, self.mark())
    }

    #[cfg(test)]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Has every write fail until the file that is given here is [given back](Self::write_to).
    #[cfg(test)]
    pub(super) fn forbid_writing(&mut self) -> File {
        let unwritable = File::open(&self.path).expect("it is there");
        std::mem::replace(&mut self.file, unwritable)
    }

    #[cfg(test)]
    pub(super) fn write_to(&mut self, file: File) {
        self.file = file;
    }

    /// Ends the log: the database has everything.
    pub(super) fn remove(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the empty redo log was left behind");
        }
    }
}

/// The statement by which the database notes how much it has taken over.
pub(super) fn note(mark: Mark) -> Sql {
    let mut sql = Sql::new(
        "insert into runtara_meta (key, value) values ('redo', ?) \
         on conflict (key) do update set value = excluded.value",
    );
    sql.bind(mark.to_text());
    sql
}

fn take_over(connection: &Connection, records: &[Sql], mark: Mark) -> StoreResult<()> {
    const WHAT: &str = "running again what the redo log has";
    let run = |sql: &Sql| sql.run_here(connection, WHAT).map(drop);
    run(&Sql::new("begin immediate"))?;
    let noted = note(mark);
    let mut all = records.iter().chain([&noted]);
    let done = all
        .try_for_each(run)
        .and_then(|()| run(&Sql::new("commit")));
    if done.is_err() {
        // Fails where SQLite has rolled back by itself.
        let _rolled_back_already = run(&Sql::new("rollback"));
    }
    done
}

/// Brings a database that is opened to what was answered when it was open last.
///
/// # Errors
/// [`crate::StoreError::Broken`] or [`crate::StoreError::Unavailable`] if it cannot be brought there. Nothing has happened then.
pub(super) fn recover(connection: &Connection, database: &Path) -> StoreResult<()> {
    const WHAT: &str = "asking how much of the redo log is taken over";
    let known = Sql::new("select 1 from sqlite_schema where name = 'runtara_meta'");
    if known.run_here(connection, WHAT)?.is_empty() {
        return Ok(());
    }
    let mark = Sql::new("select value from runtara_meta where key = 'redo'");
    let mark = mark.run_here(connection, WHAT)?;
    let Some(mark) = mark.first() else {
        return Ok(());
    };
    let mark = Mark::of_text(&Columns::of(mark).text()?)?;
    let path = path_of(database);
    let missing = read(&path, mark)?;
    if missing.is_empty() {
        return Ok(());
    }
    tracing::info!(
        path = %path.display(),
        records = missing.len(),
        "the database takes over what was answered and not committed before it was closed"
    );
    let records = mark.records + missing.len() as u64;
    take_over(connection, &missing, Mark { records, ..mark })
}

/// What the log of a database has beyond what SQLite has taken over: one [`Sql`] for each record.
///
/// # Errors
/// [`crate::StoreError::Broken`] if there is a file that cannot be read, or a record that is whole and means nothing.
fn read(path: &Path, mark: Mark) -> StoreResult<Vec<Sql>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Bytes::new(),
        Err(error) => {
            let context = format!("reading the redo log {}", path.display());
            return Err(broken_by(context, error));
        }
    };
    let odd = || {
        broken(format!(
            "the redo log {} has a record that is whole and means nothing",
            path.display()
        ))
    };
    let mut rest = Reader(bytes);
    let (mut texts, mut found, mut number) = (Vec::new(), Vec::new(), 0);
    while let Some(mut content) = rest.record(mark.lap, number) {
        let mut record = Sql::default();
        while !content.0.is_empty() {
            content.statement(&mut texts, &mut record).ok_or_else(odd)?;
        }
        if number >= mark.records {
            found.push(record);
        }
        number += 1;
    }
    if number < mark.records {
        tracing::warn!(
            path = %path.display(),
            "the redo log has {number} records, and the database has taken over {}: a part of it was lost, but nothing of the database",
            mark.records
        );
    }
    Ok(found)
}

fn checksum(lap: Lap, number: u64, content: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&lap.0.to_le_bytes());
    sum.update(&number.to_le_bytes());
    sum.update(content);
    sum.finalize()
}

fn put_length(record: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    record.extend_from_slice(&length.to_le_bytes());
}

fn put_bytes(record: &mut Vec<u8>, bytes: &[u8]) {
    put_length(record, bytes.len());
    record.extend_from_slice(bytes);
}

fn put_value(record: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => record.push(0),
        Value::Int(number) => {
            record.push(1);
            record.extend_from_slice(&number.to_le_bytes());
        }
        Value::Real(number) => {
            record.push(2);
            record.extend_from_slice(&number.to_le_bytes());
        }
        Value::Text(text) => {
            record.push(3);
            put_bytes(record, text.as_bytes());
        }
        Value::Blob(bytes) => {
            record.push(4);
            put_bytes(record, bytes);
        }
    }
}

/// Reads from front to back. `None` where the bytes end, or are not what is wanted.
struct Reader(Bytes);

impl Reader {
    fn bytes(&mut self, length: usize) -> Option<Bytes> {
        (length <= self.0.len()).then(|| self.0.split_to(length))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.as_ref().try_into().ok()
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(self.array()?)).ok()
    }

    fn text(&mut self) -> Option<String> {
        let length = self.length()?;
        String::from_utf8(self.bytes(length)?.into()).ok()
    }

    /// The content of the next record, if it is whole and has this number in this lap.
    fn record(&mut self, lap: Lap, number: u64) -> Option<Self> {
        let length = self.length()?;
        let expected = u32::from_le_bytes(self.array()?);
        // No record is empty: what was never written begins with zeros.
        let content = self.bytes(length).filter(|content| !content.is_empty())?;
        (checksum(lap, number, &content) == expected).then_some(Self(content))
    }

    fn statement(&mut self, texts: &mut Vec<String>, record: &mut Sql) -> Option<()> {
        let number = self.length()?;
        if number == texts.len() {
            texts.push(self.text()?);
        }
        record.then(texts.get(number)?.clone());
        for _ in 0..self.length()? {
            let value = self.value()?;
            record.bind(value);
        }
        Some(())
    }

    fn value(&mut self) -> Option<Value> {
        Some(match self.array::<1>()?[0] {
            0 => Value::Null,
            1 => Value::Int(i64::from_le_bytes(self.array()?)),
            2 => Value::Real(f64::from_le_bytes(self.array()?)),
            3 => Value::from(self.text()?),
            4 => {
                let length = self.length()?;
                Value::Blob(self.bytes(length)?)
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(name: &str, number: i64) -> Sql {
        let mut sql = Sql::new("insert into a values (?, ?, ?, ?)");
        sql.bind(name).bind(number).bind(None::<i64>);
        sql.bind(Bytes::from_static(b"\0\xff"));
        sql.then("update b set x = 1");
        sql
    }

    fn shown(statements: &[Sql]) -> Vec<String> {
        statements.iter().map(|sql| format!("{sql:?}")).collect()
    }

    fn written(path: &Path, lap: Lap, records: i64) -> (Redo, Vec<Sql>) {
        let mut redo = Redo::open(path).unwrap();
        redo.begin(lap);
        let all: Vec<_> = (0..records).map(|n| sql(&format!("n{n}"), n)).collect();
        for one in &all {
            assert!(redo.append(std::iter::once(one)).unwrap());
        }
        (redo, all)
    }

    #[test]
    fn what_was_written_is_read_from_any_mark_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let (redo, all) = written(&path, Lap(7), 5);
        let lap = |lap, records| Mark {
            lap: Lap(lap),
            records,
        };
        for records in 0..=5 {
            let rest = &all[usize::try_from(records).unwrap()..];
            assert_eq!(shown(&redo.after(lap(7, records)).unwrap()), shown(rest));
        }
        assert!(read(&redo.path, lap(7, 9)).unwrap().is_empty());
        assert!(read(&redo.path, lap(8, 0)).unwrap().is_empty());
        assert!(redo.after(lap(8, 0)).is_err());
    }

    /// A power failure may leave any part of the last record, and whatever an earlier lap has left behind it.
    #[test]
    fn a_log_that_is_cut_off_anywhere_ends_with_its_last_whole_record() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.db");
        let (mut redo, _) = written(&path, Lap(7), 9);
        redo.begin(Lap(8));
        let mut ends = vec![0];
        let all: Vec<_> = (0..3).map(|n| sql(&"m".repeat(9), n)).collect();
        for one in &all {
            assert!(redo.append(std::iter::once(one)).unwrap());
            ends.push(redo.end);
        }
        let log = path_of(&path);
        let whole = std::fs::read(&log).unwrap();
        let start = Mark {
            lap: Lap(8),
            records: 0,
        };
        for cut in 0..=redo.end {
            let mut torn = whole.clone();
            // What is written here is the opposite of what was there, so nothing is right by chance.
            torn[cut..redo.end]
                .iter_mut()
                .for_each(|byte| *byte = !*byte);
            std::fs::write(&log, &torn).unwrap();
            let kept = ends.iter().rposition(|end| *end <= cut).unwrap();
            assert_eq!(
                shown(&read(&log, start).unwrap()),
                shown(&all[..kept]),
                "cut at {cut}"
            );
            std::fs::write(&log, &whole[..cut]).unwrap();
            assert_eq!(shown(&read(&log, start).unwrap()), shown(&all[..kept]));
        }
    }

    #[test]
    fn what_is_too_large_and_what_finds_the_lap_full_is_left_to_sqlite() {
        let directory = tempfile::tempdir().unwrap();
        let mut redo = Redo::open(&directory.path().join("a.db")).unwrap();
        redo.begin(Lap(1));
        let of_size = |bytes: usize| {
            let mut sql = Sql::new("insert into a values (?)");
            sql.bind(vec![7; bytes]);
            sql
        };
        assert!(!redo.append(std::iter::once(&of_size(LARGEST + 1))).unwrap());
        let mut taken = 0;
        while redo.append(std::iter::once(&of_size(LARGEST / 2))).unwrap() {
            taken += 1;
        }
        assert_eq!(taken, 15);
        let mark = Mark {
            lap: Lap(1),
            records: 0,
        };
        assert_eq!(redo.after(mark).unwrap().len(), 15);
        assert_eq!(redo.mark().records, 15);
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let mark = Mark {
            lap: Lap::new(),
            records: 12,
        };
        assert_eq!(Mark::of_text(&mark.to_text()).unwrap(), mark);
        for odd in ["", "7", "x:1", "1:x"] {
            assert!(Mark::of_text(odd).is_err(), "{odd:?}");
        }
    }
}
