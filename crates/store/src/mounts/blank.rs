//! Blank images: files without a name and without bytes, each on a loop device. An image begins as one, whatever its
//! size.
//!
//! To attach a file to a loop device takes a sync of the file, which waits for the disk; an empty file that is attached
//! already is given its size, its contents and its name in no time. So a server keeps some.
//!
//! The contents are written to the device's page cache, not to the file: a mount finds all that it reads there, and
//! waits for nobody. If the image ends before the kernel writes that cache back, none of it has been on the disk.

use parking_lot::Mutex;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use wardian_sys::failpoint;
use wardian_sys::loop_device::{Io, LoopDevice, LoopDevices};

use super::template::Template;
use super::upper::Error;
use crate::disk::layout::Layout;
use crate::failpoints::Point;

/// Blanks that are kept.
const KEPT: usize = 4;
/// They go when no image was made for so long.
const FORGET: Duration = Duration::from_secs(600);

/// A blank image. Its device ends with it.
#[derive(Debug)]
pub(crate) struct Blank {
    file: File,
    device: LoopDevice,
}

impl Blank {
    /// Makes one; it waits for the disk.
    pub(crate) fn new(layout: &Layout, devices: &LoopDevices) -> Result<Self, Error> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file: File = rustix::fs::openat(&layout.staging, ".", flags, Mode::RUSR | Mode::WUSR)?.into();
        // Otherwise the host would cache once more what an image's file system has cached, and writing would take
        // several times as long.
        let device = devices.attach(&file, Io::Direct)?;
        Ok(Self { file, device })
    }

    /// Makes it a copy of a template, under a name in a directory of the same file system.
    fn become_copy(
        self,
        template: &Template,
        dir: &OwnedFd,
        name: &str,
        devices: &LoopDevices,
    ) -> Result<LoopDevice, Error> {
        rustix::fs::ftruncate(&self.file, template.size)?;
        self.device.resize()?;
        // Closed before the mount, which a kernel may refuse otherwise (CONFIG_BLK_DEV_WRITE_MOUNTED).
        template.write_to(&devices.open_writable(&self.device)?)?;
        let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        rustix::fs::linkat(CWD, unnamed, dir, name, AtFlags::SYMLINK_FOLLOW)?;
        failpoint::reach(Point::ImageCopied);
        Ok(self.device)
    }
}

/// The blanks of a store.
#[derive(Debug)]
pub(crate) struct Blanks {
    layout: Arc<Layout>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kept: Vec<Blank>,
    /// When an image was made last.
    asked: Option<Instant>,
    closed: bool,
}

impl State {
    fn wants(&self) -> bool {
        !self.closed && self.asked.is_some_and(|then| then.elapsed() < FORGET)
    }
}

impl Blanks {
    pub(crate) fn new(layout: Arc<Layout>) -> Self {
        Self { layout, state: Mutex::default() }
    }

    /// Makes a copy of a template, on a device.
    ///
    /// # Errors
    /// There is no loop device; the disk is full.
    pub(crate) fn copy(
        &self,
        template: &Template,
        dir: &OwnedFd,
        name: &str,
        devices: &LoopDevices,
    ) -> Result<LoopDevice, Error> {
        let kept = {
            let mut state = self.state.lock();
            state.asked = Some(Instant::now());
            state.kept.pop()
        };
        let blank = kept.map_or_else(|| Blank::new(&self.layout, devices), Ok)?;
        failpoint::reach(Point::ImageAttached);
        blank.become_copy(template, dir, name, devices)
    }

    /// Makes missing blanks, if images were made lately; [`Blanks::copy`] need not wait meanwhile.
    ///
    /// # Errors
    /// As for [`Blanks::copy`].
    pub(crate) fn fill(&self, devices: &LoopDevices) -> Result<(), Error> {
        let is_short = |state: &State| state.wants() && state.kept.len() < KEPT;
        while is_short(&self.state.lock()) {
            let blank = Blank::new(&self.layout, devices)?;
            let mut state = self.state.lock();
            if is_short(&state) {
                state.kept.push(blank);
            }
        }
        let mut state = self.state.lock();
        let unwanted = if state.wants() { Vec::new() } else { std::mem::take(&mut state.kept) };
        drop(state);
        drop(unwanted);
        Ok(())
    }

    /// Gives all up.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let kept = std::mem::take(&mut state.kept);
        drop(state);
        drop(kept);
    }
}
