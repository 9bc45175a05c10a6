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

/// A keeper without a container. It ends by itself when its only connection does.
#[derive(Debug)]
pub struct Waiting {
    /// The first connection to it.
    pub connection: OwnedFd,
    /// Where it listens; to be renamed into the container's directory.
    pub socket: PathBuf,
    /// Id of the container to be: its cgroups are there, and a thread of the keeper stands in them.
    pub id: String,
    /// The keeper's.
    pub pid: i32,
}

/// Programs in sealed memory files, and the keepers' mount namespace.
#[derive(Debug)]
pub struct Keepers {
    pool: Pool<Waiting>,
    /// Where their sockets wait.
    dir: PathBuf,
    /// Pid 1 of containers.
    pub init: OwnedFd,
}

impl Keepers {
    /// Load the program and start `size` of it. Sockets wait in `dir`.
    pub fn start(program: &Path, dir: &Path, cgroups: Cgroups, size: usize) -> io::Result<Self> {
        let bytes = std::fs::read(program)
            .map_err(|e| io::Error::other(format!("the keeper program {}: {e}", program.display())))?;
        let keeper = memfd::sealed("wardian-keeper", &bytes, 0o700)?;
        // 0711: inside the container its maps, links and descriptors are not to be read.
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
            // On its command line for whoever looks at the host's processes: where cgroups are v2 alone, nothing
            // else tells whose keeper it is.
            let id = uuid::Uuid::new_v4().simple().to_string();
            // Until it is in its cgroup: one that ends at once must not leave its number to a stranger, who would be moved there.
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
            // Its answer goes unread: a keeper that cannot do it fails the create.
            packet::send(&ours, &bytes, &fds)?;
            Ok(Waiting { connection: ours, socket: sockets.join(name), id, pid: child.pid })
        };
        Ok(Self { pool: Pool::new(THREAD, size, make)?, dir: dir.to_owned(), init })
    }

    /// One that waits, or a new one.
    pub fn take(&self) -> io::Result<Waiting> {
        self.pool.take()
    }

    /// Nothing came of it.
    pub fn put_back(&self, waiting: Waiting) {
        self.pool.put_back(waiting);
    }

    /// Let those that wait end, and start no more.
    pub fn close(&self) {
        self.pool.close();
        remove(&self.dir);
    }
}

/// Removes the directory with the sockets, but nothing that is mounted in it.
fn remove(dir: &Path) {
    if let (Some(above), Some(name)) = (dir.parent(), dir.file_name()) {
        drop(Directory::open(above).and_then(|above| above.remove(name)));
    }
}

/// Of the thread that fills the pool: it lives in the keepers' cgroup, and what it starts is born there.
const THREAD: &str = "keepers";

fn on_pool_thread() -> bool {
    std::thread::current().name() == Some(THREAD)
}

/// Move this thread, the first time.
fn enter_once(cgroups: &Cgroups) -> io::Result<bool> {
    thread_local!(static ENTERED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    if !ENTERED.get() {
        cgroups.become_keepers_parent().map_err(io::Error::other)?;
        ENTERED.set(true);
    }
    Ok(true)
}
