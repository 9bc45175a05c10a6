//! The names of a directory, in the order of their bytes: all must be known before the first is visited.

use std::os::fd::BorrowedFd;
use std::sync::LazyLock;

use rustix::fs::Dir;
use rustix::io::Errno;

use crate::error::{Error, show};

/// Bytes that the names of a directory and of those above it may take together, where that is for a server to hold: 300,000 of
/// them in one directory. Less where the process may have little memory.
pub(crate) const MOST_NAMES: usize = 16 << 20;
/// This part of the memory that the process may have.
const PART: usize = 16;
/// Bytes that a name takes besides its own.
const EACH: usize = size_of::<(usize, u32)>();

/// How many bytes the names of a tree may take here, and what is remembered of its links.
pub(crate) fn most() -> usize {
    static MOST: LazyLock<usize> = LazyLock::new(|| wardian_sys::memory::budget(MOST_NAMES, PART));
    *MOST
}

/// Names, one after another in one piece of memory, each with a number of the caller's.
#[derive(Debug, Default)]
pub(crate) struct Names {
    bytes: Vec<u8>,
    /// Where each ends with a NUL, and its number.
    all: Vec<(usize, u32)>,
}

impl Names {
    /// Adds those of `dir`, with this number, unless all take more than `most` bytes.
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

    /// Sorts them; of those that are equal the one with the least number stays.
    pub(crate) fn sort(&mut self) {
        let bytes = &self.bytes;
        self.all.sort_unstable_by(|(a, n), (b, m)| name(bytes, *a).cmp(name(bytes, *b)).then(n.cmp(m)));
        self.all.dedup_by(|(next, _), (first, _)| name(bytes, *next) == name(bytes, *first));
        self.all.shrink_to_fit();
        self.bytes.shrink_to_fit();
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len() + self.all.len() * EACH
    }

    /// One of them, and its number.
    pub(crate) fn get(&self, index: usize) -> (&[u8], u32) {
        let (at, number) = self.all[index];
        (name(&self.bytes, at), number)
    }
}

/// What begins there and ends before a NUL.
fn name(bytes: &[u8], at: usize) -> &[u8] {
    let rest = &bytes[at..];
    &rest[..rest.iter().position(|b| *b == 0).unwrap_or(rest.len())]
}
