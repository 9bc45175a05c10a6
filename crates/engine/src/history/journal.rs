//! The operations of the last hour for the next server, in the run directory, which is on a tmpfs:
//!
//! ```text
//! <run>/history/<n>.jsonl   a line that says of which boot it is, then an operation per line
//! ```
//!
//! A thread of its own appends to the newest file, so that no request waits for it. The oldest files are removed above
//! a bound of bytes. A server may be killed at any instruction: the next one never appends to an earlier file, and
//! ignores a line that is incomplete, and a file that is of another boot or of another version.

use super::Operation;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};
use wardian_sys::directory::Directory;

const NAME: &str = "history";
const VERSION: u32 = 1;
/// Older operations are of no interest to the next server, in seconds.
const AGE: f64 = 3600.0;
/// A file is continued up to this many bytes.
const FILE: u64 = 256 << 10;
/// The most bytes of all files but the newest: some thousand operations.
const ALL: u64 = 4 << 20;
/// The most files; a server that starts adds one at its first operation.
const FILES: usize = 1024;
/// The most bytes of an operation. A longer one is written without its diagnosis.
const LINE: usize = 128 << 10;
/// The most operations that wait to be written. More than that have come while the thread did not run.
const QUEUE: usize = 1024;

/// The first line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    version: u32,
    boot_id: String,
}

/// Writes operations; its drop waits until all are written.
#[derive(Debug)]
pub(super) struct Journal {
    /// `None` once it is closed.
    queue: Mutex<Option<SyncSender<Operation>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    /// Opens the journal of a run directory. Returns it with the operations of the last hour that are in it, as they
    /// were written: an operation that was explained later comes twice.
    pub(super) fn open(run: &Path, boot_id: &str) -> io::Result<(Self, Vec<Operation>)> {
        let dir = wardian_store::run::private(&run.join(NAME))?;
        let header = Header { version: VERSION, boot_id: boot_id.to_owned() };
        let (files, operations) = Files::read(dir, header)?;
        let (queue, queued) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name(NAME.to_owned());
        let thread = thread.spawn(move || files.write_all(&queued))?;
        Ok((Self { queue: Mutex::new(Some(queue)), thread: Mutex::new(Some(thread)) }, operations))
    }

    /// Has an operation written. Nobody waits: of too many at a time some are lost to the next server.
    pub(super) fn write(&self, operation: Operation) {
        if let Some(queue) = &*self.queue.lock()
            && let Err(TrySendError::Full(lost)) = queue.try_send(operation)
        {
            tracing::debug!(handle = lost.handle, id = lost.id, "history.not-kept");
        }
    }

