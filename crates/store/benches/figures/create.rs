//! Creating a root file system from an image in the store, beside the bare mount of the same overlay.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use wardian_store::{Image, Owner, Rootfs, RootfsSpec, Store};
use wardian_sys::mount::{Overlay, UpperPair};
use wardian_sys::namespace::{IdMap, user};

use crate::images::{DEEP, Images};
use crate::place::Fs;
use crate::report::{Goal, Report, Times, ms};
use crate::sample::Result;

const MAPPED: u32 = 100_000;
const SAMPLES: usize = 200;
/// Root file systems that live while others are made.
const MANY: usize = 1000;
/// How often it goes from one to many and back, and samples at each.
const ROUNDS: usize = 4;
const PER_ROUND: usize = 50;
const PATIENCE: Duration = Duration::from_secs(120);

pub fn userns() -> Result<OwnedFd> {
    let map = [IdMap { inside: 0, outside: MAPPED, size: 65_536 }];
    Ok(user(&map, &map)?)
}

pub fn owner(userns: &OwnedFd) -> Owner<'_> {
    Owner { userns: userns.as_fd(), uid: MAPPED, gid: MAPPED, shared: true }
}

/// Lets the reaper finish.
pub fn settle(store: &Store) -> Result<()> {
    if store.drain(PATIENCE) { Ok(()) } else { Err("the reaper does not come to an end".into()) }
}

fn create(
    times: &mut Times,
    store: &Store,
    id: &str,
    image: &Image,
    owner: Option<&Owner<'_>>,
) -> Result<Rootfs> {
    let rootfs = times.take(|| store.create_rootfs(id, &RootfsSpec::new(image, owner.copied())))?;
    if rootfs.honest {
        return Err("a root file system is not volatile: the file system has lost a write".into());
    }
    Ok(rootfs)
}

/// What a client waits for: the last reference goes, and the store is told.
pub fn delete(times: &mut Times, store: &Store, id: &str, rootfs: Rootfs) {
    times.take(|| {
        drop(rootfs.mount);
        store.release_rootfs(id, None);
    });
}

/// An overlay mounted by nothing but its system calls.
pub struct Bare {
    dir: PathBuf,
    lowers: Vec<OwnedFd>,
}

impl Bare {
    pub fn new(fs: &Fs, image: &Image) -> Result<Self> {
        // Topmost first.
        Ok(Self { dir: fs.dir.join("bare"), lowers: image.layer_dirs()?.into_iter().rev().collect() })
    }

    /// Mounts it; its directories are there before.
    pub fn mount(&self, times: &mut Times, volatile: bool) -> Result<OwnedFd> {
        for name in ["upper", "work"] {
            std::fs::create_dir_all(self.dir.join(name))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&self.dir, flags, Mode::empty())?;
        times.take(|| {
            let pair = UpperPair::open(&dir)?;
            let mut overlay = Overlay::new(self.lowers.iter().map(AsFd::as_fd).collect(), &pair);
            overlay.volatile = volatile;
            Ok(overlay.mount()?)
        })
    }

    /// Removes what an overlay has left; it is unmounted.
    pub fn remove(&self) -> Result<()> {
        Ok(std::fs::remove_dir_all(&self.dir)?)
    }
}

pub fn run(fs: &Fs, images: &Images, report: &mut Report) -> Result<()> {
    let store = fs.store("create")?;
    let (one, deep) = (store.image(&images.of_layers(1))?, store.image(&images.of_layers(DEEP))?);
    let userns = userns()?;
    let owner = owner(&userns);
    layers(fs, &store, [&one, &deep], &owner, report)?;
    living(fs, &store, &one, &owner, report)?;
    store.close();
    Ok(())
}

