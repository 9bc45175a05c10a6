//! Tars into and out of a container, by our own code running inside it with the rights of the user: whatever
//! a path leads to there, the user could have reached it himself.

use crate::child::{self, Outcome, Stop, failed};
use crate::dirs::{Blocked, Place, Trust, Turn};
use crate::hard_links::{self, Files};
use crate::{dirs, exec, pack, rights};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use tar::EntryType;
use wardian_archive::{Entry as Member, Stream, Time, show};
use wardian_runtime::rights::{Limit, Rights};
use wardian_sys::text::{clip, tame};

const BUFFER: usize = 256 * 1024;
/// What is left of a mode. The umask is not enough: where a directory has a default access control list the kernel leaves it out
/// (umask(2)), and the list of another user's directory would let him write to what is root's.
const KEPT: u32 = 0o755;
/// Read ahead of the entry at hand: headers and small files come in few system calls, and little of a large file is copied.
const BUFFERED: usize = 32 * 1024;
/// Files of this size and more are moved from the pipe, smaller ones read and written.
const WORTH_MOVING: u64 = 64 * 1024;
/// Entries that could not be unpacked are named up to this number, and counted beyond it.
const MAX_NAMED: u64 = 20;
/// Bytes at the beginning of one of those failures and at its end, and of all of them, which must fit into one frame of a
/// report.
const MAX_FAILURE: usize = 256;
const MAX_WHY: usize = 160;
const MAX_TEXT: usize = 2500;

/// What to do.
#[derive(Debug)]
pub struct Task<'a> {
    /// Unpack?
    pub inward: bool,
    /// Name in the container's passwd; empty: root.
    pub user: &'a str,
    /// Destination or source; relative to the user's home.
    pub path: &'a str,
    /// See [`rights`].
    pub rights: &'a Rights,
}

/// What a helper may in a container whose pid 1 has these rights, before it is known as whom it runs.
pub fn rights(container: &Rights) -> Rights {
    // The reader keeps names and attributes of an entry in memory, however long the archive says that they are.
    const ROOM: Limit = Limit { resource: libc::RLIMIT_AS, value: 256 << 20 };
    Rights {
        capabilities: container.capabilities,
        seccomp: container.seccomp.clone(),
        no_new_privileges: true,
        limits: vec![ROOM],
        ..Rights::default()
    }
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
    let made = if task.inward { dirs::make(dir, &user)? } else { None };
    let become_user = || rights::take(&user.with(task.rights.clone()));
    if let Some(made) = made {
        // As in Garden, what has been made for a user is reached even where a directory above is closed to him.
        rustix::process::fchdir(&made).map_err(failed(path.display()))?;
        become_user()?;
    } else {
        become_user()?;
        rustix::process::chdir(dir).map_err(failed(path.display()))?;
    }
    child::stay_inside()?;
    // GNU tar's --no-same-permissions: the mode in the archive, less the usual umask.
    if task.inward { unpack(pipe) } else { pack::pack(File::from(pipe), entry.as_deref()) }
}

/// A path as it may be unpacked: leading slashes are dropped, `..` is refused, as GNU tar does.
fn relative(path: &[u8]) -> Outcome<PathBuf> {
    let mut clean = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(path)).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                return Err(Stop::from(format!("{}: Member name contains '..'", show(path))));
            }
            _ => {}
        }
    }
    Ok(clean)
}

struct Pipe(OwnedFd);

impl Read for Pipe {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut *to))?)
    }
}

/// The tar's pipe behind a buffer, from which large files are moved without passing through us.
struct Source(BufReader<Pipe>);

impl Source {
    /// Moves `size` bytes into a file (`splice(2)`); fewer when the pipe ends. The buffer must be empty.
    fn move_to(&self, file: &File, size: u64) -> io::Result<u64> {
        let mut left = size;
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(BUFFER).min(1 << 20);
            let (pipe, flags) = (&self.0.get_ref().0, SpliceFlags::MOVE);
            match rustix::io::retry_on_intr(|| splice(pipe, None, file, None, wanted, flags))? {
                0 => break,
                n => left -= n as u64,
            }
        }
        Ok(size - left)
    }
}

impl Read for Source {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.0.read(to)
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, bytes: usize) {
        self.0.consume(bytes);
    }
}

