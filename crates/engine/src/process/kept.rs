//! Kept output: the newest output of a process, for those who ask for it later.
//!
//! It is in a file on the tmpfs of the run directory, so it outlives this server, and the pump that writes it never waits for
//! a disk. The file consists of slots of 64 KiB; a full slot is followed by a new one, or, above the bound, by the oldest one
//! again. A slot begins with a head, which is written after what it counts:
//!
//! | bytes | head of a slot | head of a piece |
//! |---|---|---|
//! | 0..8 | the slot's number in the order of writing, from 1 | when it was read, in milliseconds since 1970 |
//! | 8..16 | bytes that the process had printed before | 8..12: its bytes; 12: 1 for stdout, 2 for stderr |
//! | 16..20 | bytes in use, the head included | |
//!
//! All numbers are little-endian. Pieces follow one another; each is preceded by its head. What was dropped shows in the
//! heads: there a slot begins later than the one before it has ended.

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::{Errno, pwrite, pwritev};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use wardian_sys::directory::Directory;

/// Bytes of a slot, …
const SLOT: usize = 64 << 10;
/// … of its head, …
const HEAD: usize = 32;
/// … and of the head of a piece.
const PIECE: usize = 16;
/// A piece is cut in two at the end of a slot only if this many bytes of it fit there.
const FITS: usize = 1 << 10;
/// The most bytes of output that a process may have kept.
pub const MOST: u64 = 64 << 20;
/// A file of kept output takes a second slot, and more, only as long as it holds less than this part of the free bytes.
const PART: usize = 16;
/// Lists shorter than this are not searched for what was dropped.
const FEW: usize = 64;

/// The stream of a piece that is for the reader, and no output.
const NOTE: u8 = 0;

/// The bound of all kept output of a server.
#[derive(Debug)]
pub struct Room {
    bytes: usize,
    held: AtomicUsize,
    all: Mutex<Vec<Weak<Kept>>>,
}

impl Room {
    /// Makes the bound.
    pub fn new(bytes: u64) -> Arc<Self> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        Arc::new(Self { bytes, held: AtomicUsize::new(0), all: Mutex::default() })
    }

    fn enter(&self, kept: &Arc<Kept>) {
        let mut all = self.all.lock();
        if all.len() >= FEW && all.len() == all.capacity() {
            all.retain(|kept| kept.strong_count() > 0);
        }
        all.push(Arc::downgrade(kept));
    }

    /// Takes a slot for a file that holds `mine` bytes.
    fn take(&self, mine: usize) -> bool {
        let taken = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            let free = self.bytes.saturating_sub(held);
            let share = if mine == 0 { SLOT } else { free / PART };
            (free >= SLOT && mine + SLOT <= share).then_some(held + SLOT)
        });
        taken.is_ok()
    }

    fn give_back(&self, slots: usize) {
        self.held.fetch_sub(slots * SLOT, Ordering::Relaxed);
    }

    /// Takes the oldest slot from the file that has the most, for one that has none.
    fn relieve(&self) -> bool {
        let all: Vec<Arc<Kept>> = self.all.lock().iter().filter_map(Weak::upgrade).collect();
        // A file whose lock is held is being written to, perhaps by the caller.
        let slots = |kept: &&Arc<Kept>| kept.state.try_lock().map_or(0, |state| state.slots.len());
        let longest = all.iter().max_by_key(slots);
        longest.is_some_and(|kept| kept.state.try_lock().is_some_and(|mut state| kept.shorten(&mut state)))
    }
}

/// Where the kept output of a process is.
#[derive(Debug)]
pub struct Place {
    /// The directory, which is opened when it is needed: there may be a thousand ended processes, and descriptors are few.
    pub dir: PathBuf,
    /// The file's name in it.
    pub name: String,
}

