//! Tars into and out of a container, by our own code running inside it with the rights of the user: whatever
//! a path leads to there, the user could have reached it himself.

use crate::child::{self, Outcome, Stop, failed};
use crate::pack;
use crate::{dirs, exec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use wardian_runtime::seccomp::Program;

const BUFFER: usize = 256 * 1024;
/// Files of this size and more are moved from the pipe, smaller ones read and written.
const WORTH_MOVING: u64 = 64 * 1024;

/// What to do.
#[derive(Debug)]
pub struct Task<'a> {
    /// Unpack?
    pub inward: bool,
    /// Name in the container's passwd; empty: root.
    pub user: &'a str,
    /// Destination or source; relative to the user's home.
    pub path: &'a str,
    /// Bounding set while it works.
    pub capabilities: u64,
    /// What it may call.
    pub filter: Option<&'a Program>,
}

/// Do it with the tar on `pipe`, and end.
pub fn run(task: &Task<'_>, pipe: OwnedFd) -> Outcome<()> {
    if task.user.contains(':') {
        return Err(Stop::from(format!(
            "unable to find user {}: no matching entries in passwd file",
            task.user
        )));
    }
    let user = exec::user(task.user)?;
    let path = Path::new(&user.home).join(if task.path.is_empty() { "." } else { task.path });
    let (dir, entry) = if task.inward || task.path.ends_with('/') || task.path.is_empty() {
        (path.as_path(), None)
    } else {
        let parent = path.parent().unwrap_or(Path::new("/"));
        (parent, path.file_name().map(PathBuf::from))
    };
    bound_memory()?;
    let made = if task.inward { dirs::make(dir, &user)? } else { None };
    let become_user =
        || child::drop_to(user.uid, user.gid, &user.groups, task.capabilities, true, task.filter);
    if let Some(made) = made {
        // As in Garden, what has been made for a user is reached even where a directory above is closed to him.
        rustix::process::fchdir(&made).map_err(failed(path.display()))?;
        become_user()?;
    } else {
        become_user()?;
        rustix::process::chdir(dir).map_err(failed(path.display()))?;
    }
    child::stay_inside()?;
    // GNU tar's --no-same-permissions: the mode in the archive, less the usual umask, which the keeper has set.
    if task.inward { unpack(pipe) } else { pack::pack(File::from(pipe), entry.as_deref()) }
}

/// A path as it may be unpacked: leading slashes are dropped, `..` is refused, as GNU tar does.
fn relative(path: &Path) -> Outcome<PathBuf> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                return Err(Stop::from(format!("{}: Member name contains '..'", path.display())));
            }
            _ => {}
        }
    }
    Ok(clean)
}

/// The tar's pipe, from which a file's contents can be moved without passing through us.
struct Source {
    pipe: OwnedFd,
    /// Bytes of the entry at hand that were moved already: the tar reader may skip them, unseen.
    moved: Cell<u64>,
    /// The pipe has ended.
    ended: Cell<bool>,
}

impl Read for &Source {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let skipped = self.moved.get().min(to.len() as u64);
        if skipped > 0 {
            self.moved.set(self.moved.get() - skipped);
            return Ok(skipped as usize);
        }
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.pipe, &mut *to))?;
        self.ended.set(read == 0 && !to.is_empty());
        Ok(read)
    }
}

impl Source {
    /// Move `size` bytes into a file (`splice(2)`); fewer when the pipe ends.
    fn move_to(&self, file: &File, size: u64) -> io::Result<u64> {
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(BUFFER).min(1 << 20);
            let flags = SpliceFlags::MOVE;
            match rustix::io::retry_on_intr(|| splice(&self.pipe, None, file, None, wanted, flags))? {
                0 => break,
                n => left -= n as u64,
            }
        }
        self.moved.set(size - left);
        Ok(size - left)
    }
}

