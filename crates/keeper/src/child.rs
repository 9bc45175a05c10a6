//! The clone path: from the keeper on the host to a process inside, in the one order that works.
//!
//! cgroups → rlimits → network namespace → user namespace → ids 0 (before that, files land on disk as host
//! root without an error) → the other namespaces → a second clone whose parent is the keeper.
//!
//! **Descriptors.** A child is a copy of the keeper and so holds whatever the keeper holds: host directories, mounts, other
//! processes' pipes. Each of them is a way out for whoever chooses a path (`/proc/self/fd/8/../..`), so a child closes all
//! but what its own next steps need, by number, whatever else there is: right after its clone, after it has joined its
//! namespaces, and before it touches the first path of the container, when standard input, output, error and the report
//! pipe are all that may be left.
#![allow(unsafe_code)]

use crate::report::{Report, Tag};
use crate::rights;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use wardian_runtime::rights::Rights;
use wardian_runtime::wire::Placement;

/// Result of one step of a child.
pub type Outcome<T> = Result<T, Stop>;

/// The failure that ends a child.
#[derive(Debug)]
pub struct Stop {
    /// The program does not exist; the client gets an error of that kind.
    pub not_found: bool,
    /// The error text.
    pub text: String,
}

impl From<String> for Stop {
    fn from(text: String) -> Self {
        Self { not_found: false, text }
    }
}

/// Turns an errno into the failure of `step`.
pub fn failed<E: std::fmt::Display>(step: impl std::fmt::Display) -> impl FnOnce(E) -> Stop {
    move |error| Stop { not_found: false, text: format!("{step}: {error}") }
}

fn check(result: libc::c_long, step: &str) -> Outcome<()> {
    if result < 0 { Err(failed(step)(io::Error::last_os_error())) } else { Ok(()) }
}

/// Which cgroups and namespaces a child joins or creates.
#[derive(Debug)]
pub struct Way<'a> {
    /// Descriptors that the body needs besides the report pipe; all others are closed before the body runs.
    pub keep: &'a [RawFd],
    /// The child's cgroups.
    pub place: &'a Placement<OwnedFd>,
    /// The child's rights. The clone path sets their resource limits only.
    pub rights: &'a Rights,
    /// The namespaces of the container.
    pub into: Namespaces<'a>,
}

/// The namespaces of a child.
#[derive(Debug)]
pub enum Namespaces<'a> {
    /// The user and network namespace of a prepared pair are joined, all other kinds are created.
    New {
        /// User namespace.
        user: Option<BorrowedFd<'a>>,
        /// Network namespace.
        network: BorrowedFd<'a>,
    },
    /// All namespaces of the container's pid 1 are joined.
    Join {
        /// Pidfd of pid 1.
        pidfd: BorrowedFd<'a>,
        /// Whether the container has a user namespace.
        user: bool,
        /// Whether the child gets a mount namespace of its own, copied from the keeper's, as a pea does.
        own_mounts: bool,
    },
}

