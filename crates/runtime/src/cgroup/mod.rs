//! Cgroups of one server instance, v1 and v2, by file operations alone.
//!
//! Each hierarchy gets `/wardian-<tag>/<id>`; keepers live in `/wardian-<tag>/keepers`, outside every
//! container's limits. A pea without limits of its own sits below its container: `<id>/<pea id>`.

mod cache;
pub mod devices;
mod guard;
mod program;

pub use cache::Held;

use crate::wire::Placement;
use devices::Devices;
use guard::Guard;
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wardian_sys::procfs;

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Controllers as the mount names them: `cpu`, `cpu,cpuacct`, `name=systemd`; empty for v2.
    pub name: String,
    /// Where it is mounted.
    pub path: PathBuf,
}

/// The cgroup hierarchies of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// The v1 hierarchies.
    pub v1: Vec<Hierarchy>,
    /// The v2 hierarchy.
    pub v2: Option<Hierarchy>,
}

impl Hierarchies {
    /// Finds the hierarchies in the text of a `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// The text is no mountinfo.
    pub fn parse(mountinfo: impl AsRef<[u8]>) -> Result<Self, procfs::Error> {
        let mut found = Self::default();
        for mount in procfs::mountinfo(mountinfo)? {
            match mount.fs_type.as_str() {
                "cgroup" => {
                    let known = |o: &&String| {
                        !matches!(o.as_str(), "rw" | "ro" | "xattr" | "clone_children" | "noprefix")
                    };
                    let name: Vec<String> = mount.super_options.iter().filter(known).cloned().collect();
                    let name = name.join(",");
                    if !found.v1.iter().any(|h| h.name == name) {
                        found.v1.push(Hierarchy { name, path: mount.mount_point });
                    }
                }
                "cgroup2" if found.v2.is_none() => {
                    found.v2 = Some(Hierarchy { name: String::new(), path: mount.mount_point });
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn all(&self) -> impl Iterator<Item = &Hierarchy> {
        self.v1.iter().chain(&self.v2)
    }
}

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

/// A failed operation on a path.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}: {source}")]
pub struct Error {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error { action, path: path.to_owned(), source }
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
        for hierarchy in this.hierarchies.all() {
            // cpuset refuses tasks until its masks are set: child cgroups are made to copy them.
            let top = hierarchy.path.join(&this.top);
            make(&top)?;
            if hierarchy.name.split(',').any(|c| c == "cpuset") {
                copy_cpuset(&hierarchy.path, &top);
                let _ = fs::write(top.join("cgroup.clone_children"), "1");
            }
            if this.hierarchies.v1.is_empty() {
                for dir in [&hierarchy.path, &top] {
                    for controller in ["cpu", "memory", "pids"] {
                        // A missing controller is reported when a limit is asked for.
                        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
                    }
                }
            }
        }
        Ok(this)
    }

    /// `/wardian-<tag>`, as in `linux.cgroupsPath`.
    pub fn top(&self) -> &str {
        &self.top
    }

    /// Names of the v1 hierarchies.
    pub fn v1_names(&self) -> Vec<String> {
        self.hierarchies.v1.iter().map(|h| h.name.clone()).collect()
    }

    fn dir(&self, hierarchy: &Hierarchy, id: &str) -> PathBuf {
        hierarchy.path.join(&self.top).join(id)
    }

    /// Path of `id` in the hierarchy that has this controller, and whether that is v1; `None` if no hierarchy has it.
    pub fn place(&self, controller: &str, id: &str) -> Option<(PathBuf, bool)> {
        let v1 = self.hierarchies.v1.iter().find(|h| h.name.split(',').any(|c| c == controller));
        // On a hybrid host the v2 hierarchy has no controllers.
        let v2 = self.hierarchies.v2.as_ref().filter(|_| self.is_v2());
        v1.or(v2).map(|hierarchy| (self.dir(hierarchy, id), v1.is_some()))
    }

    /// Whether the host has cgroup v2 only.
    pub fn is_v2(&self) -> bool {
        self.hierarchies.v1.is_empty()
    }

    /// The shares as this host represents them: v2 has only weights.
    pub fn shown_shares(&self, shares: u64) -> u64 {
        if shares > 0 && self.is_v2() { weight(shares) } else { shares }
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
        let only_v2 = self.hierarchies.v1.is_empty();
        for hierarchy in self.hierarchies.all() {
            for (file, value) in limit_files(hierarchy, only_v2, limits) {
                let path = self.dir(hierarchy, id).join(file);
                match write_existing(&path, &value.to_string()) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound && SWAP_FILES.contains(&file) => {}
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {
                        return Err(at("its controller is not enabled: no limit file", &path)(e));
                    }
                    result => result.map_err(at("set limit", &path))?,
                }
            }
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
        let open = |hierarchy: &Hierarchy| {
            let path = self.dir(hierarchy, id).join("tasks");
            fs::OpenOptions::new().write(true).open(&path).map(OwnedFd::from).map_err(at("open", &path))
        };
        self.hierarchies.v1.iter().map(open).collect()
    }

    /// The placement of a process that is cloned by a thread in the v1 part of the cgroup: only v2 is left to enter.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn enter_v2(&self, id: &str) -> Result<Placement<OwnedFd>, Error> {
        let mut place = Placement { v1_procs: Vec::new(), v2_dir: None };
        if let Some(hierarchy) = &self.hierarchies.v2 {
            let path = self.dir(hierarchy, id);
            let fd =
                rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            place.v2_dir = Some(fd.map_err(io::Error::from).map_err(at("open", &path))?);
        }
        Ok(place)
    }

    /// The placement of a process in an existing cgroup.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn enter(&self, id: &str) -> Result<Placement<OwnedFd>, Error> {
        let mut place = self.enter_v2(id)?;
        for hierarchy in &self.hierarchies.v1 {
            let path = self.dir(hierarchy, id).join("cgroup.procs");
            place
                .v1_procs
                .push(fs::OpenOptions::new().write(true).open(&path).map_err(at("open", &path))?.into());
        }
        Ok(place)
    }

    /// Moves a process of ours into the keepers' cgroup.
    ///
    /// # Errors
    /// The process is gone.
    pub fn adopt_keeper(&self, pid: i32) -> Result<(), Error> {
        self.hierarchies.all().try_for_each(|hierarchy| self.attach_keeper(hierarchy, "cgroup.procs", pid))
    }

    /// Moves the calling thread into the keepers' cgroup, so that the keepers it starts need not be moved one by one:
    /// each move waits for an RCU grace period on an idle host. Only v1 takes single threads; on v2 the new keepers
    /// must be moved by [`Self::adopt_keeper_v2`].
    ///
    /// # Errors
    /// A hierarchy is gone.
    pub fn become_keepers_parent(&self) -> Result<(), Error> {
        // 0 stands for the writing thread.
        self.hierarchies.v1.iter().try_for_each(|hierarchy| self.attach_keeper(hierarchy, "tasks", 0))
    }

    /// Moves a keeper whose parent is in the keepers' cgroup already: only v2 is left.
    ///
    /// # Errors
    /// The process is gone.
    pub fn adopt_keeper_v2(&self, pid: i32) -> Result<(), Error> {
        self.hierarchies
            .v2
            .iter()
            .try_for_each(|hierarchy| self.attach_keeper(hierarchy, "cgroup.procs", pid))
    }

    fn attach_keeper(&self, hierarchy: &Hierarchy, file: &str, id: i32) -> Result<(), Error> {
        let path = self.dir(hierarchy, "keepers").join(file);
        fs::write(&path, id.to_string()).map_err(at("attach to", &path))
    }

    /// Kills the members of `id`, in a bounded number of rounds, since they may fork. `false` if one is still alive.
    pub fn kill(&self, id: &str) -> bool {
        if let Some(v2) = &self.hierarchies.v2 {
            // It reaches all members only where every process is a member of the v2 hierarchy; elsewhere it does no
            // harm.
            drop(fs::write(self.dir(v2, id).join("cgroup.kill"), "1"));
        }
        for _ in 0..20 {
            if self.signal(id, &[], rustix::process::Signal::KILL) == 0 {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        false
    }

    /// Signals the members of `id` and below except those in `except`. Returns their number. Each is signalled by a
    /// pidfd, and only if its pid is still a member after the pidfd was opened.
    pub fn signal(&self, id: &str, except: &[i32], signal: rustix::process::Signal) -> usize {
        self.signal_where(id, |pid| !except.contains(&pid), signal)
    }

    /// Kills the keeper of the container `id`, found by its command line. `false` if it is still alive.
    pub fn kill_keeper(&self, id: &str) -> bool {
        let line = format!("wardian-keeper\0{id}\0");
        let is_its_keeper =
            |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|read| read == line.as_bytes());
        for _ in 0..20 {
            if self.signal_where("keepers", is_its_keeper, rustix::process::Signal::KILL) == 0 {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        false
    }

    /// Kills everything in all cgroups of this instance, keepers first. Returns the pids that are still alive.
    pub fn kill_all(&self) -> Vec<i32> {
        self.kill("keepers");
        self.kill("");
        self.members("")
    }

    fn signal_where(&self, id: &str, wanted: impl Fn(i32) -> bool, signal: rustix::process::Signal) -> usize {
        let members: Vec<i32> = self.members(id).into_iter().filter(|pid| wanted(*pid)).collect();
        let open = |raw: &i32| {
            let pid = rustix::process::Pid::from_raw(*raw)?;
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok().map(|fd| (*raw, fd))
        };
        let opened: Vec<(i32, OwnedFd)> = members.iter().filter_map(open).collect();
        let still = self.members(id);
        for (_, fd) in opened.iter().filter(|(pid, _)| still.contains(pid) && wanted(*pid)) {
            // The process may have ended by itself meanwhile.
            let _ = rustix::process::pidfd_send_signal(fd, signal);
        }
        members.len()
    }

    /// A hierarchy in which every process of ours is a member of its cgroup.
    fn one_with_members(&self) -> Option<&Hierarchy> {
        self.hierarchies.v1.iter().find(|h| h.name.contains("pids")).or(self.hierarchies.all().next())
    }

    /// Pids of the members of `id` and below.
    pub fn members(&self, id: &str) -> Vec<i32> {
        let Some(hierarchy) = self.one_with_members() else { return Vec::new() };
        let mut found = Vec::new();
        collect_members(&self.dir(hierarchy, id), &mut found);
        found
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

/// Writes without `O_CREAT`: a missing file is ENOENT, and not the EACCES of an attempt to create it.
fn write_existing(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path).and_then(|mut open| open.write_all(text.as_bytes()))
}

fn make(dir: &Path) -> Result<(), Error> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other.map_err(at("make cgroup", dir))?,
    }
    // Containers read their limits there, so the mode must not depend on the umask.
    fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).map_err(at("set the mode of", dir))
}

fn copy_cpuset(from: &Path, to: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = fs::read_to_string(from.join(file)) {
            let _ = fs::write(to.join(file), value);
        }
    }
}

fn collect_members(dir: &Path, found: &mut Vec<i32>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            collect_members(&entry.path(), found);
        }
    }
}

