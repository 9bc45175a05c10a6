//! Writable parts that have a limit as file systems of their own: each is an ext4 in a sparse file
//! `rootfs/<name>/image`, on a loop device, a copy of a [template](super::template). Parts without a limit are plain
//! directories. What becomes of an image after it is made is in [`MountedImages`].
//!
//! **The bound.** An image has at least as many blocks as its bound allows; the rest are kept free by ext4 itself
//! ([`ext4::reserve`](wardian_sys::ext4::reserve)), for root too, so that another bound within the image's size is one
//! write to sysfs. The number of inodes is fixed when an image is made.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::Mode;
use wardian_sys::{failpoint, mount};

use super::blank::{Blank, Blanks};
use super::directories::Directories;
use super::driver::{DiskDriver, Ground};
use super::mounted::{IMAGE, Mounted, MountedImages};
use super::template::{self, BLOCK, SPARE, Templates};
use super::upper::{Error, Pair, Upper};
use crate::disk::files;
use crate::disk::layout::Layout;
use crate::disk::limit::{Bound, Written};
use crate::disk::remove;
use crate::failpoints::Point;
use crate::layers::owner::Root;

/// Parts of one kind that are made ahead: each has a loop device and a mounted file system.
const AHEAD: usize = 4;

/// The driver.
#[derive(Debug)]
pub(crate) struct Images {
    layout: Arc<Layout>,
    /// All parts once they are made, and those without a limit before.
    plain: Directories,
    templates: Templates,
    blanks: Blanks,
}

impl Images {
    /// Makes the driver, or tells what it lacks. A loop device is tried, which waits for the disk once.
    pub(crate) fn new(ground: &Ground) -> Result<Self, String> {
        let Ground { layout, names, grouped } = ground;
        let mkfs =
            template::find_mkfs().ok_or("there is no program mkfs.ext4 in the PATH (install e2fsprogs)")?;
        if !mount::has_filesystem("ext4").map_err(|error| error.to_string())? {
            return Err("this kernel has no ext4 (load its module)".to_owned());
        }
        let sysfs = rustix::fs::statvfs("/sys/fs/ext4").map(|fs| fs.f_flag);
        if !sysfs.is_ok_and(|flags| !flags.contains(rustix::fs::StatVfsMountFlags::RDONLY)) {
            return Err("/sys/fs/ext4 cannot be written to (mount sysfs read-write)".to_owned());
        }
        let why = "it was made without one, or by another driver whose quota is switched off now, and the driver image sets \
             limits when it makes a root file system";
        let plain = Directories::new(Arc::clone(layout), Arc::clone(names), *grouped, why.to_owned());
        let trial = plain.images().devices().and_then(|devices| Blank::new(layout, devices));
        drop(trial.map_err(|error| with_cause(&error))?);
        Ok(Self {
            layout: Arc::clone(layout),
            plain,
            templates: Templates::new(Arc::clone(layout), mkfs),
            blanks: Blanks::new(Arc::clone(layout)),
        })
    }

    fn images(&self) -> &MountedImages {
        self.plain.images()
    }

    /// Makes the image of a part in its directory, and mounts it.
    fn make_image(&self, dir: &OwnedFd, bound: Bound) -> Result<Mounted, Error> {
        let devices = self.images().devices()?;
        let template = self.templates.get(bound, devices)?;
        let device = self.blanks.copy(&template, dir, IMAGE, devices)?;
        let image = Mounted::new(&device)?;
        failpoint::reach(Point::ImageMounted);
        match bound.bytes {
            Some(bytes) => image.bind(bytes)?,
            None => image.bind((image.made.blocks - SPARE) * BLOCK)?,
        }
        Ok(image)
    }
}

fn with_cause(error: &Error) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

impl Upper for Images {
    fn driver(&self) -> DiskDriver {
        DiskDriver::Image
    }

    fn made_with(&self, bound: Bound) -> Result<Bound, Error> {
        let disk = self.images().disk()?;
        let most = disk / BLOCK;
        if bound.inodes.is_some_and(|inodes| inodes > most) {
            return Err(Error::Fixed {
                why: format!(
                    "a limit of inodes is at most {most} here, one for each block of the disk (driver image)"
                ),
            });
        }
        let bytes = bound.bytes.map(|bytes| template::size_class(bytes.min(disk)));
        let least = template::fewest_inodes(bytes.unwrap_or(disk));
        if bound.inodes.is_some_and(|inodes| inodes < least) {
            return Err(Error::Fixed {
                why: format!(
                    "a limit of inodes is at least {least} for a disk limit of this size (driver image)"
                ),
            });
        }
        Ok(Bound { bytes, ..bound })
    }

    fn most_ahead(&self, bound: Bound) -> usize {
        if bound.is_none() { usize::MAX } else { AHEAD }
    }

    fn is_prepared(&self, bound: Bound) -> bool {
        bound.is_none() || self.templates.has(bound)
    }

    fn prepare(&self, bound: Bound) -> Result<(), Error> {
        if bound.is_none() {
            return Ok(());
        }
        self.templates.get(bound, self.images().devices()?).map(drop)
    }

    fn fill(&self) -> Result<(), Error> {
        self.blanks.fill(self.images().devices()?)
    }

    fn make(&self, name: &str, root: Root, bound: Bound) -> Result<Pair, Error> {
        if bound.is_none() {
            return self.plain.make(name, root, bound);
        }
        rustix::fs::mkdirat(&self.layout.rootfs, name, Mode::RWXU)?;
        let dir = files::open_dir(&self.layout.rootfs, name)?;
        let image = self.make_image(&dir, bound)?;
        let upper = files::open_dir(&image.root, "upper")?;
        let root_dir = rustix::io::fcntl_dupfd_cloexec(&image.root, 3)?;
        self.images().hold(name, image);
        let pair = Pair { name: name.to_owned(), dir: root_dir, upper };
        pair.give(root)?;
        Ok(pair)
    }

    fn limit(&self, name: &str, bound: Bound) -> Result<(), Error> {
        self.plain.limit(name, bound)
    }

    fn adopt(&self, name: &str) -> Result<(), Error> {
        self.plain.adopt(name)
    }

    fn abandon(&self, name: &str) {
        self.plain.abandon(name);
    }

    fn let_go(&self) {
        self.blanks.close();
        self.plain.let_go();
    }

    fn written(&self, name: &str) -> rustix::io::Result<Option<Written>> {
        self.plain.written(name)
    }

    fn measure(&self, name: &str, step: &dyn Fn() -> bool) -> rustix::io::Result<Option<u64>> {
        self.plain.measure(name, step)
    }

    fn open_upper(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        self.plain.open_upper(name)
    }

    fn is_unused(&self, name: &str) -> bool {
        self.plain.is_unused(name)
    }

    fn with_new_errors(&self) -> Vec<String> {
        self.plain.with_new_errors()
    }

    fn remove(&self, name: &CStr, stop: &dyn Fn() -> bool) -> Result<(), remove::Error> {
        self.plain.remove(name, stop)
    }
}
