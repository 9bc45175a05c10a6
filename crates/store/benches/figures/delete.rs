//! Deleting a root file system that has written a lot, among neighbours who have as well.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use wardian_store::{Image, Owner, Progress, RootfsSpec, Store};

use crate::create::{Bare, delete, owner, settle, userns};
use crate::images::Images;
use crate::place::Fs;
use crate::report::{Goal, Report, Times, dirty_bytes};
use crate::sample::Result;

const GOAL: Goal = Goal::Percentiles(1.0, Some(5.0));
const SAMPLES: usize = 200;
/// What a container has written.
const OWN: usize = 100 << 20;
/// What its neighbour has.
const NEIGHBOUR: usize = 1 << 30;
/// The neighbour's data is written anew before the kernel does it by itself, after 30 s.
const REFRESH: Duration = Duration::from_secs(15);
/// Or sooner, when somebody else has had it written.
const REFRESH_LOST: Duration = Duration::from_secs(3);
/// After every so many deletes, one unmount that syncs.
const EVERY: usize = 60;
/// What the neighbour that syncs writes in each turn.
const TURN: usize = 8 << 20;
/// Time for the deletes among neighbours that sync: how fast the disk is decides how many that are.
const BUSY: Duration = Duration::from_secs(60);

pub fn run(fs: &Fs, images: &Images, report: &mut Report) -> Result<()> {
    let store = fs.store("delete")?;
    let image = store.image(&images.of_layers(1))?;
    quiet(fs, &store, &image, report)?;
    if fs.is_new {
        busy(fs, &store, &image, &images.large("zstd")?, report)?;
    }
    store.close();
    Ok(())
}

/// Leaves so many dirty bytes in a new file.
fn write(mut file: File, bytes: usize) -> Result<()> {
    let chunk = vec![0x5a; 1 << 20];
    for _ in 0..bytes / chunk.len() {
        file.write_all(&chunk)?;
    }
    Ok(())
}

fn write_in(mount: &OwnedFd, bytes: usize) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    write(rustix::fs::openat(mount, "data", flags, Mode::RUSR | Mode::WUSR)?.into(), bytes)
}

/// One who has written a lot and synced nothing.
struct Neighbour {
    dir: PathBuf,
    file: Option<(u32, Instant)>,
}

impl Neighbour {
    /// Sees that all of it is dirty.
    fn refresh(&mut self, anyway: bool) -> Result<()> {
        let (number, written) = self.file.map_or((0, None), |(number, at)| (number + 1, Some(at)));
        let is_dirty = dirty_bytes()? >= NEIGHBOUR as u64 * 9 / 10;
        let time = if is_dirty { REFRESH } else { REFRESH_LOST };
        if anyway || written.is_none_or(|at| at.elapsed() > time) {
            // The old one goes first, so that the kernel has no reason to begin writing. A new file, because one that is
            // truncated and written again is flushed when it is closed.
            self.remove()?;
            write(File::create(self.dir.join(number.to_string()))?, NEIGHBOUR)?;
            self.file = Some((number, Instant::now()));
        }
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        if let Some((number, _)) = self.file {
            fs::remove_file(self.dir.join(number.to_string()))?;
        }
        Ok(())
    }
}

/// What the same delete costs when nothing was written.
fn delete_clean(times: &mut Times, store: &Store, image: &Image, owner: &Owner<'_>) -> Result<()> {
    let rootfs = store.create_rootfs("clean", &RootfsSpec::new(image, Some(*owner)))?;
    delete(times, store, "clean", rootfs);
    settle(store)
}

