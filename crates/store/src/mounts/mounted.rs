//! Mounted images, whichever driver a server has: a part whose directory holds a file `image` is one, and ends as one.
//!
//! **The end.** Who drops the last reference to a dirty ext4 waits until all of it is written. So this process holds
//! one reference to each, from the time when the part is made or adopted until it is removed. Then the file system is
//! shut down, so that no data is written any more, and the file deleted. An unmount still writes the metadata that is in
//! the device's own cache: so the device is switched to the page cache of the deleted file before the reference is
//! dropped, and nothing reaches the disk. The switch waits for all processors, some 10 ms, which many images do
//! together, in threads of their own. The loop device ends with the file system.
//!
//! **Somebody else.** A process of another container may hold a file of it. After the shutdown the data that is not
//! written yet would stay in memory as long as that file is held, and so would the space of the whole image on the disk.
//! So whether the overlay still lives is found out first: then the image is truncated, all its data is written to a device
//! without a block, which fails and gives the memory back, and the shutdown comes last.
//!
//! **A crash.** The devices clear themselves. If a process still holds an overlay over an image that is trash, the
//! image's device is found by the file behind it, and its file system is shut down.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use wardian_sys::loop_device::{self, Backing, LoopDevice, LoopDevices};
use wardian_sys::{ext4, failpoint, mount};

use super::template::{self, BLOCK, Made, SPARE};
use super::upper::Error;
use crate::disk::files;
use crate::disk::layout::Layout;
use crate::disk::limit::{Bound, Written};
use crate::failpoints::Point;

/// How often it is looked whether somebody else holds an image, and the pause between two looks.
const LOOKS: u32 = 4;
const LOOK: Duration = Duration::from_millis(5);
/// Images that are dropped at a time.
const TOGETHER: usize = 16;
/// The file in a part's directory.
pub(crate) const IMAGE: &str = "image";

/// A mounted image.
#[derive(Debug)]
pub(crate) struct Mounted {
    /// The reference to its file system: a detached mount. Closing one waits for all processors, so it is kept even
    /// while another descriptor would do.
    pub(crate) root: OwnedFd,
    /// The number of the device, which lasts as long as the file system.
    number: u32,
    /// The device's name.
    device: String,
    pub(crate) made: Made,
    /// The errors and warnings that have been told.
    told: AtomicU64,
}

impl Mounted {
    pub(crate) fn new(device: &LoopDevice) -> Result<Self, Error> {
        let root = template::mount(device)?;
        let (made, disk) = (Made::read(&root)?, rustix::fs::fstatfs(&root)?);
        if made.blocks > disk.f_blocks || made.inodes > disk.f_files {
            return Err(Errno::INVAL.into());
        }
        Ok(Self { root, number: device.number(), device: device.name(), made, told: AtomicU64::new(0) })
    }

    fn written(&self) -> rustix::io::Result<Written> {
        let now = rustix::fs::fstatfs(&self.root)?;
        let Made { blocks, inodes, .. } = self.made;
        Ok(Written {
            bytes: blocks.saturating_sub(now.f_bfree) * BLOCK,
            inodes: Some(inodes.saturating_sub(now.f_ffree)),
        })
    }

    /// Shuts it down: data that it has not written yet is never written.
    fn shut_down(&self) -> Result<(), Error> {
        ext4::shut_down(files::open_dir(&self.root, ".")?).map_err(|error| errno(&error))?;
        failpoint::reach(Point::ImageShutDown);
        Ok(())
    }