/// clone3(2); libc's constant of this name is too narrow.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of clone3(2), up to the last field that is used here.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Starts `body` inside. Returns the pid of the first stage, which reports the pid of the process and exits.
pub fn start(
    way: &Way<'_>,
    report: &Report,
    body: impl FnOnce(&Report) -> Outcome<std::convert::Infallible>,
) -> io::Result<i32> {
    let mut args = CloneArgs { exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if let Some(dir) = &way.place.v2_dir {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = dir.as_raw_fd() as u64;
    }
    // SAFETY: no stack and no CLONE_VM: the child goes on with a copy of our memory, as after fork. The keeper's other
    // thread is parked (see `parked`): it holds no lock, so ordinary code may run in the child.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        0 => {
            let stop = match first_stage(way, report, body) {
                Ok(()) => 0,
                Err(stop) => {
                    report.send(if stop.not_found { Tag::NotFound } else { Tag::Error }, &stop.text);
                    127
                }
            };
            exit(stop)
        }
        pid if pid > 0 => Ok(pid as i32),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends a child that does not exec.
pub fn exit(code: i32) -> ! {
    // SAFETY: ends this process without running the keeper's destructors a second time.
    unsafe { libc::_exit(code) }
}

fn first_stage(
    way: &Way<'_>,
    report: &Report,
    body: impl FnOnce(&Report) -> Outcome<std::convert::Infallible>,
) -> Outcome<()> {
    undumpable();
    let namespaces: &[RawFd] = match &way.into {
        Namespaces::New { user: Some(user), network } => &[user.as_raw_fd(), network.as_raw_fd()],
        Namespaces::New { user: None, network } => &[network.as_raw_fd()],
        Namespaces::Join { pidfd, .. } => &[pidfd.as_raw_fd()],
    };
    // The descriptor of a v2 cgroup's directory is not kept: the clone (CLONE_INTO_CGROUP) has placed this child
    // already.
    let mut keep = [way.keep, &[report.number()]].concat();
    let own = keep.len();
    keep.extend(namespaces.iter().copied().chain(way.place.v1_procs.iter().map(AsRawFd::as_raw_fd)));
    close_all_but(&keep)?;
    be_mortal()?;
    if matches!(way.into, Namespaces::New { .. }) {
        spare();
    }
    for procs in &way.place.v1_procs {
        rustix::io::write(procs, b"0").map_err(failed("enter cgroup"))?;
    }
    rights::bound(way.rights, report)?;
    // SAFETY: these calls take numbers and live descriptors, and change this process only; the second clone
    // copies our memory (no CLONE_VM), and this child has one thread.
    unsafe {
        match &way.into {
            Namespaces::New { user, network } => {
                // The network first: one that the operator has made belongs to the host's user namespace, in which this
                // child has no capabilities once it has entered the container's.
                check(
                    libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET).into(),
                    "enter network namespace",
                )?;
                if let Some(user) = user {
                    check(libc::setns(user.as_raw_fd(), libc::CLONE_NEWUSER).into(), "enter user namespace")?;
                }
                become_root()?;
                let rest = libc::CLONE_NEWNS
                    | libc::CLONE_NEWIPC
                    | libc::CLONE_NEWUTS
                    | libc::CLONE_NEWCGROUP
                    | libc::CLONE_NEWPID;
                check(libc::unshare(rest).into(), "make namespaces")?;
            }
            Namespaces::Join { pidfd, user, own_mounts } => {
                let mut flags = libc::CLONE_NEWPID
                    | libc::CLONE_NEWIPC
                    | libc::CLONE_NEWUTS
                    | libc::CLONE_NEWNET
                    | libc::CLONE_NEWCGROUP;
                if *user {
                    flags |= libc::CLONE_NEWUSER;
                }
                if !own_mounts {
                    flags |= libc::CLONE_NEWNS;
                }
                check(libc::setns(pidfd.as_raw_fd(), flags).into(), "enter the container")?;
                become_root()?;
                if *own_mounts {
                    check(libc::unshare(libc::CLONE_NEWNS).into(), "make mount namespace")?;
                }
            }
        }
        close_all_but(&keep[..own])?;
        // The keeper has to be the parent; the kernel copies exit signal and parent from this first stage.
        let flags = libc::CLONE_PARENT as libc::c_ulong | libc::SIGCHLD as libc::c_ulong;
        match libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) {
            0 => {
                let Err(stop) = body(report);
                report.send(if stop.not_found { Tag::NotFound } else { Tag::Error }, &stop.text);
                exit(127)
            }
            pid if pid > 0 => {
                report.send(Tag::Pid, &pid.to_string());
                Ok(())
            }
            _ if io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN) => {
                Err("the container's limit of processes is reached".to_owned().into())
            }
            _ => Err(failed("clone")(io::Error::last_os_error())),
        }
    }
}