/// Neighbours have written and do nothing.
fn quiet(fs: &Fs, store: &Store, image: &Image, report: &mut Report) -> Result<()> {
    let userns = userns()?;
    let owner = owner(&userns);
    let bare = Bare::new(fs, image)?;
    let mut neighbour = Neighbour { dir: fs.dir.join("neighbour"), file: None };
    fs::create_dir(&neighbour.dir)?;
    let mut section = report.section(&fs.name);
    let (mut samples, mut honest, mut dirty) = (Times::default(), Times::default(), Vec::new());
    let (mut clean, mut mounts) = (Times::default(), Times::default());
    for index in 0..SAMPLES {
        neighbour.refresh(false)?;
        let rootfs = store.create_rootfs("written", &RootfsSpec::new(image, Some(owner)))?;
        write_in(&rootfs.mount, OWN)?;
        dirty.push(dirty_bytes()? as f64 / f64::from(1 << 20));
        delete(&mut samples, store, "written", rootfs);
        settle(store)?;
        delete_clean(&mut clean, store, image, &owner)?;
        if index % EVERY == EVERY / 2 {
            match bare.mount(&mut mounts, false) {
                Ok(mount) => {
                    write_in(&mount, OWN)?;
                    honest.take(|| drop(mount));
                    neighbour.refresh(true)?;
                }
                Err(error) => section.note(&format!("nothing to compare deletes with: {error}")),
            }
            bare.remove()?;
        }
    }
    neighbour.remove()?;
    section.times("delete, 100 MB dirty and 1 GB of a neighbour's", &samples, Some(GOAL));
    section.times("  delete by turns, nothing written", &clean, None);
    section.times("  unmount of an overlay that is not volatile", &honest, None);
    section.samples("  dirty at that moment", "MB", &dirty, None);
    section.finish();
    Ok(())
}

/// Neighbours fsync and syncfs all the time, and a large layer is being made durable.
fn busy(fs: &Fs, store: &Store, image: &Image, large: &str, report: &mut Report) -> Result<()> {
    let userns = userns()?;
    let owner = owner(&userns);
    let mut section = report.section(&fs.name);
    let (stop, writing) = (AtomicBool::new(false), AtomicBool::new(false));
    let stopped = || stop.load(Ordering::Relaxed);
    let progress = Progress::default();
    // With a reaper of its own: what it has to delete does not hold up the samples.
    let layers = fs.store("layers")?;
    let (samples, clean) = std::thread::scope(|scope| {
        let syncs = scope.spawn(|| sync_all_the_time(fs, &stopped).map_err(|error| error.to_string()));
        let imports = scope.spawn(|| -> wardian_store::Result<()> {
            while !stopped() {
                layers.image(large)?;
                writing.store(true, Ordering::Relaxed);
                // Not to its end, once enough is known: that can take minutes on a slow disk.
                layers.wait_durable(&progress);
                writing.store(false, Ordering::Relaxed);
                layers.collect(0)?;
            }
            Ok(())
        });
        let samples = (|| -> Result<_> {
            let (mut samples, mut clean) = (Times::default(), Times::default());
            let started = Instant::now();
            let on = || started.elapsed() < BUSY && !syncs.is_finished() && !imports.is_finished();
            while samples.len() < SAMPLES && on() {
                let rootfs = store.create_rootfs("written", &RootfsSpec::new(image, Some(owner)))?;
                write_in(&rootfs.mount, OWN)?;
                while !writing.load(Ordering::Relaxed) && on() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                delete(&mut samples, store, "written", rootfs);
                settle(store)?;
                delete_clean(&mut clean, store, image, &owner)?;
            }
            Ok((samples, clean))
        })();
        stop.store(true, Ordering::Relaxed);
        progress.cancel();
        syncs.join().map_err(|_| "a thread panicked")??;
        imports.join().map_err(|_| "a thread panicked")??;
        samples
    })?;
    layers.close();
    section.times("delete, 100 MB, neighbours sync, a layer gets durable", &samples, Some(GOAL));
    section.times("  delete by turns, nothing written", &clean, None);
    section.finish();
    Ok(())
}

fn sync_all_the_time(fs: &Fs, stopped: &dyn Fn() -> bool) -> Result<()> {
    let path = fs.dir.join("syncing");
    let dir = File::open(&fs.dir)?;
    while !stopped() {
        let file = File::create(&path)?;
        write(file.try_clone()?, TURN)?;
        file.sync_all()?;
        write(file.try_clone()?, TURN)?;
        rustix::fs::syncfs(dir.as_fd())?;
        fs::remove_file(&path)?;
    }
    Ok(())
}