/// What ends the work while a tar is read.
impl From<wardian_archive::Error> for Stop {
    fn from(error: wardian_archive::Error) -> Self {
        use wardian_archive::Error as E;
        // GNU tar's words, which clients look for.
        Self::from(match error {
            E::NoEnd => {
                "Unexpected EOF in archive: it has no blocks of zeros at its end, its writer was not closed"
                    .into()
            }
            E::Truncated { what } => format!("Unexpected EOF in archive: {what} is truncated"),
            E::Corrupt { .. } | E::NoTar => format!("This does not look like a tar archive: {error}"),
            other => other.to_string(),
        })
    }
}

/// Why there is no header; `gzip`: the stream begins as one of gzip does, and had no header yet.
fn not_a_tar(error: wardian_archive::Error, gzip: bool) -> Stop {
    use wardian_archive::Error as E;
    match error {
        E::Truncated { .. } | E::Corrupt { .. } | E::NoTar if gzip => Stop::from(
            "This does not look like a tar archive: it is compressed with gzip; send a plain tar".to_owned(),
        ),
        error => Stop::from(error),
    }
}

/// The directories of an archive, whose modes and times come last: writing into one changes its time, and may need a mode
/// that it will lose. One that is there twice gets what its later entry says.
#[derive(Default)]
struct Directories {
    all: Vec<Kept>,
    index: HashMap<(u64, u64), usize>,
}

/// A directory of the archive.
struct Kept {
    path: PathBuf,
    made: (u64, u64),
    mode: u32,
    mtime: Time,
    /// Whether another user can have put it there in the place of the one that the entry means, which may be one that is closed
    /// to him: then the mode opens nothing. A new one is made as open as its entry says.
    doubtful: bool,
}

impl Directories {
    fn keep(&mut self, kept: Kept) {
        match self.index.entry(kept.made) {
            Entry::Occupied(slot) => self.all[*slot.get()] = kept,
            Entry::Vacant(slot) => {
                slot.insert(self.all.len());
                self.all.push(kept);
            }
        }
    }

    /// Sets the modes and times. One that cannot be set keeps none of the others from being set.
    fn close(mut self, places: &Places, failures: &mut Failures) {
        // The deepest first: what is above one may be closed by its own mode.
        self.all.sort_by_cached_key(|kept| Reverse(kept.path.components().count()));
        for kept in &self.all {
            let path = &kept.path;
            places.forget();
            let there = match places.find(path) {
                Ok(there) => there,
                Err(error) if error.is_of_the_way() => continue,
                Err(error) => {
                    failures.add(&blocked_at(path, &error));
                    continue;
                }
            };
            if let Err(error) = close(&there.dir, kept) {
                failures.add(&failed(path.display())(error));
            }
        }
    }
}

/// Sets the mode and the time of a directory if it is still the inode that this archive has made or opened; what has taken its
/// place is left as it is.
fn close(dir: &OwnedFd, kept: &Kept) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(dir)?;
    if (stat.st_dev, stat.st_ino) != kept.made {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(dir, ".", flags, Mode::empty())?;
    let allowed = if kept.doubtful { stat.st_mode | 0o7000 } else { 0o7777 };
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(kept.mode & allowed))?;
    rustix::fs::futimens(&dir, &times(kept.mtime))
}

/// Entries that could not be unpacked, while the others were.
#[derive(Default)]
struct Failures {
    /// The first ones, in words.
    text: String,
    named: u64,
    more: u64,
}

impl Failures {
    fn add(&mut self, stop: &Stop) {
        let line = format!("{}{}", if self.named == 0 { "" } else { "\n" }, short(&stop.text));
        let fits = self.named < MAX_NAMED && self.text.len() + line.len() <= MAX_TEXT;
        if self.named == 0 || fits {
            self.named += 1;
            self.text.push_str(&line);
        } else {
            self.more += 1;
        }
    }

    /// What ends the work comes first, if anything does.
    fn result(mut self, end: Outcome<()>) -> Outcome<()> {
        if self.more > 0 {
            self.text += &format!("\nand {} more", self.more);
        }
        match end {
            end if self.named == 0 => end.map_err(|stop| Stop { text: short(&stop.text), ..stop }),
            Ok(()) => Err(Stop::from(format!("{}; all else was unpacked", self.text))),
            Err(stop) => Err(Stop::from(format!("{}\n{}", short(&stop.text), self.text))),
        }
    }
}

