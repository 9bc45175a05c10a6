//! Layers for kernels whose overlay refuses detached mounts (6.1 and 6.12): the layers are attached, under short
//! names, in a private mount namespace, the overlay is mounted there, and is handed out as a detached mount.
//!
//! Only a thread that shares its root and working directory with no other can enter a mount namespace, so one thread
//! lives in it and serves requests. The namespace holds an empty tmpfs and the layers, and nothing of the host's
//! tree. An overlay keeps private clones of its layers: the attached ones may be unmounted while it lives.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags};

use crate::mount::{self, Context, Error, OVERLAY_OPTIONS, UpperPair};

/// The most layers of an overlay (`OVL_MAX_STACK`, fs/overlayfs/params.h).
const MAX_LAYERS: usize = 500;
/// The most bytes of one option's value (`fsconfig(2)` copies strings of at most 256 with the NUL).
const MAX_VALUE: usize = 255;
/// Limit in bytes of all options of `mount(2)`: it copies a page, and truncates the rest without an error.
const MAX_OPTIONS: usize = 4095;
/// Where the upper pair is attached while an overlay is made. No layer has such a name.
const PAIR: &str = "_";
/// Mount point of an overlay whose options only `mount(2)` can take.
const SCRATCH: &str = "-";

type Answer<T> = SyncSender<Result<T, Error>>;

enum Request {
    Attach(OwnedFd, Answer<String>),
    Overlay { lowers: Vec<String>, pair: OwnedFd, volatile: bool, answer: Answer<OwnedFd> },
    Release(String),
}

/// Handle of the namespace. Any number of threads may use it; their requests are served one after another, in some
/// 0.1 ms each. The namespace ends when this value and all its layers are dropped.
#[derive(Debug, Clone)]
pub struct LayerNamespace {
    thread: Arc<Sender<Request>>,
}

/// A layer in a [`LayerNamespace`]; unmounted when dropped.
#[derive(Debug)]
pub struct AttachedLayer {
    name: String,
    thread: Arc<Sender<Request>>,
}

impl Drop for AttachedLayer {
    fn drop(&mut self) {
        // If the thread has ended, its namespace, and so the mount, is gone as well.
        drop(self.thread.send(Request::Release(std::mem::take(&mut self.name))));
    }
}

fn step(step: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Namespace { step, source }
}

impl LayerNamespace {
    /// Starts the thread. Needs CAP_SYS_ADMIN, an overlay file system in the kernel, and the time for one copy of the
    /// host's mount tree.
    pub fn start() -> Result<Self, Error> {
        let (thread, requests) = channel();
        let (ready, started) = sync_channel(1);
        let serve = move || match Server::enter() {
            Ok(mut server) => {
                drop(ready.send(Ok(())));
                server.serve(&requests);
            }
            Err(error) => drop(ready.send(Err(error))),
        };
        std::thread::Builder::new()
            .name("layers".to_owned())
            .spawn(serve)
            .map_err(|error| step("start a thread")(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)))?;
        wait(&started)?;
        Ok(Self { thread: Arc::new(thread) })
    }

    /// Attaches a detached (idmapped) mount. A mount can be attached only once.
    pub fn attach(&self, mount: BorrowedFd<'_>) -> Result<AttachedLayer, Error> {
        let mount = rustix::io::fcntl_dupfd_cloexec(mount, 3).map_err(step("take a layer"))?;
        let name = self.ask(|answer| Request::Attach(mount, answer))?;
        Ok(AttachedLayer { name, thread: Arc::clone(&self.thread) })
    }

    /// Mounts an overlay over the layers (topmost first) with the pair as its writable layer, detached and without
    /// device nodes; like [`Overlay::mount`](mount::Overlay::mount) with detached layers, and with the same errors.
    ///
    /// May be called again with the same pair. [`Error::Attach`] with EXDEV: a layer belongs to another namespace.
    /// The calling thread must be in the mount namespace that the pair was opened in.
    pub fn overlay(
        &self,
        lowers: &[&AttachedLayer],
        pair: &UpperPair,
        volatile: bool,
    ) -> Result<OwnedFd, Error> {
        if lowers.iter().any(|layer| !Arc::ptr_eq(&layer.thread, &self.thread)) {
            return Err(Error::Attach { source: Errno::XDEV });
        }
        if lowers.len() > MAX_LAYERS {
            let log = format!("{} layers; at most {MAX_LAYERS} are possible", lowers.len());
            return Err(refused("lowerdir", log, Errno::INVAL));
        }
        let lowers = lowers.iter().map(|layer| layer.name.clone()).collect();
        let pair = pair.clone_dir()?;
        self.ask(|answer| Request::Overlay { lowers, pair, volatile, answer })
    }

    fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, Error> {
        let (answer, answered) = sync_channel(1);
        self.thread.send(request(answer)).map_err(|_| step("reach the thread")(Errno::SRCH))?;
        wait(&answered)
    }
}

