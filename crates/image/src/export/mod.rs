//! Writes an image out of its unpacked layers: what [`crate::Source`] reads, a plain tar or a directory.
//!
//! ```text
//! layers on disk ── walk ──┬─ one by one ─> tarball ─> layout (a directory or an archive)
//! (overlayfs' form)        └─ merged ─────> tarball or tree
//! ```
//!
//! The same layers give the same bytes: names are sorted, and nothing depends on the time or the host. All is written
//! under a temporary name beside the target, which an error or a cancellation removes again.

mod layout;
mod tarball;
mod tree;
mod walk;

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, fstat, mkdirat, openat, renameat, renameat_with,
    statat, unlinkat,
};
use rustix::io::Errno;

use crate::bounds::watch::Watch;
use crate::digest::Digest;
use crate::error::Error;
use crate::files::{self, NotMade};
use layout::Layout;

pub use layout::config_with_layer;
use tarball::{END, Named, Tarball};
use walk::Meter;

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Bytes that are written at once.
const BUFFER: usize = 256 << 10;
/// How deep what was half made is removed again: a layer's tree is not as deep.
const MAX_REMOVED: usize = 300;
/// Temporary names that are tried while others have them.
const MAX_NAMES: u32 = 1 << 20;

/// What an export makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A directory in the OCI image layout.
    Oci,
    /// A tar file of an OCI image layout.
    OciArchive,
    /// What `docker save` writes and `docker load` and `podman load` read: with a `manifest.json`, and also an OCI
    /// image layout. Layers are not compressed.
    DockerArchive,
    /// The root file system as one tar file.
    Tar,
    /// The root file system as a directory: [`ROOTFS`] in the target, which only its owner may enter. An image's own
    /// directories are open to everybody, and its programs are not for the host's users to run.
    Dir,
}

/// What the root file system is called in the target of [`Format::Dir`], as in an OCI bundle.
pub const ROOTFS: &str = "rootfs";

/// How layers are stored in an OCI image layout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// What every tool reads.
    #[default]
    Gzip,
    /// Smaller and several times faster; readers since about 2020 know it.
    Zstd,
}

/// Where an export goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// What is made.
    pub format: Format,
    /// A directory of this name may exist if it is empty.
    pub path: PathBuf,
    /// For [`Format::Oci`] and [`Format::OciArchive`] only.
    pub compression: Compression,
    /// Replace a file that exists. A directory with something in it is never replaced.
    pub overwrite: bool,
    /// For [`Format::Dir`] only; archives keep everything. Set-uid and set-gid bits, file capabilities and device nodes
    /// are made too, which give whoever reaches them rights on this host.
    pub keep_privileges: bool,
}

/// What an export did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exported {
    /// Files, directories and so on, without whiteouts.
    pub entries: u64,
    /// Bytes of file data read.
    pub bytes: u64,
    /// Extended attributes that are not the image's (`trusted.*`, `system.*`, ...) or that no archive can express.
    pub skipped_xattrs: u64,
    /// Sockets, which no archive can express.
    pub skipped_sockets: u64,
    /// What [`Target::keep_privileges`] would have made.
    pub left_out: LeftOut,
    /// What was written as an image; none for a root file system.
    pub image: Option<ExportedImage>,
}

/// What gives rights on a host, and was left out of a directory.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOut {
    /// Files and directories without their set-uid and set-gid bits.
    pub set_id: u64,
    /// Files without their capabilities (`security.capability`).
    pub capabilities: u64,
    /// Device nodes that were not made.
    pub devices: u64,
}

/// The digests of an exported image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportedImage {
    /// The manifest.
    pub manifest: Digest,
    /// The config, which is the image's id.
    pub config: Digest,
    /// The uncompressed layers, bottom first.
    pub diff_ids: Vec<Digest>,
}

impl Format {
    fn is_directory(self) -> bool {
        matches!(self, Self::Oci | Self::Dir)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Oci => "oci",
            Self::OciArchive => "oci-archive",
            Self::DockerArchive => "docker-archive",
            Self::Tar => "tar",
            Self::Dir => "dir",
        })
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::Oci, Self::OciArchive, Self::DockerArchive, Self::Tar, Self::Dir]
            .into_iter()
            .find(|format| format.to_string() == text)
            .ok_or_else(|| Error::Unsupported { what: format!("the export format {text:?}") })
    }
}

