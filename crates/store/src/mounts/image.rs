//! Writable parts that have a limit as file systems of their own: each is an ext4 in a sparse file
//! `rootfs/<name>/image`, on a loop device, a copy of a [template](super::template). Parts without a limit are plain
//! directories.
//!
//! **The bound.** An image has at least as many blocks as its bound allows; the rest are kept free by ext4 itself
//! ([`ext4::reserve`]), for root too, so that another bound within the image's size is one write to sysfs. The number
//! of inodes is fixed when an image is made.
//!
//! **The end.** Who drops the last reference to a dirty ext4 waits until all of it is written. So this process holds
//! one reference to each, from [`Upper::make`] or [`Upper::adopt`] to [`Upper::remove`], which shuts the file system
//! down first: then nothing is written. The loop device ends with the file system.
//!
//! **A crash.** The devices clear themselves. If a process still holds an overlay over an image that is trash, the
//! image's device is found by the file behind it, and its file system is shut down.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Weak};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use wardian_sys::loop_device::{Backing, LoopDevice, LoopDevices};
use wardian_sys::{ext4, failpoint, mount};

use super::directories::Directories;
use super::driver::{DiskDriver, Ground};
use super::template::{self, BLOCK, Made, SPARE, Templates};
use super::upper::{Error, Pair, Upper};
use crate::disk::files;
use crate::disk::layout::Layout;
use crate::disk::limit::{Bound, Written};
use crate::disk::remove;
use crate::failpoints::Point;
use crate::layers::owner::Root;

/// The file in a part's directory.
const IMAGE: &str = "image";
/// Parts of one kind that are made ahead: each has a loop device and a mounted file system.
const AHEAD: usize = 4;

/// The driver.
#[derive(Debug)]
pub(crate) struct Images {
    layout: Arc<Layout>,
    /// Parts without a limit.
    plain: Directories,
    devices: LoopDevices,
    templates: Templates,
    /// The images to which this process holds a reference, by the names of their parts.
    mounted: Mutex<HashMap<String, Arc<Mounted>>>,
    /// Devices in use when they were last listed.
    seen: Mutex<HashMap<Backing, u32>>,
    direct: Mutex<Option<Sender<Weak<Mounted>>>>,
}

/// A mounted image.
#[derive(Debug)]
struct Mounted {
    /// The reference to its file system: a detached mount. Closing one waits for all processors, so it is kept even
    /// while another descriptor would do.
    root: OwnedFd,
    /// The device's name.
    device: String,
    /// The device until it has direct I/O.
    buffered: Mutex<Option<LoopDevice>>,
    made: Mutex<Made>,
}

impl Mounted {
    fn new(device: LoopDevice) -> Result<Self, Error> {
        let root = template::mount(&device)?;
        let made = Made::read(&root)?;
        Ok(Self { root, device: device.name(), buffered: Mutex::new(Some(device)), made: Mutex::new(made) })
    }

    fn written(&self) -> rustix::io::Result<Written> {
        let now = rustix::fs::fstatfs(&self.root)?;
        let Made { blocks, inodes, .. } = *self.made.lock();
        Ok(Written {
            bytes: blocks.saturating_sub(now.f_bfree) * BLOCK,
            inodes: Some(inodes.saturating_sub(now.f_ffree)),
        })
    }

    /// Ends it: what it has not written yet is never written.
    fn shut_down(&self) -> std::io::Result<()> {
        ext4::shut_down(files::open_dir(&self.root, ".")?)
    }