/// A failure on one line. Of a long one the names are cut, and what is wrong stays at its end.
fn short(text: &str) -> String {
    let text = tame(text);
    if text.len() <= MAX_FAILURE + MAX_WHY {
        return text.into_owned();
    }
    let end = (text.len() - MAX_WHY..).find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    format!("{}…{}", clip(&text, MAX_FAILURE), &text[end..])
}

fn unpack(pipe: OwnedFd) -> Outcome<()> {
    let (places, mut directories) = (Places::new(), Directories::default());
    let mut failures = Failures::default();
    let end = unpack_all(pipe, &places, &mut directories, &mut failures);
    // Also where the archive ends early: what it has closed to others does not stay open.
    directories.close(&places, &mut failures);
    failures.result(end)
}

/// As by GNU tar, an entry that cannot be made ends nothing; one whose data cannot be written does, for the disk is full or
/// ill, and so does what is no archive.
fn unpack_all(
    pipe: OwnedFd,
    places: &Places,
    directories: &mut Directories,
    failures: &mut Failures,
) -> Outcome<()> {
    let mut stream = Stream::lenient(Source(BufReader::with_capacity(BUFFERED, Pipe(pipe))));
    let head = stream.source().fill_buf().map_err(failed("tar"))?;
    if head.is_empty() {
        return Err(Stop::from("This does not look like a tar archive".to_owned()));
    }
    // RFC 1952, section 2.3.1. A name may begin so too: only a header that is none tells.
    let mut gzip = head.starts_with(b"\x1f\x8b");
    while let Some(entry) = stream.next(true).map_err(|error| not_a_tar(error, gzip))? {
        gzip = false;
        let path = relative(&entry.path)?;
        let Some(name) = path.file_name() else {
            // The destination is the caller's, and keeps its mode.
            if entry.kind == EntryType::Directory && !entry.path.is_empty() {
                continue;
            }
            return Err(Stop::from(format!("{}: an entry without a name", show(&entry.path))));
        };
        let say = || path.display().to_string();
        let target = match entry.kind {
            EntryType::Directory
            | EntryType::Regular
            | EntryType::Continuous
            | EntryType::Symlink
            | EntryType::Fifo => PathBuf::new(),
            EntryType::Link => relative(&entry.link)?,
            // A socket without its server is nothing; pax and star write them.
            other if other.as_byte() == b's' => {
                stream.skip(entry.size, &entry.path)?;
                continue;
            }
            other => return Err(Stop::from(format!("{}: cannot unpack an entry of type {other:?}", say()))),
        };
        let made = places
            .open(path.parent().unwrap_or(Path::new("")))
            .and_then(|place| make(places, &place, &entry, (&path, name), &target, directories));
        match made {
            Ok(Some(file)) => {
                contents(&entry, &mut stream, &file, &path)?;
                let set =
                    attributes(&entry, &file).and_then(|()| rustix::fs::futimens(&file, &times(entry.mtime)));
                if let Err(error) = set {
                    failures.add(&failed(say())(error));
                }
            }
            Ok(None) => {}
            Err(stop) => {
                failures.add(&stop);
                places.files.failed();
                stream.skip(entry.size, &entry.path)?;
            }
        }
    }
    // Padding after the end of the archive is read, so that whoever writes it is not cut off.
    stream.drain()?;
    Ok(())
}