impl Place {
    fn file(&self, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = Directory::open(&self.dir)?;
        Ok(rustix::fs::openat(&dir, &self.name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }
}

/// The kept output of a process.
#[derive(Debug)]
pub struct Kept {
    place: Place,
    room: Arc<Room>,
    /// The most slots.
    most: usize,
    state: Mutex<State>,
    /// Tells readers of what is printed and of the end.
    news: watch::Sender<News>,
    /// The file on disk that it is written to as well.
    file: OnceLock<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct News {
    printed: u64,
    over: bool,
}

#[derive(Debug, Default)]
struct State {
    /// Open from the first output of this server's time until the end of the output.
    file: Option<Arc<File>>,
    /// In the order of writing.
    slots: VecDeque<Slot>,
    /// Places in the file whose slots were given back.
    free: Vec<u32>,
    /// The number of the newest slot there ever was.
    newest: u64,
    /// Bytes that the process has printed.
    printed: u64,
    /// Something was dropped, so the next piece goes to a new slot.
    gap: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    /// In slots, from the beginning of the file.
    place: u32,
    number: u64,
    start: u64,
    used: usize,
}

impl Slot {
    fn offset(self) -> u64 {
        u64::from(self.place) * SLOT as u64
    }

    fn head(self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&self.number.to_le_bytes());
        head[8..16].copy_from_slice(&self.start.to_le_bytes());
        head[16..24].copy_from_slice(&(self.used as u64).to_le_bytes());
        head
    }

    fn parse(place: u32, head: &[u8; HEAD]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| head[at + n]));
        let used = usize::try_from(word(16)).ok()?;
        let is_one = word(0) > 0 && (HEAD..=SLOT).contains(&used);
        is_one.then(|| Self { place, number: word(0), start: word(8), used })
    }
}

fn head_of_piece(stream: u8, length: usize) -> [u8; PIECE] {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let mut head = [0; PIECE];
    head[..8].copy_from_slice(&u64::try_from(now).unwrap_or_default().to_le_bytes());
    head[8..12].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    head[12] = stream;
    head
}

/// Makes a piece for the reader that is no output.
pub fn note(text: &[u8]) -> Vec<u8> {
    [&head_of_piece(NOTE, text.len())[..], text].concat()
}

/// Output that was read at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// It is of standard error.
    pub stderr: bool,
    /// The bytes; fewer than the head says in a damaged file.
    pub data: &'a [u8],
}

/// Returns the pieces of [`Found::Pieces`].
pub fn pieces(mut rest: &[u8]) -> impl Iterator<Item = Piece<'_>> {
    std::iter::from_fn(move || {
        let (head, more) = rest.split_first_chunk::<PIECE>()?;
        let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let (data, more) = more.split_at(length.min(more.len()));
        rest = more;
        let time_ms = u64::from_le_bytes(std::array::from_fn(|n| head[n]));
        Some(Piece { time_ms, stderr: head[12] == 2, data })
    })
}

/// Returns the bytes of output in the pieces of a slot.
fn payload(all: &[u8]) -> u64 {
    pieces(all).map(|piece| piece.data.len() as u64).sum()
}

impl Kept {
    /// Makes the place for at most `bytes` of output, which need no memory before there is any.
    pub fn new(place: Place, room: &Arc<Room>, bytes: u64) -> Arc<Self> {
        Self::with(place, room, bytes, State::default())
    }

    /// Opens what an earlier server has kept.
    pub fn open(place: Place, room: &Arc<Room>, bytes: u64) -> Arc<Self> {
        let state = Self::found(&place).unwrap_or_else(|error| {
            tracing::warn!(%error, "process.kept-output-lost");
            State::default()
        });
        room.held.fetch_add(state.slots.len() * SLOT, Ordering::Relaxed);
        Self::with(place, room, bytes, state)
    }

    fn with(place: Place, room: &Arc<Room>, bytes: u64, state: State) -> Arc<Self> {
        // One more than the bytes take: the oldest slot is given up whole.
        let most = usize::try_from(bytes.min(MOST)).unwrap_or(usize::MAX).div_ceil(SLOT) + 1;
        let news = watch::Sender::new(News { printed: state.printed, over: false });
        let (state, file) = (Mutex::new(state), OnceLock::new());
        let kept = Arc::new(Self { place, room: room.clone(), most, state, news, file });
        room.enter(&kept);
        kept
    }

    fn found(place: &Place) -> io::Result<State> {
        let file = match place.file(OFlags::empty()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(error) => return Err(error),
        };
        let length = file.metadata()?.len().div_ceil(SLOT as u64);
        let mut state = State::default();
        for place in 0..u32::try_from(length).unwrap_or(u32::MAX) {
            let mut head = [0; HEAD];
            let read = file.read_at(&mut head, u64::from(place) * SLOT as u64)?;
            match Slot::parse(place, &head).filter(|_| read == HEAD) {
                Some(slot) => state.slots.push_back(slot),
                None => state.free.push(place),
            }
        }
        state.slots.make_contiguous().sort_unstable_by_key(|slot| slot.number);
        if let Some(last) = state.slots.back() {
            let mut pieces = vec![0; last.used - HEAD];
            file.read_exact_at(&mut pieces, last.offset() + HEAD as u64)?;
            (state.newest, state.printed) = (last.number, last.start + payload(&pieces));
        }
        Ok(state)
    }