fn wait<T>(answer: &Receiver<Result<T, Error>>) -> Result<T, Error> {
    answer.recv().map_err(|_| step("reach the thread")(Errno::SRCH))?
}

fn refused(key: &str, log: String, source: Errno) -> Error {
    Error::Option { fstype: "overlay".to_owned(), key: key.to_owned(), log, source }
}

/// The state of the thread.
struct Server {
    /// Whether this kernel takes layers one by one (`lowerdir+`), so that no list of them can be too long.
    appends: bool,
    names: Names,
    /// The mounts' ids, by their names.
    attached: HashMap<String, u64>,
}

impl Server {
    /// Moves the calling thread into a new mount namespace with an empty root.
    fn enter() -> Result<Self, Error> {
        crate::namespace::own_mounts()
            .map_err(|error| step("start")(Errno::from_io_error(&error).unwrap_or(Errno::PERM)))?;
        let options = [("size", "64k"), ("nr_inodes", "0"), ("mode", "700")];
        let root = mount::fs_mount("tmpfs", &options, &[], MountAttrFlags::MOUNT_ATTR_NODEV)?;
        mount::attach(&root, open_dir("/")?)?;
        rustix::process::fchdir(&root).map_err(step("enter the new root"))?;
        rustix::process::pivot_root(".", ".").map_err(step("change the root"))?;
        mount::unmount_lazily(Path::new("."))?;
        rustix::process::chdir("/").map_err(step("enter the new root"))?;
        for name in [PAIR, SCRATCH] {
            make_dir(name)?;
        }
        // An overlay without support for the new mount API accepts any option as text, to parse it later, and no
        // descriptor.
        let probe = Context::open("overlay")?;
        let later = probe.set_fd(c"lowerdir+", root.as_fd()).is_err_and(|e| e.errno() == Errno::OPNOTSUPP);
        let appends = !later
            && match probe.set("lowerdir+", PAIR) {
                Ok(()) => true,
                Err(error) if error.errno() == Errno::INVAL => false,
                Err(error) => return Err(error),
            };
        Ok(Self { appends, names: Names::default(), attached: HashMap::new() })
    }

    /// Serves requests until all handles are dropped. An answer whose receiver is gone is discarded.
    fn serve(&mut self, requests: &Receiver<Request>) {
        for request in requests {
            match request {
                Request::Attach(mount, answer) => drop(answer.send(self.attach(&mount))),
                Request::Overlay { lowers, pair, volatile, answer } => {
                    drop(answer.send(self.overlay(&lowers, &pair, volatile)));
                }
                Request::Release(name) => self.release(&name),
            }
        }
    }

    fn attach(&mut self, mount: &OwnedFd) -> Result<String, Error> {
        let stat = rustix::fs::statx(mount, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)
            .map_err(|source| Error::Statx { source })?;
        // Attaching it again would move it away from its other name.
        if self.attached.values().any(|id| *id == stat.stx_mnt_id) {
            return Err(Error::Attach { source: Errno::INVAL });
        }
        let index = self.names.take();
        let name = name(index);
        make_dir(&name)?;
        if let Err(error) = mount::attach(mount, open_dir(&name)?) {
            self.release(&name);
            return Err(error);
        }
        self.attached.insert(name.clone(), stat.stx_mnt_id);
        Ok(name)
    }

