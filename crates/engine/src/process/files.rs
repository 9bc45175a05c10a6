//! Files of output: what is kept of a process's output is also appended to files on disk, for programs that ship logs.
//!
//! A task reads the kept output as any other reader does, so the process waits for the disk as little as for a reader: what
//! the disk is too slow for is dropped, and told in the file. The format is that of Kubernetes' container runtimes (CRI, "CRI
//! logging"), one line for each line of output, which log shippers read: time, stream, `F` for a whole line or `P` for a part
//! of one, and the text. A full file is renamed to `<n>.log.1`, in place of the one before it.
//!
//! Files are in `output/<container id>/` of the store's directory, and go after their container, at leisure.

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

    /// Makes the directory for the files of a container's processes, It must exist before a process has output: what
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
        let reader = kept.reader();
        tokio::spawn(async move {
            let place = files.place.clone();
            match write(files, reader).await {
                // The container has gone.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(place = %place.display(), %error, "output.file-broken-off"),
                Ok(()) => {}
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

async fn write(mut files: Rotated, mut reader: Reader) -> io::Result<()> {
    loop {
        let found = reader.read()?;
        if matches!(found, kept::Found::Nothing) {
            if !reader.more().await {
                return Ok(());
            }
            continue;
        }
        // A disk may take seconds.
        let task = tokio::task::spawn_blocking(move || files.take(&found).map(|()| files));
        files = task.await.map_err(io::Error::other)??;
    }
}

/// The files of a process: the one that is written to, the one before it, and how much of the output was taken. None of them
/// stays open between two pieces: there may be a thousand processes, and descriptors are few.
#[derive(Debug)]
struct Rotated {
    /// The directory, which goes with the container.
    place: PathBuf,
    /// The file that is written to.
    name: String,
    /// A file with how many bytes of output were taken, by an earlier server too: 8 bytes, little-endian. A server that was
    /// killed in between repeats the last piece.
    progress: String,
    /// The most bytes of one of the two files.
    most: u64,
    /// How much of the output the reader has passed, which begins with the oldest that is kept.
    passed: u64,
    /// Bytes that are in no file, and were not told yet.
    missing: u64,
}

impl Rotated {
    fn new(place: PathBuf, number: u64, bytes: u64) -> Self {
        let (name, progress) = (format!("{number}.log"), format!("{number}.at"));
        Self { place, name, progress, most: bytes / 2, passed: 0, missing: 0 }
    }

    /// Takes what a reader has found. What cannot be written is told later.
    fn take(&mut self, found: &kept::Found) -> io::Result<()> {
        let dir = Directory::open(&self.place).map_err(|error| match error.is_missing() {
            true => io::ErrorKind::NotFound.into(),
            false => io::Error::from(error),
        })?;
        let progress = opened(&dir, &self.progress, OFlags::empty())?;
        let mut taken = [0; 8];
        let read = progress.read_at(&mut taken, 0)?;
        let mut taken = if read == taken.len() { u64::from_le_bytes(taken) } else { 0 };
        match found {
            kept::Found::Nothing => return Ok(()),
            kept::Found::Dropped(bytes) => self.missing += self.fresh(*bytes, &mut taken),
            kept::Found::Pieces(pieces) => {
                for piece in kept::pieces(pieces) {
                    let fresh = self.fresh(piece.data.len() as u64, &mut taken);
                    let begin = piece.data.len() - usize::try_from(fresh).unwrap_or_default();
                    self.append(&dir, piece.time_ms, piece.stderr, &piece.data[begin..])?;
                }
            }
        }
        progress.write_all_at(&taken.to_le_bytes(), 0)
    }

    /// Passes over bytes of output. Returns how many of them, the last ones, were not taken before.
    fn fresh(&mut self, bytes: u64, taken: &mut u64) -> u64 {
        self.passed += bytes;
        let fresh = self.passed.saturating_sub(*taken).min(bytes);
        *taken += fresh;
        fresh
    }

    fn append(&mut self, dir: &Directory, time_ms: u64, stderr: bool, data: &[u8]) -> io::Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        if self.missing > 0 {
            let told = format!("wardian: {} {MISSING}\n", self.missing);
            format(time_ms, stderr, told.as_bytes(), &mut lines);
        }
        format(time_ms, stderr, data, &mut lines);
        let mut file = opened(dir, &self.name, OFlags::APPEND)?;
        let mut length = file.metadata()?.len();
        if length > 0 && length + lines.len() as u64 > self.most {
            renameat(dir, &self.name, dir, format!("{}.1", self.name))?;
            (file, length) = (opened(dir, &self.name, OFlags::APPEND)?, 0);
        }
        let fs = fstatvfs(&file)?;
        let enough = (fs.f_blocks / RESERVE).min(ENOUGH / fs.f_frsize.max(1));
        let has_room = fs.f_bavail > enough;
        match has_room.then(|| file.write_all(&lines)) {
            Some(Ok(())) => self.missing = 0,
            Some(Err(error)) if error.kind() != io::ErrorKind::StorageFull => return Err(error),
            _ => {
                // No part of a line stays, which the next one would be joined to.
                file.set_len(length)?;
                self.missing += data.len() as u64;
            }
        }
        Ok(())
    }
}

/// Opens a file for root alone, which is made if it is missing: not in a directory that was removed.
fn opened(dir: &Directory, name: &str, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, MODE)?;
    // A default ACL of the store's directory has added to the mode.
    rustix::fs::fchmod(&file, MODE)?;
    Ok(file.into())
}

/// Formats output as lines of a CRI log.
fn format(time_ms: u64, stderr: bool, data: &[u8], lines: &mut Vec<u8>) {
    let then = UNIX_EPOCH.checked_add(Duration::from_millis(time_ms)).unwrap_or(UNIX_EPOCH);
    let latest = UNIX_EPOCH + LATEST;
    let time = humantime::format_rfc3339_nanos(SystemTime::min(then, latest));
    let stream = if stderr { "stderr" } else { "stdout" };
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        let (text, tag) = line.strip_suffix(b"\n").map_or((line, 'P'), |text| (text, 'F'));
        // Writing to memory does not fail.
        let _ = write!(lines, "{time} {stream} {tag} ");
        lines.extend_from_slice(text);
        lines.push(b'\n');
    }
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
        fn server(&self, bytes: u64) {
            let files = Rotated::new(self.dir.path().to_owned(), 1, bytes);
            let (mut files, mut reader) = (files, self.kept.reader());
            loop {
                match reader.read().unwrap() {
                    kept::Found::Nothing => return,
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
    fn files_are_bounded_and_what_is_missing_is_told() {
        let bench = Bench::new();
        let line = "x".repeat(99) + "\n";
        for n in 0..20_000 {
            bench.kept.append(0, line.as_bytes());
            if n == 100 {
                bench.server(64 << 10);
            }
        }
        bench.server(64 << 10);
        let size = |name: &str| std::fs::metadata(bench.dir.path().join(name)).unwrap().len();
        assert!(size("1.log") + size("1.log.1") <= 64 << 10, "{} {}", size("1.log"), size("1.log.1"));
        assert!(bench.lines("1.log").iter().all(|line| line.ends_with("xxx")));
        // What was dropped from memory before it was read stands in its place.
        let bench = Bench::new();
        (0..20_000).for_each(|_| bench.kept.append(0, line.as_bytes()));
        bench.server(16 << 20);
        let lines = bench.lines("1.log");
        assert!(lines[0].contains(MISSING), "{}", lines[0]);
        let missing: usize = lines[0].split(' ').nth(3).unwrap().parse().unwrap();
        assert_eq!(missing + 100 * (lines.len() - 1), 100 * 20_000);
    }

    #[test]
    fn no_file_is_made_after_the_end_of_the_container() {
        let bench = Bench::new();
        bench.kept.append(0, b"late\n");
        let place = bench.dir.path().join("c");
        let mut files = Rotated::new(place.clone(), 1, 1 << 20);
        let error = files.take(&bench.kept.reader().read().unwrap()).unwrap_err();
        assert_eq!((error.kind(), place.exists()), (io::ErrorKind::NotFound, false));
    }
}
