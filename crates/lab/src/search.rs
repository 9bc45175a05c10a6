//! Searches every tmpfs of this host for records of instances whose run directories were not named.
//!
//! Every file is opened first and checked by its descriptor. Any user may have a mount namespace, in which she can
//! mount whatever she can see anywhere and exchange it at any moment; and a user whom fusermount(1) lets mount has
//! file systems that do not answer. So no mount is entered but a tmpfs whose mount id was read before, and nothing is
//! opened for reading but root's regular files and directories.
//!
//! Mount namespaces that belong to another user namespace than ours are skipped. Any user can create them, in any
//! number. No server runs in one, even if `unshare -Ur` makes its user root: a server makes device nodes, which the
//! kernel denies there (mknod(2), EPERM).
//!
//! Anything that cannot be read raises a doubt: then no instance on this host counts as abandoned.

use crate::processes::{self, Process, RECORD};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags, openat, openat2, statat, statx,
};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use wardian_sys::{namespace, procfs};

/// Maximum depth of a directory in a tmpfs.
const DEPTH: usize = 32;
/// Limit of directory entries and mounts that are examined in all.
const ENTRIES: usize = 300_000;
/// Size limit of a record in bytes.
const MOST: u64 = 1 << 20;
/// How often the mounts of a process are read again that changes its namespace meanwhile.
const MOVES: usize = 3;
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const LIST: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Run directories that were found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) runs: BTreeSet<PathBuf>,
    /// Tags that a record names, also where only other mount namespaces see it.
    pub(crate) tags: BTreeSet<String>,
    /// Why the search may be incomplete.
    pub(crate) doubt: Option<String>,
}

/// The error is the reason why something could not be examined.
type Seen<T> = Result<T, String>;

fn unread(path: &Path, error: impl std::fmt::Display) -> String {
    format!("{} cannot be searched for records: {error}", path.display())
}

/// The mounts of a mount namespace.
struct View {
    root: OwnedFd,
    /// Prefix of our paths to its files; `None` for our own namespace.
    above: Option<PathBuf>,
    mountinfo: Vec<u8>,
}

/// Identity of a file or a namespace: its device and inode number.
type Id = (u64, u64);

struct Search<'a> {
    found: &'a mut Found,
    left: usize,
    /// Directories that were searched completely, by the device of their file system and their path in it.
    whole: BTreeSet<(String, PathBuf)>,
}

impl Found {
    /// Finds run directories of running servers, by their locks, and of servers that have ended, by the records on a
    /// tmpfs.
    pub(crate) fn look(processes: &[Process]) -> Self {
        let mut found = Self::default();
        for server in processes.iter().filter(|process| process.server) {
            let runs = processes::locks(server.pid);
            if runs.is_empty() {
                found.doubt = Some(format!(
                    "the run directory of the server with process id {} is not known",
                    server.pid
                ));
            }
            found.runs.extend(runs);
        }
        let mut search = Search { found: &mut found, left: ENTRIES, whole: BTreeSet::new() };
        if let Err(doubt) = search.everywhere() {
            found.doubt = Some(doubt);
        }
        found
    }
}

