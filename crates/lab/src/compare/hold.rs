//! Where the other engines run: in a mount namespace and a pid namespace of their own.
//!
//! Engines leave a lot behind when they are cut off: monitors, shims, servers, mounts, sockets in /run, locks in
//! /dev/shm. In here all of that is the experiment's: the processes die with the init of the pid namespace, which ends
//! when the lab does, however that happens; the mounts end with the last process; /run, /dev/shm and podman's cache are
//! covered by empty tmpfs. What the host's user has of the same engines is neither seen nor touched.
//!
//! Commands are started by a thread in these namespaces, so that entering them costs a command nothing.

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::MountFlags;
use rustix::process::{Pid, Signal, WaitOptions, kill_process};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use wardian_sys::{mount, namespace, procfs};

/// Directories that are covered by an empty tmpfs: sockets and state, locks, podman's cache.
pub(super) const COVERED: [&str; 3] = ["/run", "/dev/shm", "/var/lib/containers"];
/// Where cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// The most time for all processes to end and all mounts to go. A mount may have to write its data.
const END: Duration = Duration::from_secs(120);
/// What the init says when /proc is that of its namespace.
const READY: &str = "ready";

/// A command to start, and where its process goes.
type Order = (Command, oneshot::Sender<std::io::Result<tokio::process::Child>>);

/// The namespaces, while they last.
#[derive(Debug)]
pub(super) struct Hold {
    orders: mpsc::Sender<Order>,
    init: Child,
    thread: std::thread::JoinHandle<()>,
    /// Directories of the host that were made to be covered.
    made: Vec<PathBuf>,
}

impl Hold {
    /// Makes the namespaces. `program` has the command `lab hold`, which is [`init`].
    pub(super) async fn start(program: &Path) -> Result<Self> {
        let (orders, ordered) = mpsc::channel::<Order>();
        let (ready, told) = oneshot::channel();
        let (program, runtime) = (program.to_owned(), tokio::runtime::Handle::current());
        let work = move || {
            let entered = enter(&program);
            let failed = entered.is_err();
            if ready.send(entered).is_err() || failed {
                return;
            }
            let _runtime = runtime.enter();
            while let Ok((command, reply)) = ordered.recv() {
                let mut command = tokio::process::Command::from(command);
                // The child, if nobody waits for it any more, is killed by this.
                let _ = reply.send(command.kill_on_drop(true).spawn());
            }
        };
        let thread =
            std::thread::Builder::new().name("hold".to_owned()).spawn(work).context("start a thread")?;
        let (init, made) = told.await.context("the thread of the namespaces panicked")??;
        Ok(Self { orders, init, thread, made })
    }

    /// Starts a command inside.
    pub(super) async fn spawn(&self, command: Command) -> Result<tokio::process::Child> {
        let (reply, started) = oneshot::channel();
        let name = command.get_program().to_string_lossy().into_owned();
        ensure!(self.orders.send((command, reply)).is_ok(), "the namespaces of the other engines have ended");
        started
            .await
            .context("the namespaces of the other engines have ended")?
            .with_context(|| format!("run {name}"))
    }

    /// Process id of the init, in the namespace of the lab.
    pub(super) fn init(&self) -> u32 {
        self.init.id()
    }

