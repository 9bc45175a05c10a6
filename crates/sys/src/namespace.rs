//! Namespaces made ahead of the processes that will live in them.
//!
//! # Who owns a container's user namespace
//!
//! The kernel charges inotify instances and watches, fanotify groups and marks, namespaces, and the amounts behind
//! RLIMIT_NPROC, RLIMIT_MSGQUEUE, RLIMIT_SIGPENDING and RLIMIT_MEMLOCK once in the user namespace of the process that
//! uses them, and once more in each namespace above it, there to the *owner* of the namespace below (`inc_ucount`,
//! kernel/ucount.c). The owner is the effective user id of the process that created the namespace (`create_user_ns`).
//! If root created it, what one container uses up would be missing in all others and for the host's own root. So each
//! container's user namespace, and its network namespace with it, is created by a thread whose effective id is a
//! reserved one: unique to the container, and not assigned to any user.
//!
//! A process has all capabilities over a user namespace if its own user namespace is the parent of that one and its
//! effective id is the owner's (`cap_capable_helper`, security/commoncap.c). With Garden's common mapping every
//! container can take any id of the host except 0 and its root's, the owners' ids included. It gains nothing from
//! that:
//!
//! - The parent is the server's user namespace, which no process of an unprivileged container is in. For a process in
//!   a container's user namespace the kernel checks only its capability sets (`ns == cred->user_ns`); over the
//!   namespace of another container, which is on the same level, it has no capabilities, whatever its id
//!   (`ns->level <= cred_ns->level`). It cannot create a namespace below its own ([`BOUNDS`]).
//! - What it uses up is charged to its own namespace's owner, not to the owner whose id it has assumed: a count
//!   belongs to a pair of namespace and id.
//! - What the kernel counts for an id alone (`struct user_struct`: pipe pages, epoll watches, keys, descriptors in
//!   flight) is never used under an owner's id: that is an *effective* id only for the one call that creates the
//!   namespaces.
//! - Signals, ptrace, priorities and other users' files depend on ids as well, but no process keeps an owner's id and
//!   no file is given one. The process that holds the namespaces until they are opened has it as an effective id for
//!   about a millisecond, is in the server's pid namespace, and shares the memory of the server, which is undumpable
//!   from then on: an owner's id alone does not suffice to trace it (`__ptrace_may_access`).
//!
//! A process in the *server's* user namespace with an owner's id would have all capabilities over one container.
//! Hence the caller must choose ids that the host gives to nobody. A privileged container is in the server's user
//! namespace, and its root is root there anyway.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::mount::{self, MountAttrFlags};
use rustix::event::{PollFd, PollFlags};
use rustix::mount::MountPropagationFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// One line of a uid or gid map (`user_namespaces(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// Number of ids.
    pub size: u32,
}

/// A user namespace and a network namespace created inside it: one created outside would deny the container port 80,
/// ping and sysfs.
#[derive(Debug)]
pub struct Pair {
    /// `None` for a privileged container, whose ids are the host's.
    pub user: Option<OwnedFd>,
    /// Its loopback interface is up.
    pub network: OwnedFd,
    /// The sysfs of the network namespace, a detached read-only mount; `None` where only a process inside may mount
    /// it. The kernel looks for it among those of all network namespaces (`sget_fc` in fs/super.c), so it is made ahead.
    pub sysfs: Option<OwnedFd>,
}

/// Gives the calling thread, and those that it starts from then on, a private mount namespace, root and working
/// directory: no other process sees its mounts, and they are unmounted when the last of these threads has ended,
/// however that happens.
///
/// The new namespace is a copy and keeps everything alive that is mounted in it: mounts that are not needed should be
/// unmounted at once ([`unmount_lazily`](crate::mount::unmount_lazily)).
///
/// # Errors
/// The kernel's: EPERM without CAP_SYS_ADMIN.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: only the mount namespace and, with it, root and working directory become the thread's own; the table
    // of descriptors stays shared, which is what makes the call unsafe in general.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", private)?)
}

