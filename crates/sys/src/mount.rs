//! Mounts as values: every mount here is *detached* and owned by a file descriptor. It does not appear in the host's
//! mount tree until [`attach`] is called, and dropping the last descriptor undoes the mount.
//!
//! The calls are the kernel's mount API (`open_tree(2)`, `mount_setattr(2)`, `fsopen(2)` and related ones); a file
//! system context reports what it refuses in a log of its own, whose text is part of [`Error`].

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
pub use rustix::mount::MountAttrFlags;
use rustix::mount::{FsMountFlags, FsOpenFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

/// A failed mount operation. Every variant keeps the kernel's error number; [`Error::errno`] returns it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `open_tree(OPEN_TREE_CLONE)` was refused.
    #[error("cannot clone the mount at {path:?}")]
    OpenTree {
        /// The path as given, relative to the directory descriptor; empty for the descriptor itself.
        path: String,
        /// The kernel's error.
        source: Errno,
    },
    /// `mount_setattr` was refused.
    #[error("cannot make the mount {what}")]
    SetAttr {
        /// What the mount was to become, in words.
        what: &'static str,
        /// The kernel's error.
        source: Errno,
    },
    /// `move_mount` was refused.
    #[error("cannot attach the mount")]
    Attach {
        /// The kernel's error; EINVAL also when the mount has been attached before.
        source: Errno,
    },
    /// `fsopen` was refused: with ENODEV the kernel has no such file system.
    #[error("cannot open a file system context for {fstype}")]
    Open {
        /// The file system type.
        fstype: String,
        /// The kernel's error.
        source: Errno,
    },
    /// One option was refused.
    #[error("{fstype} refuses the option {key}{}", said(.log))]
    Option {
        /// The file system type.
        fstype: String,
        /// The option's name, with its value where that is text.
        key: String,
        /// What the kernel wrote into the context's log; may be empty.
        log: String,
        /// The kernel's error.
        source: Errno,
    },
    /// The file system could not be created from its options, or its mount could not be created.
    #[error("cannot create the {fstype} file system{}", said(.log))]
    Create {
        /// The file system type.
        fstype: String,
        /// What the kernel wrote into the context's log; may be empty.
        log: String,
        /// The kernel's error.
        source: Errno,
    },
    /// The mount is in use: it can be unmounted later, or be detached at once with [`unmount_lazily`].
    #[error("the mount at {path} is busy")]
    Busy {
        /// Where it is mounted.
        path: PathBuf,
    },
    /// A path could not be unmounted: EINVAL when nothing is mounted there.
    #[error("cannot unmount {path}")]
    Unmount {
        /// Where it is mounted.
        path: PathBuf,
        /// The kernel's error.
        source: Errno,
    },
    /// The kernel does not report whether this is the root of a mount.
    #[error("cannot ask for the attributes of a file")]
    Statx {
        /// The kernel's error; EOPNOTSUPP before Linux 5.8.
        source: Errno,
    },
    /// The private mount namespace for layers could not be set up or used.
    #[error("cannot {step} in the mount namespace for layers")]
    Namespace {
        /// What was tried.
        step: &'static str,
        /// The kernel's error; ESRCH when the thread in it has ended.
        source: Errno,
    },
    /// A directory of an overlay's upper pair could not be opened.
    #[error("cannot open the overlay directory {name}")]
    Pair {
        /// `upper` or `work`.
        name: &'static str,
        /// The kernel's error.
        source: Errno,
    },
}

fn said(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!(" (kernel: {log})") }
}

impl Error {
    /// The kernel's error number, for callers that choose a fall-back by it.
    pub fn errno(&self) -> Errno {
        match self {
            Self::OpenTree { source, .. }
            | Self::SetAttr { source, .. }
            | Self::Attach { source }
            | Self::Open { source, .. }
            | Self::Option { source, .. }
            | Self::Create { source, .. }
            | Self::Unmount { source, .. }
            | Self::Statx { source }
            | Self::Namespace { source, .. }
            | Self::Pair { source, .. } => *source,
            Self::Busy { .. } => Errno::BUSY,
        }
    }
}

