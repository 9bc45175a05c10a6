//! Cgroups of one server instance, v1 and v2, by file operations alone.
//!
//! Each hierarchy gets `/wardian-<tag>/<id>`; keepers live in `/wardian-<tag>/keepers`, outside every
//! container's limits. A pea without limits of its own sits below its container: `<id>/<pea id>`.
//!
//! | file | what is in it |
//! |---|---|
//! | `hierarchies` | which hierarchies the host has |
//! | `v1`, `v2` | what one version alone has: its limits' files, its ways in |
//! | `members` | the processes in cgroups, and signals to them |
//! | `freezer` | their pauses |
//! | `devices/` | which devices may be opened: the rules, and how each version enforces them |
//! | `cache` | the page cache that outlives a container |
//! | `files` | the operations on directories and files below all of these |

mod cache;
pub mod devices;
mod files;
pub mod freezer;
mod hierarchies;
mod members;
mod shown;
mod v1;
mod v2;

pub use cache::Held;
pub use files::Error;
pub use hierarchies::{Hierarchies, Hierarchy};

use crate::wire::Placement;
use devices::Devices;
use devices::guard::Guard;
use files::{at, make, remove_tree, write_existing};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Limits of a cgroup; zero means none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes, swap included where the kernel accounts for it.
    pub memory_bytes: u64,
    /// CPU shares as of v1.
    pub cpu_shares: u64,
    /// Number of processes.
    pub pids: u64,
}

/// The cgroups of one server.
#[derive(Debug, Clone)]
pub struct Cgroups {
    hierarchies: Hierarchies,
    top: String,
    guard: Arc<Guard>,
}

impl Cgroups {
    /// Makes the top cgroups. Before other cgroups are made, [`Cgroups::prepare`] must be called.
    ///
    /// # Errors
    /// A hierarchy is read-only or full.
    pub fn open(hierarchies: Hierarchies, tag: &str) -> Result<Self, Error> {
        let guard = Arc::new(Guard::find(&hierarchies));
        let this = Self { hierarchies, top: format!("wardian-{tag}"), guard };
        let top = |hierarchy: &Hierarchy| hierarchy.path.join(&this.top);
        this.hierarchies.all().try_for_each(|hierarchy| make(&top(hierarchy)))?;
        this.hierarchies.v1.iter().for_each(|hierarchy| v1::set_up(hierarchy, &top(hierarchy)));
        // On a hybrid host the v2 hierarchy has no controllers.
        for hierarchy in this.hierarchies.v2.iter().filter(|_| this.is_v2()) {
            v2::set_up(&hierarchy.path, &top(hierarchy));
        }
        Ok(this)
    }

    /// `/wardian-<tag>`, as in `linux.cgroupsPath`.
    pub fn top(&self) -> &str {
        &self.top
    }

    fn dir(&self, hierarchy: &Hierarchy, id: &str) -> PathBuf {
        hierarchy.path.join(&self.top).join(id)
    }

    /// Path of `id` in the hierarchy that has this controller, and whether that is v1; `None` if no hierarchy has it.
    pub fn place(&self, controller: &str, id: &str) -> Option<(PathBuf, bool)> {
        let v1 = self.hierarchies.v1_of(controller);
        let v2 = self.hierarchies.v2.as_ref().filter(|_| self.is_v2());
        v1.or(v2).map(|hierarchy| (self.dir(hierarchy, id), v1.is_some()))
    }

    /// Makes the cgroup `id` with its limits and device rules, and opens its [`Placement`]. Without rules of its own
    /// those of the parent cgroup apply.
    ///
    /// # Errors
    /// A limit or the rules cannot be enforced, or a directory cannot be made; nothing is left behind.
    pub fn make(
        &self,
        id: &str,
        limits: Limits,
        devices: Option<Devices>,
    ) -> Result<Placement<OwnedFd>, Error> {
        let result = self.try_make(id, limits, devices);
        if result.is_err() {
            self.remove(id);
        }
        result
    }

