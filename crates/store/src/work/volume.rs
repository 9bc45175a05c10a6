//! Named volumes: directories for data that outlives its containers, `volumes/<name>/data` with a record beside it.
//!
//! Only a server makes and removes them, since it alone knows which containers use them; it calls one at a time. Garbage
//! collection does not look at them. A volume is made under a name that none can have, and gets its own by a rename; it is
//! removed by a rename to the trash. What is in `data` is the containers': nothing here opens a path in it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::disk::files;
use crate::disk::record::now_ms;
use crate::error;
use crate::mounts::reaper::Place;
use crate::store::{Inner, Store};

/// The directory that containers see.
const DATA: &str = "data";
/// The record.
const RECORD: &str = "volume.json";
/// How the name of a volume that is being made begins.
const HALF: &str = ".new-";
/// The longest name.
const MOST: usize = 128;

/// Why an operation on a volume failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is invalid.
    #[error(
        "{name:?} is no name for a volume: use up to {MOST} letters, digits and . _ -, starting with a letter or a digit"
    )]
    Invalid {
        /// The beginning of the name.
        name: String,
    },
    /// There is no such volume.
    #[error("there is no volume {name:?}; `wardian volume ls` lists them")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The system refuses something.
    #[error("cannot {step} the volume {name:?}")]
    System {
        /// What was tried.
        step: &'static str,
        /// The name.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The volumes cannot be listed.
    #[error("cannot list the volumes")]
    List(#[source] std::io::Error),
}

/// A named volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// When it was made, in milliseconds since 1970; 0 if its record was lost in a power cut.
    pub created_ms: u64,
}

/// The content of a volume's record.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    created_ms: u64,
}

/// Checks a name, which becomes that of a directory.
///
/// # Errors
/// [`Error::Invalid`].
pub fn check(name: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins && name.len() <= MOST && name.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::Invalid { name: name.chars().take(MOST).collect() })
}

fn failed<E: Into<std::io::Error>>(step: &'static str, name: &str) -> impl FnOnce(E) -> Error {
    move |error| Error::System { step, name: name.to_owned(), source: error.into() }
}

impl Inner {
    /// Returns all volumes, by name.
    pub(crate) fn volumes(&self) -> Result<Vec<Volume>, Error> {
        let Some(volumes) = &self.layout.volumes else { return Ok(Vec::new()) };
        let mut names = files::names(volumes).map_err(|error| Error::List(error.into()))?;
        names.retain(|name| check(name).is_ok());
        names.sort_unstable();
        let volume = |name: String| {
            let dir = files::open_dir(volumes, &name).ok()?;
            let record = files::read_file(&dir, RECORD).ok();
            let record: Record = record.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
            Some(Volume { name, created_ms: record.created_ms })
        };
        Ok(names.into_iter().filter_map(volume).collect())
    }

    fn volumes_dir(&self) -> rustix::io::Result<&OwnedFd> {
        self.layout.volumes.as_ref().ok_or(Errno::NOENT)
    }

    /// Opens the directory with a volume's data; `None` if there is no such volume.
    fn volume_data(&self, name: &str) -> Result<Option<OwnedFd>, Error> {
        check(name)?;
        let dir = match self.volumes_dir().and_then(|volumes| files::open_dir(volumes, name)) {
            Err(Errno::NOENT) => return Ok(None),
            dir => dir.map_err(failed("open", name))?,
        };
        files::open_dir(&dir, DATA).map(Some).map_err(failed("open", name))
    }

