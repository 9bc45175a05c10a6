//! The file system that a store is on, or would be, and the devices below it.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use wardian_sys::procfs::MountInfo;

/// Size in bytes of a sector in /sys and in dm tables, whatever the disk's own sector size is.
const SECTOR: u64 = 512;

/// The file system of the store.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FileSystem {
    /// The store's directory, as given.
    pub root: PathBuf,
    /// The directory that was examined: the store's, or the nearest one above it that can be reached.
    pub looked_at: PathBuf,
    /// Mount point of the file system.
    pub mount_point: PathBuf,
    /// `ext4`, `xfs`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// Options of the mount and of the file system.
    pub options: Vec<String>,
    /// Whether it is read-only.
    pub read_only: bool,
    /// The mounted device or other source.
    pub source: PathBuf,
    /// Number of its device, `MAJOR:MINOR`.
    pub device: String,
    /// Size of the file system.
    pub total_bytes: u64,
    /// Free bytes, without those reserved for root.
    pub available_bytes: u64,
    /// Number of inodes; 0 where they are allocated on demand.
    pub inodes: u64,
    /// Number of free inodes.
    pub available_inodes: u64,
    /// Whether it has a journal or an equivalent; `None`: not known.
    pub journal: Option<bool>,
    /// Whether freed blocks are discarded synchronously, so that the deleting process or the journal waits.
    pub discard: bool,
    /// Block devices below it, from the top down.
    pub disks: Vec<String>,
    /// Whether one of them is a rotating disk.
    pub rotational: Option<bool>,
    /// The backing file, if it is on a loop device.
    pub loop_file: Option<LoopFile>,
    /// The thin pools that it is on.
    pub thin_pools: Vec<ThinPool>,
}

/// The backing file of a loop device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LoopFile {
    /// Its path.
    pub path: PathBuf,
    /// Size of the device in bytes.
    pub size_bytes: u64,
    /// Bytes allocated to the file.
    pub allocated_bytes: u64,
    /// Free bytes of the file's own file system.
    pub available_bytes: u64,
}

/// A pool of thin volumes (Documentation/admin-guide/device-mapper/thin-provisioning.rst).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ThinPool {
    /// Its name in the device mapper.
    pub name: String,
    /// Size of its data space in bytes.
    pub size_bytes: u64,
    /// Bytes not allocated yet.
    pub free_bytes: u64,
    /// Percent of its data blocks in use.
    pub data_percent: u64,
    /// Percent of its metadata blocks in use.
    pub metadata_percent: u64,
    /// `rw`, `ro`, `out_of_data_space`, or the state after a failure.
    pub mode: String,
    /// Whether writes to a full pool fail at once; otherwise they hang for a minute first.
    pub errors_when_full: bool,
}

impl FileSystem {
    /// Examines the file system of the store's directory.
    ///
    /// # Errors
    /// No store can be there: a component of the path is no directory.
    pub fn probe(root: &Path, mounts: &[MountInfo]) -> Result<Self> {
        let root = std::path::absolute(root).with_context(|| format!("--root {}", root.display()))?;
        let looked_at = nearest(&root)?;
        let metadata = std::fs::metadata(&looked_at).with_context(|| looked_at.display().to_string())?;
        let space = rustix::fs::statvfs(&looked_at)
            .with_context(|| format!("ask for the free space of {}", looked_at.display()))?;
        let mut found = Self {
            root,
            read_only: space.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
            total_bytes: space.f_blocks * space.f_frsize,
            available_bytes: space.f_bavail * space.f_frsize,
            inodes: space.f_files,
            available_inodes: space.f_favail,
            ..Self::default()
        };
        let mut device = metadata.dev();
        if let Some(mount) = crate::host::mount_of(mounts, &looked_at) {
            found.mount_point.clone_from(&mount.mount_point);
            found.kind.clone_from(&mount.fs_type);
            found.options.clone_from(&mount.mount_options);
            let more = mount.super_options.iter().filter(|option| !mount.mount_options.contains(option));
            found.options.extend(more.cloned());
            found.source.clone_from(&mount.source);
            found.discard = discards(&mount.fs_type, &found.options);
            // btrfs has an artificial device number for each subvolume.
            if rustix::fs::major(device) == 0 {
                let source = std::fs::metadata(&mount.source).map(|source| source.rdev());
                device = source.ok().filter(|number| *number != 0).unwrap_or(device);
            }
        }
        found.looked_at = looked_at;
        found.device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        found.look_below();
        Ok(found)
    }

