//! Namespaces made ahead of the processes that will live in them.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

/// One line of a uid or gid map (`user_namespaces(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub size: u32,
}

/// A user namespace and a network namespace made inside it: one made outside would deny the container port
/// 80, ping and sysfs.
#[derive(Debug)]
pub struct Pair {
    /// `None`: privileged, ids are the host's.
    pub user: Option<OwnedFd>,
    /// Loopback is up.
    pub network: OwnedFd,
}

/// Gives the calling thread, and those it starts from then on, a mount namespace of their own, with root and working
/// directory of their own: what they mount nobody else sees, and it is unmounted when the last of them has ended,
/// however that happens.
///
/// The new namespace is a copy and keeps alive whatever is mounted in it: what is not needed should be taken off at
/// once ([`unmount_lazily`](crate::mount::unmount_lazily)).
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

const STACK: usize = 16 * 1024;

/// Ends with the process whose pid is given, which made it: it holds copies of all its descriptors.
extern "C" fn pause_forever(parent: *mut libc::c_void) -> libc::c_int {
    // SAFETY: numbers only. These calls do not fail, so the maker's errno, which we may share, is not touched.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if libc::getppid() as usize != parent as usize {
            libc::_exit(0);
        }
    }
    loop {
        // SAFETY: pause takes nothing and touches no memory.
        unsafe { libc::pause() };
    }
}

fn own_pid() -> *mut libc::c_void {
    std::ptr::without_provenance_mut(std::process::id() as usize)
}

/// A process that only pauses, in new namespaces: named by pid while we open what it holds, killed on drop.
struct Placeholder {
    pid: libc::pid_t,
    _stack: Vec<u8>,
}

impl Placeholder {
    fn new(flags: libc::c_int) -> io::Result<Self> {
        let mut stack = vec![0u8; STACK];
        // The child shares our memory (no page tables to copy), and with it our signal handlers and errno: it is
        // born with every signal blocked, so that no handler runs in it and `pause` never returns.
        // SAFETY: it runs only `pause_forever`, on `stack`, which lives until it has been reaped in `drop`.
        let (pid, error) = unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before);
            let top = stack.as_mut_ptr().add(STACK - 64);
            let top = top.sub(top as usize % 16);
            let pid = libc::clone(pause_forever, top.cast(), flags | libc::CLONE_VM, own_pid());
            let error = io::Error::last_os_error();
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
            (pid, error)
        };
        if pid < 0 { Err(error) } else { Ok(Self { pid, _stack: stack }) }
    }

    fn open(&self, what: &str) -> io::Result<OwnedFd> {
        Ok(fs::File::open(format!("/proc/{}/ns/{what}", self.pid))?.into())
    }

    /// Its user namespace, once the ids are mapped.
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

/// Make a pair; an empty map means privileged (no user namespace).
///
/// # Errors
/// The kernel's, from `clone(2)` or the map files.
pub fn pair(uids: &[IdMap], gids: &[IdMap]) -> io::Result<Pair> {
    let privileged = uids.is_empty();
    let user_flag = if privileged { 0 } else { libc::CLONE_NEWUSER };
    let holder = Placeholder::new(user_flag | libc::CLONE_NEWNET)?;
    let user = if privileged { None } else { Some(holder.mapped(uids, gids)?) };
    let network = holder.open("net")?;
    drop(holder);
    raise_loopback(&network)?;
    Ok(Pair { user, network })
}

/// Make a user namespace alone. With empty maps none are written, which needs no privilege; no id is valid in it then.
///
/// # Errors
/// The kernel's: ENOSPC when `user.max_user_namespaces` is reached, EPERM where only root may.
pub fn user(uids: &[IdMap], gids: &[IdMap]) -> io::Result<OwnedFd> {
    Placeholder::new(libc::CLONE_NEWUSER)?.mapped(uids, gids)
}

/// Bring `lo` up in a network namespace. The calling thread visits it and comes back.
fn raise_loopback(network: &OwnedFd) -> io::Result<()> {
    let home = fs::File::open("/proc/thread-self/ns/net")?;
    let enter = |fd: libc::c_int| {
        // SAFETY: setns changes only this thread's network namespace.
        if unsafe { libc::setns(fd, libc::CLONE_NEWNET) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    enter(network.as_raw_fd())?;
    let result = set_up(c"lo");
    enter(home.as_raw_fd()).expect("a thread can always return to its own network namespace");
    result
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

/// The mount namespace that all keepers share: an empty tmpfs with one whole, writable, default-atime proc
/// and sysfs (without them the kernel refuses a user namespace its own), and an empty `/r` to attach root
/// file systems on.
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

/// 0, or the number of the step that failed. Runs between fork and exit: no allocation.
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
