//! Loop devices: block devices over files (`loop(4)`). Each one here clears itself when its last user is gone
//! (`LO_FLAGS_AUTOCLEAR`), so a killed process leaves none behind.

use std::fs::File;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dev, FileType, Mode, OFlags, makedev};
use rustix::io::Errno;

/// linux/loop.h
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
/// linux/loop.h; since Linux 5.8
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
/// linux/loop.h
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
/// linux/loop.h
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4c07;
/// linux/loop.h
const LOOP_SET_DIRECT_IO: libc::Ioctl = 0x4c08;
/// `LO_FLAGS_AUTOCLEAR` (linux/loop.h)
const AUTOCLEAR: u32 = 4;
/// `LO_FLAGS_DIRECT_IO` (linux/loop.h)
const DIRECT_IO: u32 = 16;
/// The device number of /dev/loop-control (`LOOP_CTRL_MINOR`, linux/miscdevice.h).
const CONTROL: (u32, u32) = (10, 237);
/// How many devices that others took first are skipped before an attachment fails.
const TRIES: u32 = 1000;

/// Why an operation on a loop device failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The control device could not be opened.
    #[error(
        "cannot open /dev/loop-control ({source}): load the kernel module `loop`, and where devices are denied allow \
         the character device 10:237 and the block devices 7:*"
    )]
    Control {
        /// The kernel's error: ENOENT or ENXIO without the module, EPERM in a device cgroup.
        source: Errno,
    },
    /// A device could not be opened.
    #[error("cannot open the loop device {number}")]
    Open {
        /// Its number.
        number: u32,
        /// The kernel's error.
        source: Errno,
    },
    /// No free device could be had.
    #[error("cannot get a free loop device")]
    Free {
        /// The kernel's error; EBUSY: others took each one first.
        source: Errno,
    },
    /// The file could not be attached to a device.
    #[error("cannot attach the file to the loop device {number}")]
    Configure {
        /// The device's number.
        number: u32,
        /// The kernel's error.
        source: Errno,
    },
    /// A setting was refused.
    #[error("cannot set the {what} of the loop device {number}")]
    Set {
        /// What was to be set.
        what: &'static str,
        /// The device's number.
        number: u32,
        /// The kernel's error.
        source: Errno,
    },
    /// A device's status, or the list of devices, could not be read.
    #[error("cannot read the status of loop devices")]
    Status {
        /// The kernel's error.
        source: Errno,
    },
}

impl Error {
    /// The kernel's error number.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Control { source }
            | Self::Open { source, .. }
            | Self::Free { source }
            | Self::Configure { source, .. }
            | Self::Set { source, .. }
            | Self::Status { source } => *source,
        }
    }
}

/// `struct loop_info64` (linux/loop.h).
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` (linux/loop.h).
#[repr(C)]
struct Configuration {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// The file behind a loop device, as in `struct stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Backing {
    /// `st_dev`
    pub device: u64,
    /// `st_ino`
    pub inode: u64,
}

impl Backing {
    /// The identity of an open file.
    ///
    /// # Errors
    /// The kernel's, from `fstat(2)`.
    pub fn of(file: impl AsFd) -> rustix::io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// Makes one ioctl; its result if that is not negative.
///
/// # Safety
/// `argument` is what the request takes.
unsafe fn ioctl(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: usize) -> Result<u32, Errno> {
    // SAFETY: the descriptor is open, and the caller guarantees the argument.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) };
    u32::try_from(result).map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// How a loop device reads and writes its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Io {
    /// Through the file's page cache.
    Cached,
    /// Past it, if the file's file system can do that: what a file system on the device has cached is not cached once
    /// more.
    Direct,
}

/// The host's loop devices.
#[derive(Debug)]
pub struct LoopDevices {
    control: OwnedFd,
    /// A directory for device nodes.
    nodes: OwnedFd,
}

impl LoopDevices {
    /// Opens the control device. `nodes` is a directory that only root can change: where /dev lacks a device's node,
    /// as in a container without devtmpfs, one is made there for an instant.
    ///
    /// # Errors
    /// There are no loop devices, or this process may not use them.
    pub fn open(nodes: OwnedFd) -> Result<Self, Error> {
        let control = open_node(&nodes, "loop-control", OFlags::RDWR, |_| Ok(CONTROL))
            .map_err(|source| Error::Control { source })?;
        Ok(Self { control, nodes })
    }