/// Clones the mount at `path` under `dir` into a detached one; an empty `path` means `dir` itself.
///
/// `recursive` takes the mounts below it along. The final component may be a symlink only if `path` is not
/// empty; callers that handle untrusted paths resolve them first and pass an empty path.
pub fn open_tree_clone(dir: impl AsFd, path: &str, recursive: bool) -> Result<OwnedFd, Error> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(dir, path, flags)
        .map_err(|source| Error::OpenTree { path: path.to_owned(), source })
}

/// The kernel's `struct mount_attr` (linux/mount.h, `MOUNT_ATTR_SIZE_VER0`).
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// linux/mount.h
const MOUNT_ATTR_RDONLY: u64 = 0x1;
/// linux/mount.h
const MOUNT_ATTR_NOSUID: u64 = 0x2;
/// linux/mount.h
const MOUNT_ATTR_NODEV: u64 = 0x4;
/// linux/mount.h: rdonly, nosuid, nodev, noexec, `MOUNT_ATTR__ATIME`, nodiratime and nosymfollow.
const ATTRIBUTES: u64 = 0xf | 0x70 | 0x80 | 0x20_0000;
/// linux/mount.h; since 5.12
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    attr: &MountAttr,
    what: &'static str,
) -> Result<(), Error> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, `attr` is a live `struct mount_attr` of the size passed, and
    // both are only read by the kernel during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(Error::SetAttr { what, source: last_errno() }) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Makes a mount read-only, with `recursive` all the mounts below it too (all or none).