    /// Finds the disks in /sys.
    fn look_below(&mut self) {
        let Ok(top) = std::fs::canonicalize(Path::new("/sys/dev/block").join(&self.device)) else { return };
        let mut layers = vec![top.clone()];
        let mut next = 0;
        let mut mapped = Vec::new();
        while let Some(layer) = layers.get(next).cloned() {
            next += 1;
            let read = |file: &str| std::fs::read_to_string(layer.join(file)).ok();
            // A partition uses its disk's queue.
            let queue = layer.join("queue/rotational");
            let queue = std::fs::read_to_string(queue).ok().or_else(|| read("../queue/rotational"));
            let rotates = queue.map(|text| text.trim() == "1");
            self.rotational = self.rotational.max(rotates);
            mapped.extend(read("dm/name").map(|name| name.trim().to_owned()));
            if let (Some(file), Some(sectors)) = (read("loop/backing_file"), read("size")) {
                self.loop_file =
                    self.loop_file.take().or_else(|| loop_file(file.trim_end_matches('\n'), &sectors));
            }
            let slaves = std::fs::read_dir(layer.join("slaves")).into_iter().flatten().flatten();
            for slave in slaves.filter_map(|slave| std::fs::canonicalize(slave.path()).ok()) {
                if !layers.contains(&slave) {
                    layers.push(slave);
                }
            }
        }
        let name = |layer: &PathBuf| layer.file_name().map(|name| name.to_string_lossy().into_owned());
        self.disks = layers.iter().filter_map(name).collect();
        if !mapped.is_empty() {
            let status =
                Command::new("dmsetup").args(["status", "--noflush", "--target", "thin-pool"]).output();
            let status = status.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
            self.thin_pools = thin_pools(&status.unwrap_or_default());
            self.thin_pools.retain(|pool| mapped.contains(&pool.name));
        }
        self.journal = match self.kind.as_str() {
            "xfs" | "btrfs" | "zfs" => Some(true),
            "ext2" => Some(false),
            "ext3" | "ext4" => self.disks.first().and_then(|disk| {
                let task = std::fs::read_to_string(format!("/sys/fs/ext4/{disk}/journal_task")).ok()?;
                Some(task.trim() != "<none>")
            }),
            _ => None,
        };
    }
}

/// The directory itself, or the nearest one above it that exists and can be reached.
fn nearest(root: &Path) -> Result<PathBuf> {
    for path in root.ancestors() {
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                return std::fs::canonicalize(path).with_context(|| path.display().to_string());
            }
            Ok(_) if path == root => bail!("{} is not a directory: --root takes the store's", root.display()),
            Ok(_) => bail!("{} cannot be made: {} is not a directory", root.display(), path.display()),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::NotADirectory
                ) => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
    bail!("{} cannot be reached", root.display())
}

/// Whether freeing blocks waits for the disk's discard. F2fs discards in the background under the same option.
fn discards(kind: &str, options: &[String]) -> bool {
    kind != "f2fs" && options.iter().any(|option| option == "discard" || option == "discard=sync")
}

fn loop_file(path: &str, sectors: &str) -> Option<LoopFile> {
    let metadata = std::fs::metadata(path).ok()?;
    let space = rustix::fs::statvfs(path).ok()?;
    Some(LoopFile {
        path: path.into(),
        size_bytes: sectors.trim().parse::<u64>().ok()? * SECTOR,
        allocated_bytes: metadata.blocks() * SECTOR,
        available_bytes: space.f_bavail * space.f_frsize,
    })
}