    /// Waits until everything is written. What comes later is not.
    pub(super) fn close(&self) {
        *self.queue.lock() = None;
        if let Some(thread) = self.thread.lock().take() {
            drop(thread.join());
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

/// The files, as the thread knows them.
#[derive(Debug)]
struct Files {
    dir: Directory,
    header: Header,
    /// Numbers and bytes of the files of this boot, the oldest first.
    known: Vec<(u64, u64)>,
    /// The file that is appended to; it is the last one known.
    open: Option<File>,
    next: u64,
    /// The last write has failed, which was logged.
    failing: bool,
}

impl Files {
    /// Reads what there is, and removes files that nobody will read again.
    fn read(dir: Directory, header: Header) -> io::Result<(Self, Vec<Operation>)> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let mut numbers: Vec<u64> = dir
            .names()?
            .iter()
            .filter_map(|name| name.to_str()?.strip_suffix(".jsonl")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        let next = numbers.last().map_or(0, |last| last.saturating_add(1));
        let mut files = Self { dir, header, known: Vec::new(), open: None, next, failing: false };
        let (mut operations, mut total) = (Vec::new(), 0);
        // The newest first: what is beyond the bounds is old.
        for number in numbers.into_iter().rev() {
            let text = match files.known.len() < FILES && total <= ALL {
                true => files.dir.read(name(number), FILE + LINE as u64).unwrap_or_default(),
                false => Vec::new(),
            };
            let mut found = operations_in(&text, &files.header);
            found.retain(|operation| now - operation.began < AGE);
            if found.is_empty() {
                drop(files.dir.remove(name(number)));
                continue;
            }
            let bytes = text.len() as u64;
            total += bytes;
            files.known.push((number, bytes));
            operations.push(found);
        }
        files.known.reverse();
        Ok((files, operations.into_iter().rev().flatten().collect()))
    }

    fn write_all(mut self, queue: &Receiver<Operation>) {
        while let Ok(operation) = queue.recv() {
            let written = self.append(&operation);
            if let Err(error) = &written {
                // What is left of the line must not be continued.
                self.open = None;
                if !self.failing {
                    tracing::warn!(%error, "history.not-written");
                }
            }
            self.failing = written.is_err();
        }
    }

    fn append(&mut self, operation: &Operation) -> io::Result<()> {
        let mut line = serde_json::to_vec(operation)?;
        if line.len() >= LINE {
            line = serde_json::to_vec(&Operation { diagnosis: None, ..operation.clone() })?;
        }
        line.push(b'\n');
        if self.open.is_none() || self.known.last().is_none_or(|(_, bytes)| *bytes >= FILE) {
            self.begin()?;
        }
        if let (Some(file), Some((_, bytes))) = (&mut self.open, self.known.last_mut()) {
            file.write_all(&line)?;
            *bytes += line.len() as u64;
        }
        Ok(())
    }

    /// Begins the next file, after removing the oldest ones above the bounds.
    fn begin(&mut self) -> io::Result<()> {
        let mut total: u64 = self.known.iter().map(|(_, bytes)| bytes).sum();
        let mut gone = 0;
        for (number, bytes) in &self.known {
            if total <= ALL && self.known.len() - gone < FILES {
                break;
            }
            self.dir.remove(name(*number))?;
            (gone, total) = (gone + 1, total - bytes);
        }
        self.known.drain(..gone);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let number = self.next;
        // A name that is taken is not tried again.
        self.next = self.next.saturating_add(1);
        let mode = Mode::RUSR | Mode::WUSR;
        let mut file = File::from(rustix::fs::openat(&self.dir, name(number), flags, mode)?);
        let mut header = serde_json::to_vec(&self.header)?;
        header.push(b'\n');
        self.known.push((number, header.len() as u64));
        file.write_all(&header)?;
        self.open = Some(file);
        Ok(())
    }
}

fn name(number: u64) -> String {
    format!("{number}.jsonl")
}

/// The operations of a file, without damaged ones; none of a file with another header.
fn operations_in(text: &[u8], header: &Header) -> Vec<Operation> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let first = lines.next().and_then(|line| serde_json::from_slice::<Header>(line).ok());
    if first.as_ref() != Some(header) {
        return Vec::new();
    }
    lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Kind, Timeline};

    fn operation(id: &str) -> Operation {
        let timeline = Timeline::begin();
        timeline.ended("kill");
        timeline.operation(Kind::Destroy, "h", id, None)
    }

    fn open(run: &Path, boot: &str) -> (Journal, Vec<String>) {
        let (journal, operations) = Journal::open(run, boot).unwrap();
        (journal, operations.into_iter().map(|operation| operation.id).collect())
    }

    fn files(run: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(run.join(NAME))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_next_server_knows_the_last_hour_of_this_boot() {
        let run = tempfile::tempdir().unwrap();
        let (journal, known) = open(run.path(), "boot");
        assert!(known.is_empty());
        ["1", "2"].iter().for_each(|id| journal.write(operation(id)));
        journal.write(Operation { began: operation("3").began - AGE - 1.0, ..operation("3") });
        drop(journal);
        let (journal, known) = open(run.path(), "boot");
        assert_eq!(known, ["1", "2"]);
        journal.write(operation("4"));
        drop(journal);
        assert_eq!(files(run.path()), ["0.jsonl", "1.jsonl"]);
        assert_eq!(open(run.path(), "boot").1, ["1", "2", "4"]);
        // A file of another boot describes nothing, and is removed.
        assert!(open(run.path(), "another").1.is_empty());
        assert!(files(run.path()).is_empty());
    }

    #[test]
    fn what_is_damaged_is_ignored() {
        let run = tempfile::tempdir().unwrap();
        let (journal, _) = open(run.path(), "boot");
        ["1", "2"].iter().for_each(|id| journal.write(operation(id)));
        drop(journal);
        let path = run.path().join(NAME).join("0.jsonl");
        let text = std::fs::read(&path).unwrap();
        // A server that is killed leaves the beginning of a line.
        for cut in [1, 50] {
            std::fs::write(&path, &text[..text.len() - cut]).unwrap();
            let kept: &[&str] = if cut == 1 { &["1", "2"] } else { &["1"] };
            assert_eq!(open(run.path(), "boot").1, kept, "{cut}");
        }
        // The next operation does not continue it.
        let (journal, _) = open(run.path(), "boot");
        journal.write(operation("5"));
        drop(journal);
        let mut odd = text.clone();
        odd.splice(text.len() - 50.., *b"\xff\xfe\n{}\nnull\n");
        std::fs::write(&path, odd).unwrap();
        std::fs::write(run.path().join(NAME).join("7.jsonl"), b"no header\n").unwrap();
        std::fs::write(run.path().join(NAME).join("other"), b"").unwrap();
        std::os::unix::fs::symlink("/dev/zero", run.path().join(NAME).join("8.jsonl")).unwrap();
        let (journal, known) = open(run.path(), "boot");
        assert_eq!(known, ["1", "5"]);
        journal.write(operation("6"));
        drop(journal);
        assert_eq!(open(run.path(), "boot").1, ["1", "5", "6"]);
    }

    #[test]
    fn the_oldest_files_give_way() {
        let run = tempfile::tempdir().unwrap();
        let (journal, _) = open(run.path(), "boot");
        let long = |n: usize| Operation { error: Some("x".repeat(60 << 10)), ..operation(&n.to_string()) };
        for n in 0..120 {
            while journal.queue.lock().as_ref().unwrap().try_send(long(n)).is_err() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        drop(journal);
        let bytes: u64 = files(run.path())
            .iter()
            .map(|name| std::fs::metadata(run.path().join(NAME).join(name)).unwrap().len())
            .sum();
        assert!(bytes <= ALL + 2 * FILE + LINE as u64, "{bytes}");
        let (_journal, known) = open(run.path(), "boot");
        assert!(known.len() >= 40 && known.last().map(String::as_str) == Some("119"), "{known:?}");
    }

    #[test]
    fn an_operation_too_long_loses_its_diagnosis() {
        let run = tempfile::tempdir().unwrap();
        let (journal, _) = open(run.path(), "boot");
        let diagnosis = wardian_recorder::Diagnosis {
            verdict: "x".repeat(LINE),
            ..wardian_recorder::Diagnosis::default()
        };
        journal.write(Operation { diagnosis: Some(diagnosis), ..operation("1") });
        drop(journal);
        let (_, operations) = Journal::open(run.path(), "boot").unwrap();
        assert!(operations.len() == 1 && operations[0].diagnosis.is_none());
    }
}