/// Makes an entry, but for the data of a file, which is given back.
fn make(
    places: &Places,
    place: &Place,
    entry: &Member,
    (path, name): (&Path, &OsStr),
    target: &Path,
    directories: &mut Directories,
) -> Outcome<Option<File>> {
    let (parent, say) = (&place.dir, || path.display());
    if entry.kind != EntryType::Directory {
        places.replaced(path);
    }
    match entry.kind {
        EntryType::Directory => {
            let made = directory(places, place, name, (path, entry.mode))?;
            directories.keep(Kept {
                path: path.to_owned(),
                made,
                mode: entry.mode & !0o022,
                mtime: entry.mtime,
                doubtful: !place.alone,
            });
        }
        EntryType::Symlink => {
            make_room(parent, name).map_err(failed(say()))?;
            rustix::fs::symlinkat(&*entry.link, parent, name).map_err(failed(say()))?;
            touch(parent, name, entry.mtime).map_err(failed(say()))?;
            places.made(parent, name, &entry.link).map_err(failed(say()))?;
        }
        EntryType::Link => {
            let above = target.parent().unwrap_or(Path::new(""));
            let above = places.find(above).map_err(|blocked| blocked_at(above, &blocked))?;
            let old = target.file_name().unwrap_or_default();
            let linked = hard_links::link(&places.files, places.trust, (&above, old), (parent, name));
            places.linked(&linked.map_err(failed(say()))?);
        }
        EntryType::Fifo => {
            make_room(parent, name).map_err(failed(say()))?;
            let mode = Mode::from_raw_mode(entry.mode & KEPT);
            rustix::fs::mknodat(parent, name, FileType::Fifo, mode, 0).map_err(failed(say()))?;
            places.files.add_fifo(places.trust, parent, name).map_err(failed(say()))?;
            touch(parent, name, entry.mtime).map_err(failed(say()))?;
        }
        _ => {
            let file = create(parent, name, entry.mode).map_err(failed(say()))?;
            places.files.add(&file).map_err(failed(say()))?;
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// The data of an entry. The holes of a sparse file stay holes: a kilobyte of an archive can stand for terabytes.
fn contents(entry: &Member, stream: &mut Stream<Source>, file: &File, path: &Path) -> Outcome<()> {
    let say = || failed(path.display());
    let write = |stream: &mut Stream<Source>, mut at: u64, size: u64| {
        stream.copy::<Stop>(size, &entry.path, |piece| {
            file.write_all_at(piece, at).map_err(say())?;
            at += piece.len() as u64;
            Ok(())
        })
    };
    match &entry.sparse {
        Some(sparse) => {
            file.set_len(sparse.real).map_err(say())?;
            for (at, size) in &sparse.segments {
                write(stream, *at, *size)?;
            }
        }
        None if entry.size >= WORTH_MOVING => {
            // First what has been read ahead.
            let ahead = (stream.source().0.buffer().len() as u64).min(entry.size);
            write(stream, 0, ahead)?;
            let rest = entry.size - ahead;
            (&*file).seek(SeekFrom::Start(ahead)).map_err(say())?;
            let moved = stream.source().move_to(file, rest).map_err(say())?;
            stream.passed(moved);
            if moved < rest {
                return Err(Stop::from("Unexpected EOF in archive".to_owned()));
            }
        }
        None => write(stream, 0, entry.size)?,
    }
    Ok(stream.pad(entry.size, &entry.path)?)
}

fn touch(parent: &OwnedFd, name: &OsStr, time: Time) -> rustix::io::Result<()> {
    rustix::fs::utimensat(parent, name, &times(time), AtFlags::SYMLINK_NOFOLLOW)
}

/// Directories below the working directory, into which entries go.
///
/// A link that was there before is followed only if it can be trusted ([`Trust`]): through one that another user of the
/// container has planted, or moved there, root would write, and set modes, where that user wants it.
struct Places {
    trust: Trust,
    last: RefCell<Option<(PathBuf, Rc<Place>)>>,
    /// Symbolic links that the archive has made, or has given a second name. A later directory of that name takes their place. Through those that lead out
    /// of the destination, as far as their text tells, nothing is unpacked, as by GNU tar: who unpacks an archive of
    /// somebody else's into a directory means that directory. The others are followed in whosever directory they are,
    /// because they lead only further down in it.
    ///
    /// Another user who may write to such a directory can rename these links too, and exchange one for another link of
    /// root's between any two system calls. That gains him nothing: no judgement is kept here, only which inodes the archive has
    /// made. A link's owner and text are looked at whenever it is followed, by the descriptor that is followed, and one that
    /// is absolute or has a `..` leads on only where no other user may write, so he cannot bring it there. One that he
    /// brings in the place of a new link is not taken for the archive's: its text is another one, or leads to the same.
    made: RefCell<HashSet<(u64, u64)>>,
    /// Where another user may rename: the directories that entries of these paths have gone into. A directory of the archive that is
    /// closed to him is so also for what comes later, and not one of his own, or an open one, under its name.
    used: RefCell<BTreeMap<PathBuf, (u64, u64)>>,
    /// What hard links of the archive may lead to.
    files: Files,
}

impl Places {
    fn new() -> Self {
        let trust =
            Trust { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        Self {
            trust,
            last: RefCell::default(),
            made: RefCell::default(),
            used: RefCell::default(),
            files: Files::default(),
        }
    }

    /// A symbolic link was made.
    fn made(&self, parent: &OwnedFd, name: &OsStr, target: &[u8]) -> rustix::io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let link = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&link)?;
        // What another user has put in its place since is none of the archive's.
        if self.trust.owns(&stat)
            && rustix::fs::readlinkat(&link, "", Vec::new()).is_ok_and(|text| text.to_bytes() == target)
        {
            self.made.borrow_mut().insert((stat.st_dev, stat.st_ino));
            self.files.keep(&stat);
        }
        self.forget();
        Ok(())
    }

    /// A file has got a second name. If it is a symbolic link, the archive has brought it to where it leads to something else.
    fn linked(&self, stat: &Stat) {
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            self.made.borrow_mut().insert((stat.st_dev, stat.st_ino));
        }
        self.forget();
    }

    /// Whether the archive has made this link; another user's link may have got its inode.
    fn has_made(&self, stat: &Stat) -> bool {
        self.trust.owns(stat) && self.made.borrow().contains(&(stat.st_dev, stat.st_ino))
    }

    /// Whether a directory of the archive is the one that a link leads to, and does not take its place. Another link may be
    /// there at once, so this decides only what is replaced: the walk through it judges again.
    fn keeps(&self, place: &Place, stat: &Stat) -> bool {
        place.alone && self.trust.owns(stat) && !self.has_made(stat)
    }

    /// The directory of this path, made when missing.
    fn open(&self, path: &Path) -> Outcome<Rc<Place>> {
        if let Some(last) = self.last(path) {
            return Ok(last);
        }
        let opened = self.walk(path, true).map_err(|blocked| blocked_at(path, &blocked))?;
        self.recognise(path, &opened)?;
        let opened = Rc::new(opened);
        *self.last.borrow_mut() = Some((path.to_owned(), opened.clone()));
        Ok(opened)
    }

    /// The directory of this path, if it is there, whatever was there before.
    fn find(&self, path: &Path) -> Result<Rc<Place>, Blocked> {
        self.last(path).map_or_else(|| self.walk(path, false).map(Rc::new), Ok)
    }

    /// The one that was opened last, if it has this path.
    fn last(&self, path: &Path) -> Option<Rc<Place>> {
        self.last.borrow().as_ref().filter(|(last, _)| last == path).map(|(_, place)| place.clone())
    }

    /// Whether this directory is the one that entries of its path have gone into, and so are those above it.
    fn recognise(&self, path: &Path, opened: &Place) -> Outcome<()> {
        let mut new = Vec::new();
        for above in path.ancestors().take_while(|above| !above.as_os_str().is_empty()) {
            let found = (above != path).then(|| self.walk(above, false));
            let found = found.transpose().map_err(|blocked| blocked_at(above, &blocked))?;
            let place = found.as_ref().unwrap_or(opened);
            if place.alone {
                break;
            }
            let now = identity(&place.dir).map_err(failed(above.display()))?;
            match self.used.borrow().get(above) {
                Some(before) if *before == now => break,
                Some(_) => {
                    return Err(blocked_at(
                        above,
                        &Blocked::because("somebody has put something else in its place meanwhile"),
                    ));
                }
                None => new.push((above.to_owned(), now)),
            }
        }
        self.used.borrow_mut().extend(new);
        Ok(())
    }

    /// The archive itself has put something else there.
    fn replaced(&self, path: &Path) {
        let mut used = self.used.borrow_mut();
        let from = (Bound::Included(path), Bound::Unbounded);
        let below = used.range::<Path, _>(from).map(|(used, _)| used.clone());
        for gone in below.take_while(|used| used.starts_with(path)).collect::<Vec<_>>() {
            used.remove(&gone);
        }
    }

    fn walk(&self, path: &Path, make: bool) -> Result<Place, Blocked> {
        let missing = |parent: &OwnedFd, name: &OsStr| {
            let made = if make { mkdir(parent, name, KEPT) } else { Err(Errno::NOENT) };
            match made {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(Blocked::by(name, error)),
            }
        };
        let follow = |turn: &Turn<'_>| match turn.link {
            Some((stat, target)) if self.has_made(stat) => {
                if leads_out(target) {
                    let why = "a symbolic link of the archive that leads out of the destination";
                    return Err(Blocked::because(why));
                }
                Ok(())
            }
            _ if turn.trusted => Ok(()),
            Some(_) => Err(Blocked::because(
                "a symbolic link of another user, or one that another user could have put there: stream in to the \
                 directory that it should lead to",
            )),
            None => {
                Err(Blocked::because("a symbolic link leads out of a directory that another user can move"))
            }
        };
        dirs::walk(rustix::fs::CWD, path, self.trust, &missing, &follow)
    }

    /// What lies in directories has changed: they may be others now.
    fn forget(&self) {
        *self.last.borrow_mut() = None;
    }
}