    fn try_make(
        &self,
        id: &str,
        limits: Limits,
        devices: Option<Devices>,
    ) -> Result<Placement<OwnedFd>, Error> {
        self.hierarchies.all().try_for_each(|hierarchy| make(&self.dir(hierarchy, id)))?;
        devices.map_or(Ok(()), |devices| self.impose(id, devices))?;
        self.limit(id, limits)?;
        self.enter(id)
    }

    /// Sets the limits of an existing cgroup.
    ///
    /// # Errors
    /// A limit cannot be enforced.
    pub fn limit(&self, id: &str, limits: Limits) -> Result<(), Error> {
        for hierarchy in &self.hierarchies.v1 {
            let dir = self.dir(hierarchy, id);
            v1::limit_files(hierarchy, limits).into_iter().try_for_each(|limit| set_limit(&dir, limit))?;
        }
        for hierarchy in self.hierarchies.v2.iter().filter(|_| self.is_v2()) {
            let dir = self.dir(hierarchy, id);
            v2::limit_files(limits).into_iter().try_for_each(|limit| set_limit(&dir, limit))?;
        }
        Ok(())
    }

    /// Makes a cgroup ahead of its container, for a keeper's second thread. Returns its v1 `tasks` files. It has the
    /// device rules of an unprivileged container; [`Cgroups::impose`] sets those of others.
    ///
    /// # Errors
    /// A directory cannot be made or the rules cannot be enforced; nothing is left behind.
    pub fn make_ahead(&self, id: &str) -> Result<Vec<OwnedFd>, Error> {
        self.make(id, Limits::default(), Some(Devices::Unprivileged))?;
        self.open_v1(id, "tasks")
    }

    /// The placement of a process in an existing cgroup.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn enter(&self, id: &str) -> Result<Placement<OwnedFd>, Error> {
        Ok(Placement { v1_procs: self.open_v1(id, "cgroup.procs")?, ..self.enter_v2(id)? })
    }

    /// Moves a process of ours into the keepers' cgroup.
    ///
    /// # Errors
    /// The process is gone.
    pub fn adopt_keeper(&self, pid: i32) -> Result<(), Error> {
        self.hierarchies.all().try_for_each(|hierarchy| self.attach_keeper(hierarchy, "cgroup.procs", pid))
    }

    fn attach_keeper(&self, hierarchy: &Hierarchy, file: &str, id: i32) -> Result<(), Error> {
        let path = self.dir(hierarchy, "keepers").join(file);
        fs::write(&path, id.to_string()).map_err(at("attach to", &path))
    }

    /// Whether there is a cgroup `id`.
    pub fn exists(&self, id: &str) -> bool {
        self.one_with_members().is_some_and(|hierarchy| self.dir(hierarchy, id).is_dir())
    }

    /// Removes `id` and the cgroups below it; `false` if a cgroup is busy and stays.
    pub fn remove(&self, id: &str) -> bool {
        let left = self.hierarchies.all().filter(|hierarchy| !remove_tree(&self.dir(hierarchy, id))).count();
        left == 0
    }

    /// Removes the top cgroups of this server, once the keepers that were not used have ended. Busy cgroups stay.
    pub fn close(&self) {
        for _ in 0..100 {
            if self.remove("keepers") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        for hierarchy in self.hierarchies.all() {
            drop(fs::remove_dir(hierarchy.path.join(&self.top)));
        }
    }

    /// Ids of all cgroups below the top one, except the keepers'.
    pub fn list(&self) -> Vec<String> {
        let mut ids = std::collections::BTreeSet::new();
        for hierarchy in self.hierarchies.all() {
            for entry in fs::read_dir(hierarchy.path.join(&self.top)).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) && entry.file_name() != "keepers" {
                    ids.insert(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
        ids.into_iter().collect()
    }
}

fn set_limit(cgroup: &Path, (file, value): (&str, u64)) -> Result<(), Error> {
    let path = cgroup.join(file);
    match write_existing(&path, &value.to_string()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && [v1::SWAP_LIMIT, v2::SWAP_LIMIT].contains(&file) => {
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Err(at("its controller is not enabled: no limit file", &path)(e))
        }
        result => result.map_err(at("set limit", &path)),
    }
}