    fn make_volume(&self, name: &str) -> Result<OwnedFd, Error> {
        let half = format!("{HALF}{}", uuid::Uuid::new_v4().simple());
        let volumes = self.volumes_dir().map_err(failed("make", name))?;
        rustix::fs::mkdirat(volumes, &half, Mode::RWXU).map_err(failed("make", name))?;
        let made = || -> std::io::Result<OwnedFd> {
            let dir = files::open_dir(volumes, &half)?;
            rustix::fs::mkdirat(&dir, DATA, Mode::RWXU)?;
            let data = files::open_dir(&dir, DATA)?;
            // Users of the containers may go there; those of the host are kept out by the directories above.
            rustix::fs::fchmod(&data, Mode::from_raw_mode(0o755))?;
            let record = serde_json::to_string(&Record { created_ms: now_ms() })?;
            files::write_file(&dir, RECORD, &record)?;
            rustix::fs::renameat_with(volumes, &half, volumes, name, RenameFlags::NOREPLACE)?;
            Ok(data)
        };
        made().map_err(|error| {
            let _ = self.discard_volume(&half);
            failed("make", name)(error)
        })
    }

    /// Moves an entry of `volumes` to the trash.
    fn discard_volume(&self, name: &str) -> rustix::io::Result<()> {
        let new = uuid::Uuid::new_v4().simple().to_string();
        rustix::fs::renameat(self.volumes_dir()?, name, &self.layout.trash, &new)?;
        self.trash(Place::Trash, &new);
        Ok(())
    }

    /// Discards volumes that a killed server has not finished.
    pub(crate) fn discard_half_volumes(&self) -> Result<(), Error> {
        let Some(volumes) = &self.layout.volumes else { return Ok(()) };
        let names = files::names(volumes).map_err(|error| Error::List(error.into()))?;
        for half in names.iter().filter(|name| name.starts_with(HALF)) {
            self.discard_volume(half).map_err(failed("discard", half))?;
        }
        Ok(())
    }
}

impl Store {
    /// Returns all named volumes, by name.
    ///
    /// # Errors
    /// The system's.
    pub fn volumes(&self) -> error::Result<Vec<Volume>> {
        Ok(self.0.volumes()?)
    }

    /// Returns the path of a volume's data, for human readers: the path may lead elsewhere by the time it is used.
    pub fn volume_path(&self, name: &str) -> std::path::PathBuf {
        self.0.layout.path.join(files::VOLUMES).join(name).join(DATA)
    }

    /// Opens the directory with a volume's data, and makes the volume, empty and root's, if there is none of this name.
    /// Returns whether it was made. For the store's server, one call at a time.
    ///
    /// # Errors
    /// The name is invalid, or the system refuses something.
    pub fn volume(&self, name: &str) -> error::Result<(OwnedFd, bool)> {
        self.0.check_open()?;
        match self.0.volume_data(name)? {
            Some(data) => Ok((data, false)),
            None => Ok((self.0.make_volume(name)?, true)),
        }
    }

    /// Removes a volume. Its files are deleted later. For the store's server, which knows that no container uses the
    /// volume, one call at a time.
    ///
    /// # Errors
    /// There is no such volume, or the system refuses something.
    pub fn remove_volume(&self, name: &str) -> error::Result<()> {
        self.0.check_open()?;
        check(name)?;
        match self.0.discard_volume(name) {
            Err(Errno::NOENT) => Err(Error::Unknown { name: name.to_owned() }.into()),
            removed => Ok(removed.map_err(failed("remove", name))?),
        }
    }
}

/// Counts the volumes below the root directory of a store; 0 where there is none.
pub(crate) fn count(root: impl AsFd) -> usize {
    let names = files::open_dir(root, files::VOLUMES).and_then(files::names).unwrap_or_default();
    names.iter().filter(|name| check(name).is_ok()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        let longest = "x".repeat(MOST);
        for good in ["a", "0", "a.b_c-d", "A..", longest.as_str()] {
            assert!(check(good).is_ok(), "{good}");
        }
        let long = "x".repeat(MOST + 1);
        for bad in ["", ".", "..", ".new-a", "-a", "_a", "a/b", "a b", "a\n", "a\0", "ä", "a:b", &long] {
            assert!(matches!(check(bad), Err(Error::Invalid { .. })), "{bad:?}");
        }
        let text = check(&"\u{202e}".repeat(100_000)).unwrap_err().to_string();
        assert!(text.len() < 2000 && !text.contains('\u{202e}'));
    }
}
