//! The instance of a run directory: its lock, and the tag that names its cgroups.

use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wardian_sys::directory::{self, Directory};
use wardian_sys::lock;

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The run directory cannot be made, or not be used.
    #[error("run directory: {path}: {source}")]
    Unfit {
        /// The run directory's path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process holds the lock.
    #[error("run directory: {0}")]
    Lock(#[from] lock::Error),
    /// The instance record cannot be written.
    #[error("run directory: {0}")]
    Record(#[from] directory::Error),
}

type Result<T> = std::result::Result<T, Error>;

/// The name of the instance record in the run directory.
pub const RECORD: &str = wardian_store::whose::INSTANCE;
/// The lock of a run directory.
pub const LOCK: &str = "lock";
/// The most bytes of an instance record, which has some hundred bytes and a path.
const MOST: u64 = 64 << 10;
/// How long the lock is waited for: a server that was killed a moment ago may still hold it.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often a run directory is opened that is another one once its lock is taken.
const TRIES: u32 = 16;

/// Opens the run directory, on a tmpfs, and takes its lock.
///
/// A server without containers unmounts its tmpfs when it ends, and gives the lock in it up after that. Whoever has
/// waited for that lock has the lock of a directory that is not there any more, and would hide its records from the
/// next server: it begins again.
pub fn open(run: &Path) -> Result<(Directory, OwnedFd)> {
    let unfit = |source| Error::Unfit { path: run.to_owned(), source };
    for _ in 0..TRIES {
        let dir = wardian_store::run::prepare(run).map_err(unfit)?;
        let lock = take_lock(&dir, &|text| tracing::warn!(text, "start.lock"))?;
        let number = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        let own = rustix::fs::fstat(&dir).map(number).map_err(|error| unfit(error.into()))?;
        if rustix::fs::stat(run).is_ok_and(|stat| number(stat) == own) {
            return Ok((dir, lock));
        }
    }
    Err(unfit(std::io::Error::other("it is mounted and unmounted all the time")))
}

/// Takes the run directory's lock, which one process at a time can hold. `tell` is told what this waits for.
pub fn take_lock(dir: &Directory, tell: &dyn Fn(&str)) -> Result<OwnedFd> {
    lock::take(dir, LOCK, PATIENCE, tell).map_err(Error::Lock)
}

/// Writes the instance record. `next_port` is what [`next_port`] returns to the next server.
pub fn write(
    dir: &Directory,
    tag: &str,
    root: &Path,
    certificate: Option<&Path>,
    next_port: u32,
) -> Result<()> {
    let pid = std::process::id();
    let instance = serde_json::json!({
        "tag": tag,
        "root": root,
        "pid": pid,
        "certificate": certificate,
        "next_port": next_port,
    });
    dir.write(RECORD, instance.to_string().as_bytes()).map_err(Error::Record)
}

/// Returns where the pool of ports goes on: what the last server that ended in good order has noted, or 0.
pub fn next_port(dir: &Directory) -> u32 {
    let record = dir.read(RECORD, MOST).unwrap_or_default();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
    record["next_port"].as_u64().and_then(|port| u32::try_from(port).ok()).unwrap_or_default()
}

/// Returns the tag that names the cgroups of this directory's instance. Instances of an earlier version have
/// a short tag, which other directories may share; it is used if the record says so. Any other tag in the
/// record is ignored: only the path tells whose a cgroup is.
pub fn tag(dir: &Directory) -> String {
    let short = short_tag(dir.path());
    // An earlier version left the record's mode to the umask.
    dir.close_to_others(RECORD);
    let record = dir.read(RECORD, MOST).unwrap_or_default();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
    if record["tag"] == short.as_str() { short } else { long_tag(dir.path()) }
}

/// Whether a tag is that of an earlier version.
pub fn is_short(tag: &str) -> bool {
    tag.len() == 8
}

/// Returns the first 128 bits of the SHA-256 of the run directory's path without symbolic links, in hex: no
/// two directories share a tag.
pub fn long_tag(run: &Path) -> String {
    let digest = Sha256::digest(run.as_os_str().as_bytes());
    digest.iter().take(16).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns the tag of earlier versions: FNV-1a of the path, 32 bits.
fn short_tag(run: &Path) -> String {
    let bytes = run.as_os_str().as_bytes();
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_needs::needs;

    #[test]
    fn directories_that_shared_a_tag_do_not_any_more() {
        // A collision, found by trying.
        let (a, b) = (Path::new("/run/w87a0d67"), Path::new("/run/w1cb6c05a"));
        assert_eq!(short_tag(a), short_tag(b));
        assert_ne!(long_tag(a), long_tag(b));
        assert_eq!(long_tag(Path::new("/run/wardian")), "b00e6bf5bba5e51e1eabb1d373af14c7");
    }

    #[test]
    fn a_directory_that_goes_while_its_lock_is_waited_for_is_opened_anew() {
        needs!(Root);
        let base = tempfile::tempdir().unwrap();
        let run = base.path().join("run");
        let first = open(&run).unwrap();
        let (dir, _lock) = std::thread::scope(|scope| {
            let second = scope.spawn(|| open(&run).unwrap());
            // Until it waits for the lock, most likely; otherwise there is nothing to be seen.
            std::thread::sleep(Duration::from_millis(300));
            wardian_store::run::leave(&run);
            drop(first);
            second.join().unwrap()
        });
        let there = rustix::fs::stat(&run).unwrap();
        let own = rustix::fs::fstat(&dir).unwrap();
        assert_eq!((own.st_dev, own.st_ino), (there.st_dev, there.st_ino));
        wardian_store::run::leave(&run);
    }

    #[test]
    fn a_tag_on_record_counts_only_if_it_is_this_paths() {
        let base = tempfile::tempdir().unwrap();
        let dir = Directory::open(base.path()).unwrap();
        let long = long_tag(dir.path());
        assert_eq!(tag(&dir), long);
        let short = short_tag(dir.path());
        for (record, expected) in
            [(short.as_str(), &short), ("0a1b2c3d", &long), (long.as_str(), &long), ("../x", &long)]
        {
            write(&dir, record, Path::new("/x"), None, 7).unwrap();
            assert_eq!((tag(&dir), next_port(&dir)), (expected.clone(), 7), "{record}");
        }
        assert!(is_short(&short) && !is_short(&long));
        // Opening a FIFO as the record must not block.
        dir.remove(RECORD).unwrap();
        rustix::fs::mkfifoat(&dir, RECORD, rustix::fs::Mode::RWXU).unwrap();
        assert_eq!((tag(&dir), next_port(&dir)), (long, 0));
    }
}