fn remove_tree(dir: &Path) -> bool {
    match fs::remove_dir(dir) {
        Ok(()) => return true,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return true,
        Err(_) => {}
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    fs::remove_dir(dir).is_ok()
}

/// These files are missing on a kernel that does not account for swap (`swapaccount=0`).
const SWAP_FILES: [&str; 2] = ["memory.swap.max", "memory.memsw.limit_in_bytes"];

/// Files and values for a hierarchy, in the order in which they must be written. The conversion of shares to weight
/// is the one that runc uses since 1.3.
fn limit_files(hierarchy: &Hierarchy, only_v2: bool, limits: Limits) -> Vec<(&'static str, u64)> {
    let has = |controller: &str| {
        if hierarchy.name.is_empty() { only_v2 } else { hierarchy.name.split(',').any(|c| c == controller) }
    };
    let v2 = hierarchy.name.is_empty();
    let mut files = Vec::new();
    if limits.memory_bytes > 0 && has("memory") {
        let bytes = limits.memory_bytes.min(i64::MAX as u64);
        // v1 counts memory and swap together, v2 swap alone.
        if v2 {
            files.extend([("memory.max", bytes), ("memory.swap.max", 0)]);
        } else {
            files.extend([("memory.limit_in_bytes", bytes), ("memory.memsw.limit_in_bytes", bytes)]);
        }
    }
    if limits.cpu_shares > 0 && has("cpu") {
        if v2 {
            files.push(("cpu.weight", weight(limits.cpu_shares)));
        } else {
            files.push(("cpu.shares", limits.cpu_shares));
        }
    }
    if limits.pids > 0 && has("pids") {
        // On v1 the keeper's parked thread is a member too, and counts.
        files.push(("pids.max", limits.pids + u64::from(!v2)));
    }
    files
}

fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_a_hybrid_host() {
        let text = "\
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
22 27 0:21 / /proc rw,relatime - proc proc rw";
        let found = Hierarchies::parse(text).unwrap();
        let names: Vec<&str> = found.v1.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["cpu", "name=systemd"]);
        assert_eq!(found.v2.unwrap().path, Path::new("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn shares_become_weights() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 100, 10_000));
    }

    #[test]
    fn limits_go_to_the_hierarchy_that_has_the_controller() {
        let limits = Limits { memory_bytes: 5, cpu_shares: 7, pids: 9 };
        let v1 = |name: &str| Hierarchy { name: name.into(), path: "/x".into() };
        assert_eq!(limit_files(&v1("cpu,cpuacct"), false, limits), [("cpu.shares", 7)]);
        assert_eq!(limit_files(&v1(""), false, limits), []);
        let memory = [("memory.limit_in_bytes", 5), ("memory.memsw.limit_in_bytes", 5)];
        assert_eq!(limit_files(&v1("memory"), false, limits), memory);
        let v2 = [("memory.max", 5), ("memory.swap.max", 0), ("cpu.weight", weight(7)), ("pids.max", 9)];
        assert_eq!(limit_files(&v1(""), true, limits), v2);
    }
}