/// Parses the pools in the output of `dmsetup status`. Other lines are skipped.
fn thin_pools(status: &str) -> Vec<ThinPool> {
    status.lines().filter_map(thin_pool).collect()
}

fn thin_pool(line: &str) -> Option<ThinPool> {
    let (name, rest) = line.split_once(": ")?;
    let words: Vec<&str> = rest.split_ascii_whitespace().collect();
    let [_, length, "thin-pool", state @ ..] = words.as_slice() else { return None };
    let size_bytes = length.parse::<u64>().ok()?.checked_mul(SECTOR)?;
    let pool = ThinPool { name: name.to_owned(), size_bytes, ..ThinPool::default() };
    let [_, metadata, data, _, mode, flags @ ..] = state else {
        // A failed pool has one word: `Fail` or `Error`.
        return Some(ThinPool { mode: state.first()?.to_string(), ..pool });
    };
    let fraction = |text: &str| -> Option<(u64, u64)> {
        let (used, total) = text.split_once('/')?;
        let (used, total) = (used.parse().ok()?, total.parse().ok()?);
        (total > 0 && used <= total).then_some((used, total))
    };
    let percent = |(used, total): (u64, u64)| u64::try_from(u128::from(used) * 100 / u128::from(total)).ok();
    let (used, total) = fraction(data)?;
    Some(ThinPool {
        free_bytes: size_bytes / total * (total - used),
        data_percent: percent((used, total))?,
        metadata_percent: percent(fraction(metadata)?)?,
        mode: (*mode).to_owned(),
        errors_when_full: flags.contains(&"error_if_no_space"),
        ..pool
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools() {
        let text = "vg-thin-tpool: 0 2097152 thin-pool 3 12/1024 14745/16384 - rw no_discard_passdown queue_if_no_space - 1024\n\
                    vg-home: 0 4194304 thin 8192 16383\n\
                    full: 0 2048 thin-pool 3 1024/1024 16/16 - out_of_data_space discard_passdown error_if_no_space needs_check 0\n\
                    gone: 0 2048 thin-pool Fail\n\
                    bad: 0 2048 thin-pool 3 x/1024 16/16 - rw\n\
                    bad: 0 2048 thin-pool 3 1/1024 17/16 - rw\n\
                    bad: 0 2048 thin-pool 3 1/1024 0/0 - rw\n\
                    No devices found\n";
        let pools = thin_pools(text);
        assert_eq!(pools.len(), 3, "{pools:?}");
        let first = &pools[0];
        assert_eq!((first.name.as_str(), first.size_bytes), ("vg-thin-tpool", 1 << 30));
        assert_eq!((first.data_percent, first.metadata_percent), (89, 1));
        assert_eq!(first.free_bytes, 65536 * (16384 - 14745));
        assert_eq!((first.mode.as_str(), first.errors_when_full), ("rw", false));
        assert_eq!((pools[1].mode.as_str(), pools[1].free_bytes), ("out_of_data_space", 0));
        assert!(pools[1].errors_when_full);
        assert_eq!(pools[2].mode, "Fail");
    }

    #[test]
    fn discard_has_several_spellings() {
        for (kind, option, slow) in [
            ("ext4", "discard", true),
            ("xfs", "nodiscard", false),
            ("btrfs", "discard=async", false),
            ("btrfs", "discard=sync", true),
            ("f2fs", "discard", false),
        ] {
            assert_eq!(discards(kind, &["rw".into(), option.into()]), slow, "{kind} {option}");
        }
    }

    #[test]
    fn the_nearest_directory() {
        let dir = tempfile::tempdir().unwrap();
        let real = std::fs::canonicalize(dir.path()).unwrap();
        assert_eq!(nearest(dir.path()).unwrap(), real);
        assert_eq!(nearest(&dir.path().join("a/b")).unwrap(), real);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(nearest(&file).unwrap_err().to_string().contains("is not a directory"));
        assert!(nearest(&file.join("a/b")).unwrap_err().to_string().contains("cannot be made"));
    }
}
