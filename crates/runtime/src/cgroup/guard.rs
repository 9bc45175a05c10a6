//! Who enforces device rules: the devices controller of cgroup v1 where it is mounted, else a program on cgroup v2.
//!
//! Rules stand on the container's cgroup before anything runs in it. The cgroup above all of them has rules as well, the
//! wider ones: root of a privileged container can mount its own cgroup and change what stands there, but never beyond
//! what the one above allows.

use super::devices::{Allow, Devices};
use super::program::compile;
use super::{Cgroups, Error, Hierarchies, Hierarchy, at, make, write_existing};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wardian_sys::bpf::DeviceProgram;

/// Of our programs, as `bpftool cgroup tree` shows them.
const PROGRAM: &str = "wardian_devices";

/// Who it is.
#[derive(Debug)]
pub(super) enum Guard {
    /// The hierarchy of the controller.
    V1(Hierarchy),
    /// A program for each kind of container, loaded once.
    V2 { hierarchy: Hierarchy, privileged: DeviceProgram, unprivileged: DeviceProgram },
    /// Nobody, and why.
    Nobody(String),
}

impl Guard {
    pub(super) fn find(hierarchies: &Hierarchies) -> Self {
        let controls = |h: &&Hierarchy| h.name.split(',').any(|controller| controller == "devices");
        if let Some(hierarchy) = hierarchies.v1.iter().find(controls) {
            return Self::V1(hierarchy.clone());
        }
        let Some(hierarchy) = hierarchies.v2.clone() else {
            return Self::Nobody(
                "neither the devices controller of cgroup v1 nor cgroup v2 is mounted".to_owned(),
            );
        };
        let load = |kind: Devices| DeviceProgram::load(PROGRAM, &compile(&kind.rules()));
        match load(Devices::Privileged).and_then(|privileged| Ok((privileged, load(Devices::Unprivileged)?)))
        {
            Ok((privileged, unprivileged)) => Self::V2 { hierarchy, privileged, unprivileged },
            Err(error) => Self::Nobody(format!(
                "the devices controller of cgroup v1 is not mounted, and for v2: {error}"
            )),
        }
    }

    /// The hierarchy in which the rules stand.
    fn hierarchy(&self) -> Option<&Hierarchy> {
        match self {
            Self::V1(hierarchy) | Self::V2 { hierarchy, .. } => Some(hierarchy),
            Self::Nobody(_) => None,
        }
    }
}

impl Cgroups {
    /// Set the rules of the cgroup above all, and make the one of the keepers. What could not be done for it, in words:
    /// containers still get their own rules.
    ///
    /// # Errors
    /// When the keepers' cgroup cannot be made.
    pub fn prepare(&self) -> Result<Option<String>, Error> {
        // What a keeper does itself (it makes nodes and opens ptmx) is allowed by these rules.
        let imposed = self.impose("", Devices::Privileged);
        self.make("keepers", super::Limits::default(), None)?;
        self.bring_back("keepers");
        Ok(imposed.err().map(|error| error.to_string()))
    }

    /// Set the rules of a cgroup, whatever they were. A device that is open stays open, so the rules are set
    /// before any process runs that they must restrict.
    ///
    /// # Errors
    /// When nobody can enforce them.
    pub fn impose(&self, id: &str, devices: Devices) -> Result<(), Error> {
        match &*self.guard {
            Guard::V1(hierarchy) => {
                impose(&self.dir(hierarchy, id), &devices.rules(), hierarchy.name == "devices")
            }
            Guard::V2 { hierarchy, privileged, unprivileged } => {
                let program = if devices == Devices::Privileged { privileged } else { unprivileged };
                attach(&self.dir(hierarchy, id), program)
            }
            Guard::Nobody(why) => {
                let error = io::Error::new(io::ErrorKind::Unsupported, why.clone());
                Err(at("cannot enforce device rules in", &PathBuf::from(&self.top).join(id))(error))
            }
        }
    }

    /// Give a container of an earlier server, and its peas, the rules that it may not have had. Cgroups
    /// with the right rules are unchanged; child cgroups inherit them.
    ///
    /// # Errors
    /// When the rules cannot be enforced; what could be done is done.
    pub fn renew(&self, id: &str, devices: Devices) -> Result<(), Error> {
        let Some(hierarchy) = self.guard.hierarchy() else {
            return self.impose(id, devices);
        };
        let mut result = Ok(());
        let beside = format!("{id}.");
        let is_beside = |name: &String| name.starts_with(&beside);
        for name in std::iter::once(id.to_owned()).chain(self.list().into_iter().filter(is_beside)) {
            let one = make(&self.dir(hierarchy, &name)).and_then(|()| {
                self.bring_back(&name);
                self.impose(&name, devices)
            });
            result = result.and(one);
        }
        result
    }

    /// Move back the threads that a server left in the cgroup above all when it was killed in [`impose`]; another
    /// hierarchy tells where they belong.
    fn bring_back(&self, id: &str) {
        let Guard::V1(hierarchy) = &*self.guard else { return };
        let Some(other) = self.one_with_members().filter(|other| *other != hierarchy) else { return };
        let left: BTreeSet<i32> = tasks(&self.dir(hierarchy, "")).into_iter().collect();
        if left.is_empty() {
            return;
        }
        let (from, to) = (self.dir(other, id), self.dir(hierarchy, id));
        for dir in below(&from).into_iter().rev() {
            let Ok(relative) = dir.strip_prefix(&from) else { continue };
            let home = to.join(relative);
            for task in tasks(&dir).into_iter().filter(|task| left.contains(task)) {
                // Who has ended needs no rules.
                if make(&home).is_ok() {
                    drop(write_existing(&home.join("tasks"), &task.to_string()));
                }
            }
        }
    }
}

