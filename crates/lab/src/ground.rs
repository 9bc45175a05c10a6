//! Directories for an experiment's files, and files for its results.

use anyhow::{Context, Result};
use std::fs::File;
use std::path::Path;
use tempfile::TempDir;
use wardian_sys::directory::{self, Directory};

/// Size limit of a record in bytes.
const MOST: u64 = 64 << 20;

/// Makes a new directory in `place`. The owner of `place` could replace the new directory by a link, and make root
/// write to other files: `place` must be root's, or a sticky directory such as /tmp.
pub fn dir_in(place: &Path, prefix: &str) -> Result<TempDir> {
    let place = Directory::open_shared(place)?;
    let mut builder = tempfile::Builder::new();
    let made = builder.prefix(prefix).tempdir_in(place.path());
    made.with_context(|| format!("make a directory in {}", place.path().display()))
}

/// Writes a result.
pub fn save(to: &Path, text: &[u8]) -> Result<()> {
    let written = create(to).and_then(|mut file| Ok(std::io::Write::write_all(&mut file, text)?));
    written.with_context(|| format!("write {}", to.display()))
}

/// Creates a file for a result: see [`directory::create`].
pub fn create(to: &Path) -> Result<File> {
    Ok(directory::create(to)?)
}

/// Parses a file of this directory as JSON; null unless it is a regular file of root's. The open never blocks.
pub fn json(dir: &Directory, name: &str) -> serde_json::Value {
    dir.read(name, MOST).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}
