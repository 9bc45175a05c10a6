//! Templates of images: ext4 file systems that are formatted once for each size and copied for each writable part.
//!
//! A template has no journal, since nothing in it survives a crash of the host anyway; no blocks that are reserved
//! for root; and inode tables that nobody initializes, which stay holes in the file. Its root directory holds:
//!
//! ```text
//! upper/ work/   empty
//! made           a symlink whose target says what was free at the start, see [`Made`]
//! spent/         files that use up the inodes that the bound does not allow; only with a bound on inodes
//! ```
//!
//! It is kept in memory. While it is made it is in a file without a name (`O_TMPFILE`), which goes with this process,
//! however that ends.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, SeekFrom, StatFs};
use rustix::io::Errno;
use wardian_sys::children::Own;
use wardian_sys::loop_device::{Io, LoopDevices};
use wardian_sys::mount::{self, MountAttrFlags};

use super::upper::Error;
use crate::disk::files;
use crate::disk::layout::Layout;
use crate::disk::limit::Bound;

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 4096;
/// Bytes of an inode in its table.
const INODE: u64 = 256;
/// Blocks of a block group, and the most inodes that it can have: one bitmap block has so many bits.
const GROUP: u64 = 8 * BLOCK;
/// Bytes of a group descriptor.
const DESCRIPTOR: u64 = 32;
/// The most bytes of a template: without the feature `64bit` an ext4 has fewer than 2^32 blocks.
const MOST_BYTES: u64 = 8 << 40;
/// The least bytes, and the step between the smallest sizes.
const STEP: u64 = 4 << 20;
/// Sizes are rounded up by at most this share (1/N): fewer templates are made, and the host's disk is filled at most
/// by so much more than the bound says.
const SHARE: u64 = 16;
/// Blocks that stay free whatever the bound: ext4 takes them for the block maps of data that it has accepted
/// (`EXT4_MB_USE_RESERVED`), and would lose that data otherwise.
pub(crate) const SPARE: u64 = 64;
/// Blocks that are assumed beside the tables: the root directory and [`SPARE`].
const SLACK: u64 = 256;
/// Inodes that a new ext4 has in use, and those of the root directory's entries and of an overlay's work directory.
const OWN_INODES: u64 = 32;
/// How often a template is formatted again because its tables took more than was assumed.
const TRIES: u32 = 4;
/// Templates that are kept, the latest ones: each takes 0.1 to 2 MB of memory, of a disk of terabytes more …
const KEPT: usize = 8;
/// … and no more than so many bytes together.
const MEMORY: usize = 64 << 20;

/// How long mkfs.ext4 may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much of its words is kept, in bytes.
const MOST_SAID: usize = 2048;

const FEATURES: &str = "none,extent,filetype,dir_index,dir_nlink,extra_isize,flex_bg,huge_file,large_file,\
                        sparse_super,uninit_bg";
/// What an overlay makes in its work directory when it is mounted (`ovl_make_workdir`, fs/overlayfs/super.c); the last
/// is a file.
const WORK: [&str; 4] =
    ["work/work", "work/work/incompat", "work/work/incompat/volatile", "work/work/incompat/volatile/dirty"];
const MADE: &str = "made";
const SPENT: &str = "spent";

/// What could be written to an image at its start, above an overlay's own directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Made {
    /// Free blocks.
    pub(crate) blocks: u64,
    /// Free inodes.
    pub(crate) inodes: u64,
    /// Whether there are as many inodes as a bound allows.
    pub(crate) bounded: bool,
}