/// Resets an inherited negative OOM score adjustment: what protects the server and the keeper from the OOM killer
/// (`OOMScoreAdjust=` of the unit) must not protect processes of containers. Runs before the child enters the user
/// namespace: afterwards the file does not belong to it any more (proc(5)).
fn be_mortal() -> Outcome<()> {
    const SCORE: &str = "/proc/self/oom_score_adj";
    let score = std::fs::read_to_string(SCORE).map_err(failed(SCORE))?;
    if score.starts_with('-') {
        std::fs::write(SCORE, "0").map_err(failed(SCORE))?;
    }
    Ok(())
}

/// Exempts pid 1 from the OOM killer: pid 1 holds next to no memory, and all other processes end with it. Where the
/// host lacks CAP_SYS_RESOURCE the exemption fails, and pid 1 is merely the smallest candidate ([`init`]).
fn spare() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

/// Sets soft and hard limit. Raising a hard limit needs CAP_SYS_RESOURCE on the host; without it the value is lowered
/// to the present hard limit, with a warning.
pub fn set_rlimit(resource: u32, value: u64, report: &Report) -> Outcome<()> {
    let wanted = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: plain structures on our stack.
    unsafe {
        if libc::setrlimit(resource, &raw const wanted) == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EPERM) {
            return Err(failed(format!("set rlimit {resource} to {value}"))(error));
        }
        let mut have = wanted;
        libc::getrlimit(resource, &raw mut have);
        have.rlim_cur = have.rlim_max;
        check(libc::setrlimit(resource, &raw const have).into(), "set rlimit")?;
        report.send(
            Tag::Warning,
            &format!("rlimit {resource}: {value} needs CAP_SYS_RESOURCE, {} is set instead", have.rlim_max),
        );
    }
    Ok(())
}

/// Takes uid and gid 0 of the present user namespace, without supplementary groups.
fn become_root() -> Outcome<()> {
    // SAFETY: plain numbers; one thread, so the raw calls reach the whole process.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, 0, 0), "setgroups")?;
        check(libc::syscall(libc::SYS_setresgid, 0, 0, 0), "setresgid")?;
        check(libc::syscall(libc::SYS_setresuid, 0, 0, 0), "setresuid")?;
    }
    undumpable();
    Ok(())
}

/// Sets the ids by which the kernel judges file access, and whether CAP_DAC_OVERRIDE is in effect. Files made
/// meanwhile belong to this user from the start, without a chown that a rename could redirect to another file.
pub fn file_ids(uid: u32, gid: u32, override_modes: bool) -> Outcome<()> {
    /// CAP_DAC_OVERRIDE, capabilities(7).
    const DAC_OVERRIDE: u64 = 1 << 1;
    // SAFETY: plain numbers. The calls return the former ids and no error; -1 changes nothing and returns the present
    // id.
    unsafe {
        for (call, id) in [(libc::SYS_setfsgid, gid), (libc::SYS_setfsuid, uid)] {
            libc::syscall(call, id);
            if libc::syscall(call, -1) as u32 != id {
                return Err(format!("the id {id} cannot be used for files").into());
            }
        }
    }
    undumpable();
    // Leaving uid 0 takes the capabilities for files out of the effective set, and coming back raises them.
    if uid != 0 && override_modes { raise(DAC_OVERRIDE) } else { Ok(()) }
}

/// Adds those of the capabilities to the effective set that the permitted set holds.
fn raise(capabilities: u64) -> Outcome<()> {
    let mut sets = rustix::thread::capabilities(None).map_err(failed("capget"))?;
    sets.effective |= sets.permitted & rustix::thread::CapabilitySet::from_bits_retain(capabilities);
    rustix::thread::set_capabilities(None, sets).map_err(failed("capset"))
}

/// Resets inherited state before the exec: default signals, none blocked, all other descriptors closed.
pub fn clean_slate() -> Outcome<()> {
    // SAFETY: signal calls on our own process; closing descriptors that this child will not use again (they
    // are owned by values that are never dropped: the child ends in exec or _exit).
    unsafe {
        default_signals();
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        check(
            libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC),
            "close descriptors",
        )
    }
}