/// Writes the image that consists of `layers`, bottom first: directories as [`crate::Layer::unpack`] leaves them, which
/// nobody changes meanwhile. Of `config` (an OCI image config) the diff ids are replaced; with none, a minimal one for
/// this host is made. `names` are `name[:tag]`, the tag being `latest` if there is none. A root file system
/// ([`Format::Tar`], [`Format::Dir`]) has no place for either. `watch` counts the bytes of files read. Nothing is synced
/// to the disk.
///
/// # Errors
/// A target that exists or cannot be written, a layer that cannot be read or that the format cannot express,
/// [`Error::Cancelled`]. Nothing stays in either case.
pub fn export(
    layers: &[BorrowedFd<'_>],
    config: Option<&[u8]>,
    names: &[String],
    to: &Target,
    watch: &Watch,
) -> Result<Exported, Error> {
    let shown = to.path.display().to_string();
    let mut meter = Meter::new(watch, &shown);
    meter.check()?;
    let mut temporary = Temporary::new(to, &shown)?;
    let mut left_out = LeftOut::default();
    let parts = Parts { layers, config, names, compression: to.compression };
    let image = match to.format {
        Format::Dir => {
            let target = temporary.make_dir()?;
            mkdirat(&target, ROOTFS, Mode::RWXU).map_err(temporary.error("make a directory in"))?;
            let root = openat(&target, ROOTFS, DIR, Mode::empty()).map_err(temporary.error("open"))?;
            let mut tree = tree::Directory::new(root, &shown, to.keep_privileges);
            walk::merged(layers, &mut tree, &mut meter)?;
            left_out = tree.left_out();
            None
        }
        Format::Oci => {
            let mut layout = Layout::in_directory(temporary.make_dir()?, &shown)?;
            Some(parts.write(&mut layout, Some(to.compression), &mut meter)?)
        }
        format => parts.archive(format, temporary.make_file()?, &shown, &mut meter)?,
    };
    meter.check()?;
    temporary.commit()?;
    Ok(exported(&meter, left_out, image))
}

/// The same into a file that is open, of which an error leaves a part. `shown` is what errors call it. An archive of an image
/// wants an empty file that can be read and written anywhere; [`Format::Tar`] is written from its beginning to its end.
///
/// # Errors
/// As [`export()`]; a format that makes a directory.
pub fn export_into(
    layers: &[BorrowedFd<'_>],
    config: Option<&[u8]>,
    names: &[String],
    format: Format,
    file: File,
    shown: &str,
    watch: &Watch,
) -> Result<Exported, Error> {
    if format.is_directory() {
        return Err(Error::Unsupported { what: format!("the format {format}, a directory, in a stream") });
    }
    let mut meter = Meter::new(watch, shown);
    meter.check()?;
    let parts = Parts { layers, config, names, compression: Compression::default() };
    let image = parts.archive(format, file, shown, &mut meter)?;
    meter.check()?;
    Ok(exported(&meter, LeftOut::default(), image))
}

fn exported(meter: &Meter<'_>, left_out: LeftOut, image: Option<ExportedImage>) -> Exported {
    let &Meter { entries, bytes, skipped_xattrs, skipped_sockets, .. } = meter;
    Exported { entries, bytes, skipped_xattrs, skipped_sockets, left_out, image }
}

/// What an image is exported from.
struct Parts<'a> {
    layers: &'a [BorrowedFd<'a>],
    config: Option<&'a [u8]>,
    names: &'a [String],
    compression: Compression,
}

impl Parts<'_> {
    fn archive(
        &self,
        format: Format,
        file: File,
        shown: &str,
        meter: &mut Meter<'_>,
    ) -> Result<Option<ExportedImage>, Error> {
        if format == Format::Tar {
            let inner = BufWriter::with_capacity(BUFFER, file);
            let mut tarball = Tarball::new(Named { inner, path: shown });
            walk::merged(self.layers, &mut tarball, meter)?;
            tarball.to.put(&END)?;
            tarball.to.inner.flush().map_err(|e| tarball::failed(shown, e))?;
            return Ok(None);
        }
        let compression = (format != Format::DockerArchive).then_some(self.compression);
        self.write(&mut Layout::in_archive(file, shown), compression, meter).map(Some)
    }

    fn write(
        &self,
        layout: &mut Layout<'_>,
        compression: Option<Compression>,
        meter: &mut Meter<'_>,
    ) -> Result<ExportedImage, Error> {
        layout::write(layout, self.layers, self.config, self.names, compression, meter)
    }
}

/// Writes a directory, on its own file system, as a tar in which holes stay holes; `shown` is what it is called.
pub(crate) fn tree(dir: BorrowedFd<'_>, to: impl Write, shown: &str, watch: &Watch) -> Result<(), Error> {
    let mut meter = Meter::new(watch, shown);
    let mut tarball = Tarball::sparse(Named { inner: to, path: shown });
    walk::directory(dir, &mut tarball, &mut meter)?;
    tarball.to.put(&END)
}

/// What is being written, beside the target. Removed unless committed.
///
/// The directory in which both lie may be another user's, who can rename what is in it: what was made is known by its
/// descriptor, under whatever name.
struct Temporary<'a> {
    above: OwnedFd,
    name: String,
    /// What was made under this name, until it is committed.
    made: Option<OwnedFd>,
    target: &'a std::ffi::OsStr,
    to: &'a Target,
    shown: &'a str,
}

impl<'a> Temporary<'a> {
    fn new(to: &'a Target, shown: &'a str) -> Result<Self, Error> {
        let why = "an export needs the name of a file or directory";
        let target = to.path.file_name().ok_or_else(|| Error::Source { uri: shown.into(), why })?;
        let parent = match to.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let above = files::directory(parent)?.ok_or_else(|| Error::Io {
            op: "open",
            path: parent.display().to_string(),
            source: Errno::NOENT.into(),
        })?;
        let temporary = Self { above, name: String::new(), made: None, target, to, shown };
        temporary.check_target()?;
        Ok(temporary)
    }

