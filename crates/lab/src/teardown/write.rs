//! Writes the data: an app's worth into each mount, a neighbour's beside them, and optionally a thread that syncs
//! meanwhile.

use super::mounts;
use super::options::{Again, Options, Source};
use super::stop::Stop;
use crate::code::MEGABYTE;
use crate::report::Span;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Name of the thread that syncs during the writing.
pub const TRICKLE: &str = "trickle";
/// Links are not followed: all files are the experiment's own.
const NOFOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
/// Name of the neighbour's file.
const NEIGHBOUR: &str = "neighbour";

/// Writes files.
#[derive(Debug)]
pub struct Writer<'a> {
    stop: &'a Stop,
    buffer: Vec<u8>,
    random: Option<File>,
}

impl<'a> Writer<'a> {
    /// A writer of data from this source.
    pub fn new(source: Source, stop: &'a Stop) -> Result<Self> {
        let random = match source {
            Source::Zero => None,
            Source::Urandom => Some(File::open("/dev/urandom").context("open /dev/urandom")?),
        };
        Ok(Self { stop, buffer: vec![0; MEGABYTE], random })
    }

    /// Fills mount `n`. Returns the span from the first open to the last close.
    pub fn fill(&mut self, n: usize, options: &Options, again: Option<Again>) -> Result<Span> {
        let begin = Instant::now();
        let (bytes, files) = (options.bytes_each(), options.files as u64);
        if bytes > 0 {
            for file in 0..files {
                // The first files take the remainder of the division.
                let length = bytes / files + u64::from(file < bytes % files);
                self.write(&mounts::root(n).join(name(file)), length, again)?;
            }
        }
        Ok(Span::since(begin))
    }

    /// Writes the neighbour's data, which belongs to no mount.
    pub fn neighbour(&mut self, megabytes: u64) -> Result<()> {
        self.write(Path::new(NEIGHBOUR), megabytes * MEGABYTE as u64, None)
    }

    fn write(&mut self, path: &Path, mut length: u64, again: Option<Again>) -> Result<()> {
        let what = || format!("write {}", path.display());
        let truncate = again != Some(Again::Overwrite);
        let mut options = File::options();
        options.create(true).write(true).truncate(truncate).custom_flags(NOFOLLOW);
        let mut file = options.open(path).with_context(what)?;
        while length > 0 {
            self.stop.check()?;
            let piece = self.buffer.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            let piece = &mut self.buffer[..piece];
            if let Some(random) = &mut self.random {
                random.read_exact(piece).context("read /dev/urandom")?;
            }
            file.write_all(piece).with_context(what)?;
            length -= piece.len() as u64;
        }
        Ok(())
    }
}

fn name(file: u64) -> String {
    format!("file-{file}")
}

/// The files, by their paths below the mounts, each with the name of its owner.
fn files(options: &Options, overlay: bool) -> impl Iterator<Item = (String, PathBuf)> {
    let of_mount = move |n: usize| {
        let (owner, below) = (format!("mount {n}"), mounts::below(n, overlay));
        (0..options.files as u64).map(move |file| (owner.clone(), below.join(name(file))))
    };
    let neighbour = (NEIGHBOUR.to_owned(), PathBuf::from(NEIGHBOUR));
    (0..options.mounts).flat_map(of_mount).chain([neighbour])
}

/// Owner of each file, by inode number.
pub fn owners(options: &Options, overlay: bool) -> HashMap<u64, String> {
    files(options, overlay)
        .filter_map(|(owner, path)| Some((std::fs::symlink_metadata(path).ok()?.ino(), owner)))
        .collect()
}

/// Truncates the files, below the mounts, so that none of their data has to be written at the unmount.
pub fn discard(options: &Options, overlay: bool) {
    for (_, path) in files(options, overlay) {
        // A missing file was not written yet, or is removed already.
        let _ = File::options().write(true).truncate(true).custom_flags(NOFOLLOW).open(path);
    }
}

/// Runs `work` while the file system of the working directory is synced every `period`; without a period only runs
/// `work`.
pub fn trickling<T>(period: Option<Duration>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(period) = period else { return work() };
    let dir = File::open(".").context("open the file system")?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sync = || {
            let mut next = Instant::now() + period;
            while !done.load(Ordering::Relaxed) {
                if Instant::now() < next {
                    std::thread::sleep(period.min(Duration::from_millis(10)));
                    continue;
                }
                rustix::fs::syncfs(&dir).context("sync the file system")?;
                next = Instant::now() + period;
            }
            anyhow::Ok(())
        };
        let thread = std::thread::Builder::new()
            .name(TRICKLE.to_owned())
            .spawn_scoped(scope, sync)
            .context("start a thread")?;
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let synced = thread.join().expect("a sync does not panic");
        worked.and_then(|value| synced.map(|()| value))
    })
}