/// What `devices.list` says; `None`: everything is allowed, perhaps with exceptions.
fn listed(dir: &Path) -> Result<Option<Vec<Allow>>, Error> {
    let path = dir.join("devices.list");
    let text = fs::read_to_string(&path).map_err(at("read device rules", &path))?;
    Ok(text.lines().map(Allow::from_line).collect())
}

/// Set the rules of a cgroup v1. `alone`: no other controller is mounted with it.
fn impose(dir: &Path, rules: &[Allow], alone: bool) -> Result<(), Error> {
    let deny = dir.join("devices.deny");
    let present = if let Some(present) = listed(dir)? {
        present
    } else {
        match write_existing(&deny, "a") {
            // It has cgroups below it (`devcgroup_update_access`, security/device_cgroup.c).
            Err(error) if is_invalid(&error) && alone => return impose_on_tree(dir, rules),
            other => other.map_err(at("deny devices", &deny))?,
        }
        Vec::new()
    };
    change(dir, &present, rules)
}

fn change(dir: &Path, present: &[Allow], rules: &[Allow]) -> Result<(), Error> {
    let (deny, allow) = (dir.join("devices.deny"), dir.join("devices.allow"));
    for line in present.iter().filter(|line| !rules.contains(line)) {
        write_existing(&deny, &line.to_string()).map_err(at("deny devices", &deny))?;
    }
    for line in rules.iter().filter(|line| !present.contains(line)) {
        match write_existing(&allow, &line.to_string()) {
            // The cgroup above does not have it itself: where the server runs in a container. It stays denied.
            Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {}
            other => other.map_err(at("allow devices", &allow))?,
        }
    }
    Ok(())
}

fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

/// A cgroup that was removed is counted until the kernel has taken it down: some grace periods of RCU.
const PATIENCE: u32 = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// What was taken down for a moment.
struct Taken {
    dir: PathBuf,
    tasks: Vec<i32>,
    rules: Option<Vec<Allow>>,
}

/// The kernel denies everything only to a cgroup without others below it. So the child cgroups are removed and
/// recreated, in this hierarchy alone, with the threads that were in them. Needed once, for containers of a server that
/// knew no rules.
fn impose_on_tree(dir: &Path, rules: &[Allow]) -> Result<(), Error> {
    let mut taken = Vec::new();
    let down = below(dir).into_iter().filter(|child| child != dir).try_for_each(|child| {
        let rules = listed(&child)?;
        let mut one = Taken { dir: child, tasks: Vec::new(), rules };
        let result = take_down(&mut one, dir);
        taken.push(one);
        result
    });
    let imposed = down.and_then(|()| {
        let deny = dir.join("devices.deny");
        let mut round = 0;
        loop {
            match write_existing(&deny, "a") {
                Err(error) if is_invalid(&error) && round < PATIENCE => {
                    std::thread::sleep(PAUSE);
                    round += 1;
                }
                other => break other.map_err(at("deny devices", &deny)),
            }
        }
    });
    let imposed = imposed.and_then(|()| change(dir, &[], rules));
    // Those above before those below; all of them, whatever happens to one.
    taken.iter().rev().map(put_up).fold(imposed, Result::and)
}

fn put_up(one: &Taken) -> Result<(), Error> {
    make(&one.dir)?;
    // It may have had fewer rights than the one above, and must not gain any.
    let imposed = one.rules.as_ref().map_or(Ok(()), |rules| impose(&one.dir, rules, false));
    for task in &one.tasks {
        // It may have ended.
        drop(write_existing(&one.dir.join("tasks"), &task.to_string()));
    }
    imposed
}

/// Move the threads of a cgroup without others below it to `to`, and remove it.
fn take_down(one: &mut Taken, to: &Path) -> Result<(), Error> {
    let mut result = Ok(());
    for _ in 0..PATIENCE {
        for task in tasks(&one.dir) {
            drop(write_existing(&to.join("tasks"), &task.to_string()));
            one.tasks.push(task);
        }
        result = fs::remove_dir(&one.dir).map_err(at("remove for a moment", &one.dir));
        if result.is_ok() {
            break;
        }
        // Somebody forks.
        std::thread::sleep(PAUSE);
    }
    result
}

fn tasks(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("tasks")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// A cgroup and all below it, the deepest first.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path()));
        }
    }
    found.push(dir.to_owned());
    found
}

/// Attach the program to a cgroup v2, in place of one of ours that says something else.
fn attach(dir: &Path, program: &DeviceProgram) -> Result<(), Error> {
    let failed = |e: wardian_sys::bpf::Error| at("enforce device rules in", dir)(io::Error::other(e));
    let cgroup = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| at("open", dir)(e.into()))?;
    let mut ours = DeviceProgram::attached(&cgroup).map_err(failed)?;
    ours.retain(|attached| attached.identity().name == program.identity().name);
    let Some(kept) = ours.iter().position(|attached| attached.identity() == program.identity()) else {
        // One after the other: all of them must allow, so nothing is allowed meanwhile that is not in the end.
        let first = if ours.is_empty() { None } else { Some(ours.remove(0)) };
        program.attach(&cgroup, first.as_ref()).map_err(failed)?;
        return ours.iter().try_for_each(|other| other.detach(&cgroup)).map_err(failed);
    };
    ours.remove(kept);
    ours.iter().try_for_each(|other| other.detach(&cgroup)).map_err(failed)
}

#[cfg(test)]
mod tests;
