//! The lower bound: the time that the kernel and `tar` need without a container engine.

use anyhow::{Context, Result, ensure};
use rustix::io::FdFlags;
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wardian_sys::mount::fs_mount;

/// Detached overlays: they end with their descriptors, even if this process is killed.
pub struct Overlays {
    mounts: Vec<OwnedFd>,
    dir: PathBuf,
}

impl Overlays {
    /// Mounts `count` volatile overlays with their upper directories below `dir`, which must not exist.
    pub fn mount(dir: &Path, count: usize) -> Result<Self> {
        let lower = dir.join("lower");
        std::fs::create_dir_all(&lower).context("make a lower directory")?;
        let mut overlays = Self { mounts: Vec::new(), dir: dir.to_owned() };
        for n in 0..count {
            let (upper, work) = (dir.join(format!("upper-{n}")), dir.join(format!("work-{n}")));
            for path in [&upper, &work] {
                std::fs::create_dir(path).context("make an upper directory")?;
            }
            let text = |path: &Path| path.to_str().map(str::to_owned).context("a path that is not UTF-8");
            let (lower, upper, work) = (text(&lower)?, text(&upper)?, text(&work)?);
            let options = [("lowerdir", &*lower), ("upperdir", &*upper), ("workdir", &*work)];
            let mount = fs_mount("overlay", &options, &["volatile"], MountAttrFlags::empty())
                .context("mount an overlay")?;
            overlays.mounts.push(mount);
        }
        Ok(overlays)
    }

    /// Runs `tar x` of the archive in all of them at once. Returns the time until the last has ended.
    pub fn untar(&self, archive: &Path) -> Result<Duration> {
        let begin = Instant::now();
        let mut children = Vec::new();
        for mount in &self.mounts {
            // The child inherits the descriptor under this number.
            rustix::io::fcntl_setfd(mount, FdFlags::empty()).context("pass an overlay on")?;
            let place = format!("/proc/self/fd/{}", mount.as_raw_fd());
            let mut tar = Command::new("tar");
            tar.arg("xf").arg(archive).args(["-C", &place]).stdin(Stdio::null()).stderr(Stdio::inherit());
            children.push(tar.spawn().context("start tar")?);
            rustix::io::fcntl_setfd(mount, FdFlags::CLOEXEC).context("keep an overlay")?;
        }
        for mut child in children {
            let status = child.wait().context("wait for tar")?;
            ensure!(status.success(), "tar ended with {status}");
        }
        Ok(begin.elapsed())
    }
}

impl Drop for Overlays {
    fn drop(&mut self) {
        self.mounts.clear();
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            wardian_sys::stderr::line(&format!("{} is left: {error}", self.dir.display()));
        }
    }
}