pub fn set_readonly(mount: impl AsFd, recursive: bool) -> Result<(), Error> {
    let attr = MountAttr { attr_set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    mount_setattr(mount.as_fd(), recursive, &attr, "read-only")
}

/// Disables a mount's device nodes: opening one fails with EACCES.
pub fn set_nodev(mount: impl AsFd) -> Result<(), Error> {
    let attr = MountAttr { attr_set: MOUNT_ATTR_NODEV, ..MountAttr::default() };
    mount_setattr(mount.as_fd(), false, &attr, "one without device nodes")
}

/// Disables set-uid and set-gid bits and file capabilities: a program runs with the ids and capabilities of its
/// caller.
pub fn set_nosuid(mount: impl AsFd) -> Result<(), Error> {
    let attr = MountAttr { attr_set: MOUNT_ATTR_NOSUID, ..MountAttr::default() };
    mount_setattr(mount.as_fd(), false, &attr, "one without set-uid programs")
}

/// Takes a mount out of its peer group (`mount_namespaces(7)`): a clone is otherwise a peer of what it was cloned from,
/// where that is shared, and a mount below one of them appears below the other.
pub fn set_private(mount: impl AsFd) -> Result<(), Error> {
    let attr = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount_setattr(mount.as_fd(), false, &attr, "private")
}

/// Gives a mount exactly these of the attributes nosuid, nodev, noexec and rdonly, `relatime`, and symlinks that are
/// followed, as a new mount with them has, and makes it private as [`set_private`] does.
pub fn set_alone(mount: impl AsFd, attrs: MountAttrFlags) -> Result<(), Error> {
    let attr = MountAttr {
        attr_set: u64::from(attrs.bits()),
        // With one of the ATIME bits in `attr_clr` the kernel takes the mode from `attr_set`: 0 is relatime.
        attr_clr: ATTRIBUTES & !u64::from(attrs.bits()),
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    mount_setattr(mount.as_fd(), false, &attr, "one of its own")
}

/// Makes a detached mount read-only and idmapped by the user namespace: files owned by 0 on disk appear as owned by
/// the namespace's root.
///
/// EINVAL when the file system does not support idmapped mounts, EPERM when the mount was attached or is
/// idmapped already.
pub fn set_idmap_readonly(mount: impl AsFd, userns: impl AsFd) -> Result<(), Error> {
    set_idmap(mount.as_fd(), userns.as_fd(), MOUNT_ATTR_RDONLY, "read-only and idmapped")
}

/// As [`set_idmap_readonly`], for a mount that is written to: what the namespace's root makes there is owned by 0 on
/// disk. So set-uid and set-gid bits, file capabilities and device nodes have no effect in it.
pub fn set_idmap_inert(mount: impl AsFd, userns: impl AsFd) -> Result<(), Error> {
    set_idmap(mount.as_fd(), userns.as_fd(), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, "idmapped")
}

fn set_idmap(
    mount: BorrowedFd<'_>,
    userns: BorrowedFd<'_>,
    attributes: u64,
    what: &'static str,
) -> Result<(), Error> {
    let attr = MountAttr {
        attr_set: attributes | MOUNT_ATTR_IDMAP,
        // A borrowed descriptor is never negative.
        userns_fd: u64::from(userns.as_raw_fd().unsigned_abs()),
        ..MountAttr::default()
    };
    mount_setattr(mount, false, &attr, what)
}

/// Attaches the detached mount onto the directory (or file) that `target` is open on. No path is resolved.
///
/// A detached mount can be attached once.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> Result<(), Error> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags).map_err(|source| Error::Attach { source })
}

/// Unmounts what is mounted at the path, whose last component is not followed if it is a symlink. Other mounts at the
/// path, and below it, stay: if there is one below, or a file is in use, it fails with [`Error::Busy`].
///
/// A non-volatile overlay syncs the *whole* file system under its upper directory here.
pub fn unmount(path: &Path) -> Result<(), Error> {
    unmount_with(path, UnmountFlags::NOFOLLOW)
}

/// Detaches the mount at the path, and all mounts below it, at once. The file system lives on until its last user is
/// gone, and that user bears the cost of its unmount.
#[doc(alias = "MNT_DETACH")]
pub fn unmount_lazily(path: &Path) -> Result<(), Error> {
    unmount_with(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
}

fn unmount_with(path: &Path, flags: UnmountFlags) -> Result<(), Error> {
    rustix::mount::unmount(path, flags).map_err(|source| match source {
        Errno::BUSY => Error::Busy { path: path.to_owned() },
        source => Error::Unmount { path: path.to_owned(), source },
    })
}

/// Whether an overlay with this upper directory lives, whoever holds it: a process that has one of its files open is
/// enough.
///
/// Another overlay with the same upper directory is made, and given up at once: with an index the kernel refuses one that
/// is in use (EBUSY; Documentation/filesystems/overlayfs.rst, "Sharing and copying layers"). `lower` and `work` are
/// empty directories of the same file system, which are good for one answer.
///
/// # Errors
/// The kernel's, if the overlay cannot be made for another reason.
pub fn is_upper_in_use(lower: impl AsFd, upper: impl AsFd, work: impl AsFd) -> Result<bool, Error> {
    let path = |fd: BorrowedFd<'_>| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let context = Context::open("overlay")?;
    context.set("lowerdir", &path(lower.as_fd()))?;
    context.set("upperdir", &path(upper.as_fd()))?;
    context.set("workdir", &path(work.as_fd()))?;
    context.set("index", "on")?;
    // Without it the end of the overlay would write all of the file system.
    context.set_flag("volatile")?;
    match rustix::mount::fsconfig_create(&context.fd) {
        Ok(()) => Ok(false),
        Err(Errno::BUSY) => Ok(true),
        Err(source) => Err(Error::Create { fstype: "overlay".into(), log: context.log(), source }),
    }
}

/// Whether the descriptor is open on the root of a mount, attached or detached (`STATX_ATTR_MOUNT_ROOT`, Linux
/// 5.8).
pub fn is_mount_root(fd: impl AsFd) -> Result<bool, Error> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::empty())
        .map_err(|source| Error::Statx { source })?;
    if !stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Error::Statx { source: Errno::OPNOTSUPP });
    }
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// A file system context (`fsopen`), with its log.
pub(crate) struct Context<'a> {
    fstype: &'a str,
    fd: OwnedFd,
}