fn unpack(pipe: OwnedFd) -> Outcome<()> {
    let source = Source { pipe, moved: Cell::new(0), ended: Cell::new(false) };
    let mut archive = tar::Archive::new(&source);
    let places = Places::new();
    let mut directories = Vec::new();
    let mut buffer = vec![0; BUFFER];
    let mut any = false;
    for entry in archive.entries().map_err(failed("tar"))? {
        let mut entry = entry.map_err(failed("tar"))?;
        any = true;
        let path = relative(&entry.path().map_err(failed("tar"))?)?;
        let say = || path.display().to_string();
        let header = entry.header();
        let mode = header.mode().map_err(failed(say()))? & 0o7777;
        let mtime = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
        let kind = header.entry_type();
        let Some(name) = path.file_name() else { continue };
        let parent = places.open(path.parent().unwrap_or(Path::new("")))?;
        match kind {
            tar::EntryType::Directory => {
                let made = directory(&places, &parent, name, &path)?;
                directories.push((path.clone(), made, mode & !0o022, mtime));
            }
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let mut file = create(&parent, name, mode & 0o777).map_err(failed(say()))?;
                if kind == tar::EntryType::GNUSparse {
                    sparse(&mut entry, &mut file, &mut buffer).map_err(failed(say()))?;
                } else if kind == tar::EntryType::Regular && entry.size() >= WORTH_MOVING {
                    let size = entry.size();
                    if source.move_to(&file, size).map_err(failed(say()))? < size {
                        return Err(Stop::from("Unexpected EOF in archive".to_owned()));
                    }
                } else {
                    copy(&mut entry, &mut file, &mut buffer).map_err(failed(say()))?;
                }
                attributes(&mut entry, &file, &path)?;
                rustix::fs::futimens(&file, &times(mtime)).map_err(failed(say()))?;
            }
            tar::EntryType::Symlink => {
                clear(&parent, name).map_err(failed(say()))?;
                let target = entry.link_name().map_err(failed(say()))?.unwrap_or_default();
                rustix::fs::symlinkat(&*target, &parent, name).map_err(failed(say()))?;
            }
            tar::EntryType::Link => {
                let target = relative(&entry.link_name().map_err(failed(say()))?.unwrap_or_default())?;
                let (above, file) = (target.parent().unwrap_or(Path::new("")), target.file_name());
                let above = places.open(above)?;
                clear(&parent, name).map_err(failed(say()))?;
                let flags = rustix::fs::AtFlags::empty();
                rustix::fs::linkat(&above, file.unwrap_or_default(), &parent, name, flags)
                    .map_err(failed(say()))?;
            }
            tar::EntryType::Fifo => {
                clear(&parent, name).map_err(failed(say()))?;
                let fifo = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(&parent, name, fifo, Mode::from_raw_mode(mode & 0o777), 0)
                    .map_err(failed(say()))?;
            }
            tar::EntryType::XGlobalHeader => {}
            other => return Err(Stop::from(format!("{}: cannot unpack an entry of type {other:?}", say()))),
        }
    }
    if !any {
        return Err(Stop::from("This does not look like a tar archive".to_owned()));
    }
    // The archive's own end, a block of zeros, has been seen: one that stops between two files has lost some.
    if source.ended.get() {
        let text =
            "Unexpected EOF in archive: it has no blocks of zeros at its end, its writer was not closed";
        return Err(Stop::from(text.to_owned()));
    }
    // Deepest first and last: writing into a directory changes its time, and may need a mode it will lose.
    for (path, made, mode, mtime) in directories.into_iter().rev() {
        places.forget();
        let there = places.open(&path)?;
        // Somebody has put another one in its place: that has its own mode and time.
        if identity(&there).map_err(failed(path.display()))? != made {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&there, ".", flags, Mode::empty()).map_err(failed(path.display()))?;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode)).map_err(failed(path.display()))?;
        rustix::fs::futimens(&dir, &times(mtime)).map_err(failed(path.display()))?;
    }
    // Padding after the end of the archive is read, so that whoever writes it is not cut off.
    let mut rest = archive.into_inner();
    while rest.read(&mut buffer).map_err(failed("tar"))? > 0 {}
    Ok(())
}

/// Directories below the working directory, into which entries go.
///
/// A link that was there before is followed only if root or the user owns it: through one that another user of the container
/// has planted, root would write, and set modes, where that user wants it.
struct Places {
    uid: u32,
    last: RefCell<Option<(PathBuf, Rc<OwnedFd>)>>,
}