    fn error(&self, op: &'static str) -> impl FnOnce(Errno) -> Error + use<> {
        let path = self.shown.to_owned();
        move |source| Error::Io { op, path, source: source.into() }
    }

    /// Said now and not after all has been written; [`Temporary::commit`] makes sure.
    fn check_target(&self) -> Result<(), Error> {
        let stat = match statat(&self.above, self.target, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(self.error("stat"))?,
        };
        let is_directory = FileType::from_raw_mode(stat.st_mode).is_dir();
        let empty = || {
            let dir = openat(&self.above, self.target, DIR, Mode::empty());
            dir.is_ok_and(|dir| names(&dir).is_ok_and(|names| names.is_empty()))
        };
        match (self.to.format.is_directory(), is_directory) {
            (true, true) if empty() => Ok(()),
            (false, false) if self.to.overwrite => Ok(()),
            _ => Err(Error::Exists { path: self.shown.into() }),
        }
    }

    /// Images hold secrets of those who made them: until somebody opens it up it is its owner's.
    fn make_file(&mut self) -> Result<File, Error> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        self.make(|above, name| openat(above, name, flags, mode).map_err(NotMade::Kernel)).map(File::from)
    }

    fn make_dir(&mut self) -> Result<OwnedFd, Error> {
        self.make(|above, name| files::fresh(above, name, Mode::RWXU))
    }

    /// Under a name that nothing has, not even what a killed process of our number left.
    fn make(
        &mut self,
        make: impl Fn(BorrowedFd<'_>, &str) -> Result<OwnedFd, NotMade>,
    ) -> Result<OwnedFd, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!(".export-{}-{number}", std::process::id());
            match make(self.above.as_fd(), &name) {
                Err(NotMade::Kernel(Errno::EXIST)) if number < MAX_NAMES => {}
                Err(NotMade::Kernel(e)) => return Err(self.error("make")(e)),
                Err(NotMade::Replaced) => return Err(self.replaced()),
                Ok(made) => {
                    let kept = rustix::io::fcntl_dupfd_cloexec(&made, 3).map_err(self.error("open"))?;
                    (self.name, self.made) = (name, Some(kept));
                    return Ok(made);
                }
            }
        }
    }

    fn replaced(&self) -> Error {
        Error::UnsafePath { path: self.shown.into(), why: files::REPLACED }
    }

    /// Whether it is what was made here that has this name.
    fn has_name(&self, name: impl rustix::path::Arg) -> bool {
        let Some(made) = &self.made else { return false };
        let named = statat(&self.above, name, AtFlags::SYMLINK_NOFOLLOW);
        fstat(made).is_ok_and(|made| {
            named.is_ok_and(|named| (named.st_dev, named.st_ino) == (made.st_dev, made.st_ino))
        })
    }

    fn commit(mut self) -> Result<(), Error> {
        if !self.has_name(&*self.name) {
            return Err(self.replaced());
        }
        let plain = || renameat(&self.above, &self.name, &self.above, self.target);
        let result = if self.to.overwrite || self.to.format.is_directory() {
            plain() // over a directory only if that is empty
        } else {
            let flags = RenameFlags::NOREPLACE;
            match renameat_with(&self.above, &self.name, &self.above, self.target, flags) {
                // A file system that cannot (NFS, some FUSE): the look at the beginning has to do.
                Err(Errno::INVAL) => plain(),
                other => other,
            }
        };
        match result {
            // It may have been exchanged since the look above.
            Ok(()) if self.has_name(self.target) => {
                self.made = None;
                Ok(())
            }
            Ok(()) => Err(self.replaced()),
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::ISDIR | Errno::NOTDIR) => {
                Err(Error::Exists { path: self.shown.into() })
            }
            Err(e) => Err(self.error("rename to")(e)),
        }
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let Some(made) = &self.made else { return };
        // The error that led here is the one to tell; what cannot be removed is found by its name. A directory is emptied
        // through its descriptor: what has its name by now may be another one, and is removed only if it is empty.
        if fstat(made).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir()) {
            for name in names(made).unwrap_or_default() {
                let _ =
                    crate::overlay::tree::remove(made.as_fd(), &name, b"", MAX_REMOVED, &Watch::default());
            }
            let _ = unlinkat(&self.above, &self.name, AtFlags::REMOVEDIR);
        } else if self.has_name(&*self.name) {
            let _ = unlinkat(&self.above, &self.name, AtFlags::empty());
        }
    }
}

/// The names in a directory, without `.` and `..`.
fn names(dir: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let names = Dir::read_from(dir)?.map(|entry| Ok(entry?.file_name().to_bytes().to_vec()));
    let is_own = |name: &Result<Vec<u8>, Errno>| !matches!(name.as_deref(), Ok(b"." | b".."));
    names.filter(is_own).collect()
}