    /// Keeps so many blocks free that `bytes` can be written in all.
    fn bind(&self, bytes: u64) -> Result<(), Error> {
        let blocks = self.made.lock().blocks;
        let kept = blocks.checked_sub(bytes / BLOCK).ok_or(Errno::RANGE)?;
        Ok(ext4::reserve(&self.device, kept).map_err(|error| errno(&error))?)
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Switches devices to direct I/O: otherwise the host caches once more what an image's file system has cached, and
/// writing takes several times as long. The switch syncs the image's file, so it is none of a request's work.
fn make_direct(images: &Receiver<Weak<Mounted>>) {
    for image in images {
        let Some(image) = image.upgrade() else { continue };
        let device = image.buffered.lock().take();
        if let Some(Err(error)) = device.as_ref().map(LoopDevice::set_direct_io) {
            tracing::debug!(device = image.device, %error, "image.buffered");
        }
    }
}

impl Images {
    /// Makes the driver, or tells what it lacks.
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
        let nodes = files::open_dir(&layout.staging, ".").map_err(|error| error.to_string())?;
        let devices = LoopDevices::open(nodes).map_err(|error| error.to_string())?;
        let why =
            "it was made without one, and the driver image sets limits when it makes a root file system";
        Ok(Self {
            layout: Arc::clone(layout),
            plain: Directories::new(Arc::clone(layout), Arc::clone(names), *grouped, why.to_owned()),
            devices,
            templates: Templates::new(Arc::clone(layout), mkfs),
            mounted: Mutex::default(),
            seen: Mutex::default(),
            direct: Mutex::default(),
        })
    }

    /// Opens the image of a part; `None` for a plain directory.
    fn open(&self, name: &str) -> rustix::io::Result<Option<File>> {
        let dir = files::open_dir(&self.layout.rootfs, name)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&dir, IMAGE, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Finds the device of an image that this or another process has mounted.
    fn find(&self, image: &File) -> Result<Option<LoopDevice>, Error> {
        let backing = Backing::of(image)?;
        let known = |number: Option<u32>| {
            let device = number.and_then(|number| self.devices.open_bound(number).ok());
            // Its number may be another file's by now.
            device.filter(|device| device.backing().is_ok_and(|now| now == Some(backing)))
        };
        let number = self.seen.lock().get(&backing).copied();
        if let Some(device) = known(number) {
            return Ok(Some(device));
        }
        let all = self.devices.in_use()?;
        let mut seen = self.seen.lock();
        *seen = all.into_iter().map(|(number, backing)| (backing, number)).collect();
        let number = seen.get(&backing).copied();
        drop(seen);
        Ok(known(number))
    }

    /// Returns the mounted image of a part: the one that this process holds, or one more reference to another
    /// process's; `None` for a plain directory, and for an image that is mounted nowhere.
    fn image(&self, name: &str) -> Result<Option<Arc<Mounted>>, Error> {
        let held = self.mounted.lock().get(name).cloned();
        if held.is_some() {
            return Ok(held);
        }
        let Some(image) = self.open(name)? else { return Ok(None) };
        let device = self.find(&image)?;
        device.map(|device| Mounted::new(device).map(Arc::new)).transpose()
    }

    fn hold(&self, name: &str, image: Mounted) {
        let image = Arc::new(image);
        let later = Arc::downgrade(&image);
        self.mounted.lock().insert(name.to_owned(), image);
        let mut direct = self.direct.lock();
        let sender = direct.get_or_insert_with(|| {
            let (sender, images) = channel();
            // Without the thread the devices stay as they are.
            let thread = std::thread::Builder::new().name("direct-io".into());
            if let Err(error) = thread.spawn(move || make_direct(&images)) {
                tracing::warn!(%error, "image.no-direct-io");
            }
            sender
        });
        let _ = sender.send(later);
    }

    /// Makes the image of a part in its directory, and mounts it.
    fn make_image(&self, dir: &OwnedFd, bound: Bound) -> Result<Mounted, Error> {
        let template = self.templates.get(bound, &self.devices)?;
        let file = template.copy(dir, IMAGE)?;
        failpoint::reach(Point::ImageCopied);
        let device = self.devices.attach(&file)?;
        failpoint::reach(Point::ImageAttached);
        let image = Mounted::new(device)?;
        failpoint::reach(Point::ImageMounted);
        let made = *image.made.lock();
        match bound.bytes {
            Some(bytes) => image.bind(bytes)?,
            None => image.bind((made.blocks - SPARE) * BLOCK)?,
        }
        Ok(image)
    }

    /// The bytes of the file system under the store: more can never be written.
    fn disk(&self) -> rustix::io::Result<u64> {
        let fs = rustix::fs::fstatvfs(&self.layout.root)?;
        Ok(fs.f_blocks.saturating_mul(fs.f_frsize))
    }
}

fn fixed(why: &str) -> Error {
    Error::Fixed { why: why.to_owned() }
}

impl Upper for Images {
    fn driver(&self) -> DiskDriver {
        DiskDriver::Image
    }

    fn made_with(&self, bound: Bound) -> Result<Bound, Error> {
        let disk = self.disk()?;
        let most = disk / BLOCK;
        if bound.inodes.is_some_and(|inodes| inodes > most) {
            return Err(Error::Fixed {
                why: format!(
                    "a limit of inodes is at most {most} here, one for each block of the disk (driver image)"
                ),
            });
        }
        Ok(Bound { bytes: bound.bytes.map(|bytes| template::size_class(bytes.min(disk))), ..bound })
    }

    fn most_ahead(&self, bound: Bound) -> usize {
        if bound.is_none() { usize::MAX } else { AHEAD }
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
        self.hold(name, image);
        let pair = Pair { name: name.to_owned(), dir: root_dir, upper };
        pair.give(root)?;
        Ok(pair)
    }

    fn limit(&self, name: &str, bound: Bound) -> Result<(), Error> {
        let Some(image) = self.image(name)? else { return self.plain.limit(name, bound) };
        let made = *image.made.lock();
        if bound.inodes != made.bounded.then_some(made.inodes) {
            return Err(fixed(
                "the number of inodes is fixed when the driver image makes a root file system",
            ));
        }
        let Some(bytes) = bound.bytes else {
            return Err(fixed("a limit can be changed, but not taken away (driver image)"));
        };
        let (bytes, most) = (bytes.min(self.disk()?), (made.blocks - SPARE) * BLOCK);
        if bytes > most {
            return Err(Error::Fixed {
                why: format!(
                    "at most {most} bytes can be written to this root file system: its image has the size \
                              that it was made with (driver image)"
                ),
            });
        }
        image.bind(bytes)
    }

    fn adopt(&self, name: &str) -> Result<(), Error> {
        if self.mounted.lock().contains_key(name) {
            return Ok(());
        }
        let Some(file) = self.open(name)? else { return Ok(()) };
        let device = self.find(&file)?.ok_or(Error::Lost)?;
        self.hold(name, Mounted::new(device)?);
        Ok(())
    }

    fn abandon(&self, name: &str) {
        let held = self.mounted.lock().get(name).cloned();
        if let Some(Err(error)) = held.map(|image| image.shut_down()) {
            tracing::warn!(dir = name, %error, "image.not-shut-down");
        }
    }

    fn let_go(&self) {
        // Dropped without the lock.
        let images = std::mem::take(&mut *self.mounted.lock());
        drop(images);
    }

    fn written(&self, name: &str) -> rustix::io::Result<Option<Written>> {
        let image = self.image(name).map_err(|error| error.errno().unwrap_or(Errno::IO))?;
        image.map(|image| image.written()).transpose()
    }

    fn measure(&self, name: &str, step: &dyn Fn() -> bool) -> rustix::io::Result<Option<u64>> {
        match self.written(name)? {
            Some(written) => Ok(Some(written.bytes)),
            None => self.plain.measure(name, step),
        }
    }

    fn is_unused(&self, name: &str) -> bool {
        match self.image(name) {
            Ok(Some(image)) => {
                let upper = files::open_dir(&image.root, "upper").and_then(files::names);
                upper.is_ok_and(|names| names.is_empty())
            }
            Ok(None) => self.plain.is_unused(name),
            Err(_) => false,
        }
    }

    fn remove(&self, name: &CStr, stop: &dyn Fn() -> bool) -> Result<(), remove::Error> {
        let text = name.to_string_lossy();
        let image = self.image(&text);
        self.mounted.lock().remove(&*text);
        match image {
            Ok(Some(image)) => {
                if let Err(error) = image.shut_down() {
                    tracing::warn!(dir = %text, %error, "image.not-shut-down");
                }
                failpoint::reach(Point::ImageShutDown);
            }
            Ok(None) => {}
            // A missing part is no error.
            Err(error) if error.errno() == Some(Errno::NOENT) => {}
            Err(error) => tracing::warn!(dir = %text, %error, "image.not-shut-down"),
        }
        self.plain.remove(name, stop)
    }
}
