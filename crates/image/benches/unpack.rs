//! `cargo bench -p wardian-image --bench unpack -- [DIR] [--json] [--rounds N]`: one layer of 392 MB and 31,000 entries
//! unpacked by us and by `zstd -dc | tar x` and `gzip -dc | tar x`, by turns, from the page cache into DIR (default
//! /var/tmp). Ours verifies both digests, the pipes verify nothing. Needs root, and zstd, gzip and tar in the PATH.
//!
//! Memory is measured apart, in a process of its own that unpacks four layers at once.
//!
//! For profiling: `--layout DIR` only makes the layers, and `--at-once N DIR/layout zstd|gzip` unpacks N of them below
//! the current directory and prints the peak memory in kB.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tar::{EntryType, Header};
use wardian_image::{Digest, Limits, Source, Watch};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const DIRS: u64 = 2_600;
const FILES: u64 = 26_200;
const SYMLINKS: u64 = 2_200;
/// Sum of the files.
const BYTES: u64 = 376 << 20;

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
    let image = Source::parse(&format!("oci://{}:{tag}", layout.display()))?.open()?;
    image.layers[0].unpack(File::open(into)?.as_fd(), &[], &Limits::default(), &Watch::default())?;
    Ok(())
}

fn pipe(layout: &Path, tool: &str, into: &Path) -> Result<Duration> {
    let blob = layout.join(tool);
    let start = Instant::now();
    let mut decoder =
        Command::new(tool).arg("-dc").stdin(File::open(blob)?).stdout(Stdio::piped()).spawn()?;
    let stream = decoder.stdout.take().ok_or("no pipe")?;
    let tar = Command::new("tar").arg("x").arg("-C").arg(into).stdin(stream).status()?;
    if !decoder.wait()?.success() || !tar.success() {
        return Err(format!("{tool} | tar failed").into());
    }
    Ok(start.elapsed())
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

/// An OCI layout with the layer in both compressions, tagged `zstd` and `gzip`; the blobs are also linked by these names.
fn layout(dir: &Path) -> Result<PathBuf> {
    let layout = dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let plain = dir.join("layer.tar");
    generate(&plain)?;
    let diff_id = digest(&plain)?;
    let config = format!(r#"{{"rootfs":{{"diff_ids":["{diff_id}"]}}}}"#);
    let config = blob(&blobs, config.as_bytes())?;
    let mut manifests = Vec::new();
    for (tool, level) in [("zstd", "-3"), ("gzip", "-6")] {
        let path = layout.join(tool);
        let status = Command::new(tool)
            .args(["-c", level])
            .stdin(File::open(&plain)?)
            .stdout(File::create(&path)?)
            .status()?;
        if !status.success() {
            return Err(format!("{tool} failed").into());
        }
        let digest = digest(&path)?;
        fs::hard_link(&path, blobs.join(digest.as_hex()))?;
        let size = path.metadata()?.len();
        let manifest = format!(r#"{{"config":{config},"layers":[{{"digest":"{digest}","size":{size}}}]}}"#);
        let descriptor = blob(&blobs, manifest.as_bytes())?;
        manifests.push(format!(
            r#"{},"annotations":{{"org.opencontainers.image.ref.name":"{tool}"}}}}"#,
            descriptor.trim_end_matches('}')
        ));
    }
    fs::remove_file(&plain)?;
    fs::write(layout.join("index.json"), format!(r#"{{"manifests":[{}]}}"#, manifests.join(",")))?;
    Ok(layout)
}

fn blob(blobs: &Path, data: &[u8]) -> Result<String> {
    let digest = Digest::of(data);
    fs::write(blobs.join(digest.as_hex()), data)?;
    Ok(format!(r#"{{"digest":"{digest}","size":{}}}"#, data.len()))
}

fn digest(path: &Path) -> Result<Digest> {
    Ok(Digest::of(&fs::read(path)?))
}

/// Files of many sizes as in a distribution's image (half of them below 2 KiB, a few of some MiB), whose data compresses
/// to about a third.
fn generate(path: &Path) -> Result<()> {
    let mut out = io::BufWriter::new(File::create(path)?);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    // Sizes of a Pareto distribution, then scaled to the sum.
    let raw: Vec<f64> = (0..FILES)
        .map(|_| {
            let u = (next() >> 11) as f64 / (1u64 << 53) as f64;
            (700.0 / (1.0 - u).powf(1.0 / 0.95)).min(12e6)
        })
        .collect();
    let scale = BYTES as f64 / raw.iter().sum::<f64>();
    let words: Vec<Vec<u8>> = (0..4096)
        .map(|_| (0..3 + next() % 10).map(|_| b'a' + (next() % 26) as u8).chain([b' ']).collect())
        .collect();
    let mut data = Vec::new();
    let mut file = 0;
    for dir in 0..DIRS {
        let name = format!("usr/share/{}/{dir}", dir / 50);
        entry(&mut out, EntryType::Directory, &format!("{name}/"), "", &[])?;
        while file * DIRS < (dir + 1) * FILES && file < FILES {
            let size = (raw[file as usize] * scale) as usize;
            data.clear();
            while data.len() < size {
                // Words, and noise that does not compress.
                if next() % 16 == 0 {
                    data.extend_from_slice(&next().to_le_bytes());
                } else {
                    data.extend_from_slice(&words[(next() % 4096) as usize]);
                }
            }
            data.truncate(size);
            entry(&mut out, EntryType::Regular, &format!("{name}/file-{file}"), "", &data)?;
            file += 1;
        }
        if dir < SYMLINKS {
            entry(&mut out, EntryType::Symlink, &format!("{name}/link"), "../target", &[])?;
        }
    }
    out.write_all(&[0; 1024])?;
    out.flush()?;
    Ok(())
}

fn entry(out: &mut impl Write, kind: EntryType, name: &str, link: &str, data: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_path(name)?;
    if !link.is_empty() {
        header.set_link_name(link)?;
    }
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(if kind == EntryType::Regular { 0o644 } else { 0o755 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    out.write_all(header.as_bytes())?;
    out.write_all(data)?;
    out.write_all(&[0; 512][..(512 - data.len() % 512) % 512])?;
    Ok(())
}