fn layers(fs: &Fs, store: &Store, images: [&Image; 2], owner: &Owner<'_>, report: &mut Report) -> Result<()> {
    let variants = images.map(|image| [(image, None), (image, Some(owner))]).concat();
    let bare = [Bare::new(fs, images[0])?, Bare::new(fs, images[1])?];
    let mut samples = vec![Times::default(); variants.len()];
    let mut deletes = Times::default();
    let mut floors = [Times::default(), Times::default()];
    let mut section = report.section(&fs.name);
    let mut floor_error = None;
    for round in 0..=SAMPLES {
        for (samples, (image, owner)) in samples.iter_mut().zip(&variants) {
            let rootfs = create(samples, store, "one", image, *owner)?;
            delete(&mut deletes, store, "one", rootfs);
            settle(store)?;
        }
        for (bare, floor) in bare.iter().zip(&mut floors) {
            match bare.mount(floor, true) {
                Ok(mount) => drop(mount),
                // Some kernels take no descriptors for layers.
                Err(error) => floor_error = Some(error),
            }
            bare.remove()?;
        }
        // In the first round the layers are mounted and the pools filled.
        if round == 0 {
            samples.iter_mut().chain(&mut floors).chain([&mut deletes]).for_each(Times::clear);
        }
    }
    let base = [samples[0].median(), samples[1].median()];
    let goal = Some(Goal::Percentiles(0.6, None));
    section.times("create, 1 layer, privileged", &samples[0], goal);
    section.times("create, 1 layer, mapped", &samples[1], goal);
    section.times("create, 60 layers, privileged", &samples[2], None);
    section.times("create, 60 layers, mapped", &samples[3], None);
    for (index, name) in ["privileged", "mapped"].into_iter().enumerate() {
        let more = samples[2 + index].median() - base[index];
        section.value(
            &format!("create, 60 layers more than 1, {name}*"),
            "ms",
            more,
            Some(Goal::AtMost(0.5)),
        );
    }
    match floor_error {
        None => {
            section.times("  floor: bare overlay, 1 layer", &floors[0], None);
            section.times("  floor: bare overlay, 60 layers", &floors[1], None);
        }
        Some(error) => section.note(&format!("no floor: {error}")),
    }
    section.times("delete, nothing written", &deletes, None);
    section.finish();
    Ok(())
}

/// Processor time of all threads of this process.
pub fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn living(fs: &Fs, store: &Store, image: &Image, owner: &Owner<'_>, report: &mut Report) -> Result<()> {
    let mut section = report.section(&fs.name);
    let mut living: Vec<(String, Rootfs)> = Vec::new();
    let (mut samples, mut cpus) = ([Times::default(), Times::default()], [Vec::new(), Vec::new()]);
    let mut rest = Times::default();
    for _ in 0..ROUNDS {
        for (index, count) in [1, MANY].into_iter().enumerate() {
            while living.len() < count {
                let id = format!("living-{}", living.len());
                let rootfs = create(&mut rest, store, &id, image, Some(owner))?;
                living.push((id, rootfs));
            }
            while living.len() > count {
                let Some((id, rootfs)) = living.pop() else { break };
                delete(&mut rest, store, &id, rootfs);
            }
            settle(store)?;
            let before = cpu();
            for _ in 0..PER_ROUND {
                let rootfs = create(&mut samples[index], store, "one", image, Some(owner))?;
                delete(&mut rest, store, "one", rootfs);
                settle(store)?;
            }
            cpus[index].push(ms(cpu() - before) / PER_ROUND as f64);
        }
    }
    for (id, rootfs) in living {
        delete(&mut rest, store, &id, rootfs);
    }
    settle(store)?;
    section.times("create, 1 lives", &samples[0], None);
    section.times("create, 1000 live", &samples[1], None);
    let times = samples[1].median() / samples[0].median();
    section.value("create, 1000 live : 1 lives*", "×", times, Some(Goal::AtMost(1.2)));
    section.samples("  processor time of both, all threads, 1 lives", "ms", &cpus[0], None);
    section.samples("  processor time of both, all threads, 1000 live", "ms", &cpus[1], None);
    section.finish();
    Ok(())
}
