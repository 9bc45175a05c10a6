//! Files of output: what is kept of a process's output is also appended to files on disk, for programs that ship logs.
//!
//! A task reads the kept output as any other reader does, so the process waits for the disk as little as for a reader: what
//! the disk is too slow for is dropped, and told in the file. The format is that of Kubernetes' container runtimes (CRI, "CRI
//! logging"), one line for each line of output, which log shippers read: time, stream, `F` for a whole line or `P` for a part
//! of one, and the text. A full file is renamed to `<n>.log.1`, in place of the one before it.
//!
//! Files are in `output/<container id>/` of the store's directory. Those of a process go when it is forgotten, all go after
//! their container, at leisure. A container must not be able to end another one's files: whatever fails, a full disk or a
//! disk without inodes, makes the output that was to be written missing, and what comes later is tried again.

use crate::process::kept::{self, Kept, Reader};
use rustix::fs::{Mode, OFlags, fstatvfs, openat, renameat};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use wardian_sys::directory::Directory;

/// The directory of all files, in the store's.
pub const OUTPUT: &str = "output";
/// Nothing is written while less than this part of the file system is free, …
const RESERVE: u64 = 20;
/// … unless so many bytes are.
const ENOUGH: u64 = 1 << 30;
/// The end of the year 9999, after which there is no RFC 3339, since 1970.
const LATEST: Duration = Duration::from_secs(253_402_300_799);
/// Mode of the files.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Text of a line that tells how many bytes are missing before it.
const MISSING: &str = "bytes of output are missing here: the disk was slow or full";
/// The least bytes of a process's files. A line, of a slot at most, and what it is preceded by fit into half of them.
pub const LEAST: u64 = 256 << 10;
/// The most bytes that are written at once.
const CHUNK: usize = 96 << 10;
/// The time after which what has failed is tried again where no more output comes.
const AGAIN: Duration = Duration::from_secs(5);

/// Where the files of a server's processes are.
#[derive(Debug)]
pub struct Files {
    root: PathBuf,
    /// The most bytes of a process's files; 0: there are none.
    bytes: u64,
}

impl Files {
    /// Files in this store's directory. Those of containers that are not in `living` are removed on a thread of their own.
    pub fn open(root: &Path, bytes: u64, living: &[&str]) -> Self {
        // Listed now: later there are those of new containers.
        if let Ok(dir) = Directory::open(&root.join(OUTPUT)) {
            let mut names = dir.names().unwrap_or_default();
            names.retain(|name| !living.iter().any(|id| name == *id));
            std::thread::spawn(move || {
                for name in names {
                    if dir.remove(&name).is_err() {
                        tracing::warn!(name = %name.display(), "output.left");
                    }
                }
            });
        }
        Self { root: root.to_owned(), bytes }
    }

    /// Whether there are any.
    pub fn are_wanted(&self) -> bool {
        self.bytes > 0
    }

    /// Makes the directory for the files of a container's processes. It must exist before a process has output: what
    /// comes after the end of the container finds none, and makes none.
    ///
    /// # Errors
    /// The system's.
    pub fn prepare(&self, container: &str) -> io::Result<()> {
        Directory::open(&self.root)?.private(OUTPUT)?.private(container)?;
        Ok(())
    }

    /// Begins, or goes on, to write what is kept of a process to its files.
    pub fn follow(&self, container: &str, number: u64, kept: &Arc<Kept>) {
        let files = Rotated::new(self.root.join(OUTPUT).join(container), number, self.bytes);
        kept.goes_to(files.place.join(&files.name));
        tokio::spawn(write(files, kept.reader()));
    }

    /// Removes the files of a process that is forgotten, on another thread.
    pub fn forget(&self, container: &str, number: u64) {
        if !self.are_wanted() {
            return;
        }
        let files = Rotated::new(self.root.join(OUTPUT).join(container), number, self.bytes);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = files.remove() {
                tracing::warn!(place = %files.place.display(), number, %error, "output.left");
            }
        });
    }

    /// Removes the files of a container that has gone.
    pub fn remove(&self, container: &str) {
        if let Ok(dir) = Directory::open(&self.root.join(OUTPUT))
            && let Err(error) = dir.remove(container)
        {
            tracing::warn!(container, %error, "output.left");
        }
    }
}