/// Gives the calling thread a mount namespace, root and working directory of its own, and a pid namespace to the
/// processes that it starts from then on: the first of them is the init of that namespace, and all of them are killed
/// when it ends. Unmounts outside still reach the mounts inside, so that the copy keeps no disk busy; mounts made inside
/// do not leave it.
///
/// The thread can start no other threads afterwards (EINVAL of clone(2)).
///
/// # Errors
/// The kernel's: EPERM without CAP_SYS_ADMIN.
pub fn own_mounts_and_processes() -> io::Result<()> {
    // SAFETY: as in `own_mounts`; the pid namespace concerns only processes that are started later.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWPID) }?;
    let from_outside = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", from_outside)?)
}

/// The user namespace that owns a namespace (`NS_GET_USERNS`, ioctl_ns(2)).
///
/// # Errors
/// The kernel's: EPERM if it is neither the caller's own nor one below that.
pub fn owner(namespace: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes no argument.
    let fd = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), libc::_IO(0xb7, 1)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens the network namespace that a file is, found with `O_PATH`; `None` if it is something else. Nothing but a
/// namespace is opened: to open a device can have an effect.
///
/// # Errors
/// The kernel's, from `fstatfs(2)` or `open(2)`.
pub fn open_network(found: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    /// `NSFS_MAGIC` of linux/magic.h.
    const NSFS: u32 = 0x6e73_6673;
    if rustix::fs::fstatfs(found)?.f_type as u32 != NSFS {
        return Ok(None);
    }
    let file = OwnedFd::from(fs::File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?);
    // SAFETY: `NS_GET_NSTYPE` (ioctl_ns(2)) takes no argument, and the file is a namespace.
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::_IO(0xb7, 3)) };
    Ok(Some(file).filter(|_| kind == libc::CLONE_NEWNET))
}

const STACK: usize = 16 * 1024;

/// Sleeps until the parent, whose pid is given, dies: this process has all of the parent's descriptors open.
extern "C" fn pause_forever(parent: *mut libc::c_void) -> libc::c_int {
    die_with(parent as usize);
    loop {
        // SAFETY: pause takes nothing and touches no memory.
        unsafe { libc::pause() };
    }
}

fn die_with(parent: usize) {
    // SAFETY: numbers only. These calls do not fail, so the parent's errno, which may be shared, is not touched.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if libc::getppid() as usize != parent {
            libc::_exit(0);
        }
    }
}

/// The limits of a container's user namespace (`namespaces(7)`, `user_namespaces(7)`), for all its users. The first
/// must be set wherever the file exists: in a user namespace of its own a process has all capabilities, and the parts
/// of the kernel that require them are where most of its vulnerabilities have been. No network or time namespaces are
/// created after this either. The other kinds are: once by a launch, and mount namespaces by each pea. The container
/// cannot create them without CAP_SYS_ADMIN. Instances of inotify and fanotify are limited by the host's own limits,
/// for each owner.
pub const BOUNDS: [(&CStr, &CStr); 3] = [
    (c"/proc/sys/user/max_user_namespaces", c"0"),
    (c"/proc/sys/user/max_net_namespaces", c"0"),
    (c"/proc/sys/user/max_time_namespaces", c"0"),
];

/// How many user namespaces are made through one instance of procfs, see [`Procfs`].
const USES: u32 = 64;

/// The instance of procfs whose `sys/user` new user namespaces are limited through. Of each file there the dentry cache
/// keeps one entry for every user namespace, all under the same name in the same directory, and a look-up compares
/// them one by one (`proc_sys_compare` in fs/proc/proc_sysctl.c): in the host's /proc the hundredth container would
/// cost more than the first. Each instance has entries of its own, so it is replaced now and then.
struct Procfs {
    /// Detached; `None`: procfs cannot be mounted here, and the host's is used.
    mount: Option<Arc<OwnedFd>>,
    /// How often it may still be used.
    left: u32,
}

static PROCFS: Mutex<Procfs> = Mutex::new(Procfs { mount: None, left: 0 });

impl Procfs {
    /// Returns the present instance.
    fn instance() -> Option<Arc<OwnedFd>> {
        let mut this = PROCFS.lock().unwrap_or_else(PoisonError::into_inner);
        if this.left == 0 {
            let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC;
            *this = Self { mount: mount::fs_mount("proc", &[], &[], attrs).ok().map(Arc::new), left: USES };
        }
        this.left -= 1;
        this.mount.clone()
    }
}