/// Whether a link's text leads, by itself, to something else than what is below its directory.
fn leads_out(target: &OsStr) -> bool {
    let target = target.as_bytes();
    target.starts_with(b"/") || target.split(|b| *b == b'/').any(|name| name == b"..")
}

fn blocked_at(path: &Path, blocked: &Blocked) -> Stop {
    Stop::from(format!("{}: {}", path.display(), blocked.text))
}

fn mkdir(parent: &OwnedFd, name: &OsStr, mode: u32) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(mode))
}

/// By which a directory is known again.
fn identity(dir: &OwnedFd) -> rustix::io::Result<(u64, u64)> {
    rustix::fs::fstat(dir).map(|stat| (stat.st_dev, stat.st_ino))
}

/// An entry that is a directory: one that is there stays, and so does a link that was there before and may be followed;
/// another link, or a file, is replaced, as by GNU tar.
fn directory(
    places: &Places,
    place: &Place,
    name: &OsStr,
    (path, mode): (&Path, u32),
) -> Outcome<(u64, u64)> {
    let (parent, say) = (&place.dir, || path.display());
    // Closed to others from its birth on, if its own mode closes it, and open to the user until all that is in it has come.
    let mode = mode & KEPT | 0o700;
    if let Err(error) = mkdir(parent, name, mode) {
        if error != Errno::EXIST {
            return Err(failed(say())(error));
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statat(parent, name, flags).map_err(failed(say()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {}
            FileType::Symlink if places.keeps(place, &stat) => {}
            // Also a file: the later entry counts.
            _ => {
                make_room(parent, name).map_err(failed(say()))?;
                mkdir(parent, name, mode).map_err(failed(say()))?;
                places.replaced(path);
            }
        }
    } else {
        places.replaced(path);
    }
    places.forget();
    identity(&places.open(path)?.dir).map_err(failed(say()))
}

/// A new file, in place of whatever has its name. Nobody but its owner may write to it.
pub fn create(parent: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(mode & KEPT));
    let fd = match open() {
        Err(Errno::EXIST) => match replaceable(parent, name).map(|kind| (kind, clear(parent, name)))? {
            // Something is mounted there, such as the container's own /etc/hosts: its contents can be replaced.
            (Some(FileType::RegularFile), Err(Errno::BUSY)) => {
                let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(parent, name, flags, Mode::empty())
            }
            (_, cleared) => cleared.and_then(|()| open()),
        },
        other => other,
    };
    Ok(fd.map(File::from)?)
}

/// The kind of what has a name, if there is anything, and if an entry may take its place. A device stays, unlike with GNU tar:
/// everything in the container that writes to /dev/null would fill a file from then on.
fn replaceable(parent: &OwnedFd, name: &OsStr) -> io::Result<Option<FileType>> {
    let kind = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => FileType::from_raw_mode(stat.st_mode),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        return Err(io::Error::other("it is a device, and nothing takes its place"));
    }
    Ok(Some(kind))
}

