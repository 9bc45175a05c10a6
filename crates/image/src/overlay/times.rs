//! The times of directories. They are set last, because each file made in a directory changes its time.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags, openat};

use crate::error::{Error, at};
use crate::format::stream::Time;

/// Bytes kept in memory: the directories of an ordinary layer.
const IN_MEMORY: usize = 1 << 20;
/// The maximum size of all directory names of one layer in bytes; enough for the default number of entries.
const MAX_NAMES: u64 = 256 << 20;
/// Bytes of a record besides the name: its length, seconds, nanoseconds.
const FIXED: usize = 4 + 8 + 8;

/// Names and times in the order of the archive. A layer can have millions of directories; records beyond
/// [`IN_MEMORY`] are written to an unnamed file (O_TMPFILE) on the layer's file system.
#[derive(Default)]
pub(crate) struct Times {
    records: Vec<u8>,
    file: Option<File>,
    names: u64,
}

impl Times {
    /// Records the time of a directory of the layer in `root`.
    pub(crate) fn keep(&mut self, path: &[u8], time: Time, root: BorrowedFd<'_>) -> Result<(), Error> {
        self.names += path.len() as u64;
        if self.names > MAX_NAMES {
            let what = "the length of all directory names together".into();
            return Err(Error::Limit { what, limit: MAX_NAMES });
        }
        if self.records.len() + FIXED + path.len() > IN_MEMORY {
            self.spill(root)?;
        }
        let length = u32::try_from(path.len()).unwrap_or(u32::MAX);
        self.records.extend_from_slice(&length.to_le_bytes());
        self.records.extend_from_slice(&time.sec.to_le_bytes());
        self.records.extend_from_slice(&time.nsec.to_le_bytes());
        self.records.extend_from_slice(path);
        Ok(())
    }

    fn spill(&mut self, root: BorrowedFd<'_>) -> Result<(), Error> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
                let file = openat(root, ".", flags, Mode::RUSR | Mode::WUSR);
                none.insert(
                    file.map_err(at("make a temporary file for the times of directories in", b"."))?.into(),
                )
            }
        };
        file.write_all(&self.records).map_err(failed)?;
        self.records.clear();
        Ok(())
    }

    /// Calls `set` with each recorded directory, in order.
    pub(crate) fn set(self, mut set: impl FnMut(&[u8], Time) -> Result<(), Error>) -> Result<(), Error> {
        if let Some(file) = &self.file {
            each(&mut BufReader::with_capacity(64 << 10, Reader { file, at: 0 }), &mut set)?;
        }
        each(&mut &self.records[..], &mut set)
    }
}

/// Reads the file from the beginning, independent of its offset.
struct Reader<'a> {
    file: &'a File,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

fn each(
    records: &mut impl Read,
    set: &mut impl FnMut(&[u8], Time) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut path = Vec::new();
    loop {
        let mut fixed = [0; FIXED];
        match records.read_exact(&mut fixed) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other.map_err(failed)?,
        }
        let [a, b, c, d, rest @ ..] = fixed;
        let (sec, nsec) = rest.split_at(8);
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
        let time = Time { sec: number(sec).cast_signed(), nsec: number(nsec).cast_signed() };
        path.resize(u32::from_le_bytes([a, b, c, d]) as usize, 0);
        records.read_exact(&mut path).map_err(failed)?;
        set(&path, time)?;
    }
}

fn failed(source: std::io::Error) -> Error {
    Error::Io { op: "keep", path: "the times of directories".into(), source }
}