impl Places {
    fn new() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), last: RefCell::default() }
    }

    fn trusts(&self, stat: &rustix::fs::Stat) -> bool {
        [0, self.uid].contains(&stat.st_uid)
    }

    /// The directory of this path, made when missing.
    fn open(&self, path: &Path) -> Outcome<Rc<OwnedFd>> {
        if let Some((last, fd)) = &*self.last.borrow()
            && last == path
        {
            return Ok(fd.clone());
        }
        let missing = |parent: &OwnedFd, name: &OsStr| match mkdir(parent, name) {
            Err(error) if error != Errno::EXIST => Err(dirs::Blocked::because(&error.to_string())),
            _ => Ok(()),
        };
        let follow = |stat: &rustix::fs::Stat| {
            let text = "a symbolic link of another user";
            if self.trusts(stat) { Ok(()) } else { Err(dirs::Blocked::because(text)) }
        };
        let opened = dirs::walk(rustix::fs::CWD, path, &missing, &follow)
            .map_err(|blocked| Stop::from(format!("{}: {}", path.display(), blocked.text)))?;
        let opened = Rc::new(opened);
        *self.last.borrow_mut() = Some((path.to_owned(), opened.clone()));
        Ok(opened)
    }

    /// What lies in directories has changed: they may be others now.
    fn forget(&self) {
        *self.last.borrow_mut() = None;
    }
}

fn mkdir(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o777))
}

/// By which a directory is known again.
fn identity(dir: &OwnedFd) -> rustix::io::Result<(u64, u64)> {
    rustix::fs::fstat(dir).map(|stat| (stat.st_dev, stat.st_ino))
}

/// An entry that is a directory: one that is there stays, and so does a link to one that may be followed; another link is
/// replaced, as by GNU tar.
fn directory(places: &Places, parent: &OwnedFd, name: &OsStr, path: &Path) -> Outcome<(u64, u64)> {
    let say = || path.display();
    if let Err(error) = mkdir(parent, name) {
        if error != Errno::EXIST {
            return Err(failed(say())(error));
        }
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statat(parent, name, flags).map_err(failed(say()))?;
        match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::Directory => {}
            rustix::fs::FileType::Symlink if places.trusts(&stat) => {}
            rustix::fs::FileType::Symlink => {
                clear(parent, name).and_then(|()| mkdir(parent, name)).map_err(failed(say()))?;
            }
            _ => return Err(failed(say())(Errno::EXIST)),
        }
    }
    places.forget();
    identity(&*places.open(path)?).map_err(failed(say()))
}

/// A new file, in place of whatever has its name.
fn create(parent: &OwnedFd, name: &OsStr, mode: u32) -> rustix::io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(mode));
    let fd = match open() {
        Err(Errno::EXIST) => match clear(parent, name) {
            // Something is mounted there, such as the container's own /etc/hosts: its contents can be replaced.
            Err(Errno::BUSY) => {
                let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(parent, name, flags, Mode::empty())
            }
            cleared => cleared.and_then(|()| open()),
        },
        other => other,
    };
    fd.map(File::from)
}

/// The holes of a sparse file, which the reader gives as zeros, stay holes: a kilobyte of an archive can stand for
/// terabytes.
fn sparse(from: &mut impl Read, to: &mut File, buffer: &mut [u8]) -> io::Result<()> {
    let mut length = 0;
    loop {
        let n = from.read(buffer)?;
        if n == 0 {
            return to.set_len(length);
        }
        if buffer[..n].iter().any(|byte| *byte != 0) {
            io::Seek::seek(to, io::SeekFrom::Start(length))?;
            to.write_all(&buffer[..n])?;
        }
        length += n as u64;
    }
}

/// The reader keeps names and attributes of an entry in memory, however long the archive says that they are.
fn bound_memory() -> Outcome<()> {
    const ROOM: u64 = 256 << 20;
    let bound = rustix::process::Rlimit { current: Some(ROOM), maximum: Some(ROOM) };
    rustix::process::setrlimit(rustix::process::Resource::As, bound)
        .map_err(failed("bound the helper's memory"))
}

fn copy(from: &mut impl Read, to: &mut File, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        match from.read(buffer)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n])?,
        }
    }
}

/// Make room for an entry that is not a directory.
fn clear(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, rustix::fs::AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// File capabilities and the user's own attributes; others are not the user's to set.
fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>, file: &File, path: &Path) -> Outcome<()> {
    let Some(extensions) = entry.pax_extensions().map_err(failed(path.display()))? else { return Ok(()) };
    for extension in extensions.flatten() {
        let Some(name) = extension.key().ok().and_then(|k| k.strip_prefix("SCHILY.xattr.")) else { continue };
        if name == "security.capability" || name.starts_with("user.") {
            let value = extension.value_bytes();
            rustix::fs::fsetxattr(file, name, value, rustix::fs::XattrFlags::empty())
                .map_err(failed(format!("{}: attribute {name}", path.display())))?;
        }
    }
    Ok(())
}

fn times(seconds: i64) -> rustix::fs::Timestamps {
    let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 0 };
    rustix::fs::Timestamps { last_access: time, last_modification: time }
}
