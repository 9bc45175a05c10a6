//! `cargo bench -p wardian-image --bench unpack -- [DIR] [--json] [--rounds N]`: one layer of 392 MB and 31,000 entries
//! unpacked by us and by `zstd -dc | tar x` and `gzip -dc | tar x`, by turns, from the page cache into DIR (default
//! /var/tmp). Ours verifies both digests, the pipes verify nothing. Needs root, and zstd, gzip and tar in the PATH.
//!
//! Memory is measured apart, in a process of its own that unpacks four layers at once.
//!
//! For profiling: `--layout DIR` only makes the layers, and `--at-once N DIR/layout zstd|gzip` unpacks N of them below
//! the current directory and prints the peak memory in kB.
#![forbid(unsafe_code)]

mod sample;

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sample::{Result, layout, pipe};
use wardian_image::{Limits, Remote, Source, Watch};

fn main() -> Result<()> {
    let mut args: Vec<_> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let json = take(&mut args, "--json");
    if take(&mut args, "--at-once") {
        return at_once(args[0].parse()?, Path::new(&args[1]), &args[2]);
    }
    if take(&mut args, "--layout") {
        layout(Path::new(&args[0]))?;
        return Ok(());
    }
    let rounds = match args.iter().position(|arg| arg == "--rounds") {
        Some(at) => args.drain(at..).nth(1).ok_or("--rounds needs a number")?.parse()?,
        None => 7,
    };
    let parent = args.first().map_or("/var/tmp", String::as_str);
    let dir = tempfile::Builder::new().prefix("unpack-bench.").tempdir_in(parent)?;
    let layout = layout(dir.path())?;
    let mut times: Vec<(&str, Vec<f64>)> =
        ["zstd", "zstd | tar", "gzip", "gzip | tar"].map(|name| (name, Vec::new())).into();
    for round in 0..=rounds {
        for (name, times) in &mut times {
            let into = dir.path().join("into");
            fs::create_dir(&into)?;
            let took = match name.split_once(" | ") {
                None => ours(&layout, name, &into)?,
                Some((tool, _)) => pipe(&layout, tool, &into)?,
            };
            fs::remove_dir_all(&into)?;
            // The first round fills the page cache.
            if round > 0 {
                times.push(took.as_secs_f64() * 1e3);
            }
        }
    }
    let median: Vec<f64> = times
        .iter_mut()
        .map(|(_, times)| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        })
        .collect();
    let (zstd, gzip) = (median[0] / median[1], median[2] / median[3]);
    let memory = ["zstd", "gzip"].map(|tag| memory(dir.path(), &layout, tag));
    let [zstd_memory, gzip_memory] = memory;
    let (zstd_memory, gzip_memory) = (zstd_memory?, gzip_memory?);
    if json {
        println!(
            r#"{{"rounds":{rounds},"zstd_ms":{:.0},"zstd_tar_ms":{:.0},"zstd_ratio":{zstd:.3},"gzip_ms":{:.0},"gzip_tar_ms":{:.0},"gzip_ratio":{gzip:.3},"four_zstd_kb":{zstd_memory},"four_gzip_kb":{gzip_memory}}}"#,
            median[0], median[1], median[2], median[3]
        );
    } else {
        for ((name, times), median) in times.iter().zip(&median) {
            println!("{name:12} {median:6.0} ms (fastest {:.0})", times[0]);
        }
        println!("ratio zstd {zstd:.2}, gzip {gzip:.2}");
        println!("peak memory of four at once: zstd {zstd_memory} kB, gzip {gzip_memory} kB");
    }
    Ok(())
}

fn take(args: &mut Vec<String>, flag: &str) -> bool {
    let before = args.len();
    args.retain(|arg| arg != flag);
    args.len() < before
}

fn ours(layout: &Path, tag: &str, into: &Path) -> Result<Duration> {
    let start = Instant::now();
    unpack(layout, tag, into)?;
    Ok(start.elapsed())
}

fn unpack(layout: &Path, tag: &str, into: &Path) -> Result<()> {
    let image = Source::parse(&format!("oci://{}:{tag}", layout.display()))?.open(&Remote::default())?;
    image.layers[0].unpack(File::open(into)?.as_fd(), &[], &Limits::default(), &Watch::default())?;
    Ok(())
}

/// Peak memory of four unpacks at once, in kB.
fn memory(dir: &Path, layout: &Path, tag: &str) -> Result<u64> {
    let into = dir.join("four");
    fs::create_dir(&into)?;
    let output = Command::new(std::env::current_exe()?)
        .args(["--at-once", "4"])
        .arg(layout)
        .arg(tag)
        .current_dir(&into)
        .stderr(Stdio::inherit())
        .output()?;
    fs::remove_dir_all(&into)?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

fn at_once(count: usize, layout: &Path, tag: &str) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|i| {
                scope.spawn(move || {
                    let into = PathBuf::from(i.to_string());
                    fs::create_dir(&into)?;
                    unpack(layout, tag, &into).map_err(|e| io::Error::other(e.to_string()))
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?.map_err(Into::into))
    })
    .map_err(|e: Box<dyn Error>| e.to_string())?;
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    println!("{}", peak.trim().trim_end_matches(" kB"));
    Ok(())
}