    /// Appends what was read from a stream (0: stdout, 1: stderr). It takes the place of the oldest output above the bound,
    /// and is dropped where there is no room or no memory at all.
    pub fn append(&self, stream: usize, piece: &[u8]) {
        let mut state = self.state.lock();
        let mut rest = piece;
        while !rest.is_empty() {
            match self.append_some(&mut state, stream, rest) {
                Ok(length) => {
                    state.printed += length as u64;
                    rest = &rest[length..];
                }
                Err(_) => {
                    state.printed += rest.len() as u64;
                    state.gap = true;
                    break;
                }
            }
        }
        let printed = state.printed;
        drop(state);
        self.news.send_modify(|news| news.printed = printed);
    }

    fn append_some(&self, state: &mut State, stream: usize, rest: &[u8]) -> io::Result<usize> {
        let has_room = |slot: &Slot| SLOT - slot.used >= PIECE + rest.len().min(FITS);
        if state.gap || !state.slots.back().is_some_and(has_room) {
            self.begin_slot(state)?;
        }
        let file = state.file.clone().map_or_else(|| self.opened(state), Ok)?;
        let slot = state.slots.back_mut().ok_or(Errno::NOSPC)?;
        let length = rest.len().min(SLOT - slot.used - PIECE);
        let head = head_of_piece(if stream == 0 { 1 } else { 2 }, length);
        let both = [IoSlice::new(&head), IoSlice::new(&rest[..length])];
        let written = pwritev(&file, &both, slot.offset() + slot.used as u64)?;
        if written != PIECE + length {
            return Err(Errno::NOSPC.into());
        }
        slot.used += written;
        pwrite(&file, &(slot.used as u64).to_le_bytes(), slot.offset() + 16)?;
        Ok(length)
    }

    fn opened(&self, state: &mut State) -> io::Result<Arc<File>> {
        let file = Arc::new(self.place.file(OFlags::CREATE)?);
        state.file = Some(file.clone());
        Ok(file)
    }

    /// Begins a new slot: a further one within the bounds, or else the oldest one.
    fn begin_slot(&self, state: &mut State) -> io::Result<()> {
        let held = state.slots.len();
        let is_more = held < self.most
            && (self.room.take(held * SLOT) || (held == 0 && self.room.relieve() && self.room.take(0)));
        let place = if is_more {
            state.free.pop().unwrap_or_else(|| u32::try_from(held).unwrap_or(u32::MAX))
        } else {
            state.slots.pop_front().ok_or(Errno::NOSPC)?.place
        };
        let slot = Slot { place, number: state.newest + 1, start: state.printed, used: HEAD };
        let file = state.file.clone().map_or_else(|| self.opened(state), Ok);
        match file.and_then(|file| Ok(pwrite(&file, &slot.head(), slot.offset())?)) {
            Ok(HEAD) => {
                state.slots.push_back(slot);
                (state.newest, state.gap) = (slot.number, false);
                Ok(())
            }
            failed => {
                state.free.push(place);
                self.room.give_back(1);
                Err(failed.err().unwrap_or_else(|| Errno::NOSPC.into()))
            }
        }
    }

    /// Gives the oldest slot back, with its memory.
    fn shorten(&self, state: &mut State) -> bool {
        // The newest one is being written to.
        if state.slots.len() < 2 {
            return false;
        }
        let Some(file) =
            state.file.clone().or_else(|| Some(Arc::new(self.place.file(OFlags::empty()).ok()?)))
        else {
            return false;
        };
        let Some(slot) = state.slots.pop_front() else { return false };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // What is no hole is overwritten later; its memory is held until then.
        let _ = rustix::fs::fallocate(&*file, flags, slot.offset(), SLOT as u64);
        state.free.push(slot.place);
        self.room.give_back(1);
        true
    }

    /// Marks the end of the output.
    pub fn finish(&self) {
        self.state.lock().file = None;
        self.news.send_modify(|news| news.over = true);
    }

    /// Returns the bytes that are kept, and those that were dropped.
    pub fn size(&self) -> (u64, u64) {
        let state = self.state.lock();
        let dropped = state.slots.front().map_or(state.printed, |slot| slot.start);
        (state.printed - dropped, dropped)
    }

    /// Notes that it is written to a file on disk as well.
    pub fn goes_to(&self, file: PathBuf) {
        // Whoever notes it again notes the same.
        let _ = self.file.set(file);
    }

    /// The file on disk with the newest of it.
    pub fn file(&self) -> Option<&Path> {
        self.file.get().map(PathBuf::as_path)
    }

    /// Removes it.
    pub fn remove(&self) {
        if let Ok(dir) = Directory::open(&self.place.dir) {
            drop(dir.remove(&self.place.name));
        }
    }