/// Removes all files of a store's directory.
///
/// # Errors
/// Something cannot be removed.
pub fn erase(root: &Path) -> io::Result<()> {
    match Directory::open(root) {
        Err(error) if error.is_missing() => Ok(()),
        dir => Ok(dir?.remove(OUTPUT)?),
    }
}

async fn write(mut files: Rotated, mut reader: Reader) {
    loop {
        let found = match reader.read() {
            Ok(found) => found,
            // The kept output has gone with the container.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                files.warn(&error);
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let is_over = matches!(found, kept::Found::Nothing);
        if is_over && reader.more().await {
            continue;
        }
        // A disk may take seconds.
        let take = move || if is_over { files.end() } else { files.take(&found) }.map(|()| files);
        let task = tokio::task::spawn_blocking(take);
        files = match task.await {
            Ok(Some(files)) => files,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "output.file-broken-off");
                return;
            }
        };
        if is_over {
            if files.progress.is_told() {
                return;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// How much of a process's output was taken, by an earlier server too. A server that was killed in between repeats the last
/// piece. In a file, each number is little-endian.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    /// Bytes that were taken.
    taken: u64,
    /// Bytes of them that are in no file, and were not told yet.
    missing: u64,
    /// Standard output (1) and standard error (2), if the last line of them is a part of one.
    open: u64,
}

impl Progress {
    /// Parses the content of a file; one that was not written yet is all zeros, as that of an earlier version ends with.
    fn parse(bytes: &[u8; 24]) -> Self {
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| bytes[at + n]));
        Self { taken: number(0), missing: number(8), open: number(16) }
    }

    fn bytes(self) -> [[u8; 8]; 3] {
        [self.taken, self.missing, self.open].map(u64::to_le_bytes)
    }

    /// Whether nothing is to be written after the end of the output.
    fn is_told(self) -> bool {
        self.missing == 0 && self.open == 0
    }
}

/// The bit of a stream.
fn bit(stderr: bool) -> u64 {
    if stderr { 2 } else { 1 }
}

/// The files of a process: the one that is written to, the one before it, and the progress. None of them stays open between
/// two pieces: there may be a thousand processes, and descriptors are few.
#[derive(Debug)]
struct Rotated {
    /// The directory, which goes with the container.
    place: PathBuf,
    /// The file that is written to.
    name: String,
    /// The file of the progress. It is there as long as the process is known.
    at: String,
    /// The most bytes of one of the two files.
    most: u64,
    /// How much of the output the reader has passed, which begins with the oldest that is kept.
    passed: u64,
    progress: Progress,
    /// The file of the progress was there.
    begun: bool,
    /// A failure was told.
    warned: bool,
}

impl Rotated {
    fn new(place: PathBuf, number: u64, bytes: u64) -> Self {
        let (name, at) = (format!("{number}.log"), format!("{number}.at"));
        let (most, progress) = (bytes.max(LEAST) / 2, Progress::default());
        Self { place, name, at, most, passed: 0, progress, begun: false, warned: false }
    }

    /// Takes what a reader has found. What cannot be written is told later. `None`: the container has gone, or the process is
    /// forgotten.
    fn take(&mut self, found: &kept::Found) -> Option<()> {
        self.write(|this, lines| match found {
            kept::Found::Nothing => {}
            kept::Found::Dropped(bytes) => this.progress.missing += this.fresh(*bytes),
            kept::Found::Pieces(pieces) => {
                for piece in kept::pieces(pieces) {
                    let fresh = this.fresh(piece.data.len() as u64);
                    let begin = piece.data.len() - usize::try_from(fresh).unwrap_or_default();
                    lines.add(piece.time_ms, piece.stderr, &piece.data[begin..]);
                }
            }
        })
    }

    /// Ends lines of which a part was written, and tells what is missing. `None` as of [`Self::take`].
    fn end(&mut self) -> Option<()> {
        self.write(|this, lines| {
            for stderr in [false, true] {
                if this.progress.open & bit(stderr) != 0 {
                    lines.push(now_ms(), stderr, b"\n", 0);
                }
            }
        })
    }