impl Made {
    fn to_text(self) -> String {
        format!("{} {} {}", self.blocks, self.inodes, if self.bounded { "bounded" } else { "default" })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (blocks, inodes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let bounded = match words.next()? {
            "bounded" => true,
            "default" => false,
            _ => return None,
        };
        words.next().is_none().then_some(Self { blocks, inodes, bounded })
    }

    /// Writes it into an image's root directory; so short a target lies in the inode, and takes no block.
    pub(crate) fn write(self, root: impl AsFd) -> rustix::io::Result<()> {
        match rustix::fs::unlinkat(&root, MADE, AtFlags::empty()) {
            Err(Errno::NOENT) | Ok(()) => {}
            other => other?,
        }
        rustix::fs::symlinkat(self.to_text(), &root, MADE)
    }

    /// Reads it from an image's root directory.
    pub(crate) fn read(root: impl AsFd) -> rustix::io::Result<Self> {
        let text = rustix::fs::readlinkat(root, MADE, Vec::new())?;
        text.to_str().ok().and_then(Self::parse).ok_or(Errno::INVAL)
    }
}

/// Returns the size with which an image is made that is to have this many bytes in the end.
pub(crate) fn size_class(bytes: u64) -> u64 {
    // The power of two below: a size that is rounded up to the next one has at least the same step.
    let power = bytes.checked_ilog2().map_or(0, |log| 1 << log);
    bytes.max(1).checked_next_multiple_of((power / SHARE).max(STEP)).unwrap_or(bytes)
}

/// Returns the fewest inodes that an image for so many bytes can be given. ext4 has 16 for each group of 128 MiB; those
/// beyond the limit are used up by files, of which there are not to be too many.
pub(crate) fn fewest_inodes(bytes: u64) -> u64 {
    const GROUP: u64 = 128 << 20;
    const MOST_SPENT: u64 = 65_536;
    (bytes.div_ceil(GROUP) * 16).saturating_sub(MOST_SPENT)
}

/// Mounts the ext4 on a device, detached. A container can neither open its devices nor run its set-uid programs by it:
/// only the overlay above it is attached anywhere.
pub(crate) fn mount(device: impl AsFd) -> Result<OwnedFd, mount::Error> {
    let attrs = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    // The inode tables are holes, which read as zeros. Nothing in an image need survive the host, and with barriers
    // already the mount would sync its file.
    mount::device_mount("ext4", device, &[], &["noinit_itable", "nobarrier"], attrs)
}

/// A formatted file system.
#[derive(Debug)]
pub(crate) struct Template {
    bound: Bound,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// The parts of it that are no holes, with their offsets.
    parts: Vec<(u64, Vec<u8>)>,
}

impl Template {
    /// Bytes of memory that it takes.
    fn memory(&self) -> usize {
        self.parts.iter().map(|(_, part)| part.len()).sum()
    }

