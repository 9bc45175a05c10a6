//! Root file systems with a limit, by the driver that this host has, beside those without one.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use wardian_store::{Config, DiskDriver, DiskLimit, Error, Image, Rootfs, RootfsSpec, Scope, Store};
use wardian_sys::loop_device::{Backing, LoopDevices};
use wardian_sys::mount::{self, MountAttrFlags};

use crate::create::{delete, owner, settle, userns};
use crate::images::Images;
use crate::place::{Fs, is_for_limits};
use crate::report::{Goal, Report, Times, ms};
use crate::sample::Result;

const SAMPLES: usize = 60;
/// Root file systems that are removed at once, and what each has written.
const TOGETHER: usize = 9;
const WRITTEN: usize = 100 << 20;
const ROUNDS: usize = 5;
/// What is written to compare throughputs.
const MUCH: usize = 1 << 30;
/// Root file systems with a limit that live at a time.
const MANY: usize = 300;
/// A driver may make fewer spares than it is asked for.
const SPARES: usize = 2;
const PATIENCE: Duration = Duration::from_secs(20);
const LIMIT: DiskLimit = DiskLimit { bytes: Some(2 << 30), inodes: None, scope: Scope::Exclusive };
const NAMES: [&str; 2] = ["no limit", "a limit"];
const LIMITS: [DiskLimit; 2] = [DiskLimit { bytes: None, ..LIMIT }, LIMIT];

/// Measures creates, and the rest too if `whole`.
pub fn run(fs: &Fs, images: &Images, report: &mut Report, whole: bool) -> Result<()> {
    // On btrfs it is that driver which is measured.
    let disk_driver = is_for_limits(&fs.name).then_some(DiskDriver::Btrfs);
    let make = |name: &str, ready_rootfs| {
        Store::serve(&Config { ready_rootfs, disk_driver, ..fs.config(name) }, &|_| false)
    };
    let missing = |report: &mut Report, why: &str| {
        let mut section = report.section(&fs.name);
        section.note(why);
        section.finish();
    };
    let store = match make("limits", 0) {
        Err(Error::Driver(error)) => {
            missing(report, &error.to_string());
            return Ok(());
        }
        made => made?,
    };
    if store.disk_driver() == DiskDriver::None {
        missing(report, "no driver of disk limits works here");
        store.close();
        return Ok(());
    }
    let image = store.image(&images.of_layers(1))?;
    creates(fs, &store, &image, report, "")?;
    let ready = make("limits-ready", SPARES)?;
    creates(fs, &ready, &ready.image(&images.of_layers(1))?, report, ", made ahead")?;
    ready.close();
    if whole {
        together(fs, &store, &image, report)?;
        throughput(fs, &store, &image, report)?;
        many(fs, &store, &image, report)?;
    }
    store.close();
    Ok(())
}

