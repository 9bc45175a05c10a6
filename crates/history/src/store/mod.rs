//! The store of runs: one SQLite file.
//!
//! It is in WAL mode: a reader never blocks a writer, and writers wait for each other, at most for [`PATIENCE`]. The last
//! process that closes the file merges the WAL into it, so that between two runs it is one file that can be copied.

mod query;
mod row;
mod schema;
mod watch;

#[cfg(test)]
pub mod tests;

pub use query::{Filter, Point, Series};

use crate::error::{Error, Result};
use crate::{Run, bounds};
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use wardian_sys::directory::{Directory, Error as Untrusted};

/// The default path of the history.
pub const PATH: &str = "/var/lib/wardian/lab/history.sqlite";
/// How long a locked file is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest text or blob in bytes: a timeline is shorter, as JSON.
const LONGEST: i32 = 32 << 20;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// For reading and writing; it is created where it is missing.
    Create,
    /// For reading and writing.
    Write,
    /// For reading, from a place where nothing is written.
    Read,
}

/// The store of runs.
#[derive(Debug)]
pub struct Store {
    db: Connection,
    path: PathBuf,
}

impl Store {
    /// Opens a history for reading and writing. It is created where it is missing: the file with mode 0600, its directory
    /// with 0700. Tables of an older version are migrated.
    ///
    /// # Errors
    /// [`Error::Place`] where other users could change the file or its directory; [`Error::Damaged`],
    /// [`Error::Foreign`], [`Error::Newer`] for a file that is kept as it is; [`Error::Full`], [`Error::Busy`].
    pub fn open(path: &Path) -> Result<Self> {
        let missing = || Error::NoFile { path: path.to_owned() };
        let (Some(name), Some(above)) = (path.file_name(), path.parent()) else { return Err(missing()) };
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        // A directory that exists keeps its mode: it need not be the history's own.
        let dir = match Directory::open(above) {
            Err(error) if error.is_missing() => Directory::make(above, 0o700)?.0,
            other => other?,
        };
        Self::in_dir(&dir, Path::new(name), Access::Create)
    }