    fn write(&mut self, add: impl FnOnce(&mut Self, &mut Lines)) -> Option<()> {
        let dir = match Directory::open(&self.place) {
            Err(error) if error.is_missing() => return None,
            dir => dir.map_err(io::Error::from),
        };
        let opened = dir.and_then(|dir| Ok((self.begin(&dir)?, dir)));
        if opened.as_ref().is_err_and(|error| self.begun && error.kind() == io::ErrorKind::NotFound) {
            return None;
        }
        let mut lines = Lines::default();
        add(self, &mut lines);
        match opened {
            Ok((at, dir)) => {
                self.append(&dir, &lines);
                if let Err(error) = at.write_all_at(self.progress.bytes().as_flattened(), 0) {
                    self.warn(&error);
                }
            }
            Err(error) => {
                self.progress.missing += lines.bytes();
                self.warn(&error);
            }
        }
        Some(())
    }

    /// Opens the file of the progress. The first time it is made, or what an earlier server has left in it is read.
    fn begin(&mut self, dir: &Directory) -> io::Result<File> {
        if self.begun {
            return opened(dir, &self.at, OFlags::empty());
        }
        let file = opened(dir, &self.at, OFlags::CREATE)?;
        let mut bytes = [0; 24];
        file.read_at(&mut bytes, 0)?;
        if self.progress == Progress::default() {
            self.progress = Progress::parse(&bytes);
        }
        self.begun = true;
        Ok(file)
    }

    /// Passes over bytes of output. Returns how many of them, the last ones, were not taken before.
    fn fresh(&mut self, bytes: u64) -> u64 {
        self.passed += bytes;
        let fresh = self.passed.saturating_sub(self.progress.taken).min(bytes);
        self.progress.taken += fresh;
        fresh
    }

    /// Appends lines, before them how much is missing. What cannot be written is missing then.
    fn append(&mut self, dir: &Directory, lines: &Lines) {
        let (mut begin, mut rest) = (0, &lines.ends[..]);
        loop {
            let count = rest.partition_point(|line| line.end - begin <= CHUNK).max(1).min(rest.len());
            let (these, others) = rest.split_at(count);
            let end = these.last().map_or(begin, |line| line.end);
            let mut text = Vec::new();
            if self.progress.missing > 0 {
                let told = format!("wardian: {} {MISSING}\n", self.progress.missing);
                let (time_ms, stderr) =
                    these.first().map_or((now_ms(), false), |line| (line.time_ms, line.stderr));
                format(time_ms, stderr, told.as_bytes(), &mut text);
            }
            text.extend_from_slice(&lines.text[begin..end]);
            if text.is_empty() {
                return;
            }
            match self.put(dir, &text) {
                Ok(()) => {
                    self.progress.missing = 0;
                    for line in these {
                        let bit = bit(line.stderr);
                        self.progress.open =
                            if line.is_part { self.progress.open | bit } else { self.progress.open & !bit };
                    }
                }
                Err(error) => {
                    self.progress.missing += these.iter().map(|line| line.bytes).sum::<u64>();
                    if error.kind() != io::ErrorKind::StorageFull {
                        self.warn(&error);
                    }
                }
            }
            if others.is_empty() {
                return;
            }
            (begin, rest) = (end, others);
        }
    }

    /// Appends whole lines to the file, which is exchanged for a new one if it would become too long.
    fn put(&self, dir: &Directory, text: &[u8]) -> io::Result<()> {
        let mut file = opened(dir, &self.name, OFlags::APPEND | OFlags::CREATE)?;
        let mut length = file.metadata()?.len();
        if length > 0 && length + text.len() as u64 > self.most {
            renameat(dir, &self.name, dir, self.before())?;
            (file, length) = (opened(dir, &self.name, OFlags::APPEND | OFlags::CREATE)?, 0);
        }
        let fs = fstatvfs(&file)?;
        let enough = (fs.f_blocks / RESERVE).min(ENOUGH / fs.f_frsize.max(1));
        if fs.f_bavail <= enough {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // No part of a line stays, which the next one would be joined to.
        file.write_all(text).inspect_err(|_| drop(file.set_len(length)))
    }

    fn before(&self) -> String {
        format!("{}.1", self.name)
    }

    /// Removes the files. The progress is the first: what is still written sees that it has gone.
    fn remove(&self) -> io::Result<()> {
        let dir = match Directory::open(&self.place) {
            Err(error) if error.is_missing() => return Ok(()),
            dir => dir?,
        };
        for name in [&self.at, &self.name, &self.before()] {
            dir.remove(name)?;
        }
        Ok(())
    }

    /// Tells the log of a failure, once.
    fn warn(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(place = %self.place.display(), name = self.name, %error, "output.missing");
        }
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(now).unwrap_or_default()
}

/// Opens a file for root alone. Nothing is made in a directory that was removed.
fn opened(dir: &Directory, name: &str, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, MODE)?;
    // A default ACL of the store's directory has added to the mode.
    rustix::fs::fchmod(&file, MODE)?;
    Ok(file.into())
}