    /// Writes it to a file or device of its size, which holds zeros.
    pub(crate) fn write_to(&self, to: &File) -> rustix::io::Result<()> {
        self.parts
            .iter()
            .try_for_each(|(offset, bytes)| to.write_all_at(bytes, *offset).map_err(|error| errno(&error)))
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// The templates of a store.
#[derive(Debug)]
pub(crate) struct Templates {
    layout: Arc<Layout>,
    mkfs: PathBuf,
    /// The latest last.
    kept: Mutex<VecDeque<Arc<Template>>>,
    /// Held while one is made, so that each is made once.
    making: Mutex<()>,
}

impl Templates {
    pub(crate) fn new(layout: Arc<Layout>, mkfs: PathBuf) -> Self {
        Self { layout, mkfs, kept: Mutex::default(), making: Mutex::default() }
    }

    /// Whether there is one for this bound.
    pub(crate) fn has(&self, bound: Bound) -> bool {
        self.kept.lock().iter().any(|template| template.bound == bound)
    }

    fn find(&self, bound: Bound) -> Option<Arc<Template>> {
        let mut kept = self.kept.lock();
        let at = kept.iter().position(|template| template.bound == bound)?;
        let found = kept.remove(at)?;
        kept.push_back(Arc::clone(&found));
        Some(found)
    }

    /// Returns the template for this bound; makes it if there is none, which takes a tenth of a second.
    ///
    /// # Errors
    /// mkfs.ext4 fails, the disk is full, the image would be too large.
    pub(crate) fn get(&self, bound: Bound, devices: &LoopDevices) -> Result<Arc<Template>, Error> {
        if let Some(found) = self.find(bound) {
            return Ok(found);
        }
        let _making = self.making.lock();
        if let Some(found) = self.find(bound) {
            return Ok(found);
        }
        let made = Arc::new(self.make(bound, devices)?);
        let mut kept = self.kept.lock();
        kept.push_back(Arc::clone(&made));
        let too_many = |kept: &VecDeque<Arc<Template>>| {
            kept.len() > KEPT || kept.iter().map(|template| template.memory()).sum::<usize>() > MEMORY
        };
        while kept.len() > 1 && too_many(&kept) {
            kept.pop_front();
        }
        Ok(made)
    }

    fn make(&self, bound: Bound, devices: &LoopDevices) -> Result<Template, Error> {
        let fs = rustix::fs::fstatvfs(&self.layout.root)?;
        // More than the disk has can never be written.
        let bytes = bound.bytes.unwrap_or(fs.f_blocks.saturating_mul(fs.f_frsize)).max(STEP);
        if bytes > MOST_BYTES {
            return Err(Error::Fixed {
                why: format!(
                    "an image has at most {MOST_BYTES} bytes (driver image), and {bytes} were asked for"
                ),
            });
        }
        let (wanted, mut more) =
            (Wanted { blocks: bytes.div_ceil(BLOCK), inodes: bound.inodes }, Missing::default());
        for _ in 0..TRIES {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            let file: File =
                rustix::fs::openat(&self.layout.staging, ".", flags, Mode::RUSR | Mode::WUSR)?.into();
            let size = wanted.size(more);
            rustix::fs::ftruncate(&file, size.blocks * BLOCK)?;
            self.format(&file, size.inodes)?;
            let device = devices.attach(&file, Io::Cached)?;
            let root = files::open_dir(mount(&device)?, ".")?;
            let furnished = furnish(&root, wanted)?;
            // Not left to the unmount: a process that is being started may hold the descriptors a little longer.
            mount::finish_fs(&root)?;
            drop((root, device));
            match furnished {
                Ok(()) => {
                    return Ok(Template { bound, size: size.blocks * BLOCK, parts: parts(&file)? });
                }
                Err(missing) => more = more.plus(missing),
            }
        }
        Err(Error::Program {
            program: self.mkfs.display().to_string(),
            said: format!("its file systems have less free space than was assumed: {more:?} missing"),
        })
    }

    fn format(&self, file: &File, inodes: u64) -> Result<(), Error> {
        let failed = |said: String| Error::Program { program: self.mkfs.display().to_string(), said };
        let run = || -> std::io::Result<(Option<ExitStatus>, String)> {
            // Its words go to a file: it never waits for somebody to read them.
            let said = File::from(rustix::fs::memfd_create("mkfs.ext4", MemfdFlags::CLOEXEC)?);
            // After an error of its file, such as a full host's disk, an image goes on: read-only it would stay so when
            // there is space again.
            let mut command = Command::new(&self.mkfs);
            command
                .args(["-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-e", "continue", "-O", FEATURES])
                .args(["-E", "lazy_itable_init=1,nodiscard,packed_meta_blocks=1,root_owner=0:0", "-N"])
                .args([&inodes.to_string(), "/proc/self/fd/0"])
                .env_clear()
                // No setting of the host's has a part in it.
                .env("MKE2FS_CONFIG", "/dev/null")
                .current_dir("/")
                .stdin(file.try_clone()?)
                .stdout(Stdio::null())
                .stderr(said.try_clone()?);
            let status = Own::start(&mut command)?.wait_until(Instant::now() + PATIENCE)?;
            let mut text = [0; MOST_SAID];
            let length = said.read_at(&mut text, 0)?;
            // It warns of its missing settings each time.
            let said = String::from_utf8_lossy(&text[..length]);
            let said: Vec<_> =
                said.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("Warning:")).collect();
            Ok((status, said.join(" ")))
        };
        match run().map_err(|error| failed(error.to_string()))? {
            (Some(status), _) if status.success() => Ok(()),
            (Some(status), said) => Err(failed(format!("{status}: {said}"))),
            (None, said) => Err(failed(format!("it took more than {} s: {said}", PATIENCE.as_secs()))),
        }
    }
}

/// What a template is to have free.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    blocks: u64,
    inodes: Option<u64>,
}

/// What a template had too few of.
#[derive(Debug, Clone, Copy, Default)]
struct Missing {
    blocks: u64,
    inodes: u64,
}

impl Missing {
    fn plus(self, other: Self) -> Self {
        Self { blocks: self.blocks + other.blocks, inodes: self.inodes + other.inodes }
    }
}

/// The size of a file system.
#[derive(Debug, Clone, Copy)]
struct Size {
    blocks: u64,
    inodes: u64,
}

impl Wanted {
    /// Returns the size of a file system that has this free, beside its tables.
    fn size(self, more: Missing) -> Size {
        let data = self.blocks + more.blocks + SLACK;
        // By default as many inodes as blocks: a container's files are small, and tables without inodes take no space.
        let inodes = self.inodes.unwrap_or(self.blocks).saturating_add(OWN_INODES + more.inodes);
        let mut blocks = data;
        // The tables need groups, which need tables.
        for _ in 0..3 {
            let groups = blocks.div_ceil(GROUP).max(inodes.div_ceil(GROUP));
            // Each group's inodes fill whole blocks.
            let table = (inodes.div_ceil(groups) * INODE).div_ceil(BLOCK) + 1;
            let descriptors = (groups * DESCRIPTOR).div_ceil(BLOCK) + 1;
            // Backups are in the groups 0, 1 and the powers of 3, 5 and 7: at most 3 for each power of two.
            let copies = (2 + 3 * (u64::BITS - groups.leading_zeros())).into();
            let tables: u64 = groups * (table + 2) + descriptors * u64::min(groups, copies);
            blocks = (data + tables).max((groups - 1) * GROUP + table + SLACK);
        }
        Size { blocks, inodes }
    }
}

fn free(root: &OwnedFd) -> rustix::io::Result<StatFs> {
    rustix::fs::fstatfs(root)
}

/// Makes a template's directories; tells what it has too few of.
fn furnish(root: &OwnedFd, wanted: Wanted) -> Result<Result<(), Missing>, Error> {
    use rustix::fs::{mkdirat, openat, unlinkat};
    unlinkat(root, "lost+found", AtFlags::REMOVEDIR)?;
    mkdirat(root, "upper", Mode::RWXU)?;
    mkdirat(root, "work", Mode::RWXU)?;
    if wanted.inodes.is_some() {
        mkdirat(root, SPENT, Mode::RWXU)?;
    }
    let file = |dir: &OwnedFd, name: &str| {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        openat(dir, name, flags, Mode::RUSR).map(drop)
    };
    // What an overlay will use does not count as written.
    let (dirty, dirs) = (WORK[WORK.len() - 1], &WORK[..WORK.len() - 1]);
    dirs.iter().try_for_each(|dir| mkdirat(root, *dir, Mode::RWXU))?;
    file(root, dirty)?;
    // The symlink is still to come.
    let inodes = free(root)?.f_ffree.saturating_sub(1);
    if let Some(bound) = wanted.inodes {
        let Some(excess) = inodes.checked_sub(bound) else {
            return Ok(Err(Missing { blocks: 0, inodes: bound - inodes }));
        };
        let spent = files::open_dir(root, SPENT)?;
        for number in 0..excess {
            match file(&spent, &number.to_string()) {
                Err(Errno::NOSPC) => return Ok(Err(Missing { blocks: excess / 16 + SLACK, inodes: 0 })),
                other => other?,
            }
        }
    }
    let now = free(root)?;
    let made =
        Made { blocks: now.f_bfree, inodes: now.f_ffree.saturating_sub(1), bounded: wanted.inodes.is_some() };
    if made.blocks < wanted.blocks + SPARE {
        return Ok(Err(Missing { blocks: wanted.blocks + SPARE - made.blocks, inodes: 0 }));
    }
    unlinkat(root, dirty, AtFlags::empty())?;
    dirs.iter().rev().try_for_each(|dir| unlinkat(root, *dir, AtFlags::REMOVEDIR))?;
    made.write(root)?;
    Ok(Ok(()))
}

/// Reads the parts of a file that are no holes.
fn parts(file: &File) -> Result<Vec<(u64, Vec<u8>)>, Error> {
    let (mut parts, mut at) = (Vec::new(), 0);
    loop {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(parts),
            other => other?,
        };
        at = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        let mut bytes = vec![0; usize::try_from(at - start).map_err(|_| Errno::FBIG)?];
        file.read_exact_at(&mut bytes, start).map_err(|error| errno(&error))?;
        // Blocks of zeros, which the formatting has written, become holes.
        let block = usize::try_from(BLOCK).unwrap_or(usize::MAX);
        for (index, block_bytes) in bytes.chunks(block).enumerate() {
            if block_bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            let offset = start + (index * block) as u64;
            match parts.last_mut() {
                Some((before, joined)) if *before + joined.len() as u64 == offset => {
                    joined.extend_from_slice(block_bytes);
                }
                _ => parts.push((offset, block_bytes.to_vec())),
            }
        }
    }
}