    /// Opens a history that exists; `None` where there is none.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn existing(path: &Path) -> Result<Option<Self>> {
        Self::found(path, Access::Write)
    }

    /// The same for reading, also from a file system that is read-only or of which nothing may be changed.
    ///
    /// # Errors
    /// As [`Store::open`]; a file that cannot be written has tables of an older version, or an unmerged `-wal`.
    pub fn readable(path: &Path) -> Result<Option<Self>> {
        let unwritable = |error: &Error| match error {
            Error::Place(Untrusted::System { source, .. }) => {
                matches!(Errno::from_io_error(source), Some(Errno::ROFS | Errno::ACCESS | Errno::PERM))
            }
            _ => false,
        };
        match Self::found(path, Access::Write) {
            Err(error) if unwritable(&error) => Self::found(path, Access::Read),
            other => other,
        }
    }

    fn found(path: &Path, access: Access) -> Result<Option<Self>> {
        let missing = || Error::NoFile { path: path.to_owned() };
        let (Some(name), Some(above)) = (path.file_name(), path.parent()) else { return Err(missing()) };
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        let opened = Directory::open(above)
            .map_err(Error::from)
            .and_then(|dir| Self::in_dir(&dir, Path::new(name), access));
        match opened {
            Err(Error::Place(error)) if error.is_missing() => Ok(None),
            other => other.map(Some),
        }
    }

    fn in_dir(dir: &Directory, name: &Path, access: Access) -> Result<Self> {
        let path = dir.path().join(name);
        judge(dir, name, access)?;
        let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let opened = if access == Access::Read {
            let mut wal = path.clone().into_os_string();
            wal.push("-wal");
            if std::fs::metadata(&wal).is_ok_and(|wal| wal.len() > 0) {
                return Err(Error::Unmerged { path });
            }
            let flags = flags | OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
            Connection::open_with_flags(immutable(&path), flags)
        } else {
            Connection::open_with_flags(&path, flags | OpenFlags::SQLITE_OPEN_READ_WRITE)
        };
        let db = opened.map_err(|error| told(&path, error))?;
        let mut store = Self { db, path };
        store.prepare(access)?;
        Ok(store)
    }

    fn prepare(&mut self, access: Access) -> Result<()> {
        let known = |found| match found {
            schema::Found::Newer(found) => {
                Err(Error::Newer { path: self.path.clone(), found, known: schema::VERSION })
            }
            schema::Found::Foreign => Err(Error::Foreign { path: self.path.clone() }),
            schema::Found::Lacking(table) => {
                let why = format!("it has no table {table}");
                Err(Error::Damaged { path: self.path.clone(), why })
            }
            schema::Found::Present => Ok(true),
            schema::Found::Older => Ok(false),
        };
        let failed = |error| told(&self.path, error);
        self.db.busy_timeout(PATIENCE).map_err(failed)?;
        // The file may be another program's: nothing that its schema names is run, and no value takes the memory that it
        // says.
        for off in [DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW] {
            self.db.set_db_config(off, false).map_err(failed)?;
        }
        self.db.set_limit(Limit::SQLITE_LIMIT_LENGTH, LONGEST).map_err(failed)?;
        self.db.pragma_update(None, "trusted_schema", false).map_err(failed)?;
        let looked = self.db.transaction().and_then(|transaction| schema::look(&transaction));
        let present = known(looked.map_err(failed)?)?;
        // A commit need not reach the disk at once: a power loss costs the last runs, and never the file.
        self.db.pragma_update(None, "synchronous", "NORMAL").map_err(failed)?;
        self.db.pragma_update(None, "foreign_keys", true).map_err(failed)?;
        if !present && access == Access::Read {
            return Err(Error::Unmerged { path: self.path.clone() });
        }
        if !present {
            let begun = Instant::now();
            // Two processes that both change the mode may each get SQLITE_BUSY without a wait.
            while let Err(error) = self.db.pragma_update(None, "journal_mode", "WAL") {
                if !is_busy(&error) || begun.elapsed() > PATIENCE {
                    return Err(failed(error));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let path = self.path.clone();
            let failed = |error| told(&path, error);
            let transaction =
                self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
            // Another process may have migrated it meanwhile.
            if !known_now(&path, &transaction)? {
                schema::migrate(&transaction).map_err(failed)?;
            }
            transaction.commit().map_err(failed)?;
        }
        Ok(())
    }

    /// The file's path, without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a run, with its timeline. Returns its number; [`Run::id`] is not heeded.
    ///
    /// # Errors
    /// [`Error::Run`] for a run that is out of bounds; [`Error::Full`], [`Error::Busy`].
    pub fn append(&mut self, run: &Run) -> Result<i64> {
        let mut batch = self.batch()?;
        let id = batch.append(run)?;
        batch.commit()?;
        Ok(id)
    }

    /// Begins to append several runs, all or none of them.
    pub(crate) fn batch(&mut self) -> Result<Batch<'_>> {
        let path = &self.path;
        let transaction = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| told(path, error))?;
        Ok(Batch { transaction, path })
    }

    /// Deletes runs. Returns how many there were.
    ///
    /// # Errors
    /// [`Error::Busy`] and the like.
    pub fn delete(&mut self, ids: &[i64]) -> Result<usize> {
        let mut batch = self.batch()?;
        let mut deleted = 0;
        for id in ids {
            deleted += batch.execute("DELETE FROM runs WHERE id = ?1", params![id])?;
        }
        batch.tidy()?;
        batch.commit()?;
        Ok(deleted)
    }

    /// Deletes all but the newest `keep` runs of each series. Returns how many were deleted. The file shrinks.
    ///
    /// # Errors
    /// [`Error::Busy`] and the like.
    pub fn prune(&mut self, keep: usize) -> Result<usize> {
        let keep = i64::try_from(keep).unwrap_or(i64::MAX);
        let mut batch = self.batch()?;
        let deleted = batch.execute(
            "DELETE FROM runs WHERE id IN (
                 SELECT id FROM (
                     SELECT id, row_number() OVER (PARTITION BY series_id ORDER BY begun_ms DESC, id DESC) AS place
                     FROM runs
                 ) WHERE place > ?1
             )",
            params![keep],
        )?;
        batch.tidy()?;
        batch.commit()?;
        if deleted > 0 {
            self.db.execute_batch("VACUUM").map_err(|error| told(&self.path, error))?;
        }
        Ok(deleted)
    }

    /// A number that changes when another process has changed the file.
    ///
    /// # Errors
    /// [`Error::Damaged`] and the like.
    pub fn generation(&self) -> Result<i64> {
        let read = self.db.pragma_query_value(None, "data_version", |row| row.get(0));
        read.map_err(|error| told(&self.path, error))
    }
}

fn known_now(path: &Path, db: &Transaction<'_>) -> Result<bool> {
    match schema::look(db).map_err(|error| told(path, error))? {
        schema::Found::Present => Ok(true),
        schema::Found::Older => Ok(false),
        _ => Err(Error::Busy { path: path.to_owned() }),
    }
}

/// Runs that are appended together.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    transaction: rusqlite::Transaction<'a>,
    path: &'a Path,
}

