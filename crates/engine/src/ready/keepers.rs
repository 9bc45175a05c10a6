//! Keepers started ahead, each waiting for its container.

use crate::ready::pool::Pool;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use wardian_runtime::cgroup::Cgroups;
use wardian_runtime::wire::{self, Op, SPEAKS};
use wardian_sys::directory::Directory;
use wardian_sys::{children, failpoint, memfd, namespace, packet, spawn};

/// A keeper without a container. It exits when its only connection ends.
#[derive(Debug)]
pub struct Waiting {
    /// The first connection to it.
    pub connection: OwnedFd,
    /// The path of its listening socket, which is renamed into the container's directory.
    pub socket: PathBuf,
    /// The id of the future container: its cgroups exist, and one of the keeper's threads is in them.
    pub id: String,
    /// The keeper's pid.
    pub pid: i32,
}

/// Programs in sealed memory files, and the keepers' mount namespace.
#[derive(Debug)]
pub struct Keepers {
    pool: Pool<Waiting>,
    /// The directory of their sockets.
    dir: PathBuf,
    /// Pid 1 of containers.
    pub init: OwnedFd,
}

impl Keepers {
    /// Loads the program and starts `size` keepers, whose sockets are in `dir`.
    pub fn start(program: &Path, dir: &Path, cgroups: Cgroups, size: usize) -> io::Result<Self> {
        let bytes = std::fs::read(program)
            .map_err(|e| io::Error::other(format!("the keeper program {}: {e}", program.display())))?;
        let keeper = memfd::sealed("wardian-keeper", &bytes, 0o700)?;
        // 0711: processes in the container must not read pid 1's maps, links and descriptors in /proc.
        let init = memfd::sealed("garden-init", &bytes, 0o711)?;
        remove(dir);
        let directory: OwnedFd = wardian_store::run::private(dir)?.into();
        let nursery = namespace::nursery()?;
        let count = AtomicU64::new(0);
        let sockets = dir.to_owned();
        let speaks = std::env::var(SPEAKS).ok().map(|version| format!("{SPEAKS}={version}"));
        let env: Vec<String> = failpoint::inherited().into_iter().chain(speaks).collect();
        let make = move || {
            let name = format!("{}.sock", count.fetch_add(1, Ordering::Relaxed));
            let listener = packet::listen_at(directory.as_fd(), &name)?;
            let (ours, theirs) = packet::pair()?;
            let fds = [listener.as_fd(), theirs.as_fd(), nursery.as_fd()];
            let parent = on_pool_thread() && enter_once(&cgroups)?;
            // The id is on the keeper's command line for anyone who looks at the host's processes: on a host
            // with cgroup v2 alone nothing else tells which container a keeper belongs to.
            let id = uuid::Uuid::new_v4().simple().to_string();
            // The child is not reaped before it is in its cgroup: otherwise the pid of one that exits at once
            // could be reused, and a foreign process would be moved there.
            let numbers = children::keep_numbers();
            let child = spawn::from_memfd(keeper.as_fd(), &["wardian-keeper", &id], &env, &fds)?;
            if parent {
                cgroups.adopt_keeper_v2(child.pid).map_err(io::Error::other)?;
            } else {
                cgroups.adopt_keeper(child.pid).map_err(io::Error::other)?;
            }
            drop(numbers);
            let tasks = cgroups.make_ahead(&id).map_err(io::Error::other)?;
            let prepare = Op::Prepare { tasks: tasks.iter().map(AsFd::as_fd).collect() };
            let (bytes, fds) = wire::encode(0, prepare)?;
            // The answer is not read: with a keeper that fails here the create fails.
            packet::send(&ours, &bytes, &fds)?;
            Ok(Waiting { connection: ours, socket: sockets.join(name), id, pid: child.pid })
        };
        Ok(Self { pool: Pool::new(THREAD, size, make)?, dir: dir.to_owned(), init })
    }

    /// Returns a waiting keeper, or starts one.
    pub fn take(&self) -> io::Result<Waiting> {
        self.pool.take()
    }

    /// Puts an unused keeper back.
    pub fn put_back(&self, waiting: Waiting) {
        self.pool.put_back(waiting);
    }

    /// Lets the waiting keepers exit, and starts no more.
    pub fn close(&self) {
        self.pool.close();
        remove(&self.dir);
    }
}

/// Removes the directory with the sockets, but not through a mount in it.
fn remove(dir: &Path) {
    if let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) {
        drop(Directory::open(above).and_then(|above| above.remove(name)));
    }
}

/// The name of the thread that fills the pool: the thread is in the keepers' cgroup, so that its children
/// start there.
const THREAD: &str = "keepers";

fn on_pool_thread() -> bool {
    std::thread::current().name() == Some(THREAD)
}

/// Moves this thread into the keepers' cgroup on its first call.
fn enter_once(cgroups: &Cgroups) -> io::Result<bool> {
    thread_local!(static ENTERED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    if !ENTERED.get() {
        cgroups.become_keepers_parent().map_err(io::Error::other)?;
        ENTERED.set(true);
    }
    Ok(true)
}