    /// Whether somebody holds a file of the overlay above it; true if that cannot be found out.
    fn is_held(&self) -> bool {
        let probe = || -> Result<bool, Error> {
            let made = |name: &str| match rustix::fs::mkdirat(&self.root, name, Mode::RWXU) {
                Err(Errno::EXIST) | Ok(()) => files::open_dir(&self.root, name),
                Err(error) => Err(error),
            };
            let (lower, work) = (made("end-lower")?, made("end-work")?);
            let upper = files::open_dir(&self.root, "upper")?;
            for _ in 1..LOOKS {
                if !mount::is_upper_in_use(&lower, &upper, &work)? {
                    return Ok(false);
                }
                // The last descriptors of a process that has just ended are closed by the kernel a little later.
                std::thread::sleep(LOOK);
            }
            Ok(mount::is_upper_in_use(&lower, &upper, &work)?)
        };
        probe().unwrap_or_else(|error| {
            tracing::debug!(device = self.device, %error, "image.holders-unknown");
            true
        })
    }

    /// Gives back the memory of its data and the space of its file. Every write fails from now on.
    fn give_back(&self, image: &File, device: &LoopDevice) -> Result<(), Error> {
        rustix::fs::ftruncate(image, 0)?;
        device.resize()?;
        // It fails, as it should.
        let _ = rustix::fs::syncfs(files::open_dir(&self.root, ".")?);
        Ok(())
    }

    /// Keeps so many blocks free that `bytes` can be written in all.
    pub(crate) fn bind(&self, bytes: u64) -> Result<(), Error> {
        let kept = self.made.blocks.checked_sub(bytes / BLOCK).ok_or(Errno::RANGE)?;
        Ok(ext4::reserve(&self.device, kept).map_err(|error| errno(&error))?)
    }

    /// Whether it has had errors since the last call, such as data that could not be written back.
    fn has_new_errors(&self) -> bool {
        let now = ext4::complaints(&self.device).unwrap_or(0);
        now > self.told.swap(now, Ordering::Relaxed)
    }
}

/// An image that is shut down.
#[derive(Debug)]
pub(crate) struct Ended {
    image: Arc<Mounted>,
    /// `None`: it cannot be opened.
    device: Option<LoopDevice>,
}

impl Ended {
    /// Drops the last reference, for what this process knows.
    fn drop_unwritten(self) {
        let Self { image, device } = self;
        if let Some(Err(error)) = device.as_ref().map(LoopDevice::set_cached) {
            tracing::debug!(device = image.device, %error, "image.not-cached");
        }
        drop((device, image));
    }
}

/// The thread that drops images.
#[derive(Debug)]
struct Dropper {
    images: Sender<Ended>,
    thread: JoinHandle<()>,
}