impl Batch<'_> {
    fn execute(&mut self, sql: &str, params: impl rusqlite::Params) -> Result<usize> {
        let done = self.transaction.prepare_cached(sql).and_then(|mut statement| statement.execute(params));
        done.map_err(|error| told(self.path, error))
    }

    /// Appends a run.
    pub fn append(&mut self, run: &Run) -> Result<i64> {
        bounds::check(run)?;
        let timeline = run.timeline.as_ref().map(packed).transpose()?;
        let failed = |error| told(self.path, error);
        let series = self.series(&run.series())?;
        let row = row::Row::of(run)?;
        let mut statement = self.transaction.prepare_cached(row::INSERT).map_err(failed)?;
        statement.execute(rusqlite::params_from_iter(row.params(series))).map_err(failed)?;
        drop(statement);
        let id = self.transaction.last_insert_rowid();
        for (name, value) in &run.figures {
            self.execute(
                "INSERT INTO figures (run, name, value) VALUES (?1, ?2, ?3)",
                params![id, name, value],
            )?;
        }
        if let Some(timeline) = timeline {
            self.execute("INSERT INTO timelines (run, zlib) VALUES (?1, ?2)", params![id, timeline])?;
        }
        Ok(id)
    }

    /// Whether the same run is there already: of the same series, begun in the same millisecond, with the same value.
    pub fn has(&mut self, run: &Run) -> Result<bool> {
        let found = self.transaction.prepare_cached(
            "SELECT 1 FROM runs JOIN series ON series.id = series_id
             WHERE series.name = ?1 AND begun_ms = ?2 AND value IS ?3 AND complete = ?4",
        );
        let found = found.and_then(|mut statement| {
            statement.exists(params![run.series(), run.begun_ms, run.value(), run.complete])
        });
        found.map_err(|error| told(self.path, error))
    }

    fn series(&mut self, name: &str) -> Result<i64> {
        self.execute("INSERT OR IGNORE INTO series (name) VALUES (?1)", params![name])?;
        let found = self.transaction.prepare_cached("SELECT id FROM series WHERE name = ?1");
        let found = found.and_then(|mut statement| statement.query_row(params![name], |row| row.get(0)));
        found.map_err(|error| told(self.path, error))
    }

    /// Removes series without runs.
    fn tidy(&mut self) -> Result<()> {
        self.execute("DELETE FROM series WHERE id NOT IN (SELECT series_id FROM runs)", ())?;
        Ok(())
    }

    /// Keeps what was appended.
    pub fn commit(self) -> Result<()> {
        self.transaction.commit().map_err(|error| told(self.path, error))
    }
}

/// Checks that the file is root's alone, and creates it.
fn judge(dir: &Directory, name: &Path, access: Access) -> Result<()> {
    let path = dir.path().join(name);
    let system = |errno: Errno| Untrusted::System { path: path.clone(), source: errno.into() };
    let strange = |what| Error::Place(Untrusted::Strange { path: path.clone(), what });
    let how = match access {
        Access::Create => OFlags::RDWR | OFlags::CREATE,
        Access::Write => OFlags::RDWR,
        Access::Read => OFlags::RDONLY,
    };
    let flags = how | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| match errno {
        Errno::LOOP => strange("a link"),
        Errno::ISDIR => strange("a directory"),
        Errno::NXIO => strange("no regular file"),
        errno => system(errno).into(),
    })?;
    let stat = fstat(&file).map_err(system)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(strange("no regular file"));
    }
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(Untrusted::Owner { path, uid: stat.st_uid }.into());
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(Untrusted::Writable { path, mode: stat.st_mode & 0o7777 }.into());
    }
    Ok(())
}

/// Whether a file is a SQLite database, which nothing else is to be written to.
pub fn is_database(path: &Path) -> bool {
    let mut begin = [0; 16];
    // Another kind of file might wait for its reader.
    let file = std::fs::metadata(path).is_ok_and(|file| file.is_file()).then(|| std::fs::File::open(path));
    file.is_some_and(|file| {
        file.and_then(|mut file| file.read_exact(&mut begin)).is_ok() && begin == *b"SQLite format 3\0"
    })
}

/// The URI of a file that nobody writes (sqlite.org/uri.html).
fn immutable(path: &Path) -> String {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            byte => {
                let _ = write!(uri, "%{byte:02X}");
            }
        }
    }
    uri + "?immutable=1"
}

/// A timeline as the store keeps it.
fn packed(timeline: &crate::Timeline) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(timeline).map_err(|error| Error::Run { why: error.to_string() })?;
    if json.len() > bounds::TIMELINE {
        let why = format!("its timeline has {} bytes, more than {}", json.len(), bounds::TIMELINE);
        return Err(Error::Run { why });
    }
    let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(&json)?;
    Ok(packer.finish()?)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
    )
}

/// SQLite's error in the words of a user.
fn told(path: &Path, error: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode as Code;
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(Code::NotADatabase | Code::DatabaseCorrupt) => Error::Damaged { path, why: error.to_string() },
        Some(Code::DiskFull) => Error::Full { path },
        _ if is_busy(&error) => Error::Busy { path },
        _ => Error::Sqlite { path, source: error },
    }
}