/// Finds mkfs.ext4 in the PATH, or where systems keep it that have no PATH for it.
pub(crate) fn find_mkfs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    find_program("mkfs.ext4", std::env::split_paths(&path).chain(usual))
}

fn find_program(name: &str, dirs: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let is_program =
        |file: &PathBuf| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file();
    dirs.filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(is_program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::lock::Role;

    #[test]
    fn what_was_made_is_read_as_written() {
        for made in [
            Made { blocks: 1, inodes: 2, bounded: true },
            Made { blocks: u64::MAX, inodes: 0, bounded: false },
        ] {
            assert_eq!(Made::parse(&made.to_text()), Some(made));
        }
        for bad in ["", "1", "1 2", "1 2 other", "1 2 default 3", "-1 2 default", "1 2 default "] {
            assert_eq!(Made::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_program_is_an_executable_file_in_an_absolute_directory() {
        use std::os::unix::fs::PermissionsExt;
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let find = || {
            let dirs = dirs.iter().map(|dir| dir.path().to_owned());
            find_program("program", std::iter::once(PathBuf::from(".")).chain(dirs))
        };
        std::fs::create_dir(dirs[0].path().join("program")).unwrap();
        let files = [1, 2].map(|index: usize| dirs[index].path().join("program"));
        for (file, mode) in files.iter().zip([0o644, 0o755]) {
            assert_eq!(find(), None);
            std::fs::write(file, "").unwrap();
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        assert_eq!(find().as_ref(), Some(&files[1]));
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let open = Layout::open(&dir.path().join("store"), &dir.path().join("run"), Role::Server);
        let layout = Arc::new(open.unwrap().0);
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/bin/sh\necho no such luck >&2\nexit 7\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        for (program, said) in
            [(script, "exit status: 7: no such luck"), (dir.path().join("none"), "No such file")]
        {
            let templates = Templates::new(Arc::clone(&layout), program);
            let error = templates.format(&tempfile::tempfile().unwrap(), 100).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn sizes_are_rounded_up_by_little() {
        for bytes in
            [1, 100, STEP, STEP + 1, 100 << 20, (1 << 30) - 1, 1 << 30, (1 << 30) + 1, 1 << 40, MOST_BYTES]
        {
            let class = size_class(bytes);
            assert!(class >= bytes && class - bytes <= STEP.max(bytes / SHARE), "{bytes} {class}");
            assert_eq!(size_class(class), class, "{bytes}");
        }
        assert_eq!(size_class(u64::MAX), u64::MAX);
    }
}
