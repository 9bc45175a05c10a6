//! Samples the files of /proc and /sys, and finds the device below a directory.

use crate::proc;
use crate::recording::{Io, Pressure, Sample, Source, Tunables};
use crate::tracefs::Filter;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use wardian_sys::{pressure, procfs};

/// The file system and device below a directory.
#[derive(Debug, Default)]
pub(crate) struct Target {
    pub(crate) filter: Filter,
    pub(crate) fs_type: String,
    /// The `stat` files of the devices whose writes are counted.
    stat: Vec<PathBuf>,
    /// Why there is no device, if there is none.
    pub(crate) note: Option<String>,
}

impl Target {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        let own = numbers(fs::metadata(&path)?.dev());
        let mounts = fs::read("/proc/self/mountinfo")?;
        let mounts = procfs::mountinfo(&mounts).unwrap_or_default();
        // Of several mounts on the same directory the last one is visible.
        let mount = mounts
            .iter()
            .filter(|mount| path.starts_with(&mount.mount_point))
            .max_by_key(|mount| mount.mount_point.components().count());
        let fs_type = mount.map(|mount| mount.fs_type.clone()).unwrap_or_default();
        // A file system on several devices (btrfs) has a device number of its own, which is no block device's.
        let source = mount.and_then(|mount| fs::metadata(&mount.source).ok()).map(|m| numbers(m.rdev()));
        let device = [Some(own), source].into_iter().flatten().find(|d| d.0 != 0 && sysfs(*d).exists());
        let mut target = Self { fs_type, ..Self::default() };
        target.filter.superblock = own;
        // One on several devices writes to each of them.
        if let Some(several) = device.and_then(btrfs) {
            target.filter.bdi = several.bdi;
            target.stat = several.devices.iter().map(|device| sysfs(*device).join("stat")).collect();
            target.filter.devices = several.devices;
            return Ok(target);
        }
        let Some(device) = device else {
            let kind = if target.fs_type.is_empty() { "file system" } else { &target.fs_type };
            target.note = Some(format!(
                "{} is on a {kind} without a block device: give a directory on the file system below it",
                path.display()
            ));
            return Ok(target);
        };
        target.filter.devices.push(device);
        // Older kernels trace a partition's requests with the number of its disk, which the flusher is named after,
        // too.
        let whole = sysfs(device).join("partition").exists().then(|| disk_of(device)).flatten();
        target.filter.devices.extend(whole);
        if device == own {
            let (major, minor) = whole.unwrap_or(device);
            target.filter.bdi = Some(format!("{major}:{minor}"));
        }
        target.stat.push(sysfs(device).join("stat"));
        Ok(target)
    }
}

/// The devices of a btrfs file system.
#[derive(Debug)]
struct Several {
    devices: Vec<(u32, u32)>,
    /// The name of its backing device info.
    bdi: Option<String>,
}

/// The mounted btrfs file system that has this device, by `/sys/fs/btrfs/<uuid>/{devices/<name>/dev,bdi}`.
fn btrfs(device: (u32, u32)) -> Option<Several> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    for dir in entries(Path::new("/sys/fs/btrfs")) {
        let number = |link: PathBuf| parse(&fs::read_to_string(link.join("dev")).ok()?);
        let devices: Vec<(u32, u32)> = entries(&dir.join("devices")).filter_map(number).collect();
        if devices.contains(&device) {
            let bdi = fs::read_link(dir.join("bdi")).ok();
            let bdi = bdi.and_then(|link| link.file_name()?.to_str().map(str::to_owned));
            return Some(Several { devices, bdi });
        }
    }
    None
}

/// The disk below a directory, for callers that only need its counter.
#[derive(Debug, Clone)]
pub struct Disk(Vec<PathBuf>);

impl Disk {
    /// Finds the disk; there may be none.
    ///
    /// # Errors
    ///
    /// The directory cannot be looked at.
    pub fn below(dir: &Path) -> io::Result<Self> {
        Target::of(dir).map(|target| Self(target.stat))
    }

    /// Bytes written to the disk since the boot, or to all disks of a file system on several; `None` without a disk.
    pub fn written(&self) -> Option<u64> {
        let written =
            |stat: &PathBuf| Some(proc::device_stat(&fs::read_to_string(stat).ok()?)?.written_bytes);
        let all: Vec<u64> = self.0.iter().filter_map(written).collect();
        (!all.is_empty()).then(|| all.iter().sum())
    }
}

fn numbers(dev: u64) -> (u32, u32) {
    (rustix::fs::major(dev), rustix::fs::minor(dev))
}

fn sysfs((major, minor): (u32, u32)) -> PathBuf {
    format!("/sys/dev/block/{major}:{minor}").into()
}

fn disk_of(partition: (u32, u32)) -> Option<(u32, u32)> {
    let text = fs::read_to_string(fs::canonicalize(sysfs(partition)).ok()?.parent()?.join("dev")).ok()?;
    parse(&text)
}

