//! The names in a directory, sorted by their bytes; all are listed before the first is visited.

use std::os::fd::BorrowedFd;
use std::sync::LazyLock;

use rustix::fs::Dir;
use rustix::io::Errno;

use crate::error::{Error, show};

/// The memory limit for the names of a directory and its ancestors together, in a server: enough for 300,000 names in
/// one directory. It is lower if the process may use little memory.
pub(crate) const MOST_NAMES: usize = 16 << 20;
/// The part (1/N) of the process's memory limit.
const PART: usize = 16;
/// The overhead of a name in bytes.
const EACH: usize = size_of::<(usize, u32)>();

/// Returns the limit in bytes for the names of a tree, and for the remembered names of its hard links.
pub(crate) fn most() -> usize {
    static MOST: LazyLock<usize> = LazyLock::new(|| wardian_sys::memory::budget(MOST_NAMES, PART));
    *MOST
}

/// Names, stored contiguously, each with a number chosen by the caller.
#[derive(Debug, Default)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    /// For each name the offset in `bytes`, where it ends with a NUL, and its number.
    all: Vec<(usize, u32)>,
}

impl Names {
    /// Adds the names in `dir`, with this number; fails if all names take more than `most` bytes.
    pub(crate) fn list(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        number: u32,
        most: usize,
    ) -> Result<(), Error> {
        let failed = |source: Errno| Error::Io { op: "list", path: show(path), source: source.into() };
        for entry in Dir::read_from(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes_with_nul();
            if name == b".\0" || name == b"..\0" {
                continue;
            }
            if self.bytes() + name.len() + EACH > most {
                let what = format!("the length of all names in {} and above it", show(path));
                return Err(Error::Limit { what, limit: self::most() as u64 });
            }
            self.all.push((self.bytes.len(), number));
            self.bytes.extend_from_slice(name);
        }
        Ok(())
    }

    /// Sorts the names; of equal ones, the one with the least number stays.
    pub(crate) fn sort(&mut self) {
        let bytes = &self.bytes;
        self.all.sort_unstable_by(|(a, n), (b, m)| name(bytes, *a).cmp(name(bytes, *b)).then(n.cmp(m)));
        self.all.dedup_by(|(next, _), (first, _)| name(bytes, *next) == name(bytes, *first));
        self.all.shrink_to_fit();
        self.bytes.shrink_to_fit();
    }

    /// Returns the number of names.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns the memory they take, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len() + self.all.len() * EACH
    }

    /// Returns a name and its number.
    pub(crate) fn get(&self, index: usize) -> (&[u8], u32) {
        let (at, number) = self.all[index];
        (name(&self.bytes, at), number)
    }
}

/// Returns the name that begins at `at`, without its NUL.
fn name(bytes: &[u8], at: usize) -> &[u8] {
    let rest = &bytes[at..];
    &rest[..rest.iter().position(|b| *b == 0).unwrap_or(rest.len())]
}
