//! Checks whether a directory given as an option belongs to wardian. A server restricts its mode, mounts a tmpfs on
//! it and deletes entries without a record; `wardian reset` deletes its content. None of that may happen to a
//! directory of another program.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType};
use wardian_sys::directory::{self, Directory};

use super::files;
use super::format::{self, Format};

/// The file in which a server identifies itself in its run directory.
pub const INSTANCE: &str = "instance.json";
/// The directory in which layers are attached for root file systems that somebody else mounts. The name is short,
/// because an overlay's options have the path of each layer and must fit into a page.
pub(crate) const PARTS: &str = "l";
/// How many digits of a layer's instance name its mount there.
pub(crate) const PART_DIGITS: usize = 12;
/// The directories of a run directory.
const RUN_DIRECTORIES: [&str; 5] = ["containers", "history", "rootfs", "pool", PARTS];
/// Other files of wardian in a run directory. These names alone prove nothing: some exist before the server has
/// written [`INSTANCE`].
const RUN_FILES: [&str; 7] =
    [INSTANCE, "instance.json.new", files::LOCK, ".lock.guard", ".lock.new", ".mount.guard", "garden.sock"];
/// All entries that a server makes in its run directory, except its lock and the lock's guards, which
/// [`wardian_sys::lock`] replaces.
pub(crate) const RUN_ENTRIES: [&str; 8] =
    [INSTANCE, "instance.json.new", "garden.sock", "pool", "containers", "history", "rootfs", PARTS];
/// The entries of [`RUN_ENTRIES`] that each start of a server makes anew.
pub(crate) const REPLACED: [&str; 3] = [INSTANCE, "instance.json.new", "pool"];
/// Entries that a store's directory may have without a `format.json`: the lock, which exists before it and after an
/// interrupted removal, and what mkfs makes.
const STORE_FILES: [&str; 2] = [files::LOCK, "lost+found"];
/// System directories (hier(7)), which are never accepted as a store or a run directory, whatever they contain.
const SYSTEM: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/dev/pts",
    "/dev/shm",
    "/etc",
    "/home",
    "/lib",
    "/lib64",
    "/proc",
    "/root",
    "/run",
    "/run/lock",
    "/sbin",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/local",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/run",
    "/var/tmp",
];
/// How often a run directory is checked before it is refused, …
const LOOKS: u32 = 20;
/// … and the interval between two checks.
const LOOK: Duration = Duration::from_millis(10);
/// The maximum size of a record that is read, in bytes.
const MOST: u64 = 64 << 20;