    fn release(&mut self, name: &str) {
        let unmounted = mount::unmount_lazily(Path::new(name));
        // EINVAL: nothing was mounted there, because the attach failed.
        let free = unmounted.is_ok() || unmounted.is_err_and(|error| error.errno() == Errno::INVAL);
        // A name that could not be freed is never reused.
        if free && rustix::fs::unlinkat(CWD, name, AtFlags::REMOVEDIR).is_ok() {
            self.attached.remove(name);
            self.names.give_back(index(name));
        }
    }

    /// Mounts an overlay. Meanwhile the pair's directory is the thread's root: the overlay's options, which every
    /// container can read in its mountinfo, then say `/upper` and `/work`. The layers' names are relative to the
    /// working directory.
    fn overlay(&self, lowers: &[String], pair: &OwnedFd, volatile: bool) -> Result<OwnedFd, Error> {
        mount::attach(pair, open_dir(PAIR)?)?;
        let made =
            rustix::process::chroot(PAIR).map_err(step("enter the upper pair's directory")).and_then(|()| {
                let made = self.mount(lowers, volatile);
                rustix::process::chroot(".")
                    .expect("a thread can always make its working directory its root");
                made
            });
        let unmounted = mount::unmount_lazily(Path::new(PAIR));
        let overlay = made?;
        unmounted?;
        Ok(overlay)
    }

    fn mount(&self, lowers: &[String], volatile: bool) -> Result<OwnedFd, Error> {
        let list = lowers.join(":");
        if !self.appends && list.len() > MAX_VALUE {
            return mount_long(&list, volatile);
        }
        let context = Context::open("overlay")?;
        if self.appends {
            lowers.iter().try_for_each(|name| context.set("lowerdir+", name))?;
        } else {
            context.set("lowerdir", &list)?;
        }
        context.set("upperdir", "/upper")?;
        context.set("workdir", "/work")?;
        context.mount_overlay(volatile)
    }
}

/// Mounts an overlay with `mount(2)`, which takes a page of options in one string.
fn mount_long(lowers: &str, volatile: bool) -> Result<OwnedFd, Error> {
    let mut options = format!("lowerdir={lowers},upperdir=/upper,workdir=/work");
    for (key, value) in OVERLAY_OPTIONS {
        options.push_str(&format!(",{key}={value}"));
    }
    if volatile {
        options.push_str(",volatile");
    }
    if options.len() > MAX_OPTIONS {
        return Err(refused(
            "lowerdir",
            "the list of layers is longer than a page".to_owned(),
            Errno::TOOBIG,
        ));
    }
    let options = CString::new(options).map_err(|_| refused("lowerdir", String::new(), Errno::INVAL))?;
    rustix::mount::mount("overlay", SCRATCH, "overlay", MountFlags::NODEV, &*options)
        .map_err(|source| Error::Create { fstype: "overlay".to_owned(), log: String::new(), source })?;
    let clone = mount::open_tree_clone(CWD, SCRATCH, false);
    let unmounted = mount::unmount_lazily(Path::new(SCRATCH));
    let clone = clone?;
    unmounted?;
    Ok(clone)
}

fn make_dir(name: &str) -> Result<(), Error> {
    rustix::fs::mkdir(name, Mode::RWXU).map_err(step("make a mount point"))
}

fn open_dir(name: &str) -> Result<OwnedFd, Error> {
    rustix::fs::open(name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(step("open a mount point"))
}

/// Allocates numbers for names: always the smallest free one, because small numbers have short names.
#[derive(Debug, Default)]
struct Names {
    next: u32,
    free: BTreeSet<u32>,
}

impl Names {
    fn take(&mut self) -> u32 {
        self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    fn give_back(&mut self, index: u32) {
        self.free.insert(index);
    }
}

const DIGITS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The name of a number, the shortest first: 62 of one character, then 3844 of two, …
fn name(mut index: u32) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from(DIGITS[index as usize % DIGITS.len()]));
        index /= 62;
        if index == 0 {
            return digits.into_iter().rev().collect();
        }
        index -= 1;
    }
}

fn index(name: &str) -> u32 {
    let digit = |byte| DIGITS.iter().position(|digit| *digit == byte).unwrap_or_default() as u32;
    name.bytes()
        .fold(None, |index: Option<u32>, byte| Some(index.map_or(0, |index| (index + 1) * 62) + digit(byte)))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