impl<'a> Context<'a> {
    pub(crate) fn open(fstype: &'a str) -> Result<Self, Error> {
        match rustix::mount::fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(fd) => Ok(Self { fstype, fd }),
            Err(source) => Err(Error::Open { fstype: fstype.to_owned(), source }),
        }
    }

    /// Reads the kernel's messages: one message per read, each prefixed by its level (`e `, `w `, `i `), ENODATA at
    /// the end.
    fn log(&self) -> String {
        let mut text = String::new();
        let mut message = [0_u8; 512];
        // The kernel keeps eight messages; the bound only guards against a kernel that never ends.
        for _ in 0..64 {
            match rustix::io::read(&self.fd, &mut message) {
                Ok(length) if length > 0 => {
                    if !text.is_empty() {
                        text.push_str("; ");
                    }
                    text.push_str(String::from_utf8_lossy(&message[..length]).trim_end());
                }
                Err(Errno::INTR) => {}
                _ => break,
            }
        }
        text
    }

    fn option(&self, key: String, result: rustix::io::Result<()>) -> Result<(), Error> {
        result.map_err(|source| Error::Option {
            fstype: self.fstype.to_owned(),
            key,
            log: self.log(),
            source,
        })
    }

    pub(crate) fn set(&self, key: &str, value: &str) -> Result<(), Error> {
        match rustix::mount::fsconfig_set_string(&self.fd, key, value) {
            Ok(()) => Ok(()),
            refused => self.option(format!("{key}={value}"), refused),
        }
    }

    fn set_flag(&self, key: &str) -> Result<(), Error> {
        match rustix::mount::fsconfig_set_flag(&self.fd, key) {
            Ok(()) => Ok(()),
            refused => self.option(key.to_owned(), refused),
        }
    }

    pub(crate) fn set_fd(&self, key: &CStr, value: BorrowedFd<'_>) -> Result<(), Error> {
        match rustix::mount::fsconfig_set_fd(&self.fd, key, value) {
            Ok(()) => Ok(()),
            refused => self.option(key.to_string_lossy().into_owned(), refused),
        }
    }

    /// Sets the options common to all overlays, and mounts the overlay without device nodes.
    pub(crate) fn mount_overlay(self, volatile: bool) -> Result<OwnedFd, Error> {
        self.set("source", "overlay")?;
        for (key, value) in OVERLAY_OPTIONS {
            self.set(key, value)?;
        }
        if volatile {
            self.set_flag("volatile")?;
        }
        self.mount(MountAttrFlags::MOUNT_ATTR_NODEV)
    }

    fn mount(self, attrs: MountAttrFlags) -> Result<OwnedFd, Error> {
        rustix::mount::fsconfig_create(&self.fd)
            .and_then(|()| rustix::mount::fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attrs))
            .map_err(|source| Error::Create { fstype: self.fstype.to_owned(), log: self.log(), source })
    }
}

/// Mounts a new instance of a file system type (tmpfs, proc, sysfs, devpts, mqueue, cgroup, cgroup2), detached.
///
/// `options` are `key=value` pairs, `flags` are options without a value; `attrs` are the mount's own attributes
/// (nosuid, nodev, noexec, rdonly).
pub fn fs_mount(
    fstype: &str,
    options: &[(&str, &str)],
    flags: &[&str],
    attrs: MountAttrFlags,
) -> Result<OwnedFd, Error> {
    // The source is the first column of mount tables, and programs look for it there.
    mount_from(fstype, fstype, options, flags, attrs)
}

/// Mounts the file system on a block device that the descriptor is open on, detached. If it is mounted already, the
/// result is one more mount of it, and the options have no effect.
///
/// The arguments are otherwise those of [`fs_mount`].
pub fn device_mount(
    fstype: &str,
    device: impl AsFd,
    options: &[(&str, &str)],
    flags: &[&str],
    attrs: MountAttrFlags,
) -> Result<OwnedFd, Error> {
    // The name in /proc leads to the same device, whatever /dev has under its name by now.
    let source = format!("/proc/self/fd/{}", device.as_fd().as_raw_fd());
    mount_from(fstype, &source, options, flags, attrs)
}

fn mount_from(
    fstype: &str,
    source: &str,
    options: &[(&str, &str)],
    flags: &[&str],
    attrs: MountAttrFlags,
) -> Result<OwnedFd, Error> {
    let context = Context::open(fstype)?;
    context.set("source", source)?;
    for (key, value) in options {
        context.set(key, value)?;
    }
    for flag in flags {
        context.set_flag(flag)?;
    }
    context.mount(attrs)
}

