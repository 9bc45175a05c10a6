//! A part of a file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::stored::Whole;

/// A part of a file. Each clone has its own position, so several threads can read one file concurrently.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    file: Arc<File>,
    start: u64,
    at: u64,
    end: u64,
    whole: Option<Whole>,
}

impl Section {
    pub(crate) fn new(file: Arc<File>, start: u64, size: u64) -> Self {
        Self { file, start, at: start, end: start.saturating_add(size), whole: None }
    }

    /// Adds how the file is stored.
    pub(crate) fn stored_as(self, whole: Whole) -> Self {
        Self { whole: Some(whole), ..self }
    }

    /// Returns how the whole file is stored, if that is known.
    pub(crate) fn whole(&self) -> Option<Whole> {
        self.whole
    }

    /// Returns its offset in the file.
    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    pub(crate) fn size(&self) -> u64 {
        self.end - self.start
    }
}

impl From<File> for Section {
    /// The whole file, even if it grows.
    fn from(file: File) -> Self {
        Self::new(Arc::new(file), 0, u64::MAX)
    }
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let want = buf.len().min(left);
        let n = self.file.read_at(&mut buf[..want], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => self.start.checked_add(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        match at {
            Some(at) if at >= self.start => {
                self.at = at;
                Ok(at - self.start)
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}