    /// Attaches a file that is open for reading and writing to a free device, with blocks of 4096 bytes. The kernel syncs
    /// the file (`loop_configure`, drivers/block/loop.c).
    ///
    /// # Errors
    /// There is no device, or the kernel refuses the file.
    pub fn attach(&self, file: impl AsFd, io: Io) -> Result<LoopDevice, Error> {
        // SAFETY: zero is a value of each field.
        let mut configuration: Configuration = unsafe { zeroed() };
        // A borrowed descriptor is never negative.
        configuration.fd = file.as_fd().as_raw_fd().unsigned_abs();
        configuration.block_size = 4096;
        configuration.info.flags = match io {
            Io::Cached => AUTOCLEAR,
            Io::Direct => AUTOCLEAR | DIRECT_IO,
        };
        for _ in 0..TRIES {
            // SAFETY: the request takes no argument.
            let number = unsafe { ioctl(self.control.as_fd(), LOOP_CTL_GET_FREE, 0) }
                .map_err(|source| Error::Free { source })?;
            let device = self.open_device(number, OFlags::RDWR)?;
            // SAFETY: the structure lives on during the call, which only reads it.
            match unsafe { ioctl(device.as_fd(), LOOP_CONFIGURE, (&raw const configuration).addr()) } {
                // With the writable descriptor open the kernel may refuse to mount the device
                // (CONFIG_BLK_DEV_WRITE_MOUNTED).
                Ok(_) => return Ok(LoopDevice { number, fd: self.open_device(number, OFlags::RDONLY)? }),
                // Another process was faster.
                Err(Errno::BUSY) => {}
                Err(source) => return Err(Error::Configure { number, source }),
            }
        }
        Err(Error::Free { source: Errno::BUSY })
    }

    /// Returns the devices in use with the files behind them.
    ///
    /// # Errors
    /// `/sys/block` cannot be read. Devices that end meanwhile are left out.
    pub fn in_use(&self) -> Result<Vec<(u32, Backing)>, Error> {
        let status = |error: &io::Error| Errno::from_io_error(error).unwrap_or(Errno::IO);
        let entries = std::fs::read_dir("/sys/block").map_err(|e| Error::Status { source: status(&e) })?;
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok()) else {
                continue;
            };
            if entry.path().join("loop").exists()
                && let Ok(device) = self.open_bound(number)
                && let Ok(Some(backing)) = device.backing()
            {
                found.push((number, backing));
            }
        }
        Ok(found)
    }

    /// Opens a device in use.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_bound(&self, number: u32) -> Result<LoopDevice, Error> {
        Ok(LoopDevice { number, fd: self.open_device(number, OFlags::RDONLY)? })
    }

    /// Opens a device for writing, through the device's own page cache. What is written stays in that cache as long as
    /// the device is open, or a file system on it is mounted; then the kernel writes it to the file.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_writable(&self, device: &LoopDevice) -> Result<File, Error> {
        Ok(self.open_device(device.number, OFlags::RDWR)?.into())
    }

    fn open_device(&self, number: u32, access: OFlags) -> Result<OwnedFd, Error> {
        open_node(&self.nodes, &format!("loop{number}"), access, device_number)
            .map_err(|source| Error::Open { number, source })
    }
}

/// Reads the device number of a block device from sysfs: the minor number is not always the device's own number.
fn device_number(name: &str) -> Result<(u32, u32), Errno> {
    let text = std::fs::read_to_string(format!("/sys/block/{name}/dev"))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let (major, minor) = text.trim().split_once(':').ok_or(Errno::IO)?;
    Ok((major.parse().map_err(|_| Errno::IO)?, minor.parse().map_err(|_| Errno::IO)?))
}

/// Opens a device in /dev, or a node made for it in `nodes` if there is none.
fn open_node(
    nodes: &OwnedFd,
    name: &str,
    access: OFlags,
    number: impl Fn(&str) -> Result<(u32, u32), Errno>,
) -> Result<OwnedFd, Errno> {
    let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(CWD, format!("/dev/{name}"), flags, Mode::empty()) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let (major, minor) = number(name)?;
    let kind = if (major, minor) == CONTROL { FileType::CharacterDevice } else { FileType::BlockDevice };
    let number: Dev = makedev(major, minor);
    let node = format!(".{name}.{}.{:?}", std::process::id(), std::thread::current().id());
    rustix::fs::mknodat(nodes, &node, kind, Mode::RUSR | Mode::WUSR, number)?;
    let opened = rustix::fs::openat(nodes, &node, flags, Mode::empty());
    rustix::fs::unlinkat(nodes, &node, AtFlags::empty())?;
    opened
}

/// An open loop device, which lasts until it is closed and no file system on it is mounted.
#[derive(Debug)]
pub struct LoopDevice {
    number: u32,
    fd: OwnedFd,
}

impl LoopDevice {
    /// Its name in `/sys/block`.
    pub fn name(&self) -> String {
        format!("loop{}", self.number)
    }

