//! Root file systems mounted ahead: what a claim saves a single create and a burst, and what a spare costs in memory.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use wardian_store::{Config, Image, Owner, RootfsSpec, Store, ready};

use crate::create::{delete, owner, settle, userns};
use crate::images::{DEEP, Images};
use crate::place::Fs;
use crate::report::{Report, Times, ms};
use crate::sample::Result;

const SAMPLES: usize = 200;
const BURST: usize = 100;
const BURSTS: usize = 10;
const THREADS: usize = 4;
/// Twice as many, and those of the other figures, are what a store keeps spares of.
const KINDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until so many are mounted ahead.
fn full(store: &Store, count: usize) -> Result<()> {
    let start = Instant::now();
    while store.ready_rootfs() < count {
        if start.elapsed() > PATIENCE {
            return Err("nothing is mounted ahead: is memory short, or the disk?".into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

pub fn run(fs: &Fs, images: &Images, report: &mut Report) -> Result<()> {
    let make =
        |name: &str, ready_rootfs| Store::serve(&Config { ready_rootfs, ..fs.config(name) }, &|_| false);
    let stores = [make("fresh", 0)?, make("claimed", ready::MOST)?];
    let userns = userns()?;
    let owner = owner(&userns);
    for (kinds, layers) in [(1, 1), (2, DEEP)] {
        let uri = images.of_layers(layers);
        let image = [stores[0].image(&uri)?, stores[1].image(&uri)?];
        let case = Case { stores: &stores, image, owner: &owner, layers, count: kinds * ready::MOST };
        single(fs, &case, report)?;
        burst(fs, &case, report)?;
    }
    memory(fs, &stores[1], images, &owner, report)?;
    stores.iter().for_each(Store::close);
    Ok(())
}

struct Case<'a> {
    stores: &'a [Store; 2],
    image: [Image; 2],
    owner: &'a Owner<'a>,
    layers: usize,
    /// Spares of this kind and those before.
    count: usize,
}

const NAMES: [&str; 2] = ["fresh", "claimed"];

fn single(fs: &Fs, case: &Case<'_>, report: &mut Report) -> Result<()> {
    let Case { stores, image, owner, layers, count } = case;
    let mut section = report.section(&fs.name);
    let (mut creates, mut deletes) = ([Times::default(), Times::default()], Times::default());
    for round in 0..=SAMPLES {
        for (index, store) in stores.iter().enumerate() {
            let rootfs = creates[index]
                .take(|| store.create_rootfs("one", &RootfsSpec::new(&image[index], Some(**owner))))?;
            delete(&mut deletes, store, "one", rootfs);
            settle(store)?;
        }
        // In the first round nothing is ready yet.
        full(&stores[1], *count)?;
        if round == 0 {
            creates.iter_mut().for_each(Times::clear);
        }
    }
    for (name, times) in NAMES.iter().zip(&creates) {
        section.times(&format!("create, {layers} layers, {name}"), times, None);
    }
    section.value("  claimed : fresh*", "×", creates[1].median() / creates[0].median(), None);
    section.finish();
    Ok(())
}

fn burst(fs: &Fs, case: &Case<'_>, report: &mut Report) -> Result<()> {
    let Case { stores, image, owner, layers, count } = case;
    let mut section = report.section(&fs.name);
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..BURSTS {
        for (index, store) in stores.iter().enumerate() {
            full(&stores[1], *count)?;
            let next = AtomicUsize::new(0);
            let work = || -> wardian_store::Result<Vec<_>> {
                let mut made = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= BURST {
                        return Ok(made);
                    }
                    let id = format!("burst-{number}");
                    let rootfs = store.create_rootfs(&id, &RootfsSpec::new(&image[index], Some(**owner)))?;
                    made.push((id, rootfs));
                }
            };
            let start = Instant::now();
            let made = std::thread::scope(|scope| -> Result<Vec<_>> {
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
                let mut made = Vec::new();
                for thread in threads {
                    made.extend(thread.join().map_err(|_| "a thread panicked")??);
                }
                Ok(made)
            })?;
            took[index].push(ms(start.elapsed()));
            let mut deletes = Times::default();
            made.into_iter().for_each(|(id, rootfs)| delete(&mut deletes, store, &id, rootfs));
            settle(store)?;
        }
    }
    for (name, took) in NAMES.iter().zip(&took) {
        section.samples(&format!("100 by {THREADS} threads, {layers} layers, {name}"), "ms", took, None);
    }
    section.finish();
    Ok(())
}

/// The kernel's memory that grows with mounts: slabs and per-processor counters.
fn kernel_bytes() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.split_whitespace().next()?.parse::<f64>().ok())
    };
    let (slab, percpu) = (field("Slab").ok_or("no Slab")?, field("Percpu").unwrap_or(0.0));
    Ok((slab + percpu) * 1024.0)
}

/// Of a spare: as many as a store keeps, of as many owners as it takes.
fn memory(fs: &Fs, store: &Store, images: &Images, owner: &Owner<'_>, report: &mut Report) -> Result<()> {
    let mut section = report.section(&fs.name);
    let mut uid = owner.uid;
    for layers in [1, DEEP] {
        let image = store.image(&images.of_layers(layers))?;
        let (before, had) = (kernel_bytes()?, store.ready_rootfs());
        for kind in 1..=KINDS {
            // The store tells mappings by the root's ids.
            uid += 1;
            drop(store.create_rootfs("one", &RootfsSpec::new(&image, Some(Owner { uid, ..*owner })))?.mount);
            store.release_rootfs("one", None);
            full(store, had + kind * ready::MOST)?;
        }
        settle(store)?;
        let each = (kernel_bytes()? - before) / (store.ready_rootfs() - had) as f64;
        section.value(&format!("kernel memory of a spare, {layers} layers"), "kB", each / 1e3, None);
    }
    section.finish();
    Ok(())
}