/// Lines of a CRI log that were not written yet.
#[derive(Debug, Default)]
struct Lines {
    text: Vec<u8>,
    ends: Vec<Line>,
}

/// One of them.
#[derive(Debug)]
struct Line {
    /// Where it ends in the text.
    end: usize,
    /// Bytes of output in it.
    bytes: u64,
    time_ms: u64,
    stderr: bool,
    /// It is a part of a line.
    is_part: bool,
}

impl Lines {
    /// Adds output that was read at once.
    fn add(&mut self, time_ms: u64, stderr: bool, data: &[u8]) {
        for line in data.split_inclusive(|byte| *byte == b'\n') {
            self.push(time_ms, stderr, line, line.len() as u64);
        }
    }

    /// Adds a line, which stands for so many bytes of output.
    fn push(&mut self, time_ms: u64, stderr: bool, line: &[u8], bytes: u64) {
        format(time_ms, stderr, line, &mut self.text);
        let is_part = !line.ends_with(b"\n");
        self.ends.push(Line { end: self.text.len(), bytes, time_ms, stderr, is_part });
    }

    fn bytes(&self) -> u64 {
        self.ends.iter().map(|line| line.bytes).sum()
    }
}

/// Formats a line of output, or a part of one, as a line of a CRI log.
fn format(time_ms: u64, stderr: bool, data: &[u8], lines: &mut Vec<u8>) {
    let then = UNIX_EPOCH.checked_add(Duration::from_millis(time_ms)).unwrap_or(UNIX_EPOCH);
    let latest = UNIX_EPOCH + LATEST;
    let time = humantime::format_rfc3339_nanos(SystemTime::min(then, latest));
    let stream = if stderr { "stderr" } else { "stdout" };
    let (text, tag) = data.strip_suffix(b"\n").map_or((data, 'P'), |text| (text, 'F'));
    // Writing to memory does not fail.
    let _ = write!(lines, "{time} {stream} {tag} ");
    lines.extend_from_slice(text);
    lines.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::kept::{Place, Room};

    struct Bench {
        dir: tempfile::TempDir,
        kept: Arc<Kept>,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let place = Place { dir: dir.path().to_owned(), name: "1.output".into() };
            let kept = Kept::new(place, &Room::new(1 << 30), 256 << 10);
            Self { dir, kept }
        }

        /// Writes what is kept to the files, as a server does that has just started.
        fn server(&self, bytes: u64) -> Rotated {
            let files = Rotated::new(self.dir.path().to_owned(), 1, bytes);
            let (mut files, mut reader) = (files, self.kept.reader());
            loop {
                match reader.read().unwrap() {
                    kept::Found::Nothing => return files,
                    found => files.take(&found).unwrap(),
                }
            }
        }

        /// The text of the lines of a file, without times.
        fn lines(&self, name: &str) -> Vec<String> {
            let text = std::fs::read_to_string(self.dir.path().join(name)).unwrap();
            let line = |line: &str| {
                let (time, rest) = line.split_once(' ').unwrap();
                assert!(time.len() == 30 && time.ends_with('Z'), "{time}");
                rest.to_owned()
            };
            text.lines().map(line).collect()
        }
    }

    #[test]
    fn a_later_server_goes_on_where_the_earlier_one_has_ended() {
        let bench = Bench::new();
        bench.kept.append(0, b"one\ntwo");
        bench.server(1 << 20);
        bench.kept.append(1, b"err\n");
        bench.kept.append(0, b" more\n");
        bench.server(1 << 20);
        bench.server(1 << 20);
        assert_eq!(bench.lines("1.log"), ["stdout F one", "stdout P two", "stderr F err", "stdout F  more"]);
    }

    #[test]
    fn the_last_line_is_ended_with_the_output() {
        let bench = Bench::new();
        bench.kept.append(0, b"one\ntwo");
        bench.server(LEAST);
        let mut files = bench.server(LEAST);
        assert!(!files.progress.is_told());
        files.end().unwrap();
        assert_eq!(bench.lines("1.log"), ["stdout F one", "stdout P two", "stdout F "]);
        assert!(bench.server(LEAST).progress.is_told());
    }

    #[test]
    fn files_are_bounded_and_what_is_missing_is_told() {
        let bench = Bench::new();
        let line = "x".repeat(99) + "\n";
        for n in 0..20_000 {
            bench.kept.append(0, line.as_bytes());
            if n == 100 {
                bench.server(LEAST);
            }
        }
        bench.server(LEAST);
        let size = |name: &str| std::fs::metadata(bench.dir.path().join(name)).unwrap().len();
        assert!(size("1.log") + size("1.log.1") <= LEAST, "{} {}", size("1.log"), size("1.log.1"));
        assert!(bench.lines("1.log").iter().all(|line| line.ends_with("xxx")));
        // Empty lines take forty times as much in the file.
        let bench = Bench::new();
        (0..10).for_each(|_| bench.kept.append(0, &[b'\n'; 20_000]));
        bench.server(LEAST);
        let size = |name: &str| std::fs::metadata(bench.dir.path().join(name)).unwrap().len();
        assert!(size("1.log") + size("1.log.1") <= LEAST, "{} {}", size("1.log"), size("1.log.1"));
        let long = vec![b'x'; 300_000];
        bench.kept.append(0, &long);
        bench.server(LEAST);
        assert!(size("1.log") + size("1.log.1") <= LEAST, "{} {}", size("1.log"), size("1.log.1"));
        // What was dropped from memory before it was read stands in its place.
        let bench = Bench::new();
        (0..20_000).for_each(|_| bench.kept.append(0, line.as_bytes()));
        bench.server(16 << 20);
        let lines = bench.lines("1.log");
        assert!(lines[0].contains(MISSING), "{}", lines[0]);
        let missing: usize = lines[0].split(' ').nth(3).unwrap().parse().unwrap();
        assert_eq!(missing + 100 * (lines.len() - 1), 100 * 20_000);
    }

    /// A name that cannot be opened stands for a disk that is full, or without inodes: root passes modes.
    #[test]
    fn what_cannot_be_written_is_told_when_it_can() {
        let bench = Bench::new();
        bench.kept.append(0, b"first\n");
        bench.server(LEAST);
        let log = bench.dir.path().join("1.log");
        std::fs::remove_file(&log).unwrap();
        std::fs::create_dir(&log).unwrap();
        bench.kept.append(0, b"lost\n");
        bench.server(LEAST);
        std::fs::remove_dir(&log).unwrap();
        // Nothing more is printed, and another server tells it.
        bench.server(LEAST).end().unwrap();
        assert_eq!(bench.lines("1.log"), [format!("stdout F wardian: 5 {MISSING}")]);
        bench.kept.append(1, b"more\n");
        bench.server(LEAST);
        assert_eq!(bench.lines("1.log")[1..], ["stderr F more"]);
        // Without a place for the progress as well.
        let bench = Bench::new();
        let at = bench.dir.path().join("1.at");
        std::fs::create_dir(&at).unwrap();
        bench.kept.append(0, b"lost\n");
        let mut files = Rotated::new(bench.dir.path().to_owned(), 1, LEAST);
        let mut reader = bench.kept.reader();
        files.take(&reader.read().unwrap()).unwrap();
        std::fs::remove_dir(&at).unwrap();
        bench.kept.append(0, b"kept\n");
        files.take(&reader.read().unwrap()).unwrap();
        assert_eq!(bench.lines("1.log"), [format!("stdout F wardian: 5 {MISSING}"), "stdout F kept".into()]);
    }

    #[test]
    fn no_file_is_made_after_the_end_of_the_container_or_of_what_is_known_of_the_process() {
        let bench = Bench::new();
        bench.kept.append(0, b"late\n");
        let place = bench.dir.path().join("c");
        let mut files = Rotated::new(place.clone(), 1, 1 << 20);
        let found = bench.kept.reader().read().unwrap();
        assert_eq!((files.take(&found), place.exists()), (None, false));
        std::fs::create_dir(&place).unwrap();
        files.take(&found).unwrap();
        files.remove().unwrap();
        assert_eq!((files.take(&found), std::fs::read_dir(&place).unwrap().count()), (None, 0));
    }
}
