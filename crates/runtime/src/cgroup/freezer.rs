//! Pauses: the members of a cgroup and below are frozen, and thawed again.
//!
//! The v2 hierarchy is used wherever there is one, also on a hybrid host, where every process of ours is a member of it:
//! only there KILL ends a frozen process, and a keeper's parked thread, which is a member of its container's v1
//! cgroups, is not frozen. With v1 alone the freezer's hierarchy has to do, and what is killed ends once it is thawed.

use super::Cgroups;
use super::files::{at, write_existing};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the kernel may take to freeze a cgroup: a process in an uninterruptible sleep is frozen after it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a cgroup cannot be frozen, or not be thawed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither cgroup v2 nor the freezer of v1 is mounted.
    #[error("this host has no freezer: neither cgroup v2 nor the controller freezer of v1 is mounted")]
    Missing,
    /// A file of the cgroup cannot be written.
    #[error(transparent)]
    File(#[from] super::Error),
    /// A process cannot be frozen now; the cgroup is thawed again.
    #[error(
        "a process could not be frozen within {} seconds, it may wait for a disk or the network: nothing is frozen",
        PATIENCE.as_secs()
    )]
    Busy,
}

/// The file by which one cgroup is frozen.
struct Switch {
    dir: PathBuf,
    v2: bool,
}

impl Switch {
    fn path(&self) -> PathBuf {
        self.dir.join(if self.v2 { "cgroup.freeze" } else { "freezer.state" })
    }

    fn set(&self, frozen: bool) -> io::Result<()> {
        let value = match (self.v2, frozen) {
            (true, true) => "1",
            (true, false) => "0",
            (false, true) => "FROZEN",
            (false, false) => "THAWED",
        };
        write_existing(&self.path(), value)
    }

    /// Whether it was asked to be frozen, by this server or an earlier one.
    fn is_set(&self) -> bool {
        let text = fs::read_to_string(self.path()).unwrap_or_default();
        if self.v2 { text.trim() == "1" } else { matches!(text.trim(), "FROZEN" | "FREEZING") }
    }

    /// Whether all members are frozen.
    fn is_done(&self) -> bool {
        if self.v2 {
            let events = fs::read_to_string(self.dir.join("cgroup.events")).unwrap_or_default();
            return events.lines().any(|line| line == "frozen 1");
        }
        fs::read_to_string(self.path()).is_ok_and(|state| state.trim() == "FROZEN")
    }
}

impl Cgroups {
    /// Freezes the members of `id` and below. Blocks until they are.
    ///
    /// # Errors
    /// See [`Error`]; nothing stays frozen.
    pub fn freeze(&self, id: &str) -> Result<(), Error> {
        let switch = self.switch(id).ok_or(Error::Missing)?;
        let started = Instant::now();
        switch.set(true).map_err(at("freeze", &switch.path()))?;
        while !switch.is_done() {
            if started.elapsed() > PATIENCE {
                drop(switch.set(false));
                return Err(Error::Busy);
            }
            std::thread::sleep(Duration::from_millis(1));
            if !switch.v2 {
                // The kernel tries again to freeze what it could not freeze at once.
                drop(switch.set(true));
            }
        }
        Ok(())
    }

    /// Thaws `id`. A cgroup that is gone, or was not frozen, is no error.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn thaw(&self, id: &str) -> Result<(), Error> {
        let Some(switch) = self.switch(id) else { return Ok(()) };
        match switch.set(false) {
            Err(error) if is_gone(&error) => Ok(()),
            set => Ok(set.map_err(at("thaw", &switch.path()))?),
        }
    }

    /// Whether `id` was frozen and not thawed since. The kernel knows: this outlives a server.
    pub fn is_frozen(&self, id: &str) -> bool {
        self.switch(id).is_some_and(|switch| switch.is_set())
    }

    /// With v1 what is killed while it is frozen ends once it is thawed: thaws `id`, all that is below, and its peas
    /// with limits of their own, which end with it.
    pub(super) fn let_die(&self, id: &str) {
        let Some(hierarchy) = self.hierarchies.v1_of("freezer").filter(|_| self.hierarchies.v2.is_none())
        else {
            return;
        };
        thaw_v1(&self.dir(hierarchy, id));
        let top = hierarchy.path.join(&self.top);
        let prefix = format!("{id}.");
        for entry in fs::read_dir(&top).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                thaw_v1(&entry.path());
            }
        }
    }

    fn switch(&self, id: &str) -> Option<Switch> {
        // An empty id would be all containers.
        let found = |hierarchy, v2| Switch { dir: self.dir(hierarchy, id), v2 };
        let v1 = || self.hierarchies.v1_of("freezer").map(|hierarchy| found(hierarchy, false));
        self.hierarchies
            .v2
            .as_ref()
            .map(|hierarchy| found(hierarchy, true))
            .or_else(v1)
            .filter(|_| !id.is_empty())
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// Thaws a v1 cgroup and those below it. A file that is missing is that of the hierarchy's root, or of a cgroup that is
/// gone.
fn thaw_v1(dir: &Path) {
    drop(write_existing(&dir.join("freezer.state"), "THAWED"));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            thaw_v1(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::devices::guard::Guard;
    use super::super::{Hierarchies, Hierarchy};
    use super::*;

    fn at_path(v1: Option<&Path>, v2: Option<&Path>) -> Cgroups {
        let hierarchy = |name: &str, path: &Path| Hierarchy { name: name.to_owned(), path: path.to_owned() };
        let hierarchies = Hierarchies {
            v1: v1.map(|path| hierarchy("freezer", path)).into_iter().collect(),
            v2: v2.map(|path| hierarchy("", path)),
        };
        Cgroups {
            hierarchies,
            top: "wardian-t".to_owned(),
            guard: std::sync::Arc::new(Guard::Nobody(String::new())),
        }
    }

    #[test]
    fn v2_is_taken_before_v1_and_neither_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (v1, v2) = (dir.path().join("v1"), dir.path().join("v2"));
        for path in [&v1, &v2] {
            fs::create_dir_all(path.join("wardian-t/c")).unwrap();
        }
        fs::write(v1.join("wardian-t/c/freezer.state"), "THAWED\n").unwrap();
        fs::write(v2.join("wardian-t/c/cgroup.freeze"), "0\n").unwrap();
        fs::write(v2.join("wardian-t/c/cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        let both = at_path(Some(&v1), Some(&v2));
        both.freeze("c").unwrap();
        assert!(both.is_frozen("c") && !at_path(Some(&v1), None).is_frozen("c"));
        both.thaw("c").unwrap();
        assert!(!both.is_frozen("c"));
        let old = at_path(Some(&v1), None);
        old.freeze("c").unwrap();
        assert!(old.is_frozen("c"));
        old.let_die("c");
        assert!(!old.is_frozen("c"));
        assert!(matches!(at_path(None, None).freeze("c"), Err(Error::Missing)));
        assert!(matches!(both.freeze(""), Err(Error::Missing)), "that would be all containers");
        both.thaw("gone").unwrap();
    }
}