    /// Returns a reader, which begins with the oldest output that is kept.
    pub fn reader(self: &Arc<Self>) -> Reader {
        let news = self.news.subscribe();
        let until = self.state.lock().printed;
        Reader { kept: self.clone(), file: None, number: 0, offset: HEAD, at: 0, until, news }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.room.give_back(self.state.get_mut().slots.len());
    }
}

/// Reads kept output, from the oldest to what is printed meanwhile. Nobody waits for it: what it is too slow for it is told as
/// dropped.
#[derive(Debug)]
pub struct Reader {
    kept: Arc<Kept>,
    /// Open from the first read on, so that the output can be read on after the end of the container.
    file: Option<Arc<File>>,
    number: u64,
    offset: usize,
    /// How much of what the process has printed lies before the offset.
    at: u64,
    /// How much it had printed when the reader was made.
    until: u64,
    news: watch::Receiver<News>,
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Pieces with their heads.
    Pieces(Vec<u8>),
    /// So many bytes were dropped.
    Dropped(u64),
    /// Nothing more at the moment.
    Nothing,
}

impl Reader {
    /// Returns what comes next of what there is.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&mut self) -> io::Result<Found> {
        let state = self.kept.state.lock();
        let unread = |slot: &&Slot| {
            slot.number > self.number || (slot.number == self.number && slot.used > self.offset)
        };
        let Some(slot) = state.slots.iter().find(unread).copied() else {
            // What was dropped at the end has no slot after it.
            let dropped = state.printed - self.at;
            self.at = state.printed;
            return Ok(if dropped > 0 { Found::Dropped(dropped) } else { Found::Nothing });
        };
        if slot.number > self.number {
            (self.number, self.offset) = (slot.number, HEAD);
            let dropped = slot.start.saturating_sub(self.at);
            self.at = slot.start;
            if dropped > 0 {
                return Ok(Found::Dropped(dropped));
            }
        }
        let file = match self.file.clone().or_else(|| state.file.clone()) {
            Some(file) => file,
            None => Arc::new(self.kept.place.file(OFlags::empty())?),
        };
        self.file = Some(file.clone());
        let mut pieces = vec![0; slot.used - self.offset];
        // Under the lock: the slot may be given to newer output.
        file.read_exact_at(&mut pieces, slot.offset() + self.offset as u64)?;
        drop(state);
        self.offset = slot.used;
        self.at += payload(&pieces);
        Ok(if pieces.is_empty() { Found::Nothing } else { Found::Pieces(pieces) })
    }

    /// Whether all was read that had been printed when the reader was made: a process may print faster than it is read.
    pub fn is_caught_up(&self) -> bool {
        self.at >= self.until
    }

    /// Waits for more. Returns false if the output is over and was read.
    pub async fn more(&mut self) -> bool {
        let at = self.at;
        self.news.wait_for(|news| news.over || news.printed > at).await.is_ok_and(|news| news.printed > at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        dir: tempfile::TempDir,
        room: Arc<Room>,
    }

    impl Bench {
        fn new(slots: usize) -> Self {
            Self { dir: tempfile::tempdir().unwrap(), room: Room::new((slots * SLOT) as u64) }
        }

        fn place(&self, name: &str) -> Place {
            Place { dir: self.dir.path().to_owned(), name: name.to_owned() }
        }

        fn kept(&self, name: &str, slots: usize) -> Arc<Kept> {
            Kept::new(self.place(name), &self.room, (slots * SLOT) as u64)
        }
    }

    /// Returns the output of each stream, and the bytes that were dropped.
    fn read(reader: &mut Reader) -> ([String; 2], u64) {
        let (mut text, mut lost) = ([String::new(), String::new()], 0);
        loop {
            match reader.read().unwrap() {
                Found::Nothing => return (text, lost),
                Found::Dropped(bytes) => lost += bytes,
                Found::Pieces(pieces) => {
                    let mut rest = &pieces[..];
                    while let Some((head, more)) = rest.split_first_chunk::<PIECE>() {
                        let length = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
                        text[usize::from(head[12]) - 1] += std::str::from_utf8(&more[..length]).unwrap();
                        rest = &more[length..];
                    }
                    assert!(rest.is_empty());
                }
            }
        }
    }

    fn all(kept: &Arc<Kept>) -> ([String; 2], u64) {
        read(&mut kept.reader())
    }

    #[test]
    fn output_is_kept_in_its_order_and_outlives_the_server() {
        let bench = Bench::new(64);
        let kept = bench.kept("1", 4);
        assert_eq!(all(&kept), Default::default());
        assert!(!bench.dir.path().join("1").exists(), "no output needs no file");
        kept.append(0, b"one\n");
        kept.append(1, b"two\n");
        let mut reader = kept.reader();
        assert_eq!(read(&mut reader), (["one\n".into(), "two\n".into()], 0));
        kept.append(0, b"three\n");
        assert_eq!(read(&mut reader), (["three\n".into(), String::new()], 0));
        // As after a kill of the server: nothing was closed.
        let later = Kept::open(bench.place("1"), &bench.room, 4 * SLOT as u64);
        assert_eq!(all(&later), (["one\nthree\n".into(), "two\n".into()], 0));
        later.append(0, b"four\n");
        assert_eq!(all(&later).0[0], "one\nthree\nfour\n");
        assert_eq!(later.size(), (19, 0));
        drop((kept, later, reader));
        assert_eq!(bench.room.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn above_the_bound_the_newest_is_kept_and_the_rest_told() {
        let bench = Bench::new(1000);
        let kept = bench.kept("1", 3);
        let mut early = kept.reader();
        let printed: String = (0..60_000).map(|n| format!("{n:05}\n")).collect();
        for piece in printed.as_bytes().chunks(6 * 700) {
            kept.append(0, piece);
        }
        let length = std::fs::metadata(bench.dir.path().join("1")).unwrap().len();
        assert!(length <= 4 * SLOT as u64, "{length}");
        for kept in [kept.clone(), Kept::open(bench.place("1"), &bench.room, 3 * SLOT as u64)] {
            let ([text, _], lost) = all(&kept);
            assert_eq!(lost as usize + text.len(), printed.len());
            assert!(text.len() > 2 * SLOT - 8192 && printed.ends_with(&text), "{}", text.len());
        }
        let ([text, _], lost) = read(&mut early);
        assert_eq!(lost as usize + text.len(), printed.len());
    }

    #[test]
    fn a_large_piece_is_cut_to_slots() {
        let bench = Bench::new(1000);
        let kept = bench.kept("1", 8);
        let printed = "x".repeat(3 * SLOT);
        kept.append(1, printed.as_bytes());
        let ([_, text], lost) = all(&kept);
        assert_eq!((text.len(), lost), (printed.len(), 0));
    }

    #[test]
    fn no_room_is_taken_from_whoever_has_much() {
        let bench = Bench::new(20);
        let much = bench.kept("much", 1000);
        (0..400).for_each(|_| much.append(0, &[b'x'; 4096]));
        let few: Vec<_> = (0..19).map(|n| bench.kept(&format!("few{n}"), 4)).collect();
        for kept in &few {
            kept.append(0, b"here\n");
            assert_eq!(all(kept), (["here\n".into(), String::new()], 0));
        }
        assert_eq!(much.state.lock().slots.len(), 1);
        let ([text, _], lost) = all(&much);
        assert_eq!(text.len() as u64 + lost, 400 * 4096);
        // One more than there are slots: it has nothing, and is told so; no other loses its last one.
        let late = bench.kept("late", 4);
        late.append(0, b"gone\n");
        assert_eq!(all(&late), (Default::default(), 5));
        drop(few);
        late.append(0, b"back\n");
        assert_eq!(all(&late), (["back\n".into(), String::new()], 5));
        assert!(bench.room.held.load(Ordering::Relaxed) <= 20 * SLOT);
    }

    #[tokio::test]
    async fn a_reader_hears_of_what_is_printed_and_of_the_end() {
        let bench = Bench::new(10);
        let kept = bench.kept("1", 4);
        let mut reader = kept.reader();
        let following = tokio::spawn(async move {
            let mut text = String::new();
            loop {
                text += &read(&mut reader).0[0];
                if !reader.more().await {
                    return text;
                }
            }
        });
        kept.append(0, b"a\n");
        tokio::task::yield_now().await;
        kept.append(0, b"b\n");
        // The directory may go before the reader has read on.
        tokio::task::yield_now().await;
        kept.finish();
        assert_eq!(following.await.unwrap(), "a\nb\n");
        let mut late = kept.reader();
        assert_eq!(read(&mut late).0[0], "a\nb\n");
        assert!(!late.more().await);
    }

    #[test]
    fn a_damaged_file_is_survived() {
        let bench = Bench::new(10);
        let kept = bench.kept("1", 4);
        kept.append(0, b"a\n");
        kept.finish();
        let path = bench.dir.path().join("1");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let open = || Kept::open(bench.place("1"), &bench.room, SLOT as u64);
        assert_eq!(all(&open()), Default::default());
        // A head without its pieces.
        bytes[16..24].copy_from_slice(&(SLOT as u64).to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(open().size(), (0, 0));
    }
}