impl Search<'_> {
    /// Searches all mount namespaces, because a server need not be in ours; those of containers have no records. The
    /// search is completed before a doubt is reported, because every record that it finds counts.
    fn everywhere(&mut self) -> Seen<()> {
        let own = || -> std::io::Result<(View, Id, Id)> {
            let root = rustix::fs::open("/", LOOK, Mode::empty())?;
            let mountinfo = std::fs::read("/proc/self/mountinfo")?;
            let namespace = |kind| Ok::<Id, Errno>(id(&rustix::fs::stat(format!("/proc/self/ns/{kind}"))?));
            Ok((View { root, above: None, mountinfo }, namespace("mnt")?, namespace("user")?))
        };
        let (view, mounts, user) = own().map_err(|error| format!("the mounts cannot be read: {error}"))?;
        let mut seen = self.view(&view);
        let mut known = BTreeSet::from([mounts]);
        for process in std::fs::read_dir("/proc").map_err(|error| unread(Path::new("/proc"), error))? {
            let name = process.map_err(|error| unread(Path::new("/proc"), error))?.file_name();
            if !name.as_bytes().iter().all(u8::is_ascii_digit) {
                continue;
            }
            let dir = Path::new("/proc").join(&name);
            let looked = match of_process(&dir, user, &view.mountinfo, &mut known) {
                Ok(Some(view)) => self.view(&view),
                // The process has ended: reading mountinfo then fails with EINVAL.
                Ok(None) | Err(Errno::NOENT | Errno::SRCH | Errno::INVAL) => Ok(()),
                Err(error) => Err(format!(
                    "the mounts of the process with id {} cannot be read: {error}",
                    name.display()
                )),
            };
            seen = seen.and(looked);
        }
        seen
    }

    fn view(&mut self, view: &View) -> Seen<()> {
        let above = view.above.as_deref().unwrap_or(Path::new("/"));
        let mounts = procfs::mountinfo(&view.mountinfo)
            .map_err(|error| format!("the mounts below {} are not understood: {error}", above.display()))?;
        let mut seen = Ok(());
        for mount in mounts {
            let inside = mount.mount_point.strip_prefix("/").unwrap_or(&mount.mount_point);
            let shown = above.join(inside);
            self.take(&shown)?;
            if mount.fs_type != "tmpfs" || self.whole.contains(&(mount.device.clone(), mount.root.clone())) {
                continue;
            }
            match self.mount(view, inside, &shown, mount.id) {
                Ok(true) => {
                    self.whole.insert((mount.device, mount.root));
                }
                Ok(false) => {}
                Err(doubt) => seen = Err(doubt),
            }
        }
        seen
    }

    /// Searches a mount. Returns whether all of it was seen, that is, no other mount covers a part of it.
    fn mount(&mut self, view: &View, inside: &Path, shown: &Path, id: u64) -> Seen<bool> {
        let inside = if inside.as_os_str().is_empty() { Path::new(".") } else { inside };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let point = match openat2(&view.root, inside, LOOK | OFlags::DIRECTORY, Mode::empty(), how) {
            // The mount point is a file, or another mount covers a directory on the way.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            other => other.map_err(|error| unread(shown, error))?,
        };
        // The path may lead to another mount on top, whose file system need not even answer: this statx does not ask
        // it.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = statx(&point, c"", flags, StatxFlags::MNT_ID);
        if stat.is_ok_and(|stat| stat.stx_mnt_id != id) {
            return Ok(false);
        }
        let dir = openat(&point, ".", LIST, Mode::empty()).map_err(|error| unread(shown, error))?;
        self.walk(&dir, shown, view.above.is_none(), DEPTH)
    }

    fn take(&mut self, at: &Path) -> Seen<()> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| format!("{} holds too much to be searched for records", at.display()))?;
        Ok(())
    }

    /// Searches a directory of a tmpfs and what is below it in the same mount; other mounts are searched by
    /// themselves. Returns whether all of it was seen.
    fn walk(&mut self, dir: &OwnedFd, shown: &Path, ours: bool, depth: usize) -> Seen<bool> {
        let how = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let say = |error| unread(shown, error);
        let mut whole = true;
        // ENOENT: the directory was removed meanwhile, and so is empty.
        let entries = match Dir::read_from(dir) {
            Err(Errno::NOENT) => return Ok(true),
            entries => entries.map_err(say)?,
        };
        for entry in entries {
            self.take(shown)?;
            let entry = match entry {
                Err(Errno::NOENT) => break,
                entry => entry.map_err(say)?,
            };
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let is_dir = entry.file_type() == FileType::Directory;
            if name == "." || name == ".." || !is_dir && name != RECORD {
                continue;
            }
            let path = shown.join(name);
            let opened = match openat2(dir, name, LOOK, Mode::empty(), how) {
                Err(Errno::XDEV) if is_dir => {
                    whole = false;
                    continue;
                }
                // The entry was removed, or has become a link.
                Err(Errno::NOENT | Errno::LOOP) => continue,
                other => other.map_err(|error| unread(&path, error))?,
            };
            let stat = rustix::fs::fstat(&opened).map_err(|error| unread(&path, error))?;
            // Only root's files count.
            if stat.st_uid != 0 {
                continue;
            }
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if depth == 0 => {
                    return Err(format!("{} is too deep to be searched for records", path.display()));
                }
                FileType::Directory => {
                    let below = match openat(&opened, ".", LIST, Mode::empty()) {
                        Err(Errno::NOENT) => continue,
                        below => below.map_err(|error| unread(&path, error))?,
                    };
                    whole &= self.walk(&below, &path, ours, depth - 1)?;
                }
                FileType::RegularFile
                    if name == RECORD && u64::try_from(stat.st_size).is_ok_and(|n| n < MOST) =>
                {
                    let text = read(&opened).map_err(|error| unread(&path, error))?;
                    let record: serde_json::Value = serde_json::from_slice(&text)
                        .map_err(|error| format!("{} is not understood: {error}", path.display()))?;
                    self.found.tags.extend(record["tag"].as_str().map(str::to_owned));
                    if ours {
                        self.found.runs.insert(shown.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(whole)
    }
}

/// Reads a regular file that was opened with `O_PATH`: this one, whatever has its name now.
fn read(file: &OwnedFd) -> std::io::Result<Vec<u8>> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut bytes = Vec::new();
    File::from(rustix::fs::open(path, flags, Mode::empty())?).take(MOST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn id(stat: &rustix::fs::Stat) -> Id {
    (stat.st_dev, stat.st_ino)
}

/// The mounts of a process, if its mount namespace belongs to our user namespace and was not searched yet.
fn of_process(
    path: &Path,
    user: Id,
    ours: &[u8],
    known: &mut BTreeSet<Id>,
) -> rustix::io::Result<Option<View>> {
    // The process id may be reused, but this descriptor stays with the process.
    let dir = rustix::fs::open(path, LOOK | OFlags::DIRECTORY, Mode::empty())?;
    let open = |name: &str, flags: OFlags| openat(&dir, name, flags | OFlags::CLOEXEC, Mode::empty());
    let read = |name: &str| -> rustix::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = File::from(open(name, OFlags::RDONLY)?).read_to_end(&mut bytes);
        read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(bytes)
    };
    let is_contained = || -> rustix::io::Result<bool> {
        Ok(processes::instance_and_group(&String::from_utf8_lossy(&read("cgroup")?)).is_some())
    };
    for _ in 0..MOVES {
        let mounts = match statat(&dir, "ns/mnt", AtFlags::empty()) {
            // EACCES: the process is root's, with capabilities that this process lacks. Its mountinfo is readable by
            // everybody, and a mount is in one namespace only.
            Err(Errno::ACCESS) if is_contained()? || shows_same(ours, &read("mountinfo")?) => {
                return Ok(None);
            }
            stat => id(&stat?),
        };
        if known.contains(&mounts) || !is_owned(open("ns/mnt", OFlags::RDONLY)?.as_fd(), user)? {
            return Ok(None);
        }
        if is_contained()? {
            return Ok(None);
        }
        let root = open("root", OFlags::PATH | OFlags::DIRECTORY)?;
        let mountinfo = read("mountinfo")?;
        // If the namespace has changed, root and mountinfo may be of another one, of a user's own.
        if id(&statat(&dir, "ns/mnt", AtFlags::empty())?) == mounts {
            known.insert(mounts);
            return Ok(Some(View { root, above: Some(path.join("root")), mountinfo }));
        }
    }
    Err(Errno::AGAIN)
}

/// Whether the first mount of a list is in another list: a mount's id is unique.
fn shows_same(ours: &[u8], theirs: &[u8]) -> bool {
    let ids = |text| procfs::mountinfo(text).unwrap_or_default().into_iter().map(|mount| mount.id);
    ids(theirs).next().is_some_and(|first| ids(ours).any(|id| id == first))
}

/// Whether a namespace is owned by a user namespace.
fn is_owned(namespace: impl AsFd, user: Id) -> rustix::io::Result<bool> {
    let owner =
        namespace::owner(namespace).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(id(&rustix::fs::fstat(owner)?) == user)
}

#[cfg(test)]
mod tests;