fn creates(fs: &Fs, store: &Store, image: &Image, report: &mut Report, how: &str) -> Result<()> {
    let userns = userns()?;
    let owner = owner(&userns);
    let mut section = report.section(&format!("{}, {}", fs.name, store.disk_driver().name()));
    let (mut samples, mut deletes) = <([Times; 2], [Times; 2])>::default();
    for round in 0..=SAMPLES {
        for ((samples, deletes), limit) in samples.iter_mut().zip(&mut deletes).zip(LIMITS) {
            let spec = RootfsSpec { image, owner: Some(owner), limit };
            let rootfs = samples.take(|| store.create_rootfs("one", &spec))?;
            delete(deletes, store, "one", rootfs);
            settle(store)?;
            if !how.is_empty() {
                // Of both kinds, once there are both: images of a limit are a kind of their own.
                let both = store.disk_driver() == DiskDriver::Image && (round > 0 || limit.bytes.is_some());
                let kinds = if both { 2 } else { 1 };
                let start = Instant::now();
                while store.ready_rootfs() < kinds * SPARES {
                    if start.elapsed() > PATIENCE {
                        return Err("nothing is mounted ahead".into());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        if round == 0 {
            samples.iter_mut().chain(&mut deletes).for_each(Times::clear);
        }
    }
    // An image is a file system more; the others set a number.
    let most = if store.disk_driver() == DiskDriver::Image { 3.0 } else { 1.2 };
    for (call, times, goal) in [("create", &samples, Some(Goal::AtMost(most))), ("release", &deletes, None)] {
        for (name, times) in NAMES.iter().zip(times) {
            section.times(&format!("{call} with {name}{how}"), times, None);
        }
        let ratio = times[1].median() / times[0].median();
        section.value(&format!("  a limit : no limit, {call}{how}*"), "×", ratio, goal);
    }
    section.finish();
    Ok(())
}

fn write(file: OwnedFd, bytes: usize) -> Result<File> {
    let mut file = File::from(file);
    let chunk = vec![0x5a; 1 << 20];
    for _ in 0..bytes / chunk.len() {
        file.write_all(&chunk)?;
    }
    Ok(file)
}

fn write_in(mount: &OwnedFd, bytes: usize) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    write(rustix::fs::openat(mount, "data", flags, Mode::RUSR | Mode::WUSR)?, bytes).map(drop)
}

/// The number of the loop device over a root file system's image.
fn device(devices: &LoopDevices, rootfs: &Rootfs) -> Result<u32> {
    let backing = Backing::of(File::open(rootfs.dir.join("image"))?)?;
    let found = devices.in_use()?.into_iter().find(|(_, other)| *other == backing);
    Ok(found.ok_or("an image without a device")?.0)
}

/// Waits until the images of root file systems that are removed are unmounted: then as few devices are left as there
/// were, beside some blank ones.
fn unmounted(devices: &LoopDevices, before: usize) -> Result<()> {
    const BLANK: usize = 4;
    let start = Instant::now();
    while devices.in_use()?.len() > before + BLANK {
        if start.elapsed() > PATIENCE {
            return Err("images stay mounted".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn devices(fs: &Fs) -> Result<LoopDevices> {
    Ok(LoopDevices::open(File::open(&fs.dir)?.into())?)
}

/// Bytes that the disk below a file system has been given to write since the boot (Documentation/block/stat.rst), by
/// whomever; `None` for btrfs, whose number is no disk's.
fn written(fs: &Fs) -> Result<Option<u64>> {
    let number = rustix::fs::stat(&fs.dir)?.st_dev;
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let text = match fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text?,
    };
    Ok(Some(text.split_whitespace().nth(6).ok_or("no sectors written")?.parse::<u64>()? * 512))
}

/// Several that have written a lot are destroyed at once.
fn together(fs: &Fs, store: &Store, image: &Image, report: &mut Report) -> Result<()> {
    let mut section = report.section(&format!("{}, {}", fs.name, store.disk_driver().name()));
    let devices = devices(fs)?;
    for (name, limit) in NAMES.iter().zip(LIMITS) {
        let (mut slowest, mut removals, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let mut living = Vec::new();
            let in_use = devices.in_use()?.len();
            for number in 0..TOGETHER {
                let id = format!("together-{number}");
                let rootfs = store.create_rootfs(&id, &RootfsSpec { image, owner: None, limit })?;
                write_in(&rootfs.mount, WRITTEN)?;
                living.push((id, rootfs));
            }
            let before = written(fs)?;
            let took = std::thread::scope(|scope| {
                let threads = living.into_iter().map(|(id, rootfs)| {
                    scope.spawn(move || {
                        let start = Instant::now();
                        drop(rootfs.mount);
                        store.release_rootfs(&id, None);
                        ms(start.elapsed())
                    })
                });
                let threads: Vec<_> = threads.collect();
                threads.into_iter().map(|thread| thread.join().unwrap_or(f64::NAN)).collect::<Vec<_>>()
            });
            slowest.push(took.into_iter().fold(0.0, f64::max));
            let start = Instant::now();
            settle(store)?;
            unmounted(&devices, in_use)?;
            removals.push(ms(start.elapsed()));
            bytes.extend(written(fs)?.zip(before).map(|(now, before)| (now - before) as f64 / 1e3));
        }
        let goal = limit.bytes.and(Some(Goal::Percentiles(15.0, None)));
        section.samples(
            &format!("slowest of {TOGETHER} destroys at once, 100 MB each, {name}"),
            "ms",
            &slowest,
            goal,
        );
        section.samples(&format!("  their removal, {name}"), "ms", &removals, None);
        if !bytes.is_empty() {
            section.samples(&format!("  written to the disk meanwhile, {name}"), "kB", &bytes, None);
        }
    }
    section.finish();
    Ok(())
}

/// Writes a lot, and waits until it is on the disk.
fn throughput(fs: &Fs, store: &Store, image: &Image, report: &mut Report) -> Result<()> {
    let mut section = report.section(&format!("{}, {}", fs.name, store.disk_driver().name()));
    let (devices, mut rates) = (devices(fs)?, [Vec::new(), Vec::new()]);
    for _ in 0..ROUNDS {
        for (rates, limit) in rates.iter_mut().zip(LIMITS) {
            let rootfs = store.create_rootfs("one", &RootfsSpec { image, owner: None, limit })?;
            // Behind the overlay, in which nothing can be synced.
            let upper = if limit.bytes.is_some() && store.disk_driver() == DiskDriver::Image {
                let device = devices.open_bound(device(&devices, &rootfs)?)?;
                mount::device_mount("ext4", &device, &[], &[], MountAttrFlags::empty())?
            } else {
                File::open(&rootfs.dir)?.into()
            };
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            rustix::fs::openat(&rootfs.mount, "data", flags, Mode::RUSR | Mode::WUSR)?;
            let data =
                rustix::fs::openat(&upper, "upper/data", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            let start = Instant::now();
            write(data, MUCH)?.sync_all()?;
            rates.push(MUCH as f64 / 1e6 / start.elapsed().as_secs_f64());
            drop((rootfs, upper));
            store.release_rootfs("one", None);
            settle(store)?;
        }
    }
    for (name, rates) in NAMES.iter().zip(&rates) {
        section.samples(&format!("1 GB written and synced, {name}"), "MB/s", rates, None);
    }
    let best = |rates: &[f64]| rates.iter().copied().fold(0.0, f64::max);
    let ratio = best(&rates[1]) / best(&rates[0]);
    section.value("  a limit : no limit, the best of each", "×", ratio, Some(Goal::AtLeast(0.9)));
    section.finish();
    Ok(())
}

fn many(fs: &Fs, store: &Store, image: &Image, report: &mut Report) -> Result<()> {
    let mut section = report.section(&format!("{}, {}", fs.name, store.disk_driver().name()));
    let descriptors = || -> Result<usize> { Ok(fs::read_dir("/proc/self/fd")?.count()) };
    let devices = devices(fs)?;
    let in_use = devices.in_use()?.len();
    let (before, start) = (descriptors()?, Instant::now());
    let mut living = Vec::new();
    for number in 0..MANY {
        let id = format!("many-{number}");
        let spec = RootfsSpec { image, owner: None, limit: LIMIT };
        living.push((store.create_rootfs(&id, &spec)?, id));
    }
    section.value(&format!("{MANY} with a limit, one after another"), "ms", ms(start.elapsed()), None);
    std::thread::sleep(Duration::from_secs(5));
    let each = (descriptors()? - before) as f64 / MANY as f64 - 1.0;
    section.value("  descriptors of the store for each", "", each, Some(Goal::AtMost(1.1)));
    let start = Instant::now();
    for (rootfs, id) in living {
        drop(rootfs.mount);
        store.release_rootfs(&id, None);
    }
    section.value("  their destroys, one after another", "ms", ms(start.elapsed()), None);
    let start = Instant::now();
    settle(store)?;
    unmounted(&devices, in_use)?;
    section.value("  their removal", "ms", ms(start.elapsed()), None);
    section.finish();
    Ok(())
}