/// Resets every signal to its default action.
///
/// # Safety
/// No code may rely on a signal handler of this process any more.
unsafe fn default_signals() {
    // SAFETY: the kernel reads a structure of ours; the caller guarantees that no handler is still needed.
    unsafe {
        // An exec resets handlers but not ignored signals: Rust's start-up ignores SIGPIPE, and glibc's posix_spawn
        // leaves signal 32, which it reserves and its own calls refuse to touch, ignored. Hence the kernel's
        // structure (handler, flags, restorer, mask), in which zero is the default. For SIGKILL and SIGSTOP the call
        // fails, and they cannot be ignored anyway.
        let default = [0u64; 4];
        for signal in 1..=64 {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8usize,
            );
        }
    }
}

/// Makes the kernel kill this process when the keeper dies. Must follow the last credential change, which would clear
/// it.
pub fn die_with_parent() -> Outcome<()> {
    // SAFETY: a number.
    check(
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }.into(),
        "parent death signal",
    )
}

/// Sets what processes of the container inherit through the keeper, independent of the server's own: umask, limits,
/// session keyring. All other inherited state (groups, signals, session) each child sets for itself.
pub fn set_inheritance() -> io::Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // As the kernel does it at boot (kernel/fork.c): half of the threads that fit into memory.
    let threads: u64 =
        std::fs::read_to_string("/proc/sys/kernel/threads-max")?.trim().parse().unwrap_or(UNLIMITED);
    let half = if threads == UNLIMITED { UNLIMITED } else { threads / 2 };
    let of_host = [(libc::RLIMIT_NPROC, half, half), (libc::RLIMIT_SIGPENDING, half, half)];
    for (resource, soft, hard) in LIMITS.iter().chain(&of_host) {
        limit(*resource, *soft, *hard)?;
    }
    /// keyctl(2), KEYCTL_JOIN_SESSION_KEYRING; libc has no name for it on every target.
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: numbers; no name means an anonymous keyring, which nobody else can join.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0) };
    match io::Error::last_os_error() {
        // A kernel without keyrings has none that could be inherited.
        error if joined < 0 && error.raw_os_error() != Some(libc::ENOSYS) => Err(error),
        _ => Ok(()),
    }
}

const UNLIMITED: u64 = libc::RLIM_INFINITY;

/// `(resource, soft, hard)` of a process that asks for no limits of its own (getrlimit(2)): the kernel's initial values, but
/// more open files, as Cloud Foundry gives apps. Those that depend on the host's memory are computed.
const LIMITS: &[(u32, u64, u64)] = &[
    (libc::RLIMIT_CPU, UNLIMITED, UNLIMITED),
    (libc::RLIMIT_FSIZE, UNLIMITED, UNLIMITED),
    (libc::RLIMIT_DATA, UNLIMITED, UNLIMITED),
    (libc::RLIMIT_STACK, 8 << 20, UNLIMITED),
    (libc::RLIMIT_CORE, 0, UNLIMITED),
    (libc::RLIMIT_RSS, UNLIMITED, UNLIMITED),
    (libc::RLIMIT_NOFILE, 16_384, 1 << 20),
    (libc::RLIMIT_MEMLOCK, 8 << 20, 8 << 20),
    (libc::RLIMIT_AS, UNLIMITED, UNLIMITED),
    (libc::RLIMIT_LOCKS, UNLIMITED, UNLIMITED),
    (libc::RLIMIT_MSGQUEUE, 819_200, 819_200),
    (libc::RLIMIT_NICE, 0, 0),
    (libc::RLIMIT_RTPRIO, 0, 0),
    (libc::RLIMIT_RTTIME, UNLIMITED, UNLIMITED),
];