/// Argument of [`bound_and_pause`].
struct Order {
    parent: usize,
    /// An instance of procfs, or -1.
    proc: libc::c_int,
    /// Receives two bytes: the index in [`BOUNDS`] of what failed (or their number), and the errno.
    report: libc::c_int,
}

/// Sets the limits of its user namespace, which only a process in it can, reports the result, and then pauses.
extern "C" fn bound_and_pause(order: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the parent keeps the order in place until it has read the report. Of the memory shared with it only
    // errno is written, by calls that fail; the parent's thread looks at errno meanwhile after no call that can fail
    // (rustix returns errors without it, and all signals are blocked). `syscall` writes nothing else; static strings
    // and our own stack are passed.
    unsafe {
        let order = &*order.cast::<Order>();
        die_with(order.parent);
        let mut report = [u8::try_from(BOUNDS.len()).unwrap_or(u8::MAX), 0];
        for (at, (path, value)) in BOUNDS.iter().enumerate() {
            if let Err(errno) = write_number(order.proc, path, value)
                // This kernel has no such limit, or no namespaces of that kind.
                && errno != libc::ENOENT
            {
                report = [at as u8, errno as u8];
                break;
            }
        }
        libc::syscall(libc::SYS_write, order.report, report.as_ptr(), report.len());
    }
    pause_forever(own_parent())
}

/// The pid of the calling process's parent, as the argument of a child.
fn own_parent() -> *mut libc::c_void {
    // SAFETY: takes nothing.
    std::ptr::without_provenance_mut(unsafe { libc::getppid() } as usize)
}

/// Writes to a file of /proc/sys with plain system calls, in the instance `proc` of procfs unless that is -1. Returns
/// the errno on failure.
///
/// # Safety
/// As in [`bound_and_pause`]: errno is written. The path begins with `/proc/`.
unsafe fn write_number(proc: libc::c_int, path: &CStr, value: &CStr) -> Result<(), libc::c_int> {
    // SAFETY: both strings are static and end in NUL, and the path is longer than what is skipped of it; the
    // descriptor is ours.
    unsafe {
        let skipped = if proc < 0 { 0 } else { c"/proc/".count_bytes() };
        let fd = libc::syscall(
            libc::SYS_openat,
            proc,
            path.as_ptr().add(skipped),
            libc::O_WRONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW,
            0,
        );
        if fd < 0 {
            return Err(*libc::__errno_location());
        }
        let text = value.to_bytes();
        let written = libc::syscall(libc::SYS_write, fd, text.as_ptr(), text.len());
        let result = if written < 0 { Err(*libc::__errno_location()) } else { Ok(()) };
        libc::syscall(libc::SYS_close, fd);
        result
    }
}

fn own_pid() -> *mut libc::c_void {
    std::ptr::without_provenance_mut(std::process::id() as usize)
}

/// A process that only pauses, in new namespaces: its pid names them until they are opened; it is killed on drop.
struct Placeholder {
    pid: libc::pid_t,
    _stack: Vec<u8>,
}

impl Placeholder {
    fn new(flags: libc::c_int) -> io::Result<Self> {
        let _quiet = Quiet::new();
        Self::run(flags, pause_forever, own_pid())
    }

