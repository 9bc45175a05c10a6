//! Enforces device rules: by the devices controller of cgroup v1 where it is mounted, else by a program on cgroup v2.
//!
//! The rules of a container's cgroup are set before anything runs in it. The server's top cgroup has rules as well,
//! the wider ones: root of a privileged container can mount its own cgroup and change its rules, but never beyond
//! what the top cgroup allows.

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

/// Name of our programs, as `bpftool cgroup tree` shows it.
const PROGRAM: &str = "wardian_devices";

/// The mechanism that enforces the rules.
#[derive(Debug)]
pub(super) enum Guard {
    /// The devices controller of cgroup v1, in this hierarchy.
    V1(Hierarchy),
    /// Programs on cgroup v2, one for each kind of container, loaded once.
    V2 { hierarchy: Hierarchy, privileged: DeviceProgram, unprivileged: DeviceProgram },
    /// None is available, for this reason.
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

    /// The hierarchy of the cgroups that have the rules.
    fn hierarchy(&self) -> Option<&Hierarchy> {
        match self {
            Self::V1(hierarchy) | Self::V2 { hierarchy, .. } => Some(hierarchy),
            Self::Nobody(_) => None,
        }
    }
}

impl Cgroups {
    /// Sets the rules of the top cgroup, and makes the keepers' cgroup. Returns why the rules could not be set, if
    /// they could not: containers still get their own rules.
    ///
    /// # Errors
    /// The keepers' cgroup cannot be made.
    pub fn prepare(&self) -> Result<Option<String>, Error> {
        // These rules allow what a keeper itself does: it makes nodes and opens ptmx.
        let imposed = self.impose("", Devices::Privileged);
        self.make("keepers", super::Limits::default(), None)?;
        self.bring_back("keepers");
        Ok(imposed.err().map(|error| error.to_string()))
    }

    /// Sets the rules of a cgroup, and replaces those that it had. An open device stays usable, so the rules are set
    /// before any process runs that they must restrict.
    ///
    /// # Errors
    /// No mechanism is available, or it fails.
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

    /// Sets the rules of a container of an earlier server, and of its peas, which may not have had any. Cgroups with
    /// the right rules are unchanged; child cgroups inherit them.
    ///
    /// # Errors
    /// The rules cannot be enforced; the other cgroups of the container are done all the same.
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

    /// Moves threads back that a server left in the top cgroup when it was killed during [`impose`]; another
    /// hierarchy shows where they belong.
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
                // A thread that has ended needs no rules.
                if make(&home).is_ok() {
                    drop(write_existing(&home.join("tasks"), &task.to_string()));
                }
            }
        }
    }
}

/// Reads `devices.list`; `None` if everything is allowed, perhaps with exceptions.
fn listed(dir: &Path) -> Result<Option<Vec<Allow>>, Error> {
    let path = dir.join("devices.list");
    let text = fs::read_to_string(&path).map_err(at("read device rules", &path))?;
    Ok(text.lines().map(Allow::from_line).collect())
}

/// Sets the rules of a v1 cgroup. `alone`: no other controller is mounted with the devices controller.
fn impose(dir: &Path, rules: &[Allow], alone: bool) -> Result<(), Error> {
    let deny = dir.join("devices.deny");
    let present = if let Some(present) = listed(dir)? {
        present
    } else {
        match write_existing(&deny, "a") {
            // EINVAL: the cgroup has child cgroups (`devcgroup_update_access`, security/device_cgroup.c).
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
            // EPERM: the parent cgroup is not allowed this device itself, where the server runs in a container. It
            // stays denied.
            Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {}
            other => other.map_err(at("allow devices", &allow))?,
        }
    }
    Ok(())
}

fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INVAL.raw_os_error())
}

/// A removed cgroup still counts as a child until the kernel has released it, after some RCU grace periods.
const PATIENCE: u32 = 200;
const PAUSE: Duration = Duration::from_millis(5);

/// A child cgroup that is removed and recreated.
struct Taken {
    dir: PathBuf,
    tasks: Vec<i32>,
    rules: Option<Vec<Allow>>,
}

/// The kernel accepts "deny everything" only for a cgroup without child cgroups. So these are removed and recreated,
/// in this hierarchy alone, with the threads that were in them. Needed once per container of a server that had no
/// device rules.
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
    // Parents before children; all of them, even if one fails.
    taken.iter().rev().map(put_up).fold(imposed, Result::and)
}

fn put_up(one: &Taken) -> Result<(), Error> {
    make(&one.dir)?;
    // It may have had narrower rules than its parent, and must not gain any.
    let imposed = one.rules.as_ref().map_or(Ok(()), |rules| impose(&one.dir, rules, false));
    for task in &one.tasks {
        // The thread may have ended.
        drop(write_existing(&one.dir.join("tasks"), &task.to_string()));
    }
    imposed
}

/// Moves the threads of a cgroup without child cgroups to `to`, and removes it.
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
        // The cgroup is busy, because a process in it forks.
        std::thread::sleep(PAUSE);
    }
    result
}

fn tasks(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("tasks")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// A cgroup and all cgroups below it, the deepest first.
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

/// Attaches the program to a v2 cgroup, and replaces programs of ours with other rules.
fn attach(dir: &Path, program: &DeviceProgram) -> Result<(), Error> {
    let failed = |e: wardian_sys::bpf::Error| at("enforce device rules in", dir)(io::Error::other(e));
    let cgroup = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| at("open", dir)(e.into()))?;
    let mut ours = DeviceProgram::attached(&cgroup).map_err(failed)?;
    ours.retain(|attached| attached.identity().name == program.identity().name);
    let Some(kept) = ours.iter().position(|attached| attached.identity() == program.identity()) else {
        // First attached, then detached: all attached programs must allow an access, so nothing extra is allowed
        // meanwhile.
        let first = if ours.is_empty() { None } else { Some(ours.remove(0)) };
        program.attach(&cgroup, first.as_ref()).map_err(failed)?;
        return ours.iter().try_for_each(|other| other.detach(&cgroup)).map_err(failed);
    };
    ours.remove(kept);
    ours.iter().try_for_each(|other| other.detach(&cgroup)).map_err(failed)
}

#[cfg(test)]
mod tests;
