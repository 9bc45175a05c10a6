//! Tars into and out of a container, by our own code running inside it with the rights of the user: wherever a path
//! leads there, the user could have gone himself.

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
/// The mode bits that are kept. The umask does not suffice: where a directory has a default access control list the
/// kernel ignores it (umask(2)), and the list of another user's directory would give him write permission for root's
/// files.
const KEPT: u32 = 0o755;
/// Buffer size for reading ahead: headers and small files take few system calls, and little of a large file is
/// copied.
const BUFFERED: usize = 32 * 1024;
/// Files of at least this size are spliced from the pipe, smaller ones are read and written.
const WORTH_MOVING: u64 = 64 * 1024;
/// Entries that could not be unpacked are named up to this number, and counted beyond it.
const MAX_NAMED: u64 = 20;
/// Bytes that are kept of the beginning and of the end of one of those failures, and the limit of all of them, which
/// must fit into one frame of a report.
const MAX_FAILURE: usize = 256;
const MAX_WHY: usize = 160;
const MAX_TEXT: usize = 2500;

/// A transfer.
#[derive(Debug)]
pub struct Task<'a> {
    /// Whether to unpack (`true`) or to pack.
    pub inward: bool,
    /// Name in the container's passwd; empty: root.
    pub user: &'a str,
    /// Destination or source; relative to the user's home.
    pub path: &'a str,
    /// See [`rights`].
    pub rights: &'a Rights,
}

/// Rights of a helper in a container whose pid 1 has these rights, before the helper's user is known.
pub fn rights(container: &Rights) -> Rights {
    // The reader keeps names and attributes of an entry in memory, whatever length the archive declares.
    const ROOM: Limit = Limit { resource: libc::RLIMIT_AS, value: 256 << 20 };
    Rights {
        capabilities: container.capabilities,
        seccomp: container.seccomp.clone(),
        no_new_privileges: true,
        limits: vec![ROOM],
        ..Rights::default()
    }
}

/// Runs the transfer with the tar on `pipe`.
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
        // As in Garden, a directory made for a user is entered even where a directory above is closed to him.
        rustix::process::fchdir(&made).map_err(failed(path.display()))?;
        become_user()?;
    } else {
        become_user()?;
        rustix::process::chdir(dir).map_err(failed(path.display()))?;
    }
    child::stay_inside()?;
    // As with GNU tar's --no-same-permissions, the mode is the archive's less the usual umask.
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

/// The tar's pipe behind a buffer; large files are spliced from the pipe without being copied through user space.
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

