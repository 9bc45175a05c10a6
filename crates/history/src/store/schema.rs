//! The tables, and how older versions of them become the present one. docs/lab-history.md describes them for users.

use rusqlite::Transaction;

/// `PRAGMA application_id` of a history: `WLab` in ASCII.
pub const APPLICATION: i64 = 0x574c_6162;
/// `PRAGMA user_version` of this program's tables.
pub const VERSION: i64 = MIGRATIONS.len() as i64;

/// The statements that lead from each version to the next, beginning with an empty file.
const MIGRATIONS: [&str; 2] = [
    // 1: runs, each with its whole series as text.
    "CREATE TABLE runs (
         id INTEGER PRIMARY KEY AUTOINCREMENT,
         begun_ms INTEGER NOT NULL,
         series TEXT NOT NULL,
         experiment TEXT NOT NULL,
         mode TEXT NOT NULL,
         engine TEXT NOT NULL,
         version TEXT NOT NULL,
         revision TEXT,
         parameters TEXT NOT NULL,
         host TEXT NOT NULL,
         kernel TEXT NOT NULL,
         cpus INTEGER NOT NULL,
         memory_bytes INTEGER NOT NULL,
         filesystem TEXT NOT NULL,
         mount_options TEXT NOT NULL,
         cgroups TEXT NOT NULL,
         load REAL NOT NULL,
         headline TEXT NOT NULL,
         complete INTEGER NOT NULL,
         error TEXT,
         command TEXT NOT NULL
     );
     CREATE TABLE figures (
         run INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
         name TEXT NOT NULL,
         value REAL NOT NULL,
         PRIMARY KEY (run, name)
     ) WITHOUT ROWID;
     CREATE TABLE timelines (
         run INTEGER PRIMARY KEY REFERENCES runs (id) ON DELETE CASCADE,
         zlib BLOB NOT NULL
     );",
    // 2: series are counted and drawn without reading the runs' texts and figures; what a newer program knows of a
    // run beyond the columns is kept; steps that were reported are remembered.
    "CREATE TABLE series (
         id INTEGER PRIMARY KEY,
         name TEXT NOT NULL UNIQUE,
         watched INTEGER NOT NULL DEFAULT 0
     );
     INSERT INTO series (name) SELECT DISTINCT series FROM runs ORDER BY series;
     ALTER TABLE runs ADD COLUMN series_id INTEGER REFERENCES series (id);
     ALTER TABLE runs ADD COLUMN value REAL;
     ALTER TABLE runs ADD COLUMN more TEXT;
     UPDATE runs SET
         series_id = (SELECT id FROM series WHERE name = runs.series),
         value = (SELECT value FROM figures WHERE run = runs.id AND name = runs.headline);
     ALTER TABLE runs DROP COLUMN series;
     CREATE INDEX runs_by_series ON runs (series_id, begun_ms);
     CREATE INDEX runs_by_time ON runs (begun_ms);
     CREATE TABLE reported_steps (
         series_id INTEGER NOT NULL REFERENCES series (id) ON DELETE CASCADE,
         run INTEGER NOT NULL,
         ratio REAL NOT NULL,
         reported_ms INTEGER NOT NULL,
         PRIMARY KEY (series_id, run)
     ) WITHOUT ROWID;",
];

/// The tables of the present version.
const TABLES: [&str; 5] = ["figures", "reported_steps", "runs", "series", "timelines"];

/// What a file was found to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A history of this version.
    Present,
    /// An empty file, or a history of an older version.
    Older,
    /// A history of a newer version.
    Newer(i64),
    /// A database of another program.
    Foreign,
    /// A history that lacks a table.
    Lacking(&'static str),
}

/// Looks at a file, within one transaction: another process may be creating it.
pub fn look(db: &Transaction<'_>) -> rusqlite::Result<Found> {
    let number = |pragma: &str| db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let mut tables = db.prepare("SELECT name FROM sqlite_master WHERE type = 'table'")?;
    let tables: Vec<String> = tables.query_map((), |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(match (application, version) {
        (0, 0) if tables.is_empty() => Found::Older,
        (APPLICATION, 1..VERSION) => Found::Older,
        (APPLICATION, VERSION) => match TABLES.iter().find(|name| !tables.iter().any(|has| has == *name)) {
            Some(missing) => Found::Lacking(missing),
            None => Found::Present,
        },
        (APPLICATION, newer) if newer > VERSION => Found::Newer(newer),
        _ => Found::Foreign,
    })
}

/// Brings the tables to the present version, all within one transaction.
pub fn migrate(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    for statements in MIGRATIONS.iter().skip(usize::try_from(version).unwrap_or(usize::MAX)) {
        transaction.execute_batch(statements)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", VERSION)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use rusqlite::Connection;

    fn seen(db: &Connection) -> Found {
        look(&db.unchecked_transaction().unwrap()).unwrap()
    }

    /// Makes a file of version 1.
    pub fn first(db: &Connection) {
        db.execute_batch(MIGRATIONS[0]).unwrap();
        db.pragma_update(None, "application_id", APPLICATION).unwrap();
        db.pragma_update(None, "user_version", 1).unwrap();
    }

    #[test]
    fn what_a_file_is() {
        let db = Connection::open_in_memory().unwrap();
        assert_eq!(seen(&db), Found::Older);
        first(&db);
        assert_eq!(seen(&db), Found::Older);
        let mut db = db;
        let transaction = db.transaction().unwrap();
        migrate(&transaction).unwrap();
        transaction.commit().unwrap();
        assert_eq!(seen(&db), Found::Present);
        db.execute_batch("DROP TABLE timelines").unwrap();
        assert_eq!(seen(&db), Found::Lacking("timelines"));
        db.pragma_update(None, "user_version", VERSION + 1).unwrap();
        assert_eq!(seen(&db), Found::Newer(VERSION + 1));
        let other = Connection::open_in_memory().unwrap();
        other.execute_batch("CREATE TABLE t (a)").unwrap();
        assert_eq!(seen(&other), Found::Foreign);
    }
}