/// Makes a mounted file system itself read-only, in all its mounts: from then on its device holds all of it, as after
/// an unmount.
///
/// # Errors
/// EBUSY: a file is open for writing. [`Error::SetAttr`] with the kernel's error otherwise.
pub fn finish_fs(root: impl AsFd) -> Result<(), Error> {
    use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick};
    fspick(root, "", FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC)
        .and_then(|context| {
            fsconfig_set_flag(&context, "ro")?;
            fsconfig_reconfigure(&context)
        })
        .map_err(|source| Error::SetAttr { what: "that of a read-only file system", source })
}

/// Whether the kernel has this type of file system; loads its module if there is one.
///
/// # Errors
/// Errors that leave the question open: EPERM without CAP_SYS_ADMIN.
pub fn has_filesystem(fstype: &str) -> Result<bool, Error> {
    match Context::open(fstype) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Errno::NODEV => Ok(false),
        Err(error) => Err(error),
    }
}

/// A layer's redirects and metadata-only files come from an image and must not be followed, however the kernel was
/// built or its module configured.
pub(crate) const OVERLAY_OPTIONS: [(&str, &str); 3] =
    [("metacopy", "off"), ("redirect_dir", "nofollow"), ("index", "off")];

/// An overlay's upper and work directory, opened inside a detached clone of the directory that holds both.
///
/// The clone's root is that directory, so mountinfo shows `/upper` and `/work` and none of the host's paths. It
/// is kept until the overlay is made.
#[derive(Debug)]
pub struct UpperPair {
    upper: OwnedFd,
    work: OwnedFd,
    _clone: OwnedFd,
    /// The directory that was cloned: older kernels cannot clone a detached mount.
    dir: OwnedFd,
}

impl UpperPair {
    /// Opens `upper` and `work` under the directory; neither may be a symlink.
    pub fn open(dir: impl AsFd) -> Result<Self, Error> {
        let clone = clone_root(&dir)?;
        let open = |name: &'static str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&clone, name, flags, Mode::empty())
                .map_err(|source| Error::Pair { name, source })
        };
        let kept = rustix::io::fcntl_dupfd_cloexec(&dir, 3)
            .map_err(|source| Error::Pair { name: "upper", source })?;
        Ok(Self { upper: open("upper")?, work: open("work")?, _clone: clone, dir: kept })
    }

    /// Another detached clone of the directory that holds both.
    pub(crate) fn clone_dir(&self) -> Result<OwnedFd, Error> {
        clone_root(&self.dir)
    }
}

/// A detached clone of a directory. Before Linux 6.15 a detached mount cannot be cloned (`__do_loopback` in
/// fs/namespace.c); where the directory is the root of one, that mount itself serves: attached or not, its paths begin
/// at the same root. It can be attached once.
fn clone_root(dir: impl AsFd) -> Result<OwnedFd, Error> {
    or_itself(open_tree_clone(&dir, "", false), &dir)
}

fn or_itself(clone: Result<OwnedFd, Error>, dir: impl AsFd) -> Result<OwnedFd, Error> {
    match clone {
        Err(Error::OpenTree { path, source: Errno::INVAL }) if is_mount_root(&dir)? => {
            rustix::io::fcntl_dupfd_cloexec(dir, 3).map_err(|source| Error::OpenTree { path, source })
        }
        other => other,
    }
}

/// An overlay to be mounted.
#[derive(Debug)]
pub struct Overlay<'a> {
    /// The read-only layers, topmost first; detached (idmapped) mounts or plain directories. At least one.
    pub lowers: Vec<BorrowedFd<'a>>,
    /// The writable layer's directory.
    pub upper: BorrowedFd<'a>,
    /// The work directory, on the upper's file system and empty.
    pub work: BorrowedFd<'a>,
    /// Never syncs: neither fsync inside nor the unmount waits for the disk. Without it an unmount syncs the *whole*
    /// file system under the upper directory.
    pub volatile: bool,
}

impl<'a> Overlay<'a> {
    /// A volatile overlay over `lowers` (topmost first) with the pair as its writable layer.
    pub fn new(lowers: Vec<BorrowedFd<'a>>, pair: &'a UpperPair) -> Self {
        Self { lowers, upper: pair.upper.as_fd(), work: pair.work.as_fd(), volatile: true }
    }