    /// Starts it in a user namespace (`flags` must have CLONE_NEWUSER) that belongs to `owner` and is limited to
    /// [`BOUNDS`].
    fn owned(flags: libc::c_int, owner: u32) -> io::Result<Self> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let proc = Procfs::instance();
        let mut order = Order {
            parent: std::process::id() as usize,
            proc: proc.as_ref().map_or(-1, AsRawFd::as_raw_fd),
            report: writer.as_raw_fd(),
        };
        // Held until the report has arrived: see `bound_and_pause`.
        let _quiet = Quiet::new();
        let held = as_nobody(owner, || Self::run(flags, bound_and_pause, (&raw mut order).cast()))??;
        // The pipe has no end while this process has its writing end open, so the other one's death is waited for as
        // well.
        let death = held.pidfd()?;
        let mut either = [PollFd::new(&reader, PollFlags::IN), PollFd::new(&death, PollFlags::IN)];
        rustix::event::poll(&mut either, None)?;
        let reported = !either[0].revents().is_empty();
        let mut report = [0u8; 2];
        // Such a short write to a pipe is atomic.
        let got = if reported { rustix::io::read(&reader, &mut report)? } else { 0 };
        match (got, BOUNDS.get(usize::from(report[0]))) {
            (2, None) => Ok(held),
            (2, Some((path, _))) => {
                let error = io::Error::from_raw_os_error(report[1].into());
                let path = path.to_string_lossy();
                Err(io::Error::new(error.kind(), format!("{path} of a new user namespace: {error}")))
            }
            _ => Err(io::Error::other("the process that made a user namespace was killed")),
        }
    }

    /// Must run with all signals blocked ([`Quiet`]): the child shares our memory (no page tables to copy), and with
    /// it our signal handlers and errno, so that no handler may run in it, and `pause` never returns. It shares our
    /// descriptors as well: there may be thousands, which would be copied at its start and closed at its end.
    fn run(
        flags: libc::c_int,
        body: extern "C" fn(*mut libc::c_void) -> libc::c_int,
        argument: *mut libc::c_void,
    ) -> io::Result<Self> {
        let mut stack = vec![0u8; STACK];
        // SAFETY: the child runs only `body`, one of the two above, on `stack`, which lives until the child is reaped
        // in `drop`.
        let pid = unsafe {
            let top = stack.as_mut_ptr().add(STACK - 64);
            let top = top.sub(top as usize % 16);
            libc::clone(body, top.cast(), flags | libc::CLONE_VM | libc::CLONE_FILES, argument)
        };
        if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(Self { pid, _stack: stack }) }
    }

    /// A descriptor that becomes readable when the process ends (`pidfd_open(2)`).
    fn pidfd(&self) -> io::Result<OwnedFd> {
        let pid = rustix::process::Pid::from_raw(self.pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
    }

    fn open(&self, what: &str) -> io::Result<OwnedFd> {
        Ok(fs::File::open(format!("/proc/{}/ns/{what}", self.pid))?.into())
    }

    /// Writes the id maps and opens the process's user namespace.
    fn mapped(&self, uids: &[IdMap], gids: &[IdMap]) -> io::Result<OwnedFd> {
        for (file, maps) in [("uid_map", uids), ("gid_map", gids)] {
            let line = |m: &IdMap| format!("{} {} {}\n", m.inside, m.outside, m.size);
            let text: String = maps.iter().map(line).collect();
            if !text.is_empty() {
                fs::write(format!("/proc/{}/{file}", self.pid), text)?;
            }
        }
        self.open("user")
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        // SAFETY: `pid` is our unreaped child (made without an exit signal, hence __WALL), so the number
        // cannot have been given to anyone else.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WALL);
        }
    }
}

/// Blocks all signals in the calling thread while it lives.
struct Quiet {
    before: libc::sigset_t,
    _thread: std::marker::PhantomData<*const ()>,
}

