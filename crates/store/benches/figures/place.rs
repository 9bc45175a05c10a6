//! File systems made for the occasion, in a mount namespace of the benchmark's own, and what removes it all.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountPropagationFlags, mount_change};
use wardian_store::{Config, Store, run};
use wardian_sys::{mount, procfs};

use crate::sample::Result;

/// Of the loop devices' sparse files.
const SIZE: u64 = 16 << 30;
/// How long the janitor tries: a `tar` of ours may still be writing.
const PATIENCE: Duration = Duration::from_secs(120);

/// A directory that goes with this process, however that ends.
pub struct Place {
    pub dir: PathBuf,
    janitor: Child,
}

impl Place {
    /// Makes it below `parent`, and moves this process, which may have no other thread yet, to a mount namespace of its
    /// own: what is mounted from here on goes with the process, and a loop device with its mount.
    pub fn make(parent: &Path) -> Result<Self> {
        let parent = fs::canonicalize(parent)?;
        let dir = tempfile::Builder::new().prefix("store-figures.").tempdir_in(&parent)?.keep();
        let janitor = Command::new(std::env::current_exe()?)
            .arg("--remove")
            .arg(&dir)
            .stdin(Stdio::piped())
            // Ctrl-C is not for it.
            .process_group(0)
            .spawn()?;
        let place = Self { dir, janitor };
        // Only unsharing descriptors is unsafe.
        #[allow(deprecated)]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS)?;
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)?;
        // Our copies would keep the others' devices and overlays busy after they are unmounted.
        let exe = std::env::current_exe()?;
        let needed = |path: &Path| place.dir.starts_with(path) || exe.starts_with(path);
        for other in procfs::mountinfo(&fs::read("/proc/self/mountinfo")?)?.iter().rev() {
            let kept_busy = other.source.starts_with("/dev") || other.fs_type == "overlay";
            if kept_busy && !needed(&other.mount_point) {
                mount::unmount_lazily(&other.mount_point)?;
            }
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// The janitor: waits for the end of the process that has the other end of its input, and removes the directory.
pub fn remove_later(dir: &Path) -> Result<()> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let started = Instant::now();
    loop {
        match fs::remove_dir_all(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if started.elapsed() > PATIENCE => {
                return Err(format!("cannot remove {}: {error}", dir.display()).into());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Whether nothing but limits is measured on a file system.
pub fn is_for_limits(name: &str) -> bool {
    name.starts_with("btrfs")
}

/// A file system to measure on.
pub struct Fs {
    pub name: String,
    pub dir: PathBuf,
    run: PathBuf,
    /// Made for the occasion. Only there is the large layer unpacked into stores: its 31,000 files have to be deleted
    /// again, and on a root file system that discards each freed extent at once that takes minutes.
    pub is_new: bool,
}

impl Fs {
    /// `root` is the file system that the place is on; the others are new ones on loop devices, with their defaults.
    pub fn make(place: &Place, name: &str) -> Result<Self> {
        let dir = place.dir.join(name);
        let run = place.dir.join(format!("{name}.run"));
        fs::create_dir(&dir)?;
        run::prepare(&run)?;
        let is_new = name != "root";
        if is_new {
            let image = place.dir.join(format!("{name}.img"));
            fs::File::create(&image)?.set_len(SIZE)?;
            // The thread that would write inode tables in the background is none of what is measured.
            let (fs, force, options) = match name {
                "ext4" => ("ext4", "-F", "loop,noinit_itable"),
                "xfs" => ("xfs", "-f", "loop"),
                "btrfs" | "btrfs-simple" => ("btrfs", "-f", "loop"),
                _ => {
                    let why = format!("no such file system: {name} (root, ext4, xfs, btrfs, btrfs-simple)");
                    return Err(why.into());
                }
            };
            command(Command::new(format!("mkfs.{fs}")).args(["-q", force]).arg(&image))?;
            command(Command::new("mount").args(["-o", options]).arg(&image).arg(&dir))?;
            let quota: &[&str] = match name {
                "btrfs" => &["quota", "enable"],
                "btrfs-simple" => &["quota", "enable", "--simple"],
                _ => &[],
            };
            // Without quota, as with btrfs-progs before 6.7 there is no simple one, the report says that it is missing.
            if !quota.is_empty() && !Command::new("btrfs").args(quota).arg(&dir).status()?.success() {
                eprintln!("btrfs {}: failed", quota.join(" "));
            }
            // The mount keeps it.
            fs::remove_file(&image)?;
        }
        Ok(Self { name: name.to_owned(), dir, run, is_new })
    }

    /// A new store on it.
    pub fn config(&self, name: &str) -> Config {
        Config::new(self.dir.join(name), self.run.join(name))
    }

    pub fn store(&self, name: &str) -> Result<Store> {
        Ok(Store::serve(&self.config(name), &|_| false)?)
    }

    /// Takes it away; fails if anything of a store still lives on it. A closed store's write-back may, for a while.
    pub fn unmount(&self) -> Result<()> {
        if !self.is_new {
            return Ok(());
        }
        let started = Instant::now();
        loop {
            match mount::unmount(&self.dir) {
                Err(mount::Error::Busy { .. }) if started.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                other => return Ok(other?),
            }
        }
    }
}

fn command(command: &mut Command) -> Result<()> {
    if command.status().map_err(|error| format!("{command:?}: {error}"))?.success() {
        return Ok(());
    }
    Err(format!("{command:?} failed").into())
}