    /// Mounts the overlay, detached and without device nodes.
    ///
    /// An [`Error::Option`] about `lowerdir+` means that this kernel does not take layers as descriptors, or
    /// not of this kind (EOPNOTSUPP on 6.1, EBADF on 6.12 for detached mounts).
    pub fn mount(&self) -> Result<OwnedFd, Error> {
        let context = Context::open("overlay")?;
        for lower in &self.lowers {
            context.set_fd(c"lowerdir+", *lower)?;
        }
        context.set_fd(c"upperdir", self.upper)?;
        context.set_fd(c"workdir", self.work)?;
        context.mount_overlay(self.volatile)
    }
}

/// Whether [`Overlay::mount`] can take detached mounts as layers, tested with two empty ones. Where it cannot (6.1
/// and 6.12), [`LayerNamespace`](crate::layer_ns::LayerNamespace) is used. Takes some 0.2 ms: call it once.
///
/// An error means that the test was not possible: no overlay file system, no privilege.
pub fn overlay_takes_detached_layers() -> Result<bool, Error> {
    let layer = || fs_mount("tmpfs", &[("size", "4k")], &[], MountAttrFlags::MOUNT_ATTR_RDONLY);
    let context = Context::open("overlay")?;
    // Kept until the end: a detached mount disappears with its last descriptor.
    let layers = [layer()?, layer()?];
    for layer in &layers {
        match context.set_fd(c"lowerdir+", layer.as_fd()) {
            // The kernel lacks the option, descriptors as option values, or detached layers.
            Err(error) if matches!(error.errno(), Errno::INVAL | Errno::OPNOTSUPP | Errno::BADF) => {
                return Ok(false);
            }
            other => other?,
        }
    }
    // A kernel may take the descriptors and still refuse to clone the mounts.
    match context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Errno::INVAL => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes one open file's own dirty pages to the disk and waits for them; neither its metadata nor any journal
/// is involved (`sync_file_range(2)`), so nobody else waits.
pub fn write_back(file: impl AsFd) -> std::io::Result<()> {
    let wait = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(file.as_fd(), wait | libc::SYNC_FILE_RANGE_WRITE)
}

/// Like [`write_back`], without waiting, unless the device's queue is full. Reports no error: a later `syncfs` does.
pub fn begin_write_back(file: impl AsFd) -> std::io::Result<()> {
    sync_file_range(file.as_fd(), libc::SYNC_FILE_RANGE_WRITE)
}

fn sync_file_range(file: BorrowedFd<'_>, flags: libc::c_uint) -> std::io::Result<()> {
    // SAFETY: the call takes no pointers, and the descriptor is borrowed for its duration.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, flags) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Puts the calling thread into the idle I/O class: the disk serves it when no other request waits (where the I/O
/// scheduler supports classes).
pub fn idle_io_class() -> std::io::Result<()> {
    // linux/ioprio.h: IOPRIO_WHO_PROCESS with id 0 is the calling thread; IOPRIO_CLASS_IDLE is 3, in the bits
    // above IOPRIO_CLASS_SHIFT (13).
    const WHO_PROCESS: libc::c_long = 1;
    const CLASS_IDLE: libc::c_long = 3 << 13;
    // SAFETY: the call takes no pointers and changes only the calling thread's priority.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0_i64, CLASS_IDLE) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardian_needs::needs;

    #[test]
    fn a_detached_tmpfs_can_be_used_through_its_descriptor() {
        needs!(Root);
        let mount = fs_mount("tmpfs", &[("size", "64k")], &[], MountAttrFlags::MOUNT_ATTR_NODEV).unwrap();
        rustix::fs::mkdirat(&mount, "a", Mode::RWXU).unwrap();
        set_readonly(&mount, false).unwrap();
        assert_eq!(rustix::fs::mkdirat(&mount, "b", Mode::RWXU), Err(Errno::ROFS));
    }

    #[test]
    fn the_kernels_words_are_in_the_error() {
        needs!(Root);
        let error = fs_mount("tmpfs", &[("size", "much")], &[], MountAttrFlags::empty()).unwrap_err();
        assert!(error.to_string().contains("size=much (kernel: e tmpfs: Bad value"), "{error}");
        let error = fs_mount("nosuchfs", &[], &[], MountAttrFlags::empty()).unwrap_err();
        assert_eq!(error.errno(), Errno::NODEV);
    }

    #[test]
    fn a_mounts_root_is_told_from_its_other_directories() {
        needs!(Root);
        let mount = fs_mount("tmpfs", &[("size", "64k")], &[], MountAttrFlags::empty()).unwrap();
        rustix::fs::mkdirat(&mount, "a", Mode::RWXU).unwrap();
        let inner = rustix::fs::openat(&mount, "a", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        assert!(is_mount_root(&mount).unwrap());
        assert!(!is_mount_root(&inner).unwrap());
    }

    #[test]
    fn a_clone_that_is_alone_has_its_own_attributes_and_no_peers() {
        needs!(Root);
        // The thread has mounts of its own: those of the host must not change.
        std::thread::spawn(|| {
            crate::namespace::own_mounts().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let open = |path: &Path| {
                rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                    .unwrap()
            };
            let source = MountAttrFlags::MOUNT_ATTR_NOATIME | MountAttrFlags::MOUNT_ATTR_NODIRATIME;
            let source = fs_mount("tmpfs", &[("size", "64k")], &[], source).unwrap();
            attach(&source, open(dir.path())).unwrap();
            rustix::mount::mount_change(dir.path(), rustix::mount::MountPropagationFlags::SHARED).unwrap();
            // Not below the shared mount, which would make peers of all that is attached there.
            let target = tempfile::tempdir().unwrap();
            let target = target.path();
            for alone in [false, true] {
                let clone = open_tree_clone(rustix::fs::CWD, dir.path().to_str().unwrap(), false).unwrap();
                if alone {
                    let wanted = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC;
                    set_alone(&clone, wanted).unwrap();
                }
                attach(&clone, open(target)).unwrap();
                let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
                let line = table.lines().rfind(|line| line.contains(target.to_str().unwrap())).unwrap();
                let fields: Vec<&str> = line.split(' ').collect();
                if alone {
                    assert_eq!(fields[5..7], ["ro,noexec,relatime", "-"], "{line}");
                } else {
                    assert!(
                        fields[5] == "rw,noatime,nodiratime" && fields[6].starts_with("shared:"),
                        "{line}"
                    );
                }
                unmount_lazily(target).unwrap();
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_mount_that_cannot_be_cloned_serves_itself() {
        needs!(Root);
        let refused = |source| Err(Error::OpenTree { path: String::new(), source });
        let whole = fs_mount("tmpfs", &[("size", "64k")], &[], MountAttrFlags::empty()).unwrap();
        let itself = or_itself(refused(Errno::INVAL), &whole).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let part = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(or_itself(refused(Errno::INVAL), &part).unwrap_err().errno(), Errno::INVAL);
        assert_eq!(or_itself(refused(Errno::PERM), &whole).unwrap_err().errno(), Errno::PERM);
        assert!(is_mount_root(&itself).unwrap());
    }

    #[test]
    fn a_busy_mount_is_told_from_none() {
        needs!(Root);
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(unmount(dir.path()), Err(Error::Unmount { source: Errno::INVAL, .. })));
        let mount = fs_mount("tmpfs", &[("size", "64k")], &[], MountAttrFlags::empty()).unwrap();
        let target = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        attach(&mount, &target).unwrap();
        let user = std::fs::File::create(dir.path().join("open")).unwrap();
        drop((mount, target));
        assert!(matches!(unmount(dir.path()), Err(Error::Busy { .. })));
        drop(user);
        unmount(dir.path()).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/proc", &link).unwrap();
        assert!(matches!(unmount(&link), Err(Error::Unmount { .. })));
    }

    #[test]
    fn the_probe_and_the_way_agree() {
        needs!(Root);
        let takes = overlay_takes_detached_layers().unwrap();
        let dir = tempfile::tempdir().unwrap();
        for name in ["upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let fd = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let layer = fs_mount("tmpfs", &[("size", "64k")], &[], MountAttrFlags::empty()).unwrap();
        let pair = UpperPair::open(&fd).unwrap();
        let overlay = Overlay::new(vec![layer.as_fd()], &pair).mount();
        assert_eq!(overlay.is_ok(), takes, "{overlay:?}");
    }
}