fn drop_images(images: &Receiver<Ended>) {
    while let Ok(first) = images.recv() {
        std::thread::scope(|scope| {
            let more = images.try_iter().take(TOGETHER - 1);
            for image in std::iter::once(first).chain(more) {
                // Without a thread it is dropped here, with the closure.
                let _ = std::thread::Builder::new().spawn_scoped(scope, || image.drop_unwritten());
            }
        });
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn fixed(why: &str) -> Error {
    Error::Fixed { why: why.to_owned() }
}

/// The images of a store.
#[derive(Debug)]
pub(crate) struct MountedImages {
    layout: Arc<Layout>,
    devices: OnceLock<LoopDevices>,
    /// Those to which this process holds a reference, by the names of their parts.
    held: Mutex<HashMap<String, Arc<Mounted>>>,
    /// Devices in use when they were last listed.
    seen: Mutex<HashMap<Backing, u32>>,
    dropper: Mutex<Option<Dropper>>,
}

impl MountedImages {
    pub(crate) fn new(layout: Arc<Layout>) -> Self {
        Self {
            layout,
            devices: OnceLock::new(),
            held: Mutex::default(),
            seen: Mutex::default(),
            dropper: Mutex::default(),
        }
    }

    /// The host's loop devices, opened when they are needed first.
    pub(crate) fn devices(&self) -> Result<&LoopDevices, Error> {
        if let Some(devices) = self.devices.get() {
            return Ok(devices);
        }
        let nodes = files::open_dir(&self.layout.staging, ".")?;
        let opened =
            LoopDevices::open(nodes).map_err(|error: loop_device::Error| Error::LoopDevice(error))?;
        Ok(self.devices.get_or_init(|| opened))
    }

    /// Opens the `upper` in a part's image.
    pub(crate) fn open_upper(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        let image = self.held.lock().get(name).cloned().ok_or(Errno::NOENT)?;
        files::open_dir(&image.root, "upper")
    }

    /// Opens the image of a part; `None`: it has none.
    fn open(&self, name: &str, access: OFlags) -> rustix::io::Result<Option<File>> {
        let dir = files::open_dir(&self.layout.rootfs, name)?;
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&dir, IMAGE, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Finds the device of an image that this or another process has mounted.
    fn find(&self, image: &File) -> Result<Option<LoopDevice>, Error> {
        let (backing, devices) = (Backing::of(image)?, self.devices()?);
        let known = |number: Option<u32>| {
            let device = number.and_then(|number| devices.open_bound(number).ok());
            // Its number may be another file's by now.
            device.filter(|device| device.backing().is_ok_and(|now| now == Some(backing)))
        };
        let number = self.seen.lock().get(&backing).copied();
        if let Some(device) = known(number) {
            return Ok(Some(device));
        }
        let all = devices.in_use()?;
        let mut seen = self.seen.lock();
        *seen = all.into_iter().map(|(number, backing)| (backing, number)).collect();
        let number = seen.get(&backing).copied();
        drop(seen);
        Ok(known(number))
    }

    /// Returns the mounted image of a part: the one that this process holds, or one more reference to another
    /// process's; `None` for a part without an image, and for an image that is mounted nowhere.
    fn image(&self, name: &str) -> Result<Option<Arc<Mounted>>, Error> {
        let held = self.held.lock().get(name).cloned();
        if held.is_some() {
            return Ok(held);
        }
        let Some(image) = self.open(name, OFlags::RDONLY)? else { return Ok(None) };
        let device = self.find(&image)?;
        device.map(|device| Mounted::new(&device).map(Arc::new)).transpose()
    }

    pub(crate) fn hold(&self, name: &str, image: Mounted) {
        self.held.lock().insert(name.to_owned(), Arc::new(image));
    }

    /// Takes over the image of a part that another process has made, if it has one.
    ///
    /// # Errors
    /// It is mounted nowhere.
    pub(crate) fn adopt(&self, name: &str) -> Result<(), Error> {
        if self.held.lock().contains_key(name) {
            return Ok(());
        }
        let Some(file) = self.open(name, OFlags::RDONLY)? else { return Ok(()) };
        let device = self.find(&file)?.ok_or(Error::Lost)?;
        self.hold(name, Mounted::new(&device)?);
        Ok(())
    }

    /// Shuts the image of a part down that this process holds, and keeps the reference: nothing reaches the disk even if
    /// this process ends before it has deleted the file.
    pub(crate) fn abandon(&self, name: &str) {
        let Some(image) = self.held.lock().get(name).cloned() else { return };
        if let Some(Err(error)) = self.end(name, &image).map(|device| device.set_cached()) {
            tracing::warn!(dir = name, %error, "image.not-cached");
        }
    }

    /// Has an image end: nothing of it is written any more, and whoever still holds a file of it holds nothing else.
    /// Returns its device, if it can be opened.
    fn end(&self, name: &str, image: &Mounted) -> Option<LoopDevice> {
        // Best effort: otherwise the kernel's log has some lines more.
        let _ = ext4::silence(&image.device);
        let device = self.devices().ok().and_then(|devices| devices.open_bound(image.number).ok());
        if image.is_held()
            && let (Ok(Some(file)), Some(device)) = (self.open(name, OFlags::RDWR), &device)
            && let Err(error) = image.give_back(&file, device)
        {
            tracing::warn!(dir = name, %error, "image.not-given-back");
        }
        if let Err(error) = image.shut_down() {
            tracing::warn!(dir = name, %error, "image.not-shut-down");
        }
        device
    }

    /// Gives up all references, those to images that are trash first.
    pub(crate) fn let_go(&self) {
        let dropper = self.dropper.lock().take();
        if let Some(Dropper { images, thread }) = dropper {
            drop(images);
            let _ = thread.join();
        }
        // Dropped without the lock.
        let images = std::mem::take(&mut *self.held.lock());
        drop(images);
    }

    /// Drops the reference to an image whose file is deleted.
    pub(crate) fn drop_later(&self, image: Ended) {
        let mut dropper = self.dropper.lock();
        if dropper.is_none() {
            let (sender, images) = channel();
            let thread = std::thread::Builder::new().name("images".into());
            *dropper = thread
                .spawn(move || drop_images(&images))
                .ok()
                .map(|thread| Dropper { images: sender, thread });
        }
        let unsent = match &*dropper {
            Some(dropper) => dropper.images.send(image).err().map(|error| error.0),
            None => Some(image),
        };
        drop(dropper);
        unsent.into_iter().for_each(Ended::drop_unwritten);
    }

    /// The bytes of the file system under the store: more can never be written.
    pub(crate) fn disk(&self) -> rustix::io::Result<u64> {
        let fs = rustix::fs::fstatvfs(&self.layout.root)?;
        Ok(fs.f_blocks.saturating_mul(fs.f_frsize))
    }

    /// Gives the image of a part another bound; false: the part has none.
    pub(crate) fn limit(&self, name: &str, bound: Bound) -> Result<bool, Error> {
        let Some(image) = self.image(name)? else { return Ok(false) };
        let made = image.made;
        if bound.inodes != made.bounded.then_some(made.inodes) {
            return Err(fixed(
                "the number of inodes is fixed when the driver image makes a root file system",
            ));
        }
        let Some(bytes) = bound.bytes else {
            return Err(fixed("a limit can be changed, but not taken away (driver image)"));
        };
        let (bytes, most) = (bytes.min(self.disk()?), made.blocks.saturating_sub(SPARE) * BLOCK);
        if bytes > most {
            return Err(Error::Fixed {
                why: format!(
                    "at most {most} bytes can be written to this root file system: its image has the size \
                              that it was made with (driver image)"
                ),
            });
        }
        image.bind(bytes)?;
        Ok(true)
    }

    /// What has been written to the image of a part; `None`: it has none that is mounted.
    pub(crate) fn written(&self, name: &str) -> rustix::io::Result<Option<Written>> {
        let image = self.image(name).map_err(|error| error.errno().unwrap_or(Errno::IO))?;
        image.map(|image| image.written()).transpose()
    }

    /// Whether nothing has been written to the image of a part; `None`: it has none that is mounted.
    pub(crate) fn is_unused(&self, name: &str) -> Option<bool> {
        match self.image(name) {
            Ok(Some(image)) => {
                let upper = files::open_dir(&image.root, "upper").and_then(files::names);
                Some(upper.is_ok_and(|names| names.is_empty()))
            }
            Ok(None) => None,
            Err(_) => Some(false),
        }
    }

    /// Returns the parts whose images have had errors since the last call.
    pub(crate) fn with_new_errors(&self) -> Vec<String> {
        let held: Vec<_> =
            self.held.lock().iter().map(|(name, image)| (name.clone(), Arc::clone(image))).collect();
        held.into_iter().filter(|(_, image)| image.has_new_errors()).map(|(name, _)| name).collect()
    }

    /// Shuts the image of a part down, if it has one. The caller deletes its file, and calls
    /// [`MountedImages::drop_later`].
    pub(crate) fn shut_down(&self, name: &str) -> Option<Ended> {
        let image = self.image(name);
        self.held.lock().remove(name);
        let image = match image {
            Ok(image) => image?,
            // A missing part is no error.
            Err(error) if error.errno() == Some(Errno::NOENT) => return None,
            Err(error) => {
                tracing::warn!(dir = name, %error, "image.not-shut-down");
                return None;
            }
        };
        if image.has_new_errors() {
            tracing::warn!(dir = name, "image.had-errors");
        }
        let device = self.end(name, &image);
        Some(Ended { image, device })
    }
}