    /// Kills everything inside and waits until it is gone.
    pub(super) async fn end(mut self) -> Result<()> {
        drop(self.orders);
        if let Some(pid) = Pid::from_raw(self.init.id().cast_signed()) {
            // It is not reaped yet, so the id is still its own.
            let _ = kill_process(pid, Signal::KILL);
        }
        let until = Instant::now() + END;
        while !(self.init.try_wait().context("wait for the init of the other engines")?.is_some()
            && self.thread.is_finished())
        {
            if Instant::now() > until {
                bail!("processes of the other engines did not end within {END:?}: they may wait for a disk");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for dir in self.made {
            // Another lab may use it too.
            let _ = std::fs::remove_dir(dir);
        }
        Ok(())
    }
}

/// Moves this thread into the namespaces and prepares them. Returns the init and the directories made on the host.
fn enter(program: &Path) -> Result<(Child, Vec<PathBuf>)> {
    namespace::own_mounts_and_processes().context("make namespaces for the other engines")?;
    let mut command = Command::new(program);
    command.args(["lab", "hold"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut init = command.spawn().context("start the init of the other engines")?;
    let mut line = String::new();
    let out = init.stdout.take().context("the init has no output")?;
    BufReader::new(out).read_line(&mut line).context("listen to the init of the other engines")?;
    ensure!(line.trim_end() == READY, "the init of the other engines did not start");
    let mut made = Vec::new();
    for dir in COVERED.map(Path::new) {
        if !dir.exists() {
            // Where its parent is missing too nobody will use it.
            if std::fs::create_dir(dir).is_err() {
                continue;
            }
            made.push(dir.to_owned());
        }
        tmpfs(dir)?;
    }
    cgroups().context("show the cgroups to the other engines")?;
    Ok((init, made))
}

fn tmpfs(on: &Path) -> Result<()> {
    rustix::mount::mount("tmpfs", on, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755"))
        .with_context(|| format!("mount a tmpfs on {}", on.display()))
}

/// Where hierarchies of version 1 are mounted in a tmpfs, replaces that tmpfs by one of the experiment's own: runtimes
/// make plain directories there for controllers that are not mounted. Version 2 beside version 1 is left out, because
/// crun refuses hosts that have both.
fn cgroups() -> Result<()> {
    let text =
        std::fs::read("/proc/thread-self/mountinfo").or_else(|_| std::fs::read("/proc/self/mountinfo"));
    // The /proc here is already that of the other namespace, in which this thread is not: ask the init's.
    let text = text.or_else(|_| std::fs::read("/proc/1/mountinfo")).context("read the list of mounts")?;
    let mounts = procfs::mountinfo(&text)?;
    let top = Path::new(CGROUPS);
    let v1: Vec<_> =
        mounts.iter().filter(|m| m.fs_type == "cgroup" && m.mount_point.parent() == Some(top)).collect();
    if v1.is_empty() {
        return Ok(());
    }
    let mut clones = Vec::new();
    for one in &v1 {
        let path = one.mount_point.to_str().context("a cgroup's mount has an odd name")?;
        clones.push((one.mount_point.clone(), mount::open_tree_clone(CWD, path, false)?));
    }
    let links: Vec<(PathBuf, PathBuf)> = std::fs::read_dir(top)?
        .flatten()
        .filter_map(|entry| Some((entry.path(), std::fs::read_link(entry.path()).ok()?)))
        .collect();
    tmpfs(top)?;
    for (at, clone) in clones {
        std::fs::create_dir(&at)?;
        let on = rustix::fs::open(&at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        mount::attach(clone, on)?;
    }
    for (at, to) in links {
        std::os::unix::fs::symlink(to, at)?;
    }
    Ok(())
}

/// The init of the pid namespace: mounts its /proc, reaps orphans, and ends with the lab, whose end it sees at its
/// standard input. Everything in the namespace is killed by that.
///
/// # Errors
/// It was not started by [`Hold::start`], or /proc cannot be mounted.
pub fn init() -> Result<()> {
    ensure!(std::process::id() == 1, "`lab hold` is a part of `lab compare`, and of no use alone");
    rustix::mount::mount(
        "proc",
        "/proc",
        "proc",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        None,
    )
    .context("mount /proc")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ended = signal(SignalKind::child())?;
        let mut out = std::io::stdout();
        writeln!(out, "{READY}").and_then(|()| out.flush())?;
        let mut input = tokio::io::stdin();
        let lab_ends = async { while matches!(input.read(&mut [0; 64]).await, Ok(n) if n > 0) {} };
        let reap = async {
            loop {
                while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
                ended.recv().await;
            }
        };
        tokio::select! { () = lab_ends => (), () = reap => () }
        anyhow::Ok(())
    })?;
    // The thread that reads standard input may still wait.
    std::process::exit(0)
}