impl Quiet {
    fn new() -> Self {
        // SAFETY: plain sets on our stack; the calls do not fail with these arguments.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
            Self { before, _thread: std::marker::PhantomData }
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: restores the former set, in the same thread (this value cannot leave it).
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

/// `struct __user_cap_header_struct` and twice `struct __user_cap_data_struct` of capset(2), version 3.
#[repr(C)]
struct Capabilities {
    version: u32,
    pid: libc::c_int,
    sets: [[u32; 3]; 2],
}

impl Capabilities {
    /// Reads the capabilities of the calling thread.
    fn get() -> io::Result<Self> {
        let mut own = Self { version: 0x2008_0522, pid: 0, sets: [[0; 3]; 2] };
        // SAFETY: header and two records, as version 3 prescribes.
        check(unsafe { libc::syscall(libc::SYS_capget, &raw mut own, own.sets.as_mut_ptr()) })?;
        Ok(own)
    }

    fn set(&mut self) -> io::Result<()> {
        // SAFETY: as above.
        check(unsafe { libc::syscall(libc::SYS_capset, &raw mut *self, self.sets.as_ptr()) })
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the process undumpable: where `fs.suid_dumpable` is 1 a change of credentials leaves it dumpable.
fn undumpable() -> io::Result<()> {
    // SAFETY: numbers only.
    unsafe {
        if libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) == 1 {
            check(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0).into())?;
        }
    }
    Ok(())
}

/// Runs `act` with the effective user and group id `id`, which the file system ids follow, and with the former
/// capabilities: some kernels let nobody else create user namespaces (Debian's `kernel.unprivileged_userns_clone`,
/// AppArmor's `apparmor_restrict_unprivileged_userns`).
///
/// Only the calling thread gets these ids, because the system calls are made directly; the C library would change all
/// threads. Real and saved ids stay, so the thread can always change back. If that fails the process ends: a thread
/// that continued under another id would do harm.
///
/// A change of credentials makes a process undumpable, subject to `fs.suid_dumpable` (`commit_creds`), and resets the
/// thread's parent-death signal. The process stays undumpable, see the top of this file: root can read its /proc all
/// the same.
fn as_nobody<T>(id: u32, act: impl FnOnce() -> T) -> io::Result<T> {
    const KEEP: u32 = u32::MAX;
    if id == KEEP {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: these take nothing, and do not fail.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    let mut before = Capabilities::get()?;
    let mut enter = || {
        // SAFETY: numbers only. The group first: that needs CAP_SETGID.
        unsafe {
            check(libc::syscall(libc::SYS_setresgid, KEEP, id, KEEP))?;
            check(libc::syscall(libc::SYS_setresuid, KEEP, id, KEEP))?;
        }
        before.set()?;
        undumpable()
    };
    let result = enter().map(|()| act());
    // SAFETY: numbers only. The user first: with it CAP_SETGID comes back, if it was lost.
    let back = unsafe {
        check(libc::syscall(libc::SYS_setresuid, KEEP, uid, KEEP))
            .and_then(|()| check(libc::syscall(libc::SYS_setresgid, KEEP, gid, KEEP)))
            .and_then(|()| before.set())
    };
    // Changing back was a change of credentials as well.
    if let Err(error) = back.and_then(|()| undumpable()) {
        crate::stderr::line(&format!("a thread cannot return to user {uid} and group {gid}: {error}"));
        std::process::abort();
    }
    result
}

/// Makes a pair; an empty map means privileged (no user namespace, and so no owner). The user namespace belongs to
/// `owner` (user and group id), which must not be in use by anybody, and is limited to [`BOUNDS`].
///
/// # Errors
/// The kernel's, from `clone(2)`, the map files or [`BOUNDS`]; EINVAL: the caller's namespace does not map the
/// owner's id.
pub fn pair(uids: &[IdMap], gids: &[IdMap], owner: u32) -> io::Result<Pair> {
    let privileged = uids.is_empty();
    let holder = if privileged {
        Placeholder::new(libc::CLONE_NEWNET)?
    } else {
        Placeholder::owned(libc::CLONE_NEWUSER | libc::CLONE_NEWNET, owner)?
    };
    let user = if privileged { None } else { Some(holder.mapped(uids, gids)?) };
    let network = holder.open("net")?;
    drop(holder);
    let sysfs = in_network(network.as_fd(), || {
        set_up(c"lo")?;
        Ok(own_sysfs().ok())
    })?;
    Ok(Pair { user, network, sysfs })
}

impl Pair {
    /// Puts another network namespace in the place of the pair's own, which ends. Nothing in it is changed.
    ///
    /// The pair's user namespace does not own it: in it, root of the container has no capability, and cannot mount its
    /// sysfs (`sysfs_init_fs_context` in fs/sysfs/mount.c), which is therefore mounted here.
    ///
    /// # Errors
    /// The kernel's, from `setns(2)` or the mount.
    pub fn with_network(self, network: OwnedFd) -> io::Result<Self> {
        let sysfs = sysfs_of(network.as_fd())?;
        Ok(Self { network, sysfs: Some(sysfs), ..self })
    }
}

/// Mounts the sysfs of a network namespace: a detached read-only mount.
///
/// # Errors
/// The kernel's, from `setns(2)` or the mount: EPERM without CAP_SYS_ADMIN in the user namespace that owns it.
pub fn sysfs_of(network: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    in_network(network, || own_sysfs().map_err(io::Error::other))
}

/// Mounts the sysfs of the calling thread's network namespace.
fn own_sysfs() -> Result<OwnedFd, mount::Error> {
    let attrs = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mount::fs_mount("sysfs", &[], &[], attrs)
}

/// Makes a user namespace alone. With empty maps none are written, which needs no privilege; no id is valid in it
/// then.
///
/// # Errors
/// The kernel's: ENOSPC when `user.max_user_namespaces` is reached, EPERM where only root may.
pub fn user(uids: &[IdMap], gids: &[IdMap]) -> io::Result<OwnedFd> {
    Placeholder::new(libc::CLONE_NEWUSER)?.mapped(uids, gids)
}

/// Runs `act` in a network namespace, on a thread that is started for it and ends with it: a thread that others use
/// must never be in a namespace other than theirs, not even when `act` panics. Descriptors that `act` opens stay in
/// the namespace. The thread costs about 30 µs.
///
/// # Errors
/// The kernel's, from `clone(2)` or `setns(2)`, and those of `act`.
pub fn in_network<T: Send>(
    network: BorrowedFd<'_>,
    act: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("in a network".into()).spawn_scoped(scope, || {
            move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
            act()
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn set_up(name: &CStr) -> io::Result<()> {
    // SAFETY: plain socket call; the descriptor is owned at once.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: `ifreq` is plain data; SIOC[GS]IFFLAGS read and write its name and flags only (netdevice(7)).
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
            *to = *from as libc::c_char;
        }
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes the mount namespace that all keepers share: an empty tmpfs with one complete, writable, default-atime proc
/// and sysfs (without them the kernel refuses to mount new instances in a user namespace), and an empty `/r` to
/// attach root file systems on.
///
/// # Errors
/// The kernel's; the helper process reports which step failed.
pub fn nursery() -> io::Result<OwnedFd> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let parent = own_pid();
    // SAFETY: the child makes only system calls on static data between fork and _exit; it allocates nothing,
    // so locks held by other threads at the time of the fork do not matter.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        let step = build_nursery();
        // SAFETY: the step's number is one byte of our own stack; afterwards the child waits to be killed.
        unsafe {
            libc::write(writer.as_raw_fd(), (&raw const step).cast(), 1);
        }
        pause_forever(parent);
    }
    drop(writer);
    let mut step = [0u8; 1];
    let got = rustix::io::read(&reader, &mut step);
    let opened = fs::File::open(format!("/proc/{pid}/ns/mnt"));
    // SAFETY: `pid` is our unreaped child.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    match (got, step[0]) {
        (Ok(1), 0) => Ok(opened?.into()),
        (_, step) => {
            Err(io::Error::other(format!("making the keepers' mount namespace failed at step {step}")))
        }
    }
}

/// Returns 0, or the number of the step that failed. Runs between fork and exit: no allocation.
fn build_nursery() -> u8 {
    let none = std::ptr::null::<libc::c_char>();
    let mount = |source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong| {
        // SAFETY: all strings are static and end in NUL.
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, none.cast()) == 0 }
    };
    // SAFETY: system calls on static strings only.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) != 0 {
            return 1;
        }
        if !mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE) {
            return 2;
        }
        if !mount(c"nursery", c"/tmp", c"tmpfs", 0) || libc::chdir(c"/tmp".as_ptr()) != 0 {
            return 3;
        }
        for dir in [c"proc", c"sys", c"r"] {
            if libc::mkdir(dir.as_ptr(), 0o755) != 0 {
                return 4;
            }
        }
        if !mount(c"proc", c"proc", c"proc", 0) || !mount(c"sysfs", c"sys", c"sysfs", 0) {
            return 5;
        }
        if libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) != 0 {
            return 6;
        }
        if libc::umount2(c".".as_ptr(), libc::MNT_DETACH) != 0 || libc::chdir(c"/".as_ptr()) != 0 {
            return 7;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The owner's uid, `NS_GET_OWNER_UID` (ioctl_ns(2)).
    fn owner_id(user: &OwnedFd) -> u32 {
        let mut uid: libc::uid_t = 0;
        // SAFETY: the call writes one id.
        let result = unsafe { libc::ioctl(user.as_raw_fd(), libc::_IO(0xb7, 4), &raw mut uid) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        uid
    }

    fn status() -> Vec<String> {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let wanted = ["Uid:", "Gid:", "Groups:", "Cap", "SigBlk:"];
        let lines = status.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name)));
        lines.map(str::to_owned).collect()
    }

    fn maps() -> [IdMap; 1] {
        [IdMap { inside: 0, outside: 100_000, size: 65_536 }]
    }

    #[test]
    fn a_pair_is_its_owners_and_the_thread_stays_who_it_was() {
        const OWNER: u32 = 0x8000_1234;
        let before = status();
        let pair = pair(&maps(), &maps(), OWNER).unwrap();
        assert_eq!(owner_id(pair.user.as_ref().unwrap()), OWNER);
        assert_eq!(status(), before);
        // An id that is not valid.
        let error = super::pair(&maps(), &maps(), u32::MAX).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(status(), before);
        assert_eq!(owner_id(&user(&maps(), &maps()).unwrap()), 0);
        // The process's own /proc files stay readable.
        // SAFETY: numbers only.
        assert_ne!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) }, 1);
        fs::read_to_string("/proc/self/environ").unwrap();
        fs::read_dir("/proc/self/fd").unwrap().next().unwrap().unwrap();
    }

    #[test]
    fn a_pairs_sysfs_is_that_of_its_network_and_read_only() {
        for (maps, owner) in [(&maps()[..], 0x8000_1236), (&[], 0)] {
            let sysfs = pair(maps, maps, owner).unwrap().sysfs.unwrap();
            let flags =
                rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            let links = rustix::fs::openat(&sysfs, "class/net", flags, rustix::fs::Mode::empty()).unwrap();
            let names = rustix::fs::Dir::read_from(links).unwrap().map(|entry| entry.unwrap());
            let names: Vec<String> =
                names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            // An interface or a driver's own file, but none of the host's interfaces.
            assert!(
                names.iter().all(|name| ["lo", ".", "..", "bonding_masters"].contains(&&**name)),
                "{names:?}"
            );
            let flags = rustix::fs::fstatvfs(&sysfs).unwrap().f_flag;
            assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        }
    }

    #[test]
    fn a_pair_takes_another_network() {
        let other = pair(&[], &[], 0).unwrap().network;
        let number = |file: &OwnedFd| rustix::fs::fstat(file).unwrap().st_ino;
        let wanted = number(&other);
        let changed = pair(&maps(), &maps(), 0x8000_1238).unwrap().with_network(other).unwrap();
        assert_eq!(number(&changed.network), wanted);
        assert!(changed.user.is_some() && changed.sysfs.is_some());
        assert_eq!(number(&open_network(changed.network.as_fd()).unwrap().unwrap()), wanted);
        assert!(open_network(changed.user.unwrap().as_fd()).unwrap().is_none());
        for other in ["/dev/null", "/proc/self/ns/uts"] {
            assert!(open_network(fs::File::open(other).unwrap().as_fd()).unwrap().is_none(), "{other}");
        }
    }

    #[test]
    fn the_instance_of_procfs_is_replaced() {
        let first = Procfs::instance().unwrap();
        let again: Vec<_> = (0..USES).map(|_| Procfs::instance().unwrap()).collect();
        assert!(again.iter().any(|instance| !Arc::ptr_eq(instance, &first)));
        // What is written through any of them holds: see the next test.
        let pair = pair(&maps(), &maps(), 0x8000_1237).unwrap();
        assert!(pair.user.is_some());
    }

    #[test]
    fn no_user_namespace_can_be_made_in_a_pairs_one() {
        let pair = pair(&maps(), &maps(), 0x8000_1235).unwrap();
        let user = pair.user.unwrap();
        // SAFETY: the child makes system calls on numbers between fork and _exit.
        let status = unsafe {
            let pid = libc::fork();
            assert!(pid >= 0);
            if pid == 0 {
                let entered = libc::setns(user.as_raw_fd(), libc::CLONE_NEWUSER);
                let make =
                    |kind: libc::c_int| match libc::syscall(libc::SYS_unshare, libc::c_long::from(kind)) {
                        0 => 0,
                        _ => *libc::__errno_location(),
                    };
                let made = [make(libc::CLONE_NEWUSER), make(libc::CLONE_NEWNET)];
                // A launch creates these.
                let rest = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWPID;
                let rest = libc::unshare(rest | libc::CLONE_NEWCGROUP);
                libc::_exit(i32::from((entered, made, rest) != (0, [libc::ENOSPC; 2], 0)));
            }
            let mut status = 0;
            libc::waitpid(pid, &raw mut status, 0);
            status
        };
        assert_eq!(status, 0);
    }
}