/// Sets a limit, or as much of it as the host allows: raising a hard limit needs CAP_SYS_RESOURCE.
fn limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    // SAFETY: plain structures on our stack.
    unsafe {
        let wanted = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        if libc::setrlimit(resource, &raw const wanted) == 0 {
            return Ok(());
        }
        let mut have = wanted;
        if libc::getrlimit(resource, &raw mut have) == 0 {
            have.rlim_cur = soft.min(have.rlim_max);
            if libc::setrlimit(resource, &raw const have) == 0 {
                return Ok(());
            }
        }
        Err(io::Error::last_os_error())
    }
}

/// Closes all descriptors from `first` on, which the server's own parent may have leaked.
pub fn close_from(first: i32) -> io::Result<()> {
    // SAFETY: runs at the start, before any value of ours owns such a descriptor.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first as u32, u32::MAX, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes this process undumpable: no process with fewer capabilities may trace it or read its memory.
pub fn undumpable() {
    // SAFETY: a number.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// Closes every descriptor but standard input, output, error and those in `keep`. The values that owned the closed
/// ones must not be dropped any more: a child ends in exec or `_exit`.
pub fn close_all_but(keep: &[RawFd]) -> Outcome<()> {
    let mut keep: Vec<u32> =
        keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for last in keep.into_iter().map(Some).chain([None]) {
        let end = last.map_or(u32::MAX, |fd| fd - 1);
        if first <= end {
            // SAFETY: numbers; the owners of these descriptors are never dropped (see above).
            let closed = unsafe { libc::syscall(libc::SYS_close_range, first, end, 0) };
            check(closed, "close descriptors")?;
        }
        first = last.map_or(first, |fd| fd + 1);
    }
    Ok(())
}

/// Fails unless the working directory lies below the root: the path of one that does not begins with `(unreachable)`
/// (getcwd(2); glibc hides that, so the system call is made directly).
pub fn stay_inside() -> Outcome<()> {
    let mut path = [0u8; 4097];
    // SAFETY: the kernel writes at most so many bytes to the array.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    match length {
        1.. if path[0] == b'/' => Ok(()),
        1.. => Err("the working directory is outside of the container".to_owned().into()),
        _ => Err(failed("getcwd")(io::Error::last_os_error())),
    }
}

/// Duplicates a descriptor onto 0, 1 or 2.
pub fn stdio(fd: BorrowedFd<'_>, target: i32) -> Outcome<()> {
    // SAFETY: dup2 onto a standard descriptor of this child.
    check(unsafe { libc::dup2(fd.as_raw_fd(), target) }.into(), "set up stdio")
}

/// Executes a program from a descriptor; returns only on failure.
pub fn exec_fd(fd: BorrowedFd<'_>, name: &str) -> Stop {
    let name = std::ffi::CString::new(name).unwrap_or_default();
    let argv = [name.as_ptr(), std::ptr::null()];
    let env = [std::ptr::null::<libc::c_char>()];
    // SAFETY: NUL-terminated strings in null-terminated arrays; returns only on failure.
    unsafe {
        let empty = c"".as_ptr();
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            empty,
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    failed("execute init")(io::Error::last_os_error())
}

/// Executes a program by path; returns only on failure.
pub fn exec_path(path: &str, args: &[String], env: &[String]) -> io::Error {
    let strings = |list: &[String]| {
        list.iter().map(|s| std::ffi::CString::new(s.as_str())).collect::<Result<Vec<_>, _>>()
    };
    let (Ok(path), Ok(args), Ok(env)) = (std::ffi::CString::new(path), strings(args), strings(env)) else {
        return io::Error::from_raw_os_error(libc::EINVAL);
    };
    let pointers = |list: &[std::ffi::CString]| {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (args, env) = (pointers(&args), pointers(&env));
    // SAFETY: NUL-terminated strings in null-terminated arrays, alive until the call returns.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Pid 1 of every container: it ignores all signals, so that the kernel reaps its children.
pub fn init() -> ! {
    // SAFETY: every signal is set to its default, which pid 1 ignores: the standard library handles some signals, and
    // a handler could not run once the data pages are gone. SIGCHLD then leaves no zombies (sigaction(2),
    // SA_NOCLDWAIT).
    unsafe {
        default_signals();
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        action.sa_flags = libc::SA_NOCLDWAIT;
        libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut());
        libc::prctl(libc::PR_SET_NAME, c"garden-init".as_ptr(), 0, 0, 0);
        rest()
    }
}

/// Gives all memory of this program back, which the OOM killer would count, and sleeps for ever.
#[cfg(target_arch = "x86_64")]
unsafe fn rest() -> ! {
    unsafe extern "C" {
        // Defined by the linker (ld(1)): the first byte of the program's image, and the first byte after it.
        static __executable_start: u8;
        static _end: u8;
    }
    let (start, end) = ((&raw const __executable_start).addr(), (&raw const _end).addr());
    // SAFETY: only pages of the image are dropped. Pages of code are read from the file again, unchanged, when they
    // are executed; pages of data revert to the file's content, which nothing reads any more: the loop uses neither
    // data nor stack. The call does not return.
    unsafe {
        std::arch::asm!(
            "syscall",
            "2:",
            "mov eax, {pause}",
            "syscall",
            "jmp 2b",
            pause = const libc::SYS_pause,
            in("rax") libc::SYS_madvise,
            in("rdi") start & !4095,
            in("rsi") end.next_multiple_of(4096) - (start & !4095),
            in("rdx") libc::MADV_DONTNEED,
            options(noreturn)
        )
    }
}

/// Sleeps for ever.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn rest() -> ! {
    loop {
        // SAFETY: pause takes nothing and touches no memory.
        unsafe { libc::pause() };
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use wardian_needs::needs;

    /// Runs `body` in a child, so that the descriptors of the test process are not touched.
    pub fn in_child(body: impl FnOnce() -> i32) -> i32 {
        // SAFETY: the child makes system calls and little else, and ends with `_exit`.
        unsafe {
            let pid = libc::fork();
            assert!(pid >= 0);
            if pid == 0 {
                libc::_exit(body());
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
            libc::WEXITSTATUS(status)
        }
    }

    #[test]
    fn nothing_stays_open_but_what_is_named() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let open = |fd: RawFd| {
            // SAFETY: fcntl on a number.
            unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
        };
        let code = in_child(|| {
            for target in [5, 9, 40, 900] {
                // SAFETY: the child owns no value that it uses later.
                unsafe { libc::dup2(null.as_raw_fd(), target) };
            }
            if close_all_but(&[9, 40, 9, 1, -1]).is_err() {
                return 1;
            }
            i32::from((0..1024).any(|fd| open(fd) != ([0, 1, 2, 9, 40].contains(&fd)))) * 2
        });
        assert_eq!(code, 0);
        assert_eq!(in_child(|| i32::from(close_all_but(&[]).is_err() || (3..1024).any(open))), 0);
    }

    #[test]
    fn a_keeper_has_a_session_keyring_of_its_own() {
        /// keyctl(2): KEYCTL_GET_KEYRING_ID of KEY_SPEC_SESSION_KEYRING, not made if it is not there.
        fn session() -> libc::c_long {
            // SAFETY: numbers.
            unsafe { libc::syscall(libc::SYS_keyctl, 0, -3, 0) }
        }
        let before = session();
        let code = in_child(|| {
            if set_inheritance().is_err() {
                return 1;
            }
            let after = session();
            i32::from(after == before && after > 0) * 2
        });
        assert_eq!(code, 0);
        assert_eq!(session(), before);
    }

    #[test]
    fn a_directory_outside_the_root_is_noticed() {
        needs!(Root);
        assert!(stay_inside().is_ok());
        let code = in_child(|| {
            // The classic chroot escape: a working directory that the new root does not contain.
            let _ = std::env::set_current_dir("/");
            i32::from(rustix::process::chroot("/tmp").is_err() || stay_inside().is_ok())
        });
        assert_eq!(code, 0);
    }
}