/// An error that ends the reading of a tar.
impl From<wardian_archive::Error> for Stop {
    fn from(error: wardian_archive::Error) -> Self {
        use wardian_archive::Error as E;
        // GNU tar's wording, which clients match.
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

/// Error for a missing tar header; `gzip`: the stream begins with gzip's magic bytes and no header has been read yet.
fn not_a_tar(error: wardian_archive::Error, gzip: bool) -> Stop {
    use wardian_archive::Error as E;
    match error {
        E::Truncated { .. } | E::Corrupt { .. } | E::NoTar if gzip => Stop::from(
            "This does not look like a tar archive: it is compressed with gzip; send a plain tar".to_owned(),
        ),
        error => Stop::from(error),
    }
}

/// The directories of an archive. Their modes and times are set last: writing into a directory changes its time, and
/// may need a mode that it will lose. For a directory that occurs twice the later entry counts.
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
    /// Whether another user can have exchanged the directory for another one, which may be closed to him: the mode
    /// that is set last then opens nothing. A new directory is made with the mode of its entry.
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

    /// Sets the modes and times. A failure for one directory does not keep the others from being set.
    fn close(mut self, places: &Places, failures: &mut Failures) {
        // The deepest first: a directory above may be closed by its own mode.
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

/// Sets mode and time of a directory if it is still the inode that this archive has made or opened; another file of
/// the same name is left alone.
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

/// Entries that could not be unpacked while the others were.
#[derive(Default)]
struct Failures {
    /// The first failures, as text.
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

    /// The combined result; an error that ended the work comes first.
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

/// A failure as one line. A long one keeps its beginning and, at its end, the reason.
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
    // Also where the archive ends early: directories that it closes to others must not stay open.
    directories.close(&places, &mut failures);
    failures.result(end)
}

/// As with GNU tar, an entry that cannot be made does not end the work. Data that cannot be written does, because the
/// disk is full or faulty, and so does input that is no archive.
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
    // gzip's magic number: RFC 1952, section 2.3.1. A name may begin with these bytes too: only an invalid header
    // decides.
    let mut gzip = head.starts_with(b"\x1f\x8b");
    while let Some(entry) = stream.next(true).map_err(|error| not_a_tar(error, gzip))? {
        gzip = false;
        let path = relative(&entry.path)?;
        let Some(name) = path.file_name() else {
            // The destination itself is the caller's, and keeps its mode.
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
            // Sockets are skipped: without its server a socket is useless; pax and star write them.
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
    // The padding after the end of the archive is read, so that its writer does not get EPIPE.
    stream.drain()?;
    Ok(())
}

/// Makes an entry. Returns the new file if the entry has data, which is still to be written.
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

/// Writes the data of an entry. Holes of a sparse file stay holes: a kilobyte of an archive can stand for terabytes.
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
            // The bytes that the buffer has read ahead come first.
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

/// Opens the directories below the working directory that entries go into.
///
/// A link that was there before is followed only if it is trusted ([`Trust`]): through one that another user of the
/// container has placed there, root would write files and set modes where that user wants it.
struct Places {
    trust: Trust,
    last: RefCell<Option<(PathBuf, Rc<Place>)>>,
    /// Symbolic links that the archive has made, or has given a second name. A later directory entry of the same name
    /// replaces such a link. Links whose target, as text, leads out of the destination are not followed, as in GNU
    /// tar: whoever unpacks somebody else's archive into a directory means that directory. The others are followed
    /// whoever owns their directory, because they lead only further down.
    /// Another user who may write to such a directory can rename these links, and exchange one for another link of
    /// root's between any two system calls. He gains nothing: no verdict is cached here, only which inodes the
    /// archive has made. A link's owner and target are read through the descriptor that is then followed, and an
    /// absolute link, or one with `..`, is followed only where no other user may write, so he cannot move it there. A
    /// link that he puts in the place of a new one does not count as the archive's: its target differs, or leads to
    /// the same directory.
    made: RefCell<HashSet<(u64, u64)>>,
    /// Directories that entries have gone into by these paths, where another user may rename. A directory of the
    /// archive that is closed to him then holds its later entries as well; they do not go into a directory of his
    /// own, or an open one, under that name.
    used: RefCell<BTreeMap<PathBuf, (u64, u64)>>,
    /// The files that hard links of the archive may lead to.
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

    /// Records a symbolic link that the archive has just made.
    fn made(&self, parent: &OwnedFd, name: &OsStr, target: &[u8]) -> rustix::io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let link = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&link)?;
        // A link that another user has put in its place meanwhile does not count as the archive's.
        if self.trust.owns(&stat)
            && rustix::fs::readlinkat(&link, "", Vec::new()).is_ok_and(|text| text.to_bytes() == target)
        {
            self.made.borrow_mut().insert((stat.st_dev, stat.st_ino));
            self.files.keep(&stat);
        }
        self.forget();
        Ok(())
    }

    /// Records that a file has got a second name. A symbolic link at its new place may lead elsewhere, so it counts
    /// as the archive's.
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

    /// Whether a directory entry uses the directory behind an existing link instead of replacing the link. The link
    /// may be exchanged at any time, so this decides only what is replaced: the walk through it judges again.
    fn keeps(&self, place: &Place, stat: &Stat) -> bool {
        place.alone && self.trust.owns(stat) && !self.has_made(stat)
    }

    /// Opens the directory of this path, and makes it where it is missing.
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

    /// Opens the directory of this path if it exists, without the check of [`Self::recognise`].
    fn find(&self, path: &Path) -> Result<Rc<Place>, Blocked> {
        self.last(path).map_or_else(|| self.walk(path, false).map(Rc::new), Ok)
    }

    /// The directory that was opened last, if it has this path.
    fn last(&self, path: &Path) -> Option<Rc<Place>> {
        self.last.borrow().as_ref().filter(|(last, _)| last == path).map(|(_, place)| place.clone())
    }

    /// Fails unless this directory, and each one above it, is the same as when entries of its path first went into
    /// it.
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

    /// Forgets a path, and those below it, that the archive itself has replaced.
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

    /// Forgets the last directory: entries have changed, so its path may lead to another one now.
    fn forget(&self) {
        *self.last.borrow_mut() = None;
    }
}

/// Whether a link's target, as text, leads to anything but what is below its directory.
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

/// Device and inode number, by which a directory is recognised.
fn identity(dir: &OwnedFd) -> rustix::io::Result<(u64, u64)> {
    rustix::fs::fstat(dir).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Makes a directory entry: an existing directory stays, and so does a link that was there before and may be
/// followed; any other link, or a file, is replaced, as by GNU tar.
fn directory(
    places: &Places,
    place: &Place,
    name: &OsStr,
    (path, mode): (&Path, u32),
) -> Outcome<(u64, u64)> {
    let (parent, say) = (&place.dir, || path.display());
    // Closed to others from its creation on, if its own mode closes it, and open to the user until all its entries
    // are there.
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
            // A file is replaced too: the later entry counts.
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

/// Creates a new file in place of whatever has its name. Nobody but its owner may write to it.
pub fn create(parent: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(mode & KEPT));
    let fd = match open() {
        Err(Errno::EXIST) => match replaceable(parent, name).map(|kind| (kind, clear(parent, name)))? {
            // A mount point, such as the container's own /etc/hosts: its contents are replaced.
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

/// The type of the existing file, if there is one and an entry may replace it. Unlike with GNU tar a device stays:
/// otherwise everything in the container that writes to /dev/null would fill a file from then on.
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

/// Removes an existing file, if it may be replaced, to make room for an entry.
pub fn make_room(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    replaceable(parent, name)?;
    Ok(clear(parent, name)?)
}

/// Removes an existing file to make room for an entry. As with GNU tar, a directory is removed only if it is empty:
/// it may hold files that are in no archive.
fn clear(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR),
        other => other,
    }
}

/// Sets file capabilities and `user.` attributes; other namespaces are not the user's to set. What the kernel does
/// not let him set is left out, as by GNU tar: capabilities need root and a valid form, and not every file system has
/// attributes, or any of this size (E2BIG, ERANGE; ENOSPC where one must fit into a block: a disk without space
/// refuses the next file anyway).
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