/// Why a directory is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is a system directory.
    #[error(
        "{path} is a directory of the system, and what is in it would be deleted or closed to others: name a directory of \
         wardian's own ({option})",
        path = .path.display()
    )]
    System {
        /// The directory.
        path: PathBuf,
        /// The option that names it.
        option: &'static str,
    },
    /// It is not empty and has no `format.json`.
    #[error(
        "{path} is no store of wardian: it has no format.json, but it holds {found}, which might be deleted. Nothing was \
         touched; name the store (--root), or a directory that is new or empty",
        path = .path.display()
    )]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// The first thing in it that is not ours.
        found: String,
    },
    /// It is not empty and has no record of a server.
    #[error(
        "{path} is no run directory of wardian: it has no record of a server (instance.json), but it holds {found}, which \
         might be hidden or deleted. Nothing was touched; name the run directory (--run), or a directory that is new or \
         empty",
        path = .path.display()
    )]
    NotARun {
        /// The directory.
        path: PathBuf,
        /// The first thing in it that is not ours.
        found: String,
    },
    /// Its `format.json` is invalid, or of a format that this program must not touch.
    #[error(transparent)]
    Format(#[from] format::Error),
    /// The directory cannot be read, or others could change it.
    #[error(transparent)]
    Directory(#[from] directory::Error),
}

/// Returns whether the directory is a store; false if it is empty or missing.
///
/// # Errors
/// It is something else.
pub fn store(path: &Path) -> Result<bool, Error> {
    let Some((dir, names)) = open(path, "--root")? else { return Ok(false) };
    if names.iter().any(|name| name == files::FORMAT) {
        let text = dir.read(files::FORMAT, MOST)?;
        Format::parse(&String::from_utf8_lossy(&text))?;
        return Ok(true);
    }
    let half = format!(".{}.", files::FORMAT);
    let harmless = |name: &OsStr| {
        STORE_FILES.iter().any(|known| name == *known) || name.to_string_lossy().starts_with(&half)
    };
    match names.iter().find(|name| !harmless(name)) {
        Some(name) => Err(Error::NotAStore { path: dir.path().to_owned(), found: shown(name) }),
        None => Ok(false),
    }
}

/// Returns whether the directory is the run directory of a server or of commands; false if it holds no record of
/// theirs and nothing of anybody else's but sockets and PID files (`*.pid`), or if it is missing.
///
/// # Errors
/// It is something else.
pub fn run(path: &Path) -> Result<bool, Error> {
    let mut looks = 0;
    loop {
        let Some((dir, names)) = open(path, "--run")? else { return Ok(false) };
        if is_proven(&dir) {
            return Ok(true);
        }
        let Some(name) = names.iter().find(|name| !is_harmless(&dir, name)) else { return Ok(false) };
        looks += 1;
        if looks == LOOKS {
            return Err(Error::NotARun { path: dir.path().to_owned(), found: shown(name) });
        }
        // Another command may be writing the first record, or removing the last one.
        std::thread::sleep(LOOK);
    }
}

/// Opens the directory and lists its entries. A directory that others can write to, such as /tmp, is opened as well:
/// its mode is restricted before anything is created in it.
fn open(path: &Path, option: &'static str) -> Result<Option<(Directory, Vec<OsString>)>, Error> {
    let dir = match Directory::open_shared(path) {
        Err(error) if error.is_missing() => return Ok(None),
        other => other?,
    };
    if SYSTEM.iter().any(|system| dir.path() == Path::new(system)) {
        return Err(Error::System { path: dir.path().to_owned(), option });
    }
    let names = dir.names()?;
    Ok(Some((dir, names)))
}

fn shown(name: &OsStr) -> String {
    format!("{:?}", name.to_string_lossy())
}

/// Whether the directory holds a server's [`INSTANCE`] file, or a record of a root file system or of a container.
fn is_proven(run: &Directory) -> bool {
    let has = |dir: &Directory, name: &OsStr, fields: &[&str]| {
        let text = dir.read(name, MOST).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        fields.iter().all(|field| record[*field].is_string())
    };
    let names = |dir: &Directory| dir.names().unwrap_or_default();
    has(run, OsStr::new(INSTANCE), &["tag", "root"])
        || run.child("rootfs").is_ok_and(|dir| {
            let records = names(&dir).into_iter().filter(|name| name.to_string_lossy().ends_with(".json"));
            records.into_iter().any(|name| has(&dir, &name, &["id", "dir", "boot_id", "image"]))
        })
        || run.child("containers").is_ok_and(|dir| {
            let state = |id| {
                dir.child(id).is_ok_and(|dir| has(&dir, OsStr::new("state.json"), &["handle", "boot_id"]))
            };
            names(&dir).into_iter().any(state)
        })
}

/// Whether an entry tells nothing about the directory's owner, and can be hidden by a mount or deleted without harm.
/// A symlink is checked by the code that opens it.
fn is_harmless(run: &Directory, name: &OsStr) -> bool {
    let kind = |dir: &Directory, name: &OsStr| {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
        stat.map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
    };
    let socket_or_link =
        |dir: &Directory, name: &OsStr| matches!(kind(dir, name), FileType::Socket | FileType::Symlink);
    if RUN_DIRECTORIES.iter().any(|known| name == *known) && kind(run, name) == FileType::Directory {
        // A killed command may have left layers attached there.
        let layer = |name: &OsStr| {
            let name = name.to_string_lossy();
            name.len() == PART_DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let known = |dir: &Directory, entry: &OsStr| match name == PARTS {
            true => layer(entry) && kind(dir, entry) == FileType::Directory,
            false => socket_or_link(dir, entry),
        };
        // A directory that is not trusted is refused with its reason when it is opened.
        return run
            .child(name)
            .map_or(true, |dir| dir.names().is_ok_and(|names| names.iter().all(|entry| known(&dir, entry))));
    }
    RUN_FILES.iter().chain(&RUN_DIRECTORIES).any(|known| name == *known)
        || name.to_string_lossy().starts_with(directory::ASIDE)
        || socket_or_link(run, name)
        || (Path::new(name).extension() == Some(OsStr::new("pid"))
            && kind(run, name) == FileType::RegularFile)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn directories_of_the_system_are_nobodys() {
        // These directories are only read.
        for path in ["/", "/etc", "/usr/../etc", "/tmp", "/run"] {
            assert!(matches!(store(Path::new(path)), Err(Error::System { .. })), "{path}");
            assert!(matches!(run(Path::new(path)), Err(Error::System { .. })), "{path}");
        }
    }

    #[test]
    fn a_store_says_so_or_is_empty() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("root");
        assert!(!store(&dir).unwrap());
        fs::create_dir(&dir).unwrap();
        for name in ["lock", "lost+found", ".format.json.1"] {
            fs::write(dir.join(name), "").unwrap();
            assert!(!store(&dir).unwrap());
        }
        // Another program may have a directory of this name.
        fs::create_dir(dir.join("trash")).unwrap();
        let error = store(&dir).unwrap_err().to_string();
        assert!(error.contains("no store of wardian") && error.contains("\"trash\""), "{error}");
        fs::write(dir.join("format.json"), r#"{"version":1}"#).unwrap();
        assert!(store(&dir).unwrap());
        fs::write(dir.join("format.json"), r#"{"indent":4}"#).unwrap();
        assert!(matches!(store(&dir), Err(Error::Format(_))));
    }

    #[test]
    fn another_command_may_be_writing_its_record() {
        let dir = tempfile::tempdir().unwrap();
        let records = dir.path().join("rootfs");
        fs::create_dir(&records).unwrap();
        let (half, whole) = (records.join("r.json.new"), records.join("r.json"));
        fs::write(&half, r#"{"id":"r","dir":"d","boot_id":"b","image":"i"}"#).unwrap();
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| run(dir.path()));
            std::thread::sleep(3 * LOOK);
            assert!(!looking.is_finished());
            fs::rename(&half, &whole).unwrap();
            assert!(looking.join().unwrap().unwrap());
        });
    }

    #[test]
    fn a_run_directory_has_a_record_or_nothing() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("run");
        assert!(!run(&dir).unwrap());
        fs::create_dir_all(dir.join("containers")).unwrap();
        fs::create_dir(dir.join("pool")).unwrap();
        for name in ["lock", "garden.pid", "instance.json"] {
            fs::write(dir.join(name), "").unwrap();
        }
        let _socket = std::os::unix::net::UnixListener::bind(dir.join("other.sock")).unwrap();
        assert!(!run(&dir).unwrap());
        fs::create_dir_all(dir.join("l/0123456789ab")).unwrap();
        assert!(!run(&dir).unwrap());
        for foreign in ["notes", "containers/theirs", "pool/theirs", "l/theirs", "l/0123456789ac"] {
            fs::write(dir.join(foreign), "").unwrap();
            assert!(matches!(run(&dir), Err(Error::NotARun { .. })), "{foreign}");
            fs::remove_file(dir.join(foreign)).unwrap();
        }
        fs::create_dir_all(dir.join("containers/c")).unwrap();
        fs::create_dir_all(dir.join("rootfs")).unwrap();
        let instance = r#"{"tag":"t","root":"/x","pid":1}"#;
        let record = r#"{"id":"a","dir":"d","boot_id":"b","image":"i"}"#;
        let state = r#"{"handle":"h","boot_id":"b"}"#;
        for (name, text) in
            [(INSTANCE, instance), ("rootfs/a.json", record), ("containers/c/state.json", state)]
        {
            assert!(run(&dir).is_err(), "{name}");
            fs::write(dir.join(name), text).unwrap();
            assert!(run(&dir).unwrap(), "{name}");
            fs::write(dir.join(name), "{}").unwrap();
        }
    }
}