/// Make room for an entry in place of what is replaceable.
pub fn make_room(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    replaceable(parent, name)?;
    Ok(clear(parent, name)?)
}

/// Make room for an entry. As GNU tar does it: a directory gives way only if there is nothing in it, for it may hold what
/// is in no archive.
fn clear(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR),
        other => other,
    }
}

/// File capabilities and the user's own attributes; others are not the user's to set. What the kernel does not let him set is
/// left out, as by GNU tar: capabilities are root's and have a form, and not every file system has attributes, or any of this
/// size (E2BIG, ERANGE; ENOSPC where one must fit into a block: a disk without space refuses the next file anyway).
fn attributes(entry: &Member, file: &File) -> rustix::io::Result<()> {
    for (name, value) in &entry.xattrs {
        if name == b"security.capability" || name.starts_with(b"user.") {
            match rustix::fs::fsetxattr(file, &**name, value, rustix::fs::XattrFlags::empty()) {
                Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL) => {}
                Err(Errno::TOOBIG | Errno::RANGE | Errno::NOSPC) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn times(time: Time) -> rustix::fs::Timestamps {
    let time = rustix::fs::Timespec { tv_sec: time.sec, tv_nsec: time.nsec };
    rustix::fs::Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
#[path = "odd_tests.rs"]
mod odd;
