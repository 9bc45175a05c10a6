//! Many threads that create and delete at the same time, and what is left of it.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use wardian_store::RootfsSpec;

use crate::create::{owner, settle, userns};
use crate::images::Images;
use crate::place::Fs;
use crate::report::{Goal, Report, Times, ms};
use crate::sample::Result;

const THREADS: usize = 8;
const ROOTFS: usize = 500;
const ROUNDS: usize = 3;

fn entries(path: &str) -> Result<usize> {
    Ok(fs::read_dir(path)?.count())
}

fn mounts() -> Result<usize> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().count())
}

pub fn run(all: &[Fs], images: &Images, report: &mut Report) -> Result<()> {
    let userns = userns()?;
    let mut rates = vec![Vec::new(); all.len()];
    let mut latencies = vec![Times::default(); all.len()];
    let mut drains = vec![Vec::new(); all.len()];
    let mut sections = report.section("all");
    for round in 0..ROUNDS {
        for (index, fs) in all.iter().enumerate() {
            let name = format!("churn-{round}");
            let store = fs.store(&name)?;
            let image = store.image(&images.of_layers(1))?;
            let before = (entries("/proc/self/fd")?, mounts()?);
            let next = AtomicUsize::new(0);
            let work = || -> wardian_store::Result<Times> {
                let mut took = Times::default();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= ROOTFS {
                        return Ok(took);
                    }
                    let id = format!("churn-{number}");
                    took.take(|| -> wardian_store::Result<()> {
                        let rootfs =
                            store.create_rootfs(&id, &RootfsSpec::new(&image, Some(owner(&userns))))?;
                        drop(rootfs.mount);
                        store.release_rootfs(&id, None);
                        Ok(())
                    })?;
                }
            };
            let start = Instant::now();
            std::thread::scope(|scope| -> Result<()> {
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
                for thread in threads {
                    latencies[index].append(thread.join().map_err(|_| "a thread panicked")??);
                }
                Ok(())
            })?;
            rates[index].push(ROOTFS as f64 / start.elapsed().as_secs_f64());
            let start = Instant::now();
            settle(&store)?;
            drains[index].push(ms(start.elapsed()));
            let records = store.rootfs()?.len();
            // The pool of pairs and its owner's user namespace are kept: at most a few descriptors for each.
            let more = entries("/proc/self/fd")?.saturating_sub(before.0);
            store.close();
            drop(store);
            let left = fs::read_dir(fs.dir.join(&name).join("rootfs"))?.count();
            if records + left > 0 || mounts()? != before.1 || more > 100 {
                let text = format!("{records} records, {left} directories, {more} descriptors are left");
                return Err(format!("{}: {text}, or a mount", fs.name).into());
            }
        }
    }
    for (index, fs) in all.iter().enumerate() {
        let on = |what: &str| format!("{what}, {}", fs.name);
        sections.samples(&on("500 by 8 threads"), "/s", &rates[index], Some(Goal::AtLeast(500.0)));
        sections.times(&on("  one create and delete"), &latencies[index], None);
        sections.samples(&on("  until the reaper is done"), "ms", &drains[index], None);
    }
    sections.finish();
    Ok(())
}