/// Parses `major:minor`.
fn parse(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The open files.
#[derive(Debug)]
pub(crate) struct Host {
    meminfo: Option<File>,
    vmstat: Option<File>,
    pressure: Option<File>,
    devices: Vec<File>,
    /// The increase of the counters at the last reading.
    grown: BTreeMap<String, u64>,
    /// The pressure at the last reading.
    stalled: Option<Pressure>,
    first: Option<(BTreeMap<&'static str, u64>, Pressure, Io)>,
    text: Vec<u8>,
}

impl Host {
    pub(crate) fn open(target: &Target, sources: &mut Vec<Source>) -> Self {
        let mut open = |name: &str, path: &Path| {
            let file = File::open(path);
            // A kernel may have the file but no accounting (psi=0).
            let readable = file.and_then(|file| file.read_at(&mut [0; 1], 0).map(|_| file));
            match readable {
                Ok(file) => {
                    sources.push(Source { name: name.to_owned(), available: true, note: None });
                    Some(file)
                }
                Err(error) => {
                    sources.push(missing(name, &format!("{}: {error}", path.display())));
                    None
                }
            }
        };
        Self {
            meminfo: open("meminfo", Path::new("/proc/meminfo")),
            vmstat: open("vmstat", Path::new("/proc/vmstat")),
            pressure: open("psi", Path::new("/proc/pressure/io")),
            devices: target.stat.iter().filter_map(|stat| open("device", stat)).collect(),
            grown: BTreeMap::new(),
            stalled: None,
            first: None,
            text: vec![0; 32768],
        }
    }

    /// Takes a sample. Only a `whole` one reads the counters of vmstat and the pressure; the others repeat them.
    pub(crate) fn sample(&mut self, t_ms: f64, whole: bool) -> Sample {
        let memory = read(self.meminfo.as_ref(), &mut self.text).and_then(|text| procfs::meminfo(text).ok());
        let memory = memory.unwrap_or_default();
        let vmstat = whole.then(|| read(self.vmstat.as_ref(), &mut self.text).map(proc::vmstat)).flatten();
        let pressure = if whole {
            let psi = read(self.pressure.as_ref(), &mut self.text).and_then(pressure::parse_psi);
            psi.map(|psi| Pressure { some_us: psi.some.total_us, full_us: psi.full.total_us })
        } else {
            self.stalled
        };
        self.stalled = pressure;
        let each = self.devices.iter();
        let each = each.filter_map(|file| proc::device_stat(read(Some(file), &mut self.text)?));
        let io = each.reduce(|a, b| Io {
            writes: a.writes + b.writes,
            written_bytes: a.written_bytes + b.written_bytes,
            in_flight: a.in_flight + b.in_flight,
            busy_ms: a.busy_ms.max(b.busy_ms),
            discarded_bytes: a.discarded_bytes + b.discarded_bytes,
        });
        let (counters, stalled, done) = self.first.get_or_insert_with(|| {
            (vmstat.clone().unwrap_or_default(), pressure.unwrap_or_default(), io.unwrap_or_default())
        });
        let grown = |(name, value): (&&'static str, &u64)| {
            let by = value.saturating_sub(counters.get(name).copied().unwrap_or_default());
            (by > 0).then(|| ((*name).to_owned(), by))
        };
        if let Some(vmstat) = &vmstat {
            self.grown = vmstat.iter().filter_map(grown).collect();
        }
        Sample {
            t_ms,
            dirty_bytes: memory.dirty,
            writeback_bytes: memory.writeback,
            vmstat: self.grown.clone(),
            pressure: pressure.map(|now| Pressure {
                some_us: now.some_us.saturating_sub(stalled.some_us),
                full_us: now.full_us.saturating_sub(stalled.full_us),
            }),
            io: io.map(|now| Io {
                writes: now.writes.saturating_sub(done.writes),
                written_bytes: now.written_bytes.saturating_sub(done.written_bytes),
                in_flight: now.in_flight,
                busy_ms: now.busy_ms.saturating_sub(done.busy_ms),
                discarded_bytes: now.discarded_bytes.saturating_sub(done.discarded_bytes),
            }),
        }
    }
}

fn read<'a>(file: Option<&File>, buffer: &'a mut [u8]) -> Option<&'a str> {
    let mut length = 0;
    loop {
        match file?.read_at(&mut buffer[length..], length as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(_) => return None,
        }
    }
    std::str::from_utf8(&buffer[..length]).ok()
}

pub(crate) fn missing(name: &str, note: &str) -> Source {
    Source { name: name.to_owned(), available: false, note: Some(note.to_owned()) }
}

/// The name of a thread; empty if it has ended.
pub(crate) fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

pub(crate) fn tunables() -> Tunables {
    let entries = fs::read_dir("/proc/sys/vm").into_iter().flatten().flatten();
    let value = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok().filter(|name| name.starts_with("dirty"))?;
        Some((name, fs::read_to_string(entry.path()).ok()?.trim().parse().ok()?))
    };
    let vmstat = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let (background, threshold) = proc::thresholds(&vmstat).unwrap_or_default();
    let page = rustix::param::page_size() as u64;
    Tunables {
        vm: entries.filter_map(value).collect(),
        background_threshold_bytes: background * page,
        threshold_bytes: threshold * page,
    }
}