    /// The file behind it; `None` if there is none any more.
    ///
    /// # Errors
    /// The kernel's.
    pub fn backing(&self) -> Result<Option<Backing>, Error> {
        // SAFETY: zero is a value of each field.
        let mut info: Info = unsafe { zeroed() };
        // SAFETY: the kernel writes one such structure, which lives on during the call.
        match unsafe { ioctl(self.fd.as_fd(), LOOP_GET_STATUS64, (&raw mut info).addr()) } {
            Ok(_) => Ok(Some(Backing { device: info.device, inode: info.inode })),
            Err(Errno::NXIO) => Ok(None),
            Err(source) => Err(Error::Status { source }),
        }
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Lets it read and write through the page cache of its file from now on. It waits for what is being written, and
    /// for all processors, some 10 ms.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_cached(&self) -> Result<(), Error> {
        self.set("buffered I/O", LOOP_SET_DIRECT_IO, 0)
    }

    /// Gives it the size that its file has now, larger or smaller, also while it is mounted.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resize(&self) -> Result<(), Error> {
        self.set("size", LOOP_SET_CAPACITY, 0)
    }

    fn set(&self, what: &'static str, request: libc::Ioctl, argument: usize) -> Result<(), Error> {
        // SAFETY: both requests that are made take a number.
        match unsafe { ioctl(self.fd.as_fd(), request, argument) } {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::Set { what, number: self.number, source }),
        }
    }
}

impl AsFd for LoopDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use wardian_needs::needs;

    fn devices(dir: &std::path::Path) -> LoopDevices {
        LoopDevices::open(File::open(dir).unwrap().into()).unwrap()
    }

    fn file(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file
    }

    #[test]
    fn a_device_lives_as_long_as_it_is_open() {
        needs!(Root, Loop);
        let dir = tempfile::tempdir().unwrap();
        let (devices, file) = (devices(dir.path()), file(1 << 20));
        let backing = Backing::of(&file).unwrap();
        let device = devices.attach(&file, Io::Cached).unwrap();
        assert_eq!(device.backing().unwrap(), Some(backing));
        let find = || devices.in_use().unwrap().into_iter().find(|(_, other)| *other == backing);
        let (number, _) = find().unwrap();
        assert_eq!(format!("loop{number}"), device.name());
        let size = || std::fs::read_to_string(format!("/sys/block/loop{number}/size")).unwrap();
        assert_eq!(size().trim(), "2048");
        drop(device);
        assert_eq!(find(), None);
    }

    #[test]
    fn what_is_written_to_a_device_that_has_grown_is_in_its_file_at_its_end() {
        needs!(Root, Loop);
        let dir = tempfile::tempdir().unwrap();
        let (devices, file) = (devices(dir.path()), file(0));
        let device = devices.attach(&file, Io::Direct).unwrap();
        file.set_len(1 << 20).unwrap();
        let writer = devices.open_writable(&device).unwrap();
        assert!(writer.write_at(b"early", 0).is_err());
        device.resize().unwrap();
        writer.write_all_at(b"late", 4096).unwrap();
        drop(writer);
        device.set_cached().unwrap();
        let read = || {
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, 4096).unwrap();
            bytes
        };
        assert_eq!(read(), [0; 4]);
        drop(device);
        // Whoever looks which devices are in use has it open for a moment, and is the last one then.
        for _ in 0..1000 {
            if &read() == b"late" {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("{:?}", read());
    }

    #[test]
    fn a_node_is_made_where_dev_has_none() {
        needs!(Root, Loop, Mknod);
        let dir = tempfile::tempdir().unwrap();
        let nodes = File::open(dir.path()).unwrap().into();
        let file = file(1 << 20);
        let device = devices(dir.path()).attach(&file, Io::Cached).unwrap();
        let number = |_: &str| device_number(&device.name());
        let opened = open_node(&nodes, "wardian-has-no-such-node", OFlags::RDONLY, number).unwrap();
        let opened = LoopDevice { number: device.number, fd: opened };
        assert_eq!(opened.backing().unwrap(), device.backing().unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn many_threads_get_devices_of_their_own() {
        needs!(Root, Loop);
        let dir = tempfile::tempdir().unwrap();
        let devices = devices(dir.path());
        let attached: Vec<(File, LoopDevice)> = std::thread::scope(|scope| {
            let attach = || {
                let file = file(1 << 20);
                let device = devices.attach(&file, Io::Cached).unwrap();
                (file, device)
            };
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(attach)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (file, device) in &attached {
            assert_eq!(device.backing().unwrap(), Some(Backing::of(file).unwrap()));
        }
    }
}
